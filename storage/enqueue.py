"""Enqueueing: an arrival closes, its jobs are made, joined, superseded or held at once."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select, update

from storage.archive import same_peer
from storage.database import Database, to_json
from storage.errors import NotFound, WrongState
from storage.records import (
    DAY,
    SUPERSEDED,
    ArrivalState,
    DeliveryState,
    Enqueued,
    JobState,
    JobVerdict,
    NewJob,
    What,
)
from storage.schema import (
    OPEN_ARRIVAL,
    arrival,
    arrival_instance,
    delivery,
    derived,
    job,
    job_instance,
    series,
    want,
)
from storage.site.audit import note
from storage.transitions import (
    PENDING,
    JobRow,
    as_asked,
    begin_again,
    cancel_undelivered,
    change,
    end,
    hold_delivery,
    queue_deliveries,
    stop,
)

logger = logging.getLogger(__name__)

# The stack of a job whose files cannot be read at all: nobody knows what they show.
UNREADABLE = "unreadable"

SUPERSEDED_SENTENCE = "More or other slices of this series arrived; job {job_id} replaces this one."
READABLE_SENTENCE = "The series was sent again, and its files can now be read."
PARTED_SENTENCE = (
    "More or other slices of this series arrived. They form other stacks than before, and the "
    "jobs of these stacks replace this one."
)

DAMAGED_FILES = "DAMAGED_FILES"  # the reason of a job whose received files are damaged or missing
TOO_MANY_RESULTS = "TOO_MANY_RESULTS"
TOO_MANY_RERUNS = "TOO_MANY_RERUNS"
RESULTS_SENTENCE = (
    "This study has {count} derived series from one day, finished or in the queue; "
    "completion.results_per_study allows {most}. Perhaps results come back under other UIDs and "
    "without their marks. Check the rules of the PACS, then requeue what is wanted, or cancel it."
)
RERUNS_SENTENCE = (
    "This series was requested {count} times in a day, each time with more or other slices; "
    "completion.reruns allows {most}. Wait until the sender has sent the whole series, then "
    "requeue the job. If this happens often, completion.quiet_seconds is too short for this sender."
)

REQUEUEABLE = (JobState.REFUSED, JobState.FAILED, JobState.HELD, JobState.CANCELLED)
ROUTE_CHANGED = "ROUTE_CHANGED"  # why a job was cancelled that another one has replaced so
REPLACED = "Its route has changed since; job {job_id}, with the route as it is now, replaces it."


@dataclass(frozen=True)
class DailyLimits:
    """The most that may come of a study or series in a day before a person looks; 0 = no limit."""

    results: int = 0  # derived series of a study
    reruns: int = 0  # jobs of one stack and route, which late slices and corrections ask for


NO_LIMITS = DailyLimits()


def close(
    db: Connection, arrival_id: int, evidence: Mapping[str, object], seen: int | None, now: float
) -> str:
    """Close an arrival that has as many instances as were `seen`; its Series UID."""
    this = arrival.c.id == arrival_id
    row = db.execute(select(arrival).where(this).with_for_update()).one_or_none()
    if row is None:
        raise NotFound(f"no arrival {arrival_id}")
    if row.state != ArrivalState.ARRIVING:
        raise WrongState(f"arrival {arrival_id} is {row.state} already")
    brought = select(func.count()).where(arrival_instance.c.arrival_id == arrival_id)
    count = db.execute(brought).scalar_one()
    if seen is not None and seen != count:
        raise WrongState(f"arrival {arrival_id} has {count} instances by now, not {seen}")
    closed = {"state": ArrivalState.COMPLETE, "completed_at": now, "brought": count}
    db.execute(update(arrival).where(this).values(**closed, evidence=to_json(evidence)))
    series_uid = select(series.c.series_uid).where(series.c.id == row.series_id)
    return str(db.execute(series_uid).scalar_one())


def enqueue(
    database: Database, db: Connection, new: NewJob, now: float, most: DailyLimits = NO_LIMITS
) -> Enqueued:
    """Ask for a job. Asking twice is asking once: the key says what is the same."""
    row = _by_key(db, new.key)
    within = _within(db, new, now, most)
    job_id = _insert(database, db, within, now) if row is None else None
    if job_id is not None:
        request(db, job_id, new.arrival_id, new.destinations)
        return _enqueued(within, job_id, "queued", supersede(db, new, job_id, now))
    row = row or _by_key(db, new.key)  # another node was faster
    assert row is not None
    if new.on_behalf and _is_wanted_by_peer(db, row.id, new.arrival_id):
        return Enqueued(row.id, "known")  # it has asked itself; nothing is sent to it once more
    request(db, row.id, new.arrival_id, new.destinations)
    if row.state in (JobState.FAILED, JobState.CANCELLED) or _is_resolved(db, row, new):
        return _start_over(db, row, within, now, row.edition)
    if row.state == JobState.SUCCEEDED:
        return _deliver_again(database, db, row, within, now)
    return _join(db, row, new, now)


def insist(database: Database, db: Connection, new: NewJob, who: str, now: float) -> Enqueued:
    """Ask for a job that a person insists on; a job that has its verdict or its result stays.

    Who wants that one anew requeues it, or has its result delivered again.
    """
    row = _by_key(db, new.key)
    if row is not None and _has_answer(db, row):
        return Enqueued(row.id, "known")
    entry = enqueue(database, db, new, now)
    change(db, entry.job_id, requeued_by=who[:64])
    detail = {"route": new.route, "outcome": entry.what}
    note(db, now, who, "process with route", f"job {entry.job_id}", detail)
    return entry


def _has_answer(db: Connection, row: JobRow) -> bool:
    """True where a job was refused, is held, or has a result whose files are kept."""
    if row.state == JobState.SUCCEEDED:
        purged_at = select(derived.c.purged_at).where(derived.c.id == row.derived_id)
        return db.execute(purged_at).scalar_one() is None
    return row.state in (JobState.REFUSED, JobState.HELD)


def check_complete(db: Connection, series_id: int) -> None:
    """Raise WrongState where instances of a series have come since it was looked at."""
    still_open = select(arrival.c.id).where(OPEN_ARRIVAL, arrival.c.series_id == series_id)
    if db.execute(still_open.limit(1)).first() is not None:
        raise WrongState("instances of this series came this moment; try again")


def _by_key(db: Connection, key: str) -> JobRow | None:
    return db.execute(select(job).where(job.c.key == key).with_for_update()).one_or_none()


def _within(db: Connection, new: NewJob, now: float, most: DailyLimits) -> NewJob:
    """The same job, or held where it is one too many for a day."""
    if new.verdict is not None:
        return new
    return replace(new, verdict=_over_limit(db, new, now, most))


def _insert(database: Database, db: Connection, new: NewJob, now: float) -> int | None:
    """A new row, or None where the key exists."""
    row = database.insert(job).values(
        kind=new.kind,
        key=new.key,
        series_id=new.series_id,
        arrival_id=new.arrival_id,
        stack=new.stack,
        route=new.route,
        model=new.model,
        parameters=to_json(new.parameters),
        priority=new.priority,
        record=to_json(new.record),
        **as_asked(new.verdict, now),
    )
    inserted = db.execute(row.on_conflict_do_nothing().returning(job.c.id)).scalar_one_or_none()
    if inserted is None:
        return None
    _work_on(db, inserted, new)
    return int(inserted)


def _work_on(db: Connection, job_id: int, new: NewJob) -> None:
    """Link a job to the versions that were looked at: what arrives later is another job's."""
    rows = [
        {"job_id": job_id, "instance_id": instance_id, "rank": rank}
        for rank, instance_id in enumerate(dict.fromkeys(new.instances))
    ]
    db.execute(delete(job_instance).where(job_instance.c.job_id == job_id))
    if rows:
        db.execute(job_instance.insert(), rows)


