"""After kills: what was sent, acknowledged, kept, derived, delivered; what was lost or doubled."""

import collections
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import dcmread
from rich.table import Table
from sqlalchemy import NullPool, create_engine, text

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
DERIVED = "SELECT series_uid, folder FROM derived WHERE purged_at IS NULL"
MADE = "SELECT series_uid FROM derived UNION SELECT series_uid FROM derived_instance"


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
    is_purged: bool = False  # retention was to remove it after its results were sent

    @property
    def total(self) -> int:
        """Instances of the derived series."""
        return self.route.factor * (len(self.files) - 1) + 1

    def acknowledge(self, output: str) -> int:
        """Note what storescu says was answered with Success; how many that were this time."""
        return self.acknowledge_files(answered(output))

    def acknowledge_files(self, files: Iterable[Path]) -> int:
        """Note the files that one association had answered with Success; how many they were."""
        now = set(files)
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
    """Counts for each route, and a sentence for each loss and for what is there twice."""

    counts: dict[str, collections.Counter[str]]
    losses: list[str]
    doubles: list[str]
    of_series: dict[str, collections.Counter[str]]  # "lost" and "doubled" of each


def answered(output: str) -> Iterator[Path]:
    """The files that `storescu -v` says were answered with Success."""
    current: Path | None = None
    for line in output.splitlines():
        if sending := re.search(r"Sending file: (.*)$", line):
            current = Path(sending.group(1).strip())
        elif SUCCESS in line and current is not None:
            yield current
            current = None


def unfinished(url: str) -> int:
    """Arrivals, jobs and deliveries that have not come to their end."""
    return int(_rows(url, UNFINISHED)[0][0])


def audit(
    sendings: Sequence[Sending], storage: Path, destinations: Sequence[Path], url: str
) -> Found:
    """Compare what scanners were promised with what the node and the destinations have."""
    counts = collections.defaultdict(collections.Counter)
    found = Found(counts, [], [], collections.defaultdict(collections.Counter))
    found.losses += _faults_of_storage(storage, url)
    jobs = [Job(*row) for row in _rows(url, JOBS)]
    rows = [(series, uid, storage / path) for series, uid, path in _rows(url, KEPT)]
    kept = {(series, uid): path for series, uid, path in rows}
    if len(kept) < len(rows):
        found.doubles.append(f"{len(rows) - len(kept)} received instances are kept twice")
    held = [_by_series(folder) for folder in destinations]
    known = {series_uid for (series_uid,) in _rows(url, MADE)}
    for unknown in {series_uid for destination in held for series_uid in destination} - known:
        found.doubles.append(f"a destination has a series that no row knows: {unknown}")
    for sending in sendings:
        _audit_one(sending, jobs, kept, held, found)
    return found


def _faults_of_storage(storage: Path, url: str) -> list[str]:
    """What is wrong with the database and the folders beside it, whoever sent what."""
    faults = []
    if url.startswith("sqlite") and (answer := _rows(url, "PRAGMA integrity_check")) != [("ok",)]:
        faults.append(f"database: {answer}")
    if open_ends := unfinished(url):
        faults.append(f"{open_ends} arrivals, jobs or deliveries did not come to an end")
    used = {folder for _, folder in _rows(url, DERIVED)}
    unused = [folder.name for folder in _folders(storage) if f"derived/{folder.name}" not in used]
    named = {
        "left in incoming": [
            path.name for path in (storage / "incoming").rglob("*") if path.is_file()
        ],
        "left in derived": unused,
        "rows without their files": [
            path for _, _, path in _rows(url, KEPT) if not (storage / path).exists()
        ],
    }
    return [*faults, *(f"{what}: {', '.join(names)}" for what, names in named.items() if names)]


def _rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with create_engine(url, poolclass=NullPool).connect() as db:
        return [tuple(row) for row in db.execute(text(query))]


def _folders(storage: Path) -> list[Path]:
    return list((storage / "derived").iterdir())


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
    acknowledged = () if sending.is_purged else sending.acknowledged
    missing = [file for file in acknowledged if not _is_kept(file, sending, kept)]
    counts["kept"] += len(sending.acknowledged) - len(missing)
    found.losses += [f"{sending}: {file.name} was acknowledged and is not kept" for file in missing]
    mine = [j for j in jobs if (j.series_uid, j.route) == (sending.series_uid, sending.route.name)]
    counts["jobs"] += len(mine)
    counts["derived"] += sum(job.derived_uid is not None for job in mine)
    faults = _faults(sending, mine, held) if sending.is_whole else []
    counts["delivered"] += sending.is_whole and not faults
    counts["lost"] += len(missing) + bool(faults)
    doubled = _doubled(sending, mine, held)
    found.doubles += [f"{sending}: {number} whole derived series" for number in doubled]
    found.of_series[sending.series_uid] += collections.Counter(
        lost=len(missing) + bool(faults), doubled=len(doubled)
    )
    found.losses += [f"{sending}: {fault}" for fault in faults]


def _doubled(
    sending: Sending, jobs: Sequence[Job], held: Sequence[dict[str, list[Path]]]
) -> list[int]:
    """For each destination that has more than one whole derived series of it: how many."""
    made = {job.derived_uid for job in jobs if job.derived_uid}
    counts = [
        sum(len(destination.get(uid, ())) == sending.total for uid in made) for destination in held
    ]
    return [count for count in counts if count > 1]


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
