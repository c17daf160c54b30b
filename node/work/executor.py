"""The executor: runs one request in a worker process that can be killed."""

import contextlib
import ctypes
import importlib
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from multiprocessing.connection import Connection
from typing import Protocol

from inference import parts, pipeline, registry
from inference.drafts import Drafts
from inference.errors import Cancelled, Reason, shortage
from inference.request import (
    LACKING,
    Derived,
    Failed,
    Kept,
    Outcome,
    OutOfMemory,
    OutOfResources,
    Part,
    PartMade,
    Progress,
    Request,
    Source,
    Stopped,
    Verdict,
)
from node import wording
from node.children import AnswerFormat, Child
from node.work.ahead import AheadWorker, Arriving
from storage.files import received_digest

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5  # how often limits and the cancel request are looked at
CANCEL_SECONDS = 20.0  # a worker that does not stop by then is killed
JOINING_SECONDS = 60.0  # of a new worker elsewhere, until its machine has it; then the job waits
LOADING_SECONDS = 300.0  # of a new worker, for its models; none of it is the job's
NICENESS = 10  # of workers: beside the parent they get a tenth of a core that both want
M_ARENA_MAX, ARENAS = -8, 2  # of mallopt (malloc.h)
EXIT_SECONDS = 5.0  # from the end of its pipe to that of the process

DAMAGED_SENTENCE = (
    "{files} missing or changed on the disk. Let the sender send the series again: this mends "
    "the files and puts the job back."
)
# The end of a process that nobody stopped, for who reads the log of the attempts.
CRASHED = "crashed ({name}), most often in compiled code of a library or because of faulty hardware"
SIGNALS = {
    "SIGKILL": "killed by the system ({name}), most often because memory ran out",
    "SIGTERM": "ended by a person, or because the machine stopped ({name})",
    "SIGSEGV": CRASHED,
    "SIGBUS": CRASHED,
    "SIGILL": CRASHED,
    "SIGFPE": CRASHED,
    "SIGABRT": CRASHED,
}


@dataclass(frozen=True)
class Cancel:
    """The parent asks the worker to stop between two steps."""


@dataclass(frozen=True)
class Pause:
    """The parent asks the worker to wait between two steps: a more urgent job is made."""


@dataclass(frozen=True)
class Resume:
    """The parent lets a worker that waits go on."""


class End(StrEnum):
    """The ways in which a worker ends without an answer."""

    WORKER_DIED = "WORKER_DIED"
    TIME_LIMIT = "TIME_LIMIT"
    MEMORY_LIMIT = "MEMORY_LIMIT"
    CANCELLED = "CANCELLED"
    STOPPED = "STOPPED"  # the node stops; nothing is counted against the job


@dataclass(frozen=True)
class NoAnswer:
    """The end of a worker that gave no answer."""

    how: End
    detail: str


@dataclass(frozen=True)
class Bounds:
    """The time and the memory that one job may take."""

    seconds: float
    memory_bytes: int = 0  # 0 = no limit of our own


@dataclass(frozen=True)
class Begun:
    """The worker's word that it has loaded its models and begins with the request."""


ANSWERS = AnswerFormat(
    Begun, PartMade, Progress, Derived, Kept, Verdict, Failed, Stopped, OutOfResources, OutOfMemory
)


@dataclass(frozen=True)
class Order:
    """The caller's order, asked for twice a second while the job runs."""

    cancel: bool = False
    stop: bool = False
    pause: bool = False  # for as long as it is true; the time does not count


Answer = Outcome | PartMade | NoAnswer
Report = Callable[[Progress | None], Order]  # hears of progress, answers with an order


