"""What asking for a job does: a new one, an old one once more, or nothing."""

from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, delete, select, update

from storage import askers, limits
from storage.database import Database
from storage.deliveries import queue_deliveries
from storage.limits import NO_LIMITS, Limits
from storage.records import Enqueued, JobState, NewJob, What
from storage.rows import to_json
from storage.schema import derived, job, job_instance, series
from storage.superseding import SUPERSEDED, supersede


def enqueue(
    database: Database, db: Connection, new: NewJob, now: float, most: Limits = NO_LIMITS
) -> Enqueued:
    """Ask for a job. Asking twice is asking once: the key says what is the same."""
    row = _by_key(db, new.key)
    within = _within(db, new, now, most)
    job_id = _insert(database, db, within, now) if row is None else None
    if job_id is not None:
        askers.ask(database, db, job_id, new.arrival_id, new.destinations)
        return _enqueued(within, job_id, "queued", supersede(db, new, job_id, now))
    row = row or _by_key(db, new.key)  # another node was faster
    assert row is not None
    wanted = askers.ask(database, db, row.id, new.arrival_id, new.destinations)
    if row.state in (JobState.FAILED, JobState.CANCELLED) or _is_resolved(db, row, new):
        _requeue(db, row, within, wanted, now, row.edition)
        return _enqueued(within, row.id, "requeued", supersede(db, new, row.id, now))
    if row.state == JobState.SUCCEEDED:
        return _again(database, db, row, within, wanted, now)
    return _join(db, row, new, wanted, now)


def _within(db: Connection, new: NewJob, now: float, most: Limits) -> NewJob:
    """The same, or held where it is one too many for a day."""
    if new.verdict is not None:
        return new
    return replace(new, verdict=limits.over(db, new, now, most))


def requeued(now: float) -> dict[str, object]:
    """The columns of a job that begins anew; its attempts stay and go on counting."""
    return {
        "state": JobState.QUEUED,
        "reason": "",
        "sentence": "",
        "queued_at": now,
        "due_at": now,
        "started_at": None,
        "finished_at": None,
        "worker_deaths": 0,
        "abandoned": 0,
        "progress": 0,
        "cancel_requested": 0,
        "insisted": 0,
    }


def _begun(new: NewJob, now: float) -> dict[str, object]:
    """The columns of a job as it is asked for: queued, or what its verdict says."""
    if new.verdict is None:
        return requeued(now)
    told = {"reason": new.verdict.reason, "sentence": new.verdict.sentence}
    return {**requeued(now), **told, "state": new.verdict.state, "finished_at": now}


def _enqueued(new: NewJob, job_id: int, what: What, cancelled: tuple[int, ...]) -> Enqueued:
    if new.verdict is None:
        return Enqueued(job_id, what, cancelled)
    return Enqueued(job_id, new.verdict.what, cancelled, new.verdict.reason)


def lock_series(db: Connection, series_id: int) -> None:
    """Keep retention, and instances that arrive, away until the transaction ends."""
    db.execute(select(series.c.id).where(series.c.id == series_id).with_for_update())


def _by_key(db: Connection, key: str) -> Row[*tuple[Any, ...]] | None:
    return db.execute(select(job).where(job.c.key == key).with_for_update()).one_or_none()


def _insert(database: Database, db: Connection, new: NewJob, now: float) -> int | None:
    """A new row, or None where the key exists."""
    row = database.insert(job).values(
        kind=new.kind,
        key=new.key,
        series_id=new.series_id,
        arrival_id=new.arrival_id,
        stack=new.stack,
        route=new.route,
        model=new.model,
        parameters=to_json(new.parameters),
        destinations=to_json(new.destinations),
        priority=new.priority,
        **_begun(new, now),
    )
    inserted = db.execute(row.on_conflict_do_nothing().returning(job.c.id)).scalar_one_or_none()
    if inserted is None:
        return None
    _work_on(db, inserted, new)
    return int(inserted)


def _work_on(db: Connection, job_id: int, new: NewJob) -> None:
    """The versions as they were looked at: what arrives later is another job's."""
    rows = [
        {"job_id": job_id, "instance_id": one, "rank": rank}
        for rank, one in enumerate(dict.fromkeys(new.instances))
    ]
    db.execute(delete(job_instance).where(job_instance.c.job_id == job_id))
    if rows:
        db.execute(job_instance.insert(), rows)


def _is_resolved(db: Connection, row: Row[*tuple[Any, ...]], new: NewJob) -> bool:
    """What spoke against the job does so no more.

    Held over versions of which, since the series was sent again, not all count any more; or refused
    before a worker looked, for what lay beside it or by another configuration.
    """
    if row.state == JobState.REFUSED and row.started_at is None and new.verdict is None:
        return True
    mine = select(job_instance.c.instance_id).where(job_instance.c.job_id == row.id)
    return row.state == JobState.HELD and set(db.execute(mine).scalars()) != set(new.instances)


def _join(
    db: Connection,
    row: Row[*tuple[Any, ...]],
    new: NewJob,
    wanted: tuple[str, ...],
    now: float,
) -> Enqueued:
    """A job that has no result yet is asked for by one more: its result goes to all of them."""
    values: dict[str, object] = {"destinations": to_json(wanted)}
    if row.cancel_requested and row.reason in ("", SUPERSEDED):
        # Wanted again before its worker has stopped; where it stops all the same, the job is
        # queued again (`Queue.cancelled`).
        values |= {"cancel_requested": 0, "reason": "", "sentence": ""}
    db.execute(update(job).where(job.c.id == row.id).values(**values))
    return Enqueued(row.id, "known", supersede(db, new, row.id, now))


def _requeue(
    db: Connection,
    row: Row[*tuple[Any, ...]],
    new: NewJob,
    wanted: tuple[str, ...],
    now: float,
    edition: int,
) -> None:
    snapshot = {
        "parameters": to_json(new.parameters),
        "destinations": to_json(wanted),
        "priority": new.priority,
        "edition": edition,
    }
    db.execute(update(job).where(job.c.id == row.id).values(**_begun(new, now), **snapshot))
    _work_on(db, row.id, new)


def _again(
    database: Database,
    db: Connection,
    row: Row[*tuple[Any, ...]],
    new: NewJob,
    wanted: tuple[str, ...],
    now: float,
) -> Enqueued:
    """A finished job is asked for: deliver what it made, or make it again where that is gone."""
    made = db.execute(select(derived).where(derived.c.id == row.derived_id)).one()
    if made.purged_at is not None:
        # A peer may still have the earlier bytes: the same UIDs must not mean others.
        edition = row.edition if made.offered_at is None else max(row.edition, made.edition + 1)
        _requeue(db, row, new, wanted, now, edition)
        return _enqueued(new, row.id, "requeued", supersede(db, new, row.id, now))
    snapshot = {"destinations": to_json(wanted), "priority": new.priority}
    db.execute(update(job).where(job.c.id == row.id).values(**snapshot))
    # Who has it already asked for nothing: the destinations of the others stay as they are.
    queue_deliveries(database, db, made.id, new.destinations, new.priority, now)
    return Enqueued(row.id, "redelivered", supersede(db, new, row.id, now))
