"""A job that has no result yet is asked for once more: nobody who asks is forgotten."""

from collections.abc import Callable

import pytest

from storage.records import Enqueued, JobState, Peer
from tests.unit.storage.stored import INFER, Stored

FIRST, SECOND = Peer("WS1", "MIDSLICE"), Peer("WS2", "MIDSLICE")


def ask(stored: Stored, peer: Peer, *destinations: str, key: str = "k") -> Enqueued:
    stored.receive("1.1", peer=peer)
    return stored.complete(key, peer=peer, destinations=destinations)


@pytest.mark.parametrize("state", ["queued", "running", "held"])
def test_the_result_goes_to_all_who_asked_for_it(stored: Stored, state: str) -> None:
    first = ask(stored, FIRST, "ws1", "pacs")
    if state != "queued":
        job = stored.claim()
        if state == "held":
            stored.queue.hold(job, "MISSING_SLICES", "One is missing.")
    assert ask(stored, SECOND, "ws2", "pacs") == Enqueued(first.job_id, "known")
    assert stored.queue.get(first.job_id).destinations == ("ws1", "pacs", "ws2")
    if state == "held":
        stored.queue.requeue(first.job_id)
    if state != "running":
        job = stored.claim()
    stored.queue.succeed(job, stored.derive(job))
    deliveries = stored.ledger.of_job(first.job_id)
    assert [one.destination for one in deliveries] == ["ws1", "pacs", "ws2"]


@pytest.mark.parametrize("end", ["stopped", "succeeded", "released", "died", "node", "lease"])
def test_a_resend_while_a_cancel_is_pending_is_not_lost(stored: Stored, end: str) -> None:
    first = ask(stored, FIRST, "ws1")
    job = stored.claim()
    stored.queue.cancel(job.id)
    assert ask(stored, SECOND, "ws2") == Enqueued(first.job_id, "known")
    assert stored.queue.renew(job, 0.5) is False
    ends: dict[str, Callable[[], object]] = {
        "stopped": lambda: stored.queue.cancelled(job),  # its worker had heard of the cancel
        "succeeded": lambda: stored.queue.succeed(job, stored.derive(job)),
        "released": lambda: stored.queue.release(job),
        "died": lambda: stored.queue.died(job, "died", "", "WORKER_DIED", "It died."),
        "node": stored.queue.recover,
    }
    if end == "lease":
        stored.clock.now += 3600
    else:
        ends[end]()
    if end == "succeeded":
        assert stored.queue.get(job.id).state is JobState.SUCCEEDED
    else:
        assert stored.claim().id == first.job_id


def test_going_back_while_a_job_is_being_replaced_keeps_it_and_replaces_the_other(
    stored: Stored,
) -> None:
    first = ask(stored, FIRST, "pacs", key="k1")
    job = stored.claim()
    late = ask(stored, FIRST, "pacs", key="k2")
    assert late.cancelled == (first.job_id,)
    back = ask(stored, FIRST, "pacs", key="k1")
    assert back == Enqueued(first.job_id, "known", (late.job_id,))
    assert stored.queue.renew(job, 0.5) is False
    stored.queue.succeed(job, stored.derive(job))
    done = stored.queue.get(first.job_id)
    assert (done.state, done.reason, done.sentence) == (JobState.SUCCEEDED, "", "")
    assert stored.queue.get(late.job_id).reason == "SUPERSEDED"


def test_a_cancel_after_the_resend_counts(stored: Stored) -> None:
    first = ask(stored, FIRST, "ws1")
    job = stored.claim()
    stored.queue.cancel(job.id)
    ask(stored, SECOND, "ws2")
    stored.queue.cancel(job.id)
    assert stored.queue.cancelled(job) is JobState.CANCELLED
    assert stored.queue.get(first.job_id).state is JobState.CANCELLED
    assert stored.queue.claim("w", INFER) is None


def test_a_cancelled_job_of_the_same_series_works_on_what_counts_when_it_is_asked_for_again(
    stored: Stored,
) -> None:
    stored.receive("1.1", version=b"A", peer=FIRST)
    other = stored.receive("1.1", version=b"B", peer=FIRST)
    asked = stored.complete("k", peer=FIRST)
    stored.queue.cancel(asked.job_id)
    stored.clock.now += 1
    newest = stored.receive("1.1", version=b"A", peer=FIRST)
    assert stored.complete("k", peer=FIRST).what == "requeued"
    works_on = [one.id for one in stored.queue.instances(asked.job_id)]
    assert works_on == [newest.instance_id, other.instance_id]
