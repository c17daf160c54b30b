"""The overview: arriving, waiting, running, sending; and one whole job with its time line."""

import heapq
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, exists, func, or_, select

from storage.archive import arrival_rows
from storage.database import Database, to_delivery, to_names, to_record, to_records
from storage.enqueue import senders
from storage.errors import NotFound
from storage.ledger import deliveries_of, delivery_rows
from storage.records import (
    MOST_COUNTED,
    Arrival,
    ArrivalSummary,
    Attempt,
    AuditEvent,
    CommitmentState,
    Delivery,
    DeliveryState,
    DeliverySummary,
    Job,
    JobState,
    JobSummary,
    Moment,
    Page,
    QueuedJob,
    RequestKind,
    RunningJob,
    Subject,
    SwitchName,
)
from storage.schema import (
    ENDED_DELIVERY,
    ENDED_JOB,
    OPEN_ARRIVAL,
    OPEN_DELIVERY,
    OPEN_JOB,
    OPEN_REQUEST,
    arrival,
    audit,
    commitment,
    delivery,
    derived,
    derived_instance,
    job,
    request,
    series,
    switch,
)
from storage.transitions import DESTINATIONS_COLUMN, attempt_rows, read_job, without_files


def not_closed(database: Database) -> tuple[Arrival, ...]:
    """The arrivals that are complete and that an error of the node keeps open."""
    query = arrival_rows().where(OPEN_ARRIVAL, arrival.c.evidence != "{}")
    # Asked for them in this order, SQLite reads all that ever came.
    return tuple(sorted(database.records(Arrival, query), key=lambda it: it.id))


TYPICAL_OF = 50  # so many jobs that ended last say how long the next one takes

SUBJECT = tuple(
    series.c["id" if name == "series_id" else name].label(f"subject_{name}")
    for name in Subject.__dataclass_fields__
)
_OWN = ("derived_series_uid", "destinations", "sender", "subject")
JOB_COLUMNS = tuple(job.c[name] for name in JobSummary.__dataclass_fields__ if name not in _OWN)
JOB_SUMMARIES = (
    select(
        *JOB_COLUMNS,
        DESTINATIONS_COLUMN,
        arrival.c.calling_ae.label("sender"),
        derived.c.series_uid.label("derived_series_uid"),
        *SUBJECT,
    )
    .join(series, series.c.id == job.c.series_id)
    .join(arrival, arrival.c.id == job.c.arrival_id)
    .outerjoin(derived, derived.c.id == job.c.derived_id)
)


def arriving(database: Database) -> tuple[ArrivalSummary, ...]:
    """The arrivals that are not complete yet, the longest quiet first."""
    query = arrival_rows().add_columns(*SUBJECT).where(OPEN_ARRIVAL)
    with database.reading() as db:
        rows = db.execute(query.order_by(arrival.c.last_at, arrival.c.id)).all()
        never = _subjects(db, switch.c.subject, switch.c.name == SwitchName.NEVER)
        asked = _subjects(
            db, request.c.subject, and_(OPEN_REQUEST, request.c.kind == RequestKind.PROCESS_NOW)
        )
    return tuple(
        ArrivalSummary(
            arrival=to_record(Arrival, row),
            subject=to_record(Subject, row, "subject_"),
            never=row.series_uid in never,
            asked=row.series_uid in asked,
        )
        for row in rows
    )


def queue(database: Database, now: float, *, workers: int, limit: int = 50) -> Page[QueuedJob]:
    """The jobs that wait, in the order in which workers take them."""
    waits = and_(OPEN_JOB, job.c.state == JobState.QUEUED)
    order = job.c.priority, job.c.due_at, job.c.id
    with database.reading() as db:
        total = counted(db, select(job.c.id).where(waits))
        rows = db.execute(JOB_SUMMARIES.where(waits).order_by(*order).limit(limit)).all()
        busy = [run.seconds_left or 0.0 for run in _running(db, now)]
        takes = _typical(db)
        drained = _subjects(db, switch.c.name, switch.c.name == SwitchName.DRAINING)
    starts = _starts(now, busy, takes, workers, len(rows)) if not drained else {}
    lines = tuple(
        QueuedJob(place, starts.get(place), to_job_summary(row))
        for place, row in enumerate(rows, start=1)
    )
    return Page(lines, total, limit, 0)


