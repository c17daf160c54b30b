"""What a complete arrival does to jobs: new, once more, delivered again, or replaced."""

import pytest

from storage.errors import LeaseLost, NotFound, StorageError, WrongState
from storage.records import (
    Arrival,
    ArrivalState,
    DeliveryState,
    Ended,
    Enqueued,
    JobState,
    Peer,
    Verdict,
)
from storage.retention import expired, purge
from tests.unit.storage.stored import INFER, Stored

OTHER_AE = Peer("SCANNER", "MIDSLICE_X2")


def purge_all(stored: Stored) -> None:
    """Let so much time pass that everything that may go is gone."""
    stored.clock.now += 100 * 86_400
    found = expired(stored.database, stored.clock.now, keep_days=7, keep_unrouted_days=1)
    assert purge(stored.database, stored.files, found, stored.clock.now).series


def states(stored: Stored, job_id: int) -> list[tuple[str, DeliveryState]]:
    return [(one.destination, one.state) for one in stored.ledger.of_job(job_id)]


def test_a_complete_arrival_says_why_and_has_its_jobs(stored: Stored) -> None:
    stored.receive("1.1")
    arrival = stored.arrival()
    new = stored.new_job(arrival, "k", priority=3, destinations=("pacs", "viewer"))
    (enqueued,) = stored.queue.complete(arrival.id, {"quiet_seconds": 30.5}, [new])
    closed = stored.archive.arrival(arrival.id)
    assert closed.state is ArrivalState.COMPLETE
    assert closed.completed_at == stored.clock.now
    assert closed.evidence == {"quiet_seconds": 30.5}
    job = stored.queue.get(enqueued.job_id)
    assert (job.state, job.priority, job.parameters) == (JobState.QUEUED, 3, {"factor": 4})
    assert job.destinations == ("pacs", "viewer")
    assert [one.instance_uid for one in stored.queue.instances(job.id)] == ["1.1"]
    assert stored.archive.arriving() == ()


def test_an_arrival_without_a_route_is_complete_and_has_no_job(stored: Stored) -> None:
    stored.receive("1.1")
    assert stored.queue.complete(stored.arrival().id, {}, []) == ()
    assert stored.queue.list() == ()
    assert stored.archive.arriving() == ()


def test_an_arrival_is_completed_once(stored: Stored) -> None:
    stored.receive("1.1")
    arrival = stored.arrival()
    stored.queue.complete(arrival.id, {}, [])
    with pytest.raises(WrongState, match="complete already"):
        stored.queue.complete(arrival.id, {}, [stored.new_job(arrival, "k")])
    with pytest.raises(NotFound, match="no arrival 99"):
        stored.queue.complete(99, {}, [])
    assert stored.queue.list() == ()


def test_an_instance_that_comes_after_the_decision_keeps_the_arrival_open(stored: Stored) -> None:
    stored.receive("1.1")
    decided_on = stored.arrival()
    new = stored.new_job(decided_on, "k")
    stored.receive("1.2")
    with pytest.raises(WrongState, match="has 2 instances by now, not 1"):
        stored.queue.complete(decided_on.id, {}, [new], instances=decided_on.instances)
    assert stored.arrival().state is ArrivalState.ARRIVING
    assert stored.queue.list() == ()


def test_a_job_that_cannot_be_written_leaves_the_arrival_open(stored: Stored) -> None:
    stored.receive("1.1")
    arrival = stored.arrival()
    wrong = stored.new_job(arrival, "k2", instances=(999,))
    with pytest.raises(StorageError, match="database"):
        stored.queue.complete(arrival.id, {}, [stored.new_job(arrival, "k1"), wrong])
    assert stored.arrival().id == arrival.id
    assert stored.queue.list() == ()