class Executor(Protocol):
    """A place where inference runs; another engine is a second class with these methods."""

    def start(self) -> None:
        """Make ready to run, so that the first job does not wait for it."""
        ...

    def run(
        self, request: Request | Part, bounds: Bounds, report: Report
    ) -> Outcome | PartMade | NoAnswer:
        """Run one request to its end."""
        ...

    def lacking(self) -> str:
        """Make ready to run, and say why no job can run now; empty where one can."""
        ...

    def tell(self, arriving: Arriving) -> bool:
        """Let it generate ahead until the next request; False where what did so has died."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


class EngineLost(Exception):
    """The way to the worker was lost, by no fault of the job; the message says which."""


class Worker(Protocol):
    """The process that a request runs in, on this machine or on another."""

    @property
    def pid(self) -> int | None:
        """Its process id, on its machine."""
        ...

    @property
    def is_alive(self) -> bool:
        """True until it has ended."""
        ...

    def lacking(self) -> str:
        """Why it can take no request yet; empty where it can."""
        ...

    def send(self, number: int, order: object) -> None:
        """Send an order about the request of that number; OSError where it has ended."""
        ...

    def receive(self, seconds: float) -> tuple[object, int] | None:
        """The next answer and its number; None where there is none for so long."""
        ...

    def memory_bytes(self) -> int:
        """The memory that it uses; 0 where it has ended this moment."""
        ...

    def exit_code(self, seconds: float) -> int | None:
        """The exit code, a negative one for a signal; None where nobody knows it."""
        ...

    def end(self) -> None:
        """End it at once."""
        ...


class LocalWorker:
    """A child of this process."""

    def __init__(self, name: str, ahead_bytes: int) -> None:
        self._child = Child(name, main, ahead_bytes)

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return self._child.pid

    @property
    def is_alive(self) -> bool:
        """True until it has ended."""
        return self._child.is_alive

    def lacking(self) -> str:
        """Nothing: it takes a request while it loads its models."""
        return ""

    def send(self, number: int, order: object) -> None:
        """Send an order about the request of that number; OSError where it has ended."""
        self._child.pipe.send((number, order))

    def receive(self, seconds: float) -> tuple[object, int] | None:
        """The next answer and its number; None where there is none for so long."""
        return ANSWERS.receive(self._child.pipe) if self._child.pipe.poll(seconds) else None

    def memory_bytes(self) -> int:
        """The memory that it uses."""
        return self._child.memory_bytes()

    def exit_code(self, seconds: float) -> int | None:
        """The exit code, waited for so long."""
        return self._child.exit_code(seconds)

    def end(self) -> None:
        """Kill it."""
        self._child.end()


class ProcessExecutor:
    """One worker process, started again where it has died."""

    def __init__(
        self,
        name: str,
        now: Callable[[], float],
        ahead_bytes: int = 0,
        start_worker: Callable[[str, int], Worker] = LocalWorker,
    ) -> None:
        self._name = name
        self._now = now
        self._ahead_bytes = ahead_bytes  # memory of the child for what it generates ahead
        self._start_worker = start_worker
        self._number = 0  # of the request: an answer to an earlier one is nobody's
        self._deadline = 0.0
        self._has_begun = False  # the child has said that it works on the request
        self._child: Worker | None = None

    @property
    def pid(self) -> int | None:
        """The process that works, for those who watch it."""
        return self._child.pid if self._child is not None else None

    def start(self) -> None:
        """Start the child where none is alive."""
        if self._child is not None and self._child.is_alive:
            return
        self.close()
        self._child = self._start_worker(self._name, self._ahead_bytes)
        logger.info("worker started", extra={"worker": self._name, "pid": self._child.pid})

    def run(
        self, request: Request | Part, bounds: Bounds, report: Report
    ) -> Outcome | PartMade | NoAnswer:
        """Send the request and watch the child until it answers, dies or passes a bound.

        A child that dies before it begins with the request did something for an earlier one, or
        loaded its models: once that is no fault of this job.
        """
        is_second = False
        while True:
            self.start()
            assert self._child is not None
            self._number += 1
            self._has_begun = False
            try:
                outcome = self._await_worker(self._child, report)
                outcome = outcome or self._watch(self._child, request, bounds, report)
                if isinstance(outcome, OutOfMemory):  # a new process has all that there is
                    self.close()
                return outcome
            except EngineLost as lost:
                self.close()
                return OutOfResources(LACKING.format(lacked=lost))
            except (EOFError, OSError):  # OSError: the pipe broke while we wrote
                end = self._died(self._child)
                if self._has_begun or is_second:
                    return end
                is_second = True
            except BaseException:
                self.close()  # it still works on this: the next request must not get its answer
                raise

    def lacking(self) -> str:
        """Why no request can run now; empty where one can. Starts the child where there is none."""
        self.start()
        assert self._child is not None
        return self._child.lacking()

    def tell(self, arriving: Arriving) -> bool:
        """Let the child generate ahead; False where it has died since it was started."""
        if self._child is None or not self._child.is_alive:
            return False
        try:
            self._child.send(self._number, arriving)
        except (OSError, EngineLost):  # it died this moment
            return False
        return True

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _await_worker(self, child: Worker, report: Report) -> Outcome | PartMade | NoAnswer | None:
        """Wait until the worker takes requests; the end of the job where that is too long."""
        give_up = time.monotonic() + JOINING_SECONDS
        while why := child.lacking():
            order = report(None)
            if order.stop:
                return self._kill(End.STOPPED, "the node stops")
            if order.cancel:
                return self._kill(End.CANCELLED, "it had not begun")
            if time.monotonic() > give_up:
                return OutOfResources(LACKING.format(lacked=why))
            if not child.is_alive:
                raise EngineLost(why)
            time.sleep(POLL_SECONDS)
        return None

    def _watch(
        self, child: Worker, request: Request | Part, bounds: Bounds, report: Report
    ) -> Outcome | PartMade | NoAnswer:
        self._deadline = self._now() + LOADING_SECONDS + bounds.seconds
        cancel_by: float | None = None
        paused_at: float | None = None
        child.send(self._number, request)
        while True:
            message = self._receive(child, bounds)
            if message is not None and not isinstance(message, Progress):
                return message
            order = report(message)
            if order.stop:
                return self._kill(End.STOPPED, "the node stops")
            if order.cancel and cancel_by is None:
                cancel_by = self._now() + CANCEL_SECONDS
                child.send(self._number, Cancel())
            paused_at = self._paused(child, paused_at, order)
            if cancel_by is not None and self._now() > cancel_by:
                return self._kill(End.CANCELLED, "the worker did not stop by itself")
            if paused_at is None and self._now() > self._deadline:
                return self._kill(End.TIME_LIMIT, f"over {bounds.seconds / 60:g} minutes")
            if bounds.memory_bytes and (used := child.memory_bytes()) > bounds.memory_bytes:
                return self._kill(End.MEMORY_LIMIT, f"{used / 1e9:.1f} GB used")

    def _paused(self, child: Worker, since: float | None, order: Order) -> float | None:
        """Have the child pause or go on as ordered; since when it pauses, None where it works."""
        if order.pause and since is None:
            child.send(self._number, Pause())
            return self._now()
        if since is not None and not order.pause:
            child.send(self._number, Resume())
            self._deadline += self._now() - since
            return None
        return since

    def _receive(self, child: Worker, bounds: Bounds) -> Progress | Outcome | PartMade | None:
        """The next message about this request; None where there is none for a moment."""
        answer = child.receive(POLL_SECONDS)
        if answer is None:
            return None
        message, number = answer
        assert isinstance(message, Begun | Progress | Outcome | PartMade)
        if number != self._number:
            return None
        if isinstance(message, Begun):  # a new worker loads its models first, on nobody's time
            self._deadline, self._has_begun = self._now() + bounds.seconds, True
            return None
        return message

    def _kill(self, how: End, detail: str) -> NoAnswer:
        self.close()
        logger.warning("worker killed", extra={"worker": self._name, "reason": how})
        return NoAnswer(how, detail)

    def _died(self, child: Worker) -> NoAnswer:
        code = child.exit_code(EXIT_SECONDS)
        self.close()
        logger.warning("worker died", extra={"worker": self._name, "exit_code": code})
        return NoAnswer(End.WORKER_DIED, how_it_ended(code))


def how_it_ended(code: int | None) -> str:
    """An exit code in words: a negative one is the signal that ended the process."""
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # one of those for programs' own use
        return f"ended by signal {-code}"
    return SIGNALS.get(name, "ended by the signal {name}").format(name=name)


def main(requests: Connection, ahead_bytes: int = 0, all_before: bool = False) -> None:
    """Serve requests in the child until the parent closes the pipe; meanwhile generate ahead.

    `all_before`: an answer comes when everything is written, the pictures of the page too.
    """
    give_way()
    share_arenas()
    with contextlib.suppress(OSError):  # of a machine that lacks room: the first job loads them
        _load_models()
    ahead, part_maker = AheadWorker(ahead_bytes), parts.PartMaker()
    while True:
        ahead.work(requests.poll)
        try:
            number, request = requests.recv()
        except EOFError:
            return
        if isinstance(request, Arriving):
            ahead.take(request)
        elif isinstance(request, Part):
            ANSWERS.send(requests, Begun(), number)
            gaps = _drafted(part_maker, request, Orders(requests))
            ANSWERS.send(requests, PartMade(gaps), number)
        elif isinstance(request, Request):  # an order that came after the job had ended is nothing
            ANSWERS.send(requests, Begun(), number)
            later: list[Callable[[], object]] = []
            outcome = _run(number, request, requests, later, ahead.drafts)
            if all_before:
                _do(later)
                later = []
            ANSWERS.send(requests, outcome, number)
            _do(later)


def _drafted(part_maker: parts.PartMaker, part: Part, orders: "Orders") -> int:
    """Draft a part of the request of another worker, which does without what is not made."""
    try:
        return part_maker.make(part, orders.is_cancelled)
    except (Cancelled, FileNotFoundError):  # the series is made
        return 0
    except Exception as error:  # noqa: BLE001 - the job itself meets it too, and says so
        logger.warning("part not drafted", extra={"error": type(error).__name__})
        return 0


def give_way() -> None:
    """Let the parent, which receives and delivers, have the processor before this process.

    Its threads inherit it. SCHED_BATCH: it takes no core from a process that has just woken.
    """
    with contextlib.suppress(OSError):  # a container may forbid it; then it is as before
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    os.nice(max(0, NICENESS - os.nice(0)))  # an actor of Ray has 15 already


def share_arenas() -> None:
    """Have the threads of this process take their memory of a few common arenas.

    Each of its own keeps what others could use: 0.15 GB in a job. Without glibc nothing is changed.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)


