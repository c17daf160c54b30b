"""The queue: one worker a job, leases, fences, deaths, and what a person may do."""

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from storage.database import Database
from storage.errors import LeaseLost, NotFound, StorageError, WrongState
from storage.files import Files
from storage.jobs import LONGEST_ARRIVING, LONGEST_WAIT, Queue
from storage.queries import find
from storage.queries.find import Wanted
from storage.records import DeliveryState, Ended, Job, JobState
from storage.retention import expired, purge
from tests.conftest import Clock
from tests.unit.storage.stored import INFER, LEASE_SECONDS, SECOND, Stored

DIED = ("WORKER_DIED", "exit code -9", "WORKER_DIED", "The worker process died (signal 9).")


def test_jobs_are_claimed_by_priority_then_time_then_id(stored: Stored) -> None:
    stored.receive("1.1")
    arrival = stored.arrival()
    priorities = {"late": 5, "urgent": 1, "low": 9, "later": 5}
    jobs = [
        stored.new_job(arrival, key, route=key, priority=priority)
        for key, priority in priorities.items()
    ]
    stored.queue.complete(arrival.id, {}, jobs)
    assert [stored.claim().key for _ in jobs] == ["urgent", "late", "later", "low"]


def test_of_jobs_that_are_more_urgent_than_one_that_runs_the_first_is_claimed(
    stored: Stored,
) -> None:
    stored.ask("long")
    stored.ask("urgent", ("2.1",), priority=4, stack="sagittal 512x512")
    claimed = [stored.queue.claim("w", INFER, before=before) for before in (4, 5, 5)]
    assert [job and job.key for job in claimed] == [None, "urgent", None]
    assert stored.claim().key == "long"


def test_a_clock_that_is_set_back_stops_no_job(stored: Stored) -> None:
    stored.ask("k")
    stored.clock.now -= 3600
    assert stored.claim().key == "k"


def test_a_job_waits_for_what_is_arriving_of_its_series_but_not_for_ever(stored: Stored) -> None:
    first = stored.ask("k")
    stored.receive("1.3", peer=SECOND)
    stored.receive("9.1", series_uid="1.2.3.9")  # of another series: nobody waits for it
    assert stored.queue.claim("w", INFER) is None
    stored.clock.now += LONGEST_ARRIVING
    stored.receive("1.4", peer=SECOND)  # it trickles in
    assert stored.claim().id == first.job_id


def test_a_worker_gets_only_the_kinds_that_it_asks_for(stored: Stored) -> None:
    stored.ask("k", kind="selftest")
    assert stored.queue.claim("w", ("infer",)) is None
    claimed = stored.queue.claim("w", ("infer", "selftest"))
    assert claimed is not None
    assert claimed.kind == "selftest"


def test_a_claimed_job_is_leased_and_says_to_whom(stored: Stored) -> None:
    stored.ask("k")
    stored.clock.now += 5
    job = stored.claim("worker 1")
    assert (job.state, job.worker, job.attempt) == (JobState.RUNNING, "worker 1", 1)
    assert (job.started_at, job.progress) == (stored.clock.now, 0)
    assert stored.queue.claim("worker 2", INFER) is None
    (attempt,) = stored.queue.attempts(job.id)
    assert (attempt.number, attempt.worker, attempt.outcome) == (1, "worker 1", None)


def test_a_lease_that_is_renewed_does_not_end(stored: Stored) -> None:
    stored.ask("k")
    job = stored.claim()
    for _ in range(3):
        stored.clock.now += LEASE_SECONDS - 1
        assert stored.queue.renew(job, 0.5) is False
    assert stored.queue.claim("another", INFER) is None
    assert stored.queue.get(job.id).progress == 0.5


@pytest.mark.parametrize(("told", "shown"), [(-1.0, 0.0), (0.25, 0.25), (7.0, 1.0)])
def test_progress_stays_between_nothing_and_all(stored: Stored, told: float, shown: float) -> None:
    stored.ask("k")
    job = stored.claim()
    stored.queue.renew(job, told)
    assert stored.queue.get(job.id).progress == shown


