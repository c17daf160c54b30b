"""The queue: durable jobs, leased to one worker at a time, claimed again when it has died."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, Select, and_, delete, exists, or_, select, update

from storage.archive import lock_series
from storage.database import Database, mark_columns, to_job, to_json, to_mark
from storage.enqueue import (
    NO_LIMITS,
    REQUEUEABLE,
    ROUTE_CHANGED,
    UNREADABLE,
    DailyLimits,
    check_complete,
    close,
    enqueue,
    follow_route,
    hold_all,
    insist,
    put_back_mended,
    requesters,
    senders,
    supersede_parted,
    supersede_unreadable,
)
from storage.errors import NotFound, WrongState
from storage.leases import IDLE, Holder, Leases
from storage.records import (
    Attempt,
    ClosingFault,
    DerivedMark,
    Ended,
    Enqueued,
    Instance,
    Job,
    JobState,
    JobVerdict,
    NewDerived,
    NewJob,
    Requeued,
)
from storage.schema import (
    OPEN_ARRIVAL,
    OPEN_JOB,
    REQUEUED_JOB,
    arrival,
    attempt,
    derived,
    derived_instance,
    instance,
    job,
    job_instance,
    series,
)
from storage.site import notices
from storage.site.audit import NODE, acting, note
from storage.transitions import (
    JOBS,
    JobRow,
    abandon,
    attempt_rows,
    begin_again,
    cancel,
    change,
    check_received,
    destinations_of,
    die,
    end,
    end_attempt,
    give_back,
    locked,
    queue_deliveries,
    read_job,
    refuse_queued,
)

AGAIN_SENTENCE = (
    "The same derived series was sent before and its files were removed since; "
    "it is made again, under new UIDs."
)
REVISION_SENTENCE = (
    "Revision {revision} of a derived series was made: other slices, a corrected header, another "
    "model, or files that were removed since. Tell everybody who has used an earlier one."
)

# The longest time for which a job that cost a worker waits for its next try: by a clock that is set
# back it waits no longer.
LONGEST_WAIT = 600.0
NO_ROOM = "no room"  # how an attempt ends for which the machine lacked something

ALL_PRIORITIES = 10  # 1 is first, 9 last

# So long, in seconds, a queued job waits for what is arriving of its series.
LONGEST_ARRIVING = 600.0

Result = TypeVar("Result")  # a new one, or the UID of one that exists


def keep_result(
    database: Database, db: Connection, row: Row[*tuple[Any, ...]], result: NewDerived, now: float
) -> Ended:
    """Write a verified derived series, unless the same exists: then that one is delivered."""
    content_uid = result.content_uid or result.series_uid
    same = _same(db, row.series_id, result.series_uid, content_uid)
    if same is not None:
        return reuse_result(database, db, row, same, now)
    values = {
        "stack": row.stack,
        "route": row.route,
        "content_uid": content_uid,
        **mark_columns(result.mark),
        "series_id": row.series_id,
        "folder": result.folder,
        "edition": result.edition,
        "made_at": now,
        "superseded_at": None,
        "purged_at": None,
    }
    insert = database.insert(derived).values(series_uid=result.series_uid, **values)
    insert = insert.on_conflict_do_update(index_elements=["series_uid"], set_=values)
    derived_id = int(db.execute(insert.returning(derived.c.id)).scalar_one())
    _write_instances(database, db, derived_id, result)
    by_model = {"version": result.version, **_recorded(result.record)}
    ended = _succeed(database, db, row, derived_id, now, folder_kept=True, **by_model)
    if result.mark.revision > 1:
        _tell(database, db, row, result, now)
    return replace(ended, revision=result.mark.revision)


def _recorded(record: Mapping[str, object]) -> Mapping[str, str]:
    """The columns of a worker's record; lists read the counts alone, a record may be long."""
    counts = record.get("confidence_counts")
    known = counts if isinstance(counts, Mapping) else {}
    return {"record": to_json(record), "confidence_counts": to_json(known)}


