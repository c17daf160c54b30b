"""A derived series that was purged and is asked for again: the same UIDs, or the next edition."""

from storage.records import Enqueued, JobState
from storage.retention import expired, purge
from tests.unit.storage.stored import OTHER_AE, Stored


def purge_all(stored: Stored) -> None:
    """Let so much time pass that everything that may go is gone."""
    stored.clock.now += 100 * 86_400
    found = expired(stored.database, stored.clock.now, keep_days=7, keep_unrouted_days=1)
    assert purge(stored.database, stored.files, found, stored.clock.now).series


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