def running(database: Database, now: float) -> tuple[RunningJob, ...]:
    """The jobs that workers have, the longest running first."""
    with database.reading() as db:
        return _running(db, now)


def sending(
    database: Database, limit: int = 50, offset: int = 0, *, destination: str = ""
) -> Page[DeliverySummary]:
    """The deliveries that are on their way or wait for it, those being sent first."""
    wanted: ColumnElement[bool] = delivery.c.state.in_(
        (DeliveryState.RUNNING, DeliveryState.QUEUED)
    )
    if destination:
        wanted = and_(wanted, delivery.c.destination == destination)
    order = delivery.c.state.desc(), delivery.c.priority, delivery.c.due_at, delivery.c.id
    return _deliveries(database, and_(OPEN_DELIVERY, wanted), order, limit, offset)


def unconfirmed(
    database: Database, destinations: Collection[str], limit: int = 50, offset: int = 0
) -> Page[DeliverySummary]:
    """The deliveries to destinations that give proof, not proved yet; the oldest first."""
    if not destinations:  # with an empty list the database would go through all that was ever sent
        return Page((), 0, limit, offset)
    sent = and_(ENDED_DELIVERY, delivery.c.state == DeliveryState.SENT)
    given_up = exists().where(
        commitment.c.delivery_id == delivery.c.id, commitment.c.state == CommitmentState.UNPROVED
    )
    wanted = and_(sent, delivery.c.destination.in_(destinations), ~given_up)
    return _deliveries(database, wanted, (delivery.c.finished_at, delivery.c.id), limit, offset)


def finished(database: Database, limit: int = 10) -> tuple[JobSummary, ...]:
    """The jobs that ended last, the newest first."""
    ended = JOB_SUMMARIES.where(job.c.finished_at.is_not(None)).order_by(job.c.finished_at.desc())
    with database.reading() as db:
        return tuple(to_job_summary(row) for row in db.execute(ended.limit(limit)))


def delivery_states(
    database: Database, jobs: Iterable[int]
) -> Mapping[int, tuple[tuple[str, DeliveryState], ...]]:
    """The destinations of the results of these jobs, each with the state of its delivery."""
    query = select(job.c.id, delivery.c.destination, delivery.c.state)
    query = query.join(delivery, delivery.c.derived_id == job.c.derived_id)
    states: dict[int, tuple[tuple[str, DeliveryState], ...]] = {}
    with database.reading() as db:
        rows = db.execute(query.where(job.c.id.in_(list(jobs))).order_by(delivery.c.id))
        for row in rows:
            states[row.id] = (*states.get(row.id, ()), (row.destination, DeliveryState(row.state)))
    return states


def held(database: Database) -> Mapping[str, int]:
    """Count the deliveries that are held for each destination that has any."""
    which = and_(ENDED_DELIVERY, delivery.c.state == DeliveryState.HELD)
    query = select(delivery.c.destination, func.count()).where(which)
    with database.reading() as db:
        rows = db.execute(query.group_by(delivery.c.destination).order_by(delivery.c.destination))
        return {row[0]: int(row[1]) for row in rows}


def held_for(database: Database, destination: str, most: int) -> tuple[int, ...]:
    """The deliveries that are held for a destination, the oldest first."""
    which = and_(ENDED_DELIVERY, delivery.c.state == DeliveryState.HELD)
    query = select(delivery.c.id).where(which, delivery.c.destination == destination)
    return database.values(query.order_by(delivery.c.id).limit(most))