def _is_resolved(db: Connection, row: JobRow, new: NewJob) -> bool:
    """True where what spoke against the job does so no more.

    Held over versions of which, since the series was sent again, not all count any more, or over
    files that the disk had damaged and that were sent again; or refused before a worker looked, for
    what lay beside it or by another configuration.
    """
    if row.state == JobState.REFUSED and row.started_at is None and new.verdict is None:
        return True
    if row.state == JobState.HELD and row.reason == DAMAGED_FILES:
        return True
    works_on = select(job_instance.c.instance_id).where(job_instance.c.job_id == row.id)
    return row.state == JobState.HELD and set(db.execute(works_on).scalars()) != set(new.instances)


def _join(db: Connection, row: JobRow, new: NewJob, now: float) -> Enqueued:
    """Add a requester to a job that has no result yet: its result goes to all of them."""
    if row.cancel_requested and row.reason in ("", SUPERSEDED):
        # Wanted again before its worker has stopped; where it stops all the same, the job is
        # queued again (`Queue.cancelled`).
        change(db, row.id, cancel_requested=0, reason="", sentence="")
    return Enqueued(row.id, "known", supersede(db, new, row.id, now))


def _deliver_again(
    database: Database, db: Connection, row: JobRow, new: NewJob, now: float
) -> Enqueued:
    """Deliver the result of a finished job again, or make it again where that is gone."""
    result = db.execute(select(derived).where(derived.c.id == row.derived_id)).one()
    if result.purged_at is not None:
        # A peer may still have the earlier bytes: the same UIDs must not mean others.
        was_offered = result.offered_at is not None
        edition = max(row.edition, result.edition + 1) if was_offered else row.edition
        return _start_over(db, row, new, now, edition)
    change(db, row.id, priority=new.priority)
    # Who has it already asked for nothing: the destinations of the others stay as they are.
    queue_deliveries(database, db, result.id, new.destinations, new.priority, now)
    return Enqueued(row.id, "redelivered", supersede(db, new, row.id, now))


