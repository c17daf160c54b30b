"""Figures for monitors: counters, gauges, durations, evaluations; change tokens of pages."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, select

from storage.database import Database
from storage.records import Bucket, DeliveryState, JobState, Percentiles
from storage.schema import (
    ENDED_DELIVERY,
    ENDED_JOB,
    ENDED_OF_ROUTE,
    NEEDS_JOB,
    OPEN_ARRIVAL,
    OPEN_DELIVERY,
    OPEN_JOB,
    OPEN_MESSAGE,
    account,
    arrival,
    arrival_instance,
    association,
    audit,
    configuration,
    delivery,
    delivery_instance,
    derived,
    disk,
    echo,
    instance,
    job,
    message,
    node,
    reach,
    request,
    selftest,
    switch,
    token,
)

# A row counts some seconds after its time, when the transaction that wrote it has surely
# committed.

SETTLED_SECONDS = 5.0
# The steps of one job: `receive` from its first instance to its last, `wait` until its arrival is
# complete, `queue` until a worker takes it, `infer` until its result is verified, `send` until the
# destination has stored it, `total` from the last instance to there.

STEPS = ("receive", "wait", "queue", "infer", "send", "total")
SOON = 60.0  # a job that was queued later than this after its arrival was asked for by a person
# So many, the newest, say it: more would tell the same, and a page must not read a year.
MOST_JOBS = 600
NEWEST_JOBS = 10  # say which devices are used
WELL = (DeliveryState.SENT, DeliveryState.CONFIRMED)
NEWEST_RESULTS = 20  # so many results are looked at slice by slice

# Named one by one: the index of what has ended begins with the state.
ENDS = (*WELL, DeliveryState.HELD, DeliveryState.CANCELLED)


@dataclass(frozen=True)
class Since:
    """The end of the last look: a time, and an instance that is older than it."""

    at: float
    instance_id: int = 0


@dataclass(frozen=True)
class EndedJob:
    """The end of a job; how long it waited for a worker and how long that took, in seconds."""

    state: str
    reason: str
    waited: float | None  # None: it never had a worker
    took: float | None


@dataclass(frozen=True)
class EndedDelivery:
    """The end of a delivery, how long after it was asked for, and what the destination stored."""

    destination: str
    state: str
    reason: str
    took: float
    instances: int
    folder: str  # of the derived series, relative to the storage folder


@dataclass(frozen=True)
class CounterDelta:
    """The jobs, deliveries, arrivals, ... that came to their end between two looks."""

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


def counter_delta(database: Database, since: Since, now: float) -> tuple[CounterDelta, Since]:
    """Read what has ended since then, and from where to look the next time.

    Where the clock was set back the next look begins there: what ended in that time counts again
    when the clock comes to it a second time, which is better than counting nothing until then.
    """
    until = now - SETTLED_SECONDS
    with database.reading() as db:
        instances, size = _received(db, since, until)
        delta = CounterDelta(
            jobs=_jobs(db, since.at, until),
            deliveries=_deliveries(db, since.at, until),
            arrivals=_arrivals(db, since.at, until),
            associations=_associations(db, since.at, until),
            instances=instances,
            bytes=size,
        )
        return delta, Since(until, _older(db, since))


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
    newest = db.execute(select(func.max(instance.c.id)).where(before)).scalar()
    return int(newest) if newest is not None else since.instance_id


def _span(begin: float | None, end: float | None) -> float | None:
    """Seconds between two times; a clock that was set back makes none of them negative."""
    if begin is None or end is None:
        return None
    return max(0.0, end - begin)


@dataclass(frozen=True)
class Gauges:
    """Counts of what is open, and since when the oldest waits."""

    arrivals: int
    associations: int
    oldest_queued_at: float | None  # of the jobs that wait for a worker


def gauges(database: Database) -> Gauges:
    waits = and_(OPEN_JOB, job.c.state == JobState.QUEUED)
    arriving = select(func.count()).select_from(arrival).where(OPEN_ARRIVAL)
    associated = select(func.count()).where(association.c.ended_at.is_(None))
    # The least of a column alone is looked for in its index, which knows all that ever waited.
    oldest = func.min(job.c.queued_at + 0.0)
    with database.reading() as db:
        return Gauges(
            arrivals=int(db.execute(arriving).scalar_one()),
            associations=int(db.execute(associated).scalar_one()),
            oldest_queued_at=db.execute(select(oldest).where(waits)).scalar(),
        )


def durations(database: Database, since: float, until: float) -> Mapping[str, Percentiles]:
    """Each step of the jobs that ended in this time."""
    with database.reading() as db:
        return _by_step(_samples(db, since, until, MOST_JOBS))


def buckets(database: Database, since: float, until: float, width: float) -> tuple[Bucket, ...]:
    """The same for each hour or day of this time, the oldest first."""
    count = max(1, round((until - since) / width))
    with database.reading() as db:
        starts = [since + number * width for number in range(count)]
        samples = [_samples(db, at, at + width, MOST_JOBS // count) for at in starts]
        ended = _per_bucket(db, job.c.finished_at, since, until, width)
        failed = _per_bucket(db, job.c.finished_at, since, until, width, NEEDS_JOB)
        # Instances of the arrivals that were complete in each bucket.
        brought = func.sum(arrival.c.brought)
        received = _per_bucket(db, arrival.c.completed_at, since, until, width, count=brought)
    return tuple(
        Bucket(
            start=start,
            end=start + width,
            steps=_by_step(samples[number]),
            jobs=ended.get(number, 0),
            instances=received.get(number, 0),
            failed=failed.get(number, 0),
        )
        for number, start in enumerate(starts)
    )


def devices(database: Database) -> tuple[str, ...]:
    """The devices that the newest jobs really ran on; a model may use no accelerator."""
    newest = select(job.c.record).where(job.c.state == JobState.SUCCEEDED)
    newest = newest.order_by(job.c.finished_at.desc()).limit(NEWEST_JOBS)
    names = [json.loads(text).get("device") for text in database.values(newest)]
    return tuple(dict.fromkeys(str(name) for name in names if name))


def percentiles(values: Sequence[float]) -> Percentiles:
    """By linear interpolation between the two nearest ranks."""
    if len(values) < 2:
        only = values[0] if values else None
        return Percentiles(len(values), only, only)
    cuts = quantiles(values, n=20, method="inclusive")
    return Percentiles(len(values), p50=cuts[9], p95=cuts[18])


def _by_step(samples: Iterable[Mapping[str, float]]) -> dict[str, Percentiles]:
    by_step: dict[str, list[float]] = {step: [] for step in STEPS}
    for steps in samples:
        for step, seconds in steps.items():
            by_step[step].append(seconds)
    return {step: percentiles(values) for step, values in by_step.items()}


def _samples(db: Connection, since: float, until: float, most: int) -> list[dict[str, float]]:
    """The steps of the jobs that ended then; a clock that was set back is no duration."""
    arrived = select(func.min(delivery.c.finished_at)).where(
        delivery.c.derived_id == job.c.derived_id, delivery.c.state.in_(WELL)
    )
    columns = (job.c.state, job.c.queued_at, job.c.started_at, job.c.finished_at)
    of_arrival = (arrival.c.first_at, arrival.c.last_at, arrival.c.completed_at)
    newest = (
        select(*columns, *of_arrival, arrived.scalar_subquery().label("sent_at"))
        .join(arrival, arrival.c.id == job.c.arrival_id)
        .where(job.c.finished_at >= since, job.c.finished_at < until, job.c.kind == "infer")
        .order_by(job.c.finished_at.desc())
        .limit(most)
    )
    return [_steps(row) for row in db.execute(newest)]


def _steps(row: Any) -> dict[str, float]:
    spans: dict[str, tuple[float | None, float | None]] = {
        "receive": (row.first_at, row.last_at),
        "wait": (row.last_at, row.completed_at),
        "queue": (row.queued_at, row.started_at),
    }
    if row.state == JobState.SUCCEEDED:
        spans["infer"] = (row.started_at, row.finished_at)
        spans["send"] = (row.finished_at, row.sent_at)
        # Of a job that was put back by a person, the wait for that person does not count.
        if row.completed_at is not None and row.queued_at <= row.completed_at + SOON:
            spans["total"] = (row.last_at, row.sent_at)
    return {
        step: last - first
        for step, (first, last) in spans.items()
        if first is not None and last is not None and last >= first
    }


def _per_bucket(
    db: Connection,
    at: Any,
    since: float,
    until: float,
    width: float,
    *which: Any,
    count: ColumnElement[int] | None = None,
) -> dict[int, int]:
    number = func.floor((at - since) / width).label("number")
    columns = number, func.count() if count is None else count
    query = select(*columns).where(at >= since, at < until, *which).group_by(number)
    return {int(row[0]): int(row[1]) for row in db.execute(query)}


@dataclass(frozen=True)
class Evaluation:
    """Jobs of one route that have ended, by state; slices of its newest results."""

    jobs: Mapping[JobState, int]
    slices: int  # generated ones that say how sure the model was
    expected_error_hu: float | None  # the median of them
    unsure: int  # of them


def evaluation(database: Database, route: str, since: float) -> Evaluation:
    """Sum up what the jobs of a route have given since then."""
    mine = ENDED_OF_ROUTE, job.c.finished_at >= since, job.c.route == route
    counted = select(job.c.state, func.count()).where(*mine).group_by(job.c.state)
    newest = select(job.c.record).where(*mine, job.c.state == JobState.SUCCEEDED)
    with database.reading() as db:
        jobs = {JobState(row[0]): int(row[1]) for row in db.execute(counted)}
        newest = newest.order_by(job.c.finished_at.desc()).limit(NEWEST_RESULTS)
        records = db.execute(newest).scalars()
        entries = [it for text in records for it in json.loads(text).get("confidence") or ()]
    slices = [it for it in entries if "confidence" in it]
    errors = [float(it["error_hu"]) for it in slices if it.get("error_hu") is not None]
    unsure = sum(it.get("word") == "unsure" for it in slices)
    return Evaluation(jobs, len(slices), median(errors) if errors else None, unsure)


def change_tokens(database: Database) -> Mapping[str, str]:
    """One mark an area; equal marks mean that there is nothing new to draw."""
    with database.reading() as db:
        return {area: "-".join(map(str, values)) for area, values in _areas(db).items()}


def _areas(db: Connection) -> dict[str, tuple[object, ...]]:
    switched = _each(
        db, func.count(switch.c.name), func.max(switch.c.at), func.max(switch.c.subject)
    )
    set_by_hand = (*switched, *_each(db, func.max(request.c.id), func.max(request.c.done_at)))
    untold = select(func.count(), func.sum(message.c.tries)).where(OPEN_MESSAGE)
    arriving = select(func.count()).select_from(arrival_instance.join(arrival))
    jobs = _jobs_token(db)
    ended = _each(db, func.max(job.c.finished_at), func.max(job.c.id))
    return {
        "now": (
            *_arrivals_token(db),
            db.execute(arriving.where(OPEN_ARRIVAL)).scalar(),
            *set_by_hand,
        ),
        "queue": (*jobs, *ended, *set_by_hand),
        "needs": _needs(db),
        "deliveries": _deliveries_token(db),
        "peers": (
            *_each(db, func.max(association.c.id), func.max(association.c.ended_at)),
            *_each(db, func.max(echo.c.id)),
            *_each(db, func.max(reach.c.checked_at)),
            *set_by_hand,
        ),
        "alerts": (
            *_each(db, func.max(reach.c.since), func.sum(reach.c.up)),
            *_each(db, func.max(node.c.lacking_since), func.count(node.c.lacking_since)),
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


def _arrivals_token(db: Connection) -> tuple[object, ...]:
    newest = select(func.count(), func.max(arrival.c.last_at)).where(OPEN_ARRIVAL)
    return (*db.execute(newest).one(), *_each(db, func.max(arrival.c.completed_at)))


def _jobs_token(db: Connection) -> tuple[object, ...]:
    columns = (func.count(), func.sum(job.c.attempt), func.sum(job.c.progress))
    more = (func.sum(job.c.priority), func.sum(job.c.cancel_requested), func.max(job.c.queued_at))
    return tuple(db.execute(select(*columns, *more).where(OPEN_JOB)).one())


def _needs(db: Connection) -> tuple[object, ...]:
    counts: list[object] = []
    for state in (JobState.HELD, JobState.FAILED):
        which = and_(ENDED_JOB, job.c.state == state)
        counts += db.execute(select(func.count(), func.max(job.c.queued_at)).where(which)).one()
    held = and_(ENDED_DELIVERY, delivery.c.state == DeliveryState.HELD)
    newest = select(func.count(), func.max(delivery.c.finished_at)).where(held)
    return (*counts, *db.execute(newest).one())


def _deliveries_token(db: Connection) -> tuple[object, ...]:
    waits = select(func.count(), func.sum(delivery.c.attempt), func.max(delivery.c.due_at))
    stored = (
        select(func.sum(delivery_instance.c.stored))
        .join(delivery, delivery.c.id == delivery_instance.c.delivery_id)
        .where(OPEN_DELIVERY, delivery.c.state == DeliveryState.RUNNING)
    )
    newest = select(func.max(delivery.c.finished_at)).where(ENDED_DELIVERY)
    ended = [
        db.execute(newest.where(delivery.c.state == state)).scalar()
        for state in (*WELL, DeliveryState.CANCELLED)
    ]
    return (*db.execute(waits.where(OPEN_DELIVERY)).one(), db.execute(stored).scalar(), *ended)
