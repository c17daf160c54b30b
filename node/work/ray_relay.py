"""The relay, a child of the node, and the Ray actor on the machine where the worker process runs.

Ray hands values on as pickles, which can run anything where they are read. So neither of these two
processes reads what a peer has sent: the worker process does, whose pipe carries plain bytes. They
hand its answers on unread, and only the parent takes them apart, as those of a worker beside it.
"""

import contextlib
import io
import os
import pickle
import shutil
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path, PurePosixPath
from typing import Any

from inference.release import RELEASE
from inference.request import Derived, Request, Source
from node.children import LONGEST_ANSWER_BYTES, Child, leave_signals_to_parent
from node.work.executor import ANSWERS, main
from node.work.ray_executor import (
    ANSWER,
    NEWS,
    NEWS_FORMAT,
    Ended,
    Joined,
    RaySettings,
    Used,
    Waiting,
)

NAMESPACE = "midslice"
RETRY_SECONDS = 5.0  # until it looks again for a cluster, or for a machine with enough to spare
PROBE_SECONDS = 3.0
NEWS_SECONDS = 0.5  # how often a worker that says nothing is asked for its memory
SILENT_SECONDS = 30.0  # of an actor that is asked: the way to it is lost
PROGRESS, PROGRESS_WITHIN = b'"kind": "Progress"', 64  # how such an answer begins
EXIT_SECONDS = 5.0  # from the end of the worker's pipe to that of its process
STOP_SECONDS = 3.0  # for an actor to end its worker; what is left ends with the actor
LOST, OTHER_RELEASE = 75, "machine {machine} has Midslice {theirs}, this node {ours}: install that"
# Read by Ray's own code when it is loaded; the seconds are those after which a head is lost.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_rpc_server_connect_timeout_s": "5",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "15",
}


@dataclass(frozen=True)
class Carried:
    """Files on their way through Ray's object store, by name, with the answer that names them."""

    answer: bytes
    files: tuple[tuple[str, Any], ...] = ()  # a name, a reference to its bytes


class Host:
    """The actor: holds the worker process on its machine, and hands bytes on."""

    def __init__(self, name: str, ahead_bytes: int, carries_files: bool) -> None:
        # A child that is spawned loads the main module of its parent again: here, all of Ray.
        vars(sys.modules["__main__"]).pop("__file__", None)
        self._child = Child(name, main, ahead_bytes, carries_files)
        self._scratch: Path | None = None  # of the files of the job, where they are carried

    def facts(self) -> tuple[str, int, str]:
        """The release here, the process and the machine."""
        assert self._child.pid is not None
        return RELEASE, self._child.pid, socket.gethostname()

    def send(self, order: bytes) -> None:
        """Hand an order of the parent to the worker."""
        with contextlib.suppress(OSError):  # it has ended: `receive` says so
            self._child.pipe.send_bytes(order)

    def send_request(
        self, number: int, request: Request, names: Sequence[str], *files: Any
    ) -> None:
        """Hand over a request whose files were carried here: they are those of `sources`."""
        self._drop()
        self._scratch = Path(tempfile.mkdtemp(prefix="midslice-"))
        paths = {name: self._scratch / str(place) for place, name in enumerate(names)}
        for name, content in zip(names, files, strict=True):
            paths[name].write_bytes(content)
        folder = self._scratch / "result"
        folder.mkdir()
        local = replace(
            request,
            sources=_moved(request.sources, paths, self._scratch),
            beside=_moved(request.beside, paths, self._scratch),
            folder=folder,
        )
        with contextlib.suppress(OSError):
            self._child.pipe.send((number, local))

    def receive(self, seconds: float) -> tuple[list[Carried], int, Ended | None]:
        """The answers of the worker, its memory, and its end.

        Progress, of which there is some for every slice, is gathered meanwhile.
        """
        answers: list[Carried] = []
        until = time.monotonic() + seconds
        try:
            while self._child.pipe.poll(max(0.0, until - time.monotonic())):
                answer = self._child.pipe.recv_bytes(LONGEST_ANSWER_BYTES)
                answers.append(self._answer(answer))
                if PROGRESS not in answer[:PROGRESS_WITHIN]:
                    until = 0.0
        except (EOFError, OSError):
            return answers, 0, Ended(self._child.exit_code(EXIT_SECONDS))
        return answers, self._child.memory_bytes(), None

    def stop(self) -> None:
        """End the worker at once."""
        self._drop()
        self._child.end()

    def _answer(self, answer: bytes) -> Carried:
        if self._scratch is None or not isinstance(ANSWERS.read(answer)[0], Derived):
            return Carried(answer)
        import ray

        found = written(self._scratch / "result")
        files = tuple((name, ray.put(content)) for name, content in found)
        self._drop()
        return Carried(answer, files)

    def _drop(self) -> None:
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None


