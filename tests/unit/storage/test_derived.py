"""What is made of one received stack, one after another: revisions, and editions after a purge."""

from dataclasses import replace
from typing import Any

import pytest

from storage.records import DerivedMark, Ended, Enqueued, Job, JobState, Peer
from storage.site.audit import Audit
from storage.site.notices import address
from tests.unit.storage.stored import OTHER_AE, Stored

OTHER = Peer("PACS", "MIDSLICE")


def make(stored: Stored, key: str, uid: str, content_uid: str = "", **changed: Any) -> Job:
    """Ask for a job, run it, and keep what it makes under this UID."""
    stored.ask(key, **changed)
    return finish(stored, uid, content_uid)


def finish(stored: Stored, uid: str, content_uid: str = "") -> Job:
    job = stored.claim()
    result = replace(stored.derive(job, uid), content_uid=content_uid or uid, mark=job.mark)
    stored.queue.succeed(job, result)
    return stored.queue.get(job.id)


def notices(stored: Stored) -> list[tuple[str, object]]:
    events = Audit(stored.database, stored.clock).list(what="notice")
    return [(event.which, event.detail["revision"]) for event in events]


def test_a_first_result_has_no_mark_and_each_further_one_its_revision_and_place(
    stored: Stored,
) -> None:
    marks = [make(stored, f"k{n}", f"2.25.{n}", uids=(f"1.{n}",)).mark for n in range(3)]
    assert marks == [DerivedMark(), DerivedMark(2, 1), DerivedMark(3, 2)]


def test_the_administrator_is_told_of_each_revision_and_of_no_first_result(stored: Stored) -> None:
    first = make(stored, "k1", "2.25.1")
    assert notices(stored) == []
    second = make(stored, "k2", "2.25.2", uids=("1.3",))
    assert (first.mark.revision, second.mark.revision) == (1, 2)
    assert notices(stored) == [(f"job {second.id}", 2)]
    (event,) = Audit(stored.database, stored.clock).list()
    assert event.who == "midslice"
    assert "Revision 2" in str(event.detail["sentence"])
    (notice,) = address(stored.database, stored.clock(), (), ())
    assert notice.event == "result_superseded"
    assert notice.facts == {"job": second.id, "sentence": event.detail["sentence"]}


def test_another_stack_of_the_same_series_has_a_number_of_its_own(stored: Stored) -> None:
    make(stored, "k1", "2.25.1", stack="soft")
    assert make(stored, "k2", "2.25.2", stack="sharp").mark == DerivedMark(place=1)


def test_two_routes_make_two_that_are_told_apart_by_number_and_name(stored: Stored) -> None:
    make(stored, "k1", "2.25.1", route="four")
    other = make(stored, "k2", "2.25.2", route="five")
    assert other.mark == DerivedMark(revision=1, place=1, route="five")
    assert notices(stored) == []
    assert make(stored, "k3", "2.25.3", route="four").mark == DerivedMark(2, 2, "four")


def test_what_is_being_made_just_now_counts_too(stored: Stored) -> None:
    stored.receive("1.1")
    arrival = stored.arrival()
    jobs = [stored.new_job(arrival, key, route=key) for key in ("four", "five")]
    stored.queue.complete(arrival.id, {}, jobs)
    assert [stored.claim().mark for _ in jobs] == [DerivedMark(), DerivedMark(1, 1, "five")]


def test_a_job_that_was_cancelled_before_it_made_anything_leaves_no_revision(
    stored: Stored,
) -> None:
    stored.ask("k1")
    running = stored.claim()
    stored.ask("k2", uids=("1.3",))
    stored.queue.cancelled(running)
    assert stored.claim().mark == DerivedMark()


def test_a_job_that_is_done_twice_has_the_same_mark(stored: Stored) -> None:
    make(stored, "k1", "2.25.1")
    stored.ask("k2", uids=("1.3",))
    before = stored.claim()
    stored.queue.recover()
    again = stored.claim()
    assert (again.id, again.mark) == (before.id, before.mark)
    assert again.mark == DerivedMark(2, 1)


def test_every_content_is_known_with_the_mark_that_it_was_given(stored: Stored) -> None:
    job = make(stored, "k1", "2.25.1")
    make(stored, "k2", "2.25.20", "2.25.2", uids=("1.3",))
    make(stored, "k3", "2.25.30", "2.25.3", uids=("1.4",), route="five")
    assert stored.queue.marks(job.series_id) == {
        "2.25.1": DerivedMark(),
        "2.25.2": DerivedMark(2, 1),
        "2.25.3": DerivedMark(1, 2, "five"),
    }


def test_one_content_made_twice_at_the_same_time_is_one_derived_series(stored: Stored) -> None:
    stored.ask("k1", destinations=("pacs",))
    stored.receive("1.1", peer=OTHER)
    stored.complete("k2", peer=OTHER, destinations=("viewer",))
    first, second = stored.claim(), stored.claim()
    assert (first.mark, second.mark) == (DerivedMark(), DerivedMark(2, 1))
    made = replace(stored.derive(first, "2.25.1"), content_uid="2.25.1", mark=first.mark)
    stored.queue.succeed(first, made)
    same = replace(stored.derive(second, "2.25.9"), content_uid="2.25.1", mark=second.mark)
    assert stored.queue.succeed(second, same) == Ended(JobState.SUCCEEDED, folder_kept=False)
    assert stored.queue.get(second.id).derived_series_uid == "2.25.1"
    assert [d.destination for d in stored.ledger.of_job(second.id)] == ["pacs", "viewer"]
    assert notices(stored) == []


def test_a_result_that_was_never_offered_may_be_made_again_under_its_uid(stored: Stored) -> None:
    job = make(stored, "k1", "2.25.1", destinations=())
    stored.purge_all()
    assert stored.ask("k1", destinations=()).what == "requeued"
    assert stored.queue.marks(job.series_id) == {"2.25.1": DerivedMark()}
    again = finish(stored, "2.25.1")
    assert again.state is JobState.SUCCEEDED


@pytest.mark.parametrize("revision", [1, 2])
def test_the_answer_says_which_revision_was_kept(stored: Stored, revision: int) -> None:
    if revision == 2:
        make(stored, "k1", "2.25.1")
    stored.ask("k2", uids=("1.3",))
    job = stored.claim()
    result = replace(stored.derive(job, "2.25.2"), mark=job.mark)
    assert stored.queue.succeed(job, result).revision == revision


def test_a_purged_series_that_was_offered_is_made_again_under_the_next_edition(
    stored: Stored,
) -> None:
    first = stored.ask("k")
    job = stored.succeed("2.25.1")
    stored.deliver()
    assert job.edition == 1
    stored.purge_all()
    assert stored.ask("k") == Enqueued(first.job_id, "requeued")
    assert stored.claim().edition == 2


def test_a_purged_series_that_was_never_offered_is_made_again_as_it_was(stored: Stored) -> None:
    stored.ask("k", destinations=())
    stored.succeed("2.25.1")
    stored.purge_all()
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
    stored.purge_all()
    stored.receive("1.1", peer=OTHER_AE)
    stored.complete("k2", peer=OTHER_AE)
    job = stored.claim()
    assert stored.queue.kept_series(job.series_id) == {"2.25.1"}
    ended = stored.queue.same(job, "2.25.1")
    assert (ended.state, ended.folder_kept) == (JobState.QUEUED, False)
    assert stored.claim().edition == 2
