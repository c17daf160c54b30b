"""The history of self-tests: a made series on the whole way, and the finding at each step."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import Connection, and_, delete, func, select, update

from storage.archive import lock_series
from storage.database import Database, to_record
from storage.errors import NotFound
from storage.files import Files
from storage.records import ArrivalState, JobState, SelfTest, SelfTestState, SelfTestStep
from storage.retention import purge_one
from storage.schema import OPEN_ARRIVAL, arrival, derived, derived_instance, job, selftest, series
from storage.schema import node as node_table
from storage.site import notices
from storage.transitions import PENDING, cancel_undelivered, change
from storage.transitions import end as end_job

RUNNING = selftest.c.state == SelfTestState.RUNNING
OVER = "The self-test is over."
INTERRUPTED = "The node {node} stopped, or failed, while the self-test ran."
FAILED_EVENT = "selftest_failed"  # of the notice


def begin(
    database: Database, now: float, *, node: str, who: str, series_uid: str, destination: str
) -> SelfTest:
    """Begin a self-test; `series_uid` is that of the series that is made for it."""
    values = {"node": node, "who": who, "series_uid": series_uid, "destination": destination}
    row = selftest.insert().values(**values, started_at=now, state=SelfTestState.RUNNING)
    with database.writing() as db:
        return to_record(SelfTest, db.execute(row.returning(selftest)).one())


def end(
    database: Database, now: float, selftest_id: int, steps: Sequence[SelfTestStep], sentence: str
) -> SelfTest:
    """End it: passed where every step is; a notice tells of a failed one.

    One that was given up meanwhile, because its node seemed to be dead, stays as it is.
    """
    passed = bool(steps) and all(step.ok for step in steps)
    columns = {
        "state": SelfTestState.PASSED if passed else SelfTestState.FAILED,
        "finished_at": now,
        "steps": json.dumps([asdict(step) for step in steps]),
        "sentence": sentence,
    }
    mine = update(selftest).where(selftest.c.id == selftest_id, RUNNING)
    with database.writing() as db:
        row = db.execute(mine.values(**columns).returning(selftest)).first()
        if row is not None:
            return _post_failure(database, db, now, to_record(SelfTest, row))
    return get(database, selftest_id)


def interrupted(database: Database, now: float, node: str) -> tuple[SelfTest, ...]:
    """Fail the tests that a dead process of this node was running; a notice tells of each."""
    left = and_(selftest.c.node == node, RUNNING)
    with database.reading() as db:  # it is looked at every minute: that must wait for nobody
        if db.execute(select(selftest.c.id).where(left)).first() is None:
            return ()
    sentence = INTERRUPTED.format(node=node)
    failed = {"state": SelfTestState.FAILED, "finished_at": now, "sentence": sentence}
    with database.writing() as db:
        rows = db.execute(update(selftest).where(left).values(**failed).returning(selftest)).all()
        return tuple(_post_failure(database, db, now, to_record(SelfTest, row)) for row in rows)


def running_on(database: Database) -> dict[str, float]:
    """The nodes that seem to run a self-test, each with its last heartbeat."""
    query = select(selftest.c.node, node_table.c.heartbeat).where(RUNNING)
    with database.reading() as db:
        rows = db.execute(query.outerjoin(node_table, node_table.c.id == selftest.c.node))
        return {row.node: row.heartbeat or 0.0 for row in rows}


def newest(database: Database, limit: int = 50, offset: int = 0) -> tuple[SelfTest, ...]:
    """The self-tests, the newest first."""
    query = select(selftest).order_by(selftest.c.id.desc()).limit(limit).offset(offset)
    return database.records(SelfTest, query)


def count(database: Database) -> int:
    with database.reading() as db:
        return int(db.execute(select(func.count()).select_from(selftest)).scalar_one())


def get(database: Database, selftest_id: int) -> SelfTest:
    test = database.record(SelfTest, select(selftest).where(selftest.c.id == selftest_id))
    if test is None:
        raise NotFound(f"no self-test {selftest_id}")
    return test


def forget(database: Database, before: float) -> None:
    """Remove the tests of long ago."""
    old = and_(selftest.c.started_at < before, selftest.c.finished_at.is_not(None))
    with database.writing() as db:
        db.execute(delete(selftest).where(old))


def of_series(database: Database, series_uid: str) -> SelfTest | None:
    """The self-test that a series was made for; None for a series of a patient."""
    query = select(selftest).where(selftest.c.series_uid == series_uid).limit(1)
    return database.record(SelfTest, query)


def result(database: Database, job_id: int) -> tuple[str, ...]:
    """The slices of what a job made, relative to the storage folder."""
    path = derived.c.folder + "/" + derived_instance.c.path
    query = (
        select(path)
        .join(derived_instance, derived_instance.c.derived_id == derived.c.id)
        .join(job, job.c.derived_id == derived.c.id)
        .where(job.c.id == job_id, derived_instance.c.kind == "image")
    )
    return database.values(query.order_by(derived_instance.c.id))


def leftovers(database: Database) -> tuple[int, ...]:
    """Series of self-tests that are over, whose files are still there."""
    query = (
        select(series.c.id)
        .join(selftest, selftest.c.series_uid == series.c.series_uid)
        .where(selftest.c.state != SelfTestState.RUNNING, series.c.purged_at.is_(None))
    )
    return database.values(query)


def clear(database: Database, files: Files, series_id: int, now: float) -> bool:
    """Cancel what still waits of a self-test, and remove its files; False where it has to wait.

    Its rows stay, as those of any series: what a late worker writes finds them ended.
    """
    unfinished = and_(job.c.series_id == series_id, job.c.state.in_(PENDING))
    results = select(derived.c.id).where(derived.c.series_id == series_id)
    ended = {"state": ArrivalState.COMPLETE, "completed_at": now}
    with database.writing() as db:
        lock_series(db, series_id)
        arriving = update(arrival).where(arrival.c.series_id == series_id, OPEN_ARRIVAL)
        db.execute(arriving.values(**ended))
        for row in db.execute(select(job).where(unfinished).with_for_update()).all():
            if row.state == JobState.RUNNING:
                change(db, row.id, cancel_requested=1)
            else:
                end_job(db, row, now, JobState.CANCELLED, reason="", sentence=OVER)
        for derived_id in db.execute(results).scalars().all():
            cancel_undelivered(db, derived_id, "", now)
    return purge_one(database, files, series_id, now)


def _post_failure(database: Database, db: Connection, now: float, ended: SelfTest) -> SelfTest:
    """Tell of a failure in the transaction that ends the test, whatever becomes of this process."""
    if ended.state is SelfTestState.FAILED:
        facts = {"selftest": ended.id, "sentence": ended.sentence}
        notices.post(database, db, now, FAILED_EVENT, f"selftest {ended.id}", facts)
    return ended
