"""Several peers want one job: each keeps what it asked for, whatever the others do."""

import pytest

from storage.records import DeliveryState, Enqueued, Job, JobState, Peer
from tests.unit.storage.stored import INFER, Stored

FIRST, SECOND = Peer("WS1", "MIDSLICE"), Peer("WS2", "MIDSLICE")


def ask(stored: Stored, peer: Peer, key: str, *destinations: str, uid: str = "1.1") -> Enqueued:
    stored.receive(uid, peer=peer)
    return stored.complete(key, peer=peer, destinations=destinations)


def both_ask(stored: Stored) -> int:
    asked = ask(stored, FIRST, "k", "ws1", "pacs")
    assert ask(stored, SECOND, "k", "ws2", "pacs") == Enqueued(asked.job_id, "known")
    return asked.job_id


def states(stored: Stored, job_id: int) -> dict[str, DeliveryState]:
    return {one.destination: one.state for one in stored.ledger.of_job(job_id)}


def finish(stored: Stored, job: Job, uid: str = "2.25.1") -> None:
    stored.queue.succeed(job, stored.derive(job, uid))


def test_a_late_slice_of_the_first_peer_leaves_the_job_to_the_second(stored: Stored) -> None:
    job_id = both_ask(stored)
    late = ask(stored, FIRST, "late", "ws1", "pacs", uid="1.2")
    assert late.cancelled == ()
    job = stored.queue.get(job_id)
    assert (job.state, job.destinations) == (JobState.QUEUED, ("ws2", "pacs"))
    finish(stored, stored.claim())
    assert set(states(stored, job_id)) == {"ws2", "pacs"}
    finish(stored, stored.claim(), "2.25.2")
    assert set(states(stored, late.job_id)) == {"ws1", "pacs"}


def test_a_late_slice_of_the_second_peer_leaves_the_job_to_the_first(stored: Stored) -> None:
    job_id = both_ask(stored)
    ask(stored, SECOND, "late", "ws2", uid="1.2")
    assert stored.queue.get(job_id).destinations == ("ws1", "pacs")


def test_once_nobody_wants_it_any_more_it_is_cancelled(stored: Stored) -> None:
    job_id = both_ask(stored)
    ask(stored, FIRST, "late", "ws1", uid="1.2")
    late = ask(stored, SECOND, "late", "ws2", uid="1.2")
    assert late.cancelled == (job_id,)
    assert stored.queue.get(job_id).reason == "SUPERSEDED"
    assert stored.claim().id == late.job_id
    assert stored.queue.claim("w", INFER) is None


def test_what_was_made_goes_on_to_the_peer_that_still_wants_it(stored: Stored) -> None:
    job_id = both_ask(stored)
    finish(stored, stored.claim())
    ask(stored, FIRST, "late", "ws1", uid="1.2")
    assert states(stored, job_id) == {
        "ws1": DeliveryState.CANCELLED,
        "pacs": DeliveryState.QUEUED,  # the second peer wants it there too
        "ws2": DeliveryState.QUEUED,
    }
    assert stored.deliver("ws2").state is DeliveryState.SENT
    ask(stored, SECOND, "late", "ws2", uid="1.2")
    assert states(stored, job_id)["pacs"] is DeliveryState.CANCELLED


def test_a_second_peer_that_comes_after_the_result_gets_it_and_the_first_keeps_its_own(
    stored: Stored,
) -> None:
    first = ask(stored, FIRST, "k", "ws1")
    finish(stored, stored.claim())
    sent = stored.deliver("ws1")
    assert ask(stored, SECOND, "k", "ws2").what == "redelivered"
    assert stored.queue.get(first.job_id).destinations == ("ws1", "ws2")
    assert states(stored, first.job_id) == {
        "ws1": DeliveryState.SENT,
        "ws2": DeliveryState.QUEUED,
    }
    assert stored.ledger.get(sent.id) == sent  # who had it is not sent it a second time


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_job_that_the_second_peer_puts_back_delivers_to_the_first_too(
    stored: Stored, end: str
) -> None:
    first = ask(stored, FIRST, "k", "ws1")
    if end == "failed":
        stored.queue.fail(stored.claim(), "ValueError", "No.")
    else:
        stored.queue.cancel(first.job_id)
    assert ask(stored, SECOND, "k", "ws2").what == "requeued"
    finish(stored, stored.claim())
    assert set(states(stored, first.job_id)) == {"ws1", "ws2"}


def test_the_same_peer_again_names_its_destinations_anew(stored: Stored) -> None:
    both_ask(stored)
    again = ask(stored, FIRST, "k", "elsewhere")  # the route was changed meanwhile
    assert stored.queue.get(again.job_id).destinations == ("ws2", "pacs", "elsewhere")


def test_shadow_mode_is_wanted_though_it_has_no_destination(stored: Stored) -> None:
    shadow = ask(stored, FIRST, "k")
    ask(stored, SECOND, "k", "ws2")
    ask(stored, SECOND, "late", "ws2", uid="1.2")
    assert stored.queue.get(shadow.job_id).state is JobState.QUEUED
    assert stored.queue.get(shadow.job_id).destinations == ()


def test_a_running_job_goes_on_for_the_peer_that_is_left(stored: Stored) -> None:
    both_ask(stored)
    job = stored.claim()
    ask(stored, FIRST, "late", "ws1", uid="1.2")
    assert stored.queue.renew(job, 0.5) is False
    finish(stored, job)
    assert stored.queue.get(job.id).state is JobState.SUCCEEDED
