"""How things stand at this moment, in numbers that a monitor draws."""

from dataclasses import dataclass

from sqlalchemy import and_, func, select

from storage.database import Database
from storage.records import JobState
from storage.schema import OPEN_ARRIVAL, OPEN_JOB, arrival, job
from storage.schema_site import association


@dataclass(frozen=True)
class Standing:
    """What is open, and since when the oldest waits."""

    arrivals: int
    associations: int
    oldest_queued_at: float | None  # of the jobs that wait for a worker


def standing(database: Database) -> Standing:
    waits = and_(OPEN_JOB, job.c.state == JobState.QUEUED)
    arriving = select(func.count()).select_from(arrival).where(OPEN_ARRIVAL)
    associated = select(func.count()).where(association.c.ended_at.is_(None))
    with database.reading() as db:
        return Standing(
            arrivals=int(db.execute(arriving).scalar_one()),
            associations=int(db.execute(associated).scalar_one()),
            oldest_queued_at=db.execute(select(func.min(job.c.queued_at)).where(waits)).scalar(),
        )
