"""What a job made: kept once, delivered, and the job's end, in one transaction."""

from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, and_, or_, select, update

from storage.audit import NODE, note
from storage.database import Database
from storage.deliveries import queue_deliveries
from storage.enqueue import requeued
from storage.errors import NotFound
from storage.records import Ended, JobState, NewDerived
from storage.rows import mark_columns, to_json, to_names
from storage.schema import derived, derived_instance, job

AGAIN_SENTENCE = (
    "The same derived series was sent before and its files were removed since; "
    "it is made again, under new UIDs."
)
REVISION_SENTENCE = (
    "Revision {revision} of a derived series was made: other slices, a corrected header, another "
    "model, or files that were removed since. Whoever has used an earlier one must know."
)


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
    told = {"version": result.version, "record": to_json(result.record)}
    ended = _succeed(database, db, row, derived_id, now, folder_kept=True, **told)
    if result.mark.revision > 1:
        _tell(db, row, result, now)
    return replace(ended, revision=result.mark.revision)


def reuse_result(
    database: Database, db: Connection, row: Row[*tuple[Any, ...]], series_uid: str, now: float
) -> Ended:
    """Deliver a derived series that exists; where its files are gone, the job is run again."""
    made = _by_uid(db, series_uid)
    if made is None:
        raise NotFound(f"no derived series {series_uid}")
    if made.purged_at is None:
        first = select(job.c.version, job.c.record).where(job.c.derived_id == made.id).limit(1)
        maker = db.execute(first).one_or_none()
        told = maker._asdict() if maker is not None else {}
        return _succeed(database, db, row, made.id, now, folder_kept=False, **told)
    # A peer may still have the purged bytes: the same UIDs must not mean others.
    edition = row.edition if made.offered_at is None else max(row.edition, made.edition) + 1
    values = {**requeued(now), "edition": edition, "sentence": AGAIN_SENTENCE}
    idle = {"worker": None, "node": None, "lease_until": None}
    db.execute(update(job).where(job.c.id == row.id).values(**values, **idle))
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
    found: str | None = db.execute(query).scalar_one_or_none()
    return found


def _tell(db: Connection, row: Row[*tuple[Any, ...]], result: NewDerived, now: float) -> None:
    """The administrator is told: somebody may have read, or measured in, what was made before."""
    detail = {
        "kind": "revision",
        "revision": result.mark.revision,
        "derived_series_uid": result.series_uid,
        "sentence": REVISION_SENTENCE.format(revision=result.mark.revision),
    }
    note(db, now, NODE, "notice", f"job {row.id}", detail)


def _by_uid(db: Connection, series_uid: str) -> Row[*tuple[Any, ...]] | None:
    return db.execute(select(derived).where(derived.c.series_uid == series_uid)).one_or_none()


def _write_instances(
    database: Database, db: Connection, derived_id: int, result: NewDerived
) -> None:
    rows = [
        {
            "derived_id": derived_id,
            "instance_uid": one.instance_uid,
            "sop_class_uid": one.sop_class_uid,
            "path": one.path,
            "digest": one.digest,
            "generated": int(one.generated),
        }
        for one in result.instances
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
    **told: object,
) -> Ended:
    done: dict[str, object] = {
        "state": JobState.SUCCEEDED,
        "reason": "",
        "sentence": "",
        "finished_at": now,
        "worker": None,
        "node": None,
        "lease_until": None,
        "progress": 1,
        "derived_id": derived_id,
    }
    db.execute(update(job).where(job.c.id == row.id).values(**done, **told))
    queue_deliveries(database, db, derived_id, to_names(row.destinations), row.priority, now)
    return Ended(JobState.SUCCEEDED, folder_kept)
