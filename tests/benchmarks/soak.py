"""Series after series from eight scanners, and a fault a minute: none is lost, nothing grows.

SOAK_MINUTES says how long (60), SOAK_SEED repeats the moments of an earlier run. Scanners send
each series until all of it was acknowledged over one association, as scanners do. In the warm-up
the power is cut once; after it the node survives every fault, so that its memory can be watched.
"""

import contextlib
import os
import random
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression

import psutil
from rich.console import Console

from tests import peers, phantoms
from tests.benchmarks.audit import Route, Sending, audit, rendered, unfinished
from tests.node_process import NodeProcess, destination, route
from tests.ports import free_port
from tests.raw_peer import RawPeer, data_set, fragment, store_command

SCANNERS = tuple(f"CT{number}" for number in range(1, 9))
ROUTES = (Route("double", "MIDSLICE", 2), Route("triple", "MIDSLICE_X3", 3))
STEADY, FICKLE = "steady", "fickle"  # the destinations: always there, sometimes down
SIDE = 96

FAULT_SECONDS = 60.0  # between two faults
FEWEST_FAULTS = 8  # in a run that is shorter than so many minutes
WARM_UP = 0.25  # of the run, and then the power is cut
# Then every fault once, and twice the five minutes that the node remembers what it has sent.
WARM_UP_AGAIN_SECONDS = 600.0
DOWN_SECONDS, LOCKED_SECONDS = 10.0, 8.0
SAMPLE_SECONDS = 5.0
PAUSE_SECONDS = (2.0, 8.0)  # between two series of a scanner
RETRY_SECONDS = (0.3, 1.5)  # until a scanner tries again
SENT_TWICE = 0.1  # this share of the series is sent once more, whole
BACKLOG = 300  # instances that are due at the destination; scanners wait above
DRAIN_SECONDS = 300.0
MOST_MB_AN_HOUR = 1.0
MOST_DESCRIPTORS = 10  # more at the end than after the warm-up
LEAST_MINUTES = 20.0  # of watching: over less a slope says nothing


@dataclass(frozen=True)
class Sample:
    """What the node's parent process holds at a time."""

    at: float
    mb: float
    descriptors: int


@dataclass
class Soak:
    """One run: what all threads share."""

    folder: Path
    seed: int
    port: int = field(default_factory=free_port)
    ending: threading.Event = field(default_factory=threading.Event)  # no new series, no fault
    over: threading.Event = field(default_factory=threading.Event)  # all is delivered, or late
    sendings: list[Sending] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)  # after the warm-up
    up: threading.Event = field(default_factory=threading.Event)  # the fickle destination is

    def random(self, who: str) -> random.Random:
        """Each actor has its own, so that a seed means the same whatever the others do."""
        return random.Random(f"{self.seed}/{who}")

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.folder / 'node' / 'var' / 'midslice.db'}"


def scan(soak: Soak, scanner: str) -> None:
    """Send made series of 3 to 8 slices to either called AE title, until the end."""
    drawn = soak.random(scanner)
    number = 0
    while not soak.ending.wait(drawn.uniform(*PAUSE_SECONDS)):
        if _due(soak) > BACKLOG:
            continue
        number += 1
        made = phantoms.Series(
            slices=drawn.randint(3, 8), rows=SIDE, columns=SIDE, seed=f"{scanner}/{number}"
        )
        files = phantoms.write(soak.folder / scanner / str(number), made)
        drawn.shuffle(files)
        uid = phantoms.uid(made.seed, "series", made.number)
        sending = Sending(uid, scanner, drawn.choice(ROUTES), tuple(files))
        soak.sendings.append(sending)
        _send(soak, sending, drawn)
        if drawn.random() < SENT_TWICE:
            _send(soak, sending, drawn)


def _send(soak: Soak, sending: Sending, drawn: random.Random) -> None:
    """Until one association has all of it acknowledged; the node may be dead for some of them."""
    while not soak.over.is_set():
        sent = peers.storescu(
            soak.port, *sending.files, called=sending.route.called, calling=sending.scanner
        )
        acknowledged = sending.acknowledge(sent.output)
        if acknowledged == len(sending.files):
            return
        soak.over.wait(drawn.uniform(*RETRY_SECONDS))


