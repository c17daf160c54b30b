"""The demo: a scanner, the node and a PACS on this machine, a real CT series, and a report."""

import json as json_text
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from node.commands import terminal
from node.demo import pacs, pictures, report, scanner, truth
from node.demo.pacs import MiniPacs
from node.demo.processes import DemoError, NodeChild, alone, stoppable, tail, undisturbed
from node.demo.report import Phase, Story
from node.demo.scanner import Peer, ScannerError
from node.demo.series import Series
from node.demo.settings import AE_TITLE, Settings
from node.demo.telling import Teller
from node.demo.verify import Check, Evidence
from node.demo.verify import verify as verified
from storage.database import Database
from storage.errors import StorageError
from storage.jobs import Queue

DATA = Path(__file__).with_name("data")
# Deadlines, long enough for a slow machine; together under ten minutes.
START_SECONDS, COMPLETE_SECONDS, JOB_SECONDS, DELIVERY_SECONDS = 60.0, 30.0, 300.0, 60.0


@dataclass(frozen=True, eq=False)
class Passage:
    """One series on its way through scanner, node and PACS, and what came of it."""

    received: Series
    derived: Series
    checks: tuple[Check, ...]
    phases: tuple[Phase, ...]
    pacs: str
    model: str


def main(folder: Path, *, console: Console | None = None, json: bool = False) -> int:
    """Run the demo in `folder`; the exit status is 0 only where everything is true.

    With `json` one JSON document goes to standard output, and the telling to standard error.
    """
    if json or console is None:
        console = terminal.console(stderr=json)
    return run(folder, Settings(), console, json=json)


