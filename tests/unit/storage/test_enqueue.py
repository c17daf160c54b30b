"""What a complete arrival does to jobs: new, once more, or delivered again."""

import pytest

from storage.errors import NotFound, StorageError, WrongState
from storage.records import ArrivalState, DeliveryState, Enqueued, JobState
from tests.unit.storage.stored import INFER, OTHER_AE, Stored


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
    assert stored.archive.series()[0].states == ("complete", "queued", "queued", "queued")
