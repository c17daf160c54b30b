"""How long a series takes through the whole node: from its completion to its last slice stored.

Beside it stands the model alone on the same slices, in the same run: whatever the node does for a
result, and its delivery, is to cost little more than that.
"""

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import psutil
from pydicom import Dataset

from inference import registry
from inference.dataset import read_headers
from inference.geometry import arrange
from inference.model import Limits, Parameters
from inference.pixels import PixelReader
from inference.request import ModelSpec
from inference.runner import Runner, share_cores
from inference.stacks import stacks_of
from inference.volume import Volume
from tests import peers, phantoms, series
from tests.benchmarks import rig
from tests.benchmarks.rig import Receiver, Setting
from tests.benchmarks.table import Bound, RatioBound, Row, Subject
from tests.node_process import NodeProcess, destination, route, running
from tests.scanner import scan

NAME = "end to end"
MODELS = ("linear", "midslice")
SLICES, FACTOR = (34, 61), 4
STEPS = ("reading", "predicting", "writing", "checking")
WARM_UP_SLICES = 3
LIMIT_SECONDS = 300.0
MOST_OF_PREDICTION = 1.15
FIRST_STORED, MOST_PAUSE = "from the last slice to the first one stored", 0.3
SLICES_A_SECOND, QUIET_SECONDS, MOST_AFTER_QUIET = 5.0, 5.0, 2.0  # of a scanner


def _ahead(slices: int) -> str:
    return f"midslice, generating ahead, {slices} slices"


def _scanned(slices: int) -> str:
    return f"slices as they are made, {slices} slices: after the quiet period"


BOUNDS = (
    *(
        RatioBound(NAME, f"midslice, {slices} slices", at_most=MOST_OF_PREDICTION)
        for slices in SLICES
    ),
    *(RatioBound(NAME, _ahead(slices), at_most=MOST_OF_PREDICTION) for slices in SLICES),
    *(Bound(NAME, _scanned(slices), MOST_AFTER_QUIET) for slices in SLICES),
    *(Bound(NAME, f"{FIRST_STORED}, {slices} slices", MOST_PAUSE) for slices in SLICES),
)

Passed = dict[str, float]  # seconds by step; "" = all of them


def measure(setting: Setting) -> Subject:
    """Seconds for series of a real chest, of each step, and of the prediction alone."""
    with contextlib.ExitStack() as stack:
        archive = stack.enter_context(rig.storescp(setting.folder / "archive"))
        line, ahead = (
            Line(setting, stack.enter_context(running(node)), archive)
            for node in (
                _node(setting, "node", archive, quiet_seconds=1.0, ahead_gb=0.0),
                _node(setting, "ahead", archive, quiet_seconds=QUIET_SECONDS),
            )
        )
        for model in MODELS:
            line.passed(model, WARM_UP_SLICES)
        ahead.passed("midslice", WARM_UP_SLICES)
        passes: dict[str, Callable[[], Passed]] = {}
        for slices in SLICES:
            files = series.long(slices, setting.folder / f"chest-{slices}")
            alone = partial(_prediction, files)
            alone()
            passes[_alone(slices)] = alone
            for model in MODELS:
                passes[f"{model}, {slices} slices"] = partial(line.passed, model, slices)
            passes[_ahead(slices)] = partial(ahead.passed, "midslice", slices)
            passes[_scanned(slices)] = partial(ahead.scanned, slices)
        values = setting.measure(passes)
        threads = line.threads
    caption = (
        f"slices of 512 x 512 (JPEG-LS) at {FACTOR}x, from `series complete` to `delivery sent`, "
        f"and its steps; prediction alone in this process; threads of the worker: {threads}. "
        "Nothing is generated ahead but where the row says so: there a series is complete when it "
        f"was silent for {QUIET_SECONDS:g} s"
    )
    return Subject(NAME, caption, tuple(_rows(values)))


def _alone(slices: int) -> str:
    return f"prediction alone, {slices} slices"


def _prediction(files: list[Path]) -> Passed:
    """The model on decoded slices, as many steps at once as a worker runs."""
    layout = arrange(stacks_of(read_headers(files))[0].headers)
    pixels, model = PixelReader(), registry.load(ModelSpec("midslice"))
    planes = [pixels.hounsfield(header) for header in layout.headers]
    steps = model.plan(layout.geometry, Parameters(factor=FACTOR))
    volume = Volume(layout.geometry, lambda index: planes[index].copy())
    runner = Runner(model, volume, Limits(), share_cores(model, 0))
    began = time.perf_counter()
    for _ in runner.predictions(steps, cancelled=lambda: False):
        pass
    return {"": time.perf_counter() - began}


def derived_slices(slices: int, factor: int) -> int:
    """Copied and generated slices of a derived series."""
    return factor * (slices - 1) + 1


