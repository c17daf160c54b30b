"""The supervisor: claims jobs, turns rows into requests, watches workers, writes down each end."""

import errno
import json
import logging
import math
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from functools import partial
from pathlib import Path

from inference import registry
from inference.errors import is_out_of_memory, shortage
from inference.model import Parameters
from inference.request import (
    LACKING,
    Derived,
    Failed,
    Kept,
    Mark,
    ModelSpec,
    Outcome,
    OutOfMemory,
    OutOfResources,
    Output,
    Part,
    PartMade,
    Progress,
    Request,
    Resources,
    Source,
    Stopped,
    Verdict,
)
from node.children import AT_ONCE, IDLE_SECONDS, PAUSE_SECONDS, WorkerLoop, wait_for
from node.config import Config
from node.work.ahead import AheadPlanner, Arriving
from node.work.executor import Bounds, End, Executor, NoAnswer, Order, Report
from storage.errors import Busy, LeaseLost, NoRoom, StorageError
from storage.files import Files
from storage.jobs import LONGEST_WAIT, Queue
from storage.records import (
    Arrival,
    DerivedInstance,
    DerivedMark,
    Ended,
    Instance,
    Job,
    JobState,
    NewDerived,
)

logger = logging.getLogger(__name__)

RENEW_SECONDS = 1.0
NO_MEMORY = os.strerror(errno.ENOMEM)
ROOM_SECONDS = 30.0  # before the next job, where the last one lacked room
# Before a job for which memory did not suffice is tried once more, after the first and the second
# time: what else took it may have ended by then.
MEMORY_WAITS = (60.0, LONGEST_WAIT)
STOP_SECONDS = 30.0  # for workers to give back what they run
WRITE_SECONDS = 600.0  # how long a result waits for a database that is busy
OUR_FAULT = "The node's own code raised an exception while handling this job; see the log."
OVERTAKING_SECONDS = 5.0  # all workers are busy for as long before another one is made ready
FIRST, SPARE = "worker-1", "worker-urgent"
LEFT_SECONDS = 2.0  # a worker that looked for jobs so lately takes those of its own series
LONG_SLICES = 200  # received ones, from which on idle workers of a cluster make parts of a series
PART_SLICES = 32  # generated ones of a part: some seconds
PAUSED = "paused"  # the step of a job while a more urgent one is made
KINDS = ("infer", "selftest")
SENTENCES = {
    End.WORKER_DIED: "The worker process died while it ran this job.",
    End.TIME_LIMIT: "The job took longer than inference.job_minutes allows.",
    End.MEMORY_LIMIT: "The job used more memory than inference.memory_gb allows.",
}
OUT_OF_MEMORY = "OUT_OF_MEMORY"  # the reason, and how such an attempt ends
NO_MEMORY_SENTENCE = "Memory did not suffice for this job, however little was done at once."
# How much of a job's time each step takes, roughly: the bar must move, and never backwards.
SHARES = (("reading", 0.0, 0.1), ("predicting", 0.1, 0.8), ("writing", 0.8, 0.9))


@dataclass(frozen=True)
class Site:
    """The facts that are the same for every job of this node."""

    secret: bytes
    station_name: str
    timezone: tzinfo | None  # None = the system's own, which knows summer time
    models: Mapping[str, ModelSpec]
    resources: Resources


