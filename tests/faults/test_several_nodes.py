"""Two nodes on one PostgreSQL, four senders, workers beside them or on Ray: each of it is killed.

FAULT_ROUNDS says how many series, ten for each round and at most 200, with a fault for each five;
FAULT_SEED repeats the order and the moments of an earlier run.
"""

import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from pydicom import dcmread

from tests import phantoms
from tests.benchmarks.audit import Route, Sending, audit, unfinished
from tests.faults.table import Fault
from tests.node_cluster import LOST_SECONDS, cluster
from tests.node_process import NodeProcess, destination, route, wait_for
from tests.peers import Storescp, storescp, storescu
from tests.phantoms import Series
from tests.postgres import PostgresServer, postgres
from tests.ray_cluster import RayCluster, ray_cluster
from tests.traffic import uid_of

ROOT = Path(__file__).parents[2]
SLOW = '\n[[model]]\nname = "slow"\nclass = "tests.faulty_models:Slow"\n'
ROUTE = Route("ct-slices", "MIDSLICE", 2)
SERIES = min(200, 10 * int(os.environ.get("FAULT_ROUNDS", "1")))
SCANNERS = ("CT1", "CT2", "CT3", "CT4")
SLICES = 5  # two seconds of a worker
SERIES_OF_FAULT = 5
AGAIN_SECONDS = 1.0  # until a scanner tries again
QUIET_SECONDS = "3"  # longer than a scanner waits: what was cut off is completed by the next try


@dataclass
class Site:
    """What runs, and may be killed."""

    nodes: Sequence[NodeProcess]
    server: PostgresServer
    archive: Storescp
    ray: RayCluster | None
    chance: random.Random
    sendings: list[Sending] = field(default_factory=list)
    waiting: queue.Queue[Sending | None] = field(default_factory=queue.Queue)  # None: no more

    def scan(self) -> None:
        """Send each series again until one association had Success for every instance."""
        while (sending := self.waiting.get()) is not None:
            tried = SCANNERS.index(sending.scanner)
            while not sending.is_whole:
                port = self.nodes[tried % len(self.nodes)].port
                sent = storescu(port, *sending.files, calling=sending.scanner)
                sending.acknowledge(sent.output)
                tried += 1
                time.sleep(AGAIN_SECONDS)  # as a scanner pauses


def kill_worker(site: Site) -> None:
    """Kill a worker process, on Ray that or the actor which holds it."""
    joined = "worker joined" if site.ray is not None else "worker started"

    def worker() -> psutil.Process | None:
        pids = [event["pid"] for node in site.nodes for event in node.found(joined)]
        living = [pid for pid in pids if psutil.pid_exists(pid)]
        return psutil.Process(site.chance.choice(living)) if living else None

    process = wait_for("a worker is there", worker)
    actor = process.parent() if site.ray is not None else None
    with suppress(psutil.NoSuchProcess):
        site.chance.choice([process, actor or process]).kill()


def kill_head(site: Site) -> None:
    """Kill the head of Ray; another one is started in its place."""
    assert site.ray is not None
    site.ray.replace_head()


def kill_node(site: Site) -> None:
    """Kill a node and start it again, perhaps before anybody has missed it."""
    victim, other = site.chance.sample(list(site.nodes), 2)
    lost = len(other.found("node lost"))
    victim.kill_all()
    if site.chance.random() < 0.5:
        other.event("node lost", count=lost + 1, seconds=LOST_SECONDS + 30.0)
    victim.start()


def kill_database(site: Site) -> None:
    """Kill PostgreSQL and start it again."""
    site.server.kill_all()
    site.server.start()


FAULTS = {"a worker": kill_worker, "a node": kill_node, "PostgreSQL": kill_database}
ON_RAY = FAULTS | {"the head of Ray": kill_head}
ROWS = {
    "process": "one of two nodes, its worker or PostgreSQL killed",
    "ray": "one of two nodes, a worker on Ray, its head or PostgreSQL killed",
}