def run(folder: Path, settings: Settings, console: Console, *, json: bool = False) -> int:
    """The demo with settings of its own; ends whatever it started, whatever happens."""
    folder = folder.resolve()
    teller = Teller(console)
    result: dict[str, Any] = {"ok": False, "problem": ""}
    status = 1
    try:
        with stoppable(), alone(folder):
            result = _demonstrate(folder, settings, teller)
            status = 0 if result["ok"] else 1
    except (DemoError, ScannerError, StorageError, OSError) as error:
        result["problem"] = str(error)
        log = getattr(error, "log", None) or folder / "node.log"
        teller.failed(str(error), log, tail(log))
    except KeyboardInterrupt:
        result["problem"] = "stopped"
        teller.note("Stopped.")
    if json:
        sys.stdout.write(json_text.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return status


def _demonstrate(folder: Path, settings: Settings, teller: Teller) -> dict[str, Any]:
    began = time.monotonic()
    teller.title(folder)
    passage = _pass_through(folder, settings, teller)
    with teller.working("Comparing with the slices that were held back, drawing the report"):
        acquired = _acquired(passage.received)
        comparison = truth.compare(passage.received, passage.derived, acquired)
        is_linear = settings.model_used == "linear"
        checks = (*passage.checks, comparison.check(must_gain=not is_linear))
        story = Story(
            at=datetime.now().astimezone(),
            received=passage.received,
            derived=passage.derived,
            acquired=acquired,
            comparison=comparison,
            checks=checks,
            phases=passage.phases,
            model=passage.model,
            pacs=passage.pacs,
            machine=_machine(),
            folder=folder / "derived",
            licence=(DATA / "LICENSE.md").read_text(encoding="utf-8"),
        )
        page = folder / "report.html"
        report.write(story, page)
        picture = pictures.before_after(passage.received, passage.derived)
        pictures.save_small(picture, folder / "before-after.png")
    seconds = time.monotonic() - began
    teller.table(checks)
    log = folder / "node.log"
    teller.verdict(story, page, seconds, tail(log) if story.faults else "")
    return _document(story, page, seconds)


def _pass_through(folder: Path, settings: Settings, teller: Teller) -> Passage:
    """Start the PACS and the node, send, wait, read back; end both, whatever happens."""
    started = ExitStack()
    try:
        mini = pacs.choose(folder / "pacs", settings.pacs, pacs.installed())
        started.callback(mini.stop)
        with teller.working("Starting a PACS"):
            mini.start((AE_TITLE, scanner.AE_TITLE))
        teller.done(f"PACS: {mini.name} listens as {mini.peer.ae_title}, port {mini.peer.port}")
        config = settings.configure(folder / "config.toml", mini.peer)
        with undisturbed():
            node = NodeChild(config, folder / "node.log")
            started.callback(node.child.stop)
        peer = _wait_for_node(node, teller)
        paths = sorted((DATA / "received").glob("*.dcm"))[: settings.slices or None]
        received = Series.read(paths)
        moments = _send(paths, received, (mini.peer, peer), teller)
        moments |= _follow(folder, node, settings, mini, len(paths), teller)
        return _read_back(folder, mini, node, received, moments, settings, teller)
    finally:
        with teller.working("Stopping the node and the PACS"), undisturbed():
            started.close()
        teller.note("The node and the PACS have ended.")


def _wait_for_node(node: NodeChild, teller: Teller) -> Peer:
    with teller.working("Starting the node"):
        listening = node.wait("node listening", START_SECONDS)
        node.wait_until_ready(listening["web_port"], START_SECONDS)
    teller.done(f"Node: {listening['ae_title']} listens on port {listening['port']} and is ready")
    return Peer(listening["ae_title"], listening["port"])


def _send(
    paths: list[Path], received: Series, peers: tuple[Peer, Peer], teller: Teller
) -> dict[str, float]:
    """The scanner sends to the PACS, as it always did, and to the node."""
    to_pacs, to_node = peers
    moments: dict[str, float] = {}
    with teller.counting(f"{scanner.AE_TITLE} sends to {to_pacs.ae_title}", len(paths)) as count:
        scanner.send(paths, to_pacs, count)

    def kept(number: int) -> None:
        moments.setdefault("first instance", time.monotonic())
        count(number)

    with teller.counting(f"{scanner.AE_TITLE} sends to {to_node.ae_title}", len(paths)) as count:
        sent = scanner.send(paths, to_node, kept)
    moments["last instance"] = time.monotonic()
    teller.done(
        f"Scanner: {sent.instances} slices, {received.gap_mm:g} mm apart, "
        f"{sent.bytes / 1e6:.1f} MB in JPEG-LS, kept by the node in {sent.seconds:.1f} s"
    )
    return moments


def _follow(
    folder: Path,
    node: NodeChild,
    settings: Settings,
    mini: MiniPacs,
    received: int,
    teller: Teller,
) -> dict[str, float]:
    """Wait for each step of the node; what it takes from its log are the times alone."""
    with teller.working("The node waits whether more slices come"):
        complete = node.wait("series complete", settings.quiet_seconds + COMPLETE_SECONDS)
        if complete["jobs"] == 0:
            raise DemoError("the series is complete, but no route asks for it", node.child)
        teller.done(f"Complete: no further slice for {settings.quiet_seconds:g} s, job queued")
        job = node.wait("job running", COMPLETE_SECONDS)["job"]
    text = f"The model {settings.model_used} makes the slices between"
    with teller.counting(text, 100, "%") as count, _percent(folder, job) as percent:
        succeeded = node.wait("job succeeded", JOB_SECONDS, _every(0.5, lambda: count(percent())))
    teller.done(f"Model: a derived series of {succeeded['instances']} slices, verified by the node")
    with teller.counting("The node sends to PACS", succeeded["instances"]) as count:
        look = _every(0.3, lambda: count(sum(mini.series().values()) - received))
        node.wait("delivery sent", DELIVERY_SECONDS, look)
    teller.done(f"Delivery: {succeeded['instances']} slices sent to the PACS")
    names = ("series complete", "job queued", "job running", "job succeeded", "delivery sent")
    found = {name: node.find(name) for name in names}
    return {name: entry[0] for name, entry in found.items() if entry is not None}


@contextmanager
def _percent(folder: Path, job: int) -> Iterator[Callable[[], int]]:
    """How far a job is, as every command of the node sees it: in the database."""
    with closing(Database.for_folder(folder / "node")) as database:
        queue = Queue(database, time.time, node="demo", lease_seconds=1.0)  # it only reads
        yield lambda: round(100 * queue.get(job).progress)


def _read_back(
    folder: Path,
    mini: MiniPacs,
    node: NodeChild,
    received: Series,
    moments: Mapping[str, float],
    settings: Settings,
    teller: Teller,
) -> Passage:
    with teller.working("Reading the derived series back from the PACS and checking it"):
        stored = dict(mini.series())
        others = [uid for uid in stored if uid != received.series_uid]
        if not others:
            raise DemoError("the PACS holds no derived series", node.child)
        derived = Series.read(mini.retrieve(others[0], folder / "derived"))
        factor = settings.factor(received.gap_mm)
        found = node.find("job succeeded")
        named = str(found[1].get("derived_series_uid")) if found else ""
        checks = (
            _in_the_pacs(stored, received, len(derived), named),
            *verified(Evidence(received, derived, factor)),
        )
    return Passage(received, derived, checks, _phases(moments), mini.name, _made_by(derived))


def _in_the_pacs(stored: Mapping[str, int], received: Series, derived: int, named: str) -> Check:
    expected = {received.series_uid: len(received), named: derived}
    found = f"{len(stored)} series in the study: {' and '.join(map(str, stored.values()))} slices"
    return Check("The PACS holds both series, nothing else", dict(stored) == expected, found)


def _phases(moments: Mapping[str, float]) -> tuple[Phase, ...]:
    zero = moments["first instance"]
    bars = (
        ("Receive", "the scanner sends, the node keeps", "first instance", "last instance"),
        ("Quiet period", "no further slice", "last instance", "series complete"),
        ("Queue", "until a worker takes the job", "series complete", "job running"),
        ("Model", "predict, derive, verify", "job running", "job succeeded"),
        ("Delivery", "C-STORE to the PACS", "job succeeded", "delivery sent"),
    )
    return tuple(
        Phase(name, words, moments[start] - zero, moments[end] - zero)
        for name, words, start, end in bars
    )


def _acquired(received: Series) -> Series:
    """The slices that were held back, as far as the received ones reach."""
    every = Series.read(sorted((DATA / "acquired").glob("*.dcm")))
    low, high = received.heights_mm[0], received.heights_mm[-1]
    pairs = zip(every.instances, every.heights_mm, strict=True)
    return Series.of([instance for instance, height in pairs if low < height < high])


def _made_by(derived: Series) -> str:
    item = derived.instances[len(derived) // 2].ContributingEquipmentSequence[-1]
    versions = item.get("SoftwareVersions", "")
    text = versions if isinstance(versions, str) else ", ".join(versions)
    return f"{item.get('ManufacturerModelName', '')} {text}".strip()


def _machine() -> str:
    return f"{os.cpu_count()} cores, {platform.machine()}"


def _document(story: Story, page: Path, seconds: float) -> dict[str, Any]:
    comparison = story.comparison
    return {
        "ok": not story.faults,
        "problem": ", ".join(check.name for check in story.faults),
        "report": str(page),
        "derived": str(story.folder),
        "derived_series_uid": story.derived.series_uid,
        "received": len(story.received),
        "slices": len(story.derived),
        "model": story.model,
        "pacs": story.pacs,
        "checks": [vars(check) for check in story.checks],
        "seconds": {phase.name.lower(): round(phase.seconds, 3) for phase in story.phases}
        | {"whole demo": round(seconds, 3)},
        "psnr_db": {
            "generated": round(comparison.generated_db, 3),
            "linear": round(comparison.linear_db, 3),
        }
        if comparison.places
        else {},
    }


def _every(seconds: float, act: Callable[[], None]) -> Callable[[], None]:
    last = time.monotonic()

    def look() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            act()
            last = time.monotonic()

    return look
