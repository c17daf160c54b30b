"""Stacks of a series that become others when more of it arrives."""

from storage.records import DeliveryState, Enqueued, JobState, Peer
from tests.unit.storage.stored import OTHER_AE, SCANNER, Stored


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
    assert "several by now" in old.sentence
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
