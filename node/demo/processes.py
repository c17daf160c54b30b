"""The processes that the demo starts, each ended by its id; and what the node says in its log."""

import contextlib
import fcntl
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

STOP_SECONDS = 45.0
POLL_SECONDS = 0.05
TAIL_LINES = 25
STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
MADE = ("node", "pacs", "derived", "config.toml", "node.log", "report.html", "before-after.png")
BAD_ENDS = ("job refused", "job held", "job failed", "job cancelled", "delivery held")


class DemoError(Exception):
    """The demo cannot go on; the text says why, `log` where more is written."""

    def __init__(self, problem: str, child: "Child | None" = None) -> None:
        super().__init__(problem)
        self.log = child.log if child is not None else None


class Child:
    """A program that writes its output to a file of its own; `heard` gets each line."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        heard: Callable[[str], None] | None = None,
        *,
        patience_seconds: float = STOP_SECONDS,
    ) -> None:
        self.name = name
        self._patience = patience_seconds
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        # A session of its own: Ctrl-C reaches the demo alone, which ends its children in order.
        self._process = subprocess.Popen(  # noqa: S603 - our own programs with our own arguments
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            start_new_session=True,
            text=True,
            errors="replace",
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout, heard), name=f"{name} log", daemon=True
        )
        self._reader.start()

    @property
    def is_alive(self) -> bool:
        """False once it has ended."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def stop(self) -> int:
        """Ask it to end, make it end where it does not; returns its exit status."""
        if self.is_alive:
            self._process.terminate()
            try:
                self._process.wait(self._patience)
            except subprocess.TimeoutExpired:
                self._process.kill()
        status = self._process.wait()
        self._reader.join(self._patience)
        return status

    def _read(self, lines: IO[str], heard: Callable[[str], None] | None) -> None:
        with self.log.open("w") as file, lines:
            for line in lines:
                file.write(line)
                file.flush()
                if heard is not None:
                    heard(line)


class NodeChild:
    """`midslice serve`, as a user would start it."""

    def __init__(self, config: Path, log: Path, program: Path | None = None) -> None:
        self._events: list[tuple[float, dict[str, Any]]] = []  # (when it was read, event)
        command = [str(program or _midslice()), "serve", "--config", str(config)]
        self.child = Child("node", command, log, self._heard)

    def wait(self, event: str, seconds: float, look: Callable[[], None] | None = None) -> Any:
        """The first log event of that name; raises where the node says that it went wrong."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.find(event)
            if found is not None:
                return found[1]
            self._complain(event)
            if time.monotonic() > deadline:
                raise DemoError(f"not within {seconds:g} s: {event}", self.child)
            if look is not None:
                look()
            time.sleep(POLL_SECONDS)

    def find(self, event: str) -> tuple[float, Mapping[str, Any]] | None:
        """When the first log event of that name was read, and what it says."""
        return next((entry for entry in list(self._events) if entry[1].get("event") == event), None)

    def is_ready(self, web_port: int) -> bool:
        """What a load balancer would ask: GET /readyz."""
        connection = http.client.HTTPConnection("127.0.0.1", web_port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def wait_until_ready(self, web_port: int, seconds: float) -> None:
        """Wait for /readyz."""
        deadline = time.monotonic() + seconds
        while not self.is_ready(web_port):
            self._complain("ready")
            if time.monotonic() > deadline:
                raise DemoError(f"the node is not ready after {seconds:g} s", self.child)
            time.sleep(POLL_SECONDS)

    def _complain(self, awaited: str) -> None:
        for name in BAD_ENDS:
            if (found := self.find(name)) is not None:
                reason = found[1].get("reason", "")
                raise DemoError(f"the node says: {name} {reason}".rstrip(), self.child)
        if not self.child.is_alive:
            raise DemoError(f"the node ended by itself before: {awaited}", self.child)

    def _heard(self, line: str) -> None:
        with contextlib.suppress(json.JSONDecodeError):
            event = json.loads(line)
            if isinstance(event, dict):
                self._events.append((time.monotonic(), event))


def tail(log: Path) -> str:
    """The end of a log file."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-TAIL_LINES:])


def _midslice() -> Path:
    beside = Path(sys.executable).with_name("midslice")
    if beside.exists():
        return beside
    found = shutil.which("midslice")
    if found is None:
        raise DemoError(f"no command midslice beside {sys.executable}: run make setup")
    return Path(found)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep the folder for this run, without what an earlier one left there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"another demo runs in {folder}") from None
        for name in MADE:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        yield


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and a closed terminal end the demo as Ctrl-C does: in order."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {n: signal.signal(n, stop) for n in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Nothing interrupts what is within; a signal that came meanwhile is raised at the end.

    Around the start of a child, so that none runs that nobody knows; and around the end of all.
    """
    came: list[int] = []
    before = {n: signal.signal(n, lambda number, _: came.append(number)) for n in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])
