"""A real node as a child process: configuration in, log events out."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

MIDSLICE = Path(sys.executable).parent / "midslice"
START_SECONDS = 90.0

T = TypeVar("T")

DEFAULTS: dict[str, object] = {
    "quiet_seconds": 1.0,
    "results_per_study": 100,
    "reruns": 20,
    "shutdown_seconds": 20.0,
    "job_minutes": 5.0,
    "memory_gb": 0.0,
    "workers": 1,
    "min_free_gb": 0.1,
    "database": "",
}

CONFIG = """
[node]
ae_title = "MIDSLICE"
host = "127.0.0.1"
port = {port}
shutdown_seconds = {shutdown_seconds}
timezone = "Europe/Berlin"

[storage]
folder = "var"
database = "{database}"
min_free_gb = {min_free_gb}

[completion]
quiet_seconds = {quiet_seconds}
open_association_seconds = 10.0
results_per_study = {results_per_study}
reruns = {reruns}

[inference]
device = "cpu"
job_minutes = {job_minutes}
memory_gb = {memory_gb}
workers = {workers}

[delivery]
retry_seconds = [0.5, 2.0]

[web]
port = 0
"""

ROUTE = """
[[route]]
name = "ct-slices"
match = {{ Modality = "CT" }}
model = "{model}"
factor = {factor}
destinations = {destinations}
"""


def route(
    *,
    model: str = "linear",
    factor: int = 2,
    destinations: Sequence[str] = ("pacs",),
    more: str = "",
) -> str:
    """The text of one route."""
    text = ROUTE.format(model=model, factor=factor, destinations=json.dumps(list(destinations)))
    return text + more


def destination(name: str, ae_title: str, port: int, more: str = "") -> str:
    """The text of one destination on this machine."""
    lines = f'name = "{name}"\nae_title = "{ae_title}"\nhost = "127.0.0.1"\nport = {port}\n'
    return f"\n[[destination]]\n{lines}{more}"


def wait_for(what: str, ask: Callable[[], T | None], seconds: float = 60.0) -> T:
    """The first true answer of `ask`; fails with `what` when the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := ask():
            return answer
        threading.Event().wait(0.05)
    raise AssertionError(f"not within {seconds:g} s: {what}")


class NodeProcess:
    """`midslice serve` in a folder of its own; its log is kept and shown where a test fails."""

    def __init__(self, folder: Path, *parts: str, port: int = 0, **settings: object) -> None:
        self.folder = folder
        self.events: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self.port = port
        self.web_port = 0
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._hurry = folder / "hurry"
        self.configure(*parts, **settings)

    def configure(self, *parts: str, **settings: object) -> None:
        """Write config.toml."""
        values = DEFAULTS | {"port": self.port} | settings
        self.database = str(values["database"])
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.toml").write_text(CONFIG.format(**values) + "".join(parts))

    def start(self) -> "NodeProcess":
        """Start and wait until it listens."""
        self.events.clear()
        environment = {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONUNBUFFERED": "1"}
        environment["MIDSLICE_TEST_HURRY"] = str(self._hurry)
        self._process = subprocess.Popen(
            [MIDSLICE, "serve", "--config", self.folder / "config.toml"],
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        listening = self.event("node listening", seconds=START_SECONDS)
        self.port, self.web_port = listening["port"], listening["web_port"]
        return self

    def slow_down(self) -> None:
        """From now on the slow model takes its time again, as it does at first."""
        self._hurry.unlink(missing_ok=True)

    def hurry(self) -> None:
        """From now on the slow model is as quick as any: what it was slow for has happened."""
        self._hurry.touch()

    def event(self, name: str, *, count: int = 1, seconds: float = 60.0, **values: Any) -> Any:
        """The `count`-th log event of that name with those values, waited for."""

        def found() -> dict[str, Any] | None:
            hits = self.found(name, **values)
            if len(hits) >= count:
                return hits[count - 1]
            assert self._process is not None
            if self._process.poll() is not None and not self._reader_alive():
                raise AssertionError(f"the node ended before {name!r}\n{self.output()}")
            return None

        try:
            return wait_for(f"event {name!r} {values} x{count}", found, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output()}") from None

    def found(self, name: str, **values: Any) -> list[dict[str, Any]]:
        """The log events so far of that name with those values."""
        return [
            e
            for e in list(self.events)
            if e.get("event") == name and all(e.get(k) == v for k, v in values.items())
        ]

    def terminate(self) -> None:
        """Ask for a clean stop."""
        self._signal(signal.SIGTERM)

    def hang_up(self) -> None:
        """Ask it to read its configuration again."""
        self._signal(signal.SIGHUP)

    def kill(self) -> None:
        """The power fails."""
        self._signal(signal.SIGKILL)
        self.wait(20.0)

    def wait(self, seconds: float = 60.0) -> int:
        """The exit status, waited for."""
        assert self._process is not None
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the node did not stop\n{self.output()}") from None
        self._close_output()
        return status

    def close(self) -> None:
        """End it in every case."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(40.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._close_output()

    def cli(self, *arguments: str) -> Any:
        """What a command answers with --json on this node's configuration."""
        done = subprocess.run(
            [MIDSLICE, *arguments, "--json", "--config", self.folder / "config.toml"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stderr}{done.stdout}"
        return json.loads(done.stdout)

    @property
    def database_url(self) -> str:
        """Where its rows are, for who looks at them from outside."""
        if self.database:
            return self.database.replace("postgresql://", "postgresql+psycopg://", 1)
        return f"sqlite:///{self.folder / 'var' / 'midslice.db'}"

    def jobs(self) -> list[dict[str, Any]]:
        """The queue as `midslice jobs --json` shows it."""
        answer = self.cli("jobs")
        return answer["jobs"] if isinstance(answer, dict) else answer

    def output(self) -> str:
        """The end of what it printed."""
        return "".join(self.lines[-80:])

    @property
    def pid(self) -> int:
        """Of the parent."""
        assert self._process is not None
        return self._process.pid

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def _close_output(self) -> None:
        if self._reader is not None:
            self._reader.join(10.0)  # ends when the last process that holds the pipe does
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()

    def _reader_alive(self) -> bool:
        return self._reader is not None and self._reader.is_alive()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line)
            with contextlib.suppress(json.JSONDecodeError):
                event = json.loads(line)
                if isinstance(event, dict):
                    self.events.append(event)


@contextlib.contextmanager
def running(node: NodeProcess) -> Iterator[NodeProcess]:
    """The node, started, and stopped in every case."""
    try:
        yield node.start()
    finally:
        node.close()