def _start_over(db: Connection, row: JobRow, new: NewJob, now: float, edition: int) -> Enqueued:
    snapshot = {"parameters": to_json(new.parameters), "priority": new.priority, "edition": edition}
    begin_again(db, row.id, now, new.verdict, **snapshot)
    _work_on(db, row.id, new)
    return _enqueued(new, row.id, "requeued", supersede(db, new, row.id, now))


def _enqueued(new: NewJob, job_id: int, what: What, cancelled: tuple[int, ...]) -> Enqueued:
    if new.verdict is None:
        return Enqueued(job_id, what, cancelled)
    return Enqueued(job_id, new.verdict.what, cancelled, new.verdict.reason)


def _over_limit(db: Connection, new: NewJob, now: float, limits: DailyLimits) -> JobVerdict | None:
    """The verdict by which one job too many is held; None where it is not."""
    if limits.reruns and (count := _reruns(db, new, now)) >= limits.reruns:
        sentence = RERUNS_SENTENCE.format(count=count, most=limits.reruns)
        return JobVerdict(JobState.HELD, TOO_MANY_RERUNS, sentence)
    if limits.results and (count := _results(db, new, now)) >= limits.results:
        sentence = RESULTS_SENTENCE.format(count=count, most=limits.results)
        return JobVerdict(JobState.HELD, TOO_MANY_RESULTS, sentence)
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
    kept = select(func.count()).where(
        derived.c.series_id.in_(of_study), derived.c.made_at > now - DAY
    )
    coming = select(func.count()).where(
        job.c.series_id.in_(of_study),
        or_(job.c.state == JobState.QUEUED, job.c.state == JobState.RUNNING),
        job.c.key != new.key,
    )
    return sum(int(db.execute(query).scalar_one()) for query in (kept, coming))


def request(db: Connection, job_id: int, arrival_id: int, destinations: Sequence[str]) -> None:
    """Let an arrival want the result of a job at these destinations.

    What its peer wanted before, perhaps by another configuration, counts no more.
    """
    withdraw(db, job_id, arrival_id)
    _forget_withdrawn(db, job_id)
    rows = [
        {"job_id": job_id, "arrival_id": arrival_id, "destination": name, "rank": rank}
        for rank, name in enumerate(dict.fromkeys(destinations or ("",)))
    ]
    db.execute(want.insert(), rows)


def withdraw(db: Connection, job_id: int, arrival_id: int) -> bool:
    """Withdraw what the peer of an arrival wanted of a job; True where nobody wants it now."""
    of_peer = and_(want.c.job_id == job_id, want.c.arrival_id.in_(same_peer(arrival_id)))
    db.execute(update(want).where(of_peer).values(withdrawn=1))
    if not requesters(db, job_id):
        return True
    _forget_withdrawn(db, job_id)
    return False


def requesters(db: Connection, job_id: int) -> dict[int, str]:
    """The arrivals that want a job, each with its calling AE title."""
    query = select(want.c.arrival_id, arrival.c.calling_ae)
    query = query.join(arrival, arrival.c.id == want.c.arrival_id)
    query = query.where(want.c.job_id == job_id, want.c.withdrawn == 0)
    return {row.arrival_id: row.calling_ae for row in db.execute(query.order_by(arrival.c.id))}


