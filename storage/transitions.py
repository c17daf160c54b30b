"""The steps that transactions of the queue are made of: job, delivery and lease states."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeAlias

from sqlalchemy import Connection, Row, Select, Table, and_, func, or_, select, update

from storage.database import MARK, Database, to_job, to_names
from storage.errors import NotFound, WrongState
from storage.leases import IDLE
from storage.records import (
    SUPERSEDED,
    Attempt,
    CommitmentState,
    DeliveryState,
    Enqueued,
    Job,
    JobState,
    JobVerdict,
)
from storage.schema import (
    attempt,
    commitment,
    commitment_request,
    delivery,
    delivery_instance,
    derived,
    derived_instance,
    instance,
    job,
    job_instance,
    series,
    want,
)

JobRow: TypeAlias = Row[*tuple[Any, ...]]

# Rows are locked in one order everywhere: series, job, delivery, commitment, derived.

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

REDELIVER = "; use redeliver to send its result again"

UNASKED: dict[str, object] = {"cancel_requested": 0, "requeue_requested": 0}

PENDING = (JobState.QUEUED, JobState.RUNNING, JobState.HELD)
UNDELIVERED = (DeliveryState.QUEUED, DeliveryState.RUNNING, DeliveryState.HELD)

REPLACED = (
    "A newer derived series replaces this one before all of it was sent; "
    "{stored} of {total} instances are at the destination."
)

SEND_AGAIN = "let the sender send the series again"

# What to do about a job that has made nothing, by its state.
INSTEAD = {
    JobState.QUEUED: "it waits for its turn, and its result is delivered then",
    JobState.RUNNING: "it is running, and its result is delivered then",
    JobState.REFUSED: "it was refused and has no result; requeue it to process it anyway",
    JobState.FAILED: "it failed and has no result; requeue it",
    JobState.HELD: "it is held and has no result; requeue it, or cancel it",
    JobState.CANCELLED: "it was cancelled and has no result; requeue it",
}

_wanted = select(want.c.destination).where(want.c.job_id == job.c.id).correlate(job)
_wanted_in_order = _wanted.order_by(want.c.arrival_id, want.c.rank).subquery()
# Where the result of a job goes: a line for each destination, of who asked first the first.
DESTINATIONS = select(func.aggregate_strings(_wanted_in_order.c.destination, "\n"))
DESTINATIONS_COLUMN = DESTINATIONS.scalar_subquery().label("destinations")

JOBS = (
    select(
        DESTINATIONS_COLUMN,
        *(job.c[name] for name in (*Job.__dataclass_fields__, *MARK) if name in job.c),
        series.c.series_uid,
        series.c.study_uid,
        derived.c.series_uid.label("derived_series_uid"),
    )
    .join(series, series.c.id == job.c.series_id)
    .outerjoin(derived, derived.c.id == job.c.derived_id)
)


def attempt_rows(job_id: int) -> Select[*tuple[Any, ...]]:
    columns = (attempt.c[name] for name in Attempt.__dataclass_fields__)
    return select(*columns).where(attempt.c.job_id == job_id).order_by(attempt.c.number)


def read_job(db: Connection, job_id: int) -> Job:
    row = db.execute(JOBS.where(job.c.id == job_id)).one_or_none()
    if row is None:
        raise NotFound(f"no job {job_id}")
    return to_job(row)


def destinations_of(db: Connection, job_id: int) -> tuple[str, ...]:
    """The destinations of the result of a job."""
    lines = db.execute(select(DESTINATIONS_COLUMN).where(job.c.id == job_id)).scalar_one()
    return to_names(lines)


def locked(
    db: Connection, table: Table, row_id: int, allowed: Sequence[StrEnum], what: str
) -> JobRow:
    """Lock a job or delivery that a person wants changed; WrongState where its state forbids it."""
    query = select(table).where(table.c.id == row_id).with_for_update()
    row = db.execute(query).one_or_none()
    if row is None:
        raise NotFound(f"no {table.name} {row_id}")
    if row.state not in allowed:
        instead = REDELIVER if row.state == JobState.SUCCEEDED and what == "requeued" else ""
        raise WrongState(
            f"{table.name} {row_id} is {row.state} and cannot be {what}; "
            f"allowed from: {', '.join(allowed)}{instead}"
        )
    return row


def change(db: Connection, job_id: int, **values: object) -> None:
    db.execute(update(job).where(job.c.id == job_id).values(**values))


def as_asked(verdict: JobVerdict | None, now: float) -> dict[str, object]:
    """The columns of a job as it is asked for: queued, or what its verdict says.

    Of one that was there before the attempts stay and go on counting.
    """
    queued: dict[str, object] = {
        "state": JobState.QUEUED,
        "reason": "",
        "sentence": "",
        "queued_at": now,
        "due_at": now,
        "started_at": None,
        "finished_at": None,
        "worker_deaths": 0,
        "abandoned": 0,
        "progress": 0,
        "requeued_by": None,
        **UNASKED,
    }
    if verdict is None:
        return queued
    ended = {"state": verdict.state, "finished_at": now}
    return {**queued, **ended, "reason": verdict.reason, "sentence": verdict.sentence}


def begin_again(
    db: Connection, job_id: int, now: float, verdict: JobVerdict | None = None, /, **values: object
) -> None:
    """Queue a job that has ended, or give it the verdict that it has by now."""
    change(db, job_id, **{**as_asked(verdict, now), **values})


def end(db: Connection, row: JobRow, now: float, state: JobState, **values: object) -> JobState:
    """End a job, which no worker has any more and nobody has to do anything about."""
    change(db, row.id, **{**IDLE, **UNASKED, "state": state, "finished_at": now, **values})
    return state


def stop(
    db: Connection, row: JobRow, now: float, state: JobState, reason: str, sentence: str
) -> None:
    """End a job that waits; one that runs ends so once its worker has stopped (`cancel`)."""
    if row.state == JobState.RUNNING:
        change(db, row.id, cancel_requested=1, reason=reason, sentence=sentence)
    else:
        end(db, row, now, state, reason=reason, sentence=sentence)


def cancel(db: Connection, row: JobRow, now: float) -> JobState:
    """End a job as it was asked to: held so that a person looks first, else cancelled."""
    if row.cancel_requested and row.reason not in ("", SUPERSEDED):
        return end(db, row, now, JobState.HELD)
    why = {"reason": "", "sentence": "Cancelled by a person."}
    if row.reason == SUPERSEDED:
        why = {"reason": row.reason, "sentence": row.sentence}
    return end(db, row, now, JobState.CANCELLED, **why)


def refuse_queued(
    db: Connection, verdicts: Mapping[int, JobVerdict], now: float
) -> tuple[Enqueued, ...]:
    """Refuse jobs whose turn has not come, unless a person wants them all the same."""
    by_itself = and_(job.c.state == JobState.QUEUED, job.c.requeued_by.is_(None))
    waits = and_(job.c.id.in_(verdicts), by_itself)
    rows = db.execute(select(job).where(waits).order_by(job.c.id).with_for_update()).all()
    for row in rows:
        verdict = verdicts[row.id]
        end(db, row, now, verdict.state, reason=verdict.reason, sentence=verdict.sentence)
    return tuple(
        Enqueued(row.id, verdicts[row.id].what, (), verdicts[row.id].reason) for row in rows
    )


def give_back(
    db: Connection, row: JobRow, now: float, outcome: str, sentence: str = ""
) -> JobState:
    """Queue a job again, or cancel it where somebody asked for that meanwhile."""
    end_attempt(db, row, now, outcome)
    if row.cancel_requested:
        return cancel(db, row, now)
    change(db, row.id, state=JobState.QUEUED, sentence=sentence, progress=0, **IDLE)
    return JobState.QUEUED


def die(
    db: Connection, row: JobRow, now: float, outcome: str, reason: str, sentence: str
) -> JobState:
    """Count a worker's death: queue the job once more, or hold it where that was too often."""
    deaths = row.worker_deaths + 1
    change(db, row.id, worker_deaths=deaths)
    if deaths < MOST_DEATHS or row.cancel_requested:
        again = AGAIN.format(sentence=sentence, deaths=deaths, most=MOST_DEATHS)
        return give_back(db, row, now, outcome, again)
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
    """Write down how the run ended; the first to say so counts."""
    run = and_(attempt.c.job_id == row.id, attempt.c.number == row.attempt)
    values = {"ended_at": now, "outcome": outcome[:32], "detail": detail}
    db.execute(update(attempt).where(run, attempt.c.ended_at.is_(None)).values(**values))


