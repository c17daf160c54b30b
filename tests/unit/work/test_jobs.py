"""The threads that run jobs: a real queue, a real storage folder, workers in memory."""

import errno
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta, timezone
from pathlib import Path

import pytest
from blake3 import blake3

from inference.errors import Reason
from inference.model import Parameters
from inference.request import (
    Derived,
    Failed,
    File,
    Kept,
    ModelSpec,
    Outcome,
    OutOfMemory,
    OutOfResources,
    Output,
    Progress,
    Request,
    Resources,
    Stopped,
    Verdict,
)
from node.config import Config
from node.work import jobs
from node.work.ahead import AheadPlanner, AheadRules, Arriving
from node.work.executor import Bounds, End, NoAnswer, Order
from node.work.jobs import (
    InferenceJobs,
    Site,
    Supervisor,
    canonical,
    fraction,
    from_snapshot,
    snapshot,
    specs,
)
from storage.errors import Busy, NoRoom, StorageError
from storage.files import Files
from storage.jobs import Queue
from storage.leases import Holder
from storage.queries import find
from storage.queries.find import Wanted
from storage.records import Ended as JobEnd
from storage.records import Job, JobState, NewDerived
from tests.peers import wait_until
from tests.unit.storage.stored import CT, LEASE_SECONDS, Stored

pytestmark = pytest.mark.usefixtures("prompt_threads")

BOUNDS = Bounds(seconds=60.0)
SITE = Site(
    secret=b"secret",
    station_name="MIDSLICE",
    timezone=timezone(timedelta(hours=2)),
    models={"linear": ModelSpec("linear", "site.net:Net")},
    resources=Resources(device="cpu"),
)

PATIENT = "DOE^JANE"  # must not stand in a traceback that is kept

FAILED = Failed("ZeroDivisionError", "The model raised.", "model.py line 3")

Report = Callable[[Progress | None], Order]
Script = Callable[[Request, Report], Outcome | NoAnswer]


@dataclass
class Worker:
    """A worker in memory: runs these scripts in turn, then waits until the node stops."""

    scripts: list[Script] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    bounds: list[Bounds] = field(default_factory=list)
    is_started: bool = False
    is_closed: bool = False
    told: list[Arriving] = field(default_factory=list)
    has_died: bool = False  # when it is told something
    lacks: str = ""

    def start(self) -> None:
        self.is_started = True

    def lacking(self) -> str:
        self.is_started = True
        return self.lacks

    def tell(self, arriving: Arriving) -> bool:
        self.told.append(arriving)
        return not self.has_died

    def run(self, request: Request, bounds: Bounds, report: Report) -> Outcome | NoAnswer:
        self.requests.append(request)
        self.bounds.append(bounds)
        if self.scripts:
            return self.scripts.pop(0)(request, report)
        pause = threading.Event()
        while not report(None).stop:
            pause.wait(0.01)
        return NoAnswer(End.STOPPED, "the node stops")

    def close(self) -> None:
        self.is_closed = True


def answer(outcome: Outcome | NoAnswer) -> Script:
    return lambda _request, _report: outcome


def derived(series_uid: str = "2.25.7") -> Script:
    """Write a derived series of two instances."""

    def run(request: Request, _report: Report) -> Derived:
        files = []
        for number in range(2):
            content = f"{series_uid} {number}".encode()
            (request.folder / f"{number}.dcm").write_bytes(content)
            digest = blake3(content).hexdigest()
            name, uid = f"{number}.dcm", f"{series_uid}.{number}"
            files.append(File(name, uid, CT, digest, number == 1, series_uid))
        return Derived(series_uid, "1.2", tuple(files), {"seconds": 3.0})

    return run