def _do(later: Iterable[Callable[[], object]]) -> None:
    """Do what the result of a job that has been answered need not wait for."""
    for work in later:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - the result is on its way; the worker goes on
            logger.warning("previews not written", extra={"error": type(error).__name__})


def _load_models() -> None:
    # torch is loaded here, before the first job waits for it, and in no other process of the node.
    for entry in registry.REGISTERED:
        importlib.import_module(entry.factory.partition(":")[0])
    for part in ("ko", "pr", "sc", "seg", "sr"):  # take two seconds too
        importlib.import_module(f"highdicom.{part}")


class Orders:
    """The orders of the parent as a job takes them between two steps, in whichever thread."""

    def __init__(self, requests: Connection) -> None:
        self._requests = requests
        self._is_cancelled = False
        self._lock = threading.Lock()

    def is_cancelled(self) -> bool:
        """True where the job is to stop; where it is to pause, the answer comes after that."""
        with self._lock:
            is_paused = False
            while not self._is_cancelled and (is_paused or self._requests.poll()):
                order = self._requests.recv()[1]
                is_paused = isinstance(order, Pause)
                self._is_cancelled = isinstance(order, Cancel)
            return self._is_cancelled


def _run(
    number: int,
    request: Request,
    requests: Connection,
    later: list[Callable[[], object]],
    drafts: Drafts,
) -> Outcome:
    def report(progress: Progress) -> None:
        ANSWERS.send(requests, progress, number)

    try:
        intact = checked(request)
        if isinstance(intact, Verdict):
            return intact
        orders = Orders(requests)
        return pipeline.process(
            intact, progress=report, cancelled=orders.is_cancelled, later=later, drafts=drafts
        )
    except Exception as error:  # noqa: BLE001 - the worker loop: a bad job never ends the worker
        if lacked := pipeline.lacking(error):
            return lacked
        frames = "".join(traceback.format_tb(error.__traceback__))
        return Failed(type(error).__name__, "The node's own code raised an exception.", frames)