def test_a_resend_of_a_finished_series_is_delivered_again_without_a_job(stored: Stored) -> None:
    first = stored.ask("k")
    stored.succeed()
    stored.deliver()
    again = stored.ask("k")
    assert again == Enqueued(first.job_id, "redelivered")
    assert stored.queue.claim("w", INFER) is None
    assert states(stored, first.job_id) == [("pacs", DeliveryState.QUEUED)]
    delivery = stored.start_delivery()
    assert delivery.sent == 0  # all instances are offered again
    assert [one.offers for one in stored.ledger.unsent(delivery)] == [1, 1]


def test_a_resend_goes_to_the_destinations_that_the_route_has_now(stored: Stored) -> None:
    first = stored.ask("k", destinations=("pacs",))
    stored.succeed()
    stored.deliver()
    stored.ask("k", destinations=("viewer",))
    assert states(stored, first.job_id) == [
        ("pacs", DeliveryState.SENT),
        ("viewer", DeliveryState.QUEUED),
    ]


def test_a_resend_during_a_delivery_does_not_disturb_it(stored: Stored) -> None:
    first = stored.ask("k")
    stored.succeed()
    delivery = stored.start_delivery()
    assert stored.ask("k").what == "redelivered"
    for one in stored.ledger.unsent(delivery):
        stored.ledger.answered(delivery, one.id, 0, stored=True)
    stored.ledger.sent(delivery)
    assert states(stored, first.job_id) == [("pacs", DeliveryState.SENT)]


def test_a_held_delivery_is_queued_again_by_a_resend(stored: Stored) -> None:
    first = stored.ask("k")
    stored.succeed()
    stored.ledger.hold(stored.start_delivery(), "REFUSED_BY_PEER", "The PACS refused it.")
    stored.ask("k")
    (delivery,) = stored.ledger.of_job(first.job_id)
    assert (delivery.state, delivery.reason, delivery.failures) == (DeliveryState.QUEUED, "", 0)


@pytest.mark.parametrize("end", ["queued", "running", "held", "refused"])
def test_a_resend_changes_nothing_where_the_job_stands_for_itself(stored: Stored, end: str) -> None:
    first = stored.ask("k")
    if end != "queued":
        job = stored.claim()
        if end == "held":
            stored.queue.hold(job, "MISSING_SLICES", "One is missing.")
        if end == "refused":
            stored.queue.refuse(job, "TOO_FEW_SLICES", "Two are needed.")
    before = stored.queue.get(first.job_id)
    assert stored.ask("k") == Enqueued(first.job_id, "known")
    assert stored.queue.get(first.job_id) == before


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_resend_runs_a_failed_or_cancelled_job_again(stored: Stored, end: str) -> None:
    first = stored.ask("k")
    if end == "failed":
        stored.queue.fail(stored.claim(), "ValueError", "The model raised.")
    else:
        stored.queue.cancel(first.job_id)
    assert stored.ask("k").what == "requeued"
    job = stored.queue.get(first.job_id)
    assert (job.state, job.reason, job.sentence) == (JobState.QUEUED, "", "")
    assert stored.claim().id == first.job_id


def test_a_second_ae_title_with_another_key_makes_a_second_job(stored: Stored) -> None:
    first = stored.ask("k4")
    stored.receive("1.1", peer=OTHER_AE)
    second = stored.complete("k2", peer=OTHER_AE, route="ct-double")
    assert second.what == "queued"
    assert second.job_id != first.job_id
    assert stored.queue.get(first.job_id).state is JobState.QUEUED


def test_the_same_series_from_another_peer_supersedes_nothing(stored: Stored) -> None:
    first = stored.ask("k4")
    stored.receive("1.1", peer=OTHER_AE)
    assert stored.complete("other", peer=OTHER_AE).cancelled == ()
    assert stored.queue.get(first.job_id).state is JobState.QUEUED


def test_another_route_or_stack_supersedes_nothing(stored: Stored) -> None:
    first = stored.ask("k1")
    second = stored.ask("k2", route="another")
    third = stored.ask("k3", stack="sagittal")
    for enqueued in (first, second, third):
        assert enqueued.cancelled == ()
        assert stored.queue.get(enqueued.job_id).state is JobState.QUEUED


