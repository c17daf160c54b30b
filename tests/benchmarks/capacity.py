"""Carries the costs of one series, measured in a real node, to departments and groups of them.

`python -m tests.benchmarks.capacity` measures and prints the table of ARCHITECTURE.md; with
`--costs FILE` it computes it from costs that were measured before (it writes them to that file
where it does not exist).
"""

import argparse
import heapq
import json
import math
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import psutil

from tests import phantoms
from tests.node_process import NodeProcess, destination, route, running
from tests.peers import Script, scripted_scp, storescu

SLICES, FACTOR, SIDE = 100, 2, 512
SCANNERS = (10, 100, 1000)
SERIES_A_DAY = 60  # of a scanner that a route takes: about thirty patients
PEAK_SHARE = 0.12  # of a day's series in its busiest hour
HOUR, DAY = 3600.0, 86400.0
MOST_USED = 0.7  # of anything in the busiest hour
MOST_WAIT_SECONDS = 60.0  # of 95 of 100 series for a worker
# One machine as departments buy it: what it has of each, a second.
CORES = 16
SYNCS, DISK_BYTES, WIRE_BYTES, ROWS = 1600.0, 1e9, 1.25e9 * 0.9, 20_000.0
DISK, KEEP_DAYS = 8e12, 7.0
SETTLE_SECONDS = 5.0


@dataclass(frozen=True)
class Costs:
    """The costs of one series, from its first instance to its last delivery."""

    received_mb: float
    written_mb: float
    node_seconds: float  # of processor: parent and web process
    worker_seconds: float  # of processor
    job_seconds: float  # of a worker
    syncs: float
    rows: float


def measured(folder: Path) -> Costs:
    """The costs of one series of 512 x 512 slices in a node that has made another one before."""
    with scripted_scp(Script()) as port:
        node = NodeProcess(
            folder / "node",
            destination("pacs", "SCRIPTED", port),
            route(model="midslice", factor=FACTOR, destinations=["pacs"]),
            ahead_gb=0.0,
        )
        with running(node):
            _send(node, folder / "first", 1)
            before = _used(node)
            syncs = _send(node, folder / "second", 2, counting=True)
            after = _used(node)
            job = node.event("job succeeded", count=2)
            began = node.event("job running", count=2)
    used = [end - begin for begin, end in zip(before, after, strict=True)]
    received = sum(path.stat().st_size for path in (folder / "second").iterdir())
    return Costs(
        received_mb=round(received / 1e6, 1),
        written_mb=round(used[2] / 1e6, 1),
        node_seconds=round(used[0], 2),
        worker_seconds=round(used[1], 2),
        job_seconds=round(_at(job["time"]) - _at(began["time"]), 2),
        syncs=syncs,
        rows=used[3],
    )


def _send(node: NodeProcess, folder: Path, number: int, *, counting: bool = False) -> float:
    """Send a series and wait for its delivery; the syncs of the node meanwhile, where counted."""
    asked = phantoms.Series(
        slices=SLICES, rows=SIDE, columns=SIDE, spacing_mm=5.0, thickness_mm=5, seed=str(number)
    )
    files = phantoms.write(folder, asked)
    counts = folder.with_suffix(".syncs")
    command = ["strace", "-f", "-qq", "--summary-only", "-e", "trace=fsync,fdatasync"]
    command += ["-o", str(counts), "-p", str(node.pid)]
    tracer = subprocess.Popen(command) if counting else None
    try:
        time.sleep(1.0 if counting else 0.0)
        assert storescu(node.port, *files).code == 0
        node.event("delivery sent", count=number, seconds=280)
    finally:
        if tracer is not None:
            tracer.send_signal(signal.SIGINT)
            tracer.wait()
    if not counting:
        return 0.0
    calls = re.findall(r"(\d+)\s+(?:\d+\s+)?f(?:data)?sync$", counts.read_text(), re.MULTILINE)
    worker = 2.0 * SLICES - 1.0  # the worker, which is not traced, syncs each of its files
    return sum(map(float, calls)) + worker


