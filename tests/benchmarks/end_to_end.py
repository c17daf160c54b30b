"""How long a series takes through the whole node: from its completion to its last slice stored."""

import contextlib
import os
from collections.abc import Callable
from datetime import datetime
from functools import partial

import psutil
from pydicom import Dataset

from tests import peers, phantoms, series
from tests.benchmarks import rig
from tests.benchmarks.rig import Receiver, Setting
from tests.benchmarks.table import Row, Subject
from tests.node_process import NodeProcess, destination, route, running

NAME = "end to end"
MODELS = ("linear", "midslice")
SLICES, FACTOR = 24, 4
QUICK_SLICES, QUICK_FACTOR = 6, 2
WARM_UP_SLICES = 3
LIMIT_SECONDS = 300.0


def measure(setting: Setting) -> Subject:
    """Seconds for a 24-slice series of a real chest, and derived slices a second."""
    slices, factor = (QUICK_SLICES, QUICK_FACTOR) if setting.is_quick else (SLICES, FACTOR)
    with contextlib.ExitStack() as stack:
        archive = stack.enter_context(rig.storescp(setting.folder / "archive"))
        node = stack.enter_context(running(_node(setting, archive, factor)))
        line = Line(setting, node, archive, factor)
        for model in MODELS:
            line.seconds(model, WARM_UP_SLICES)
        rows: dict[str, Callable[[], float]] = {
            model: partial(line.seconds, model, slices) for model in MODELS
        }
        values = setting.measure(rows)
        threads = _threads(node)
    total = derived_slices(slices, factor)
    caption = (
        f"{slices} slices of 512 x 512 (JPEG-LS) to {total}, from `series complete` to "
        f"`delivery sent`; threads of the inference worker: {threads}"
    )
    return Subject(NAME, caption, _rows(values, total))


def derived_slices(slices: int, factor: int) -> int:
    """Copied and generated slices of a derived series."""
    return factor * (slices - 1) + 1


class Line:
    """The scanner, the node and the archive; one series at a time."""

    def __init__(self, setting: Setting, node: NodeProcess, archive: Receiver, factor: int) -> None:
        self._folder = setting.folder / "sent"
        self._node = node
        self._archive = archive
        self._factor = factor
        self._count = 0

    def seconds(self, model: str, slices: int) -> float:
        """Send a series that was never seen, and wait until its derived series is delivered."""
        self._count += 1
        name = phantoms.uid("end to end", self._count)

        def renamed(made: Dataset) -> None:
            made.StudyInstanceUID, made.SeriesInstanceUID = f"{name}.1", f"{name}.2"
            made.SOPInstanceUID = f"{name}.3.{made.InstanceNumber}"

        files = series.changed(series.thick(slices), self._folder, renamed)
        sent = peers.storescu(
            self._node.port, *files, called=title(model), options=("-xt", "-pdu", rig.PDU)
        )
        assert sent.code == 0, sent.output
        complete = self._node.event("series complete", series_uid=f"{name}.2")
        delivered = self._node.event("delivery sent", count=self._count, seconds=LIMIT_SECONDS)
        held, total = self._archive.held(), derived_slices(slices, self._factor)
        assert held == total, f"the archive holds {held} of {total} instances"
        self._archive.clear()
        return _moment(delivered["time"]) - _moment(complete["time"])


def title(model: str) -> str:
    """The called AE title that leads to a model."""
    return f"BENCH_{model.upper()}"


def _node(setting: Setting, archive: Receiver, factor: int) -> NodeProcess:
    routes = (
        route(model=model, factor=factor, destinations=["archive"])
        .replace("ct-slices", model)
        .replace("match =", f'called_ae_title = "{title(model)}"\nmatch =')
        for model in MODELS
    )
    to = destination("archive", archive.ae_title, archive.port)
    return NodeProcess(setting.folder / "node", to, *routes)


def _threads(node: NodeProcess) -> str:
    """What the worker was told; torch takes all cores where it is told nothing."""
    told = psutil.Process(node.pid).environ().get("OMP_NUM_THREADS")
    return told or str(os.cpu_count())


def _moment(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def _rows(values: dict[str, list[float]], total: int) -> tuple[Row, ...]:
    reference = MODELS[0]
    seconds = [Row(name, "s", tuple(taken), reference) for name, taken in values.items()]
    speeds = [
        Row(
            f"{name}, slices",
            "slices/s",
            tuple(total / second for second in taken),
            f"{reference}, slices",
        )
        for name, taken in values.items()
    ]
    return (*seconds, *speeds)