def counts(database: Database) -> Mapping[str, int]:
    """Count the jobs and deliveries in each state: `job queued`, `delivery held`, ..."""
    with database.reading() as db:
        numbers = {f"job {state}": 0 for state in JobState}
        numbers |= {f"delivery {state}": 0 for state in DeliveryState}
        for table, name, parts in (
            (job, "job", (OPEN_JOB, ENDED_JOB)),
            (delivery, "delivery", (OPEN_DELIVERY, ENDED_DELIVERY)),
        ):
            for part in parts:
                query = select(table.c.state, func.count()).where(part).group_by(table.c.state)
                numbers |= {f"{name} {row[0]}": int(row[1]) for row in db.execute(query)}
    return numbers


def to_job_summary(row: Row[*tuple[Any, ...]]) -> JobSummary:
    return to_record(JobSummary, row, destinations=to_names(row.destinations))


def _running(db: Connection, now: float) -> tuple[RunningJob, ...]:
    runs = and_(OPEN_JOB, job.c.state == JobState.RUNNING)
    rows = db.execute(JOB_SUMMARIES.where(runs).order_by(job.c.started_at, job.c.id)).all()
    takes = _typical(db) if rows else None
    return tuple(_to_running(to_job_summary(row), now, takes) for row in rows)


def _to_running(line: JobSummary, now: float, takes: float | None) -> RunningJob:
    seconds = max(0.0, now - (line.started_at or now))
    left = max(0.0, takes - seconds) if takes is not None else None
    if line.progress > 0.1:  # before that its own pace says little
        left = seconds * (1.0 - line.progress) / line.progress
    return RunningJob(seconds, left, line)


def _typical(db: Connection) -> float | None:
    """The time that a job took of late, in seconds."""
    done = and_(ENDED_JOB, job.c.state == JobState.SUCCEEDED, job.c.started_at.is_not(None))
    query = select(job.c.finished_at - job.c.started_at).where(done)
    newest = query.order_by(job.c.queued_at.desc()).limit(TYPICAL_OF)
    took = [max(0.0, value) for value in db.execute(newest).scalars()]
    return median(took) if took else None


def _starts(
    now: float, busy: list[float], takes: float | None, workers: int, count: int
) -> dict[int, float]:
    """The time at which each place of the queue gets a worker, if all jobs take equally long."""
    if takes is None:
        return {}
    free = [now + left for left in busy[:workers]] + [now] * max(0, workers - len(busy))
    heapq.heapify(free)
    starts = {}
    for place in range(1, count + 1):
        starts[place] = heapq.heapreplace(free, free[0] + takes)
    return starts


def _deliveries(
    database: Database,
    which: ColumnElement[bool],
    order: tuple[ColumnElement[Any], ...],
    limit: int,
    offset: int,
) -> Page[DeliverySummary]:
    with database.reading() as db:
        total = counted(db, select(delivery.c.id).where(which))
        query = delivery_summaries().where(which).order_by(*order).limit(limit).offset(offset)
        lines = tuple(to_delivery_summary(row) for row in db.execute(query))
    return Page(lines, total, limit, offset)


def delivery_summaries() -> Select[*tuple[Any, ...]]:
    made_by = select(func.max(job.c.id)).where(job.c.derived_id == delivery.c.derived_id)
    generated = select(func.coalesce(func.sum(derived_instance.c.generated), 0)).where(
        derived_instance.c.derived_id == delivery.c.derived_id
    )
    return (
        delivery_rows()
        .join(series, series.c.id == derived.c.series_id)
        .add_columns(
            made_by.scalar_subquery().label("job_id"),
            generated.scalar_subquery().label("generated"),
            *SUBJECT,
        )
    )


def to_delivery_summary(row: Row[*tuple[Any, ...]]) -> DeliverySummary:
    return to_record(DeliverySummary, row, delivery=to_delivery(row))


def counted(db: Connection, which: Select[*tuple[Any, ...]]) -> int:
    """Count rows, no further than a page says."""
    counts = select(func.count()).select_from(which.limit(MOST_COUNTED).subquery())
    return int(db.execute(counts).scalar_one())