def _due(soak: Soak) -> int:
    """Instances that the steady destination should get and has not got."""
    folder = soak.folder / STEADY
    expected = sum(sending.total for sending in list(soak.sendings))
    return expected - sum(1 for _ in folder.iterdir())


def come_and_go(soak: Soak, port: int) -> None:
    """The fickle destination: down where a fault says so, and up for good at the end."""
    while not soak.over.is_set():
        with peers.storescp(soak.folder / FICKLE, port=port):
            while soak.up.is_set() and not soak.over.wait(0.2):
                pass
        while not soak.up.is_set() and not soak.over.wait(0.2):
            pass


def cut_power(soak: Soak, node: NodeProcess) -> None:
    """All processes die at once, and the node starts again."""
    node.kill_all()
    node.start()


def kill_worker(soak: Soak, node: NodeProcess) -> None:
    """A process that works on jobs dies, as for want of memory."""
    with contextlib.suppress(ProcessLookupError):  # it died this moment, and the next one starts
        os.kill(node.found("worker started")[-1]["pid"], signal.SIGKILL)


def kill_web(soak: Soak, node: NodeProcess) -> None:
    """The process that serves the pages dies."""
    for child in psutil.Process(node.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            ports = [c.laddr.port for c in child.net_connections() if c.laddr]
            if node.web_port in ports:
                child.kill()


def take_destination_away(soak: Soak, node: NodeProcess) -> None:
    """A destination is down for a while."""
    soak.up.clear()
    soak.ending.wait(DOWN_SECONDS)
    soak.up.set()


def lock_database(soak: Soak, node: NodeProcess) -> None:
    """Somebody else writes to the database, longer than the node waits for it."""
    file = node.folder / "var" / "midslice.db"
    with contextlib.closing(sqlite3.connect(file, timeout=30.0, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        soak.ending.wait(LOCKED_SECONDS)
        db.execute("ROLLBACK")


def break_off(soak: Soak, node: NodeProcess) -> None:
    """Connections end in the middle of a C-STORE, and others say nothing at all."""
    for _ in range(10):
        with contextlib.suppress(OSError), RawPeer(soak.port) as peer:
            peer.associate()
            peer.send(fragment(store_command(), command=True))
            peer.send(fragment(data_set(), last=False)[:-100])
        with contextlib.suppress(OSError), RawPeer(soak.port):
            pass


def reload(soak: Soak, node: NodeProcess) -> None:
    """The configuration is read again."""
    node.hang_up()


FAULTS: tuple[Callable[[Soak, NodeProcess], None], ...] = (
    *(kill_worker, take_destination_away, lock_database, break_off, kill_web, reload),
)


def disturb(soak: Soak, node: NodeProcess, until: float) -> None:
    """One fault after the other until it is time."""
    begin, total = time.monotonic(), until - time.monotonic()
    pause = min(FAULT_SECONDS, total / FEWEST_FAULTS)
    is_warm = False
    faults = iter(FAULTS)
    while (left := until - time.monotonic()) > 0:
        soak.over.wait(min(left, pause))
        if not is_warm and time.monotonic() - begin > WARM_UP * total:
            fault, is_warm = cut_power, True
        else:
            fault = next(faults, None) or next(faults := iter(FAULTS))
        fault(soak, node)
        soak.faults[(fault.__doc__ or "").strip().rstrip(".")] += 1


def watch(soak: Soak, node: NodeProcess, total: float) -> None:
    """Take samples of the parent, from a while after the power was cut."""
    began, pid = time.monotonic(), node.pid
    while not soak.ending.wait(SAMPLE_SECONDS):
        if node.pid != pid:
            began, pid = time.monotonic(), node.pid
            soak.samples.clear()
        if time.monotonic() - began < min(WARM_UP_AGAIN_SECONDS, WARM_UP * total):
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            mb = process.memory_info().rss / 1e6
            soak.samples.append(Sample(time.monotonic(), mb, process.num_fds()))


def growth(samples: Sequence[Sample]) -> tuple[float, int]:
    """Megabytes an hour, and descriptors: the most at the end beside the most at the begin."""
    if len(samples) < 4:
        return 0.0, 0
    slope = linear_regression([it.at for it in samples], [it.mb for it in samples]).slope
    quarter = len(samples) // 4
    first = max(it.descriptors for it in samples[:quarter])
    last = max(it.descriptors for it in samples[-quarter:])
    return slope * 3600.0, last - first


def misses(samples: Sequence[Sample]) -> list[str]:
    """What grows where nothing should; over a few minutes everything does."""
    if not samples or samples[-1].at - samples[0].at < 60 * LEAST_MINUTES:
        return []
    mb_an_hour, descriptors = growth(samples)
    found = []
    if mb_an_hour > MOST_MB_AN_HOUR:
        found.append(f"resident memory grows by {mb_an_hour:.1f} MB an hour")
    if descriptors > MOST_DESCRIPTORS:
        found.append(f"{descriptors} descriptors more than after the warm-up")
    return found


def drain(soak: Soak) -> None:
    """Wait until nothing is arriving, queued, running or unsent; the audit says what is."""
    deadline, quiet = time.monotonic() + DRAIN_SECONDS, 0
    while time.monotonic() < deadline and quiet < 3:
        soak.over.wait(1.0)
        quiet = 0 if unfinished(soak.database_url) else quiet + 1


def run(folder: Path, minutes: float, seed: int, console: Console) -> int:
    """Soak a node in a folder; 1 where anything is lost, or grows."""
    soak = Soak(folder, seed)
    soak.up.set()
    fickle = free_port()
    with peers.storescp(folder / STEADY) as steady, ThreadPoolExecutor(20) as threads:
        ports = {STEADY: steady.port, FICKLE: fickle}
        node = NodeProcess(folder / "node", *_site(ports), port=soak.port)
        try:
            node.start()
            going = threads.submit(come_and_go, soak, fickle)
            watching = threads.submit(watch, soak, node, minutes * 60)
            scanning = [threads.submit(scan, soak, scanner) for scanner in SCANNERS]
            disturb(soak, node, time.monotonic() + minutes * 60)
            soak.ending.set()
            soak.up.set()
            for one in (*scanning, watching):
                one.result(DRAIN_SECONDS)
            drain(soak)
        finally:
            soak.ending.set()
            soak.over.set()
            node.close()
        going.result(DRAIN_SECONDS)
    return report(soak, console)


def report(soak: Soak, console: Console) -> int:
    """Print what came of it; 1 where anything is lost, or grows."""
    destinations = [soak.folder / STEADY, soak.folder / FICKLE]
    found = audit(soak.sendings, soak.folder / "node" / "var", destinations, soak.database_url)
    console.print(rendered(found, ROUTES))
    for fault, times in soak.faults.items():
        console.print(f"{times} x {fault}", highlight=False)
    mb_an_hour, descriptors = growth(soak.samples)
    console.print(
        f"parent: {mb_an_hour:+.2f} MB an hour over {len(soak.samples) * SAMPLE_SECONDS:g} s, "
        f"{descriptors:+d} descriptors; seed {soak.seed}",
        highlight=False,
    )
    lost = [*found.losses, *found.doubles, *misses(soak.samples)]
    for sentence in lost:
        console.print(f"[red]missed:[/red] {sentence}", highlight=False)
    return 1 if lost else 0


def _site(ports: dict[str, int]) -> Sequence[str]:
    """Both routes to both destinations."""
    destinations = [destination(name, "STORESCP", port) for name, port in ports.items()]
    routes = [
        route(factor=one.factor, destinations=list(ports))
        .replace("ct-slices", one.name)
        .replace("match =", f'called_ae_title = "{one.called}"\nmatch =')
        for one in ROUTES
    ]
    return [*destinations, *routes]


def main() -> int:
    minutes = float(os.environ.get("SOAK_MINUTES", "60"))
    seed = int(os.environ.get("SOAK_SEED", str(random.SystemRandom().randrange(1_000_000))))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(f"{minutes:g} minutes, SOAK_SEED={seed}")
    with tempfile.TemporaryDirectory(prefix="midslice-soak-") as name:
        return run(Path(name), minutes, seed, console)


if __name__ == "__main__":
    sys.exit(main())