def senders(db: Connection, job_id: int) -> tuple[str, ...]:
    """The calling AE titles of the peers that want a job; who brought it, where none does."""
    wanting = tuple(dict.fromkeys(requesters(db, job_id).values()))
    if wanting:
        return wanting
    query = select(arrival.c.calling_ae).join(job, job.c.arrival_id == arrival.c.id)
    return tuple(db.execute(query.where(job.c.id == job_id)).scalars())


def _is_wanted_by_peer(db: Connection, job_id: int, arrival_id: int) -> bool:
    of_peer = and_(want.c.arrival_id.in_(same_peer(arrival_id)), want.c.withdrawn == 0)
    query = select(want.c.job_id).where(want.c.job_id == job_id, of_peer).limit(1)
    return db.execute(query).first() is not None


def _forget_withdrawn(db: Connection, job_id: int) -> None:
    db.execute(delete(want).where(want.c.job_id == job_id, want.c.withdrawn == 1))


def supersede(db: Connection, new: NewJob, job_id: int, now: float) -> tuple[int, ...]:
    """Withdraw jobs that a peer no longer wants since it wants this one; ids of the unfinished.

    What another peer has asked for too goes on, for that one alone.
    """
    same = and_(job.c.id != job_id, job.c.route == new.route, job.c.stack == new.stack)
    older = _wanted_by_peer(db, new.arrival_id, same)
    return _give_up(db, older, new.arrival_id, SUPERSEDED_SENTENCE.format(job_id=job_id), now)


def supersede_unreadable(db: Connection, arrival_id: int, now: float) -> tuple[int, ...]:
    """Withdraw jobs of which nothing could be read: their peer has sent the series again."""
    older = _wanted_by_peer(db, arrival_id, job.c.stack == UNREADABLE)
    return _give_up(db, older, arrival_id, READABLE_SENTENCE, now)


def supersede_parted(
    db: Connection, jobs: Sequence[NewJob], stacks: Collection[str], now: float
) -> None:
    """Withdraw jobs of stacks that the series of these new jobs does not have any more.

    Half of each of two phases may adjoin and look like one stack, until the other halves arrive.
    """
    for arrival_id, route in dict.fromkeys((new.arrival_id, new.route) for new in jobs):
        parted = and_(job.c.route == route, job.c.stack.not_in([*stacks, UNREADABLE]))
        older = _wanted_by_peer(db, arrival_id, parted)
        _give_up(db, older, arrival_id, PARTED_SENTENCE, now)


def _wanted_by_peer(
    db: Connection, arrival_id: int, which: ColumnElement[bool]
) -> Sequence[JobRow]:
    of_series = select(arrival.c.series_id).where(arrival.c.id == arrival_id).scalar_subquery()
    by_peer = and_(want.c.withdrawn == 0, want.c.arrival_id.in_(same_peer(arrival_id)))
    wanted = job.c.id.in_(select(want.c.job_id).where(by_peer))
    query = select(job).where(job.c.series_id == of_series, wanted, which)
    return db.execute(query.order_by(job.c.id).with_for_update(of=job)).all()


def _give_up(
    db: Connection, older: Sequence[JobRow], arrival_id: int, sentence: str, now: float
) -> tuple[int, ...]:
    unfinished = []
    for row in older:
        if withdraw(db, row.id, arrival_id) and row.state in PENDING:
            stop(db, row, now, JobState.CANCELLED, SUPERSEDED, sentence)
            unfinished.append(row.id)
    _give_up_results(db, {row.derived_id for row in older if row.derived_id is not None}, now)
    return tuple(unfinished)


def _give_up_results(db: Connection, derived_ids: set[int], now: float) -> None:
    """Send on what is not sent yet only to those who still ask for the derived series."""
    for derived_id in sorted(derived_ids):
        query = select(want.c.destination).join(job, job.c.id == want.c.job_id)
        query = query.where(job.c.derived_id == derived_id, want.c.withdrawn == 0)
        still_wanted = set(db.execute(query).scalars())
        cancel_undelivered(db, derived_id, SUPERSEDED, now, still_wanted)
        if not still_wanted:
            fresh = and_(derived.c.id == derived_id, derived.c.superseded_at.is_(None))
            db.execute(update(derived).where(fresh).values(superseded_at=now))


