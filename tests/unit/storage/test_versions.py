"""Versions of an instance: what a peer sent last counts, and a whole re-send ends a conflict."""

import pytest

from storage.records import Enqueued, Instance, JobState, Peer
from tests.unit.storage.stored import SCANNER, Stored

WORKSTATION = Peer("WORKSTATION", "MIDSLICE")
SLICES = ("1.1", "1.2", "1.3")


def send(
    stored: Stored, uids: tuple[str, ...] = SLICES, version: bytes = b"", peer: Peer = SCANNER
) -> None:
    for uid in uids:
        stored.clock.now += 1
        stored.receive(uid, version=version, peer=peer)


def close(stored: Stored) -> None:
    """The series is complete, and no route wants it."""
    stored.queue.complete(stored.arrival().id, {}, [])


def hold_the_conflict(stored: Stored) -> None:
    """The series is complete, its versions disagree, and a person is told."""
    stored.complete(key_of(stored))
    stored.queue.hold(stored.claim(), "CONFLICTING_INSTANCES", "Send the series again.")


def versions(stored: Stored, peer: Peer = SCANNER) -> list[tuple[str, str]]:
    """UID and digest of what counts, the newest first."""
    found = stored.archive.instances(stored.arrival(peer).id)
    return [(one.instance_uid, one.digest) for one in found]


def digest_of(stored: Stored, uid: str, version: bytes) -> str:
    """As `Stored.receive` would keep it."""
    kept = stored.receive(uid, version=version, peer=Peer("ANY", "MIDSLICE"))
    arrival = stored.arrival(Peer("ANY", "MIDSLICE"))
    found = {one.id: one for one in stored.archive.instances(arrival.id)}
    return found[kept.instance_id].digest


def test_bytes_that_come_a_second_time_after_others_are_the_newest_again(stored: Stored) -> None:
    for version in (b"A", b"B", b"A"):
        send(stored, ("1.1",), version)
    newest, older = stored.archive.instances(stored.arrival().id)
    assert newest.digest == digest_of(stored, "1.1", b"A")
    assert newest.id < older.id
    assert (newest.received_at, older.received_at) == (stored.clock.now, stored.clock.now - 1)


def test_what_another_peer_sends_does_not_change_what_is_newest(stored: Stored) -> None:
    send(stored, ("1.1",), b"A")
    send(stored, ("1.1",), b"B")
    send(stored, ("1.1",), b"A", peer=WORKSTATION)
    assert versions(stored)[0] == ("1.1", digest_of(stored, "1.1", b"B"))
    assert versions(stored, WORKSTATION)[0] == ("1.1", digest_of(stored, "1.1", b"A"))


def test_versions_of_the_same_moment_are_in_the_order_of_their_first_arrival(
    stored: Stored,
) -> None:
    first = stored.receive("1.1", version=b"A")
    second = stored.receive("1.1", version=b"B")
    found = stored.archive.instances(first.arrival_id)
    assert [one.id for one in found] == [second.instance_id, first.instance_id]


def test_a_whole_resend_supersedes_the_versions_that_came_before(stored: Stored) -> None:
    send(stored)
    send(stored, ("1.2",), b"other pixels")
    hold_the_conflict(stored)
    send(stored)
    plain = [(uid, digest_of(stored, uid, b"")) for uid in reversed(SLICES)]
    assert versions(stored) == plain
    close(stored)
    send(stored, ("1.4",))  # a late slice supersedes nothing, and brings nothing back
    assert versions(stored)[1:] == plain


def test_a_whole_resend_with_other_pixels_is_a_conflict_until_a_person_was_told(
    stored: Stored,
) -> None:
    send(stored)
    close(stored)
    send(stored, version=b"other pixels")
    assert len(versions(stored)) == 6


def test_a_whole_resend_may_bring_the_later_version_too(stored: Stored) -> None:
    send(stored)
    hold_the_conflict(stored)
    send(stored, (*SLICES, "1.4"), b"corrected")
    assert {uid for uid, _ in versions(stored)} == {*SLICES, "1.4"}
    assert len(versions(stored)) == 4


def test_part_of_a_series_supersedes_nothing(stored: Stored) -> None:
    send(stored)
    close(stored)
    send(stored, ("1.1", "1.2"), b"other pixels")
    assert len(versions(stored)) == 5


def test_two_versions_in_one_arrival_both_count(stored: Stored) -> None:
    send(stored)
    send(stored, version=b"other pixels")
    assert len(versions(stored)) == 6


def test_a_series_that_came_in_two_arrivals_is_whole(stored: Stored) -> None:
    send(stored, ("1.1", "1.2"))
    close(stored)
    send(stored, ("1.3", "1.4"))
    assert [uid for uid, _ in versions(stored)] == ["1.4", "1.3", "1.2", "1.1"]


def test_a_whole_resend_of_one_peer_supersedes_nothing_of_another(stored: Stored) -> None:
    send(stored)
    send(stored, ("1.1",), b"other pixels")
    close(stored)
    send(stored, peer=WORKSTATION)
    send(stored, ("1.9",))
    assert len(versions(stored)) == 5


@pytest.mark.parametrize("conflict_in_one_arrival", [True, False])
@pytest.mark.parametrize("right", [b"", b"other pixels"])
def test_a_conflict_is_resolved_by_sending_the_right_series_again(
    stored: Stored, conflict_in_one_arrival: bool, right: bytes
) -> None:
    send(stored)
    if not conflict_in_one_arrival:
        close(stored)
    send(stored, ("1.1",), b"other pixels")
    held = stored.complete(key_of(stored))
    stored.queue.hold(stored.claim(), "CONFLICTING_INSTANCES", "Send the series again.")
    send(stored, ("1.1",), right)
    send(stored, ("1.2", "1.3"))
    again = stored.complete(key_of(stored))
    # Where what was newest is right, it is the same job, and its conflict is gone.
    expected = (
        Enqueued(held.job_id, "requeued")
        if right
        else Enqueued(held.job_id + 1, "queued", (held.job_id,))
    )
    assert again == expected
    job = stored.claim()
    assert job.id == again.job_id
    assert len(stored.queue.instances(job.id)) == 3
    if not right:
        assert stored.queue.get(held.job_id).state is JobState.CANCELLED


def key_of(stored: Stored) -> str:
    """As the node makes it: of the newest version of each instance."""
    newest: dict[str, Instance] = {}
    for one in stored.archive.instances(stored.arrival().id):
        newest.setdefault(one.instance_uid, one)
    return " ".join(sorted(f"{uid} {one.digest[:8]}" for uid, one in newest.items()))


def test_a_job_works_on_what_was_the_newest_when_it_was_asked_for(stored: Stored) -> None:
    for version in (b"A", b"B", b"A"):
        send(stored, ("1.1",), version)
    brought = [one.id for one in stored.archive.instances(stored.arrival().id)]
    asked = stored.complete("k")
    assert [one.id for one in stored.queue.instances(asked.job_id)] == brought
    assert brought == sorted(brought)  # the first version is the newest again


def test_a_job_keeps_to_the_versions_and_the_order_that_it_was_asked_for_with(
    stored: Stored,
) -> None:
    send(stored, ("1.1",), b"A")
    send(stored, ("1.1",), b"B")
    asked = stored.complete("k")
    before = [one.id for one in stored.queue.instances(asked.job_id)]
    send(stored, ("1.1",), b"A")  # the newest from now on, for another job
    assert [one.id for one in stored.queue.instances(asked.job_id)] == before
    assert [one.id for one in stored.archive.instances(stored.arrival().id)] != before
