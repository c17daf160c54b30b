"""The demo: a scanner, the node and a PACS on this machine, a real series, and a report."""

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from node.commands import terminal
from node.demo import objects, peers
from node.demo.exhibits import DATA, EXHIBITS, Exhibit
from node.demo.objects import ObjectsResult
from node.demo.peers import (
    SCANNER_AE_TITLE,
    DemoError,
    DicomAddress,
    NodeChild,
    Pacs,
    exclusive,
    signals_deferred,
    stopped_by_signals,
    tail,
)
from node.demo.report import DemoResult, TimelinePhase, compare
from node.second_opinion import Check, ImageSeries, models, verify
from storage.database import Database
from storage.errors import StorageError
from storage.jobs import Queue
from storage.leases import Holder

RECEIVED = DATA / "received"
# Deadlines, long enough for a slow machine; together under ten minutes.
START_SECONDS, COMPLETE_SECONDS, JOB_SECONDS, DELIVERY_SECONDS = 60.0, 30.0, 300.0, 60.0
NODE_AE_TITLE = "MIDSLICE"

CONFIG = """\
# Written by the demo. What each key means stands in the config.toml of the product.
[node]
ae_title = "{node}"
host = "127.0.0.1"
port = 0
allowed_ae_titles = ["{scanner}"]

[storage]
folder = "node"
min_free_gb = 0.2

[completion]
quiet_seconds = {settings.quiet_seconds}

[delivery]
retry_seconds = [1.0, 5.0]

[web]
port = 0

[[destination]]
name = "pacs"
ae_title = "{pacs.ae_title}"
host = "{pacs.host}"
port = {pacs.port}

[[route]]
name = "{settings.model_used}"
model = "{settings.model_used}"
destinations = ["pacs"]
{settings.asked}
"""
# What a route of slices asks besides.
SLICES = """\
match = {{ Modality = "CT", ImageType = {{ has = "AXIAL" }}, gap_mm = {{ min = 2.0 }} }}
target_spacing_mm = {0}"""


@dataclass(frozen=True)
class DemoSettings:
    """The parameters of a demo run; the defaults are what people see."""

    model: str = ""  # empty = "midslice" where its weights are, else "linear"
    target_spacing_mm: float = 1.25
    quiet_seconds: float = 2.0
    slices: int = 0  # of the received series, from the feet; 0 = all
    pacs: str = "auto"  # auto, orthanc, built-in

    @property
    def models(self) -> tuple[str, ...]:
        """The models that can be shown."""
        return ("midslice", "linear", *EXHIBITS)

    @property
    def exhibit(self) -> Exhibit | None:
        """The series that a model of objects is shown on; None for a model of slices."""
        return EXHIBITS.get(self.model)

    @property
    def asked(self) -> str:
        """The keys of the route that depend on the model."""
        if self.exhibit is not None:
            return f"match = {self.exhibit.match}"
        return SLICES.format(self.target_spacing_mm)

    @property
    def paths(self) -> list[Path]:
        """The files that the scanner sends."""
        files = self.exhibit.paths if self.exhibit else sorted(RECEIVED.glob("*.dcm"))
        return files[: self.slices or None]

    @property
    def model_used(self) -> str:
        """The model that the route names."""
        weights = files("inference") / "models" / "midslice.safetensors"
        return self.model or ("midslice" if weights.is_file() else "linear")

    def configure(self, path: Path, destination: DicomAddress) -> Path:
        """Write the node's configuration, as a user would."""
        text = CONFIG.format(
            node=NODE_AE_TITLE, scanner=SCANNER_AE_TITLE, settings=self, pacs=destination
        )
        path.write_text(text, encoding="utf-8")
        return path


class Result(Protocol):
    """What a demo has made of its series, as it was read back from the PACS."""

    @property
    def checks(self) -> Sequence[Check]: ...

    @property
    def phases(self) -> Sequence[TimelinePhase]: ...

    @property
    def folder(self) -> Path:
        """The folder with the files that the PACS returned."""
        ...

    def summary(self) -> str:
        """A sentence for the terminal."""
        ...

    def facts(self) -> dict[str, object]:
        """Facts for programs."""
        ...

    def write(self, folder: Path) -> Path:
        """Write the report, a page, and return its path."""
        ...


