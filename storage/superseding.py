"""What a peer had of a series before, by the same route, gives way to what it has now."""

from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Connection, Row, and_, select, update

from storage import askers
from storage.deliveries import cancel_undelivered
from storage.records import JobState, NewJob
from storage.rows import to_json, to_names
from storage.schema import arrival, derived, job, job_asker

SUPERSEDED = "SUPERSEDED"
SUPERSEDED_SENTENCE = "More or other slices of this series arrived; job {job_id} replaces this one."
READABLE_SENTENCE = "The series was sent again, and its files can be read."
PARTED_SENTENCE = (
    "More or other slices of this series arrived, and what was one stack is several by now or "
    "belongs to another one; the jobs of these stacks replace this one."
)

# The stack of a job whose files cannot be read at all: nobody knows what they show.
UNREADABLE = "unreadable"

UNFINISHED = (JobState.QUEUED, JobState.RUNNING, JobState.HELD)

JobRow: TypeAlias = Row[*tuple[Any, ...]]


def supersede(db: Connection, new: NewJob, job_id: int, now: float) -> tuple[int, ...]:
    """Jobs that a peer does not want any more since it wants this one; ids of the unfinished.

    What another peer has asked for too goes on, for that one alone.
    """
    same = and_(job.c.id != job_id, job.c.route == new.route, job.c.stack == new.stack)
    older = _asked_for(db, new.arrival_id, same)
    return _give_up(db, older, new.arrival_id, SUPERSEDED_SENTENCE.format(job_id=job_id), now)


def supersede_unreadable(db: Connection, arrival_id: int, now: float) -> tuple[int, ...]:
    """Jobs that waited because nothing of a series could be read: its peer sent it again."""
    older = _asked_for(db, arrival_id, job.c.stack == UNREADABLE)
    return _give_up(db, older, arrival_id, READABLE_SENTENCE, now)


def supersede_parted(
    db: Connection, new: Sequence[NewJob], stacks: Collection[str], now: float
) -> None:
    """Jobs of stacks that the series of these new jobs does not have any more.

    Half of each of two phases may adjoin and look like one stack, until the other halves arrive.
    """
    for arrival_id, route in dict.fromkeys((one.arrival_id, one.route) for one in new):
        parted = and_(job.c.route == route, job.c.stack.not_in([*stacks, UNREADABLE]))
        older = _asked_for(db, arrival_id, parted)
        _give_up(db, older, arrival_id, PARTED_SENTENCE, now)


def _asked_for(db: Connection, arrival_id: int, which: ColumnElement[bool]) -> Sequence[JobRow]:
    of_series = select(arrival.c.series_id).where(arrival.c.id == arrival_id).scalar_subquery()
    asked = select(job_asker.c.job_id).where(
        job_asker.c.arrival_id.in_(askers.same_peer(arrival_id))
    )
    columns = (job.c.id, job.c.state, job.c.derived_id)
    query = select(*columns).where(job.c.series_id == of_series, job.c.id.in_(asked), which)
    return db.execute(query.order_by(job.c.id).with_for_update(of=job)).all()


def _give_up(
    db: Connection, older: Sequence[JobRow], arrival_id: int, sentence: str, now: float
) -> tuple[int, ...]:
    why = {"reason": SUPERSEDED, "sentence": sentence}
    cancelled = {"state": JobState.CANCELLED, "finished_at": now, "cancel_requested": 0}
    unfinished = []
    for row in older:
        askers.leave(db, row.id, arrival_id)
        if askers.is_asked_for(db, row.id):
            others = {"destinations": to_json(askers.wanted(db, row.id))}
            db.execute(update(job).where(job.c.id == row.id).values(**others))
        elif row.state in UNFINISHED:
            stop = {"cancel_requested": 1} if row.state == JobState.RUNNING else cancelled
            db.execute(update(job).where(job.c.id == row.id).values(**why, **stop))
            unfinished.append(row.id)
    _give_up_results(db, {row.derived_id for row in older if row.derived_id is not None}, now)
    return tuple(unfinished)


def _give_up_results(db: Connection, made: set[int], now: float) -> None:
    """What is not sent yet goes only to those who still ask for the derived series."""
    for derived_id in sorted(made):
        query = select(job.c.id, job.c.destinations).where(job.c.derived_id == derived_id)
        still = [row for row in db.execute(query) if askers.is_asked_for(db, row.id)]
        keep = {name for row in still for name in to_names(row.destinations)}
        cancel_undelivered(db, derived_id, SUPERSEDED, now, keep)
        if not still:
            fresh = and_(derived.c.id == derived_id, derived.c.superseded_at.is_(None))
            db.execute(update(derived).where(fresh).values(superseded_at=now))
