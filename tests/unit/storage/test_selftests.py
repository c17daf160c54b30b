"""The history of self-tests, and what they leave behind: rows that say what they were, no files."""

import pytest

from storage.errors import LeaseLost, NotFound
from storage.records import DeliveryState, JobState, SelfTest, SelfTestState, SelfTestStep
from storage.site import notices, selftests
from storage.site.nodes import Nodes
from tests.unit.storage.stored import SERIES, Stored

GOOD = SelfTestStep("received", ok=True, seconds=0.1, sentence="6 slices.")
BAD = SelfTestStep("processed", ok=False, seconds=9.0, sentence="Job 1 is held.")


def begin(stored: Stored, node: str = "one") -> SelfTest:
    return selftests.begin(
        stored.database,
        stored.clock(),
        node=node,
        who="anna",
        series_uid=SERIES,
        destination="pacs",
    )


def files_of(stored: Stored) -> list[str]:
    return [str(path) for path in stored.files.folder.rglob("*.dcm")]


def job_of_a_test(stored: Stored) -> int:
    """A made series that has arrived, with its job."""
    stored.receive("1.1")
    stored.receive("1.2")
    arrival = stored.arrival()
    new = stored.new_job(arrival, "k", kind="selftest")
    (job,) = stored.queue.complete(arrival.id, {}, [new])
    return job.job_id


def test_a_test_has_passed_where_every_step_has(stored: Stored) -> None:
    running = begin(stored)
    assert (running.state, running.finished_at) == (SelfTestState.RUNNING, None)
    stored.clock.now += 30
    ended = selftests.end(stored.database, stored.clock(), running.id, [GOOD], "Fine.")
    assert (ended.state, ended.steps, ended.sentence) == (SelfTestState.PASSED, (GOOD,), "Fine.")
    assert ended.finished_at == stored.clock.now
    assert selftests.get(stored.database, running.id) == ended
    with pytest.raises(NotFound):
        selftests.get(stored.database, 99)


@pytest.mark.parametrize("steps", [[], [GOOD, BAD]])
def test_a_test_without_a_step_or_with_a_bad_one_has_failed(
    stored: Stored, steps: list[SelfTestStep]
) -> None:
    running = begin(stored)
    ended = selftests.end(stored.database, stored.clock(), running.id, steps, "No.")
    assert ended.state is SelfTestState.FAILED


def test_what_a_dead_node_was_testing_has_failed(stored: Stored) -> None:
    mine, theirs = begin(stored), begin(stored, "two")
    (ended,) = selftests.interrupted(stored.database, stored.clock(), "one")
    assert (ended.id, ended.sentence) == (mine.id, selftests.INTERRUPTED.format(node="one"))
    assert selftests.interrupted(stored.database, stored.clock(), "one") == ()
    assert selftests.get(stored.database, mine.id).state is SelfTestState.FAILED
    assert selftests.get(stored.database, theirs.id).state is SelfTestState.RUNNING


def told(stored: Stored) -> list[tuple[str, object]]:
    found = notices.address(stored.database, stored.clock(), (), ())
    return [(one.event, one.facts["sentence"]) for one in found]


def test_every_failure_is_told_once_also_that_of_a_dead_node(stored: Stored) -> None:
    passed, failed, _ = begin(stored), begin(stored), begin(stored, "two")
    selftests.end(stored.database, stored.clock(), passed.id, [GOOD], "Fine.")
    assert told(stored) == []
    selftests.end(stored.database, stored.clock(), failed.id, [GOOD, BAD], "Job 1 is held.")
    assert told(stored) == [("selftest_failed", "Job 1 is held.")]
    for _ in range(2):
        selftests.interrupted(stored.database, stored.clock(), "two")
    sentence = "The node two stopped, or failed, while the self-test ran."
    assert told(stored) == [("selftest_failed", sentence)]


def test_a_test_that_was_given_up_stays_so_though_its_node_lives(stored: Stored) -> None:
    test = begin(stored)
    selftests.interrupted(stored.database, stored.clock(), "one")
    late = selftests.end(stored.database, stored.clock(), test.id, [GOOD], "Fine.")
    assert late.state is SelfTestState.FAILED
    assert late.sentence == selftests.INTERRUPTED.format(node="one")