class DemoConsole:
    """Lines, progress bars and the verdict on one console."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def title(self, folder: Path) -> None:
        """The head: a sentence on what is going to happen."""
        plan = f"A scanner, the node and a PACS on this machine; all of it in {folder}\n"
        self._console.print(Text.assemble(("Midslice demo\n", "bold"), plan))

    def done(self, text: str) -> None:
        self._console.print(Text.assemble(("✓ ", "green"), text), soft_wrap=True)

    def note(self, text: str) -> None:
        self._console.print(Text(text, style="dim"), soft_wrap=True)

    @contextmanager
    def working(self, text: str) -> Iterator[None]:
        """A step whose length nobody knows."""
        with self._console.status(Text(text)):
            yield

    @contextmanager
    def counting(
        self, text: str, total: int, unit: str = "slices"
    ) -> Iterator[Callable[[int], None]]:
        """A step whose length is known; called with how many are done."""
        number = TextColumn("{task.completed:.0f} of {task.total:.0f} {task.fields[unit]}")
        columns = (TextColumn("  {task.description}"), BarColumn(), number)
        shown = self._console.is_terminal
        with Progress(*columns, console=self._console, transient=True, disable=not shown) as bar:
            task = bar.add_task(text, total=total, unit=unit)
            yield lambda count: bar.update(task, completed=min(count, total))

    def table(self, checks: Sequence[Check]) -> None:
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(width=7)
        table.add_column()
        table.add_column(style="dim", overflow="fold")
        for check in checks:
            word = Text("✓ ok", "green") if check.ok else Text("✕ fault", "bold red")
            table.add_row(word, Text(check.name), Text(check.detail))
        self._console.print()
        self._console.print(table)

    def verdict(self, result: Result, page: Path, seconds: float, log: Path) -> None:
        """The result, and where to look now; with faults the end of the node's `log`."""
        faults = [check for check in result.checks if not check.ok]
        head = (
            f"{len(faults)} of {len(result.checks)} checks failed."
            if faults
            else f"All {len(result.checks)} checks passed, in {seconds:.0f} s."
        )
        lines = [head, "", result.summary(), "", f"Report  {page}", f"Result  {result.folder}"]
        if faults:
            self.failed(head, log)
        self._console.print()
        body = Text("\n".join(lines), overflow="fold")
        self._console.print(Panel(body, border_style="red" if faults else "green", expand=False))

    def failed(self, problem: str, log: Path) -> None:
        """The problem, and the end of the log that may say why."""
        self._console.print()
        self._console.print(Text(f"✕ {problem}", style="bold red"), soft_wrap=True)
        if end := tail(log):
            self._console.print(Text(f"The end of {log}:", style="dim"), soft_wrap=True)
            self._console.print(Text(end), soft_wrap=True)


def run(folder: Path, settings: DemoSettings, console: Console, *, json: bool = False) -> int:
    """Run the demo in `folder`; the exit status is 0 only where everything is true.

    It ends whatever it started, whatever happens. With `json` one document goes to standard output.
    """
    folder = folder.resolve()
    screen = DemoConsole(console)
    document: dict[str, Any] = {"ok": False, "problem": ""}
    status = 1
    try:
        with stopped_by_signals(), exclusive(folder):
            document = _demonstrate(folder, settings, screen)
            status = 0 if document["ok"] else 1
    except (DemoError, StorageError, OSError) as error:
        document["problem"] = str(error)
        screen.failed(str(error), getattr(error, "log", None) or folder / "node.log")
    except KeyboardInterrupt:
        document["problem"] = "stopped"
        screen.note("Stopped.")
    if json:
        terminal.print_json(document)
    return status


def _demonstrate(folder: Path, settings: DemoSettings, screen: DemoConsole) -> dict[str, Any]:
    began = time.monotonic()
    screen.title(folder)
    result = _pass_through(folder, settings, screen)
    with screen.working("Drawing the report"):
        page = result.write(folder)
    seconds = time.monotonic() - began
    screen.table(result.checks)
    screen.verdict(result, page, seconds, folder / "node.log")
    return {
        "ok": not any(not check.ok for check in result.checks),
        "problem": ", ".join(check.name for check in result.checks if not check.ok),
        "report": str(page),
        "checks": [vars(check) for check in result.checks],
        "seconds": {phase.name.lower(): round(phase.seconds, 3) for phase in result.phases}
        | {"whole demo": round(seconds, 3)},
        **result.facts(),
    }


