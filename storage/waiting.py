"""Series that retention cannot remove because something of them waits for a person."""

from dataclasses import dataclass

from sqlalchemy import Connection, and_, exists, func, or_, select

from storage.audit import NODE, note
from storage.database import Database
from storage.records import DeliveryState, JobState
from storage.schema import delivery, derived, job, series
from storage.schema_site import audit

DAY = 86_400.0
WAITS = "retention waits"
SENTENCE = (
    "{series} series older than storage.keep_days stay on the disk because {jobs} held jobs and "
    "{deliveries} held deliveries wait for a person: requeue, redeliver or cancel them."
)


@dataclass(frozen=True)
class Waiting:
    """How much of what is old enough to go is held."""

    series: int
    jobs: int
    deliveries: int


def waiting(db: Connection, before: float) -> Waiting:
    """What was held before this time and nobody has decided since."""
    job_held = and_(job.c.state == JobState.HELD, job.c.finished_at < before)
    sent_held = and_(delivery.c.state == DeliveryState.HELD, delivery.c.finished_at < before)
    of_delivery = select(derived.c.series_id).where(derived.c.id == delivery.c.derived_id)
    stuck = or_(
        exists().where(job_held, job.c.series_id == series.c.id),
        exists().where(sent_held, of_delivery.scalar_subquery() == series.c.id),
    )
    counts = (
        select(func.count()).select_from(series).where(series.c.purged_at.is_(None), stuck),
        select(func.count()).select_from(job).where(job_held),
        select(func.count()).select_from(delivery).where(sent_held),
    )
    return Waiting(*(int(db.execute(query).scalar_one()) for query in counts))


def tell_what_waits(database: Database, now: float, keep_days: float) -> Waiting | None:
    """Tell the administrator, at most once a day; None where there is nothing new to say."""
    with database.reading() as db:
        found = waiting(db, now - keep_days * DAY)
        told = select(audit.c.id).where(audit.c.what == "notice", audit.c.which == WAITS)
        if found == Waiting(0, 0, 0) or db.execute(told.where(audit.c.at > now - DAY)).first():
            return None
    detail = {"kind": "retention", "sentence": SENTENCE.format(**vars(found)), **vars(found)}
    with database.writing() as db:
        note(db, now, NODE, "notice", WAITS, detail)
    return found