def put_back_mended(db: Connection, arrival_id: int, now: float) -> tuple[Enqueued, ...]:
    """Queue the jobs of a series that wait for files of it, which were sent again.

    Whoever sent them: the bytes are the same. A worker looks at all of them again.
    """
    of_series = select(arrival.c.series_id).where(arrival.c.id == arrival_id).scalar_subquery()
    waits = and_(job.c.state == JobState.HELD, job.c.reason == DAMAGED_FILES)
    query = select(job.c.id).where(job.c.series_id == of_series, waits).order_by(job.c.id)
    ids = db.execute(query.with_for_update()).scalars().all()
    for job_id in ids:
        begin_again(db, job_id, now)
    return tuple(Enqueued(job_id, "requeued") for job_id in ids)


def hold_all(
    db: Connection, series_uid: str, verdict: JobVerdict, now: float
) -> tuple[Enqueued, ...]:
    """Hold the unfinished jobs of a Series UID, in every study, and what is not yet delivered.

    A running job stops at its next step and is held then. What a person has held or cancelled, and
    what is at its destination, stays as it is.
    """
    of_uid = select(series.c.id).where(series.c.series_uid == series_uid)
    under_way = job.c.state.in_((JobState.QUEUED, JobState.RUNNING))
    query = select(job).where(job.c.series_id.in_(of_uid), under_way).order_by(job.c.id)
    rows = db.execute(query.with_for_update()).all()
    for row in rows:
        stop(db, row, now, JobState.HELD, verdict.reason, verdict.sentence)
    _hold_deliveries(db, series_uid, verdict, now)
    return tuple(Enqueued(row.id, "held", reason=verdict.reason) for row in rows)


def _hold_deliveries(db: Connection, series_uid: str, verdict: JobVerdict, now: float) -> None:
    under_way = (DeliveryState.QUEUED, DeliveryState.RUNNING)
    query = (
        select(delivery.c.id, delivery.c.destination)
        .join(derived, derived.c.id == delivery.c.derived_id)
        .join(series, series.c.id == derived.c.series_id)
        .where(series.c.series_uid == series_uid, delivery.c.state.in_(under_way))
        .order_by(delivery.c.id)
    )
    for row in db.execute(query.with_for_update(of=delivery)).all():
        hold_delivery(db, row.id, now, verdict.reason, verdict.sentence)
        extra = {"destination": row.destination, "delivery": row.id, "reason": verdict.reason}
        logger.warning("delivery held", extra=extra)


# A job keeps what its route asked for, and its key says so. Where the route asks for something
# else by now, a job of its own replaces it: no key ever stands for two results. Who requeues a job
# only marks it; the process that receives makes the other job, as it makes those of arrivals.


def follow_route(
    database: Database, db: Connection, row: JobRow, jobs: Sequence[NewJob], now: float
) -> int:
    """Let a requeued job go on, or what its route asks for by now; the id of the one that does.

    `jobs` are what the route asks for, one for each requester; without one the job goes on as it
    was: its route is gone, or nobody wants it any more, since more slices have come.
    """
    if not any(_asks_for_another(row, new) for new in jobs):
        for new in jobs:
            request(db, row.id, new.arrival_id, new.destinations)
        change(db, row.id, requeue_requested=0)
        return int(row.id)
    others = (replace(new, priority=row.priority) for new in jobs)
    job_id = [enqueue(database, db, other, now).job_id for other in others][-1]
    state = db.execute(select(job.c.state).where(job.c.id == job_id)).scalar_one()
    if state in REQUEUEABLE:  # it was there before; a person wants it now
        begin_again(db, job_id, now)
    change(db, job_id, requeued_by=row.requeued_by)
    replaced = {"reason": ROUTE_CHANGED, "sentence": REPLACED.format(job_id=job_id)}
    end(db, row, now, JobState.CANCELLED, **replaced)
    if row.requeued_by:
        note(db, now, row.requeued_by, "requeue", f"job {job_id}", {"instead_of": row.id})
    return job_id


def _asks_for_another(row: JobRow, new: NewJob) -> bool:
    return bool((new.model, to_json(new.parameters)) != (row.model, row.parameters))
