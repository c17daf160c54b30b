"""Retention: files that may be deleted, their deletion; UIDs, digests and ledger rows stay."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    TextClause,
    and_,
    delete,
    exists,
    func,
    or_,
    select,
    union,
    update,
)

from storage.archive import lock_series
from storage.database import Database
from storage.errors import StorageError
from storage.files import Files
from storage.records import DAY, DeliveryState, Expired, JobState, Purged
from storage.schema import (
    ENDED_DELIVERY,
    KEPT_SERIES,
    NEEDS_JOB,
    OPEN_ARRIVAL,
    OPEN_COMMITMENT,
    PURGING_SERIES,
    arrival,
    arrival_association,
    association,
    audit,
    commitment,
    delivery,
    derived,
    instance,
    job,
    series,
    want,
)
from storage.site import notices
from storage.site.audit import NODE, note
from storage.transitions import PENDING, UNDELIVERED

# A series is marked first (`purged_at`), then its files go, some at a time, and with each bite
# the paths in its rows. A path stays until its file is gone for good: a purge that was
# interrupted goes on with the next sweep, and what a peer sends again in between takes the mark
# away.

logger = logging.getLogger(__name__)

ASSOCIATION_DAYS = 30.0  # who connected when; what was brought stays known for ever
ROWS_AT_ONCE = 500

SERIES_AT_ONCE = 20
DELIVERED = (DeliveryState.SENT, DeliveryState.CONFIRMED)
EARLY = (
    "The disk is below its reserve (storage.min_free_gb): series whose results were all sent are "
    "removed before storage.keep_days, the oldest first, so that images can still be received. "
    "Make room, or lower storage.keep_days."
)

# So many files are removed while the series is locked: instances that arrive wait for no more.
FILES_AT_ONCE = 100

WAITS = "retention waits"
SENTENCE = (
    "{series} series older than storage.keep_days stay on the disk because {jobs} held or failed "
    "jobs and {deliveries} held deliveries wait for a person: requeue, redeliver or cancel them."
)


def expired(
    database: Database, now: float, keep_days: float, keep_unrouted_days: float
) -> tuple[Expired, ...]:
    """Series whose time is over: since their last delivery, or their last event without a job.

    With those whose purge was interrupted.
    """
    first = now - min(keep_days, keep_unrouted_days) * DAY
    keep = {"keep_days": keep_days, "keep_unrouted_days": keep_unrouted_days}
    with database.reading() as db:
        last = series.c.last_at <= now - max(keep.values()) * DAY
        is_short = ~_kept_long() if keep_days >= keep_unrouted_days else _kept_long()
        whole = db.execute(_finished(KEPT_SERIES, series.c.last_at <= first, or_(last, is_short)))
        old = [_expired(row) for row in whole]
        purging = _finished(PURGING_SERIES, series.c.purged_at.is_not(None))
        marked = [_expired(row) for row in db.execute(purging)]
    return (*marked, *(it for it in old if it.since + keep[it.rule] * DAY <= now))


def sent(database: Database) -> tuple[Expired, ...]:
    """Series whose results all their destinations have, the oldest first, some at a time.

    Without those that were promised to a sender, that wait for a proof, or of which nobody has
    heard since the database was lost.
    """
    of_result = and_(derived.c.series_id == series.c.id, delivery.c.derived_id == derived.c.id)
    arrived = exists().where(of_result, delivery.c.state.in_(DELIVERED))
    restored = exists().where(arrival.c.series_id == series.c.id, arrival.c.restored == 1)
    which = (arrived, ~restored, series.c.committed_at.is_(None), series.c.purged_at.is_(None))
    oldest = _finished(*which).order_by(series.c.last_at, series.c.id).limit(SERIES_AT_ONCE)
    with database.reading() as db:
        return tuple(_expired(row) for row in db.execute(oldest))


def report_early(database: Database, now: float) -> None:
    """Let people know, once a day, that series go before their time."""
    with database.writing() as db:
        key = f"purged early {int(now // DAY)}"
        notices.post(database, db, now, "attention", key, {"sentence": EARLY})


def purge(database: Database, files: Files, these: Sequence[Expired], now: float) -> Purged:
    """Remove the files of these series; one that cannot be removed never stops the rest."""
    done, skipped, failed, size = [], [], [], 0
    for expired_series in these:
        series_id = expired_series.series_id
        try:
            if not _mark(database, expired_series, now):
                skipped.append(series_id)
                continue
            size += _remove(database, files, series_id)
        except (StorageError, OSError) as error:
            logger.warning(
                "series not purged",
                extra={"series_id": series_id, "error": type(error).__name__},
            )
            failed.append(series_id)
        else:
            done.append(series_id)
    return Purged(tuple(done), tuple(skipped), tuple(failed), size)


def purge_one(database: Database, files: Files, series_id: int, now: float) -> bool:
    """Remove the files of one series at once, as `purge`; False where something is under way."""
    with database.reading() as db:
        row = db.execute(_finished(series.c.id == series_id)).one_or_none()
    return row is not None and series_id in purge(database, files, [_expired(row)], now).series


def forget_associations(database: Database, now: float) -> int:
    """Remove the rows of associations that ended long ago; how many. What they brought stays."""
    arriving = exists().where(
        arrival_association.c.association_id == association.c.id,
        arrival_association.c.arrival_id == arrival.c.id,
        OPEN_ARRIVAL,
    )
    old = association.c.ended_at < now - ASSOCIATION_DAYS * DAY
    query = select(association.c.id).where(old, ~arriving)
    query = query.order_by(association.c.ended_at).limit(ROWS_AT_ONCE)
    count = 0
    while True:
        with database.writing() as db:
            ids = db.execute(query).scalars().all()
            linked = arrival_association.c.association_id.in_(ids)
            db.execute(delete(arrival_association).where(linked))
            db.execute(delete(association).where(association.c.id.in_(ids)))
        count += len(ids)
        if len(ids) < ROWS_AT_ONCE:
            return count


def _finished(*which: ColumnElement[bool] | TextClause) -> Select[*tuple[Any, ...]]:
    """Series with files and with nothing under way, and when something last happened to them."""
    of_jobs = job.c.series_id == series.c.id
    of_results = and_(derived.c.series_id == series.c.id, delivery.c.derived_id == derived.c.id)
    arriving = exists().where(arrival.c.series_id == series.c.id, OPEN_ARRIVAL)
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
        series.c.committed_at,
        completed.scalar_subquery().label("completed_at"),
        ended.scalar_subquery().label("ended_at"),
        delivered.scalar_subquery().label("delivered_at"),
        _has_result().label("has_result"),
        _is_restored().label("is_restored"),
    ).where(
        *which,
        ~exists().where(of_jobs, or_(job.c.state.in_(PENDING), _failed())),
        ~exists().where(of_results, delivery.c.state.in_(UNDELIVERED)),
        ~exists().where(of_results, commitment.c.delivery_id == delivery.c.id, OPEN_COMMITMENT),
        ~arriving,
        has_files,
    )


def _has_result() -> ColumnElement[bool]:
    return exists().where(job.c.series_id == series.c.id, job.c.state == JobState.SUCCEEDED)


def _is_restored() -> ColumnElement[bool]:
    return exists().where(arrival.c.series_id == series.c.id, arrival.c.restored == 1)


def _kept_long() -> ColumnElement[bool]:
    """A series that `keep_days` is the time of.

    Of a restored one nobody has heard before; who was promised it may have deleted it since.
    """
    return or_(_has_result(), _is_restored(), series.c.committed_at.is_not(None))


def _failed() -> ColumnElement[bool]:
    """A job that failed and that a peer still wants: a person may requeue it, or cancel it."""
    wanted = exists().where(want.c.job_id == job.c.id, want.c.withdrawn == 0)
    return and_(job.c.state == JobState.FAILED, job.c.kind != "selftest", wanted)


def _expired(row: Row[*tuple[Any, ...]]) -> Expired:
    times = (row.last_at, row.completed_at, row.ended_at, row.delivered_at, row.committed_at)
    since = max(time for time in times if time is not None)
    is_promised = row.committed_at is not None
    if row.has_result or row.is_restored or is_promised:
        return Expired(row.id, row.series_uid, "keep_days", since)
    return Expired(row.id, row.series_uid, "keep_unrouted_days", since)


def _mark(database: Database, before: Expired, now: float) -> bool:
    """Mark a series, and what was made of it, as purged; False where it is in use again."""
    of_series = series.c.id == before.series_id
    with database.writing() as db:
        lock_series(db, before.series_id)
        row = db.execute(_finished(of_series)).one_or_none()
        if row is None or _expired(row) != before:
            return False
        results = and_(derived.c.series_id == before.series_id, derived.c.purged_at.is_(None))
        db.execute(update(derived).where(results).values(purged_at=now))
        db.execute(update(series).where(of_series).values(purged_at=now, purging=1))
        return True


def _remove(database: Database, files: Files, series_id: int) -> int:
    """Remove the files of a marked series; how many bytes those that were received had."""
    results = and_(derived.c.series_id == series_id, derived.c.purged_at.is_not(None))
    here = and_(instance.c.series_id == series_id, instance.c.path.is_not(None))
    with database.reading() as db:
        folders = db.execute(select(derived.c.folder).where(results)).scalars().all()
        ids = db.execute(select(instance.c.id).where(here).order_by(instance.c.id)).scalars().all()
    for folder in folders:  # its name, of job and attempt, is never used again
        files.remove(folder)
    size = 0
    problems: list[Exception] = []
    for start in range(0, len(ids), FILES_AT_ONCE):
        bite = ids[start : start + FILES_AT_ONCE]
        removed, left = _remove_some(database, files, series_id, bite)
        size += removed
        problems += left
    if problems:
        raise problems[0]
    done = and_(series.c.id == series_id, series.c.purged_at.is_not(None))
    with database.writing() as db:
        db.execute(update(series).where(done).values(purging=0))
    return size


def _remove_some(
    database: Database, files: Files, series_id: int, ids: Sequence[int]
) -> tuple[int, list[Exception]]:
    """The bytes of the files that are gone, and why others are not: their rows keep the path."""
    some = (
        select(instance.c.id, instance.c.path, instance.c.size)
        .join(series, series.c.id == instance.c.series_id)
        .where(instance.c.id.in_(ids), instance.c.path.is_not(None))
        .where(series.c.purged_at.is_not(None))
        .order_by(instance.c.id)
    )
    gone = []
    problems: list[Exception] = []
    with database.writing() as db:
        # A peer may be sending the same bytes again just now: it waits until this bite is done,
        # and then takes the mark away.
        lock_series(db, series_id)
        for row in db.execute(some).all():
            try:
                files.remove(row.path)
            except (StorageError, OSError) as error:
                problems.append(error)
            else:
                gone.append(row)
        for folder in {row.path.rpartition("/")[0] for row in gone}:
            files.settle_folder(folder)  # before the rows forget: no power cut brings a file back
        forgotten = instance.c.id.in_([row.id for row in gone])
        db.execute(update(instance).where(forgotten).values(path=None))
    return sum(row.size for row in gone), problems


@dataclass(frozen=True)
class HeldWork:
    """Counts of what is old enough to go and stays, because it is held or has failed."""

    series: int
    jobs: int
    deliveries: int


def held_work(db: Connection, before: float) -> HeldWork:
    """Count what was held before this time and nobody has decided since."""
    waits = or_(job.c.state == JobState.HELD, _failed())
    job_held = and_(NEEDS_JOB, waits, job.c.finished_at < before)
    sent_held = and_(
        ENDED_DELIVERY, delivery.c.state == DeliveryState.HELD, delivery.c.finished_at < before
    )
    of_deliveries = select(derived.c.series_id).join(delivery).where(sent_held)
    stuck = series.c.id.in_(union(select(job.c.series_id).where(job_held), of_deliveries))
    counts = (
        select(func.count()).select_from(series).where(stuck, series.c.purged_at.is_(None)),
        select(func.count()).select_from(job).where(job_held),
        select(func.count()).select_from(delivery).where(sent_held),
    )
    return HeldWork(*(int(db.execute(query).scalar_one()) for query in counts))


def report_held_work(database: Database, now: float, keep_days: float) -> HeldWork | None:
    """Tell the administrator, at most once a day; None where there is nothing new to say."""
    with database.reading() as db:
        held = held_work(db, now - keep_days * DAY)
        reported = select(audit.c.id).where(audit.c.what == "notice", audit.c.which == WAITS)
        if held == HeldWork(0, 0, 0) or db.execute(reported.where(audit.c.at > now - DAY)).first():
            return None
    detail = {"kind": "retention", "sentence": SENTENCE.format(**vars(held)), **vars(held)}
    with database.writing() as db:
        note(db, now, NODE, "notice", WAITS, detail)
        facts = {"sentence": detail["sentence"]}
        notices.post(database, db, now, "attention", f"{WAITS} {now:.3f}", facts)
    return held