def reuse_result(
    database: Database, db: Connection, row: Row[*tuple[Any, ...]], series_uid: str, now: float
) -> Ended:
    """Deliver a derived series that exists; where its files are gone, the job is run again."""
    of_uid = select(derived).where(derived.c.series_uid == series_uid)
    result = db.execute(of_uid).one_or_none()
    if result is None:
        raise NotFound(f"no derived series {series_uid}")
    if result.purged_at is None:
        first = select(job.c.version, job.c.record, job.c.confidence_counts)
        first = first.where(job.c.derived_id == result.id).limit(1)
        maker = db.execute(first).one_or_none()
        by_model = maker._asdict() if maker is not None else {}
        return _succeed(database, db, row, result.id, now, folder_kept=False, **by_model)
    # A peer may still have the purged bytes: the same UIDs must not mean others.
    edition = row.edition if result.offered_at is None else max(row.edition, result.edition) + 1
    begin_again(db, row.id, now, edition=edition, sentence=AGAIN_SENTENCE, **IDLE)
    return Ended(JobState.QUEUED, folder_kept=False)


def _same(db: Connection, series_id: int, derived_uid: str, content_uid: str) -> str | None:
    """The UID of the derived series that this one is already, kept or perhaps at a peer.

    Two workers may have made one content at the same time, each with a mark of its own.
    """
    taken = or_(derived.c.purged_at.is_(None), derived.c.offered_at.is_not(None))
    equal = or_(
        derived.c.series_uid == derived_uid,
        and_(derived.c.series_id == series_id, derived.c.content_uid == content_uid),
    )
    query = select(derived.c.series_uid).where(equal, taken).order_by(derived.c.id).limit(1)
    series_uid: str | None = db.execute(query).scalar_one_or_none()
    return series_uid


def _tell(database: Database, db: Connection, row: JobRow, result: NewDerived, now: float) -> None:
    """Tell the administrator: somebody may have read, or measured in, what was made before."""
    revision = result.mark.revision
    sentence = REVISION_SENTENCE.format(revision=revision)
    series_uid = result.series_uid
    detail = {"kind": "revision", "revision": revision, "derived_series_uid": series_uid}
    note(db, now, NODE, "notice", f"job {row.id}", detail | {"sentence": sentence})
    facts = {"job": row.id, "sentence": sentence}
    notices.post(database, db, now, "result_superseded", f"revision {series_uid}", facts)


def _write_instances(
    database: Database, db: Connection, derived_id: int, result: NewDerived
) -> None:
    rows = [
        {
            "derived_id": derived_id,
            **vars(file),
            "generated": int(file.generated),
            "is_supplement": int(file.is_supplement),
        }
        for file in result.instances
    ]
    if not rows:
        return
    insert = database.insert(derived_instance)
    written = {name: insert.excluded[name] for name in ("path", "digest", "generated")}
    db.execute(insert.on_conflict_do_update(index_elements=["instance_uid"], set_=written), rows)


def _succeed(
    database: Database,
    db: Connection,
    row: Row[*tuple[Any, ...]],
    derived_id: int,
    now: float,
    *,
    folder_kept: bool,
    **by_model: object,
) -> Ended:
    done: dict[str, object] = {
        "state": JobState.SUCCEEDED,
        "reason": "",
        "sentence": "",
        "finished_at": now,
        "progress": 1,
        "derived_id": derived_id,
    }
    db.execute(update(job).where(job.c.id == row.id).values(**done, **IDLE, **by_model))
    queue_deliveries(database, db, derived_id, destinations_of(db, row.id), row.priority, now)
    return Ended(JobState.SUCCEEDED, folder_kept)


# A first result says nothing of it, so that its UIDs are those of its content alone. What comes
# after it has another Series Number, and says its revision, or which route has made it. The mark
# of a content is decided once: when the job that makes it is claimed. A content that was made
# before, by whatever job, keeps the mark that it has (`Queue.marks`), and so its UIDs.


def _next_mark(db: Connection, row: JobRow) -> DerivedMark:
    """The mark of what this job makes, beside what exists and what is being made."""
    columns = ("stack", "route", "revision", "place", "named")
    kept = select(*(derived.c[name] for name in columns)).where(
        derived.c.series_id == row.series_id
    )
    coming = select(*(job.c[name] for name in columns)).where(
        job.c.series_id == row.series_id,
        job.c.state == JobState.RUNNING,
        job.c.id != row.id,
    )
    of_series = [*db.execute(kept), *db.execute(coming)]
    others = [other for other in of_series if other.stack == row.stack]
    same_route = [other.revision for other in others if other.route == row.route]
    return DerivedMark(
        revision=1 + max(same_route, default=0),
        place=1 + max((other.place for other in of_series), default=-1),
        route=row.route if len(same_route) < len(others) else "",
    )