def queue_deliveries(
    database: Database,
    db: Connection,
    derived_id: int,
    destinations: Sequence[str],
    priority: int,
    now: float,
) -> None:
    """Bring a kept derived series to these destinations; what was there is offered again."""
    for destination in dict.fromkeys(destinations):
        _queue(database, db, derived_id, destination, priority, now)
    wanted = and_(derived.c.id == derived_id, derived.c.superseded_at.is_not(None))
    db.execute(update(derived).where(wanted).values(superseded_at=None))


def cancel_undelivered(
    db: Connection, derived_id: int, reason: str, now: float, keep: Collection[str] = ()
) -> None:
    """Cancel what is not at its destination yet; a sender at work loses its lease.

    To the destinations in `keep` it still goes: somebody else wants it there.
    """
    undelivered = and_(
        delivery.c.derived_id == derived_id,
        delivery.c.state.in_(UNDELIVERED),
        delivery.c.destination.not_in(keep),
    )
    query = select(delivery.c.id).where(undelivered).order_by(delivery.c.id)
    total = select(func.count()).where(derived_instance.c.derived_id == derived_id)
    for delivery_id in db.execute(query.with_for_update()).scalars().all():
        stored = select(func.count()).where(
            delivery_instance.c.delivery_id == delivery_id, delivery_instance.c.stored == 1
        )
        counts = {
            name: db.execute(q).scalar_one() for name, q in (("stored", stored), ("total", total))
        }
        end = {"state": DeliveryState.CANCELLED, "reason": reason, "finished_at": now, **IDLE}
        set_delivery(db, delivery_id, sentence=REPLACED.format(**counts), **end)