def _used(node: NodeProcess) -> tuple[float, float, float, float]:
    """Processor seconds of the node and its workers, bytes written, and rows."""
    time.sleep(SETTLE_SECONDS)
    parent = psutil.Process(node.pid)
    processes = [parent, *parent.children(recursive=True)]
    seconds = {it.pid: sum(it.cpu_times()[:2]) for it in processes}
    busiest = max((it.pid for it in processes if it != parent), key=lambda pid: seconds[pid])
    written = float(sum(it.io_counters().write_chars for it in processes))
    with closing(sqlite3.connect(node.folder / "var" / "midslice.db")) as database:
        query = "SELECT name FROM sqlite_master WHERE type = 'table'"
        tables = [name for (name,) in database.execute(query)]
        rows = sum(
            database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in tables
        )
    return sum(seconds.values()) - seconds[busiest], seconds[busiest], written, float(rows)


def _at(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def waits(series_an_hour: float, workers: int, job_seconds: float, seed: int = 1) -> float:
    """Seconds that 95 of 100 series wait for a worker in the busiest hour, by simulation."""
    chance = random.Random(seed)
    free = [0.0] * workers
    now, waited = 0.0, []
    for _ in range(max(2000, int(series_an_hour))):
        now += chance.expovariate(series_an_hour / HOUR)
        begins = max(now, heapq.heappop(free))
        waited.append(begins - now)
        heapq.heappush(free, begins + job_seconds * chance.uniform(0.5, 1.5))
    return sorted(waited)[int(0.95 * len(waited))]


def workers_for(series_an_hour: float, job_seconds: float) -> int:
    """The fewest workers with which 95 of 100 series wait for no longer than is borne."""
    workers = max(1, math.ceil(series_an_hour * job_seconds / HOUR / MOST_USED))
    while waits(series_an_hour, workers, job_seconds) > MOST_WAIT_SECONDS:
        workers += 1
    return workers


def kept_bytes(costs: Costs, scanners: int) -> float:
    """Bytes that are kept of these scanners: what was received, and what was made of it."""
    return scanners * SERIES_A_DAY * KEEP_DAYS * costs.received_mb * 1e6 * (1 + FACTOR)


def shares(costs: Costs, scanners: int) -> dict[str, float]:
    """Shares of one machine that does everything, in the busiest hour."""
    a_second = scanners * SERIES_A_DAY * PEAK_SHARE / HOUR
    return {
        "room on the disk": kept_bytes(costs, scanners) / DISK,
        "processor for models": costs.worker_seconds * a_second / CORES,
        "processor beside them": costs.node_seconds * a_second / CORES,
        "syncs": costs.syncs * a_second / SYNCS,
        "bytes to the disk": costs.written_mb * 1e6 * a_second / DISK_BYTES,
        "network": costs.received_mb * FACTOR * 1e6 * a_second / WIRE_BYTES,
        "rows": costs.rows * a_second / ROWS,
    }


def table(costs: Costs) -> str:
    """A row a size: the workers that it needs, and what of one machine is used up first."""
    lines = [
        "| scanners | series in the busiest hour | workers | of one machine, the fullest first |",
        "|---|---|---|---|",
    ]
    for scanners in SCANNERS:
        series_an_hour = scanners * SERIES_A_DAY * PEAK_SHARE
        workers = workers_for(series_an_hour, costs.job_seconds)
        used = sorted(shares(costs, scanners).items(), key=lambda item: -item[1])[:4]
        words = ", ".join(f"{name} {share:.2g} times" for name, share in used)
        lines.append(f"| {scanners:,} | {series_an_hour:,.0f} | {workers:,} | {words} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the costs, or read them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--costs", type=Path, help="JSON of costs that were measured before")
    wanted = parser.parse_args(arguments)
    if wanted.costs is not None and wanted.costs.exists():
        costs = Costs(**json.loads(wanted.costs.read_text()))
    else:
        with tempfile.TemporaryDirectory(prefix="midslice-") as folder:
            costs = measured(Path(folder))
        if wanted.costs is not None:
            wanted.costs.write_text(json.dumps(asdict(costs)))
    sys.stdout.write(f"one series: {json.dumps(asdict(costs))}\n\n{table(costs)}\n")


if __name__ == "__main__":
    main()
