"""A job that is put back after its route has changed: another one takes its place, once."""

from collections.abc import Callable, Mapping

import pytest

from storage.enqueue import Anew
from storage.errors import WrongState
from storage.queries.find import needing
from storage.queries.overview import job_detail
from storage.records import Job, JobState, Peer
from tests.unit.storage.stored import INFER, Stored

FIRST, SECOND = Peer("WS1", "MIDSLICE"), Peer("WS2", "MIDSLICE")
KEPT = {"factor": 4}  # what `Stored.new_job` keeps of its route


def route(parameters: Mapping[str, object] = KEPT, *names: str, model: str = "linear") -> Anew:
    """What a route asks for by now; a result goes to these and to who has sent the series."""
    return Anew(model, parameters, lambda calling_ae: (*names, f"to {calling_ae}"))


def held(stored: Stored, reason: str = "MISSING_SLICES") -> Job:
    job = stored.claim()
    stored.queue.hold(job, reason, "Two are missing.")
    return job


def test_where_the_route_asks_for_the_same_the_job_is_queued_again(stored: Stored) -> None:
    stored.ask("k")
    job = held(stored)
    assert stored.queue.requeue(job.id, anew=route(KEPT, "archive")) == job.id
    again = stored.claim()
    assert (again.id, again.key) == (job.id, "k")
    assert again.destinations == ("archive", "to SCANNER")  # no part of the key


@pytest.mark.parametrize("changed", [route({"factor": 2}), route(KEPT, model="midslice")])
def test_where_it_asks_for_something_else_another_job_takes_its_place(
    stored: Stored, changed: Anew
) -> None:
    stored.ask("k", priority=3)
    before = held(stored)
    number = stored.queue.requeue(before.id, who="anna", anew=changed)
    old, new = stored.queue.get(before.id), stored.claim()
    assert (old.state, old.reason) == (JobState.CANCELLED, "ROUTE_CHANGED")
    assert f"job {number}" in old.sentence
    assert (new.id, new.model, new.parameters) == (number, changed.model, changed.parameters)
    assert (new.stack, new.route, new.priority) == (old.stack, old.route, 3)
    assert new.destinations == ("to SCANNER",)
    assert new.key != old.key
    assert stored.queue.instances(new.id) == stored.queue.instances(old.id)
    assert stored.queue.claim("w", INFER) is None  # one of them, never both
    assert needing(stored.database).total == 0


@pytest.mark.parametrize("end", ["refused", "failed", "cancelled"])
def test_whatever_has_ended_without_a_result_is_replaced(stored: Stored, end: str) -> None:
    job_id = stored.ask("k").job_id
    ends: dict[str, Callable[[], object]] = {
        "refused": lambda: stored.queue.refuse(stored.claim(), "NOT_HU", "No."),
        "failed": lambda: stored.queue.fail(stored.claim(), "ValueError", "No."),
        "cancelled": lambda: stored.queue.cancel(job_id),
    }
    ends[end]()
    number = stored.queue.requeue(job_id, anew=route({"factor": 2}))
    assert stored.claim().id == number != job_id
    assert stored.queue.get(job_id).state is JobState.CANCELLED
    assert needing(stored.database).total == 0


def test_everybody_who_asked_gets_what_replaces_it(stored: Stored) -> None:
    for peer in (FIRST, SECOND):
        stored.receive("1.1", peer=peer)
        stored.complete("k", peer=peer)
    job = held(stored)
    number = stored.queue.requeue(job.id, anew=route({"factor": 2}, "pacs"))
    assert stored.queue.get(number).destinations == ("pacs", "to WS1", "to WS2")
    stored.receive("1.2", peer=FIRST)  # a late slice of one leaves the job to the other
    assert stored.complete("late", peer=FIRST).cancelled == ()
    assert stored.queue.get(number).destinations == ("pacs", "to WS2")


def test_what_replaces_it_is_replaced_by_late_slices_as_any_job(stored: Stored) -> None:
    stored.ask("k")
    number = stored.queue.requeue(held(stored).id, anew=route({"factor": 2}))
    late = stored.ask("late", ("1.3",))
    assert late.cancelled == (number,)


def test_what_another_job_has_replaced_already_is_put_back_as_it_was(stored: Stored) -> None:
    stored.ask("k")
    job = held(stored)
    stored.ask("late", ("1.3",))
    assert stored.queue.requeue(job.id, anew=route({"factor": 2})) == job.id
    assert stored.queue.get(job.id).parameters == KEPT


@pytest.mark.parametrize("end", ["succeeded", "refused", "held"])
def test_changing_the_route_to_and_fro_comes_back_to_the_same_job(stored: Stored, end: str) -> None:
    stored.ask("k")
    job = held(stored)
    number = stored.queue.requeue(job.id, anew=route({"factor": 2}))
    ends: dict[str, Callable[[], object]] = {
        "succeeded": stored.succeed,
        "refused": lambda: stored.queue.refuse(stored.claim(), "NOT_HU", "No."),
        "held": lambda: held(stored),
    }
    ends[end]()
    assert stored.ask("k").what == "requeued"  # the route is as it was, and the series comes again
    assert held(stored).id == job.id
    assert stored.queue.requeue(job.id, anew=route({"factor": 2})) == number
    assert stored.queue.get(job.id).state is JobState.CANCELLED
    if end == "succeeded":
        assert [one.state for one in stored.ledger.of_job(number)] == ["queued"]
    else:
        assert stored.claim().id == number


def test_of_two_people_who_put_a_job_back_the_second_is_told_which_job_it_is(
    stored: Stored,
) -> None:
    stored.ask("k")
    job = held(stored)
    number = stored.queue.requeue(job.id, anew=route({"factor": 2}))
    for anew in (route({"factor": 2}), route(KEPT), None):
        with pytest.raises(WrongState, match=f"job {number}, with the route as it is now"):
            stored.queue.requeue(job.id, anew=anew)
    assert stored.claim().id == number
    assert stored.queue.claim("w", INFER) is None


def test_a_person_is_found_with_both_jobs(stored: Stored) -> None:
    stored.ask("k")
    job = held(stored)
    number = stored.queue.requeue(job.id, who="anna", anew=route({"factor": 2}))
    for job_id in (job.id, number):
        assert [(e.who, e.what) for e in job_detail(stored.database, job_id).audit] == [
            ("anna", "requeue")
        ]