def _pass_through(folder: Path, settings: DemoSettings, screen: DemoConsole) -> Result:
    """Start the PACS and the node, send, wait, read back; end both, whatever happens."""
    started = ExitStack()
    try:
        pacs = peers.choose_pacs(folder / "pacs", settings.pacs, peers.orthanc_program())
        started.callback(pacs.stop)
        with screen.working("Starting a PACS"):
            pacs.start((NODE_AE_TITLE, SCANNER_AE_TITLE))
        to_pacs = pacs.address
        screen.done(f"PACS: {pacs.name} listens as {to_pacs.ae_title}, port {to_pacs.port}")
        config = settings.configure(folder / "config.toml", to_pacs)
        with signals_deferred():
            node = NodeChild(config, log=folder / "node.log")
            started.callback(node.child.stop)
        site = _RunningDemo(folder, settings, screen, pacs, node)
        to_node = site.wait_for_node()
        moments = site.send(to_pacs, to_node)
        site.follow()
        moments |= node.first_read
        return site.objects(moments) if settings.exhibit else site.slices(moments)
    finally:
        with screen.working("Stopping the node and the PACS"), signals_deferred():
            started.close()
        screen.note("The node and the PACS have ended.")


@dataclass(frozen=True, eq=False)
class _RunningDemo:
    """A running PACS and a running node, and the series that the scanner sends to them."""

    folder: Path
    settings: DemoSettings
    screen: DemoConsole
    pacs: Pacs
    node: NodeChild

    @cached_property
    def received(self) -> ImageSeries:
        return ImageSeries.read(self.settings.paths)

    def wait_for_node(self) -> DicomAddress:
        with self.screen.working("Starting the node"):
            listening = self.node.wait("node listening", START_SECONDS)
            self.node.wait_until_ready(listening["web_port"], START_SECONDS)
        address = DicomAddress(listening["ae_title"], listening["port"])
        self.screen.done(f"Node: {address.ae_title} listens on port {address.port} and is ready")
        return address

    def send(self, to_pacs: DicomAddress, to_node: DicomAddress) -> dict[str, float]:
        """Send to the PACS, as a scanner always did, and to the node; returns when."""
        moments: dict[str, float] = {}
        paths = self.settings.paths
        text = f"{SCANNER_AE_TITLE} sends to"
        with self.screen.counting(f"{text} {to_pacs.ae_title}", len(paths)) as count:
            peers.send(paths, to_pacs, count)

        def stored(number: int) -> None:
            moments.setdefault("first instance", time.monotonic())
            count(number)

        with self.screen.counting(f"{text} {to_node.ae_title}", len(paths)) as count:
            sent = peers.send(paths, to_node, stored)
        moments["last instance"] = time.monotonic()
        self.screen.done(
            f"Scanner: {sent.instances} slices, {self.received.gap_mm:.3g} mm apart, "
            f"{sent.bytes / 1e6:.1f} MB in JPEG-LS, kept by the node in {sent.seconds:.1f} s"
        )
        return moments

    def follow(self) -> None:
        """Wait for each step of the node; what is taken from its log are the times alone."""
        node, screen, quiet_seconds = self.node, self.screen, self.settings.quiet_seconds
        with screen.working("The node waits for further slices"):
            complete = node.wait("series complete", quiet_seconds + COMPLETE_SECONDS)
            if complete["jobs"] == 0:
                raise DemoError("the series is complete, but no route asks for it", node.child)
            screen.done(f"Complete: no further slice for {quiet_seconds:g} s, job queued")
            job = node.wait("job running", COMPLETE_SECONDS)["job"]
        text = f"The model {self.settings.model_used} works"
        with screen.counting(text, 100, "%") as count, _percent(self.folder, job) as percent:
            poll = _every(0.5, lambda: count(percent()))
            files = node.wait("job succeeded", JOB_SECONDS, poll=poll)["instances"]
        screen.done(f"Model: {files} result files, verified by the node")
        with screen.counting("The node sends to PACS", files, "files") as count:
            sent = len(self.settings.paths)
            poll = _every(0.3, lambda: count(sum(self.pacs.series().values()) - sent))
            node.wait("delivery sent", DELIVERY_SECONDS, poll=poll)
        screen.done(f"Delivery: {files} result files sent to the PACS")

    def objects(self, moments: Mapping[str, float]) -> ObjectsResult:
        """Read all objects back from the PACS, and have the second checker judge them."""
        with self.screen.working("Reading the objects back from the PACS and checking them"):
            (succeeded,) = self.node.find("job succeeded")
            assert self.settings.exhibit is not None
            return objects.read_back(
                self.settings.exhibit,
                self.settings.paths,
                self.pacs,
                self.folder / "results",
                record_of(self.folder, int(str(succeeded["job"]))),
                phases_of(moments),
            )

    def slices(self, moments: Mapping[str, float]) -> DemoResult:
        """Read the derived series back from the PACS, check it and compare it."""
        received, is_linear = self.received, self.settings.model_used == "linear"
        with self.screen.working("Reading the derived series back from the PACS and checking it"):
            stored = dict(self.pacs.series())
            (succeeded,) = self.node.find("job succeeded")
            derived_uid = str(succeeded.get("derived_series_uid"))
            if derived_uid not in stored:
                raise DemoError("the PACS holds no derived series", self.node.child)
            paths = peers.retrieve(self.pacs, derived_uid, self.folder / "derived")
            derived = ImageSeries.read(paths)
            acquired = _acquired(received)
            compared = compare(received, derived, acquired)
            expected = {received.series_uid: len(received), derived_uid: len(derived)}
            objects = int(str(succeeded["instances"])) - len(derived)
            checks = (
                _in_the_pacs(stored, expected, objects),
                *verify(received, derived, target_spacing_mm=self.settings.target_spacing_mm),
                compared.check(must_gain=not is_linear),
            )
        return DemoResult(
            at=datetime.now().astimezone(),
            received=received,
            derived=derived,
            acquired=acquired,
            comparison=compared,
            checks=checks,
            phases=phases_of(moments),
            model=", ".join(sorted(models(derived))),
            pacs=self.pacs.name,
            machine=f"{os.cpu_count()} cores, {platform.machine()}",
            folder=self.folder / "derived",
            licence=(DATA / "LICENSE.md").read_text(encoding="utf-8"),
        )