def test_a_late_slice_cancels_the_queued_job_and_makes_a_new_one(stored: Stored) -> None:
    first = stored.ask("k1")
    late = stored.ask("k2", uids=("1.3",))
    assert late.cancelled == (first.job_id,)
    old = stored.queue.get(first.job_id)
    assert (old.state, old.reason) == (JobState.CANCELLED, "SUPERSEDED")
    assert f"job {late.job_id}" in old.sentence
    assert len(stored.queue.instances(late.job_id)) == 3
    assert stored.claim().id == late.job_id


def test_a_late_slice_asks_the_running_job_to_stop(stored: Stored) -> None:
    stored.ask("k1")
    running = stored.claim()
    late = stored.ask("k2", uids=("1.3",))
    assert late.cancelled == (running.id,)
    assert stored.queue.get(running.id).state is JobState.RUNNING
    assert stored.queue.renew(running, 0.5) is True
    stored.queue.cancelled(running)
    old = stored.queue.get(running.id)
    assert (old.state, old.reason) == (JobState.CANCELLED, "SUPERSEDED")
    assert f"job {late.job_id}" in old.sentence


def test_a_superseded_job_that_finishes_all_the_same_delivers_nothing(stored: Stored) -> None:
    stored.ask("k1")
    running = stored.claim()
    stored.ask("k2", uids=("1.3",))
    ended = stored.queue.succeed(running, stored.derive(running))
    assert (ended.state, ended.folder_kept) == (JobState.CANCELLED, False)
    assert stored.ledger.backlog() == ()
    assert stored.queue.kept_series(running.series_id) == frozenset()


def test_a_superseded_job_is_not_held_for_a_person(stored: Stored) -> None:
    stored.ask("k1")
    running = stored.claim()
    stored.ask("k2", uids=("1.3",))
    assert stored.queue.hold(running, "MISSING_SLICES", "One.") is JobState.CANCELLED
    assert stored.queue.get(running.id).reason == "SUPERSEDED"


def test_a_late_slice_after_the_end_makes_a_new_job_and_stops_old_deliveries(
    stored: Stored,
) -> None:
    first = stored.ask("k1", destinations=("pacs", "viewer", "held"))
    stored.succeed("2.25.1")
    stored.deliver("pacs")
    stored.ledger.hold(stored.start_delivery("held"), "REFUSED_BY_PEER", "No.")
    late = stored.ask("k2", uids=("1.3",), destinations=("pacs",))
    assert (late.what, late.cancelled) == ("queued", ())
    assert states(stored, first.job_id) == [
        ("pacs", DeliveryState.SENT),  # what is there is there
        ("viewer", DeliveryState.CANCELLED),
        ("held", DeliveryState.CANCELLED),
    ]
    assert stored.ledger.of_job(first.job_id)[1].reason == "SUPERSEDED"
    stored.succeed("2.25.2")
    assert states(stored, late.job_id) == [("pacs", DeliveryState.QUEUED)]


def test_a_partly_sent_superseded_series_says_how_much_of_it_is_there(stored: Stored) -> None:
    first = stored.ask("k1")
    stored.succeed()
    delivery = stored.start_delivery()
    one, _ = stored.ledger.unsent(delivery)
    stored.ledger.answered(delivery, one.id, 0, stored=True)
    stored.ask("k2", uids=("1.3",))
    (old,) = stored.ledger.of_job(first.job_id)
    assert old.state is DeliveryState.CANCELLED
    assert "1 of 2 instances are at the destination" in old.sentence


def test_a_series_held_for_missing_slices_is_superseded_by_the_completed_one(
    stored: Stored,
) -> None:
    first = stored.ask("k1")
    stored.queue.hold(stored.claim(), "MISSING_SLICES", "One is missing.")
    late = stored.ask("k2", uids=("1.3",))
    assert late.cancelled == (first.job_id,)
    assert stored.queue.get(first.job_id).state is JobState.CANCELLED
    assert stored.claim().id == late.job_id


