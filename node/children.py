"""Children of the parent: processes that it spawns, and threads that work in a loop.

A child is made with spawn, spoken to over a pipe, bounded, and ends with its parent; its answers
are values that can run nothing. A worker loop takes up one piece of work after the other until it
is drained.
"""

import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import psutil
import pydantic_core
from pydantic import ConfigDict, TypeAdapter

AT_ONCE = 0.0
IDLE_SECONDS = 0.5  # how soon new work is seen by a thread that waits
LONGEST_ANSWER_BYTES = 256 << 20
PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM)
PAUSE_SECONDS = 5.0  # after something that will not be better at once


@dataclass(frozen=True)
class ResourceLimits:
    """Limits that the kernel keeps; past them the child fails or is killed."""

    memory_bytes: int  # of data; what is only reserved, as by the arenas of many threads, is none
    cpu_seconds: int = 0  # 0: it is to run for long


CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
WORKERS_SHARE = 0.8  # of the memory


def machine_memory_bytes(limit: Path = CGROUP_LIMIT) -> int:
    """The memory of this machine, or of the container where that has less."""
    total = int(psutil.virtual_memory().total)
    try:
        return min(total, int(limit.read_text()))
    except (OSError, ValueError):  # no container, or one without a limit: "max"
        return total


def worker_memory_bytes(configured_gb: float, workers: int) -> int:
    """The most that one worker may use; where nothing is configured, its share of the memory."""
    return int(configured_gb * 1e9) or int(WORKERS_SHARE * machine_memory_bytes() / workers)


# By default the library keeps 16,000 strings of what was read; a digest or a UID comes but once.
CACHED = ConfigDict(cache_strings="keys")


class AnswerFormat:
    """The JSON of one of these dataclasses: how a child answers.

    A child decodes what peers have sent; the pickle of one that was taken over would run in its
    parent.
    """

    def __init__(self, *kinds: type) -> None:
        # In a tuple: a dataclass alone takes no configuration.
        self._adapters: dict[str, TypeAdapter[tuple[object]]] = {
            kind.__name__: TypeAdapter(cast(Any, tuple)[kind], config=CACHED) for kind in kinds
        }

    def send(self, pipe: Connection, answer: object, number: int = 0) -> None:
        """Send an answer, to the request of that number."""
        pipe.send_bytes(self.written(answer, number))

    def receive(self, pipe: Connection) -> tuple[object, int]:
        """The next answer, and the number of its request; OSError where it is none of ours."""
        return self.read(pipe.recv_bytes(LONGEST_ANSWER_BYTES))

    def written(self, answer: object, number: int = 0) -> bytes:
        """An answer as bytes."""
        kind = type(answer).__name__
        value = self._adapters[kind].dump_json((answer,)).decode()
        return f'{{"number": {number}, "kind": "{kind}", "value": {value}}}'.encode()

    def read(self, written: bytes) -> tuple[object, int]:
        """The answer that these bytes are; OSError where they are none of ours."""
        try:
            document = pydantic_core.from_json(written, cache_strings="keys")
            adapter = self._adapters[document["kind"]]
            value = pydantic_core.to_json(document["value"])
            (answer,) = adapter.validate_json(value)
            return answer, int(document["number"])
        except (ValueError, TypeError, LookupError) as error:
            raise OSError("a child has sent no answer that its parent knows") from error


class Child:
    """A process that runs `main(pipe, *arguments)`; it ends with this one, even by SIGKILL."""

    def __init__(
        self,
        name: str,
        main: Callable[..., None],
        *arguments: object,
        daemon: bool = True,  # such a child may have none of its own
        limits: ResourceLimits | None = None,
    ) -> None:
        context = multiprocessing.get_context("spawn")  # forked after a torch convolution, it hung
        self.pipe, their_pipe = context.Pipe()
        their_lifeline, self._lifeline = context.Pipe(duplex=False)
        inside = (their_pipe, their_lifeline, limits, main, arguments)
        self._process = context.Process(target=_live, args=inside, name=name, daemon=daemon)
        # It inherits the mask: a signal to the group that comes while it begins waits for its word.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS_SIGNALS)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        their_pipe.close()
        their_lifeline.close()

    @property
    def pid(self) -> int | None:
        """The process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """True until it has ended."""
        return self._process.is_alive()

    def exit_code(self, seconds: float = 0.0) -> int | None:
        """The exit code, a negative one for a signal; None where it has not ended by then."""
        self._process.join(seconds)
        return self._process.exitcode

    def memory_bytes(self) -> int:
        """The memory that it uses; 0 where it has ended this moment."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.NoSuchProcess:
            return 0

    def end(self, seconds: float = 0.0) -> None:
        """Wait so long for it to end by itself, then kill it; nothing of it is left."""
        self._process.join(seconds)
        self._process.kill()
        self._process.join()
        self.pipe.close()
        self._lifeline.close()


def leave_signals_to_parent() -> None:
    """Ignore Ctrl-C and SIGTERM, which reach the whole group: the parent says when to stop."""
    for number in PARENTS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PARENTS_SIGNALS)


def _live(
    pipe: Connection,
    lifeline: Connection,
    limits: ResourceLimits | None,
    main: Callable[..., None],
    arguments: tuple[object, ...],
) -> None:
    leave_signals_to_parent()
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    if limits is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limits.memory_bytes, limits.memory_bytes))
        if limits.cpu_seconds:
            cpu_seconds = (limits.cpu_seconds, limits.cpu_seconds + 5)
            resource.setrlimit(resource.RLIMIT_CPU, cpu_seconds)
    main(pipe, *arguments)


def _die_with_parent(lifeline: Connection) -> None:
    # Nothing is ever sent on this pipe: it ends when the parent does, whatever is done meanwhile.
    try:
        lifeline.recv()
    except (EOFError, OSError):
        os._exit(0)


class WorkerLoop:
    """A thread that a bad piece of work never ends: that would stop the department.

    `work_next` claims one piece and does it; it returns the seconds to wait before the next.
    `log_failure` is called where it raises: the queue could not be read.
    """

    def __init__(
        self, name: str, work_next: Callable[[], float], log_failure: Callable[[], None]
    ) -> None:
        self.name = name
        self._work_next = work_next
        self._log_failure = log_failure
        self._draining = threading.Event()
        self._awake = threading.Event()  # there is work: the next look is now
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def is_working(self) -> bool:
        """True while its thread is alive."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def drain(self) -> None:
        """Claim nothing further; what is under way goes on."""
        self._draining.set()
        self._awake.set()

    def wake(self) -> None:
        """Have it look for work now; after something that failed it waits as long all the same."""
        self._awake.set()

    def join(self, seconds: float) -> None:
        """Wait so long for the thread to end."""
        if self.is_working:
            self._thread.join(max(0.0, seconds))

    def _run(self) -> None:
        while not self._draining.is_set():
            self._awake.clear()  # before it looks: what comes meanwhile is seen by another look
            try:
                seconds = self._work_next()
            except Exception:  # noqa: BLE001 - a database that is away for a while ends no thread
                self._log_failure()
                seconds = PAUSE_SECONDS
            (self._awake if seconds <= IDLE_SECONDS else self._draining).wait(seconds)


def wait_for(loops: Iterable[WorkerLoop], seconds: float) -> bool:
    """Wait so long for all of them; True where none works any more."""
    loops = tuple(loops)
    deadline = time.monotonic() + seconds
    for loop in loops:
        loop.join(deadline - time.monotonic())
    return not any(loop.is_working for loop in loops)
