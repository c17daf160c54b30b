"""Where results are wanted: several peers, late slices, stacks that part; nobody is forgotten."""

from collections.abc import Callable

import pytest

from storage.records import DeliveryState, Enqueued, Job, JobState, Peer
from tests.unit.storage.stored import FIRST, INFER, OTHER_AE, SCANNER, SECOND, Stored


def both_ask(stored: Stored) -> int:
    asked = stored.ask_as(FIRST, "k", "ws1", "pacs")
    assert stored.ask_as(SECOND, "k", "ws2", "pacs") == Enqueued(asked.job_id, "known")
    return asked.job_id


def states(stored: Stored, job_id: int) -> dict[str, DeliveryState]:
    return {one.destination: one.state for one in stored.ledger.of_job(job_id)}


def finish(stored: Stored, job: Job, uid: str = "2.25.1") -> None:
    stored.queue.succeed(job, stored.derive(job, uid))


def test_a_late_slice_of_the_first_peer_leaves_the_job_to_the_second(stored: Stored) -> None:
    job_id = both_ask(stored)
    late = stored.ask_as(FIRST, "late", "ws1", "pacs", uid="1.2")
    assert late.cancelled == ()
    job = stored.queue.get(job_id)
    assert (job.state, job.destinations) == (JobState.QUEUED, ("ws2", "pacs"))
    finish(stored, stored.claim())
    assert set(states(stored, job_id)) == {"ws2", "pacs"}
    finish(stored, stored.claim(), "2.25.2")
    assert set(states(stored, late.job_id)) == {"ws1", "pacs"}


def test_a_late_slice_of_the_second_peer_leaves_the_job_to_the_first(stored: Stored) -> None:
    job_id = both_ask(stored)
    stored.ask_as(SECOND, "late", "ws2", uid="1.2")
    assert stored.queue.get(job_id).destinations == ("ws1", "pacs")


def test_once_nobody_wants_it_any_more_it_is_cancelled(stored: Stored) -> None:
    job_id = both_ask(stored)
    stored.ask_as(FIRST, "late", "ws1", uid="1.2")
    late = stored.ask_as(SECOND, "late", "ws2", uid="1.2")
    assert late.cancelled == (job_id,)
    assert stored.queue.get(job_id).reason == "SUPERSEDED"
    assert stored.claim().id == late.job_id
    assert stored.queue.claim("w", INFER) is None


def test_what_was_made_goes_on_to_the_peer_that_still_wants_it(stored: Stored) -> None:
    job_id = both_ask(stored)
    finish(stored, stored.claim())
    stored.ask_as(FIRST, "late", "ws1", uid="1.2")
    assert states(stored, job_id) == {
        "ws1": DeliveryState.CANCELLED,
        "pacs": DeliveryState.QUEUED,  # the second peer wants it there too
        "ws2": DeliveryState.QUEUED,
    }
    assert stored.deliver("ws2").state is DeliveryState.SENT
    stored.ask_as(SECOND, "late", "ws2", uid="1.2")
    assert states(stored, job_id)["pacs"] is DeliveryState.CANCELLED


def test_a_second_peer_that_comes_after_the_result_gets_it_and_the_first_keeps_its_own(
    stored: Stored,
) -> None:
    first = stored.ask_as(FIRST, "k", "ws1")
    finish(stored, stored.claim())
    sent = stored.deliver("ws1")
    assert stored.ask_as(SECOND, "k", "ws2").what == "redelivered"
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
    first = stored.ask_as(FIRST, "k", "ws1")
    if end == "failed":
        stored.queue.fail(stored.claim(), "ValueError", "No.")
    else:
        stored.queue.cancel(first.job_id)
    assert stored.ask_as(SECOND, "k", "ws2").what == "requeued"
    finish(stored, stored.claim())
    assert set(states(stored, first.job_id)) == {"ws1", "ws2"}


def test_the_same_peer_again_names_its_destinations_anew(stored: Stored) -> None:
    both_ask(stored)
    again = stored.ask_as(FIRST, "k", "elsewhere")  # the route was changed meanwhile
    assert stored.queue.get(again.job_id).destinations == ("ws2", "pacs", "elsewhere")


def test_shadow_mode_is_wanted_though_it_has_no_destination(stored: Stored) -> None:
    shadow = stored.ask_as(FIRST, "k")
    stored.ask_as(SECOND, "k", "ws2")
    stored.ask_as(SECOND, "late", "ws2", uid="1.2")
    assert stored.queue.get(shadow.job_id).state is JobState.QUEUED
    assert stored.queue.get(shadow.job_id).destinations == ()


def test_a_running_job_goes_on_for_the_peer_that_is_left(stored: Stored) -> None:
    both_ask(stored)
    job = stored.claim()
    stored.ask_as(FIRST, "late", "ws1", uid="1.2")
    assert stored.queue.renew(job, 0.5) is False
    finish(stored, job)
    assert stored.queue.get(job.id).state is JobState.SUCCEEDED


