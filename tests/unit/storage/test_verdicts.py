"""Jobs that are refused or held before they run, and series whose patients are mixed up."""

import pytest

from storage.errors import LeaseLost
from storage.records import (
    Arrival,
    DeliveryState,
    Ended,
    Enqueued,
    JobState,
    Peer,
    Verdict,
)
from tests.unit.storage.stored import INFER, Stored

THIN = Verdict(JobState.REFUSED, "ACQUIRED_THIN_SERIES_EXISTS", "There is a thinner one.")
MIXED_UP = Verdict(JobState.HELD, "PATIENT_MISMATCH", "Two patients.")


@pytest.mark.parametrize("verdict", [THIN, MIXED_UP])
def test_a_job_with_a_verdict_ends_as_it_begins_and_a_person_may_requeue_it(
    stored: Stored, verdict: Verdict
) -> None:
    asked = stored.ask("k", verdict=verdict)
    assert (asked.what, asked.reason) == (verdict.what, verdict.reason)
    job = stored.queue.get(asked.job_id)
    assert (job.state, job.reason, job.sentence) == (
        verdict.state,
        verdict.reason,
        verdict.sentence,
    )
    assert (job.finished_at, job.attempt) == (stored.clock.now, 0)
    assert stored.queue.claim("w", INFER) is None
    assert stored.ask("k", verdict=verdict) == Enqueued(asked.job_id, "known")
    stored.queue.requeue(asked.job_id)
    assert stored.claim().id == asked.job_id


def test_a_cancelled_job_that_is_asked_for_with_a_verdict_gets_that_verdict(stored: Stored) -> None:
    asked = stored.ask("k", verdict=MIXED_UP)
    stored.queue.cancel(asked.job_id)
    again = stored.ask("k", verdict=MIXED_UP)
    assert again == Enqueued(asked.job_id, "held", reason="PATIENT_MISMATCH")
    assert stored.queue.get(asked.job_id).state is JobState.HELD


def mix_up(stored: Stored, study_uid: str = "9.9") -> tuple[Enqueued, ...]:
    """The same Series UID comes in another study, and that is noticed."""
    other = Peer("OTHER", "MIDSLICE")
    stored.receive("8.8", study_uid=study_uid, peer=other)
    arrival = stored.arrival(other)
    new = stored.new_job(arrival, "mixed up", verdict=MIXED_UP)
    return stored.queue.complete(arrival.id, {}, [new], hold=MIXED_UP)


def test_a_series_uid_of_two_studies_holds_the_job_that_waits_and_the_new_one(
    stored: Stored,
) -> None:
    first = stored.ask("k")
    elsewhere = stored.new_job(stored_arrival(stored, "7.7"), "elsewhere")
    (untouched,) = stored.queue.complete(elsewhere.arrival_id, {}, [elsewhere])
    held = mix_up(stored)
    assert [entry.what for entry in held] == ["held", "held"]
    assert held[0].job_id == first.job_id
    for entry in held:
        job = stored.queue.get(entry.job_id)
        assert (job.state, job.reason) == (JobState.HELD, "PATIENT_MISMATCH")
    assert stored.claim().id == untouched.job_id
    assert stored.queue.cancel(first.job_id) is JobState.CANCELLED


def stored_arrival(stored: Stored, series_uid: str) -> Arrival:
    stored.receive("5.5", series_uid=series_uid)
    return stored.arrival(series_uid=series_uid)


@pytest.mark.parametrize("end", ["stopped", "succeeded", "refused", "died", "released"])
def test_a_running_job_of_a_mixed_up_series_is_held_however_it_ends(
    stored: Stored, end: str
) -> None:
    first = stored.ask("k")
    job = stored.claim()
    mix_up(stored)
    assert stored.queue.renew(job, 0.5)  # asked to stop
    if end == "stopped":
        stored.queue.cancelled(job)
    elif end == "succeeded":
        assert stored.queue.succeed(job, stored.derive(job)) == Ended(
            JobState.HELD, folder_kept=False
        )
    elif end == "refused":
        stored.queue.refuse(job, "TOO_FEW_SLICES", "Too few.")
    elif end == "died":
        stored.queue.died(job, "worker_died", "", "WORKER_DIED", "It died.")
    else:
        stored.queue.release(job)
    held = stored.queue.get(first.job_id)
    assert (held.state, held.reason, held.sentence) == (
        JobState.HELD,
        "PATIENT_MISMATCH",
        "Two patients.",
    )
    assert stored.states(first.job_id) == []


def test_what_is_not_yet_delivered_of_a_mixed_up_series_is_held_and_what_is_sent_stays(
    stored: Stored,
) -> None:
    first = stored.ask("k", destinations=("pacs", "viewer", "archive"))
    stored.succeed()
    stored.deliver("pacs")
    sending = stored.start_delivery("viewer")
    mix_up(stored)
    assert stored.states(first.job_id) == [
        ("pacs", DeliveryState.SENT),
        ("viewer", DeliveryState.HELD),
        ("archive", DeliveryState.HELD),
    ]
    with pytest.raises(LeaseLost):
        stored.ledger.renew(sending)
    held = stored.ledger.of_job(first.job_id)[1]
    assert (held.reason, held.sentence) == ("PATIENT_MISMATCH", "Two patients.")
    stored.ledger.requeue(held.id)  # a person has looked
    assert stored.start_delivery("viewer").id == held.id
