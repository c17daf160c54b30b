"""Keeps the workers busy: claims jobs, watches them, writes down how each ended."""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial

from inference.request import Progress
from node.work.executor import Bounds, Ended, Executor, Order
from node.work.infer import Inference
from storage.errors import Busy, LeaseLost, NoRoom, StorageError
from storage.jobs import Queue
from storage.records import Job

logger = logging.getLogger(__name__)

IDLE_SECONDS = 0.5  # how soon a new job is seen by a worker that waits
RENEW_SECONDS = 1.0
PAUSE_SECONDS = 5.0  # after something that will not be better at once
WRITE_SECONDS = 600.0  # how long a result waits for a database that is busy
OUR_FAULT = "The node's own code raised an exception around this job; the log has the frames."
KINDS = ("infer", "selftest")


class Supervisor:
    """One thread a worker; a thread that dies of a bad job would stop the department."""

    def __init__(
        self,
        executors: Sequence[Executor],
        queue: Queue,
        inference: Inference,
        bounds: Bounds,
        *,
        drained: Callable[[], bool],
    ) -> None:
        self._drained = drained  # somebody wants no job to start until further notice
        self._queue = queue
        self._inference = inference
        self._bounds = bounds
        self._draining = threading.Event()  # claim nothing new
        self._stopping = threading.Event()  # give back what runs
        self._threads = [
            threading.Thread(target=self._work, args=(f"worker-{number}", executor), daemon=True)
            for number, executor in enumerate(executors, start=1)
        ]
        self._executors = tuple(executors)

    def start(self) -> None:
        """Start the children, then the threads that feed them."""
        for executor in self._executors:
            executor.start()
        for thread in self._threads:
            thread.start()

    def drain(self) -> None:
        """Claim no further job; what runs goes on."""
        self._draining.set()

    def wait(self, seconds: float) -> bool:
        """True when no job runs any more, False when the time is over."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Give back what still runs, without counting it against the job, and end the children."""
        self._draining.set()
        self._stopping.set()
        self.wait(30.0)
        for executor in self._executors:
            executor.close()

    def _work(self, name: str, executor: Executor) -> None:
        while not self._draining.is_set():
            try:
                job = None if self._drained() else self._queue.claim(name, KINDS)
                if job is None:
                    self._draining.wait(IDLE_SECONDS)
                else:
                    self._do(job, executor)
            except Exception:
                logger.exception("queue not read", extra={"worker": name})
                self._draining.wait(PAUSE_SECONDS)

    def _do(self, job: Job, executor: Executor) -> None:
        """Run one job; whatever happens, its row says so."""
        try:
            self._run(job, executor)
        except LeaseLost:
            logger.warning("lease lost", extra={"job": job.id})
            self._inference.drop_output(job)
        except (NoRoom, Busy) as error:  # no fault of the job: somebody tries it again
            logger.warning("job given back", extra={"job": job.id, "why": str(error)})
            self._queue.release(job)
            self._draining.wait(PAUSE_SECONDS)
        except Exception as error:
            logger.exception("job not finished", extra={"job": job.id})
            frames = "".join(traceback.format_tb(error.__traceback__))
            self._queue.fail(job, type(error).__name__, OUR_FAULT, frames)

    def _run(self, job: Job, executor: Executor) -> None:
        logger.info("job running", extra={"job": job.id, "attempt": job.attempt})
        request = self._inference.request(job)
        outcome = executor.run(request, self._bounds, self._look(job))
        if isinstance(outcome, Ended):
            self._write(job, partial(self._inference.ended, job, outcome))
        else:
            self._write(job, partial(self._inference.finished, job, outcome))

    def _write(self, job: Job, write: Callable[[], None]) -> None:
        """Write the end of a job; a database that is busy must not cost an hour of inference."""
        give_up = time.monotonic() + WRITE_SECONDS
        while True:
            try:
                self._queue.renew(job, 1.0)
                write()
            except Busy:
                if time.monotonic() > give_up or self._stopping.is_set():
                    raise
                logger.warning("lease not renewed", extra={"job": job.id})
                self._stopping.wait(RENEW_SECONDS)
            else:
                return

    def _look(self, job: Job) -> Callable[[Progress | None], Order]:
        shown = Progress("reading", 0, 1)
        renewed = -RENEW_SECONDS
        cancel = False

        def look(progress: Progress | None) -> Order:
            nonlocal shown, renewed, cancel
            if progress is not None:
                shown = progress
            if time.monotonic() - renewed >= RENEW_SECONDS:
                renewed = time.monotonic()
                try:
                    steps = (shown.step, shown.done, shown.total)
                    cancel = self._queue.renew(job, fraction(shown), *steps)
                except LeaseLost:
                    raise
                except StorageError:
                    logger.warning("lease not renewed", extra={"job": job.id})
            return Order(cancel=cancel, stop=self._stopping.is_set())

        return look


# How much of a job's time each step takes, roughly: the bar must move, and never backwards.
SHARES = (("reading", 0.0, 0.1), ("predicting", 0.1, 0.8), ("writing", 0.8, 0.9))


def fraction(progress: Progress) -> float:
    """The share of a job that is done, between 0 and 1."""
    for step, first, last in SHARES:
        if progress.step == step:
            return first + (last - first) * min(1.0, progress.done / max(1, progress.total))
    return 0.9
