"""What may be deleted, and its deletion: files go, UIDs, digests and ledger rows stay.

Rows say first that the files are gone, then the files go: a crash between the two leaves files
without a use, which the next start removes, and never a row whose file is missing.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    exists,
    func,
    or_,
    select,
    update,
)

from storage.database import Database
from storage.deliveries import UNDELIVERED
from storage.enqueue import UNFINISHED, lock_series
from storage.errors import StorageError
from storage.files import Files
from storage.records import ArrivalState, Expired, JobState, Purged
from storage.schema import arrival, delivery, derived, instance, job, series

logger = logging.getLogger(__name__)

DAY = 86_400.0

# So many files are removed while the series is locked: instances that arrive wait for no more.
FILES_AT_ONCE = 100


@dataclass(frozen=True)
class _Gone:
    """What the rows of one series do not name any more."""

    files: tuple[tuple[int, str], ...]  # ids of the instances, and their paths
    folders: tuple[str, ...]  # of derived series
    bytes: int


def expired(
    database: Database, now: float, keep_days: float, keep_unrouted_days: float
) -> tuple[Expired, ...]:
    """Series whose time is over: since their last delivery, or their last event without a job."""
    first = now - min(keep_days, keep_unrouted_days) * DAY
    with database.reading() as db:
        rows = db.execute(_finished(series.c.last_at <= first)).all()
    found = [_expired(row) for row in rows]
    keep = {"keep_days": keep_days, "keep_unrouted_days": keep_unrouted_days}
    return tuple(one for one in found if one.since + keep[one.rule] * DAY <= now)


def purge(database: Database, files: Files, these: Sequence[Expired], now: float) -> Purged:
    """Remove the files of these series; one that cannot be removed never stops the rest."""
    done, skipped, failed, size = [], [], [], 0
    for one in these:
        try:
            gone = _forget(database, one, now)
            if gone is None:
                skipped.append(one.series_id)
                continue
            _remove(database, files, one.series_id, gone)
        except (StorageError, OSError) as error:
            logger.warning(
                "series not purged",
                extra={"series_id": one.series_id, "error": type(error).__name__},
            )
            failed.append(one.series_id)
        else:
            done.append(one.series_id)
            size += gone.bytes
    return Purged(tuple(done), tuple(skipped), tuple(failed), size)


def _finished(which: ColumnElement[bool]) -> Select[*tuple[Any, ...]]:
    """Series with files and with nothing under way, and when something last happened to them."""
    of_jobs = job.c.series_id == series.c.id
    of_results = and_(derived.c.series_id == series.c.id, delivery.c.derived_id == derived.c.id)
    arriving = exists().where(
        arrival.c.series_id == series.c.id, arrival.c.state == ArrivalState.ARRIVING
    )
    has_files = or_(
        exists().where(instance.c.series_id == series.c.id, instance.c.path.is_not(None)),
        exists().where(derived.c.series_id == series.c.id, derived.c.purged_at.is_(None)),
    )
    completed = select(func.max(arrival.c.completed_at)).where(arrival.c.series_id == series.c.id)
    ended = select(func.max(job.c.finished_at)).where(of_jobs)
    delivered = select(func.max(delivery.c.finished_at)).where(of_results)
    return select(
        series.c.id,
        series.c.series_uid,
        series.c.last_at,
        completed.scalar_subquery().label("completed_at"),
        ended.scalar_subquery().label("ended_at"),
        delivered.scalar_subquery().label("delivered_at"),
        exists().where(of_jobs, job.c.state == JobState.SUCCEEDED).label("has_result"),
    ).where(
        which,
        has_files,
        ~arriving,
        ~exists().where(of_jobs, job.c.state.in_(UNFINISHED)),
        ~exists().where(of_results, delivery.c.state.in_(UNDELIVERED)),
    )


def _expired(row: Row[*tuple[Any, ...]]) -> Expired:
    times = (row.last_at, row.completed_at, row.ended_at, row.delivered_at)
    since = max(time for time in times if time is not None)
    if row.has_result:
        return Expired(row.id, row.series_uid, "keep_days", since)
    return Expired(row.id, row.series_uid, "keep_unrouted_days", since)


def _forget(database: Database, one: Expired, now: float) -> _Gone | None:
    """Let the rows say that the files are gone; None where the series is in use again."""
    of_series = series.c.id == one.series_id
    with database.writing() as db:
        lock_series(db, one.series_id)
        row = db.execute(_finished(of_series)).one_or_none()
        if row is None or _expired(row) != one:
            return None
        gone = _gone(db, one.series_id)
        here = instance.c.series_id == one.series_id
        db.execute(update(instance).where(here).values(path=None))
        made = and_(derived.c.series_id == one.series_id, derived.c.purged_at.is_(None))
        db.execute(update(derived).where(made).values(purged_at=now))
        db.execute(update(series).where(of_series).values(purged_at=now))
        return gone


def _gone(db: Connection, series_id: int) -> _Gone:
    here = and_(instance.c.series_id == series_id, instance.c.path.is_not(None))
    rows = db.execute(select(instance.c.id, instance.c.path, instance.c.size).where(here)).all()
    made = and_(derived.c.series_id == series_id, derived.c.purged_at.is_(None))
    return _Gone(
        files=tuple((row.id, row.path) for row in rows),
        folders=tuple(db.execute(select(derived.c.folder).where(made)).scalars()),
        bytes=sum(row.size for row in rows),
    )


def _remove(database: Database, files: Files, series_id: int, gone: _Gone) -> None:
    for folder in gone.folders:  # its name, of job and attempt, is never used again
        files.remove(folder)
    for start in range(0, len(gone.files), FILES_AT_ONCE):
        _remove_files(database, files, series_id, gone.files[start : start + FILES_AT_ONCE])


def _remove_files(
    database: Database, files: Files, series_id: int, these: Sequence[tuple[int, str]]
) -> None:
    # A peer may be sending the same bytes again just now: while the series is locked, a row
    # without a path means that nobody has put the file back.
    ids = [instance_id for instance_id, _ in these]
    with database.writing() as db:
        lock_series(db, series_id)
        still = and_(instance.c.id.in_(ids), instance.c.path.is_(None))
        unused = frozenset(db.execute(select(instance.c.id).where(still)).scalars())
        paths = [path for instance_id, path in these if instance_id in unused]
        for path in paths:
            files.remove(path)
        for folder in {path.rpartition("/")[0] for path in paths}:
            files.remove_empty(folder)
