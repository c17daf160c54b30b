"""What a later version of a series does to the jobs and deliveries of an earlier one."""

from storage.records import DeliveryState, JobState
from tests.unit.storage.stored import OTHER_AE, Stored


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
    assert stored.states(first.job_id) == [
        ("pacs", DeliveryState.SENT),  # what is there is there
        ("viewer", DeliveryState.CANCELLED),
        ("held", DeliveryState.CANCELLED),
    ]
    assert stored.ledger.of_job(first.job_id)[1].reason == "SUPERSEDED"
    stored.succeed("2.25.2")
    assert stored.states(late.job_id) == [("pacs", DeliveryState.QUEUED)]


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
    assert stored.states(back.job_id) == [("pacs", DeliveryState.QUEUED)]
    assert stored.states(second.job_id) == [("pacs", DeliveryState.CANCELLED)]


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
    assert ("viewer", DeliveryState.QUEUED) in stored.states(shared.job_id)