def test_a_dead_workers_job_is_claimed_again_and_its_late_result_discarded(stored: Stored) -> None:
    stored.ask("k")
    dead = stored.claim("a")
    stored.clock.now += LEASE_SECONDS + 1
    again = stored.claim("b")
    assert (again.id, again.attempt, again.abandoned) == (dead.id, 2, 1)
    late = stored.derive(dead)
    for write in (
        lambda: stored.queue.succeed(dead, late),
        lambda: stored.queue.same(dead, "2.25.1"),
        lambda: stored.queue.renew(dead, 0.5),
        lambda: stored.queue.release(dead),
        lambda: stored.queue.refuse(dead, "X", "x"),
        lambda: stored.queue.hold(dead, "X", "x"),
        lambda: stored.queue.fail(dead, "X", "x"),
        lambda: stored.queue.cancelled(dead),
        lambda: stored.queue.died(dead, *DIED),
    ):
        with pytest.raises(LeaseLost, match=f"job {dead.id}, attempt 1"):
            write()
    assert stored.queue.get(dead.id) == again
    assert [one.outcome for one in stored.queue.attempts(dead.id)] == ["abandoned", None]


def test_a_verified_result_and_its_deliveries_are_there_together(stored: Stored) -> None:
    stored.ask("k", destinations=("pacs", "viewer", "pacs"), priority=2)
    stored.clock.now += 9
    job = stored.succeed("2.25.7")
    assert (job.state, job.progress, job.version) == (JobState.SUCCEEDED, 1.0, "1.0")
    assert (job.derived_series_uid, job.record) == ("2.25.7", {"seconds": 1.5})
    assert (job.finished_at, job.worker) == (stored.clock.now, None)
    deliveries = stored.ledger.of_job(job.id)
    assert [(one.destination, one.state) for one in deliveries] == [
        ("pacs", DeliveryState.QUEUED),
        ("viewer", DeliveryState.QUEUED),
    ]
    assert {(one.priority, one.total, one.sent) for one in deliveries} == {(2, 2, 0)}
    assert stored.queue.attempts(job.id)[0].outcome == "succeeded"
    assert stored.queue.kept_series(job.series_id) == {"2.25.7"}


def test_a_result_that_breaks_a_rule_leaves_the_job_running(stored: Stored) -> None:
    stored.ask("k1")
    stored.succeed("2.25.1")
    stored.ask("k2", uids=("1.3",))
    job = stored.claim()
    result = stored.derive(job, "2.25.2")
    first, second = result.instances
    without_digest = replace(second, digest=None)  # type: ignore[arg-type]
    broken = replace(result, instances=(first, without_digest))
    with pytest.raises(StorageError):
        stored.queue.succeed(job, broken)
    assert stored.queue.get(job.id) == job
    assert stored.queue.kept_series(job.series_id) == {"2.25.1"}


def test_a_series_that_two_jobs_make_is_kept_once(stored: Stored) -> None:
    stored.receive("1.1")
    arrival = stored.arrival()
    jobs = [
        stored.new_job(arrival, key, route=key, destinations=(to,))
        for key, to in (("k1", "pacs"), ("k2", "viewer"))
    ]
    stored.queue.complete(arrival.id, {}, jobs)
    first, second = stored.claim("a"), stored.claim("b")
    assert stored.queue.succeed(first, stored.derive(first)) == Ended(JobState.SUCCEEDED, True)
    assert stored.queue.succeed(second, stored.derive(second)) == Ended(JobState.SUCCEEDED, False)
    deliveries = stored.ledger.of_job(second.id)
    assert [one.destination for one in deliveries] == ["pacs", "viewer"]
    assert {one.folder for one in deliveries} == {stored.files.derived_folder(first.id, 1)}


def test_a_series_that_is_said_to_exist_must_exist(stored: Stored) -> None:
    stored.ask("k")
    with pytest.raises(NotFound, match=r"no derived series 2\.25\.9"):
        stored.queue.same(stored.claim(), "2.25.9")


def test_a_refusal_is_final_and_says_why(stored: Stored) -> None:
    stored.ask("k")
    job = stored.claim()
    stored.queue.refuse(job, "TOO_FEW_SLICES", "Two slices are needed, one came.", {"slices": 1})
    found = stored.queue.get(job.id)
    assert (found.state, found.reason) == (JobState.REFUSED, "TOO_FEW_SLICES")
    assert found.sentence == "Two slices are needed, one came."
    assert found.record == {"slices": 1}
    assert stored.queue.claim("w", INFER) is None