@contextmanager
def _percent(folder: Path, job: int) -> Iterator[Callable[[], int]]:
    """The progress of a job as every command of the node sees it: in the database."""
    with closing(Database.for_folder(folder / "node")) as database:
        queue = Queue(database, Holder("demo", time.time, 1.0))  # it only reads
        yield lambda: round(100 * queue.get(job).progress)


def record_of(folder: Path, job: int) -> Mapping[str, Any]:
    """What the job has written of itself for its page."""
    with closing(Database.for_folder(folder / "node")) as database:
        return Queue(database, Holder("demo", time.time, 1.0)).get(job).record


def _in_the_pacs(stored: Mapping[str, int], expected: Mapping[str, int], objects: int) -> Check:
    """Both series, and as many objects beside them as the job made, each in a series of its own."""
    counts = " and ".join(str(count) for uid, count in stored.items() if uid in expected)
    content = f"{len(stored)} series in the study: {counts} slices, {objects} objects beside them"
    beside = [count for uid, count in stored.items() if uid not in expected]
    ok = expected.items() <= stored.items() and beside == [1] * objects
    return Check("The PACS holds both series and their objects, nothing else", ok, content)


def phases_of(moments: Mapping[str, float]) -> tuple[TimelinePhase, ...]:
    zero = moments["first instance"]
    bars = (
        ("Receive", "the scanner sends, the node keeps", "first instance", "last instance"),
        ("Quiet period", "no further slice", "last instance", "series complete"),
        ("Queue", "until a worker takes the job", "series complete", "job running"),
        ("Model", "predict, derive, verify", "job running", "job succeeded"),
        ("Delivery", "C-STORE to the PACS", "job succeeded", "delivery sent"),
    )
    return tuple(
        TimelinePhase(name, words, moments[start] - zero, moments[end] - zero)
        for name, words, start, end in bars
    )


def _acquired(received: ImageSeries) -> ImageSeries:
    """The slices that were held back, as far as the received ones reach."""
    acquired = ImageSeries.read(sorted((DATA / "acquired").glob("*.dcm")))
    low, high = received.heights_mm[0], received.heights_mm[-1]
    pairs = zip(acquired.slices, acquired.heights_mm, strict=True)
    return ImageSeries.of([slice_ for slice_, height in pairs if low < height < high])


def _every(seconds: float, act: Callable[[], None]) -> Callable[[], None]:
    last = time.monotonic()

    def poll() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            act()
            last = time.monotonic()

    return poll
