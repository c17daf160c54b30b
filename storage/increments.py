"""What has ended since somebody looked last: the steps of counters, read by index.

A row counts some seconds after its time, when the transaction that wrote it has surely committed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection, and_, func, select

from storage.database import Database
from storage.records import DeliveryState
from storage.schema import (
    ENDED_DELIVERY,
    arrival,
    delivery,
    delivery_instance,
    derived,
    instance,
    job,
)
from storage.schema_site import association

SETTLED_SECONDS = 5.0
# Named one by one: the index of what has ended begins with the state.
ENDS = (
    DeliveryState.SENT,
    DeliveryState.CONFIRMED,
    DeliveryState.HELD,
    DeliveryState.CANCELLED,
)


@dataclass(frozen=True)
class Since:
    """Where the last look ended: a time, and an instance that is older than it."""

    at: float
    instance_id: int = 0


@dataclass(frozen=True)
class EndedJob:
    """How a job ended, how long it waited for a worker and how long that took, in seconds."""

    state: str
    reason: str
    waited: float | None  # None: it never had a worker
    took: float | None


@dataclass(frozen=True)
class EndedDelivery:
    """How a delivery ended, how long after it was asked for, and what the destination stored."""

    destination: str
    state: str
    reason: str
    took: float
    instances: int
    folder: str  # of the derived series, relative to the storage folder


@dataclass(frozen=True)
class Increment:
    """What came to its end between two looks."""

    jobs: tuple[EndedJob, ...] = ()
    deliveries: tuple[EndedDelivery, ...] = ()
    arrivals: tuple[float, ...] = ()  # seconds from the first instance to completion
    associations: Mapping[str, int] = field(default_factory=dict)  # how they ended -> how many
    instances: int = 0  # received
    bytes: int = 0


def begin(database: Database, now: float) -> Since:
    """Count from here on: what was before is not read."""
    newest = select(func.max(instance.c.id))
    with database.reading() as db:
        return Since(now - SETTLED_SECONDS, int(db.execute(newest).scalar() or 0))


def increment(database: Database, since: Since, now: float) -> tuple[Increment, Since]:
    """What has ended since then, and from where to look the next time.

    Where the clock was set back the next look begins there: what ended in that time counts again
    when the clock comes to it a second time, which is better than counting nothing until then.
    """
    until = now - SETTLED_SECONDS
    with database.reading() as db:
        instances, size = _received(db, since, until)
        found = Increment(
            jobs=_jobs(db, since.at, until),
            deliveries=_deliveries(db, since.at, until),
            arrivals=_arrivals(db, since.at, until),
            associations=_associations(db, since.at, until),
            instances=instances,
            bytes=size,
        )
        return found, Since(until, _older(db, since))


def _jobs(db: Connection, after: float, until: float) -> tuple[EndedJob, ...]:
    ended = and_(job.c.finished_at > after, job.c.finished_at <= until)
    columns = (job.c.state, job.c.reason, job.c.queued_at, job.c.started_at, job.c.finished_at)
    return tuple(
        EndedJob(
            state=row.state,
            reason=row.reason,
            waited=_span(row.queued_at, row.started_at),
            took=_span(row.started_at, row.finished_at),
        )
        for row in db.execute(select(*columns).where(ended))
    )


def _deliveries(db: Connection, after: float, until: float) -> tuple[EndedDelivery, ...]:
    stored = (
        select(func.coalesce(func.sum(delivery_instance.c.stored), 0))
        .where(delivery_instance.c.delivery_id == delivery.c.id)
        .scalar_subquery()
    )
    columns = (delivery.c.destination, delivery.c.state, delivery.c.reason, delivery.c.queued_at)
    query = select(*columns, delivery.c.finished_at, stored.label("stored"), derived.c.folder)
    query = query.join(derived, derived.c.id == delivery.c.derived_id)
    ended = and_(
        ENDED_DELIVERY,
        delivery.c.state.in_(ENDS),
        delivery.c.finished_at > after,
        delivery.c.finished_at <= until,
    )
    return tuple(
        EndedDelivery(
            destination=row.destination,
            state=row.state,
            reason=row.reason,
            took=_span(row.queued_at, row.finished_at) or 0.0,
            instances=int(row.stored),
            folder=row.folder,
        )
        for row in db.execute(query.where(ended))
    )


def _arrivals(db: Connection, after: float, until: float) -> tuple[float, ...]:
    closed = and_(arrival.c.completed_at > after, arrival.c.completed_at <= until)
    query = select(arrival.c.first_at, arrival.c.completed_at).where(closed)
    return tuple(max(0.0, row.completed_at - row.first_at) for row in db.execute(query))


def _associations(db: Connection, after: float, until: float) -> dict[str, int]:
    ended = and_(association.c.ended_at > after, association.c.ended_at <= until)
    query = select(association.c.how, func.count()).where(ended).group_by(association.c.how)
    return {str(how): int(count) for how, count in db.execute(query)}


def _received(db: Connection, since: Since, until: float) -> tuple[int, int]:
    came = and_(
        instance.c.id > since.instance_id,
        instance.c.received_at > since.at,
        instance.c.received_at <= until,
    )
    counts = select(func.count(), func.coalesce(func.sum(instance.c.size), 0))
    row = db.execute(counts.where(came)).one()
    return int(row[0]), int(row[1])


def _older(db: Connection, since: Since) -> int:
    """An instance that came before the window just read: the next one need not look behind it.

    One window late, since PostgreSQL commits ids in another order than it gives them.
    """
    before = and_(instance.c.id > since.instance_id, instance.c.received_at <= since.at)
    found = db.execute(select(func.max(instance.c.id)).where(before)).scalar()
    return int(found) if found is not None else since.instance_id


def _span(begin: float | None, end: float | None) -> float | None:
    """Seconds between two times; a clock that was set back makes none of them negative."""
    if begin is None or end is None:
        return None
    return max(0.0, end - begin)