def test_a_failure_keeps_its_frames_with_the_attempt(stored: Stored) -> None:
    stored.ask("k")
    job = stored.claim()
    stored.queue.fail(job, "ValueError", "The model raised ValueError.", "model.py:7 in run")
    (attempt,) = stored.queue.attempts(job.id)
    assert (attempt.outcome, attempt.detail) == ("failed", "model.py:7 in run")
    assert stored.queue.get(job.id).state is JobState.FAILED


def test_a_reason_is_needed_to_hold_a_job(stored: Stored) -> None:
    stored.ask("k")
    job = stored.claim()
    with pytest.raises(StorageError):
        stored.queue.hold(job, "", "nobody knows")
    assert stored.queue.get(job.id) == job


def test_a_clean_stop_gives_the_job_back_and_counts_nothing(stored: Stored) -> None:
    stored.ask("k")
    for number in range(1, 15):
        job = stored.claim()
        assert job.attempt == number
        assert stored.queue.release(job) is JobState.QUEUED
    again = stored.queue.get(job.id)
    assert (again.worker_deaths, again.abandoned, again.progress) == (0, 0, 0)
    assert {one.outcome for one in stored.queue.attempts(job.id)} == {"released"}


def test_a_job_that_kills_three_workers_waits_for_a_person(stored: Stored) -> None:
    stored.ask("k")
    assert stored.queue.died(stored.claim(), *DIED) is JobState.QUEUED
    once = stored.jobs()[0]
    assert "tried again; this happened 1 of at most 3 times" in once.sentence
    assert stored.queue.died(stored.claim(), *DIED) is JobState.QUEUED
    assert stored.queue.died(stored.claim(), *DIED) is JobState.HELD
    (job,) = stored.jobs(JobState.HELD)
    assert (job.reason, job.worker_deaths) == ("WORKER_DIED", 3)
    assert job.sentence == (
        "The worker process died (signal 9). This happened 3 times, so the job waits for a "
        "person: requeue it, or cancel it."
    )
    assert [one.detail for one in stored.queue.attempts(job.id)] == ["exit code -9"] * 3
    assert stored.queue.claim("w", INFER) is None


def test_a_job_for_which_memory_lacked_waits_before_its_next_try_and_no_longer(
    stored: Stored,
) -> None:
    lacked = ("OUT_OF_MEMORY", "", "OUT_OF_MEMORY", "Memory did not suffice.")
    stored.ask("k")
    assert stored.queue.died(stored.claim(), *lacked, wait=60.0) is JobState.QUEUED
    assert stored.queue.claim("w", INFER) is None
    stored.clock.now += 61
    again = stored.claim()
    assert (again.key, again.attempt) == ("k", 2)
    assert stored.queue.died(again, *lacked, wait=LONGEST_WAIT) is JobState.QUEUED
    stored.clock.now -= 3600  # it would wait for an hour
    again = stored.claim()
    assert stored.queue.died(again, *lacked, wait=LONGEST_WAIT) is JobState.HELD
    assert stored.jobs(JobState.HELD)[0].reason == "OUT_OF_MEMORY"


def test_a_job_whose_node_dies_ten_times_waits_for_a_person(stored: Stored) -> None:
    stored.ask("k")
    for count in range(1, 10):
        stored.claim()
        assert stored.queue.recover() == (1,)
        assert stored.queue.get(1).abandoned == count
    stored.claim()
    stored.queue.recover()
    job = stored.queue.get(1)
    assert (job.state, job.reason, job.worker_deaths) == (JobState.HELD, "ABANDONED", 0)
    assert "10 times" in job.sentence


def test_a_lease_that_runs_out_ten_times_holds_the_job_too(stored: Stored) -> None:
    stored.ask("k")
    for _ in range(10):
        stored.claim()
        stored.clock.now += LEASE_SECONDS + 1
    assert stored.queue.claim("w", INFER) is None
    assert stored.queue.get(1).reason == "ABANDONED"


def test_a_node_recovers_its_own_jobs_and_leaves_those_of_others(
    stored: Stored, database: Database, files: Files, clock: Clock
) -> None:
    other = Stored(database, files, clock, node="two", numbers=stored.numbers)
    stored.receive("1.1")
    arrival = stored.arrival()
    jobs = [stored.new_job(arrival, key, route=key) for key in ("k1", "k2")]
    stored.queue.complete(arrival.id, {}, jobs)
    mine, theirs = stored.claim(), other.claim()
    assert stored.queue.recover() == (mine.id,)
    assert stored.queue.get(mine.id).state is JobState.QUEUED
    assert stored.queue.get(theirs.id) == theirs