class InferenceJobs:
    """Turns rows of the queue into requests, and answers of workers into rows."""

    def __init__(self, queue: Queue, files: Files, site: Site, now: Callable[[], float]) -> None:
        self._queue = queue
        self._files = files
        self._site = site
        self._now = now

    def request(self, job: Job) -> Request:
        """Everything that a worker must know about `job`, and an empty folder for its result."""
        folder = self._files.derived_folder(job.id, job.attempt)
        self._files.make(folder)
        parameters, output = from_snapshot(job.parameters)
        return Request(
            sources=self._sources(job),
            model=self._site.models.get(job.model) or registry.spec_of(job.model),
            parameters=parameters,
            output=output,
            folder=self._files.path(folder),
            secret=self._site.secret,
            beside=sources(self._queue.beside(job), self._files),
            started_at=datetime.fromtimestamp(self._now(), UTC).astimezone(self._site.timezone),
            edition=job.edition,
            kept=self._queue.kept_series(job.series_id),
            mark=_mark(job.mark),
            marks={uid: _mark(mark) for uid, mark in self._queue.marks(job.series_id).items()},
            station_name=self._site.station_name,
            resources=self._site.resources,
            reserve_bytes=self._files.min_free_bytes,
            previews=True,
        )

    def _sources(self, job: Job) -> tuple[Source, ...]:
        """The files of a job; where one is gone, the place where it would be: it is missed."""
        place = partial(self._files.received_path, job.study_uid, job.series_uid)
        instances = self._queue.instances(job.id)
        return sources(
            [replace(it, path=it.path or place(it.digest)) for it in instances], self._files
        )

    def lacked_room(self) -> str:
        """Why no job is begun: the disk is below its reserve; empty where it is not."""
        try:
            self._files.check_room()
        except NoRoom as error:
            return str(error)
        return ""

    def finished(self, job: Job, outcome: Outcome) -> None:
        """Write down what a worker answered."""
        match outcome:
            case Derived():
                self._succeed(job, outcome)
            case Kept(series_uid):
                self._ended(job, self._queue.same(job, series_uid), series_uid)
            case Verdict():
                self._judged(job, outcome)
            case Failed(reason, sentence, frames):
                self._queue.fail(job, reason, sentence, frames)
                logger.error("job failed", extra={"job": job.id, "reason": reason})
                self.drop_output(job)
            case Stopped():
                self._queue.cancelled(job)
                logger.info("job cancelled", extra={"job": job.id})
                self.drop_output(job)
            case OutOfResources(sentence):
                self.give_back(job, sentence)
            case OutOfMemory(frames):
                self._out_of_memory(job, frames)

    def _judged(self, job: Job, verdict: Verdict) -> None:
        extra = {"job": job.id, "reason": verdict.reason}
        why = (verdict.reason, verdict.sentence, verdict.record)
        if verdict.held:
            self._queue.hold(job, *why)
            logger.warning("job held", extra=extra)
        else:
            self._queue.refuse(job, *why)
            logger.info("job refused", extra=extra)
        self.drop_output(job)

    def _out_of_memory(self, job: Job, frames: str) -> None:
        """Queue a job again for a little later, as often as one may cost its worker."""
        wait = MEMORY_WAITS[min(job.worker_deaths, len(MEMORY_WAITS) - 1)]
        why = (OUT_OF_MEMORY, frames, OUT_OF_MEMORY, NO_MEMORY_SENTENCE)
        if self._queue.died(job, *why, wait) == JobState.HELD:
            logger.warning("job held", extra={"job": job.id, "reason": OUT_OF_MEMORY})
        else:
            logger.warning("job given back", extra={"job": job.id, "why": NO_MEMORY_SENTENCE})
        self.drop_output(job)

    def give_back(self, job: Job, why: str) -> None:
        """Queue a job again for which there was no room: that is no fault of it."""
        self._queue.give_back(job, why)
        logger.warning("job given back", extra={"job": job.id, "why": why})
        self.drop_output(job)

    def unanswered(self, job: Job, end: NoAnswer) -> None:
        """Write down that a worker gave no answer."""
        match end.how:
            case End.STOPPED:
                self._queue.release(job)
                logger.info("job released", extra={"job": job.id})
            case End.CANCELLED:
                self._queue.cancelled(job)
                logger.info("job cancelled", extra={"job": job.id})
            case how:
                state = self._queue.died(job, how, end.detail, how, SENTENCES[how])
                logger.warning(
                    "worker lost", extra={"job": job.id, "reason": how, "state": str(state)}
                )
        self.drop_output(job)

    def _succeed(self, job: Job, derived: Derived) -> None:
        instances = tuple(
            DerivedInstance(
                instance_uid=file.instance_uid,
                sop_class_uid=file.sop_class_uid,
                path=file.name,
                digest=file.digest,
                generated=file.generated,
                series_uid=file.series_uid,
                kind=file.kind,
                is_supplement=file.is_supplement,
            )
            for file in derived.files
        )
        folder = self._files.derived_folder(job.id, job.attempt)
        result = NewDerived(
            derived.series_uid,
            folder,
            job.edition,
            derived.version,
            instances,
            derived.record,
            derived.content_uid,
            DerivedMark(**vars(derived.mark)),
        )
        end = self._queue.succeed(job, result)
        self._ended(job, end, derived.series_uid, instances=len(instances))

    def _ended(self, job: Job, end: Ended, series_uid: str, **counts: int) -> None:
        """Log the end that the queue decided on; another job may have made the series already."""
        if not end.folder_kept:
            self.drop_output(job)
        extra: dict[str, object] = {"job": job.id, "derived_series_uid": series_uid, **counts}
        if end.state == JobState.SUCCEEDED:
            logger.info("job succeeded", extra=extra | {"is_new": end.folder_kept})
            if end.revision > 1:
                logger.warning("notice", extra=extra | {"kind": "revision", "which": end.revision})
        elif end.state == JobState.CANCELLED:
            logger.info("job cancelled", extra=extra)
        elif end.state == JobState.HELD:  # a mix-up was found while it ran
            logger.warning("job held", extra=extra)
        else:
            logger.info("job queued", extra=extra | {"how": "its series was purged meanwhile"})

    def drop_output(self, job: Job) -> None:
        """Remove what an attempt wrote that nobody will send."""
        self._files.remove(self._files.derived_folder(job.id, job.attempt))