@dataclass
class Node:
    """The threads under test, with their queue and their workers."""

    stored: Stored
    workers: tuple[Worker, ...] = field(default_factory=lambda: (Worker(),))
    spare: Worker | None = None
    is_drained: bool = False
    ahead: AheadPlanner | None = None

    def __post_init__(self) -> None:
        self.take(self.stored.queue)

    def take(self, queue: Queue, files: Files | None = None) -> None:
        """Make the threads for this queue."""
        inference = InferenceJobs(queue, files or self.stored.files, SITE, self.stored.clock)
        self.supervisor = Supervisor(
            self.workers,
            queue,
            inference,
            BOUNDS,
            drained=lambda: self.is_drained,
            spare=self.spare,
            ahead=self.ahead,
        )

    def ran(self, *scripts: Script, job_id: int = 0) -> Job:
        """A job after its worker has done this."""
        self.workers[0].scripts.extend(scripts)
        job_id = job_id or self.stored.ask("key").job_id
        self.supervisor.start()
        return self.over(job_id)

    def over(self, job_id: int, attempt: int = 1) -> Job:
        """A job once it has been tried so often and does not run."""
        wait_until(lambda: self._is_over(job_id, attempt), what=f"job {job_id} has run")
        return self.stored.queue.get(job_id)

    def is_running(self, job_id: int) -> bool:
        return self.stored.queue.get(job_id).state is JobState.RUNNING

    def _is_over(self, job_id: int, attempt: int) -> bool:
        job = self.stored.queue.get(job_id)
        return job.attempt >= attempt and job.state is not JobState.RUNNING


@pytest.fixture
def node(stored: Stored) -> Iterator[Node]:
    node = Node(stored)
    yield node
    node.supervisor.stop()


def output_of(node: Node, job: Job) -> Path:
    return node.stored.files.path(node.stored.files.derived_folder(job.id, job.attempt))


def is_dropped(node: Node, job: Job) -> bool:
    """Whether the output of an attempt goes, which it does once its row says so."""
    wait_until(lambda: not output_of(node, job).exists(), what="the output is removed")
    return True


def test_a_worker_is_told_everything_about_a_job_and_gets_an_empty_folder(node: Node) -> None:
    stored, (worker,) = node.stored, node.workers
    output = Output(include_received=False, most_gap_mm=9.0)
    parameters = snapshot(Parameters(factor=4), output)
    asked = stored.ask("key", ("1.1", "1.2"), parameters=parameters)
    folders: list[list[Path]] = []

    def look_around(request: Request, _report: Report) -> Failed:
        folders.append(list(request.folder.iterdir()))
        return FAILED

    node.ran(look_around, job_id=asked.job_id)
    (request,) = worker.requests
    assert folders == [[]]
    assert (request.parameters, request.output) == (Parameters(factor=4), output)
    assert request.model == ModelSpec("linear", "site.net:Net")
    assert (request.secret, request.station_name) == (b"secret", "MIDSLICE")
    assert request.started_at.timestamp() == stored.clock.now
    assert request.started_at.utcoffset() == timedelta(hours=2)
    assert [source.instance_uid for source in request.sources] == ["1.2", "1.1"]  # newest first
    assert all(source.path.is_file() for source in request.sources)
    assert request.previews
    assert worker.bounds == [BOUNDS]


def test_a_newer_version_of_an_instance_has_the_higher_order(node: Node) -> None:
    node.stored.receive("1.1")
    node.stored.clock.now += 1.0
    node.stored.receive("1.1", version=b"corrected")
    node.ran(answer(FAILED), job_id=node.stored.complete("key").job_id)
    older, newer = sorted(node.workers[0].requests[0].sources, key=lambda source: source.order)
    assert b"corrected" in newer.path.read_bytes()
    assert b"corrected" not in older.path.read_bytes()


def test_a_derived_series_is_kept_and_its_deliveries_wait(node: Node) -> None:
    job = node.ran(derived())
    assert (job.state, job.derived_series_uid) == (JobState.SUCCEEDED, "2.25.7")
    assert (job.version, job.record) == ("1.2", {"seconds": 3.0})
    assert sorted(path.name for path in output_of(node, job).iterdir()) == ["0.dcm", "1.dcm"]
    (delivery,) = node.stored.ledger.of_job(job.id)
    assert (delivery.destination, delivery.total) == ("pacs", 2)