def test_a_person_cancels_what_waits_at_once(stored: Stored) -> None:
    job_id = stored.ask("k").job_id
    assert stored.queue.cancel(job_id) is JobState.CANCELLED
    job = stored.queue.get(job_id)
    assert (job.sentence, job.finished_at) == ("Cancelled by a person.", stored.clock.now)
    assert stored.queue.claim("w", INFER) is None


def test_a_person_cancels_what_is_held(stored: Stored) -> None:
    job_id = stored.ask("k").job_id
    stored.queue.hold(stored.claim(), "MISSING_SLICES", "One.")
    assert stored.queue.cancel(job_id) is JobState.CANCELLED
    assert stored.queue.get(job_id).reason == ""


def test_a_person_cancels_what_has_failed(stored: Stored) -> None:
    job_id = stored.ask("k").job_id
    stored.queue.fail(stored.claim(), "ValueError", "The model raised ValueError.", "frames")
    assert stored.queue.cancel(job_id) is JobState.CANCELLED
    assert [one.detail for one in stored.queue.attempts(job_id)] == ["frames"]


@pytest.mark.parametrize("end", ["cancelled", "released", "died", "lease", "node", "refused"])
def test_a_running_job_that_is_cancelled_ends_so_however_it_stops(stored: Stored, end: str) -> None:
    stored.ask("k")
    job = stored.claim()
    assert stored.queue.cancel(job.id) is JobState.RUNNING
    assert stored.queue.renew(job, 0.1) is True
    stop: dict[str, Callable[[], object]] = {
        "cancelled": lambda: stored.queue.cancelled(job),
        "released": lambda: stored.queue.release(job),
        "died": lambda: stored.queue.died(job, *DIED),
        "node": stored.queue.recover,
        "refused": lambda: stored.queue.refuse(job, "TOO_FEW_SLICES", "Two."),
    }
    if end == "lease":
        stored.clock.now += LEASE_SECONDS + 1
    else:
        stop[end]()
    assert stored.queue.claim("w", INFER) is None
    ended = stored.queue.get(job.id)
    assert (ended.state, ended.cancel_requested) == (JobState.CANCELLED, False)


@pytest.mark.parametrize("end", ["refused", "failed", "held", "cancelled"])
def test_a_person_requeues_what_has_ended_without_a_result(stored: Stored, end: str) -> None:
    job_id = stored.ask("k").job_id
    stored.queue.died(stored.claim(), *DIED)
    job = stored.claim()
    ends: dict[str, Callable[[], object]] = {
        "refused": lambda: stored.queue.refuse(job, "NOT_HU", "No."),
        "failed": lambda: stored.queue.fail(job, "ValueError", "No."),
        "held": lambda: stored.queue.hold(job, "MISSING_SLICES", "No."),
        "cancelled": lambda: stored.queue.cancelled(job),
    }
    if end == "cancelled":
        stored.queue.cancel(job_id)
    ends[end]()
    stored.requeue(job_id)
    again = stored.claim()
    assert (again.worker_deaths, again.reason, again.sentence) == (0, "", "")
    assert again.attempt == 3  # the number fences, and never starts again


def test_what_a_person_asks_for_must_be_possible(stored: Stored) -> None:
    job_id = stored.ask("k").job_id
    with pytest.raises(WrongState, match="is queued and cannot be requeued; allowed from: refused"):
        stored.queue.requeue(job_id)
    stored.succeed()
    with pytest.raises(WrongState, match="is succeeded and cannot be cancelled"):
        stored.queue.cancel(job_id)
    for ask in (stored.queue.requeue, stored.queue.cancel, stored.queue.get):
        with pytest.raises(NotFound, match="no job 77"):
            ask(77)


def test_the_list_shows_the_newest_first_and_by_state(stored: Stored) -> None:
    for number in range(4):
        stored.ask(f"k{number}", route=f"route {number}")
        stored.clock.now += 1
    assert [job.key for job in stored.jobs()] == ["k3", "k2", "k1", "k0"]
    page = find.jobs(stored.database, Wanted(), limit=2, offset=1)
    assert [stored.queue.get(line.id).key for line in page.lines] == ["k2", "k1"]
    stored.queue.cancel(stored.jobs()[0].id)
    assert [job.key for job in stored.jobs(JobState.CANCELLED)] == ["k3"]
    assert [job.key for job in stored.queue.of_series(1)] == ["k0", "k1", "k2", "k3"]


