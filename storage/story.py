"""The whole of one job, and its time line from the first instance to the last delivery."""

from dataclasses import dataclass

from sqlalchemy import Connection, and_, or_, select

from storage.archive import arrival_rows
from storage.database import Database
from storage.errors import NotFound
from storage.kept import without_files
from storage.ledger import delivery_rows
from storage.lines import JobLine, Moment
from storage.overview import JOB_LINES, to_job_line
from storage.records import Arrival, Attempt, Delivery, DeliveryState, Job
from storage.rows import to_arrival, to_attempt, to_audit_event, to_delivery
from storage.schema import arrival, attempt, delivery, derived, job
from storage.schema_site import audit
from storage.site import AuditEvent
from storage.transitions import read_job

DONE = (DeliveryState.SENT, DeliveryState.CONFIRMED)


@dataclass(frozen=True)
class Story:
    """What a page of one job shows; instances are asked for apart: there may be thousands."""

    job: Job
    line: JobLine
    arrival: Arrival
    attempts: tuple[Attempt, ...]
    deliveries: tuple[Delivery, ...]
    folder: str | None  # of the derived series, relative to the storage folder; None: not there
    audit: tuple[AuditEvent, ...]  # what people did to it, the oldest first
    moments: tuple[Moment, ...]
    is_gone: bool  # the received files were removed: it cannot be done again


def story(database: Database, job_id: int) -> Story:
    """Everything about a job, in one view of the database."""
    with database.reading() as db:
        row = db.execute(JOB_LINES.where(job.c.id == job_id)).one_or_none()
        if row is None:
            raise NotFound(f"no job {job_id}")
        whole = read_job(db, job_id)
        came = to_arrival(db.execute(arrival_rows().where(arrival.c.id == whole.arrival_id)).one())
        attempts = _attempts(db, job_id)
        deliveries = _deliveries(db, whole.derived_id)
        folder = _folder(db, whole.derived_id)
        did = _audit(db, job_id, deliveries)
        is_gone = job_id in without_files(db, [job_id])
    moments = _moments(whole, came, attempts, deliveries, did)
    line = to_job_line(row)
    return Story(whole, line, came, attempts, deliveries, folder, did, moments, is_gone)


def _attempts(db: Connection, job_id: int) -> tuple[Attempt, ...]:
    columns = (attempt.c[name] for name in Attempt.__dataclass_fields__)
    query = select(*columns).where(attempt.c.job_id == job_id).order_by(attempt.c.number)
    return tuple(to_attempt(row) for row in db.execute(query))


def _deliveries(db: Connection, derived_id: int | None) -> tuple[Delivery, ...]:
    query = delivery_rows().where(delivery.c.derived_id == derived_id).order_by(delivery.c.id)
    return tuple(to_delivery(row) for row in db.execute(query)) if derived_id else ()


def _folder(db: Connection, derived_id: int | None) -> str | None:
    kept = and_(derived.c.id == derived_id, derived.c.purged_at.is_(None))
    return db.execute(select(derived.c.folder).where(kept)).scalar_one_or_none()


def _audit(db: Connection, job_id: int, deliveries: tuple[Delivery, ...]) -> tuple[AuditEvent, ...]:
    names = [f"job {job_id}", *(f"delivery {one.id}" for one in deliveries)]
    query = select(audit).where(or_(*(audit.c.which == name for name in names)))
    return tuple(to_audit_event(row) for row in db.execute(query.order_by(audit.c.id)))


def _moments(
    whole: Job,
    came: Arrival,
    attempts: tuple[Attempt, ...],
    deliveries: tuple[Delivery, ...],
    did: tuple[AuditEvent, ...],
) -> tuple[Moment, ...]:
    found = [Moment(came.first_at, "first instance", f"From {came.calling_ae}.")]
    found.append(Moment(came.last_at, "last instance", f"{came.instances} instances in all."))
    if came.completed_at is not None:
        found.append(Moment(came.completed_at, "complete", ""))
    found.append(Moment(whole.queued_at, "queued", ""))
    for one in attempts:
        found.append(Moment(one.started_at, "started", f"Attempt {one.number} on {one.worker}."))
        if one.ended_at is not None:
            found.append(Moment(one.ended_at, one.outcome or "ended", ""))
    for each in deliveries:
        found += _moments_of(each)
    found += [Moment(event.at, event.what, "", event.who) for event in did]
    return tuple(sorted(found, key=lambda moment: moment.at))


def _moments_of(one: Delivery) -> list[Moment]:
    to = f"To {one.destination}."
    found = [Moment(one.queued_at, "delivery queued", to)]
    if one.started_at is not None:
        found.append(Moment(one.started_at, "sending", to))
    if one.finished_at is not None:
        found.append(Moment(one.finished_at, str(one.state), f"{to} {one.sentence}".strip()))
    return found