@pytest.mark.timeout(300 + 20 * SERIES)
@pytest.mark.parametrize("executor", ["process", "ray"])
def test_whatever_is_killed_no_series_is_lost_or_doubled_and_each_is_delivered(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[str], Fault],
    executor: str,
) -> None:
    faults = ON_RAY if executor == "ray" else FAULTS
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MIDSLICE_TEST_HURRY", str(tmp_path / "hurry"))
    seed = int(os.environ.get("FAULT_SEED", random.SystemRandom().randrange(1_000_000)))
    print(f"FAULT_SEED={seed}")  # noqa: T201 - pytest shows it where the test fails
    row = fault(ROWS[executor])
    with _site(tmp_path, executor, random.Random(seed)) as site:
        killed = _break_things(site, faults)
        node = site.nodes[0]
        row.times = len(killed)
        row.hung += _wait_until_done(node, seconds=60.0 + 3.0 * SERIES)
        found = audit(site.sendings, tmp_path / "storage", [site.archive.folder], node.database_url)
        longest = _seconds_until_delivered(site, killed)
    row.seconds = max(longest.values())
    row.lost, row.duplicated = len(found.losses), len(found.doubles)
    print(longest)  # noqa: T201
    assert (found.losses, found.doubles, row.hung) == ([], [], 0)


@contextmanager
def _site(folder: Path, executor: str, chance: random.Random) -> Iterator[Site]:
    with (
        ray_cluster(nodes=2, start=executor == "ray") as ray,
        postgres() as server,
        storescp(folder / "archive") as archive,
    ):
        environment = {"MIDSLICE_COMPLETION__QUIET_SECONDS": QUIET_SECONDS}
        if executor == "ray":
            environment |= {
                "MIDSLICE_INFERENCE__EXECUTOR": "ray",
                "MIDSLICE_INFERENCE__ADDRESS": ray.address,
                "MIDSLICE_INFERENCE__MEMORY_GB": "2",
                "MIDSLICE_INFERENCE__OVERTAKING": "false",
                "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
            }
        parts = (
            SLOW,
            destination("pacs", "STORESCP", archive.port),
            route(model="slow", destinations=["pacs"]),
        )
        database = server.create("several")
        with cluster(folder, database, *parts, environment=environment) as nodes:
            yield Site(nodes, server, archive, ray if executor == "ray" else None, chance)


Killed = tuple[str, float]  # what, and when


def _break_things(site: Site, faults: Mapping[str, Callable[[Site], None]]) -> list[Killed]:
    """Have some series sent and kill something meanwhile, again and again; return when and what."""
    senders = [threading.Thread(target=site.scan) for _ in SCANNERS]
    for sender in senders:
        sender.start()
    killed: list[Killed] = []
    order: list[str] = []
    try:
        for number in range(SERIES // SERIES_OF_FAULT):
            first = number * SERIES_OF_FAULT
            batch = [_series(site, first + place) for place in range(SERIES_OF_FAULT)]
            site.sendings.extend(batch)
            for sending in batch:
                site.waiting.put(sending)
            time.sleep(site.chance.uniform(0.0, 6.0))  # while they are sent, made, delivered
            order = order or site.chance.sample(list(faults), len(faults))
            killed.append((order.pop(), time.time()))
            faults[killed[-1][0]](site)
    finally:
        for _ in senders:
            site.waiting.put(None)
    for sender in senders:
        sender.join()
    return killed


def _series(site: Site, number: int) -> Sending:
    folder = site.archive.folder.parent / f"ct-{number}"
    files = phantoms.write(folder, Series(seed=str(number), slices=SLICES))
    return Sending(uid_of(files), SCANNERS[number % len(SCANNERS)], ROUTE, tuple(files))


def _wait_until_done(node: NodeProcess, seconds: float) -> int:
    """Wait until nothing is under way; the number of what then still is."""
    with suppress(AssertionError):
        wait_for("all is done", lambda: unfinished(node.database_url) == 0, seconds)
    return unfinished(node.database_url)


def _seconds_until_delivered(site: Site, killed: Sequence[Killed]) -> dict[str, float]:
    """The longest time from each kind of fault until the next series had come in whole."""
    delivered: dict[str, float] = {}
    for path in site.archive.files():
        uid = str(dcmread(path, stop_before_pixels=True).SeriesInstanceUID)
        delivered[uid] = max(delivered.get(uid, 0.0), path.stat().st_mtime)
    longest: dict[str, float] = {}
    for what, at in killed:
        next_at = min((time for time in delivered.values() if time > at), default=at)
        longest[what] = max(longest.get(what, 0.0), round(next_at - at, 1))
    return longest