def test_who_seems_to_run_a_test_is_known_with_its_heartbeat(stored: Stored) -> None:
    nodes = Nodes(stored.database, stored.clock)
    nodes.start("one")
    begin(stored), begin(stored, "never seen")
    passed = begin(stored, "two")
    selftests.end(stored.database, stored.clock(), passed.id, [GOOD], "Fine.")
    assert selftests.running_on(stored.database) == {"one": stored.clock.now, "never seen": 0.0}


def test_the_history_is_newest_first_and_not_for_ever(stored: Stored) -> None:
    for _ in range(3):
        test = begin(stored)
        selftests.end(stored.database, stored.clock(), test.id, [GOOD], "")
        stored.clock.now += 10
    begin(stored)
    assert [one.id for one in selftests.newest(stored.database, 2)] == [4, 3]
    selftests.forget(stored.database, stored.clock.now - 15)
    assert selftests.count(stored.database) == 2


def test_files_of_a_test_that_is_over_are_removed_and_its_rows_stay(stored: Stored) -> None:
    test = begin(stored)
    job_id = job_of_a_test(stored)
    job = stored.queue.claim("w", ("selftest",))
    assert job is not None
    stored.queue.succeed(job, stored.derive(job))
    assert len(selftests.result(stored.database, job_id)) == 2
    assert selftests.leftovers(stored.database) == ()  # it is under way
    selftests.end(stored.database, stored.clock(), test.id, [GOOD], "")
    (series_id,) = selftests.leftovers(stored.database)
    assert len(files_of(stored)) == 4
    assert selftests.clear(stored.database, stored.files, series_id, stored.clock())
    assert files_of(stored) == []
    assert selftests.leftovers(stored.database) == ()
    (delivery,) = stored.ledger.of_job(job_id)
    assert delivery.state is DeliveryState.CANCELLED
    assert stored.queue.get(job_id).state is JobState.SUCCEEDED
    assert stored.database.integrity() == ()


def test_a_job_that_still_runs_is_stopped_first(stored: Stored) -> None:
    test = begin(stored)
    job_of_a_test(stored)
    job = stored.queue.claim("w", ("selftest",))
    assert job is not None
    selftests.end(stored.database, stored.clock(), test.id, [GOOD, BAD], "")
    (series_id,) = selftests.leftovers(stored.database)
    assert not selftests.clear(stored.database, stored.files, series_id, stored.clock())
    assert len(files_of(stored)) == 2
    assert stored.queue.renew(job, 0.5)  # its worker hears that it is not wanted any more
    assert stored.queue.cancelled(job) is JobState.CANCELLED
    assert selftests.clear(stored.database, stored.files, series_id, stored.clock())
    assert files_of(stored) == []
    with pytest.raises(LeaseLost):
        stored.queue.renew(job, 0.6)


def test_an_arrival_that_never_was_complete_is_closed_and_cleared(stored: Stored) -> None:
    test = begin(stored)
    stored.receive("1.1")
    selftests.end(stored.database, stored.clock(), test.id, [BAD], "")
    (series_id,) = selftests.leftovers(stored.database)
    assert selftests.clear(stored.database, stored.files, series_id, stored.clock())
    assert stored.archive.arriving() == ()
    assert files_of(stored) == []


def test_a_job_that_waits_or_is_held_is_cancelled(stored: Stored) -> None:
    test = begin(stored)
    job_id = job_of_a_test(stored)
    selftests.end(stored.database, stored.clock(), test.id, [BAD], "")
    (series_id,) = selftests.leftovers(stored.database)
    selftests.clear(stored.database, stored.files, series_id, stored.clock())
    assert stored.queue.get(job_id).state is JobState.CANCELLED


def test_the_series_of_patients_are_never_among_the_leftovers(stored: Stored) -> None:
    stored.ask("k")
    selftests.begin(
        stored.database,
        stored.clock(),
        node="one",
        who="anna",
        series_uid="2.25.9",
        destination="",
    )
    selftests.interrupted(stored.database, stored.clock(), "one")
    assert selftests.leftovers(stored.database) == ()
