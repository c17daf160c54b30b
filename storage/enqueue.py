"""What asking for a job does: a new one, an old one once more, or nothing."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, select, update

from storage.database import Database
from storage.deliveries import cancel_undelivered, queue_deliveries
from storage.records import Enqueued, JobState, NewJob, What
from storage.rows import to_json, to_names
from storage.schema import arrival, derived, job, job_instance, series

SUPERSEDED = "SUPERSEDED"
SUPERSEDED_SENTENCE = "More or other slices of this series arrived; job {job_id} replaces this one."

UNFINISHED = (JobState.QUEUED, JobState.RUNNING, JobState.HELD)


def enqueue(database: Database, db: Connection, new: NewJob, now: float) -> Enqueued:
    """Ask for a job. Asking twice is asking once: the key says what is the same."""
    row = _by_key(db, new.key)
    job_id = _insert(database, db, new, now) if row is None else None
    if job_id is not None:
        return _enqueued(new, job_id, "queued", _supersede(db, new, job_id, now))
    row = row or _by_key(db, new.key)  # another node was faster
    assert row is not None
    if row.state in (JobState.FAILED, JobState.CANCELLED) or _is_resolved(db, row, new):
        _requeue(db, row, new, now, row.edition)
        return _enqueued(new, row.id, "requeued", _supersede(db, new, row.id, now))
    if row.state == JobState.SUCCEEDED:
        return _again(database, db, row, new, now)
    return _join(db, row, new, now)


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
    """Held over versions of which, since the series was sent again, not all count any more."""
    mine = select(job_instance.c.instance_id).where(job_instance.c.job_id == row.id)
    return row.state == JobState.HELD and set(db.execute(mine).scalars()) != set(new.instances)


def _join(db: Connection, row: Row[*tuple[Any, ...]], new: NewJob, now: float) -> Enqueued:
    """A job that has no result yet is asked for by one more: its result goes to all of them."""
    wanted = dict.fromkeys((*to_names(row.destinations), *new.destinations))
    values: dict[str, object] = {"destinations": to_json(tuple(wanted))}
    cancelled: tuple[int, ...] = ()
    if row.cancel_requested and row.reason in ("", SUPERSEDED):
        # Wanted again before its worker has stopped; where it stops all the same, the job is
        # queued again (`Queue.cancelled`).
        values |= {"cancel_requested": 0, "reason": "", "sentence": ""}
        cancelled = _supersede(db, new, row.id, now)
    db.execute(update(job).where(job.c.id == row.id).values(**values))
    return Enqueued(row.id, "known", cancelled)


def _requeue(
    db: Connection, row: Row[*tuple[Any, ...]], new: NewJob, now: float, edition: int
) -> None:
    snapshot = {
        "parameters": to_json(new.parameters),
        "destinations": to_json(new.destinations),
        "priority": new.priority,
        "edition": edition,
    }
    db.execute(update(job).where(job.c.id == row.id).values(**_begun(new, now), **snapshot))
    _work_on(db, row.id, new)


def _again(
    database: Database, db: Connection, row: Row[*tuple[Any, ...]], new: NewJob, now: float
) -> Enqueued:
    """A finished job is asked for: deliver what it made, or make it again where that is gone."""
    made = db.execute(select(derived).where(derived.c.id == row.derived_id)).one()
    if made.purged_at is not None:
        # A peer may still have the earlier bytes: the same UIDs must not mean others.
        edition = row.edition if made.offered_at is None else max(row.edition, made.edition + 1)
        _requeue(db, row, new, now, edition)
        return _enqueued(new, row.id, "requeued", _supersede(db, new, row.id, now))
    snapshot = {"destinations": to_json(new.destinations), "priority": new.priority}
    db.execute(update(job).where(job.c.id == row.id).values(**snapshot))
    queue_deliveries(database, db, made.id, new.destinations, new.priority, now)
    return Enqueued(row.id, "redelivered", _supersede(db, new, row.id, now))


def _supersede(db: Connection, new: NewJob, job_id: int, now: float) -> tuple[int, ...]:
    """What the same peer, route and stack had before is not wanted any more; ids of unfinished."""
    older = _older(db, new, job_id)
    why = {"reason": SUPERSEDED, "sentence": SUPERSEDED_SENTENCE.format(job_id=job_id)}
    cancelled = {"state": JobState.CANCELLED, "finished_at": now, "cancel_requested": 0}
    unfinished = [row for row in older if row.state in UNFINISHED]
    for row in unfinished:
        stop = {"cancel_requested": 1} if row.state == JobState.RUNNING else cancelled
        db.execute(update(job).where(job.c.id == row.id).values(**why, **stop))
    _supersede_results(db, older, now)
    return tuple(row.id for row in unfinished)


def _older(db: Connection, new: NewJob, job_id: int) -> Sequence[Row[*tuple[Any, ...]]]:
    this, theirs = arrival.alias("this"), arrival.alias("theirs")
    same_peer = and_(
        this.c.calling_ae == theirs.c.calling_ae, this.c.called_ae == theirs.c.called_ae
    )
    query = (
        select(job.c.id, job.c.state, job.c.derived_id)
        .join(theirs, theirs.c.id == job.c.arrival_id)
        .join(this, and_(same_peer, this.c.id == new.arrival_id))
        .where(
            job.c.id != job_id,
            job.c.series_id == new.series_id,
            job.c.route == new.route,
            job.c.stack == new.stack,
        )
        .order_by(job.c.id)
    )
    return db.execute(query.with_for_update(of=job)).all()


def _supersede_results(db: Connection, older: Sequence[Row[*tuple[Any, ...]]], now: float) -> None:
    ids = [row.id for row in older]
    made = {row.derived_id for row in older if row.derived_id is not None}
    # The same derived series may be the result of a job that stays, of another peer or route.
    shared = select(job.c.derived_id).where(job.c.derived_id.in_(made), job.c.id.not_in(ids))
    for derived_id in sorted(made - set(db.execute(shared).scalars())):
        cancel_undelivered(db, derived_id, SUPERSEDED, now)
        fresh = and_(derived.c.id == derived_id, derived.c.superseded_at.is_(None))
        db.execute(update(derived).where(fresh).values(superseded_at=now))