def end_leases(db: Connection, derived_id: int, destinations: Sequence[str]) -> None:
    """Stop who is sending the rest of what a person wants sent again from the start."""
    running = and_(
        delivery.c.derived_id == derived_id,
        delivery.c.destination.in_(destinations),
        delivery.c.state == DeliveryState.RUNNING,
    )
    db.execute(update(delivery).where(running).values(state=DeliveryState.QUEUED, **IDLE))


def hold_delivery(db: Connection, delivery_id: int, now: float, reason: str, sentence: str) -> None:
    """Hold a delivery for a person; a sender at work loses its lease."""
    held = {"state": DeliveryState.HELD, "finished_at": now, **IDLE}
    set_delivery(db, delivery_id, reason=reason, sentence=sentence, **held)


def set_delivery(db: Connection, delivery_id: int, **values: object) -> None:
    db.execute(update(delivery).where(delivery.c.id == delivery_id).values(**values))


def queued_again(now: float) -> dict[str, object]:
    """The columns of a delivery that begins anew."""
    return {
        "state": DeliveryState.QUEUED,
        "reason": "",
        "sentence": "",
        "queued_at": now,
        "due_at": now,
        "started_at": None,
        "finished_at": None,
        "failures": 0,
        **IDLE,
    }


def offer_again(db: Connection, delivery_id: int, priority: int, now: float) -> None:
    """Start a delivery anew: nothing counts as stored or proved; how often it was offered stays."""
    again = {"stored": 0, "status": None, "not_understood": 0}
    unproved = {"confirmed_at": None, "evidence": None, "commitment_failure": None}
    ledger = delivery_instance.c.delivery_id == delivery_id
    db.execute(update(delivery_instance).where(ledger).values(**again, **unproved))
    mine = commitment.c.delivery_id == delivery_id
    before = commitment_request.c.commitment_id.in_(select(commitment.c.id).where(mine))
    db.execute(update(commitment_request).where(before).values(void=1))
    ended = {"state": CommitmentState.CANCELLED, "reason": "", "resent": 0, **IDLE}
    db.execute(update(commitment).where(mine).values(**ended, finished_at=now))
    set_delivery(db, delivery_id, priority=priority, **queued_again(now))