def written(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The plain files below a folder of a worker: a link might lead out of it."""
    for root, _, names, descriptor in os.fwalk(folder, follow_symlinks=False):
        for name in names:
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)
            with os.fdopen(file, "rb") as opened:
                if stat.S_ISREG(os.fstat(file).st_mode):
                    place = Path(root, name).relative_to(folder)
                    yield place.as_posix(), opened.read()


def keep(folder: Path, name: str, content: bytes) -> None:
    """Write a file that was carried here to disk; its name may not lead out of the folder."""
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts:
        raise OSError(f"a worker has sent a file whose name leads out of its folder: {name!r}")
    target = folder / place
    target.parent.mkdir(exist_ok=True)
    with target.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _moved(sources: Sequence[Source], paths: dict[str, Path], scratch: Path) -> tuple[Source, ...]:
    missing = scratch / "missing"  # there is no such file: the worker says which one is lost
    return tuple(replace(it, path=paths.get(it.path.as_posix(), missing)) for it in sources)


def relay(pipe: Connection, name: str, cluster: RaySettings, ahead_bytes: int) -> None:
    """Hand orders of the parent to a worker in the cluster, and its answers back."""
    os.environ.update(ENVIRONMENT | os.environ)
    link = Link(pipe, cluster)
    link.connect()
    link.host(name, ahead_bytes)
    threading.Thread(target=link.hand_answers_on, name="answers", daemon=True).start()
    link.hand_orders_on()


class Link:
    """The two directions between the pipe of the parent and the actor."""

    def __init__(self, pipe: Connection, cluster: RaySettings) -> None:
        self._pipe = pipe
        self._cluster = cluster
        self._sending = threading.Lock()
        self._folder: Path | None = None  # of the request, where its files are carried
        self._early: list[bytes] = []  # orders that came before there was a worker
        self._actor: Any = None

    def connect(self) -> None:
        """Join the cluster, as soon as there is one."""
        import ray

        while True:
            try:
                probe(self._cluster.address)
                ray.init(
                    address=self._cluster.address,
                    namespace=NAMESPACE,
                    configure_logging=False,
                    log_to_driver=False,
                )
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                self._say(Waiting(unreachable(self._cluster.address, error)))
                self._pause()
            else:
                leave_signals_to_parent()  # Ray has taken them
                return

    def host(self, name: str, ahead_bytes: int) -> None:
        """Have an actor made, as soon as a machine has what it takes, and of the same release."""
        import ray

        wanted = self._cluster
        options: dict[str, Any] = {
            "num_cpus": wanted.cpus,
            "num_gpus": wanted.gpus,
            "memory": wanted.memory_bytes,
            "max_restarts": 0,
            "max_concurrency": 3,  # orders and the end are taken while one waits for answers
            "scheduling_strategy": "SPREAD",
        }
        kind: Any = ray.remote(Host)
        self._actor = kind.options(**options).remote(name, ahead_bytes, wanted.carries_files)
        facts = self._actor.facts.remote()
        while True:
            try:
                release, pid, machine = ray.get(facts, timeout=RETRY_SECONDS)
            except ray.exceptions.GetTimeoutError:
                if not _is_member():  # nobody looks for a machine any more
                    os._exit(LOST)
                self._say(Waiting(no_machine(wanted)))
                self._read_early()
            except ray.exceptions.RayError as error:
                self._say(Waiting(f"no worker could be started: {_first_line(error)}"))
                self._pause()
                os._exit(LOST)
            else:
                break
        while release != RELEASE:
            self._say(Waiting(OTHER_RELEASE.format(machine=machine, theirs=release, ours=RELEASE)))
            self._pause()
        self._say(Joined(pid, machine))

    def hand_answers_on(self) -> None:
        """Send what the worker answers to the parent, until the worker ends."""
        try:
            self._hand_answers_on()
        except OSError:  # the parent has closed the pipe, or a file could not be kept
            os._exit(LOST)

    def _hand_answers_on(self) -> None:
        used, heard_at = -1, time.monotonic()
        while True:
            heard = self._hear()
            if heard is None:
                if time.monotonic() - heard_at > SILENT_SECONDS:
                    os._exit(LOST)
                time.sleep(NEWS_SECONDS)
                continue
            answers, memory_bytes, end = heard
            heard_at = time.monotonic()
            for carried in answers:
                self._keep(carried)
                self._write(ANSWER + carried.answer)
            if end is not None:
                self._say(end)
                return
            if memory_bytes != used:
                used = memory_bytes
                self._say(Used(used))

    def _hear(self) -> tuple[list[Carried], int, Ended | None] | None:
        """The news of the actor; None where it cannot be reached for a moment."""
        import ray

        try:
            asked = self._actor.receive.remote(NEWS_SECONDS)
            answers, memory_bytes, end = ray.get(asked, timeout=SILENT_SECONDS)
        except ray.exceptions.ActorUnavailableError:
            return None
        except ray.exceptions.RayActorError:
            if not _is_member():  # the head is gone too: then it is the way
                os._exit(LOST)
            return [], 0, Ended(None)
        except ray.exceptions.RayError:
            os._exit(LOST)
        return answers, memory_bytes, end

    def _keep(self, carried: Carried) -> None:
        """Write the files that came with an answer to the folder of its request."""
        import ray

        for name, reference in carried.files:
            assert self._folder is not None
            keep(self._folder, name, ray.get(reference, timeout=SILENT_SECONDS))

    def hand_orders_on(self) -> None:
        """Send the orders of the parent to the worker, until it closes the pipe or says so."""
        import ray

        while True:
            order = self._early.pop(0) if self._early else self._pipe.recv_bytes()
            if not order:
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.get(self._actor.stop.remote(), timeout=STOP_SECONDS)
                ray.kill(self._actor)
                os._exit(0)
            if self._cluster.carries_files:
                self._carry(order)
            else:
                self._actor.send.remote(order)

    def _carry(self, order: bytes) -> None:
        """Send an order; the files of a request go with it."""
        import ray

        number, request = pickle.load(io.BytesIO(order))  # noqa: S301 - of the parent
        if not isinstance(request, Request):
            self._actor.send.remote(order)
            return
        self._folder = request.folder
        paths = {source.path.as_posix() for source in (*request.sources, *request.beside)}
        names = sorted(path for path in paths if Path(path).is_file())
        files = [ray.put(Path(name).read_bytes()) for name in names]
        self._actor.send_request.remote(number, request, names, *files)

    def _pause(self) -> None:
        """Wait before the next try; end where the parent says so."""
        time.sleep(RETRY_SECONDS)
        self._read_early()

    def _read_early(self) -> None:
        """Keep the orders that come before there is a worker; end where the parent says so."""
        while self._pipe.poll():
            self._early.append(self._pipe.recv_bytes())
            if not self._early[-1]:
                os._exit(0)

    def _say(self, news: object) -> None:
        self._write(NEWS + NEWS_FORMAT.written(news))

    def _write(self, message: bytes) -> None:
        with self._sending:
            self._pipe.send_bytes(message)


def _is_member() -> bool:
    """False where the head is another one, which does not know this process.

    Ray itself ends the process where it sees that, or where no head comes back.
    """
    import ray

    ask_head: Any = ray.nodes
    own = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == own and node["Alive"] for node in ask_head())


def probe(address: str) -> None:
    """Raise OSError where nobody listens there: Ray would try for 40 seconds before it says so."""
    host, _, port = address.rpartition(":")
    if host:
        socket.create_connection((host, int(port)), PROBE_SECONDS).close()


def unreachable(address: str, error: Exception) -> str:
    """Why there is no cluster, and what to do."""
    return (
        f'no Ray cluster answers at "{address}" ({_first_line(error)}); start it with '
        "`ray start --head` there, and on this machine with `ray start --address=HEAD:6379`"
    )


def no_machine(wanted: RaySettings) -> str:
    """Why no worker starts, and what to do."""
    return (
        f"no machine of the cluster has started a worker yet: it takes {wanted.cpus:g} processors, "
        f"{wanted.gpus:g} GPUs and {wanted.memory_bytes / 1e9:.1f} GB that are free; `ray status` "
        "shows what is taken"
    )


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