def test_a_series_that_exists_is_delivered_again_and_not_made_twice(node: Node) -> None:
    first = node.ran(derived())
    again = node.stored.ask("another key", ("1.1", "1.2", "1.3"))
    node.workers[0].scripts.append(answer(Kept("2.25.7")))
    job = node.over(again.job_id)
    assert (job.state, job.derived_id) == (JobState.SUCCEEDED, first.derived_id)
    assert is_dropped(node, job)
    assert node.workers[0].requests[1].kept == {"2.25.7"}


def test_a_result_that_came_twice_leaves_the_files_of_the_first(node: Node) -> None:
    first = node.ran(derived())
    again = node.stored.ask("another key", ("1.1", "1.2", "1.3"))
    node.workers[0].scripts.append(derived())
    second = node.over(again.job_id)
    assert second.state is JobState.SUCCEEDED
    assert output_of(node, first).is_dir()
    assert is_dropped(node, second)


@pytest.mark.parametrize(
    ("outcome", "state", "reason"),
    [
        (
            Verdict(Reason.MISSING_SLICES, "A slice is missing.", held=True),
            "held",
            "MISSING_SLICES",
        ),
        (Verdict(Reason.NOTHING_TO_DO, "It is thin.", held=False), "refused", "NOTHING_TO_DO"),
        (FAILED, "failed", "ZeroDivisionError"),
    ],
    ids=["held", "refused", "failed"],
)
def test_what_a_worker_answers_is_the_state_of_the_job_and_its_output_goes(
    node: Node, outcome: Outcome, state: str, reason: str
) -> None:
    job = node.ran(answer(outcome))
    assert (job.state, job.reason) == (state, reason)
    assert is_dropped(node, job)
    assert node.stored.ledger.of_job(job.id) == ()


@pytest.mark.parametrize("outcome", [Stopped(), NoAnswer(End.CANCELLED, "did not stop by itself")])
def test_a_job_that_a_person_cancels_ends_cancelled_and_its_output_goes(
    node: Node, outcome: Outcome | NoAnswer
) -> None:
    def run(_request: Request, _report: Report) -> Outcome | NoAnswer:
        node.stored.queue.cancel(1)
        return outcome

    job = node.ran(run)
    assert job.state is JobState.CANCELLED
    assert is_dropped(node, job)


def test_frames_of_a_failure_stay_with_the_attempt(node: Node) -> None:
    job = node.ran(answer(FAILED))
    (attempt,) = node.stored.queue.attempts(job.id)
    assert (attempt.outcome, attempt.detail) == ("failed", "model.py line 3")


@pytest.mark.parametrize("end", [End.WORKER_DIED, End.TIME_LIMIT, End.MEMORY_LIMIT])
def test_a_job_that_costs_three_workers_is_held_and_says_why(node: Node, end: End) -> None:
    job = node.ran(*[answer(NoAnswer(end, "detail"))] * 3)
    job = node.over(job.id, attempt=3)
    assert (job.state, job.reason, job.worker_deaths) == (JobState.HELD, end, 3)
    details = [attempt.detail for attempt in node.stored.queue.attempts(job.id)]
    assert details == ["detail"] * 3


@pytest.mark.usefixtures("no_pause")
def test_a_job_that_finds_no_memory_three_times_is_held_and_says_where(node: Node) -> None:
    waiting: list[Job] = []

    def look(_request: Request, _report: Report) -> Outcome:
        waiting.append(node.stored.queue.get(1))
        return OutOfMemory("runner.py:3 _run")

    asked = node.stored.ask("key")
    node.ran(look, look, look, job_id=asked.job_id)
    job = node.over(asked.job_id, attempt=3)
    assert (job.state, job.reason, job.worker_deaths) == (JobState.HELD, "OUT_OF_MEMORY", 3)
    assert "tried again; this happened 1 of at most 3 times" in waiting[1].sentence
    assert job.sentence.startswith("Memory did not suffice for this job")
    attempts = [(it.outcome, it.detail) for it in node.stored.queue.attempts(job.id)]
    assert attempts == [("OUT_OF_MEMORY", "runner.py:3 _run")] * 3
    assert is_dropped(node, job)