def _lock_for_marks(db: Connection, series_id: int) -> bool:
    """Keep others from deciding a mark of this series; False where somebody is at it just now.

    Nobody waits: a claim has locked its job already, and others lock the series first.
    """
    this = select(series.c.id).where(series.c.id == series_id)
    marks = this.with_for_update(skip_locked=True, key_share=True)
    return db.execute(marks).first() is not None


class Queue:
    """Every method is one transition in one transaction."""

    def __init__(self, database: Database, holder: Holder) -> None:
        self._database = database
        self._now = holder.now
        self._leases = Leases(database, job, holder)

    def complete(
        self,
        arrival_id: int,
        evidence: Mapping[str, object],
        jobs: Sequence[NewJob],
        *,
        instances: int | None = None,
        hold: JobVerdict | None = None,
        refuse: Mapping[int, JobVerdict] = MappingProxyType({}),
        limits: DailyLimits = NO_LIMITS,
        stacks: Collection[str] = (),
    ) -> tuple[Enqueued, ...]:
        """Close an arrival and ask for its jobs.

        `instances` is how many the arrival had when this was decided. Where it has more by now
        the answer is WrongState and nothing is changed: no slice is left behind. `hold` says that
        the Series UID is not of one patient: what it has under way, in any study, is held too.
        `refuse` are jobs of other series that this one makes pointless before their turn has come.
        `stacks` are all that the series has by now: older jobs of any other stack are superseded.
        """
        now = self._now()
        with self._database.writing() as db:
            series_uid = close(db, arrival_id, evidence, instances, now)
            held = hold_all(db, series_uid, hold, now) if hold is not None else ()
            refused = refuse_queued(db, refuse, now)
            if not any(new.stack == UNREADABLE for new in jobs):
                supersede_unreadable(db, arrival_id, now)
            asked = [enqueue(self._database, db, new, now, limits) for new in jobs]
            if stacks:
                supersede_parted(db, jobs, stacks, now)
            mended = put_back_mended(db, arrival_id, now) if hold is None else ()
            return (*held, *refused, *asked, *mended)

    def cannot_complete(self, arrival_id: int, fault: ClosingFault, sentence: str) -> None:
        """Keep why an arrival cannot be closed, until it is; people are notified of it once."""
        this = and_(arrival.c.id == arrival_id, OPEN_ARRIVAL)
        with self._database.writing() as db:
            kept = update(arrival).where(this).values(evidence=to_json(fault.as_evidence()))
            if db.execute(kept).rowcount:
                key = f"arrival {arrival_id} {fault.since:.3f}"
                facts = {"arrival": arrival_id, "sentence": sentence}
                notices.post(self._database, db, self._now(), "attention", key, facts)

    def note_waiting(self, arrival_id: int, peer: str, missing: int) -> None:
        """Keep, while an arrival is open, how many instances a peer has that are waited for."""
        this = and_(arrival.c.id == arrival_id, OPEN_ARRIVAL)
        kept = to_json({"waiting": {"peer": peer, "missing": missing}})
        with self._database.writing() as db:
            db.execute(update(arrival).where(this).values(evidence=kept))

    def insist(self, jobs: Sequence[NewJob], *, who: str) -> tuple[Enqueued, ...]:
        """A person has series that are complete processed by a route, whatever it asks for."""
        now = self._now()
        with self._database.writing() as db:
            for series_id in sorted({new.series_id for new in jobs}):
                lock_series(db, series_id)
                check_complete(db, series_id)
            entries = tuple(insist(self._database, db, new, who, now) for new in jobs)
            for entry in entries:
                if entry.what != "known":
                    check_received(db, entry.job_id)
            return entries

    def claim(
        self,
        worker: str,
        kinds: Collection[str],
        *,
        before: int = ALL_PRIORITIES,
        but_series: Collection[int] = (),
    ) -> Job | None:
        """Lease the most urgent, then longest due job, or one whose worker's node died.

        Of those alone that are more urgent than the priority `before`, and of no series that is
        left to another worker.
        """
        leased = self._leases.claim(
            lambda db: self._due(db, kinds, before, but_series),
            lambda db, row: self._take(db, row, worker),
        )
        return leased[0] if leased else None

    def renew(
        self, leased: Job, progress: float, step: str = "", done: int = 0, total: int = 0
    ) -> bool:
        """Keep the lease; True where somebody asked for the job to be cancelled.

        `done` of `total` slices of this step: reading, predicting, writing.
        """
        values = {
            "progress": min(1.0, max(0.0, progress)),
            **({"step": step[:16], "step_done": done, "step_total": total} if step else {}),
        }
        return bool(self._leases.renew(leased, job.c.cancel_requested, **values).cancel_requested)

    def release(self, leased: Job) -> JobState:
        """Give the job back on a clean stop; it counts nothing."""
        with self._leases.holding(leased) as (db, row):
            return give_back(db, row, self._now(), "released")

    def give_back(self, leased: Job, sentence: str) -> JobState:
        """Give back a job for which there was no room, and say so; it counts nothing.

        Of several such attempts the last one stays: a disk may be full for days.
        """
        with self._leases.holding(leased) as (db, row):
            before = and_(attempt.c.job_id == row.id, attempt.c.outcome == NO_ROOM)
            db.execute(delete(attempt).where(before))
            return give_back(db, row, self._now(), NO_ROOM, sentence)

    def succeed(self, leased: Job, result: NewDerived) -> Ended:
        """Write the verified derived series, its deliveries and the job's end, together.

        Where the answer says that the folder is not kept, the caller may remove it: the job was
        cancelled meanwhile, or the same series exists already.
        """
        return self._conclude(leased, keep_result, result)

    def same(self, leased: Job, series_uid: str) -> Ended:
        """End a job whose derived series exists already: that one is delivered once more."""
        return self._conclude(leased, reuse_result, series_uid)

    def refuse(
        self, leased: Job, reason: str, sentence: str, record: Mapping[str, object] | None = None
    ) -> JobState:
        """End a job that is rightly not processed; it needs nobody."""
        return self._finish(leased, JobState.REFUSED, reason, sentence, record)

    def hold(
        self, leased: Job, reason: str, sentence: str, record: Mapping[str, object] | None = None
    ) -> JobState:
        """Hold a job until a person decides."""
        return self._finish(leased, JobState.HELD, reason, sentence, record)

    def fail(self, leased: Job, reason: str, sentence: str, frames: str = "") -> JobState:
        """End a job whose model, or our own code, raised; the frames stay with the attempt."""
        return self._finish(leased, JobState.FAILED, reason, sentence, detail=frames)

    def cancelled(self, leased: Job) -> JobState:
        """End a job that a worker has stopped as asked; queue it where it is wanted again."""
        with self._leases.holding(leased) as (db, row):
            return give_back(db, row, self._now(), "cancelled")

    def died(
        self,
        leased: Job,
        outcome: str,
        detail: str,
        reason: str,
        sentence: str,
        wait: float = 0.0,
    ) -> JobState:
        """Queue a job again whose worker died or was killed; hold it where that was too often.

        It waits so many seconds before it is tried again, LONGEST_WAIT at most.
        """
        with self._leases.holding(leased) as (db, row):
            end_attempt(db, row, self._now(), outcome, detail)
            state = die(db, row, self._now(), outcome, reason, sentence)
            if wait and state == JobState.QUEUED:
                change(db, row.id, due_at=self._now() + wait)
            return state

    def recover(self, node: str = "") -> tuple[int, ...]:
        """Queue again what a dead node was running; at start, a dead process of this one."""
        left = select(job).where(OPEN_JOB, self._leases.left_by(node)).with_for_update()
        with self._database.writing() as db:
            rows = db.execute(left).all()
            for row in rows:
                if abandon(db, row, self._now()):
                    give_back(db, row, self._now(), "abandoned")
        return tuple(row.id for row in rows)

    def requeue(self, job_id: int, *, who: str = "") -> None:
        """Queue again, for a person, what was refused, failed, held or cancelled.

        No worker takes it before the node has compared it with its route (`follow_route`).
        """
        with acting(self._database, self._now(), who, "requeue", f"job {job_id}") as db:
            lock_series(db, read_job(db, job_id).series_id)
            row = locked(db, job, job_id, REQUEUEABLE, "requeued")
            check_received(db, job_id)
            if row.reason == ROUTE_CHANGED:
                raise WrongState(f"job {job_id} cannot be requeued: {row.sentence}")
            begin_again(db, job_id, self._now(), requeued_by=who, requeue_requested=1)

    def requeued(self) -> tuple[Requeued, ...]:
        """The requeued jobs that nobody has compared with their routes yet, the oldest first."""
        query = JOBS.where(REQUEUED_JOB).order_by(job.c.id)
        with self._database.reading() as db:
            jobs = [to_job(row) for row in db.execute(query)]
            return tuple(Requeued(waiting, requesters(db, waiting.id)) for waiting in jobs)

    def follow_route(self, requeued: Requeued, jobs: Sequence[NewJob]) -> int | None:
        """Let a requeued job go on, or what its route asks for by now; the id of the one that does.

        `jobs` are that, one for each requester. None where the job or who wants it has changed
        meanwhile: where it waits still, it is compared once more.
        """
        job_id = requeued.job.id
        with self._database.writing() as db:
            lock_series(db, requeued.job.series_id)
            waits = and_(job.c.id == job_id, job.c.requeue_requested == 1)
            row = db.execute(select(job).where(waits).with_for_update()).one_or_none()
            if row is None or requesters(db, job_id) != requeued.requesters:
                return None
            return follow_route(self._database, db, row, jobs, self._now())

    def cancel(self, job_id: int, *, who: str = "") -> JobState:
        """Cancel a job for a person; a running one stops at its next step. Its state now."""
        allowed = (JobState.QUEUED, JobState.HELD, JobState.FAILED, JobState.RUNNING)
        with acting(self._database, self._now(), who, "cancel", f"job {job_id}") as db:
            row = locked(db, job, job_id, allowed, "cancelled")
            if row.state == JobState.RUNNING:
                change(db, job_id, cancel_requested=1)
                return JobState.RUNNING
            return cancel(db, row, self._now())

    def prioritise(self, job_id: int, priority: int, *, who: str = "") -> None:
        """Put a job that waits before or behind others: 1 is first, 9 last."""
        detail = {"priority": priority}
        with acting(self._database, self._now(), who, "prioritise", f"job {job_id}", detail) as db:
            locked(db, job, job_id, (JobState.QUEUED,), "prioritised")
            change(db, job_id, priority=priority)

    def get(self, job_id: int) -> Job:
        with self._database.reading() as db:
            return read_job(db, job_id)

    def of_series(self, series_id: int) -> tuple[Job, ...]:
        """All jobs of a received series, the oldest first."""
        return self._jobs(JOBS.where(job.c.series_id == series_id))

    def waiting_beside(self, study_uid: str, series_id: int) -> tuple[Job, ...]:
        """The queued jobs of the other series of a study that no person has requeued."""
        waits = and_(OPEN_JOB, job.c.state == JobState.QUEUED, job.c.requeued_by.is_(None))
        others = and_(series.c.study_uid == study_uid, series.c.id != series_id)
        return self._jobs(JOBS.where(waits, others))

    def attempts(self, job_id: int) -> tuple[Attempt, ...]:
        return self._database.records(Attempt, attempt_rows(job_id))

    def senders(self, job_id: int) -> tuple[str, ...]:
        """The calling AE titles of all whose job it is."""
        with self._database.reading() as db:
            return senders(db, job_id)

    def instances(self, job_id: int) -> tuple[Instance, ...]:
        """The versions that a job works on, the newest first, as when it was asked for."""
        query = (
            select(instance)
            .join(job_instance, job_instance.c.instance_id == instance.c.id)
            .where(job_instance.c.job_id == job_id)
            .order_by(job_instance.c.rank)
        )
        return self._database.records(Instance, query)

    def beside(self, job: Job) -> tuple[Instance, ...]:
        """The other instances of the series of a job, whoever brought them; the newest first."""
        mine = select(job_instance.c.instance_id).where(job_instance.c.job_id == job.id)
        query = select(instance).where(
            instance.c.series_id == job.series_id,
            instance.c.path.is_not(None),
            instance.c.id.not_in(mine),
        )
        return self._database.records(Instance, query.order_by(instance.c.id.desc()))

    def kept_series(self, series_id: int) -> frozenset[str]:
        """Derived Series UIDs of a received series that must not be made a second time.

        Those on disk, and those that were offered to a peer and purged: the same UID always means
        the same bytes. `same` raises the edition for these.
        """
        taken = or_(derived.c.purged_at.is_(None), derived.c.offered_at.is_not(None))
        query = select(derived.c.series_uid).where(derived.c.series_id == series_id, taken)
        return frozenset(self._database.values(query))

    def marks(self, series_id: int) -> Mapping[str, DerivedMark]:
        """The mark of each content that was made of a received series."""
        columns = ("content_uid", "route", "revision", "place", "named")
        query = select(*(derived.c[name] for name in columns))
        query = query.where(derived.c.series_id == series_id).order_by(derived.c.id)
        with self._database.reading() as db:
            return {row.content_uid: to_mark(row) for row in db.execute(query)}

    def _jobs(self, query: Select[*tuple[Any, ...]]) -> tuple[Job, ...]:
        with self._database.reading() as db:
            return tuple(to_job(row) for row in db.execute(query.order_by(job.c.id)))

    def _due(
        self, db: Connection, kinds: Collection[str], before: int, but_series: Collection[int]
    ) -> Select[*tuple[Any, ...]]:
        # `due_at` orders, and delays only what cost a worker: a clock set back stops no job.
        now = self._now()
        waits = and_(job.c.due_at > now, job.c.due_at <= now + LONGEST_WAIT)
        waits = and_(waits, job.c.worker_deaths > 0)
        queued = and_(job.c.state == JobState.QUEUED, job.c.requeue_requested == 0, ~waits)
        # What arrives may be slices of its stack, and then another job takes its place.
        arriving = exists().where(arrival.c.series_id == job.c.series_id, OPEN_ARRIVAL)
        queued = and_(queued, or_(~arriving, job.c.queued_at <= now - LONGEST_ARRIVING))
        free = or_(queued, self._leases.left_behind(db, OPEN_JOB))
        urgent = job.c.priority < before
        query = select(job).where(OPEN_JOB, urgent, free, job.c.kind.in_(kinds))
        if but_series:
            query = query.where(job.c.series_id.not_in(but_series))
        return query.order_by(job.c.priority, job.c.due_at, job.c.id).limit(1)

    def _take(self, db: Connection, row: JobRow, worker: str) -> Job | None:
        """Lease the row; None where a mark of its series is being decided, or a person is asked."""
        now = self._now()
        if not _lock_for_marks(db, row.series_id):
            return None
        if row.state == JobState.RUNNING and not abandon(db, row, now):
            return None
        running = {"state": JobState.RUNNING, "started_at": now, "progress": 0}
        self._leases.take(db, row, worker, running | mark_columns(_next_mark(db, row)))
        run = {"job_id": row.id, "number": row.attempt + 1, "worker": worker, "started_at": now}
        db.execute(attempt.insert().values(**run))
        return read_job(db, row.id)

    def _conclude(
        self,
        leased: Job,
        end: Callable[[Database, Connection, JobRow, Result, float], Ended],
        result: Result,
    ) -> Ended:
        """End a job with its result, or give it back where somebody has cancelled it."""
        with self._leases.holding(leased) as (db, row):
            if row.cancel_requested:
                return Ended(give_back(db, row, self._now(), "cancelled"), folder_kept=False)
            ended = end(self._database, db, row, result, self._now())
            end_attempt(db, row, self._now(), str(ended.state))
            return ended

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
        with self._leases.holding(leased) as (db, row):
            end_attempt(db, row, self._now(), str(state), detail or reason)
            if row.cancel_requested:  # a verdict on a job that nobody wants any more
                return cancel(db, row, self._now())
            why = {"reason": reason, "sentence": sentence, **_recorded(record or {})}
            return end(db, row, self._now(), state, **why)
