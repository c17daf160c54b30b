"""What a job becomes that a person puts back: itself once more, or what its route asks for by now.

A job keeps what its route asked for, and its key says so. Where the route asks for something else
by now, a job of its own replaces it: no key ever stands for two results.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, select

from storage import askers
from storage.audit import note
from storage.database import Database
from storage.enqueue import enqueue, requeued
from storage.errors import WrongState
from storage.records import JobState, NewJob
from storage.rows import to_json
from storage.schema import arrival, job_asker, job_instance
from storage.transitions import JobRow, change, read_job

# Reasons to hold a job that the same slices and the same route give again, however often.
BY_ROUTE = ("MISSING_SLICES", "LOW_CONFIDENCE")
PUT_BACK = (JobState.REFUSED, JobState.FAILED, JobState.HELD, JobState.CANCELLED)
ROUTE_CHANGED = "ROUTE_CHANGED"  # why a job was cancelled that another one has replaced so
REPLACED = "Its route has changed since; job {job_id}, with the route as it is now, replaces it."


@dataclass(frozen=True)
class Anew:
    """What the route of a job asks for by now."""

    model: str
    parameters: Mapping[str, object]
    destinations: Callable[[str], tuple[str, ...]]  # for what a calling AE title has brought

    def is_as(self, model: str, parameters: Mapping[str, object]) -> bool:
        """Whether a job that keeps these would do the same."""
        return (self.model, dict(self.parameters)) == (model, dict(parameters))


def put_back(
    database: Database, db: Connection, row: JobRow, anew: Anew | None, now: float, who: str
) -> int:
    """Queue it again, or the job that its route asks for by now; which of them it is.

    Where nobody asks for it any more, since more slices have come, it is what it was.
    """
    asked = _asked(db, row.id)
    if row.reason == ROUTE_CHANGED:
        raise WrongState(f"job {row.id} cannot be requeued: {row.sentence}")
    if anew is not None and asked:
        before = read_job(db, row.id)
        if not anew.is_as(before.model, before.parameters):
            return _replace(database, db, row, anew, asked, now, who)
        for arrival_id, calling_ae in asked.items():
            askers.ask(database, db, row.id, arrival_id, anew.destinations(calling_ae))
        change(db, row.id, destinations=to_json(askers.wanted(db, row.id)))
    change(db, row.id, **{**requeued(now), "insisted": 1})
    return int(row.id)


def _replace(
    database: Database,
    db: Connection,
    row: JobRow,
    anew: Anew,
    asked: Mapping[int, str],
    now: float,
    who: str,
) -> int:
    """Everybody who asks for a job asks for another one instead."""
    job_id = int(row.id)
    for arrival_id, calling_ae in asked.items():
        new = _new(db, row, anew, arrival_id, anew.destinations(calling_ae))
        job_id = enqueue(database, db, new, now).job_id
    if read_job(db, job_id).state in PUT_BACK:  # it was there before; a person wants it now
        change(db, job_id, **requeued(now))
    change(db, job_id, insisted=1)
    told = {"reason": ROUTE_CHANGED, "sentence": REPLACED.format(job_id=job_id)}
    change(db, row.id, state=JobState.CANCELLED, finished_at=now, **told)
    if who:
        note(db, now, who, "requeue", f"job {job_id}", {"instead_of": row.id})
    return job_id


def _new(
    db: Connection, row: JobRow, anew: Anew, arrival_id: int, destinations: tuple[str, ...]
) -> NewJob:
    """The same instances of the same stack, by the route as it is now."""
    works_on = select(job_instance.c.instance_id).where(job_instance.c.job_id == row.id)
    identity = {"instead_of": row.key, "model": anew.model, "parameters": anew.parameters}
    return NewJob(
        kind=row.kind,
        key=hashlib.sha256(to_json(identity).encode()).hexdigest(),
        series_id=row.series_id,
        arrival_id=arrival_id,
        stack=row.stack,
        route=row.route,
        model=anew.model,
        parameters=anew.parameters,
        destinations=destinations,
        priority=row.priority,
        instances=tuple(db.execute(works_on.order_by(job_instance.c.rank)).scalars()),
    )


def _asked(db: Connection, job_id: int) -> dict[int, str]:
    """The arrivals that want a job, each with its calling AE title."""
    query = select(job_asker.c.arrival_id, arrival.c.calling_ae).where(job_asker.c.job_id == job_id)
    query = query.join(arrival, arrival.c.id == job_asker.c.arrival_id)
    rows = db.execute(query.order_by(job_asker.c.arrival_id))
    return {row.arrival_id: row.calling_ae for row in rows}
