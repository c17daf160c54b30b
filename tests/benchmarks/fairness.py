"""What receiving loses to inference on all cores, and how long a long series delays an urgent
one."""

import contextlib
import signal
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import psutil

from tests import peers, phantoms
from tests.benchmarks import rig
from tests.benchmarks.rig import SIDE, Receiver, Setting
from tests.benchmarks.table import Bound, RatioBound, Row, Subject
from tests.node_process import NodeProcess, route, running

NAME = "fairness"
IDLE, BUSY = "receiving, inference waits", "receiving, inference on both cores"
ALONE, BESIDE = "urgent series, node idle", "urgent series, beside a long one"
BATCH, DELAY = "a batch of the long series", "delay of the urgent one"
BOUNDS = (RatioBound(NAME, BUSY, at_least=0.7), Bound(NAME, DELAY, 1.0))
LONG, QUICK_LONG, URGENT = 3000, 400, 30
LONG_FACTOR, URGENT_FACTOR = 6, 2  # the most slices of a result are 20,000
AT_ONCE = 2  # gaps of a batch: those that two cores fill side by side
PASS, QUICK_PASS = 300, 100
WORKER_BYTES = 250_000_000  # the process that inference runs in takes more, every other one less
LIMIT_SECONDS = 300.0


def measure(setting: Setting) -> Subject:
    """Instances a second without and with inference; seconds of an urgent series."""
    count = QUICK_PASS if setting.is_quick else PASS
    slices = QUICK_LONG if setting.is_quick else LONG
    with running(_node(setting.folder / "node")) as node:
        line = Line(setting.folder, node)
        alone = [line.urgent() for _ in range(setting.repetitions + 1)][1:]
        line.begin_long(slices)
        receive = partial(rig.received, _receiver(node), setting, count, rig.storescu)
        rows = {IDLE: partial(_while_stopped, node, receive), BUSY: receive}
        values = setting.measure(rows)
        before = line.long_done()
        began = time.monotonic()
        beside = [line.urgent() for _ in range(setting.repetitions)]
        assert line.long_done() > before, "the long series did not go on"
        batch = line.batch_seconds()
        took = f"{time.monotonic() - began:.0f} s"
    delay = (statistics.median(beside) - statistics.median(alone)) / batch
    caption = (
        f"{count} CT instances of 512 x 512 a pass over one association, without a route, while a "
        f"series of {slices} slices is made at {LONG_FACTOR} x; a series of {URGENT} slices at "
        f"{URGENT_FACTOR} x with priority 1, from `series complete` to `job succeeded`, within "
        f"{took}; a batch is {AT_ONCE} gaps"
    )
    return Subject(
        NAME,
        caption,
        (
            Row(IDLE, "inst/s", tuple(values[IDLE])),
            Row(BUSY, "inst/s", tuple(values[BUSY]), IDLE),
            Row(ALONE, "s", tuple(alone)),
            Row(BESIDE, "s", tuple(beside), ALONE),
            Row(BATCH, "s", (batch,)),
            Row(DELAY, "batches", (delay,)),
        ),
    )


class Line:
    """A scanner of long series and one of urgent ones."""

    def __init__(self, folder: Path, node: NodeProcess) -> None:
        self._folder = folder
        self._node = node
        self._count = 0

    def urgent(self) -> float:
        """Send a series that was never seen; the seconds until its derived series is made."""
        self._count += 1
        series_uid = self._send(f"urgent {self._count}", URGENT, "URGENT")
        complete = self._node.event("series complete", series_uid=series_uid)
        made = self._node.event("job succeeded", count=self._count, seconds=LIMIT_SECONDS)
        return _moment(made) - _moment(complete)

    def begin_long(self, slices: int) -> None:
        """Send the long series, and wait until its slices are being generated."""
        self._send("long", slices, "LONG")
        deadline = time.monotonic() + LIMIT_SECONDS
        while not self.long_done():
            assert time.monotonic() < deadline, "the long series is not begun"
            time.sleep(0.5)
        time.sleep(6.0)  # after so long the node makes ready for what is more urgent

    def long_done(self) -> int:
        """The slices of the long series that were generated so far."""
        query = (
            "SELECT step_done FROM job WHERE route = 'long' AND step IN ('predicting', 'paused')"
        )
        file = self._node.folder / "var" / "midslice.db"
        with contextlib.closing(sqlite3.connect(file)) as db:
            row = db.execute(query).fetchone()
        return int(row[0]) if row else 0

    def batch_seconds(self) -> float:
        """How long a batch of it takes, with the cores to itself."""
        first, began = self.long_done(), time.monotonic()
        time.sleep(8.0)
        done = max(1, self.long_done() - first) / (LONG_FACTOR - 1)
        return (time.monotonic() - began) / done * AT_ONCE

    def _send(self, name: str, slices: int, called: str) -> str:
        asked = phantoms.Series(slices=slices, rows=SIDE, columns=SIDE, seed=name, study=name)
        files = phantoms.write(self._folder / name.replace(" ", "-"), asked)
        options = ("-pdu", rig.PDU)
        sent = peers.storescu(self._node.port, *files, called=f"BENCH_{called}", options=options)
        assert sent.code == 0, sent.output
        return str(phantoms.dataset(asked, 0).SeriesInstanceUID)


def _node(folder: Path) -> NodeProcess:
    def to(name: str, factor: int, priority: int) -> str:
        text = route(model="midslice", factor=factor, destinations=[])
        title = f'called_ae_title = "BENCH_{name.upper()}"\npriority = {priority}\nmatch ='
        return text.replace("ct-slices", name).replace("match =", title)

    routes = to("long", LONG_FACTOR, 5), to("urgent", URGENT_FACTOR, 1)
    return NodeProcess(folder, *routes, quiet_seconds=1.0, job_minutes=30.0)


def _receiver(node: NodeProcess) -> Receiver:
    """The node under its own title, which no route is for."""

    def held() -> int:
        with contextlib.closing(sqlite3.connect(node.folder / "var" / "midslice.db")) as db:
            (count,) = db.execute("SELECT COUNT(*) FROM instance").fetchone()
        return int(count)

    return Receiver("MIDSLICE", node.port, node.pid, held, lambda: None)


def _while_stopped(node: NodeProcess, measured: Callable[[], float]) -> float:
    with _stopped(node):
        return measured()


@contextlib.contextmanager
def _stopped(node: NodeProcess) -> Iterator[None]:
    """While the workers of a node get no processor at all."""
    children = psutil.Process(node.pid).children()
    workers = [child for child in children if child.memory_info().rss > WORKER_BYTES]
    assert workers, "no worker was found"
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGCONT)


def _moment(event: dict[str, str]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()