class Turns:
    """The jobs that run, and the more urgent one for which others pause between two slices."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._running: dict[str, Job] = {}  # by the worker that each keeps from the next job
        self._all_busy_since = math.inf
        self._overtaking: Job | None = None

    @contextmanager
    def running(self, worker: str, job: Job) -> Iterator[None]:
        """While a worker runs a job."""
        self._running[worker] = job
        if len(self._running) == self._workers:
            self._all_busy_since = time.monotonic()
        try:
            yield
        finally:
            self._all_busy_since = math.inf
            del self._running[worker]

    @contextmanager
    def overtaking(self, job: Job) -> Iterator[None]:
        """While a job is run for which less urgent ones pause."""
        self._overtaking = job
        try:
            yield
        finally:
            self._overtaking = None

    def is_free(self, worker: str) -> bool:
        """True where a worker runs nothing."""
        return worker not in self._running

    def least_urgent(self) -> int:
        """The priority before which a job overtakes; 0 where a worker is free, or soon will be."""
        if time.monotonic() - self._all_busy_since < OVERTAKING_SECONDS:
            return 0
        return max((job.priority for job in tuple(self._running.values())), default=0)

    def is_overtaken(self, job: Job) -> bool:
        """True while it has to pause."""
        overtaking = self._overtaking
        return overtaking is not None and overtaking.priority < job.priority


class Parts:
    """Hands the gaps of long series that are made to workers that have nothing else to do.

    Who makes a series goes from its first gap on; parts are handed out from its last one back,
    until the two meet.
    """

    def __init__(self, least_slices: int) -> None:
        self._least_slices = least_slices  # of a series that is worth it; 0 = none is
        self._long: dict[int, _Long] = {}  # by job
        self._lock = threading.Lock()

    def is_long(self, request: Request) -> bool:
        """True where others may make parts of it."""
        makes_slices = request.model.produces == "slices"
        return makes_slices and 0 < self._least_slices <= len(request.sources)

    @contextmanager
    def of(self, job_id: int, request: Request) -> Iterator[None]:
        """While a job runs."""
        if request.in_parts:
            with self._lock:
                self._long[job_id] = _Long(request)
        try:
            yield
        finally:
            with self._lock:
                self._long.pop(job_id, None)

    def reached(self, job_id: int, progress: Progress) -> None:
        """Take note of how far a job has come."""
        long = self._long.get(job_id)
        if long is not None and progress.step == "predicting":
            with self._lock:
                long.done = progress.done
                long.open_until = min(long.open_until, progress.total)

    def take(self) -> tuple[int, Part] | None:
        """The next part that nobody makes, and its job."""
        with self._lock:
            for job_id, long in self._long.items():
                last = long.open_until
                if math.isfinite(last) and last - long.done >= 2 * PART_SLICES:
                    long.open_until = last - PART_SLICES
                    return job_id, Part(long.request, int(last) - PART_SLICES, int(last))
        return None

    def is_open(self, job_id: int, part: Part) -> bool:
        """True while a part is of use."""
        long = self._long.get(job_id)
        return long is not None and long.done < part.last


@dataclass
class _Long:
    """A long series that is made: generated slices so far, and those that nobody else has."""

    request: Request
    done: int = 0
    open_until: float = math.inf  # until the first progress tells how many there will be


class Supervisor:
    """Claims jobs, has them run and writes their ends down, in one thread a worker.

    Where no worker is free, `spare` runs what is more urgent than that which runs, which pauses.
    """

    def __init__(
        self,
        executors: Sequence[Executor],
        queue: Queue,
        inference: InferenceJobs,
        bounds: Bounds,
        *,
        drained: Callable[[], bool],
        spare: Executor | None = None,
        ended: Callable[[], None] = lambda: None,
        ahead: AheadPlanner | None = None,
        least_slices: int = 0,
    ) -> None:
        self._parts = Parts(least_slices)  # of series from that length on, for idle workers
        self._drained = drained  # somebody wants no job to start until further notice
        self._ended = ended  # called when the end of a job is written: its result may be sent
        self._ahead = ahead  # of what the first worker generates while series arrive
        self._looked_ahead = -math.inf
        self._queue = queue
        self._inference = inference
        self._bounds = bounds
        self._stopping = threading.Event()  # give back what runs
        self._lacked_room = ""  # said in the log when it begins
        self._lacked_worker: dict[str, str] = {}  # the same, by worker
        self._executors = tuple(executors)
        names = [f"worker-{number}" for number in range(1, len(self._executors) + 1)]
        self._loops = [
            WorkerLoop(name, partial(self._work_next, name, executor), partial(_log_failure, name))
            for name, executor in zip(names, self._executors, strict=True)
        ]
        self._turns = Turns(len(self._executors))
        self._spare = spare
        if spare is not None:
            overtake = partial(self._overtake, SPARE, spare)
            self._loops.append(WorkerLoop(SPARE, overtake, partial(_log_failure, SPARE)))

    def start(self) -> None:
        """Start the children, then the threads that feed them."""
        for executor in self._executors:
            executor.start()
        for loop in self._loops:
            loop.start()

    def wake(self) -> None:
        """Look for jobs now: some were queued."""
        for loop in self._loops:
            loop.wake()

    def drain(self) -> None:
        """Claim no further job; what runs goes on."""
        for loop in self._loops:
            loop.drain()

    def wait(self, seconds: float) -> bool:
        """True when no job runs any more, False when the time is over."""
        return wait_for(self._loops, seconds)

    def stop(self) -> None:
        """Give back what still runs, without counting it against the job, and end the children."""
        self._stopping.set()
        self.drain()
        self.wait(STOP_SECONDS)
        for executor in (*self._executors, *([self._spare] if self._spare else [])):
            executor.close()

    def lacking(self) -> str:
        """Why jobs wait for a worker; empty where each of the workers is there."""
        by_worker = tuple(self._lacked_worker.items())
        lacked = [why for name, why in by_worker if why and name != SPARE]
        total = len(self._executors)
        return f"{len(lacked)} of {total}: {lacked[0]}" if lacked else ""

    def _work_next(self, name: str, executor: Executor) -> float:
        if self._drained():
            return IDLE_SECONDS
        if not self._has_room():
            return PAUSE_SECONDS
        if self._lacks_worker(name, executor):
            return PAUSE_SECONDS
        arriving = self._arriving(executor)
        job = self._queue.claim(name, KINDS, but_series=self._left_to_first(executor))
        if job is None:
            if self._ahead is not None and arriving is not None:
                self._generate_ahead(self._ahead.news(arriving), executor)
            return self._make_part(executor)
        with self._turns.running(name, job):
            return self._do(job, executor)

    def _make_part(self, executor: Executor) -> float:
        """Have a part of a long series drafted; a worker that fails at it is not told of."""
        taken = self._parts.take()
        if taken is None:
            return IDLE_SECONDS
        job_id, part = taken

        def report(_: Progress | None) -> Order:
            return Order(cancel=not self._parts.is_open(job_id, part), stop=self._stopping.is_set())

        executor.run(part, self._bounds, report)
        return AT_ONCE

    def _arriving(self, executor: Executor) -> Sequence[Arrival] | None:
        """The arrivals before the first worker looks for a job; None for the other workers."""
        if self._ahead is None or executor is not self._executors[0]:
            return None
        self._looked_ahead = time.monotonic()
        return self._ahead.arriving()

    def _generate_ahead(self, news: Arriving | None, executor: Executor) -> None:
        if news is not None and self._ahead is not None and not executor.tell(news):
            self._ahead.worker_died()
            executor.start()

    def _left_to_first(self, executor: Executor) -> frozenset[int]:
        """The series that the first worker has generated ahead for, where it is there for them."""
        is_other = executor is not self._executors[0] and self._turns.is_free(FIRST)
        if self._ahead is None or not is_other:
            return frozenset()
        is_there = time.monotonic() - self._looked_ahead < LEFT_SECONDS
        return self._ahead.series_ids if is_there else frozenset()

    def _overtake(self, name: str, executor: Executor) -> float:
        """Run a job that is more urgent than one that runs; that one pauses meanwhile."""
        before = self._turns.least_urgent()
        if not before or self._drained() or not self._has_room():
            return IDLE_SECONDS
        # Started now: an urgent job does not wait for models to be loaded.
        if self._lacks_worker(name, executor):
            return PAUSE_SECONDS
        job = self._queue.claim(name, KINDS, before=before)
        if job is None:
            return IDLE_SECONDS
        with self._turns.overtaking(job):
            return self._do(job, executor)

    def _has_room(self) -> bool:
        """False while the disk is below its reserve: a job would only have to be given back."""
        lacked = self._inference.lacked_room()
        if lacked and not self._lacked_room:
            logger.warning("jobs wait for room", extra={"why": lacked})
        self._lacked_room = lacked
        return not lacked

    def _lacks_worker(self, name: str, executor: Executor) -> bool:
        """True while a job would find no worker, as where the machines of a cluster are away."""
        why = executor.lacking()
        if why and self._lacked_worker.get(name) != why:
            logger.warning("jobs wait for a worker", extra={"worker": name, "why": why})
        elif not why and self._lacked_worker.get(name):
            logger.info("worker is back", extra={"worker": name})
        self._lacked_worker[name] = why
        return bool(why)

    def _do(self, job: Job, executor: Executor) -> float:
        """Run one job; whatever happens, its row says so."""
        try:
            return self._run(job, executor)
        except LeaseLost:
            logger.warning("lease lost", extra={"job": job.id})
            self._inference.drop_output(job)
        except (NoRoom, Busy) as error:
            self._give_back(job, str(error))
            return PAUSE_SECONDS
        except Exception as error:
            # No model runs in this process: here memory that lacks is the machine's.
            lacked = NO_MEMORY if is_out_of_memory(error) else shortage(error)
            if lacked:
                self._give_back(job, lacked)
                return PAUSE_SECONDS
            logger.exception("job not finished", extra={"job": job.id})
            frames = "".join(traceback.format_tb(error.__traceback__))
            self._queue.fail(job, type(error).__name__, OUR_FAULT, frames)
        return AT_ONCE

    def _give_back(self, job: Job, lacked: str) -> None:
        sentence = LACKING.format(lacked=lacked)
        self._write(job, partial(self._inference.give_back, job, sentence))

    def _run(self, job: Job, executor: Executor) -> float:
        """Run one job and write its end down; how long to wait for the next one."""
        logger.info("job running", extra={"job": job.id, "attempt": job.attempt})
        request = self._inference.request(job)
        if self._parts.is_long(request):
            request = replace(request, in_parts=True)
        with self._parts.of(job.id, request):
            outcome = executor.run(request, self._bounds, self._report(job))
        assert not isinstance(outcome, PartMade)
        if isinstance(outcome, NoAnswer):
            self._write(job, partial(self._inference.unanswered, job, outcome))
            return AT_ONCE
        self._write(job, partial(self._inference.finished, job, outcome))
        self._ended()
        if not isinstance(outcome, OutOfResources | OutOfMemory):
            return AT_ONCE
        # Where the worker is what lacks, no job is begun before it is there.
        return AT_ONCE if executor.lacking() else ROOM_SECONDS

    def _write(self, job: Job, write: Callable[[], None]) -> None:
        """Write the end of a job; a database that is busy or full must not cost an hour's work."""
        give_up = time.monotonic() + WRITE_SECONDS
        while True:
            try:
                self._queue.renew(job, 1.0)
                write()
            except (Busy, NoRoom):
                if time.monotonic() > give_up or self._stopping.is_set():
                    raise
                logger.warning("lease not renewed", extra={"job": job.id})
                self._stopping.wait(RENEW_SECONDS)
            else:
                return

    def _report(self, job: Job) -> Report:
        shown = Progress("reading", 0, 1)
        renewed = -RENEW_SECONDS
        cancel = pause = False

        def report(progress: Progress | None) -> Order:
            nonlocal shown, renewed, cancel, pause
            if progress is not None:
                shown = progress
                self._parts.reached(job.id, progress)
            if pause is not self._turns.is_overtaken(job):
                pause = not pause
                renewed = -RENEW_SECONDS
                _log_turn(job, pause=pause)
            if time.monotonic() - renewed >= RENEW_SECONDS:
                renewed = time.monotonic()
                try:
                    steps = (PAUSED if pause else shown.step, shown.done, shown.total)
                    cancel = self._queue.renew(job, fraction(shown), *steps)
                except LeaseLost:
                    raise
                except StorageError:
                    logger.warning("lease not renewed", extra={"job": job.id})
            return Order(cancel=cancel, stop=self._stopping.is_set(), pause=pause)

        return report