def test_eight_threads_claim_forty_jobs_each_once(stored: Stored) -> None:
    stored.receive("1.1")
    arrival = stored.arrival()
    jobs = [stored.new_job(arrival, f"k{n}", route=f"route {n}") for n in range(40)]
    stored.queue.complete(arrival.id, {}, jobs)
    claimed: list[Job] = []

    def work(worker: str, queue: Queue) -> None:
        while (job := queue.claim(worker, INFER)) is not None:
            claimed.append(job)
            queue.refuse(job, "NOTHING_TO_DO", "Nothing.")

    threads = [
        threading.Thread(target=work, args=(f"w{number}", stored.queue)) for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(job.id for job in claimed) == [job.id for job in stored.queue.of_series(1)]
    assert {job.attempt for job in claimed} == {1}
    assert stored.jobs(JobState.REFUSED)[-1].worker is None


# What a person is told who wants done again what retention has removed, or what never was.

REMOVED = "2023-12-"  # the clock of the tests, and thirty days


@pytest.fixture
def purged(stored: Stored) -> Stored:
    """A series that was delivered and removed since, and one that was refused."""
    stored.ask("k")
    stored.succeed()
    stored.deliver()
    stored.receive("9.1", series_uid="9")
    arrival = stored.arrival(series_uid="9")
    stored.queue.complete(arrival.id, {}, [stored.new_job(arrival, "refused")])
    stored.queue.refuse(stored.claim(), "TOO_FEW_SLICES", "One.")
    stored.clock.now += 30 * 86_400
    gone = expired(stored.database, stored.clock.now, 7, 1)
    assert len(purge(stored.database, stored.files, gone, stored.clock.now).series) == 2
    return stored


def said(ask: Callable[[], object]) -> str:
    with pytest.raises(WrongState) as error:
        ask()
    return str(error.value)


def test_each_command_says_what_was_removed_and_to_send_the_series_again(purged: Stored) -> None:
    redelivered = said(lambda: purged.ledger.redeliver(1))
    requeued = said(lambda: purged.queue.requeue(2))
    for sentence in (redelivered, requeued):
        assert REMOVED in sentence
        assert "storage.keep_days" in sentence
        assert "let the sender send the series again" in sentence
    assert "requeue it" not in redelivered  # that would be refused too
    assert "redeliver" not in requeued


def test_a_delivery_that_was_cancelled_before_the_purge_says_the_same(purged: Stored) -> None:
    purged.clock.now -= 29 * 86_400
    purged.receive("5.1", series_uid="5")
    arrival = purged.arrival(series_uid="5")
    purged.queue.complete(arrival.id, {}, [purged.new_job(arrival, "third")])
    purged.succeed("2.25.5")
    purged.ledger.cancel(2)
    purged.clock.now += 29 * 86_400
    gone = expired(purged.database, purged.clock.now, 7, 1)
    purge(purged.database, purged.files, gone, purged.clock.now)
    assert "send the series again" in said(lambda: purged.ledger.requeue(2))


def test_a_succeeded_job_is_not_requeued_but_redelivered(stored: Stored) -> None:
    stored.ask("k")
    stored.succeed()
    assert "use redeliver to send its result again" in said(lambda: stored.queue.requeue(1))


@pytest.mark.parametrize("state", [s for s in JobState if s is not JobState.SUCCEEDED])
def test_a_job_without_a_result_says_what_to_do_instead(stored: Stored, state: JobState) -> None:
    stored.ask("k")
    ends: dict[JobState, Callable[[], object]] = {
        JobState.QUEUED: lambda: None,
        JobState.RUNNING: stored.claim,
        JobState.REFUSED: lambda: stored.queue.refuse(stored.claim(), "NOT_HU", "No."),
        JobState.HELD: lambda: stored.queue.hold(stored.claim(), "MISSING_SLICES", "No."),
        JobState.FAILED: lambda: stored.queue.fail(stored.claim(), "ValueError", "No."),
        JobState.CANCELLED: lambda: stored.queue.cancel(1),
    }
    ends[state]()
    sentence = said(lambda: stored.ledger.redeliver(1))
    waits = state in (JobState.QUEUED, JobState.RUNNING)
    assert ("delivered then" in sentence) == waits
    assert ("requeue" in sentence) == (not waits)
