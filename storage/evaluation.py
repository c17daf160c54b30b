"""How a route does of late: what became of its jobs, and how sure its model was of its slices."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from sqlalchemy import func, select

from storage.database import Database
from storage.records import JobState
from storage.schema import job

NEWEST = 20  # so many results are looked at slice by slice
UNSURE = 0.5  # confidence below which a slice counts as unsure


@dataclass(frozen=True)
class Evaluation:
    """Jobs of one route that have ended, by state; slices of its newest results."""

    jobs: Mapping[JobState, int]
    slices: int  # generated ones that say how sure the model was
    expected_error_hu: float | None  # the median of them
    unsure: int  # of them


def evaluation(database: Database, route: str, since: float) -> Evaluation:
    """What the jobs of a route have given since then."""
    mine = job.c.finished_at >= since, job.c.route == route
    counted = select(job.c.state, func.count()).where(*mine).group_by(job.c.state)
    newest = select(job.c.record).where(*mine, job.c.state == JobState.SUCCEEDED)
    with database.reading() as db:
        jobs = {JobState(row[0]): int(row[1]) for row in db.execute(counted)}
        records = db.execute(newest.order_by(job.c.finished_at.desc()).limit(NEWEST)).scalars()
        told = [each for text in records for each in json.loads(text).get("confidence") or ()]
    errors = [float(each["error_hu"]) for each in told if each.get("error_hu") is not None]
    unsure = sum(float(each.get("confidence", 1.0)) < UNSURE for each in told)
    return Evaluation(jobs, len(told), median(errors) if errors else None, unsure)
