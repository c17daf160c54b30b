"""What a running node's database says: quicker than asking its command line a hundred times."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import NullPool, create_engine, text

from tests.node_process import NodeProcess, wait_for

UNFINISHED = ("queued", "running")


@dataclass(frozen=True)
class JobRow:
    """A job as its row says it."""

    id: int
    state: str
    reason: str
    sentence: str
    stack: str
    route: str
    edition: int
    derived_uid: str | None
    revision: int | None  # of the derived series


@dataclass(frozen=True)
class DeliveryRow:
    """A delivery with how often its instances were offered, the most often of any."""

    state: str
    reason: str
    sentence: str
    destination: str
    derived_uid: str
    offers: int


def jobs(node: NodeProcess, series_uid: str) -> list[JobRow]:
    """The jobs of a received series, in every study, the oldest first."""
    rows = _rows(
        node,
        "SELECT job.id, job.state, reason, sentence, job.stack, job.route, job.edition, "
        "derived.series_uid, derived.revision "
        "FROM job JOIN series ON series.id = job.series_id "
        "LEFT JOIN derived ON derived.id = job.derived_id "
        "WHERE series.series_uid = :value ORDER BY job.id",
        series_uid,
    )
    return [JobRow(*row) for row in rows]


def deliveries(node: NodeProcess, series_uid: str) -> list[DeliveryRow]:
    """The deliveries of what was made of a received series, the oldest first."""
    rows = _rows(
        node,
        "SELECT delivery.state, reason, sentence, destination, derived.series_uid, "
        "(SELECT coalesce(max(offers), 0) FROM delivery_instance WHERE delivery_id = delivery.id) "
        "FROM delivery JOIN derived ON derived.id = delivery.derived_id "
        "JOIN series ON series.id = derived.series_id "
        "WHERE series.series_uid = :value ORDER BY delivery.id",
        series_uid,
    )
    return [DeliveryRow(*row) for row in rows]


def all_jobs(node: NodeProcess) -> list[JobRow]:
    """Every job there is."""
    found = _rows(node, "SELECT DISTINCT series_uid FROM series ORDER BY series_uid")
    return [row for (series_uid,) in found for row in jobs(node, str(series_uid))]


def kept(node: NodeProcess) -> dict[tuple[str, str], Path]:
    """Every version that is kept: SOP Instance UID and digest of the data set, and its file."""
    rows = _rows(node, "SELECT instance_uid, digest, path FROM instance WHERE path IS NOT NULL")
    return {(uid, digest): node.folder / "var" / path for uid, digest, path in rows}


def wait_until_settled(
    node: NodeProcess, series_uids: Iterable[str], *, arrivals: int = 1, seconds: float = 60.0
) -> None:
    """Until these series had so many arrivals each, all complete, and no job or delivery waits."""
    wanted = list(series_uids)

    def settled() -> bool:
        return all(_settled(node, uid, arrivals) for uid in wanted)

    try:
        wait_for(f"{len(wanted)} series are settled", settled, seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{node.output()}") from None


def wait_until_idle(node: NodeProcess, seconds: float = 60.0) -> None:
    """Until nothing is arriving and no job waits or runs."""
    query = (
        "SELECT 1 FROM arrival WHERE state = 'arriving' "
        "UNION SELECT 1 FROM job WHERE state IN ('queued', 'running')"
    )
    try:
        wait_for("the node is idle", lambda: not _rows(node, query), seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{node.output()}") from None


def _settled(node: NodeProcess, series_uid: str, arrivals: int) -> bool:
    states = _rows(
        node,
        "SELECT state FROM arrival JOIN series ON series.id = arrival.series_id "
        "WHERE series.series_uid = :value",
        series_uid,
    )
    return (
        len(states) >= arrivals
        and all(state == "complete" for (state,) in states)
        and not any(
            row.state in UNFINISHED
            for row in (*jobs(node, series_uid), *deliveries(node, series_uid))
        )
    )


def jobs_by_sender(node: NodeProcess) -> dict[str, list[JobRow]]:
    """The jobs of the series that each calling AE title has brought."""
    rows = _rows(
        node,
        "SELECT DISTINCT arrival.calling_ae, series.series_uid FROM arrival "
        "JOIN series ON series.id = arrival.series_id ORDER BY 1, 2",
    )
    found: dict[str, list[JobRow]] = {}
    for calling_ae, series_uid in rows:
        found.setdefault(str(calling_ae), []).extend(jobs(node, str(series_uid)))
    return found


def notices(node: NodeProcess) -> list[tuple[str, str]]:
    """What the administrator was told: of what, and the detail."""
    rows = _rows(node, "SELECT which, detail FROM audit WHERE what = 'notice' ORDER BY id")
    return [(str(which), str(detail)) for which, detail in rows]


def _rows(node: NodeProcess, query: str, value: str = "") -> list[tuple[Any, ...]]:
    engine = create_engine(node.database_url, poolclass=NullPool)
    with engine.connect() as db:
        found = db.execute(text(query), {"value": value} if ":value" in query else {})
        return [tuple(row) for row in found]
