"""After a soak: what was sent, acknowledged, kept, derived and delivered, and what was lost."""

import collections
import contextlib
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import dcmread
from rich.table import Table

from node import second_opinion

SUCCESS = "Received Store Response (Success)"
UNFINISHED = """
    SELECT (SELECT COUNT(*) FROM arrival WHERE state = 'arriving')
         + (SELECT COUNT(*) FROM job WHERE state IN ('queued', 'running'))
         + (SELECT COUNT(*) FROM delivery WHERE state IN ('queued', 'running'))
"""
JOBS = """
    SELECT series.series_uid, job.route, job.state, job.reason, derived.series_uid
    FROM job
    JOIN series ON series.id = job.series_id
    LEFT JOIN derived ON derived.id = job.derived_id
    ORDER BY job.id
"""
KEPT = """
    SELECT series.series_uid, instance.instance_uid, instance.path
    FROM instance JOIN series ON series.id = instance.series_id WHERE instance.path IS NOT NULL
"""


@dataclass(frozen=True)
class Route:
    """A route of the node: the called AE title that leads to it, and its factor."""

    name: str
    called: str
    factor: int


@dataclass
class Sending:
    """One series of a scanner, and which of its files the node has answered with Success."""

    series_uid: str
    scanner: str
    route: Route
    files: tuple[Path, ...]
    acknowledged: set[Path] = field(default_factory=set)
    is_whole: bool = False  # one association had all of it acknowledged

    @property
    def total(self) -> int:
        """Instances of the derived series."""
        return self.route.factor * (len(self.files) - 1) + 1

    def acknowledge(self, output: str) -> int:
        """Note what storescu says was answered with Success; how many that were this time."""
        now = set(answered(output))
        self.acknowledged |= now
        self.is_whole = self.is_whole or now == set(self.files)
        return len(now)

    def __str__(self) -> str:
        return f"series {self.series_uid} of {self.scanner} to {self.route.called}"


@dataclass(frozen=True)
class Job:
    """What the node made of a series on a route."""

    series_uid: str
    route: str
    state: str
    reason: str
    derived_uid: str | None


@dataclass
class Found:
    """Counts for each route, and a sentence for each loss."""

    counts: dict[str, collections.Counter[str]]
    losses: list[str]


def answered(output: str) -> Iterator[Path]:
    """The files that `storescu -v` says were answered with Success."""
    current: Path | None = None
    for line in output.splitlines():
        if sending := re.search(r"Sending file: (.*)$", line):
            current = Path(sending.group(1).strip())
        elif SUCCESS in line and current is not None:
            yield current
            current = None


def unfinished(database: Path) -> int:
    """Arrivals, jobs and deliveries that have not come to their end."""
    with contextlib.closing(sqlite3.connect(database, timeout=30.0)) as db:
        (count,) = db.execute(UNFINISHED).fetchone()
    return int(count)


def audit(sendings: Sequence[Sending], storage: Path, destinations: Sequence[Path]) -> Found:
    """Compare what scanners were promised with what the node and the destinations have."""
    with contextlib.closing(sqlite3.connect(storage / "midslice.db", timeout=30.0)) as db:
        jobs = [Job(*row) for row in db.execute(JOBS)]
        kept = {(series, uid): storage / path for series, uid, path in db.execute(KEPT)}
        (integrity,) = db.execute("PRAGMA integrity_check").fetchone()
        (open_ends,) = db.execute(UNFINISHED).fetchone()
    found = Found(collections.defaultdict(collections.Counter), [])
    if integrity != "ok":
        found.losses.append(f"database: {integrity}")
    if open_ends:
        found.losses.append(f"{open_ends} arrivals, jobs or deliveries did not come to an end")
    left = [path.name for path in (storage / "incoming").iterdir()]
    if left:
        found.losses.append(f"left in incoming: {', '.join(left)}")
    held = [_by_series(folder) for folder in destinations]
    for sending in sendings:
        _audit_one(sending, jobs, kept, held, found)
    return found


def _audit_one(
    sending: Sending,
    jobs: Sequence[Job],
    kept: dict[tuple[str, str], Path],
    held: Sequence[dict[str, list[Path]]],
    found: Found,
) -> None:
    counts = found.counts[sending.route.name]
    counts["series"] += 1
    counts["sent"] += len(sending.files)
    counts["acknowledged"] += len(sending.acknowledged)
    missing = [file for file in sending.acknowledged if not _is_kept(file, sending, kept)]
    counts["kept"] += len(sending.acknowledged) - len(missing)
    found.losses += [f"{sending}: {file.name} was acknowledged and is not kept" for file in missing]
    mine = [j for j in jobs if (j.series_uid, j.route) == (sending.series_uid, sending.route.name)]
    counts["jobs"] += len(mine)
    counts["derived"] += sum(job.derived_uid is not None for job in mine)
    faults = _faults(sending, mine, held) if sending.is_whole else []
    counts["delivered"] += sending.is_whole and not faults
    counts["lost"] += len(missing) + bool(faults)
    found.losses += [f"{sending}: {fault}" for fault in faults]


def _is_kept(file: Path, sending: Sending, kept: dict[tuple[str, str], Path]) -> bool:
    """The node has it, with the pixels that were sent."""
    sent = dcmread(file)
    path = kept.get((sending.series_uid, str(sent.SOPInstanceUID)))
    return path is not None and path.exists() and dcmread(path).PixelData == sent.PixelData


def _faults(
    sending: Sending, jobs: Sequence[Job], held: Sequence[dict[str, list[Path]]]
) -> list[str]:
    """What is wrong with the derived series of a whole series, at each destination."""
    made = [job.derived_uid for job in jobs if job.state == "succeeded" and job.derived_uid]
    if not made:
        states = ", ".join(f"{job.state} {job.reason}".strip() for job in jobs)
        return [f"no job has succeeded; jobs: {states or 'none'}"]
    faults: list[str] = []
    for destination in held:
        # A part of the series that was quiet for long has a derived series of its own, before.
        whole = [uid for uid in made if len(destination.get(uid, [])) == sending.total]
        if not whole:
            faults.append(f"a destination does not have its {sending.total} derived instances")
            continue
        files = destination[whole[-1]]
        faults += second_opinion.check(sending.files, files, factor=sending.route.factor)
    return faults


def _by_series(folder: Path) -> dict[str, list[Path]]:
    series: dict[str, list[Path]] = collections.defaultdict(list)
    for path in sorted(folder.iterdir()):
        header = dcmread(path, specific_tags=["SeriesInstanceUID"], stop_before_pixels=True)
        series[str(header.SeriesInstanceUID)].append(path)
    return series


COLUMNS = ("series", "sent", "acknowledged", "kept", "jobs", "derived", "delivered", "lost")


def rendered(found: Found, routes: Iterable[Route]) -> Table:
    """One row a called AE title, and their sum."""
    table = Table(title="soak", title_justify="left")
    table.caption = "sent, acknowledged, kept: instances; derived, delivered: series"
    table.add_column("")
    for heading in COLUMNS:
        table.add_column(heading, justify="right")
    total: collections.Counter[str] = collections.Counter()
    for route in routes:
        counts = found.counts.get(route.name, collections.Counter())
        total.update(counts)
        table.add_row(route.called, *(str(counts[heading]) for heading in COLUMNS))
    table.add_section()
    table.add_row("all", *(str(total[heading]) for heading in COLUMNS))
    return table
