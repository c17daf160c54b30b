"""The steps that the queue's transactions are made of: each changes one job's row."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Connection, Row, and_, select, update

from storage.errors import LeaseLost, NotFound, WrongState
from storage.records import Enqueued, Job, JobState, Verdict
from storage.rows import MARK, to_job
from storage.schema import attempt, derived, job, series
from storage.superseding import SUPERSEDED

JobRow: TypeAlias = Row[*tuple[Any, ...]]

# So often may a job kill its worker, or lose it with the whole node, before a person is asked.
MOST_DEATHS = 3
MOST_ABANDONED = 10

ABANDONED = "ABANDONED"
ABANDONED_SENTENCE = (
    f"The node stopped {MOST_ABANDONED} times while it worked on this job (power, kill or crash), "
    "so the job waits for a person: find out why the node stops, then requeue or cancel it."
)
AGAIN = "{sentence} The job is tried again; this happened {deaths} of at most {most} times."
TOO_OFTEN = (
    "{sentence} This happened {deaths} times, so the job waits for a person: "
    "requeue it, or cancel it."
)

REDELIVER = "; its result is sent again by redeliver"

IDLE: dict[str, object] = {"worker": None, "node": None, "lease_until": None}

JOBS = (
    select(
        *(job.c[name] for name in (*Job.__dataclass_fields__, *MARK) if name in job.c),
        series.c.series_uid,
        series.c.study_uid,
        derived.c.series_uid.label("derived_series_uid"),
    )
    .join(series, series.c.id == job.c.series_id)
    .outerjoin(derived, derived.c.id == job.c.derived_id)
)


def read_job(db: Connection, job_id: int) -> Job:
    row = db.execute(JOBS.where(job.c.id == job_id)).one_or_none()
    if row is None:
        raise NotFound(f"no job {job_id}")
    return to_job(row)


def locked(db: Connection, job_id: int, allowed: Sequence[JobState], what: str) -> JobRow:
    """A job that a person wants changed, if it is in a state that allows it."""
    row = db.execute(select(job).where(job.c.id == job_id).with_for_update()).one_or_none()
    if row is None:
        raise NotFound(f"no job {job_id}")
    if row.state not in allowed:
        instead = REDELIVER if row.state == JobState.SUCCEEDED and what == "requeued" else ""
        raise WrongState(
            f"job {job_id} is {row.state} and cannot be {what}; "
            f"allowed from: {', '.join(allowed)}{instead}"
        )
    return row


def held_by(db: Connection, leased: Job) -> JobRow:
    """The row, if this attempt still holds the lease: else its write is of no interest."""
    row = db.execute(select(job).where(is_held_by(leased)).with_for_update()).one_or_none()
    if row is None:
        raise lost(leased)
    return row


def is_held_by(leased: Job) -> ColumnElement[bool]:
    # A worker whose lease was taken over still holds the old attempt: its write matches no row.
    return and_(
        job.c.id == leased.id, job.c.attempt == leased.attempt, job.c.state == JobState.RUNNING
    )


def lost(leased: Job) -> LeaseLost:
    return LeaseLost(f"job {leased.id}, attempt {leased.attempt}")


def change(db: Connection, job_id: int, **values: object) -> None:
    db.execute(update(job).where(job.c.id == job_id).values(**values))


def end(db: Connection, row: JobRow, now: float, state: JobState, **values: object) -> JobState:
    """No worker any more, and none wanted."""
    change(db, row.id, state=state, finished_at=now, cancel_requested=0, **IDLE, **values)
    return state


def cancel(db: Connection, row: JobRow, now: float) -> JobState:
    if row.cancel_requested and row.reason not in ("", SUPERSEDED):
        return end(db, row, now, JobState.HELD)  # it was stopped so that a person looks first
    why = {"reason": "", "sentence": "Cancelled by a person."}
    if row.reason == SUPERSEDED:
        why = {"reason": row.reason, "sentence": row.sentence}
    return end(db, row, now, JobState.CANCELLED, **why)


def refuse_queued(
    db: Connection, verdicts: Mapping[int, Verdict], now: float
) -> tuple[Enqueued, ...]:
    """Refuse jobs whose turn has not come, unless a person wants them all the same."""
    waits = and_(job.c.id.in_(verdicts), job.c.state == JobState.QUEUED, job.c.insisted == 0)
    rows = db.execute(select(job).where(waits).order_by(job.c.id).with_for_update()).all()
    for row in rows:
        verdict = verdicts[row.id]
        end(db, row, now, verdict.state, reason=verdict.reason, sentence=verdict.sentence)
    return tuple(
        Enqueued(row.id, verdicts[row.id].what, (), verdicts[row.id].reason) for row in rows
    )


def put_back(db: Connection, row: JobRow, now: float, outcome: str, sentence: str = "") -> JobState:
    """Queued again, or cancelled where somebody asked for that meanwhile."""
    end_attempt(db, row, now, outcome)
    if row.cancel_requested:
        return cancel(db, row, now)
    change(db, row.id, state=JobState.QUEUED, sentence=sentence, progress=0, **IDLE)
    return JobState.QUEUED


def die(
    db: Connection, row: JobRow, now: float, outcome: str, reason: str, sentence: str
) -> JobState:
    """Count a worker's death: once more, or held where that happened too often."""
    deaths = row.worker_deaths + 1
    change(db, row.id, worker_deaths=deaths)
    if deaths < MOST_DEATHS or row.cancel_requested:
        again = AGAIN.format(sentence=sentence, deaths=deaths, most=MOST_DEATHS)
        return put_back(db, row, now, outcome, again)
    text = TOO_OFTEN.format(sentence=sentence, deaths=deaths)
    return end(db, row, now, JobState.HELD, reason=reason, sentence=text)


def abandon(db: Connection, row: JobRow, now: float) -> bool:
    """Count a lease that ran out; True where the job may be run once more."""
    end_attempt(db, row, now, "abandoned")
    change(db, row.id, abandoned=row.abandoned + 1)
    if row.cancel_requested:
        cancel(db, row, now)
        return False
    if row.abandoned + 1 < MOST_ABANDONED:
        return True
    end(db, row, now, JobState.HELD, reason=ABANDONED, sentence=ABANDONED_SENTENCE)
    return False


def end_attempt(db: Connection, row: JobRow, now: float, outcome: str, detail: str = "") -> None:
    """How the run ended; the first to say so counts."""
    run = and_(attempt.c.job_id == row.id, attempt.c.number == row.attempt)
    values = {"ended_at": now, "outcome": outcome[:32], "detail": detail}
    db.execute(update(attempt).where(run, attempt.c.ended_at.is_(None)).values(**values))