def test_progress_is_written_and_a_cancellation_reaches_the_worker(node: Node) -> None:
    seen: list[tuple[float, bool]] = []
    queue = node.stored.queue

    def run(_request: Request, report: Report) -> Stopped:
        first = report(Progress("predicting", 1, 2))
        seen.append((queue.get(1).progress, first.cancel))
        queue.cancel(1)
        assert report(None) == first  # the lease is renewed once a second, not at each report
        wait_until(lambda: report(None).cancel, what="the worker hears of it")
        return Stopped()

    assert node.ran(run).state is JobState.CANCELLED
    assert seen == [(pytest.approx(0.45), False)]


def test_a_job_that_was_taken_over_is_dropped_and_its_late_result_discarded(node: Node) -> None:
    stored = node.stored

    def run(request: Request, _report: Report) -> Outcome | NoAnswer:
        stored.clock.now += LEASE_SECONDS + 1.0
        assert stored.queue.claim("another", ("infer",)) is not None
        return derived()(request, _report)

    asked = stored.ask("key")
    node.workers[0].scripts.append(run)
    node.supervisor.start()
    first = stored.files.path(stored.files.derived_folder(asked.job_id, 1))
    wait_until(lambda: node.workers[0].requests and not first.exists(), what="output is removed")
    job = stored.queue.get(asked.job_id)
    assert (job.state, job.worker, job.attempt) == (JobState.RUNNING, "another", 2)
    assert stored.ledger.of_job(job.id) == ()


def test_an_error_of_the_nodes_own_code_fails_the_job_and_the_thread_goes_on(node: Node) -> None:
    def broken(_request: Request, _report: Report) -> Outcome:
        raise KeyError(PATIENT)

    failed = node.ran(broken, derived())
    assert (failed.state, failed.reason) == (JobState.FAILED, "KeyError")
    (attempt,) = node.stored.queue.attempts(failed.id)
    assert "broken" in attempt.detail
    assert PATIENT not in attempt.detail
    node.stored.requeue(failed.id)
    assert node.over(failed.id, attempt=2).state is JobState.SUCCEEDED


