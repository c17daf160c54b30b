"""A real node as a child process: configuration in, log events out."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from node.demo.peers import DemoError, NodeChild, midslice_program
from node.web import access
from storage.database import Database
from storage.records import Role
from storage.site import people
from tests import privacy

MIDSLICE = midslice_program()
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
    "ahead_gb": 1.0,
    "min_free_gb": 0.1,
    "keep_days": 7.0,
    "direct_receive": True,
    "database": "",
}

CONFIG = """
[node]
ae_title = "MIDSLICE"
host = "127.0.0.1"
port = {port}
shutdown_seconds = {shutdown_seconds}
timezone = "Europe/Berlin"
direct_receive = {direct_receive}

[storage]
folder = "var"
database = "{database}"
min_free_gb = {min_free_gb}
keep_days = {keep_days}

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
ahead_gb = {ahead_gb}

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
presentation_state = {presentation_state}
"""


def route(
    *,
    model: str = "linear",
    factor: int = 2,
    destinations: Sequence[str] = ("pacs",),
    more: str = "",
    presentation_state: bool = False,  # tests of the way of a series count its slices alone
) -> str:
    """The text of one route."""
    text = ROUTE.format(
        model=model,
        factor=factor,
        destinations=json.dumps(list(destinations)),
        presentation_state=json.dumps(presentation_state),
    )
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
        self.port = port
        self.program = MIDSLICE  # or one that starts it in another way
        self.environment: dict[str, str] = {}
        self.web_port = 0
        self._node: NodeChild | None = None
        self._hurry = folder / "hurry"
        self.configure(*parts, **settings)

    def configure(self, *parts: str, **settings: object) -> None:
        """Write config.toml."""
        values = DEFAULTS | {"port": self.port} | settings
        values["direct_receive"] = json.dumps(values["direct_receive"])
        self.database = str(values["database"])
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.toml").write_text(CONFIG.format(**values) + "".join(parts))

    def launch(self) -> None:
        """Start it; whoever calls waits for what it is to do."""
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        environment["MIDSLICE_TEST_HURRY"] = str(self._hurry)
        self._node = NodeChild(
            self.folder / "config.toml",
            program=self.program,
            bad_ends=(),
            environment=environment | self.environment,
            stop_seconds=40.0,
        )

    def start(self) -> "NodeProcess":
        """Start and wait until it listens."""
        self.launch()
        listening = self.event("node listening", seconds=START_SECONDS)
        self.port, self.web_port = listening["port"], listening["web_port"]
        return self

    @cached_property
    def proof(self) -> dict[str, str]:
        """The headers of a program that may do everything by REST."""
        return self.program_of("script", Role.ADMINISTRATOR)

    def program_of(self, name: str, role: Role) -> dict[str, str]:
        """The headers of a program with a token of this name."""
        text = access.new_token()
        with closing(Database.for_folder(self.folder / "var", self.database)) as database:
            digest = access.digest(text)
            people.add_token(database, time.time(), "test", name, role, digest)
        return {"Authorization": f"Bearer {text}"}

    def slow_down(self) -> None:
        """From now on the slow model takes its time again, as it does at first."""
        self._hurry.unlink(missing_ok=True)

    def hurry(self) -> None:
        """From now on the slow model is as quick as any: what it was slow for has happened."""
        self._hurry.touch()

    @property
    def node(self) -> NodeChild:
        """The process that was started last."""
        assert self._node is not None, "it was never started"
        return self._node

    @property
    def events(self) -> list[dict[str, Any]]:
        """Its log events so far."""
        return self.node.events

    @property
    def lines(self) -> list[str]:
        """Everything that it has printed so far."""
        return self.node.child.lines

    @property
    def pid(self) -> int:
        """Of the parent."""
        return self.node.child.pid

    def event(self, name: str, *, count: int = 1, seconds: float = 60.0, **values: Any) -> Any:
        """The `count`-th log event of that name with those values, waited for."""
        try:
            return self.node.wait(name, seconds, count=count, **values)
        except DemoError as error:
            raise AssertionError(f"{error} {values} x{count}\n{self.output()}") from None

    def found(self, name: str, **values: Any) -> list[dict[str, Any]]:
        """The log events so far of that name with those values."""
        return self.node.find(name, **values)

    def terminate(self) -> None:
        """Ask for a clean stop."""
        self.node.child.signal(signal.SIGTERM)

    def hang_up(self) -> None:
        """Ask it to read its configuration again."""
        self.node.child.signal(signal.SIGHUP)

    def kill(self) -> None:
        """The parent dies, and its children after it."""
        self.node.child.signal(signal.SIGKILL)
        self.wait(20.0)

    def kill_all(self) -> None:
        """The power fails: all of its processes die at once."""
        os.killpg(self.pid, signal.SIGKILL)  # it leads a session of its own
        self.wait(20.0)

    def wait(self, seconds: float = 60.0) -> int:
        """The exit status, waited for."""
        try:
            return self.node.child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the node did not stop\n{self.output()}") from None

    def close(self) -> None:
        """End it in every case."""
        if self._node is not None:
            self._node.child.stop()

    def cli(self, *arguments: str) -> Any:
        """The document of a command with --json on this node's configuration."""
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
        """The URL of its database, to look at the rows from outside."""
        if self.database:
            return self.database.replace("postgresql://", "postgresql+psycopg://", 1)
        return f"sqlite:///{self.folder / 'var' / 'midslice.db'}"

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Look at its rows from outside; of SQLite only."""
        with closing(sqlite3.connect(self.folder / "var" / "midslice.db")) as database:
            return database.execute(query).fetchall()

    def jobs(self) -> list[dict[str, Any]]:
        """The queue as `midslice jobs --json` shows it."""
        answer = self.cli("jobs")
        return answer["jobs"] if isinstance(answer, dict) else answer

    def output(self) -> str:
        """The end of what it printed."""
        return "" if self._node is None else self._node.child.output()


@contextlib.contextmanager
def running(node: NodeProcess) -> Iterator[NodeProcess]:
    """The node, started, and stopped in every case; nothing that it leaves names a patient."""
    try:
        yield node.start()
    finally:
        node.close()
    privacy.check(node.lines, node.folder / "var")
