"""A short text for each part of the pages that changes when the part does: cheap to ask often."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, select

from storage.database import Database
from storage.records import DeliveryState, JobState
from storage.schema import (
    ENDED_DELIVERY,
    ENDED_JOB,
    OPEN_ARRIVAL,
    OPEN_DELIVERY,
    OPEN_JOB,
    arrival,
    arrival_instance,
    delivery,
    delivery_instance,
    job,
)
from storage.schema_site import (
    OPEN_MESSAGE,
    account,
    association,
    audit,
    configuration,
    disk,
    echo,
    message,
    reach,
    selftest,
    switch,
    token,
    wish,
)


def marks(database: Database) -> Mapping[str, str]:
    """One mark an area; equal marks mean that there is nothing new to draw."""
    with database.reading() as db:
        return {area: "-".join(str(one) for one in found) for area, found in _areas(db).items()}


def _areas(db: Connection) -> dict[str, tuple[object, ...]]:
    switched = _each(
        db, func.count(switch.c.name), func.max(switch.c.at), func.max(switch.c.subject)
    )
    set_by_hand = (*switched, *_each(db, func.max(wish.c.id), func.max(wish.c.done_at)))
    untold = select(func.count(), func.sum(message.c.tries)).where(OPEN_MESSAGE)
    arriving = select(func.count()).select_from(arrival_instance.join(arrival))
    jobs = _jobs(db)
    ended = _each(db, func.max(job.c.finished_at), func.max(job.c.id))
    return {
        "now": (*_arrivals(db), db.execute(arriving.where(OPEN_ARRIVAL)).scalar(), *set_by_hand),
        "queue": (*jobs, *ended, *set_by_hand),
        "needs": _needs(db),
        "deliveries": _deliveries(db),
        "peers": (
            *_each(db, func.max(association.c.id), func.max(association.c.ended_at)),
            *_each(db, func.max(echo.c.id)),
            *_each(db, func.max(reach.c.checked_at)),
            *set_by_hand,
        ),
        "concerns": (
            *_each(db, func.max(reach.c.since), func.sum(reach.c.up)),
            *switched,
            *db.execute(untold).one(),
        ),
        "capacity": (*_each(db, func.max(disk.c.id)), *ended),
        "configuration": (
            *_each(db, func.max(configuration.c.applied_at), func.max(configuration.c.refused_at)),
            *_each(db, func.count(account.c.name), func.max(account.c.changed_at)),
            *_each(db, func.max(token.c.id), func.max(token.c.revoked_at)),
            *_each(db, func.max(message.c.id)),
            *set_by_hand,
        ),
        "selftest": _each(db, func.max(selftest.c.id), func.count(selftest.c.finished_at)),
        "audit": _each(db, func.max(audit.c.id)),
    }


def _each(db: Connection, *values: ColumnElement[Any]) -> tuple[object, ...]:
    """Every one in a query of its own: two maxima at once are a walk through the whole table."""
    return tuple(db.execute(select(value)).scalar() for value in values)


def _arrivals(db: Connection) -> tuple[object, ...]:
    newest = select(func.count(), func.max(arrival.c.last_at)).where(OPEN_ARRIVAL)
    return (*db.execute(newest).one(), *_each(db, func.max(arrival.c.completed_at)))


def _jobs(db: Connection) -> tuple[object, ...]:
    columns = (func.count(), func.sum(job.c.attempt), func.sum(job.c.progress))
    more = (func.sum(job.c.priority), func.sum(job.c.cancel_requested), func.max(job.c.queued_at))
    return tuple(db.execute(select(*columns, *more).where(OPEN_JOB)).one())


def _needs(db: Connection) -> tuple[object, ...]:
    found: list[object] = []
    for state in (JobState.HELD, JobState.FAILED):
        which = and_(ENDED_JOB, job.c.state == state)
        found += db.execute(select(func.count(), func.max(job.c.queued_at)).where(which)).one()
    held = and_(ENDED_DELIVERY, delivery.c.state == DeliveryState.HELD)
    newest = select(func.count(), func.max(delivery.c.finished_at)).where(held)
    return (*found, *db.execute(newest).one())


def _deliveries(db: Connection) -> tuple[object, ...]:
    waits = select(func.count(), func.sum(delivery.c.attempt), func.max(delivery.c.due_at))
    stored = (
        select(func.sum(delivery_instance.c.stored))
        .join(delivery, delivery.c.id == delivery_instance.c.delivery_id)
        .where(OPEN_DELIVERY, delivery.c.state == DeliveryState.RUNNING)
    )
    ended = [
        db.execute(
            select(func.max(delivery.c.finished_at)).where(
                ENDED_DELIVERY, delivery.c.state == state
            )
        ).scalar()
        for state in (DeliveryState.SENT, DeliveryState.CONFIRMED, DeliveryState.CANCELLED)
    ]
    return (*db.execute(waits.where(OPEN_DELIVERY)).one(), db.execute(stored).scalar(), *ended)
