"""How much may come of one study or series in a day: past it something runs in a circle."""

from dataclasses import dataclass

from sqlalchemy import Connection, func, or_, select

from storage.records import JobState, NewJob, Verdict
from storage.schema import derived, job, series

DAY = 86_400.0


@dataclass(frozen=True)
class Limits:
    """How much may come of one study or series in a day before a person looks; 0 = no limit."""

    results: int = 0  # derived series of a study
    reruns: int = 0  # jobs of one stack and route, which late slices and corrections ask for


NO_LIMITS = Limits()

TOO_MANY_RESULTS = "TOO_MANY_RESULTS"
TOO_MANY_RERUNS = "TOO_MANY_RERUNS"
RESULTS_SENTENCE = (
    "This study has {count} derived series of one day, made or in the queue, and "
    "completion.results_per_study allows {most}: perhaps results come back under other UIDs and "
    "without their marks. Look at the rules of the PACS; then requeue what is wanted, or cancel it."
)
RERUNS_SENTENCE = (
    "This series was asked for {count} times in a day, each time with more or other slices, and "
    "completion.reruns allows {most}. Wait until the sender has sent all of it, and requeue; where "
    "this happens often, completion.quiet_seconds is too short for this sender."
)


def over(db: Connection, new: NewJob, now: float, limits: Limits) -> Verdict | None:
    """Held where one more job would be too much."""
    if limits.reruns and (count := _reruns(db, new, now)) >= limits.reruns:
        sentence = RERUNS_SENTENCE.format(count=count, most=limits.reruns)
        return Verdict(JobState.HELD, TOO_MANY_RERUNS, sentence)
    if limits.results and (count := _results(db, new, now)) >= limits.results:
        sentence = RESULTS_SENTENCE.format(count=count, most=limits.results)
        return Verdict(JobState.HELD, TOO_MANY_RESULTS, sentence)
    return None


def _reruns(db: Connection, new: NewJob, now: float) -> int:
    query = select(func.count()).where(
        job.c.series_id == new.series_id,
        job.c.route == new.route,
        job.c.stack == new.stack,
        job.c.key != new.key,
        job.c.queued_at > now - DAY,
    )
    return int(db.execute(query).scalar_one())


def _results(db: Connection, new: NewJob, now: float) -> int:
    """Derived series of the study that were made in the last day, and those that will be."""
    study = select(series.c.study_uid).where(series.c.id == new.series_id).scalar_subquery()
    of_study = select(series.c.id).where(series.c.study_uid == study)
    made = select(func.count()).where(
        derived.c.series_id.in_(of_study), derived.c.made_at > now - DAY
    )
    coming = select(func.count()).where(
        job.c.series_id.in_(of_study),
        or_(job.c.state == JobState.QUEUED, job.c.state == JobState.RUNNING),
        job.c.key != new.key,
    )
    return sum(int(db.execute(query).scalar_one()) for query in (made, coming))
