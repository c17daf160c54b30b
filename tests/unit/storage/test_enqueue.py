"""What a complete arrival, a verdict, a limit and a requeue do to jobs."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from storage.archive import lock_series
from storage.enqueue import DailyLimits
from storage.errors import LeaseLost, NotFound, StorageError, WrongState
from storage.queries.find import needing
from storage.queries.overview import job_detail
from storage.records import (
    Arrival,
    ArrivalState,
    DeliveryState,
    Ended,
    Enqueued,
    JobState,
    JobVerdict,
    Peer,
)
from tests.unit.storage.stored import FIRST, INFER, OTHER_AE, SECOND, STUDY, Stored

THIN = JobVerdict(JobState.REFUSED, "ACQUIRED_THIN_SERIES_EXISTS", "There is a thinner one.")
MIXED_UP = JobVerdict(JobState.HELD, "PATIENT_MISMATCH", "Two patients.")
FOUR = DailyLimits(results=4, reruns=0)
THREE_RUNS = DailyLimits(results=0, reruns=3)


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
    assert stored.jobs() == ()
    assert stored.archive.arriving() == ()


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)  # SQLite has one writer
def test_an_arrival_is_closed_while_an_instance_comes_and_neither_waits_in_a_circle(
    stored: Stored,
) -> None:
    """Closing locks the arrival and makes a job of the series, an instance locks them in turn."""
    stored.receive("1.1")
    arrival = stored.arrival()
    new = stored.new_job(arrival, "k")
    closing = threading.Thread(target=stored.queue.complete, args=(arrival.id, {}, [new]))
    with stored.database.writing() as db:
        lock_series(db, arrival.series_id)
        closing.start()
        closing.join(10.0)
        assert stored.archive.arrival(arrival.id).state is ArrivalState.COMPLETE
    closing.join(10.0)
    assert [job.key for job in stored.jobs()] == ["k"]


def test_an_instance_that_comes_for_a_series_waits_until_its_lock_is_free(
    stored: Stored,
) -> None:
    stored.receive("1.1")
    arrival = stored.arrival()
    coming = threading.Thread(target=stored.receive, args=("1.2",))
    with stored.database.writing() as db:
        lock_series(db, arrival.series_id)
        coming.start()
        coming.join(0.5)
        assert stored.archive.arrival(arrival.id).instances == 1
    coming.join(10.0)
    assert stored.archive.arrival(arrival.id).instances == 2


def test_an_arrival_is_completed_once(stored: Stored) -> None:
    stored.receive("1.1")
    arrival = stored.arrival()
    stored.queue.complete(arrival.id, {}, [])
    with pytest.raises(WrongState, match="complete already"):
        stored.queue.complete(arrival.id, {}, [stored.new_job(arrival, "k")])
    with pytest.raises(NotFound, match="no arrival 99"):
        stored.queue.complete(99, {}, [])
    assert stored.jobs() == ()


def test_an_instance_that_comes_after_the_decision_keeps_the_arrival_open(stored: Stored) -> None:
    stored.receive("1.1")
    decided_on = stored.arrival()
    new = stored.new_job(decided_on, "k")
    stored.receive("1.2")
    with pytest.raises(WrongState, match="has 2 instances by now, not 1"):
        stored.queue.complete(decided_on.id, {}, [new], instances=decided_on.instances)
    assert stored.arrival().state is ArrivalState.ARRIVING
    assert stored.jobs() == ()


def test_a_job_that_cannot_be_written_leaves_the_arrival_open(stored: Stored) -> None:
    stored.receive("1.1")
    arrival = stored.arrival()
    wrong = stored.new_job(arrival, "k2", instances=(999,))
    with pytest.raises(StorageError, match="database"):
        stored.queue.complete(arrival.id, {}, [stored.new_job(arrival, "k1"), wrong])
    assert stored.arrival().id == arrival.id
    assert stored.jobs() == ()


def test_a_resend_of_a_finished_series_is_delivered_again_without_a_job(stored: Stored) -> None:
    first = stored.ask("k")
    stored.succeed()
    stored.deliver()
    again = stored.ask("k")
    assert again == Enqueued(first.job_id, "redelivered")
    assert stored.queue.claim("w", INFER) is None
    assert stored.states(first.job_id) == [("pacs", DeliveryState.QUEUED)]
    delivery = stored.start_delivery()
    assert delivery.sent == 0  # all instances are offered again
    assert [one.offers for one in stored.ledger.unsent(delivery)] == [1, 1]


def test_a_resend_goes_to_the_destinations_that_the_route_has_now(stored: Stored) -> None:
    first = stored.ask("k", destinations=("pacs",))
    stored.succeed()
    stored.deliver()
    stored.ask("k", destinations=("viewer",))
    assert stored.states(first.job_id) == [
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
    assert stored.states(first.job_id) == [("pacs", DeliveryState.SENT)]


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


def test_jobs_of_one_arrival_are_written_together(stored: Stored) -> None:
    stored.receive("1.1")
    arrival = stored.arrival()
    jobs = [stored.new_job(arrival, f"k{n}", route=f"route {n}") for n in range(3)]
    assert [one.what for one in stored.queue.complete(arrival.id, {}, jobs)] == ["queued"] * 3
    assert stored.series()[0].states == ("complete", "queued", "queued", "queued")


@pytest.mark.parametrize("verdict", [THIN, MIXED_UP])
def test_a_job_with_a_verdict_ends_as_it_begins_and_a_person_may_requeue_it(
    stored: Stored, verdict: JobVerdict
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
    stored.requeue(asked.job_id)
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


def ask_within(
    stored: Stored, limits: DailyLimits, key: str, series_uid: str, **changed: object
) -> Enqueued:
    stored.receive(f"{series_uid}.{key[1:]}", series_uid=series_uid)
    arrival = stored.arrival(series_uid=series_uid)
    new = stored.new_job(arrival, key, **changed)
    (enqueued,) = stored.queue.complete(arrival.id, {}, [new], limits=limits)
    return enqueued


def circle(stored: Stored, count: int, study_uid: str = STUDY) -> list[str]:
    """Results that come back, each as a series that nobody knows: what each leads to."""
    found = []
    for n in range(count):
        found.append(ask_within(stored, FOUR, f"k{study_uid}.{n}", f"1.9.{n}").what)
        if found[-1] == "queued":
            stored.succeed(f"2.25.{study_uid}.{n}")
    return found


def test_results_that_come_back_under_other_uids_are_stopped(stored: Stored) -> None:
    assert circle(stored, 6) == ["queued"] * 4 + ["held"] * 2
    held = stored.jobs(JobState.HELD)[0]
    assert held.reason == "TOO_MANY_RESULTS"
    assert "4 derived series" in held.sentence
    assert "completion.results_per_study allows 4" in held.sentence
    assert "requeue" in held.sentence
    # A person has looked.
    stored.requeue(held.id)
    assert stored.claim().id == held.id


def test_what_waits_or_runs_counts_before_it_is_made(stored: Stored) -> None:
    whats = [ask_within(stored, FOUR, f"k{n}", f"1.9.{n}").what for n in range(5)]
    assert whats == ["queued"] * 4 + ["held"]


def test_the_next_day_and_another_study_begin_anew(stored: Stored) -> None:
    circle(stored, 4)
    stored.receive("7.1", series_uid="7.1", study_uid="7")
    arrival = stored.arrival(series_uid="7.1")
    new = stored.new_job(arrival, "other")
    assert stored.queue.complete(arrival.id, {}, [new], limits=FOUR)[0].what == "queued"
    stored.clock.now += 86_401
    assert ask_within(stored, FOUR, "k9", "1.9.9").what == "queued"


def test_slices_that_come_one_by_one_are_processed_so_often_and_then_wait(stored: Stored) -> None:
    whats = [ask_within(stored, THREE_RUNS, f"k{n}", "1.2.3.4") for n in range(5)]
    assert [one.what for one in whats] == ["queued"] * 3 + ["held"] * 2
    *_, last = stored.queue.of_series(1)
    assert (last.state, last.reason) == (JobState.HELD, "TOO_MANY_RERUNS")
    assert "completion.quiet_seconds" in last.sentence
    others = {one.state for one in stored.queue.of_series(1)[:-1]}
    assert others == {JobState.CANCELLED}  # only the newest set is wanted
    stored.requeue(last.id)
    assert stored.claim().id == last.id


def test_another_stack_or_route_of_the_series_has_its_own_count(stored: Stored) -> None:
    for n in range(3):
        ask_within(stored, THREE_RUNS, f"k{n}", "1.2.3.4")
    assert ask_within(stored, THREE_RUNS, "k4", "1.2.3.4", route="five").what == "queued"
    assert ask_within(stored, THREE_RUNS, "k5", "1.2.3.4", stack="sharp").what == "queued"


@pytest.mark.parametrize("limits", [FOUR, THREE_RUNS])
def test_a_resend_of_what_was_made_is_never_one_too_many(
    stored: Stored, limits: DailyLimits
) -> None:
    for n in range(4):
        ask_within(stored, limits, f"k{n}", f"1.9.{n}")
        stored.succeed(f"2.25.{n}")
    assert ask_within(stored, limits, "k0", "1.9.0").what == "redelivered"


def test_without_limits_nothing_is_held(stored: Stored) -> None:
    assert {ask_within(stored, DailyLimits(), f"k{n}", "1.2.3.4").what for n in range(30)} == {
        "queued"
    }


# A requeue: the page marks, and the node makes another job where the route has changed.

KEPT = {"factor": 4}  # what `Stored.new_job` keeps of its route


def by_route(
    stored: Stored,
    parameters: Mapping[str, object] = KEPT,
    *destinations: str,
    model: str = "linear",
    key: str = "by route",
) -> int | None:
    """The node compares the requeued job with its route, which asks for this by now."""
    (requeued,) = stored.queue.requeued()
    jobs = [
        replace(
            stored.new_job(stored.archive.arrival(arrival_id), key),
            model=model,
            parameters=parameters,
            destinations=(*destinations, f"to {calling_ae}"),
            instances=tuple(one.id for one in stored.queue.instances(requeued.job.id)),
        )
        for arrival_id, calling_ae in requeued.requesters.items()
    ]
    return stored.queue.follow_route(requeued, jobs)


def test_no_worker_takes_a_requeued_job_before_it_was_compared_with_its_route(
    stored: Stored,
) -> None:
    job_id = stored.ask("k").job_id
    stored.hold()
    stored.queue.requeue(job_id, who="anna")
    assert stored.queue.get(job_id).state is JobState.QUEUED
    assert stored.queue.claim("w", INFER) is None
    (requeued,) = stored.queue.requeued()
    assert (requeued.job.id, list(requeued.requesters.values())) == (job_id, ["SCANNER"])
    assert by_route(stored, KEPT, "archive") == job_id
    assert stored.queue.requeued() == ()
    again = stored.claim()
    assert (again.id, again.key) == (job_id, "k")
    assert again.destinations == ("archive", "to SCANNER")  # no part of the key


def test_what_is_no_longer_as_it_was_compared_is_compared_once_more(stored: Stored) -> None:
    job_id = stored.ask_as(FIRST, "k", "pacs").job_id
    stored.hold()
    stored.queue.requeue(job_id)
    (before,) = stored.queue.requeued()
    stored.ask_as(SECOND, "k", "viewer")
    assert stored.queue.follow_route(before, ()) is None  # else the second peer gets nothing
    (now,) = stored.queue.requeued()
    assert list(now.requesters.values()) == ["WS1", "WS2"]
    stored.queue.cancel(job_id)
    assert stored.queue.requeued() == ()
    assert stored.queue.follow_route(now, ()) is None
    assert stored.queue.get(job_id).state is JobState.CANCELLED


@pytest.mark.parametrize(("model", "parameters"), [("linear", {"factor": 2}), ("midslice", KEPT)])
def test_where_the_route_asks_for_something_else_another_job_takes_its_place(
    stored: Stored, model: str, parameters: dict[str, object]
) -> None:
    stored.ask("k", priority=3)
    before = stored.hold()
    stored.queue.requeue(before.id, who="anna")
    number = by_route(stored, parameters, model=model)
    old, new = stored.queue.get(before.id), stored.claim()
    assert (old.state, old.reason) == (JobState.CANCELLED, "ROUTE_CHANGED")
    assert f"job {number}" in old.sentence
    assert (new.id, new.model, new.parameters) == (number, model, parameters)
    assert (new.stack, new.route, new.priority) == (old.stack, old.route, 3)
    assert new.destinations == ("to SCANNER",)
    assert new.key != old.key
    assert stored.queue.instances(new.id) == stored.queue.instances(old.id)
    assert stored.queue.claim("w", INFER) is None  # one of them, never both
    assert needing(stored.database).total == 0
    for job_id in (old.id, new.id):  # whoever asked is found with both
        told = [(event.who, event.what) for event in job_detail(stored.database, job_id).audit]
        assert told == [("anna", "requeue")]


@pytest.mark.parametrize("end", ["refused", "failed", "cancelled"])
def test_whatever_has_ended_without_a_result_is_replaced(stored: Stored, end: str) -> None:
    job_id = stored.ask("k").job_id
    ends: dict[str, Callable[[], object]] = {
        "refused": lambda: stored.queue.refuse(stored.claim(), "NOT_HU", "No."),
        "failed": lambda: stored.queue.fail(stored.claim(), "ValueError", "No."),
        "cancelled": lambda: stored.queue.cancel(job_id),
    }
    ends[end]()
    stored.queue.requeue(job_id)
    number = by_route(stored, {"factor": 2})
    assert stored.claim().id == number != job_id
    assert stored.queue.get(job_id).state is JobState.CANCELLED
    assert needing(stored.database).total == 0


def test_everybody_who_asked_gets_what_replaces_it(stored: Stored) -> None:
    for peer in (FIRST, SECOND):
        stored.ask_as(peer, "k", "pacs")
    stored.queue.requeue(stored.hold().id)
    number = by_route(stored, {"factor": 2}, "pacs")
    assert number is not None
    assert stored.queue.get(number).destinations == ("pacs", "to WS1", "to WS2")
    late = stored.ask_as(FIRST, "late", uid="1.2")  # leaves the job to the other
    assert late.cancelled == ()
    assert stored.queue.get(number).destinations == ("pacs", "to WS2")
    assert stored.ask_as(SECOND, "late", uid="1.2").cancelled == (number,)


def test_what_late_slices_have_replaced_is_requeued_as_it_was(stored: Stored) -> None:
    stored.ask("k")
    job = stored.hold()
    late = stored.ask("late", ("1.3",))
    assert late.cancelled == (job.id,)
    stored.queue.requeue(job.id)
    assert by_route(stored, {"factor": 2}) == job.id  # nobody wants it: the route says nothing
    again = stored.queue.get(job.id)
    assert (again.parameters, again.destinations) == (KEPT, ("pacs",))


@pytest.mark.parametrize("end", ["succeeded", "refused", "held"])
def test_changing_the_route_to_and_fro_comes_back_to_the_same_job(stored: Stored, end: str) -> None:
    stored.ask("k")
    job = stored.hold()
    stored.queue.requeue(job.id)
    number = by_route(stored, {"factor": 2}, key="k2")
    assert number is not None
    ends: dict[str, Callable[[], object]] = {
        "succeeded": stored.succeed,
        "refused": lambda: stored.queue.refuse(stored.claim(), "NOT_HU", "No."),
        "held": stored.hold,
    }
    ends[end]()
    assert stored.ask("k").what == "requeued"  # the route is as it was, and the series comes again
    assert stored.hold().id == job.id
    stored.queue.requeue(job.id)
    assert by_route(stored, {"factor": 2}, key="k2") == number
    assert stored.queue.get(job.id).state is JobState.CANCELLED
    if end == "succeeded":
        assert [one.state for one in stored.ledger.of_job(number)] == ["queued"]
        return
    assert stored.hold().id == number
    stored.queue.requeue(number)
    assert by_route(stored, KEPT, key="k") == job.id
    assert stored.claim().id == job.id


def test_of_two_people_who_requeue_a_job_the_second_is_told_which_job_it_is(
    stored: Stored,
) -> None:
    stored.ask("k")
    job = stored.hold()
    stored.queue.requeue(job.id)
    with pytest.raises(WrongState, match="is queued and cannot be requeued"):
        stored.queue.requeue(job.id)
    number = by_route(stored, {"factor": 2})
    with pytest.raises(WrongState, match=f"job {number}, with the route as it is now"):
        stored.queue.requeue(job.id)
    assert stored.claim().id == number
    assert stored.queue.claim("w", INFER) is None


def complete_unrouted(stored: Stored, peer: Peer = FIRST) -> Arrival:
    """A series that came, and that no route took."""
    for uid in ("1.1", "1.2"):
        stored.receive(uid, peer=peer)
    arrival = stored.arrival(peer)
    stored.queue.complete(arrival.id, {}, [])
    return arrival


def test_a_person_insists_on_a_job_and_asking_twice_is_asking_once(stored: Stored) -> None:
    new = stored.new_job(complete_unrouted(stored), "k")
    (entry,) = stored.queue.insist([new], who="anna")
    assert entry.what == "queued"
    assert stored.queue.insist([new], who="ben") == (Enqueued(entry.job_id, "known"),)
    job = stored.claim()
    assert (job.id, job.destinations) == (entry.job_id, ("pacs",))
    # Thin slices that come do not refuse what a person wants.
    assert stored.queue.waiting_beside(STUDY, 0) == ()


def test_two_peers_want_the_job_that_a_person_insists_on(stored: Stored) -> None:
    first, second = complete_unrouted(stored, FIRST), complete_unrouted(stored, SECOND)
    jobs = [
        stored.new_job(first, "k", destinations=("pacs",)),
        stored.new_job(second, "k", destinations=("viewer",)),
    ]
    entries = stored.queue.insist(jobs, who="anna")
    assert [entry.what for entry in entries] == ["queued", "known"]
    assert stored.claim().destinations == ("pacs", "viewer")


@pytest.mark.parametrize("end", ["succeeded", "held", "refused"])
def test_a_job_that_has_its_answer_stays_where_a_person_insists(stored: Stored, end: str) -> None:
    new = stored.new_job(complete_unrouted(stored), "k")
    stored.queue.insist([new], who="anna")
    match end:
        case "succeeded":
            stored.succeed()
            stored.deliver()
        case "held":
            stored.hold()
        case _:
            stored.queue.refuse(stored.claim(), "TOO_FEW_SLICES", "Two are too few.")
    (entry,) = stored.queue.insist([new], who="ben")
    assert entry.what == "known"
    assert stored.queue.get(entry.job_id).state == end
    assert all(state == "sent" for _, state in stored.states(entry.job_id))


def test_nobody_can_insist_on_what_arrives_or_is_gone(stored: Stored) -> None:
    new = stored.new_job(complete_unrouted(stored), "k")
    stored.receive("1.3", peer=SECOND)
    with pytest.raises(WrongState, match="came this moment"):
        stored.queue.insist([new], who="anna")
    stored.queue.complete(stored.arrival(SECOND).id, {}, [])
    stored.purge_all()
    with pytest.raises(WrongState, match="were removed"):
        stored.queue.insist([new], who="anna")
    assert stored.jobs() == ()


@pytest.mark.parametrize("by_route", [True, False])
def test_a_re_send_puts_a_job_back_whose_files_the_disk_has_damaged(
    stored: Stored, by_route: bool
) -> None:
    asked = stored.ask("k")
    stored.hold("DAMAGED_FILES")
    stored.receive("1.1", peer=SECOND)  # whoever sends it, and whether a route asks for it then
    jobs = [stored.new_job(stored.arrival(SECOND), "k")] if by_route else []
    (entry,) = stored.queue.complete(stored.arrival(SECOND).id, {}, jobs)
    assert (entry.job_id, entry.what) == (asked.job_id, "requeued")
    assert stored.claim().id == asked.job_id


def test_a_re_send_of_a_mix_up_puts_nothing_back(stored: Stored) -> None:
    asked = stored.ask("k")
    stored.hold("DAMAGED_FILES")
    stored.receive("1.1")
    stored.queue.complete(stored.arrival().id, {}, [], hold=MIXED_UP)
    assert stored.queue.get(asked.job_id).reason == "DAMAGED_FILES"