class Line:
    """The scanner, the node and the archive; one series at a time."""

    def __init__(self, setting: Setting, node: NodeProcess, archive: Receiver) -> None:
        self._folder = setting.folder / "sent"
        self._database = node.folder / "var" / "midslice.db"
        self._node = node
        self._archive = archive
        self._archived = setting.folder / "archive"
        self._pause = 0.0  # from the last slice, written, to the first one stored by the archive
        self._count = 0

    @property
    def threads(self) -> str:
        """What the worker was told; torch takes all cores where it is told nothing."""
        told = psutil.Process(self._node.pid).environ().get("OMP_NUM_THREADS")
        return told or str(os.cpu_count())

    def passed(self, model: str, slices: int) -> Passed:
        """Send a series that was never seen, and wait until its derived series is delivered."""
        name, files = self._renamed(slices)
        sent = peers.storescu(
            self._node.port, *files, called=title(model), options=("-xt", "-pdu", rig.PDU)
        )
        assert sent.code == 0, sent.output
        complete = self._node.event("series complete", series_uid=f"{name}.2")
        delivered = self._delivered(slices)
        seconds = _moment(delivered["time"]) - _moment(complete["time"])
        steps = self._steps()
        rest = {"claim and delivery": seconds - sum(steps.values()), FIRST_STORED: self._pause}
        return {"": seconds, **steps, **rest}

    def _renamed(self, slices: int) -> tuple[str, list[Path]]:
        """A series that was never seen: the root of its UIDs, and its files."""
        self._count += 1
        name = phantoms.uid("end to end", str(self._node.folder), self._count)

        def renamed(made: Dataset) -> None:
            made.StudyInstanceUID, made.SeriesInstanceUID = f"{name}.1", f"{name}.2"
            made.SOPInstanceUID = f"{name}.3.{made.InstanceNumber}"

        chest = series.long(slices, self._folder / "chest")
        return name, series.changed(chest, self._folder, renamed)

    def _delivered(self, slices: int) -> dict[str, str]:
        """The event of the last delivery, whose files are removed for the next one."""
        event: dict[str, str] = self._node.event(
            "delivery sent", count=self._count, seconds=LIMIT_SECONDS
        )
        held, total = self._archive.held(), derived_slices(slices, FACTOR)
        assert held == total, f"the archive holds {held} of {total} instances"
        stored = min(path.stat().st_mtime for path in self._archived.iterdir())
        derived = self._database.parent / "derived"
        self._pause = stored - max(path.stat().st_mtime for path in derived.rglob("0*.dcm"))
        self._archive.clear()
        return event

    def scanned(self, slices: int) -> Passed:
        """Send slices as a scanner makes them; the time after the quiet period until all are made.

        Made is: verified, and free to leave.
        """
        name, files = self._renamed(slices)
        last_at = scan(
            self._node.port, files, seconds=1.0 / SLICES_A_SECOND, called=title("midslice")
        )
        self._node.event("series complete", series_uid=f"{name}.2")
        made = self._node.event("job succeeded", count=self._count, seconds=LIMIT_SECONDS)
        self._delivered(slices)
        return {"": _moment(made["time"]) - last_at - QUIET_SECONDS}

    def _steps(self) -> Passed:
        """Seconds of each step of the last job, as the worker counted them."""
        with contextlib.closing(sqlite3.connect(self._database)) as db:
            (record,) = db.execute("SELECT record FROM job ORDER BY id DESC LIMIT 1").fetchone()
        seconds = json.loads(record)["seconds"]
        return {step: seconds[step] for step in STEPS}


def title(model: str) -> str:
    """The called AE title that leads to a model."""
    return f"BENCH_{model.upper()}"


def _node(setting: Setting, name: str, archive: Receiver, **settings: float) -> NodeProcess:
    routes = (
        route(model=model, factor=FACTOR, destinations=["archive"])
        .replace("ct-slices", model)
        .replace("match =", f'called_ae_title = "{title(model)}"\nmatch =')
        for model in MODELS
    )
    to = destination("archive", archive.ae_title, archive.port)
    return NodeProcess(setting.folder / name, to, *routes, **settings)


def _moment(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def _rows(values: dict[str, list[Passed]]) -> Iterator[Row]:
    for slices in SLICES:
        alone = _alone(slices)
        yield Row(alone, "s", tuple(passed[""] for passed in values[alone]))
        for model in MODELS:
            name = f"{model}, {slices} slices"
            yield Row(name, "s", tuple(passed[""] for passed in values[name]), alone)
        made_ahead = tuple(passed[""] for passed in values[_ahead(slices)])
        yield Row(_ahead(slices), "s", made_ahead, alone)
        yield Row(_scanned(slices), "s", tuple(passed[""] for passed in values[_scanned(slices)]))
        for step in (*STEPS, "claim and delivery", FIRST_STORED):
            taken = tuple(passed[step] for passed in values[f"midslice, {slices} slices"])
            yield Row(f"{step}, {slices} slices", "s", taken, alone)