def _log_turn(job: Job, *, pause: bool) -> None:
    if pause:
        logger.info("job paused", extra={"job": job.id})
    else:
        logger.info("job resumed", extra={"job": job.id})


def _log_failure(worker: str) -> None:
    logger.exception("queue not read", extra={"worker": worker})  # noqa: LOG004 - called by its handler


def fraction(progress: Progress) -> float:
    """The share of a job that is done, between 0 and 1."""
    for step, first, last in SHARES:
        if progress.step == step:
            return first + (last - first) * min(1.0, progress.done / max(1, progress.total))
    return 0.9


def _mark(kept: DerivedMark) -> Mark:
    return Mark(**vars(kept))


def sources(instances: Sequence[Instance], files: Files) -> tuple[Source, ...]:
    """The files of `instances`, which come with the newest version first."""
    return tuple(
        Source(
            files.path(instance.path),
            instance.instance_uid,
            len(instances) - place,
            instance.digest,
        )
        for place, instance in enumerate(instances)
        if instance.path is not None
    )


def snapshot(parameters: Parameters, output: Output) -> dict[str, object]:
    """The parameters of a route that a job keeps, as JSON."""
    kept = {"factor": parameters.factor, "target_spacing_mm": parameters.target_spacing_mm}
    return kept | dict(vars(output))


def from_snapshot(kept: Mapping[str, object]) -> tuple[Parameters, Output]:
    """The inverse of `snapshot`."""
    names = ("factor", "target_spacing_mm")
    parameters = Parameters(**{name: kept.get(name) for name in names})  # type: ignore[arg-type]
    others = {name: value for name, value in kept.items() if name not in names}
    return parameters, Output(**others)  # type: ignore[arg-type]


def canonical(value: object) -> str:
    """JSON that is the same for equal values: keys sorted, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_as_text)


def _as_text(value: object) -> str:
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} has no canonical form")


def specs(settings: Config) -> Mapping[str, ModelSpec]:
    """The models by name: those that come with the product, and those of the site."""
    shipped = {entry.name: entry.spec for entry in registry.REGISTERED}
    return {**shipped, **{entry.name: entry.spec for entry in settings.models}}
