"""What a running node's database says: quicker than asking its command line a hundred times."""

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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
        "SELECT job.id, job.state, reason, sentence, stack, route, job.edition, derived.series_uid "
        "FROM job JOIN series ON series.id = job.series_id "
        "LEFT JOIN derived ON derived.id = job.derived_id "
        "WHERE series.series_uid = ? ORDER BY job.id",
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
        "WHERE series.series_uid = ? ORDER BY delivery.id",
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
        "WHERE series.series_uid = ?",
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


def _rows(node: NodeProcess, query: str, *values: str) -> list[tuple[object, ...]]:
    db = sqlite3.connect(node.folder / "var" / "midslice.db", timeout=20.0)
    try:
        return db.execute(query, values).fetchall()
    finally:
        db.close()