def _queue(
    database: Database, db: Connection, derived_id: int, destination: str, priority: int, now: float
) -> None:
    key = {"derived_id": derived_id, "destination": destination}
    new = database.insert(delivery).values(**key, priority=priority, **queued_again(now))
    if db.execute(new.on_conflict_do_nothing().returning(delivery.c.id)).first() is not None:
        return
    same = and_(delivery.c.derived_id == derived_id, delivery.c.destination == destination)
    row = db.execute(select(delivery).where(same).with_for_update()).one()
    if row.state != DeliveryState.RUNNING:  # a running one is on its way there already
        offer_again(db, row.id, priority, now)


def check_received(db: Connection, job_id: int) -> None:
    """Raise WrongState where received instances that a job works on have no files any more."""
    gone = or_(instance.c.path.is_(None), series.c.purged_at.is_not(None))  # or about to go
    query = (
        select(series.c.purged_at)
        .join(instance, instance.c.series_id == series.c.id)
        .join(job_instance, job_instance.c.instance_id == instance.c.id)
        .where(job_instance.c.job_id == job_id, gone)
    )
    row = db.execute(query.limit(1)).one_or_none()
    if row is not None:
        raise WrongState(
            f"job {job_id}: its received files were removed{_on(row.purged_at)} (storage.keep_days "
            f"or keep_unrouted_days) and it cannot be requeued; {SEND_AGAIN}: that makes a new job"
        )


def without_files(db: Connection, jobs: Collection[int]) -> frozenset[int]:
    """Those of these jobs that cannot be done again, because what they work on was removed."""
    gone = or_(instance.c.path.is_(None), series.c.purged_at.is_not(None))
    works_on = (
        select(job_instance.c.job_id)
        .join(instance, instance.c.id == job_instance.c.instance_id)
        .join(series, series.c.id == instance.c.series_id)
        .where(job_instance.c.job_id == job.c.id, gone)
    )
    query = select(job.c.id).where(job.c.id.in_(jobs), works_on.exists())
    return frozenset(db.execute(query).scalars())


def check_derived(db: Connection, of_job: Row[*tuple[Any, ...]]) -> None:
    """Raise WrongState where a job has no derived series, or its files were removed."""
    job_id = of_job.id
    result = db.execute(select(derived).where(derived.c.id == of_job.derived_id)).one_or_none()
    if result is None:
        raise WrongState(f"job {job_id} cannot be delivered: {INSTEAD[JobState(of_job.state)]}")
    if result.purged_at is not None:
        raise WrongState(f"job {job_id}: {_removed(result.purged_at)}")


def check_delivery(db: Connection, delivery_id: int, derived_id: int) -> None:
    """Raise WrongState where the files of the derived series of a delivery were removed."""
    query = select(derived.c.purged_at).where(derived.c.id == derived_id)
    purged_at = db.execute(query).scalar_one()
    if purged_at is not None:
        raise WrongState(f"delivery {delivery_id}: {_removed(purged_at)}")


def _removed(at: float) -> str:
    return (
        f"its derived series was removed{_on(at)} (storage.keep_days) and cannot be sent; "
        f"{SEND_AGAIN}: the result is then made again and delivered"
    )


def _on(at: float | None) -> str:
    return f" on {datetime.fromtimestamp(at, UTC):%Y-%m-%d}" if at is not None else ""
