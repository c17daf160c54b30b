"""How much memory a receiver takes for a long series: it must not grow with what it receives."""

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from tests.benchmarks import rig
from tests.benchmarks.rig import Receiver, Setting
from tests.benchmarks.table import Bound, Row, Subject

NAME = "memory"
GROWTH = "Midslice, growth"
BOUNDS = (Bound(NAME, GROWTH, below=40.0),)

WARM_UP = 100
PEERS_INSTANCES = 500  # enough to see what a peer takes; only the node has a bound to prove
INTERVAL_SECONDS = 0.02
MEGABYTE = 1e6

Start = Callable[[Path], contextlib.AbstractContextManager[Receiver]]
RECEIVERS: dict[str, Start] = {
    "storescp": rig.storescp,
    "Orthanc": rig.orthanc,
    "Midslice": rig.midslice,
}


@dataclass
class Watch:
    """The resident memory of one process alone, without its children, in MB."""

    pid: int
    before: float = 0.0
    most: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)

    def look(self) -> float:
        """Now."""
        now = psutil.Process(self.pid).memory_info().rss / MEGABYTE
        self.most = max(self.most, now)
        return now

    @property
    def growth(self) -> float:
        return self.most - self.before

    def until_over(self) -> None:
        while not self._over.wait(INTERVAL_SECONDS):
            self.look()

    def end(self) -> None:
        self._over.set()


@contextlib.contextmanager
def watching(pid: int) -> Iterator[Watch]:
    """Watch a process while the block lasts."""
    watch = Watch(pid)
    watch.before = watch.look()
    thread = threading.Thread(target=watch.until_over)
    thread.start()
    try:
        yield watch
    finally:
        watch.end()
        thread.join()
    watch.look()


def measure(setting: Setting) -> Subject:
    """Each receiver, freshly started, takes 100 instances to warm up, then the long series."""
    every = len(setting.stock.files)
    counts = dict.fromkeys(RECEIVERS, min(PEERS_INSTANCES, every)) | {"Midslice": every}
    found = setting.measure(
        {name: partial(_watched, setting, start, counts[name]) for name, start in RECEIVERS.items()}
    )
    resident = [
        Row(name, "MB", tuple(watch.most for watch in watches), "storescp")
        for name, watches in found.items()
    ]
    growth = [
        Row(f"{name}, growth", "MB", tuple(watch.growth for watch in watches))
        for name, watches in found.items()
    ]
    caption = (
        f"the most that the receiving process had resident, and how much that was above what it "
        f"had after {WARM_UP} instances, while CT instances of 512 x 512 came over one "
        f"association: {every} into Midslice, {counts['storescp']} into the others"
    )
    return Subject(NAME, caption, (*resident, *growth))


def _watched(setting: Setting, start: Start, count: int) -> Watch:
    folder, stock = setting.folder / "receiver", setting.stock
    with start(folder) as receiver:
        stock.stamp()
        rig.storescu(receiver, stock.files[:WARM_UP])
        stock.stamp()
        before = receiver.held()
        with watching(receiver.pid) as watch:
            rig.storescu(receiver, stock.files[:count])
        came = receiver.held() - before
        assert came == count, f"{receiver.ae_title} has taken {came} of {count} instances"
    shutil.rmtree(folder)
    return watch