def _subjects(db: Connection, column: Any, which: ColumnElement[bool]) -> frozenset[str]:
    return frozenset(db.execute(select(column).where(which)).scalars())


@dataclass(frozen=True)
class JobDetail:
    """All that a page of one job shows but its instances: there may be thousands."""

    job: Job
    line: JobSummary
    arrival: Arrival
    attempts: tuple[Attempt, ...]
    deliveries: tuple[Delivery, ...]
    folder: str | None  # of the derived series, relative to the storage folder; None: not there
    audit: tuple[AuditEvent, ...]  # what people did to it, the oldest first
    moments: tuple[Moment, ...]
    is_gone: bool  # the received files were removed: it cannot be done again
    senders: tuple[str, ...]  # of all whose job it is


def job_detail(database: Database, job_id: int) -> JobDetail:
    """Everything about a job, in one view of the database."""
    with database.reading() as db:
        row = db.execute(JOB_SUMMARIES.where(job.c.id == job_id)).one_or_none()
        if row is None:
            raise NotFound(f"no job {job_id}")
        whole = read_job(db, job_id)
        came = to_record(
            Arrival, db.execute(arrival_rows().where(arrival.c.id == whole.arrival_id)).one()
        )
        attempts = to_records(Attempt, db.execute(attempt_rows(job_id)))
        deliveries = deliveries_of(db, whole.derived_id) if whole.derived_id else ()
        folder = _folder(db, whole.derived_id)
        did = _audit(db, job_id, deliveries)
        is_gone = job_id in without_files(db, [job_id])
        by = senders(db, job_id)
    moments = _moments(whole, came, attempts, deliveries, did)
    line = to_job_summary(row)
    return JobDetail(whole, line, came, attempts, deliveries, folder, did, moments, is_gone, by)


def _folder(db: Connection, derived_id: int | None) -> str | None:
    kept = and_(derived.c.id == derived_id, derived.c.purged_at.is_(None))
    return db.execute(select(derived.c.folder).where(kept)).scalar_one_or_none()


def _audit(db: Connection, job_id: int, deliveries: tuple[Delivery, ...]) -> tuple[AuditEvent, ...]:
    names = [f"job {job_id}", *(f"delivery {delivery.id}" for delivery in deliveries)]
    query = select(audit).where(or_(*(audit.c.which == name for name in names)))
    return to_records(AuditEvent, db.execute(query.order_by(audit.c.id)))


def _moments(
    whole: Job,
    came: Arrival,
    attempts: tuple[Attempt, ...],
    deliveries: tuple[Delivery, ...],
    did: tuple[AuditEvent, ...],
) -> tuple[Moment, ...]:
    moments = [Moment(came.first_at, "first instance", f"From {came.calling_ae}.")]
    moments.append(Moment(came.last_at, "last instance", f"{came.instances} instances in all."))
    if came.completed_at is not None:
        moments.append(Moment(came.completed_at, "complete", ""))
    moments.append(Moment(whole.queued_at, "queued", ""))
    for run in attempts:
        moments.append(Moment(run.started_at, "started", f"Attempt {run.number} on {run.worker}."))
        if run.ended_at is not None:
            moments.append(Moment(run.ended_at, run.outcome or "ended", ""))
    for sent in deliveries:
        moments += _moments_of(sent)
    moments += [Moment(event.at, event.what, "", event.who) for event in did]
    return tuple(sorted(moments, key=lambda moment: moment.at))


def _moments_of(sent: Delivery) -> list[Moment]:
    to = f"To {sent.destination}."
    moments = [Moment(sent.queued_at, "delivery queued", to)]
    if sent.started_at is not None:
        moments.append(Moment(sent.started_at, "sending", to))
    if sent.finished_at is not None:
        moments.append(Moment(sent.finished_at, str(sent.state), f"{to} {sent.sentence}".strip()))
    return moments
