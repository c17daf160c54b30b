"""The executor on a Ray cluster: one worker process on some machine of it, watched as one here.

The parent imports no Ray: a child, the relay (`ray_relay.py`), does, and may die with the cluster.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from node.children import LONGEST_ANSWER_BYTES, AnswerFormat, Child
from node.work.executor import ANSWERS, EngineLost, ProcessExecutor

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 5.0  # for the relay to end the worker in order
NO_WAY = "the connection to the Ray cluster at {address} was lost"
# The first byte of what the relay sends: an answer of the worker, handed on unread, or its own.
ANSWER, NEWS = b"a", b"n"


@dataclass(frozen=True)
class RaySettings:
    """The cluster, and what each worker takes of the machine that it is on."""

    address: str
    cpus: float
    gpus: float
    memory_bytes: int
    carries_files: bool = False  # its machines do not have the folder of the node


@dataclass(frozen=True)
class Waiting:
    """The relay has no worker yet, and why."""

    why: str


@dataclass(frozen=True)
class Joined:
    """The relay has a worker: its process, on that machine."""

    pid: int
    machine: str


@dataclass(frozen=True)
class Used:
    """The memory that the worker process uses."""

    memory_bytes: int


@dataclass(frozen=True)
class Ended:
    """The worker process has ended; without an exit code its actor or its machine has."""

    exit_code: int | None


NEWS_FORMAT = AnswerFormat(Waiting, Joined, Used, Ended)


def ray_executor(
    name: str, now: Callable[[], float], cluster: RaySettings, ahead_bytes: int = 0
) -> ProcessExecutor:
    """An executor whose worker is on a machine of the cluster."""
    from node.work.ray_relay import relay  # imports no Ray until it runs, in the child

    start = partial(RayWorker, cluster, relay)
    return ProcessExecutor(name, now, 0 if cluster.carries_files else ahead_bytes, start)


class RayWorker:
    """A worker on a machine of the cluster, as its executor watches it (`executor.Worker`)."""

    def __init__(
        self, cluster: RaySettings, relay: Callable[..., None], name: str, ahead_bytes: int
    ) -> None:
        self._name = name
        self._lost = NO_WAY.format(address=cluster.address)
        self._relay = Child(name, relay, name, cluster, ahead_bytes)
        self._joined: Joined | None = None
        self._ended: Ended | None = None
        self._memory_bytes = 0
        self._why = ""

    @property
    def pid(self) -> int | None:
        """The process that works, on its machine; None until there is one."""
        return self._joined.pid if self._joined is not None else None

    @property
    def is_alive(self) -> bool:
        """True until the relay or the worker has ended."""
        return self._relay.is_alive and self._ended is None

    def lacking(self) -> str:
        """Why there is no worker yet; empty where there is one, or was."""
        try:
            while self._relay.pipe.poll():
                self._next()
        except (EOFError, OSError):
            return self._lost
        if self._joined is not None:  # that it has ended says `receive`
            return ""
        return self._why or "the Ray cluster has not answered yet"

    def send(self, number: int, order: object) -> None:
        """Send an order about the request of that number; EngineLost where nobody takes it."""
        try:
            self._relay.pipe.send((number, order))
        except OSError as error:
            raise EngineLost(self._lost) from error

    def receive(self, seconds: float) -> tuple[object, int] | None:
        """The next answer; EOFError where the worker has ended, EngineLost where the relay has."""
        deadline = time.monotonic() + seconds
        while self._ended is None:
            try:
                if not self._relay.pipe.poll(max(0.0, deadline - time.monotonic())):
                    return None
                answer = self._next()
            except (EOFError, OSError) as error:
                raise EngineLost(self._lost) from error
            if answer is not None:
                return ANSWERS.read(answer)
        raise EOFError

    def memory_bytes(self) -> int:
        """The memory that the worker process used a moment ago."""
        return self._memory_bytes

    def exit_code(self, seconds: float) -> int | None:
        """The exit code of the worker process; None where its actor or its machine went."""
        del seconds
        return self._ended.exit_code if self._ended is not None else None

    def end(self) -> None:
        """End the worker and the relay."""
        try:
            self._relay.pipe.send_bytes(b"")
        except OSError:
            self._relay.end()
        else:
            self._relay.end(CLOSE_SECONDS)

    def _next(self) -> bytes | None:
        """The next answer of the worker as it wrote it; None where it was news of the relay."""
        message = self._relay.pipe.recv_bytes(LONGEST_ANSWER_BYTES)
        if message[:1] == ANSWER:
            return message[1:]
        match NEWS_FORMAT.read(message[1:])[0]:
            case Waiting(why):
                self._why = why
            case Joined() as joined:
                self._joined = joined
                extra = {"worker": self._name, "pid": joined.pid, "machine": joined.machine}
                logger.info("worker joined", extra=extra)
            case Used(memory_bytes):
                self._memory_bytes = memory_bytes
            case Ended() as ended:
                self._ended = ended
        return None
