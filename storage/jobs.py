"""The queue: durable jobs, leased to one worker at a time, fenced by their attempt."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Select, and_, func, or_, select, update

from storage.database import Database
from storage.enqueue import enqueue, lock_series, requeued
from storage.errors import NotFound, WrongState
from storage.finish import keep_result, reuse_result
from storage.mixups import hold_all
from storage.records import (
    ArrivalState,
    Attempt,
    Ended,
    Enqueued,
    Instance,
    Job,
    JobState,
    NewDerived,
    NewJob,
    Verdict,
)
from storage.rows import to_attempt, to_instance, to_job, to_json
from storage.schema import (
    OPEN_JOB,
    arrival,
    arrival_instance,
    attempt,
    derived,
    instance,
    job,
    job_instance,
    series,
)
from storage.transitions import (
    JOBS,
    JobRow,
    abandon,
    cancel,
    change,
    die,
    end,
    end_attempt,
    held_by,
    is_held_by,
    locked,
    lost,
    put_back,
    read_job,
)


class Queue:
    """Every method is one transition in one transaction."""

    def __init__(
        self, database: Database, now: Callable[[], float], *, node: str, lease_seconds: float
    ) -> None:
        self._database = database
        self._now = now
        self._node = node
        self._lease_seconds = lease_seconds

    def complete(
        self,
        arrival_id: int,
        evidence: Mapping[str, object],
        jobs: Sequence[NewJob],
        *,
        instances: int | None = None,
        hold: Verdict | None = None,
    ) -> tuple[Enqueued, ...]:
        """Close an arrival and ask for its jobs.

        `instances` is how many the arrival had when this was decided. Where it has more by now
        the answer is WrongState and nothing is changed: no slice is left behind. `hold` says that
        the Series UID is not of one patient: what it has under way, in any study, is held too.
        """
        now = self._now()
        with self._database.writing() as db:
            series_uid = self._close(db, arrival_id, evidence, instances)
            held = hold_all(db, series_uid, hold, now) if hold is not None else ()
            return (*held, *(enqueue(self._database, db, new, now) for new in jobs))

    def claim(self, worker: str, kinds: Collection[str]) -> Job | None:
        """Lease the most urgent, then longest due job, or one whose worker's node died."""
        due = self._due(kinds)
        with self._database.reading() as db:  # workers ask all the time: who writes waits for none
            if db.execute(due).first() is None:
                return None
        with self._database.writing() as db:
            # PostgreSQL claims twice without the lock; SQLite ignores it: its writer is alone.
            due = due.with_for_update(skip_locked=True)
            while (found := db.execute(due).one_or_none()) is not None:
                if found.state == JobState.RUNNING and not abandon(db, found, self._now()):
                    continue
                return self._lease(db, found, worker)
        return None

    def renew(self, leased: Job, progress: float) -> bool:
        """Keep the lease; True where somebody asked for the job to be cancelled."""
        values = {
            "lease_until": self._now() + self._lease_seconds,
            "progress": min(1.0, max(0.0, progress)),
        }
        renewal = update(job).where(is_held_by(leased)).values(**values)
        with self._database.writing() as db:
            row = db.execute(renewal.returning(job.c.cancel_requested)).one_or_none()
        if row is None:
            raise lost(leased)
        return bool(row.cancel_requested)

    def release(self, leased: Job) -> JobState:
        """Give the job back on a clean stop; it counts nothing."""
        with self._database.writing() as db:
            return put_back(db, held_by(db, leased), self._now(), "released")

    def succeed(self, leased: Job, result: NewDerived) -> Ended:
        """The verified derived series, its deliveries and the job's end, together.

        Where the answer says that the folder is not kept, the caller may remove it: the job was
        cancelled meanwhile, or the same series exists already.
        """
        with self._database.writing() as db:
            row = held_by(db, leased)
            if row.cancel_requested:
                return Ended(put_back(db, row, self._now(), "cancelled"), folder_kept=False)
            ended = keep_result(self._database, db, row, result, self._now())
            end_attempt(db, row, self._now(), str(ended.state))
            return ended

    def same(self, leased: Job, series_uid: str) -> Ended:
        """The derived series exists already: deliver it once more instead of making it."""
        with self._database.writing() as db:
            row = held_by(db, leased)
            if row.cancel_requested:
                return Ended(put_back(db, row, self._now(), "cancelled"), folder_kept=False)
            ended = reuse_result(self._database, db, row, series_uid, self._now())
            end_attempt(db, row, self._now(), str(ended.state))
            return ended

    def refuse(
        self, leased: Job, reason: str, sentence: str, record: Mapping[str, object] | None = None
    ) -> JobState:
        """Looked at, and rightly not processed; final, needs nobody."""
        return self._finish(leased, JobState.REFUSED, reason, sentence, record)

    def hold(
        self, leased: Job, reason: str, sentence: str, record: Mapping[str, object] | None = None
    ) -> JobState:
        """A person must decide."""
        return self._finish(leased, JobState.HELD, reason, sentence, record)

    def fail(self, leased: Job, reason: str, sentence: str, frames: str = "") -> JobState:
        """The model or our code raised; the frames stay with the attempt."""
        return self._finish(leased, JobState.FAILED, reason, sentence, detail=frames)

    def cancelled(self, leased: Job) -> JobState:
        """The worker has stopped because somebody asked for it; queued where it is wanted again."""
        with self._database.writing() as db:
            return put_back(db, held_by(db, leased), self._now(), "cancelled")

    def died(self, leased: Job, outcome: str, detail: str, reason: str, sentence: str) -> JobState:
        """The worker died or was killed: once more, or held where that happened too often."""
        with self._database.writing() as db:
            row = held_by(db, leased)
            end_attempt(db, row, self._now(), outcome, detail)
            return die(db, row, self._now(), outcome, reason, sentence)

    def recover(self) -> tuple[int, ...]:
        """At start: the jobs that a dead process of this node was running are queued again."""
        left = and_(job.c.node == self._node, job.c.state == JobState.RUNNING)
        with self._database.writing() as db:
            rows = db.execute(select(job).where(left).with_for_update()).all()
            for row in rows:
                if abandon(db, row, self._now()):
                    put_back(db, row, self._now(), "abandoned")
        return tuple(row.id for row in rows)

    def requeue(self, job_id: int) -> None:
        """A person puts a job back that was refused, failed, held or cancelled."""
        allowed = (JobState.REFUSED, JobState.FAILED, JobState.HELD, JobState.CANCELLED)
        with self._database.writing() as db:
            lock_series(db, read_job(db, job_id).series_id)
            locked(db, job_id, allowed, "requeued")
            if _has_purged_instances(db, job_id):
                raise WrongState(
                    f"job {job_id}: its received instances are no longer kept; "
                    "send the series again"
                )
            change(db, job_id, **requeued(self._now()))

    def cancel(self, job_id: int) -> JobState:
        """A person cancels a job; a running one stops at its next step. Where it stands now."""
        allowed = (JobState.QUEUED, JobState.HELD, JobState.RUNNING)
        with self._database.writing() as db:
            row = locked(db, job_id, allowed, "cancelled")
            if row.state == JobState.RUNNING:
                change(db, job_id, cancel_requested=1)
                return JobState.RUNNING
            return cancel(db, row, self._now())

    def get(self, job_id: int) -> Job:
        with self._database.reading() as db:
            return read_job(db, job_id)

    def list(
        self, state: JobState | None = None, limit: int = 100, offset: int = 0
    ) -> tuple[Job, ...]:
        """Jobs, the newest first."""
        query = JOBS if state is None else JOBS.where(job.c.state == state)
        query = query.order_by(job.c.queued_at.desc(), job.c.id.desc())
        with self._database.reading() as db:
            return tuple(to_job(row) for row in db.execute(query.limit(limit).offset(offset)))

    def of_series(self, series_id: int) -> tuple[Job, ...]:
        """All jobs of a received series, the oldest first."""
        query = JOBS.where(job.c.series_id == series_id).order_by(job.c.id)
        with self._database.reading() as db:
            return tuple(to_job(row) for row in db.execute(query))

    def attempts(self, job_id: int) -> tuple[Attempt, ...]:
        columns = (attempt.c[name] for name in Attempt.__dataclass_fields__)
        query = select(*columns).where(attempt.c.job_id == job_id).order_by(attempt.c.number)
        with self._database.reading() as db:
            return tuple(to_attempt(row) for row in db.execute(query))

    def instances(self, job_id: int) -> tuple[Instance, ...]:
        """What a job works on, all versions, the newest first, as when it was asked for."""
        query = (
            select(instance)
            .join(job_instance, job_instance.c.instance_id == instance.c.id)
            .where(job_instance.c.job_id == job_id)
            .order_by(job_instance.c.rank)
        )
        with self._database.reading() as db:
            return tuple(to_instance(row) for row in db.execute(query))

    def kept_series(self, series_id: int) -> frozenset[str]:
        """Derived Series UIDs of a received series that must not be made a second time.

        Those on disk, and those that were offered to a peer and purged: the same UID always means
        the same bytes. `same` raises the edition for these.
        """
        taken = or_(derived.c.purged_at.is_(None), derived.c.offered_at.is_not(None))
        query = select(derived.c.series_uid).where(derived.c.series_id == series_id, taken)
        with self._database.reading() as db:
            return frozenset(db.execute(query).scalars())

    def _close(
        self, db: Connection, arrival_id: int, evidence: Mapping[str, object], seen: int | None
    ) -> str:
        """Close an arrival; its Series UID."""
        one = arrival.c.id == arrival_id
        row = db.execute(select(arrival).where(one).with_for_update()).one_or_none()
        if row is None:
            raise NotFound(f"no arrival {arrival_id}")
        if row.state != ArrivalState.ARRIVING:
            raise WrongState(f"arrival {arrival_id} is {row.state} already")
        brought = select(func.count()).where(arrival_instance.c.arrival_id == arrival_id)
        count = db.execute(brought).scalar_one()
        if seen is not None and seen != count:
            raise WrongState(f"arrival {arrival_id} has {count} instances by now, not {seen}")
        closed = {"state": ArrivalState.COMPLETE, "completed_at": self._now()}
        db.execute(update(arrival).where(one).values(**closed, evidence=to_json(evidence)))
        named = select(series.c.series_uid).where(series.c.id == row.series_id)
        return str(db.execute(named).scalar_one())

    def _due(self, kinds: Collection[str]) -> Select[*tuple[Any, ...]]:
        # `due_at` orders and does not delay: a clock that is set back stops no job.
        queued = job.c.state == JobState.QUEUED
        abandoned = and_(job.c.state == JobState.RUNNING, job.c.lease_until < self._now())
        query = select(job).where(OPEN_JOB, or_(queued, abandoned), job.c.kind.in_(kinds))
        return query.order_by(job.c.priority, job.c.due_at, job.c.id).limit(1)

    def _lease(self, db: Connection, row: JobRow, worker: str) -> Job:
        now = self._now()
        values = {"worker": worker, "node": self._node, "lease_until": now + self._lease_seconds}
        change(
            db,
            row.id,
            **values,
            state=JobState.RUNNING,
            attempt=row.attempt + 1,
            started_at=now,
            progress=0,
        )
        run = {"job_id": row.id, "number": row.attempt + 1, "worker": worker, "started_at": now}
        db.execute(attempt.insert().values(**run))
        return read_job(db, row.id)

    def _finish(
        self,
        leased: Job,
        state: JobState,
        reason: str,
        sentence: str,
        record: Mapping[str, object] | None = None,
        *,
        detail: str = "",
    ) -> JobState:
        with self._database.writing() as db:
            row = held_by(db, leased)
            end_attempt(db, row, self._now(), str(state), detail or reason)
            if row.cancel_requested:  # a verdict on a job that nobody wants any more
                return cancel(db, row, self._now())
            told = {"reason": reason, "sentence": sentence, "record": to_json(record or {})}
            return end(db, row, self._now(), state, **told)


def _has_purged_instances(db: Connection, job_id: int) -> bool:
    gone = or_(instance.c.path.is_(None), series.c.purged_at.is_not(None))  # or about to go
    query = (
        select(instance.c.id)
        .join(job_instance, job_instance.c.instance_id == instance.c.id)
        .join(series, series.c.id == instance.c.series_id)
        .where(job_instance.c.job_id == job_id, gone)
    )
    return db.execute(query.limit(1)).first() is not None
