"""What a person is told who wants done again what retention has removed, or what never was."""

from collections.abc import Callable

import pytest

from storage.errors import WrongState
from storage.records import JobState
from storage.retention import expired, purge
from tests.unit.storage.stored import Stored

REMOVED = "2023-12-"  # the clock of the tests, and thirty days


@pytest.fixture
def purged(stored: Stored) -> Stored:
    """A series that was delivered and removed since, and one that was refused."""
    stored.ask("k")
    stored.succeed()
    stored.deliver()
    stored.receive("9.1", series_uid="9")
    arrival = stored.arrival(series_uid="9")
    stored.queue.complete(arrival.id, {}, [stored.new_job(arrival, "refused")])
    stored.queue.refuse(stored.claim(), "TOO_FEW_SLICES", "One.")
    stored.clock.now += 30 * 86_400
    gone = expired(stored.database, stored.clock.now, 7, 1)
    assert len(purge(stored.database, stored.files, gone, stored.clock.now).series) == 2
    return stored


def said(ask: Callable[[], object]) -> str:
    with pytest.raises(WrongState) as error:
        ask()
    return str(error.value)


def test_each_command_says_what_was_removed_and_to_send_the_series_again(purged: Stored) -> None:
    redelivered = said(lambda: purged.ledger.redeliver(1))
    requeued = said(lambda: purged.queue.requeue(2))
    for sentence in (redelivered, requeued):
        assert REMOVED in sentence
        assert "storage.keep_days" in sentence
        assert "let the sender send the series again" in sentence
    assert "requeue it" not in redelivered  # that would be refused too
    assert "redeliver" not in requeued


def test_a_delivery_that_was_cancelled_before_the_purge_says_the_same(purged: Stored) -> None:
    purged.clock.now -= 29 * 86_400
    purged.receive("5.1", series_uid="5")
    arrival = purged.arrival(series_uid="5")
    purged.queue.complete(arrival.id, {}, [purged.new_job(arrival, "third")])
    purged.succeed("2.25.5")
    purged.ledger.cancel(2)
    purged.clock.now += 29 * 86_400
    gone = expired(purged.database, purged.clock.now, 7, 1)
    purge(purged.database, purged.files, gone, purged.clock.now)
    assert "send the series again" in said(lambda: purged.ledger.requeue(2))


def test_a_succeeded_job_is_not_requeued_but_redelivered(stored: Stored) -> None:
    stored.ask("k")
    stored.succeed()
    assert "its result is sent again by redeliver" in said(lambda: stored.queue.requeue(1))


@pytest.mark.parametrize("state", [s for s in JobState if s is not JobState.SUCCEEDED])
def test_a_job_without_a_result_says_what_to_do_instead(stored: Stored, state: JobState) -> None:
    stored.ask("k")
    ends: dict[JobState, Callable[[], object]] = {
        JobState.QUEUED: lambda: None,
        JobState.RUNNING: stored.claim,
        JobState.REFUSED: lambda: stored.queue.refuse(stored.claim(), "NOT_HU", "No."),
        JobState.HELD: lambda: stored.queue.hold(stored.claim(), "MISSING_SLICES", "No."),
        JobState.FAILED: lambda: stored.queue.fail(stored.claim(), "ValueError", "No."),
        JobState.CANCELLED: lambda: stored.queue.cancel(1),
    }
    ends[state]()
    sentence = said(lambda: stored.ledger.redeliver(1))
    waits = state in (JobState.QUEUED, JobState.RUNNING)
    assert ("delivered then" in sentence) == waits
    assert ("requeue" in sentence) == (not waits)