@pytest.fixture
def with_spare(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A node where a more urgent job overtakes one that has just begun."""
    monkeypatch.setattr(jobs, "OVERTAKING_SECONDS", 0.0)
    node = Node(stored, spare=Worker())
    yield node
    node.supervisor.stop()


def long_job(node: Node, steps: list[str]) -> Script:
    """A job that goes on until it was paused once; what its row says at each turn."""

    def run(request: Request, report: Report) -> Outcome | NoAnswer:
        begun = report(Progress("predicting", 3, 9))
        assert not begun.pause
        node.stored.ask("urgent", ("2.1",), priority=1, stack="sagittal 512x512")
        wait_until(lambda: report(None).pause, what="the job has to pause")
        steps.append(find.jobs(node.stored.database, Wanted()).lines[-1].step)
        wait_until(lambda: not report(None).pause, what="the job may go on")
        steps.append(find.jobs(node.stored.database, Wanted()).lines[-1].step)
        return derived("2.25.1")(request, report)

    return run


def test_a_more_urgent_job_overtakes_one_that_runs_and_that_one_goes_on(with_spare: Node) -> None:
    node, steps = with_spare, list[str]()
    states: list[JobState] = []

    def urgent(request: Request, report: Report) -> Outcome | NoAnswer:
        assert not report(Progress("predicting", 1, 2)).pause
        wait_until(lambda: bool(steps), what="the other job pauses")
        states.append(node.stored.queue.get(1).state)
        return derived("2.25.2")(request, report)

    assert node.spare is not None
    node.spare.scripts.append(urgent)
    job = node.ran(long_job(node, steps))
    assert (job.state, job.attempt, job.derived_series_uid) == (JobState.SUCCEEDED, 1, "2.25.1")
    assert steps == ["paused", "predicting"]
    assert states == [JobState.RUNNING]
    assert node.stored.queue.get(2).state is JobState.SUCCEEDED
    assert node.spare.bounds == [BOUNDS]


@pytest.mark.parametrize("priority", [5, 9])
def test_a_job_that_is_no_more_urgent_waits_for_its_turn(with_spare: Node, priority: int) -> None:
    node = with_spare
    assert node.spare is not None

    def run(request: Request, report: Report) -> Outcome | NoAnswer:
        node.stored.ask("another", ("2.1",), priority=priority, stack="sagittal 512x512")
        wait_until(lambda: node.spare and node.spare.is_started, what="the spare worker is ready")
        assert not report(None).pause
        return derived("2.25.1")(request, report)

    assert node.ran(run, derived("2.25.2")).state is JobState.SUCCEEDED
    assert node.over(2).state is JobState.SUCCEEDED
    assert node.spare.requests == []


def test_a_free_worker_takes_an_urgent_job_itself(stored: Stored) -> None:
    node = Node(stored, workers=(Worker(), Worker()), spare=Worker())
    stored.ask("long")
    node.supervisor.start()
    wait_until(lambda: node.is_running(1), what="the first job runs")
    stored.ask("urgent", ("2.1",), priority=1, stack="sagittal 512x512")
    wait_until(lambda: node.is_running(2), what="the urgent job runs")
    node.supervisor.stop()
    assert node.spare is not None
    assert (node.spare.requests, node.spare.is_started) == ([], False)


def test_a_node_that_stops_gives_back_the_job_that_pauses_too(with_spare: Node) -> None:
    node = with_spare
    node.stored.ask("long")
    node.supervisor.start()
    wait_until(lambda: node.is_running(1), what="the first job runs")
    node.stored.ask("urgent", ("2.1",), priority=1, stack="sagittal 512x512")
    wait_until(lambda: node.is_running(2), what="the urgent job runs")
    node.supervisor.stop()
    both = [node.stored.queue.get(number) for number in (1, 2)]
    assert [(job.state, job.worker_deaths) for job in both] == [(JobState.QUEUED, 0)] * 2
    assert node.spare is not None
    assert node.spare.is_closed


class FullDisk(Files):
    """A storage folder without room for the output of a job."""

    def make(self, relative: str) -> Path:
        raise NoRoom(f"no room for {relative}")


def test_a_full_disk_is_no_fault_of_the_job(node: Node) -> None:
    node.take(node.stored.queue, FullDisk(node.stored.files.folder, min_free_bytes=0))
    job = node.ran()
    assert (job.state, job.worker_deaths, job.reason) == (JobState.QUEUED, 0, "")
    assert node.workers[0].requests == []


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that try again at once what lacked room."""
    monkeypatch.setattr(jobs, "ROOM_SECONDS", 0.01)
    monkeypatch.setattr(jobs, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(jobs, "MEMORY_WAITS", (0.0,))


def raises(error: Exception) -> Script:
    def run(_request: Request, _report: Report) -> Outcome:
        raise error

    return run


TOO_MANY_FILES = OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize(
    "script",
    [
        answer(OutOfResources("The machine lacks room.")),
        raises(TOO_MANY_FILES),
        raises(OSError(errno.ENOMEM, "Cannot allocate memory")),
        raises(MemoryError()),
    ],
    ids=["in the worker", "files in the node", "a fork in the node", "memory in the node"],
)
@pytest.mark.usefixtures("no_pause")
def test_a_job_for_which_there_is_no_room_is_tried_again_until_there_is(
    node: Node, script: Script
) -> None:
    waiting: list[Job] = []

    def look(request: Request, report: Report) -> Outcome | NoAnswer:
        waiting.append(node.stored.queue.get(1))
        return derived()(request, report)

    asked = node.stored.ask("key")
    node.ran(script, script, script, look, job_id=asked.job_id)
    job = node.over(asked.job_id, attempt=4)
    assert (job.state, job.worker_deaths, job.abandoned) == (JobState.SUCCEEDED, 0, 0)
    assert waiting[0].sentence.startswith("The machine lacks room")
    assert job.sentence == ""
    outcomes = [(it.number, it.outcome) for it in node.stored.queue.attempts(job.id)]
    assert outcomes == [(3, "no room"), (4, "succeeded")]  # of many such attempts the last stays


@pytest.mark.usefixtures("no_pause")
def test_no_job_begins_while_the_disk_is_below_its_reserve(node: Node) -> None:
    files = Files(node.stored.files.folder, min_free_bytes=1 << 60)
    node.take(node.stored.queue, files)
    asked = node.stored.ask("key")
    node.workers[0].scripts.append(derived())
    node.supervisor.start()
    assert not node.supervisor.wait(0.2)
    job = node.stored.queue.get(asked.job_id)
    assert (job.state, job.attempt) == (JobState.QUEUED, 0)
    files.min_free_bytes = 0
    assert node.over(asked.job_id).state is JobState.SUCCEEDED


class BusyRelease(Queue):
    """A queue whose database is busy when a job is given back."""

    refusals = 2

    def give_back(self, leased: Job, sentence: str) -> JobState:
        if self.refusals:
            self.refusals -= 1
            raise Busy("the database is busy")
        return super().give_back(leased, sentence)


@pytest.mark.usefixtures("no_pause")
def test_a_job_is_given_back_even_where_the_database_is_busy_just_then(node: Node) -> None:
    stored = node.stored
    node.take(BusyRelease(stored.database, Holder("one", stored.clock, 60.0, stored.clock)))
    asked = stored.ask("key")
    node.ran(raises(TOO_MANY_FILES), derived(), job_id=asked.job_id)
    job = node.over(asked.job_id, attempt=2)
    assert (job.state, job.abandoned) == (JobState.SUCCEEDED, 0)


class BusyQueue(Queue):
    """A queue whose database is busy, or full, when the result of a job is to be written."""

    refusals = 1
    error: type[StorageError] = Busy

    def succeed(self, leased: Job, result: NewDerived) -> JobEnd:
        if self.refusals:
            self.refusals -= 1
            raise self.error("the database takes nothing")
        return super().succeed(leased, result)


@pytest.mark.parametrize("error", [Busy, NoRoom])
def test_a_result_waits_for_a_database_that_is_busy_or_full(
    node: Node, error: type[StorageError]
) -> None:
    stored = node.stored
    queue = BusyQueue(stored.database, Holder("one", stored.clock, 60.0, stored.clock))
    queue.error = error
    node.take(queue)
    assert node.ran(derived()).state is JobState.SUCCEEDED
    assert queue.refusals == 0
    assert len(node.workers[0].requests) == 1


def test_a_node_that_stops_gives_back_what_runs_and_ends_its_workers(node: Node) -> None:
    asked = node.stored.ask("key")
    node.supervisor.start()
    assert node.workers[0].is_started
    wait_until(lambda: node.is_running(asked.job_id), what="the job runs")
    node.supervisor.drain()
    assert not node.supervisor.wait(0.01)
    node.supervisor.stop()
    job = node.stored.queue.get(asked.job_id)
    assert (job.state, job.worker_deaths) == (JobState.QUEUED, 0)
    assert node.workers[0].is_closed
    assert node.supervisor.wait(0.0)


def test_a_node_that_drains_claims_nothing_new(node: Node) -> None:
    node.is_drained = True
    asked = node.stored.ask("key")
    node.supervisor.start()
    node.supervisor.drain()
    assert node.supervisor.wait(20.0)
    assert node.stored.queue.get(asked.job_id).attempt == 0


def test_a_switch_that_drains_is_looked_at_before_each_job(node: Node) -> None:
    node.is_drained = True
    asked = node.stored.ask("key")
    node.workers[0].scripts.append(derived())
    node.supervisor.start()
    assert node.stored.queue.get(asked.job_id).attempt == 0
    node.is_drained = False
    assert node.over(asked.job_id).state is JobState.SUCCEEDED


def test_two_workers_run_two_jobs_at_once(node: Node) -> None:
    node.workers = (Worker(), Worker())
    node.take(node.stored.queue)
    first = node.stored.ask("key").job_id
    second = node.stored.ask("another", ("1.3",), stack="axial 256x256").job_id
    node.supervisor.start()
    wait_until(lambda: all(worker.requests for worker in node.workers), what="both run")
    assert node.is_running(first)
    assert node.is_running(second)


def test_what_a_job_keeps_of_its_route_is_what_its_worker_gets() -> None:
    parameters = Parameters(target_spacing_mm=1.25)
    output = replace(Output(), across_missing="leave", hold_below=0.2, label="axial")
    assert from_snapshot(snapshot(parameters, output)) == (parameters, output)


def test_equal_values_have_one_canonical_form() -> None:
    assert canonical({"b": 1, "a": Path("x/y")}) == canonical({"a": Path("x/y"), "b": 1})
    assert canonical({"a": Path("x/y")}) == '{"a":"x/y"}'
    with pytest.raises(TypeError):
        canonical({"a": object()})


def test_a_sites_own_model_stands_beside_those_of_the_product(settings: Config) -> None:
    assert {"linear", "midslice"} <= set(specs(settings))


def test_progress_never_goes_backwards_through_the_steps_of_a_job() -> None:
    steps = [
        Progress(step, done, 10)
        for step in ("reading", "predicting", "writing", "checking")
        for done in range(11)
    ]
    shares = [fraction(progress) for progress in steps]
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert shares[-1] < 1.0  # only the queue says that a job is done


@pytest.mark.parametrize("step", ["reading", "predicting", "writing", "checking", "unheard of"])
def test_progress_stays_between_nothing_and_all_whatever_a_worker_reports(step: str) -> None:
    assert 0.0 <= fraction(Progress(step, 7, 0)) <= 1.0
    assert 0.0 <= fraction(Progress(step, 9, 3)) <= 1.0


def planner_of(stored: Stored) -> AheadPlanner:
    rules = AheadRules("MIDSLICE", (), {}, SITE.resources)
    return AheadPlanner(stored.archive, stored.files, lambda: rules, stored.clock)


def test_the_first_worker_is_told_what_arrives_while_it_has_no_job(stored: Stored) -> None:
    workers = Worker(), Worker()
    node = Node(stored, workers, ahead=planner_of(stored))
    stored.receive("1.1")
    node.supervisor.start()
    wait_until(lambda: bool(workers[0].told), what="the worker is told")
    (series,) = workers[0].told[0].changed
    assert [source.instance_uid for source in series.sources] == ["1.1"]
    node.supervisor.stop()
    assert not workers[1].told


def test_a_job_of_what_was_generated_ahead_is_left_to_the_worker_that_has_it(
    stored: Stored,
) -> None:
    workers = Worker(), Worker()
    node = Node(stored, workers, ahead=planner_of(stored))
    stored.receive("1.1")
    node.supervisor.start()
    wait_until(lambda: bool(workers[0].told), what="the worker is told")
    for number in range(3):
        workers[0].scripts.append(derived(f"2.25.{number}"))
    job_id = stored.complete("key").job_id
    assert node.over(job_id).state is JobState.SUCCEEDED
    node.supervisor.stop()
    assert [len(worker.requests) for worker in workers] == [1, 0]


def test_a_worker_that_dies_of_what_arrives_is_started_again_and_not_told_of_it(
    stored: Stored,
) -> None:
    worker = Worker(has_died=True)
    node = Node(stored, (worker,), ahead=planner_of(stored))
    stored.receive("1.1")
    node.supervisor.start()
    wait_until(lambda: bool(worker.told), what="the worker is told")
    worker.has_died = False
    worker.scripts.append(answer(FAILED))  # it works for others all the same
    assert node.over(stored.ask("key", ["1.2"]).job_id).state is JobState.FAILED
    node.supervisor.stop()
    assert len(worker.told) == 1


def test_the_node_says_why_its_jobs_wait_for_a_worker_until_one_is_there(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PAUSE_SECONDS", 0.05)
    assert node.supervisor.lacking() == ""
    (worker,) = node.workers
    worker.lacks = "no cluster answers"
    node.supervisor.start()
    said = "1 of 1: no cluster answers"
    wait_until(lambda: node.supervisor.lacking() == said, what="the worker is missed")
    worker.lacks = ""
    wait_until(lambda: node.supervisor.lacking() == "", what="the worker is there")
