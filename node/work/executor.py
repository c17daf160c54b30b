"""The executor: runs one request in a worker process that can be killed."""

import importlib
import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Protocol

import psutil

from inference import pipeline, registry
from inference.request import Failed, Outcome, Progress, Request


@dataclass(frozen=True)
class Cancel:
    """The parent asks the worker to stop between two steps."""


def main(requests: Connection, lifeline: Connection) -> None:
    """Serve requests until the parent goes away, whatever the worker is doing then."""
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    _load_models()
    while True:
        try:
            number, request = requests.recv()
        except EOFError:
            return
        if isinstance(request, Request):  # a Cancel that came after the job had ended is nothing
            requests.send((number, _run(number, request, requests)))


def _load_models() -> None:
    # torch is loaded here, before the first job waits for it, and in no other process of the node.
    for entry in registry.registered():
        importlib.import_module(entry.factory.partition(":")[0])


def _die_with_parent(lifeline: Connection) -> None:
    # Nothing is ever sent on this pipe: it ends when the parent does, even by SIGKILL.
    try:
        lifeline.recv()
    except (EOFError, OSError):
        os._exit(0)


def _run(number: int, request: Request, requests: Connection) -> Outcome:
    def report(progress: Progress) -> None:
        requests.send((number, progress))

    def cancelled() -> bool:
        return requests.poll() and isinstance(requests.recv()[1], Cancel)

    try:
        return pipeline.process(request, progress=report, cancelled=cancelled)
    except Exception as error:  # noqa: BLE001 - the worker loop: a bad job never ends the worker
        frames = "".join(traceback.format_tb(error.__traceback__))
        return Failed(type(error).__name__, "The node's own code raised an exception.", frames)


logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5  # how often limits and the cancel request are looked at
CANCEL_SECONDS = 20.0  # a worker that does not stop by then is killed
STOP_SECONDS = 5.0

# What ends a process that nobody stopped, for who reads the log of the attempts.
CRASHED = "crashed ({name}), most often in compiled code of a library or for a faulty machine"
SIGNALS = {
    "SIGKILL": "killed by the system ({name}), most often for want of memory",
    "SIGTERM": "ended by somebody, or as the machine stopped ({name})",
    "SIGSEGV": CRASHED,
    "SIGBUS": CRASHED,
    "SIGILL": CRASHED,
    "SIGFPE": CRASHED,
    "SIGABRT": CRASHED,
}


class End(StrEnum):
    """How a worker ended without an answer."""

    WORKER_DIED = "WORKER_DIED"
    TIME_LIMIT = "TIME_LIMIT"
    MEMORY_LIMIT = "MEMORY_LIMIT"
    CANCELLED = "CANCELLED"
    STOPPED = "STOPPED"  # the node stops; nothing is counted against the job


@dataclass(frozen=True)
class Ended:
    """The worker gave no answer."""

    how: End
    detail: str


@dataclass(frozen=True)
class Bounds:
    """What one job may take."""

    seconds: float
    memory_bytes: int = 0  # 0 = no limit of our own


@dataclass(frozen=True)
class Order:
    """What the caller wants now: asked twice a second while the job runs."""

    cancel: bool = False
    stop: bool = False