# The received files of a job are checked before it works on them: they are what was acknowledged.


def checked(request: Request) -> Request | Verdict:
    """The request without damaged versions that an intact one has replaced, or else the verdict.

    What else was received of the series is checked too: a damaged header may have set a slice of
    this stack aside.
    """
    damaged = _damaged((*request.sources, *request.beside))
    if not damaged:
        return request
    for source in damaged:
        logger.warning("received file damaged", extra={"instance_uid": source.instance_uid})
    own = {source.instance_uid for source in request.sources}
    beside = [source for source in request.beside if source.instance_uid not in own]
    lost = (_newest(request.sources) | _newest(beside)) & damaged
    if lost:
        uids = sorted({source.instance_uid for source in lost})
        files = wording.count(len(uids), "received file is", "received files are")
        sentence = DAMAGED_SENTENCE.format(files=files)
        return Verdict(Reason.DAMAGED_FILES, sentence, held=True, record={"damaged": uids})
    return replace(
        request,
        sources=_without(request.sources, damaged),
        beside=_without(request.beside, damaged),
    )


def _damaged(sources: Iterable[Source]) -> frozenset[Source]:
    return frozenset(source for source in sources if source.digest and not _is_intact(source))


def _is_intact(source: Source) -> bool:
    try:
        return received_digest(source.path) == source.digest
    except OSError as error:
        if shortage(error):
            raise  # it says nothing of the file
        return False


def _newest(sources: Iterable[Source]) -> frozenset[Source]:
    """The version of each instance that counts."""
    by_order = sorted(sources, key=lambda source: source.order)
    return frozenset({source.instance_uid: source for source in by_order}.values())


def _without(sources: Iterable[Source], damaged: frozenset[Source]) -> tuple[Source, ...]:
    return tuple(source for source in sources if source not in damaged)