def test_a_refused_job_stays_refused_when_more_slices_come(stored: Stored) -> None:
    first = stored.ask("k1")
    stored.queue.refuse(stored.claim(), "TOO_FEW_SLICES", "Two are needed.")
    assert stored.ask("k2", uids=("1.3",)).cancelled == ()
    assert stored.queue.get(first.job_id).state is JobState.REFUSED


def test_going_back_to_an_earlier_route_brings_its_result_back(stored: Stored) -> None:
    stored.ask("x4")
    stored.succeed("2.25.4")
    second = stored.ask("x2")
    stored.succeed("2.25.2")
    back = stored.ask("x4")
    assert back.what == "redelivered"
    assert states(stored, back.job_id) == [("pacs", DeliveryState.QUEUED)]
    assert states(stored, second.job_id) == [("pacs", DeliveryState.CANCELLED)]


def test_a_result_that_another_job_shares_is_not_superseded_with_its_first_job(
    stored: Stored,
) -> None:
    stored.ask("k1")
    stored.succeed("2.25.1")
    stored.deliver()
    stored.receive("1.1", peer=OTHER_AE)
    shared = stored.complete("k1-other", peer=OTHER_AE, destinations=("viewer",))
    ended = stored.queue.same(stored.claim(), "2.25.1")
    assert (ended.state, ended.folder_kept) == (JobState.SUCCEEDED, False)
    stored.ask("k2", uids=("1.3",))
    assert ("viewer", DeliveryState.QUEUED) in states(stored, shared.job_id)


def test_a_purged_series_that_was_offered_is_made_again_under_the_next_edition(
    stored: Stored,
) -> None:
    first = stored.ask("k")
    job = stored.succeed("2.25.1")
    stored.deliver()
    assert job.edition == 1
    purge_all(stored)
    assert stored.ask("k") == Enqueued(first.job_id, "requeued")
    assert stored.claim().edition == 2


def test_a_purged_series_that_was_never_offered_is_made_again_as_it_was(stored: Stored) -> None:
    stored.ask("k", destinations=())
    stored.succeed("2.25.1")
    purge_all(stored)
    again = stored.ask("k", destinations=("pacs",))
    assert again.what == "requeued"
    job = stored.claim()
    assert job.edition == 1
    ended = stored.queue.succeed(job, stored.derive(job, "2.25.1"))  # the same UIDs once more
    assert ended.folder_kept
    assert stored.deliver().sent == 2


def test_another_job_never_makes_bytes_anew_for_uids_that_a_peer_has(stored: Stored) -> None:
    stored.ask("k1")
    stored.succeed("2.25.1")
    stored.deliver()
    purge_all(stored)
    stored.receive("1.1", peer=OTHER_AE)
    stored.complete("k2", peer=OTHER_AE)
    job = stored.claim()
    assert stored.queue.kept_series(job.series_id) == {"2.25.1"}
    ended = stored.queue.same(job, "2.25.1")
    assert (ended.state, ended.folder_kept) == (JobState.QUEUED, False)
    assert stored.claim().edition == 2


def test_jobs_of_one_arrival_are_written_together(stored: Stored) -> None:
    stored.receive("1.1")
    arrival = stored.arrival()
    jobs = [stored.new_job(arrival, f"k{n}", route=f"route {n}") for n in range(3)]
    assert [one.what for one in stored.queue.complete(arrival.id, {}, jobs)] == ["queued"] * 3
    assert stored.archive.series()[0].states == ("complete", "queued", "queued", "queued")


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
    assert states(stored, first.job_id) == []


def test_what_is_not_yet_delivered_of_a_mixed_up_series_is_held_and_what_is_sent_stays(
    stored: Stored,
) -> None:
    first = stored.ask("k", destinations=("pacs", "viewer", "archive"))
    stored.succeed()
    stored.deliver("pacs")
    sending = stored.start_delivery("viewer")
    mix_up(stored)
    assert states(stored, first.job_id) == [
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
