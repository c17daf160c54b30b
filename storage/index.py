"""The rows of one received instance, written in the transaction that its file is renamed in."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Connection,
    Executable,
    and_,
    bindparam,
    case,
    exists,
    or_,
    select,
    text,
    update,
)

from storage.commits import Group
from storage.database import Database
from storage.files import Files
from storage.records import ArrivalState, Kept, Peer, Received
from storage.rows import name_key
from storage.schema import (
    arrival,
    arrival_association,
    arrival_instance,
    derived,
    derived_instance,
    instance,
    series,
)


@dataclass(frozen=True)
class Entry:
    """An instance on its way into the archive: its bytes are on disk, its name is not yet."""

    received: Received
    peer: Peer | None
    file: Path
    digest: str
    size: int
    place: str  # where it belongs, relative to the storage folder


class _Statements:
    """Built once: for one instance, building them takes longer than running them."""

    def __init__(self, database: Database) -> None:
        self.series = _touch_series(database)
        self.arrival = _touch_arrival(database)
        self.same = select(instance.c.id, instance.c.path).where(
            and_(
                instance.c.series_id == bindparam("series_id"),
                instance.c.instance_uid == bindparam("instance_uid"),
                instance.c.digest == bindparam("digest"),
            )
        )
        self.instance = instance.insert().returning(instance.c.id)
        self.again = update(instance).where(instance.c.id == bindparam("purged_id"))
        self.brought = _touch_arrival_instance(database)
        self.over = database.insert(arrival_association).on_conflict_do_nothing()


class Index:
    """Writes the rows; the row of the series is locked first, by whoever touches the series."""

    def __init__(self, database: Database, files: Files, now: Callable[[], float]) -> None:
        self._files = files
        self._now = now
        self._statements = _Statements(database)

    def add(self, entry: Entry, group: Group) -> Kept:
        """Index one instance and rename its file; the group's commit makes both last."""
        now = self._now()
        series_id = self._series(group.db, entry.received, now)
        instance_id, is_new = self._instance(group.db, series_id, entry, now)
        if is_new or not self._files.path(entry.place).exists():
            group.folders.add(self._files.move(entry.file, entry.place))
        if entry.peer is None:
            return Kept(instance_id, 0, is_new)
        arrival_id = self._arrival(group.db, series_id, entry.received, entry.peer, now)
        self._link(group.db, arrival_id, instance_id, entry.peer, now)
        return Kept(instance_id, arrival_id, is_new)

    def _series(self, db: Connection, received: Received, now: float) -> int:
        values = {
            "study_uid": received.study_uid,
            "series_uid": received.series_uid,
            "modality": received.modality,
            "patient_id": received.patient_id,
            "accession": received.accession,
            "study_date": received.study_date,
            "description": received.description,
            "patient_name": received.patient_name,
            "name_key": name_key(received.patient_name),
            "first_at": now,
            "last_at": now,
        }
        return int(db.execute(self._statements.series, values).scalar_one())

    def _instance(
        self, db: Connection, series_id: int, entry: Entry, now: float
    ) -> tuple[int, bool]:
        """The row of these bytes, and whether their file was not there."""
        key = {
            "series_id": series_id,
            "instance_uid": entry.received.instance_uid,
            "digest": entry.digest,
        }
        row = db.execute(self._statements.same, key).one_or_none()
        if row is not None and row.path is not None:
            return int(row.id), False
        values = {"path": entry.place, "size": entry.size, "received_at": now}
        if row is not None:  # purged, and here again
            db.execute(self._statements.again, {"purged_id": row.id, **values})
            return int(row.id), True
        values |= {
            "sop_class_uid": entry.received.sop_class_uid,
            "transfer_syntax": entry.received.transfer_syntax,
        }
        return int(db.execute(self._statements.instance, key | values).scalar_one()), True

    def _arrival(
        self, db: Connection, series_id: int, received: Received, peer: Peer, now: float
    ) -> int:
        values: dict[str, Any] = {
            "series_id": series_id,
            "calling_ae": peer.calling_ae,
            "called_ae": peer.called_ae,
            "first_at": now,
            "last_at": now,
            "brought_series": received.series_uid,
            "brought_instance": received.instance_uid,
        }
        return int(db.execute(self._statements.arrival, values).scalar_one())

    def _link(
        self, db: Connection, arrival_id: int, instance_id: int, peer: Peer, now: float
    ) -> None:
        brought = {"arrival_id": arrival_id, "instance_id": instance_id, "brought_at": now}
        db.execute(self._statements.brought, brought)
        if peer.association is not None:
            over = {"arrival_id": arrival_id, "association_id": peer.association}
            db.execute(self._statements.over, over)


def _touch_series(database: Database) -> Executable:
    insert = database.insert(series)
    # The newest instance's text counts: a PACS sends again what it has corrected.
    texts = ("modality", "patient_id", "patient_name", "name_key", "accession", "description")
    newest = (*texts, "study_date", "last_at")
    return insert.on_conflict_do_update(
        index_elements=["study_uid", "series_uid"],
        set_={**{name: insert.excluded[name] for name in newest}, "purged_at": None},
    ).returning(series.c.id)


def _touch_arrival_instance(database: Database) -> Executable:
    insert = database.insert(arrival_instance)
    return insert.on_conflict_do_update(
        index_elements=["arrival_id", "instance_id"],
        set_={"brought_at": insert.excluded.brought_at},
    )


def _touch_arrival(database: Database) -> Executable:
    # Own is what a node on this database made: it has come back through a PACS rule.
    made_series = exists().where(derived.c.series_uid == bindparam("brought_series"))
    made_instance = exists().where(derived_instance.c.instance_uid == bindparam("brought_instance"))
    insert = database.insert(arrival).values(
        series_id=bindparam("series_id"),
        calling_ae=bindparam("calling_ae"),
        called_ae=bindparam("called_ae"),
        state=ArrivalState.ARRIVING,
        first_at=bindparam("first_at"),
        last_at=bindparam("last_at"),
        own=case((or_(made_series, made_instance), 1), else_=0),
    )
    return insert.on_conflict_do_update(
        index_elements=["series_id", "calling_ae", "called_ae"],
        index_where=text("state = 'arriving'"),
        set_={
            "last_at": insert.excluded.last_at,
            "own": case((arrival.c.own == 1, 1), else_=insert.excluded.own),
        },
    ).returning(arrival.c.id)