class Executor(Protocol):
    """Where inference runs; another engine is a second class with these methods."""

    def start(self) -> None:
        """Make ready to run, so that the first job does not wait for it."""
        ...

    def run(
        self, request: Request, bounds: Bounds, look: Callable[[Progress | None], Order]
    ) -> Outcome | Ended:
        """Run one request to its end; `look` hears of progress and says what is wanted."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


class ProcessExecutor:
    """One child process, made with `spawn`: a fork after a torch convolution hung for ever."""

    def __init__(self, name: str, now: Callable[[], float]) -> None:
        self._name = name
        self._now = now
        self._number = 0  # of the request: an answer to an earlier one is nobody's
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._lifeline: Connection | None = None

    @property
    def pid(self) -> int | None:
        """The process that works, for those who watch it."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the child where none is alive."""
        if self._process is not None and self._process.is_alive():
            return
        self.close()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        lifeline, their_lifeline = context.Pipe()
        process = context.Process(
            target=_child, args=(theirs, their_lifeline), name=self._name, daemon=True
        )
        process.start()
        theirs.close()
        their_lifeline.close()
        self._process, self._pipe, self._lifeline = process, ours, lifeline
        logger.info("worker started", extra={"worker": self._name, "pid": process.pid})

    def run(
        self, request: Request, bounds: Bounds, look: Callable[[Progress | None], Order]
    ) -> Outcome | Ended:
        """Send the request and watch the child until it answers, dies or passes a bound."""
        self.start()
        self._number += 1
        try:
            return self._watch(request, bounds, look)
        except (EOFError, OSError):  # OSError: the pipe broke while we wrote
            return self._died()
        except BaseException:
            self._end()  # it still works on this request: the next one must not get its answer
            raise

    def _watch(
        self, request: Request, bounds: Bounds, look: Callable[[Progress | None], Order]
    ) -> Outcome | Ended:
        deadline = self._now() + bounds.seconds
        cancel_by: float | None = None
        self._tell(request)
        while True:
            message = self._hear()
            if message is not None and not isinstance(message, Progress):
                return message
            order = look(message)
            if order.stop:
                return self._kill(End.STOPPED, "the node stops")
            if order.cancel and cancel_by is None:
                cancel_by = self._now() + CANCEL_SECONDS
                self._tell(Cancel())
            if end := self._passed(bounds, deadline, cancel_by):
                return end

    def _tell(self, what: Request | Cancel) -> None:
        assert self._pipe is not None
        self._pipe.send((self._number, what))

    def _hear(self) -> Progress | Outcome | None:
        """The next message about this request; None where there is none for a moment."""
        assert self._pipe is not None
        if not self._pipe.poll(POLL_SECONDS):
            return None
        number, message = self._pipe.recv()
        return message if number == self._number else None

    def close(self) -> None:
        """End the child, gently where it listens."""
        for pipe in (self._pipe, self._lifeline):
            if pipe is not None:
                pipe.close()
        if self._process is not None:
            self._process.join(STOP_SECONDS)
        self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        for pipe in (self._pipe, self._lifeline):
            if pipe is not None:
                pipe.close()
        self._process = self._pipe = self._lifeline = None

    def _passed(self, bounds: Bounds, deadline: float, cancel_by: float | None) -> Ended | None:
        if cancel_by is not None and self._now() > cancel_by:
            return self._kill(End.CANCELLED, "the worker did not stop by itself")
        if self._now() > deadline:
            return self._kill(End.TIME_LIMIT, f"over {bounds.seconds / 60:g} minutes")
        if bounds.memory_bytes and (used := self._memory()) > bounds.memory_bytes:
            return self._kill(End.MEMORY_LIMIT, f"{used / 1e9:.1f} GB used")
        return None

    def _memory(self) -> int:
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.NoSuchProcess:
            return 0  # it died this moment: the pipe will say so

    def _kill(self, how: End, detail: str) -> Ended:
        self._end()
        logger.warning("worker killed", extra={"worker": self._name, "reason": how})
        return Ended(how, detail)

    def _died(self) -> Ended:
        assert self._process is not None
        self._process.join(STOP_SECONDS)
        code = self._process.exitcode
        self._end()
        logger.warning("worker died", extra={"worker": self._name, "exit_code": code})
        return Ended(End.WORKER_DIED, how_it_ended(code))


def how_it_ended(code: int | None) -> str:
    """What an exit code says: a negative one is the signal that ended the process."""
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # one of those for programs' own use
        return f"ended by signal {-code}"
    return SIGNALS.get(name, "ended by the signal {name}").format(name=name)


def _child(requests: Connection, lifeline: Connection) -> None:
    # Ctrl-C and a service manager signal the whole group: the parent decides when a worker stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    main(requests, lifeline)
