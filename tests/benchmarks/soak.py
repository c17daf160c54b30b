"""Series after series, while the node is killed and a destination comes and goes: none is lost.

SOAK_MINUTES says how long (30), SOAK_SEED repeats the moments of an earlier run. Scanners send
each series until all of it was acknowledged over one association, as scanners do.
"""

import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from tests import peers, phantoms
from tests.benchmarks.audit import Route, Sending, audit, rendered, unfinished
from tests.node_process import MIDSLICE, NodeProcess, destination, route
from tests.ports import free_port

SCANNERS = ("CT1", "CT2", "CT3")
ROUTES = (Route("double", "MIDSLICE", 2), Route("triple", "MIDSLICE_X3", 3))
STEADY, FICKLE = "steady", "fickle"  # the destinations: always there, sometimes down
SIDE = 96

FAULT_SECONDS = (1.0, 12.0)  # between two kills
DEAD_SECONDS = (0.0, 3.0)
FALSE_STARTS = 0.25  # this share of the starts is killed too, while the node recovers
RECOVERING_SECONDS = (0.2, 4.0)
UP_SECONDS, DOWN_SECONDS = (5.0, 20.0), (1.0, 10.0)
PAUSE_SECONDS = (0.5, 4.0)  # between two series of a scanner
RETRY_SECONDS = (0.3, 1.5)  # until a scanner tries again
SENT_TWICE = 0.1  # this share of the series is sent once more, whole
BACKLOG = 300  # instances that are due at the destination; scanners wait above
DRAIN_SECONDS = 300.0


@dataclass
class Soak:
    """One run: what all threads share."""

    folder: Path
    seed: int
    port: int = field(default_factory=free_port)
    ending: threading.Event = field(default_factory=threading.Event)  # no new series, no fault
    over: threading.Event = field(default_factory=threading.Event)  # all is delivered, or late
    sendings: list[Sending] = field(default_factory=list)
    kills: int = 0
    outages: int = 0

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
    """The fickle destination: up and down, and up for good at the end."""
    drawn = soak.random(FICKLE)
    while not soak.ending.is_set():
        with peers.storescp(soak.folder / FICKLE, port=port):
            soak.ending.wait(drawn.uniform(*UP_SECONDS))
        soak.outages += 1
        soak.ending.wait(drawn.uniform(*DOWN_SECONDS))
    with peers.storescp(soak.folder / FICKLE, port=port):
        soak.over.wait()


def kill(soak: Soak, node: NodeProcess, until: float) -> None:
    """Power cuts at moments that the seed decides."""
    drawn = soak.random("power")
    pause = threading.Event()
    while (left := until - time.monotonic()) > 0:
        pause.wait(min(left, drawn.uniform(*FAULT_SECONDS)))
        node.kill()
        soak.kills += 1
        pause.wait(drawn.uniform(*DEAD_SECONDS))
        while drawn.random() < FALSE_STARTS:
            command = [str(MIDSLICE), "serve", "--config", str(node.folder / "config.toml")]
            with peers.running(command) as starting:
                pause.wait(drawn.uniform(*RECOVERING_SECONDS))
                starting.signal(signal.SIGKILL)
            soak.kills += 1
        node.start()


def drain(soak: Soak) -> None:
    """Wait until nothing is arriving, queued, running or unsent; the audit says what is."""
    deadline, quiet = time.monotonic() + DRAIN_SECONDS, 0
    while time.monotonic() < deadline and quiet < 3:
        soak.over.wait(1.0)
        quiet = 0 if unfinished(soak.database_url) else quiet + 1


def run(folder: Path, minutes: float, seed: int, console: Console) -> int:
    """Soak a node in a folder; 1 where anything is lost."""
    soak = Soak(folder, seed)
    fickle = free_port()
    with peers.storescp(folder / STEADY) as steady, ThreadPoolExecutor() as threads:
        ports = {STEADY: steady.port, FICKLE: fickle}
        node = NodeProcess(folder / "node", *_site(ports), port=soak.port)
        try:
            node.start()
            going = threads.submit(come_and_go, soak, fickle)
            scanning = [threads.submit(scan, soak, scanner) for scanner in SCANNERS]
            kill(soak, node, time.monotonic() + minutes * 60)
            soak.ending.set()
            for one in scanning:
                one.result(DRAIN_SECONDS)
            drain(soak)
        finally:
            soak.ending.set()
            soak.over.set()
            node.close()
        going.result(DRAIN_SECONDS)
    found = audit(soak.sendings, soak.folder / "node" / "var", [folder / STEADY, folder / FICKLE])
    console.print(rendered(found, ROUTES))
    console.print(f"{soak.kills} kills, {soak.outages} outages of a destination, seed {seed}")
    for loss in found.losses:
        console.print(f"[red]lost:[/red] {loss}", highlight=False)
    return 1 if found.losses else 0


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
    minutes = float(os.environ.get("SOAK_MINUTES", "30"))
    seed = int(os.environ.get("SOAK_SEED", str(random.SystemRandom().randrange(1_000_000))))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(f"{minutes:g} minutes, SOAK_SEED={seed}")
    with tempfile.TemporaryDirectory(prefix="midslice-soak-") as name:
        return run(Path(name), minutes, seed, console)


if __name__ == "__main__":
    sys.exit(main())