@pytest.mark.parametrize("state", ["queued", "running", "held"])
def test_the_result_goes_to_all_who_asked_for_it(stored: Stored, state: str) -> None:
    first = stored.ask_as(FIRST, "k", "ws1", "pacs")
    if state != "queued":
        job = stored.claim()
        if state == "held":
            stored.queue.hold(job, "MISSING_SLICES", "One is missing.")
    assert stored.ask_as(SECOND, "k", "ws2", "pacs") == Enqueued(first.job_id, "known")
    assert stored.queue.get(first.job_id).destinations == ("ws1", "pacs", "ws2")
    if state == "held":
        stored.requeue(first.job_id)
    if state != "running":
        job = stored.claim()
    stored.queue.succeed(job, stored.derive(job))
    deliveries = stored.ledger.of_job(first.job_id)
    assert [one.destination for one in deliveries] == ["ws1", "pacs", "ws2"]


@pytest.mark.parametrize("end", ["stopped", "succeeded", "released", "died", "node", "lease"])
def test_a_resend_while_a_cancel_is_pending_is_not_lost(stored: Stored, end: str) -> None:
    first = stored.ask_as(FIRST, "k", "ws1")
    job = stored.claim()
    stored.queue.cancel(job.id)
    assert stored.ask_as(SECOND, "k", "ws2") == Enqueued(first.job_id, "known")
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
    first = stored.ask_as(FIRST, "k1", "pacs")
    job = stored.claim()
    late = stored.ask_as(FIRST, "k2", "pacs")
    assert late.cancelled == (first.job_id,)
    back = stored.ask_as(FIRST, "k1", "pacs")
    assert back == Enqueued(first.job_id, "known", (late.job_id,))
    assert stored.queue.renew(job, 0.5) is False
    stored.queue.succeed(job, stored.derive(job))
    done = stored.queue.get(first.job_id)
    assert (done.state, done.reason, done.sentence) == (JobState.SUCCEEDED, "", "")
    assert stored.queue.get(late.job_id).reason == "SUPERSEDED"


def test_a_cancel_after_the_resend_counts(stored: Stored) -> None:
    first = stored.ask_as(FIRST, "k", "ws1")
    job = stored.claim()
    stored.queue.cancel(job.id)
    stored.ask_as(SECOND, "k", "ws2")
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


def complete_as(stored: Stored, stacks: tuple[str, ...], peer: Peer = SCANNER) -> list[Enqueued]:
    """Close what is arriving, with a job for each stack that the series has by now."""
    arrival = stored.arrival(peer)
    new = [stored.new_job(arrival, f"of {stack}", stack=stack) for stack in stacks]
    return list(stored.queue.complete(arrival.id, {}, new, stacks=stacks))


def test_a_job_of_a_stack_that_turns_out_to_be_two_gives_way_to_theirs(stored: Stored) -> None:
    waits = stored.ask("k1", stack="both phases")
    elsewhere = stored.ask("k2", stack="both phases", route="another")
    stored.receive("1.3")
    first, second = complete_as(stored, ("phase 1", "phase 2"))
    old = stored.queue.get(waits.job_id)
    assert (old.state, old.reason) == (JobState.CANCELLED, "SUPERSEDED")
    assert "form other stacks than before" in old.sentence
    for job_id in (elsewhere.job_id, first.job_id, second.job_id):
        assert stored.queue.get(job_id).state is JobState.QUEUED


def test_what_was_made_of_a_stack_that_turned_out_to_be_two_is_not_sent_any_more(
    stored: Stored,
) -> None:
    made = stored.ask("k1", stack="both phases")
    stored.succeed()
    stored.receive("1.1", peer=OTHER_AE)  # another peer has phases of its own
    complete_as(stored, ("phase 1",), OTHER_AE)
    assert stored.states(made.job_id) == [("pacs", DeliveryState.QUEUED)]
    stored.receive("1.3")
    complete_as(stored, ("phase 1", "phase 2"))
    assert stored.states(made.job_id) == [("pacs", DeliveryState.CANCELLED)]


def test_a_mix_up_that_was_corrected_waits_for_nobody_any_more(stored: Stored) -> None:
    held = stored.ask("k1", stack="several patients")
    stored.queue.hold(stored.claim(), "PATIENT_MISMATCH", "Two patients.")
    stored.receive("1.3")
    complete_as(stored, ("axial",))
    assert stored.queue.get(held.job_id).state is JobState.CANCELLED


def test_without_a_job_in_its_place_a_result_is_not_given_up(stored: Stored) -> None:
    made = stored.ask("k1", stack="both phases")
    stored.receive("1.3")
    stored.queue.complete(stored.arrival().id, {}, [], stacks=("phase 1", "phase 2"))
    assert stored.queue.get(made.job_id).state is JobState.QUEUED
