"""The received instances: kept for good before their peer hears Success, and found again."""

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from sqlalchemy import (
    Connection,
    Executable,
    Row,
    Select,
    and_,
    bindparam,
    case,
    exists,
    func,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.engine.interfaces import DBAPICursor

from storage.database import Database, fits, name_key, to_record, to_records
from storage.errors import Busy, NotFound, StorageError
from storage.files import Files, received_digest, sync
from storage.records import (
    Arrival,
    ArrivalState,
    Brought,
    Instance,
    KeptInstance,
    Peer,
    Received,
    Series,
)
from storage.schema import (
    OPEN_ARRIVAL,
    arrival,
    arrival_association,
    arrival_instance,
    association,
    attempt,
    derived,
    derived_instance,
    instance,
    job,
    series,
)

Result = TypeVar("Result")
BroughtRow: TypeAlias = Row[*tuple[Any, ...]]

# The texts of a series, of which the newest count: a PACS sends again what it has corrected.
SERIES_TEXTS = (
    *("modality", "patient_id", "patient_name", "name_key", "accession", "description"),
    "study_date",
)
SERIES_COLUMNS = ("study_uid", "series_uid", *SERIES_TEXTS, "first_at", "last_at")
OPENED_COLUMNS = ("node", "calling_ae", "called_ae", "address", "opened_at")
FILE_COLUMNS = ("path", "size", "received_at")
CLASS_COLUMNS = ("sop_class_uid", "transfer_syntax")

CONFLICT = "CONFLICTING_INSTANCES"  # the reason of a job whose versions of an instance disagree

UNKNOWN_AE = "(unknown)"  # the sender of a file that names none

# How an association ends that did not end well: PS3.8 A-ABORT, a lost connection, a dead node.
NOT_RELEASED = ("aborted", "dropped", "lost")
REJECTED = "rejected"

# What comes so soon after the row of its series was written leaves that as it is: it has eight
# indexes.
SERIES_SECONDS = 1.0

# So many share a transaction at most: none waits long for the others of its group.
LARGEST_GROUP = 64


@dataclass
class Group:
    """The transaction that a group shares, and what has to be on disk before it is over."""

    db: DBAPICursor
    folders: set[Path] = field(default_factory=set)  # whose names no fsync of a file brings there
    has_news: bool = False  # rows that say more than files can bring back


class _Signal(Enum):
    """The reasons to wake a member that waits."""

    LEAD = "the leader before is done: commit for all who wait"
    DONE = "your work is committed"
    ALONE = "somebody's work spoiled the group's transaction: each for itself"
    BUSY = "the database did not take the transaction in time"


class _Member(Generic[Result]):
    """One caller's work and, once it is done, its result."""

    def __init__(self, work: Callable[[Group], Result], order: str) -> None:
        self._work = work
        self.order = order
        self.signal = _Signal.LEAD
        self.wake = threading.Event()
        self.results: list[Result] = []

    def join(self, group: Group) -> None:
        self.results = [self._work(group)]

    def notify(self, signal: _Signal) -> None:
        self.signal = signal
        self.wake.set()


class GroupCommit:
    """The first caller leads: it commits for all who came meanwhile, then the next one leads.

    Work may run twice, in its group and then alone: it must not mind.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._guard = threading.Lock()
        self._waiting: list[_Member[object]] = []
        self._has_leader = False

    def run(self, work: Callable[[Group], Result], order: str = "") -> Result:
        """Do `work` in a transaction, which is committed when this returns.

        `order` is the same in all processes for rows that two of them lock, so that none waits
        for the other in a circle.
        """
        member = _Member(work, order)
        with self._guard:
            self._waiting.append(member)  # type: ignore[arg-type]  # a result goes to its caller only
            leads, self._has_leader = not self._has_leader, True
        if not leads:
            member.wake.wait()  # ends: the transactions of those before have time limits
        if member.signal is _Signal.LEAD:
            self._lead()
        if member.signal is _Signal.ALONE:
            self._transact([member])  # type: ignore[list-item]
        if member.signal is _Signal.BUSY:
            raise Busy("the database did not take the write in time")
        return member.results[0]

    def _lead(self) -> None:
        """Commit for all who wait; wake each of them, and one of the next to lead."""
        with self._guard:
            group = self._waiting[:LARGEST_GROUP]
            self._waiting = self._waiting[LARGEST_GROUP:]
        signal = _Signal.ALONE
        try:
            self._transact(group)
            signal = _Signal.DONE
        except Busy:
            signal = _Signal.BUSY
        except (StorageError, OSError, ValueError):
            if len(group) == 1:
                raise
        finally:
            for member in group:
                member.notify(signal)
            with self._guard:
                self._has_leader = bool(self._waiting)
                following = self._waiting[:1]
            for member in following:
                member.notify(_Signal.LEAD)

    def _transact(self, members: list[_Member[object]]) -> None:
        with self._database.receiving() as db:
            group = Group(db)
            for member in sorted(members, key=lambda member: member.order):
                member.join(group)
            for folder in group.folders:
                sync(folder)
        if group.has_news:
            self._database.settle()


class ReceivedFile(NamedTuple):
    """An instance on its way into the archive: it is sealed, and has no row yet."""

    received: Received
    peer: Peer | None
    path: str
    digest: str
    size: int
    place: str  # where it belongs, relative to the storage folder


class _Statements:
    """The statements that are run for each instance and for each association."""

    def __init__(self, database: Database) -> None:
        key = ("series_id", "instance_uid", "digest")
        same = and_(*(instance.c[name] == bindparam(name) for name in key))
        purged = update(instance).where(instance.c.id == bindparam("purged_id"))
        over = database.insert(arrival_association).on_conflict_do_nothing()
        prepared = database.prepared
        self.series = prepared(_touch_series(database), *SERIES_COLUMNS)
        self.series_just_touched = prepared(_just_touched())
        self.arrival = prepared(_touch_arrival(database))
        self.same = prepared(select(instance.c.id, instance.c.path).where(same))
        new = database.insert(instance).on_conflict_do_nothing().returning(instance.c.id)
        self.instance = prepared(new, *key, *FILE_COLUMNS, *CLASS_COLUMNS)
        self.again = prepared(purged, *FILE_COLUMNS)
        brought = _touch_arrival_instance(database)
        self.brought = prepared(brought, "arrival_id", "instance_id", "brought_at")
        self.over = prepared(over, "arrival_id", "association_id")
        restored = update(arrival).where(arrival.c.id == bindparam("restored_id"))
        self.restored = prepared(restored, "restored")
        opened = association.insert().returning(association.c.id)
        self.opened = prepared(opened, *OPENED_COLUMNS)
        still_open = association.c.id == bindparam("open_id"), association.c.ended_at.is_(None)
        self.ended = prepared(update(association).where(*still_open), "ended_at", "how")


class Index:
    """Writes the rows; the row of the series is locked first, by whoever touches the series."""

    def __init__(self, statements: _Statements, files: Files, now: Callable[[], float]) -> None:
        self._files = files
        self._now = now
        self._statements = statements
        # The arrival that an association was linked with last, once that is committed.
        self.linked: dict[int, int] = {}

    def add(self, file: ReceivedFile, group: Group) -> KeptInstance:
        """Index one instance and rename its file; the group's commit makes both last."""
        now = self._now()
        series_id = self._series(group.db, file.received, now)
        instance_id, is_new = self._instance(group.db, series_id, file, now)
        # That these bytes came once more is in no file.
        group.has_news |= not is_new
        # The same bytes again take the place of those that are there: the disk may have lost or
        # damaged them, and a peer that sends them again is the way to mend that.
        folder = self._files.move(file.path, file.place)
        if not self._files.names_last:
            group.folders.add(folder)
        if file.peer is None:
            return KeptInstance(instance_id, 0, is_new)
        arrival_id = self._arrival(group.db, series_id, file.received, file.peer, now)
        self._link(group.db, arrival_id, instance_id, file.peer, now)
        if file.peer.is_restored:
            self._statements.restored.run(group.db, {"restored_id": arrival_id, "restored": 1})
        return KeptInstance(instance_id, arrival_id, is_new)

    def _series(self, db: DBAPICursor, received: Received, now: float) -> int:
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
        just_touched = {**values, "since": now - SERIES_SECONDS}
        row = self._statements.series_just_touched.run(db, just_touched)
        return int(row[0]) if row else self._statements.series.number(db, values)

    def _instance(
        self, db: DBAPICursor, series_id: int, file: ReceivedFile, now: float
    ) -> tuple[int, bool]:
        """The row of these bytes, and whether their file was not there."""
        key = {
            "series_id": series_id,
            "instance_uid": file.received.instance_uid,
            "digest": file.digest,
        }
        values = {"path": file.place, "size": file.size, "received_at": now}
        classes = {
            "sop_class_uid": file.received.sop_class_uid,
            "transfer_syntax": file.received.transfer_syntax,
        }
        new = self._statements.instance.run(db, key | values | classes)
        if new is not None:
            return int(new[0]), True
        known = self._statements.same.run(db, key)
        assert known is not None
        instance_id, path = known
        if path is None:  # purged, and here again
            self._statements.again.run(db, {"purged_id": instance_id, **values})
        return int(instance_id), path is None

    def _arrival(
        self, db: DBAPICursor, series_id: int, received: Received, peer: Peer, now: float
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
        return self._statements.arrival.number(db, values)

    def _link(
        self, db: DBAPICursor, arrival_id: int, instance_id: int, peer: Peer, now: float
    ) -> None:
        brought = {"arrival_id": arrival_id, "instance_id": instance_id, "brought_at": now}
        self._statements.brought.run(db, brought)
        if peer.association is not None and self.linked.get(peer.association) != arrival_id:
            over = {"arrival_id": arrival_id, "association_id": peer.association}
            self._statements.over.run(db, over)


def _just_touched() -> Executable:
    """The series where its row says the same already; whoever else touches it waits."""
    key = ("study_uid", "series_uid")
    same = (series.c[name] == bindparam(name) for name in (*key, *SERIES_TEXTS))
    is_recent = series.c.last_at.between(bindparam("since"), bindparam("last_at"))
    is_kept = series.c.purged_at.is_(None)
    return select(series.c.id).where(*same, is_recent, is_kept).with_for_update(key_share=True)


def _touch_series(database: Database) -> Executable:
    insert = database.insert(series)
    newest = (*SERIES_TEXTS, "last_at")
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


def lock_series(db: Connection, series_id: int) -> None:
    """Keep retention, and instances that arrive, away until the transaction ends.

    With key_share, here and wherever a series is locked: rows that only point to it wait for
    nobody. Who closes an arrival locks that, then makes jobs of the series; an instance that comes
    locks the series, then its arrival. On PostgreSQL each would wait for the other.
    """
    this = select(series.c.id).where(series.c.id == series_id)
    db.execute(this.with_for_update(key_share=True))


# Made once: making aliases of so wide a table takes longer than most queries.
_THIS, _THEIRS = arrival.alias("this"), arrival.alias("theirs")
_OF_PEER = select(_THEIRS.c.id).join(
    _THIS,
    and_(*(_THIS.c[name] == _THEIRS.c[name] for name in ("series_id", "calling_ae", "called_ae"))),
)


def same_peer(arrival_id: int) -> Select[tuple[int]]:
    """The arrivals of a series that its peer, calling and called AE title, has brought."""
    return _OF_PEER.where(_THIS.c.id == arrival_id)


def brought_by_peer(db: Connection, arrival_id: int) -> tuple[Instance, ...]:
    """The versions that count of what the peer of an arrival brought of its series; newest first.

    `received_at` is when this peer brought the version last: bytes that come a second time, after
    others, are the newest again.
    """
    rows = _counting(_brought(db, arrival_id), _conflict_at(db, arrival_id))
    versions = to_records(Instance, rows)
    return tuple(sorted(versions, key=lambda it: (it.received_at, it.id), reverse=True))


def _brought(db: Connection, arrival_id: int) -> Iterable[BroughtRow]:
    """One row for each arrival and version, the oldest arrival first; only what is still kept."""
    columns = (column for column in instance.c if column is not instance.c.received_at)
    query = (
        select(
            *columns,
            arrival_instance.c.arrival_id,
            arrival_instance.c.brought_at.label("received_at"),
        )
        .join(arrival_instance, arrival_instance.c.instance_id == instance.c.id)
        .where(
            arrival_instance.c.arrival_id.in_(same_peer(arrival_id)), instance.c.path.is_not(None)
        )
        .order_by(arrival_instance.c.arrival_id)
    )
    return db.execute(query).all()


def _conflict_at(db: Connection, arrival_id: int) -> float | None:
    """The time at which a person was first told of a conflict in what this peer brought."""
    query = (
        select(func.min(attempt.c.ended_at))
        .join(job, job.c.id == attempt.c.job_id)
        .where(job.c.arrival_id.in_(same_peer(arrival_id)), attempt.c.detail == CONFLICT)
    )
    conflict_at: float | None = db.execute(query).scalar_one()
    return conflict_at


def _counting(rows: Iterable[BroughtRow], conflict_at: float | None) -> Iterable[BroughtRow]:
    """The last row of each version, without the versions that are superseded.

    Other pixels under one UID are a conflict, and a person is told. From then on an arrival that
    alone brings every instance UID known before it says what the series is: a version that the peer
    brought before, and neither then nor later, is superseded. So the person ends the conflict by
    sending the right series again, whole. Part of a series supersedes nothing.
    """
    known: set[str] = set()
    counting: dict[int, BroughtRow] = {}
    for _, of_arrival in groupby(rows, key=lambda row: row.arrival_id):
        these = {row.id: row for row in of_arrival}
        uids = {row.instance_uid for row in these.values()}
        since = min(row.received_at for row in these.values())
        if conflict_at is not None and since > conflict_at and uids >= known:
            counting.clear()
        known |= uids
        counting |= these
    return counting.values()


class Archive:
    """Rows and files of what peers have sent."""

    def __init__(
        self, database: Database, files: Files, now: Callable[[], float], *, node: str = "node"
    ) -> None:
        self.database = database
        self.files = files
        self._now = now
        self._node = node
        self._statements = _Statements(database)
        self._index = Index(self._statements, files, now)
        self._commits = GroupCommit(database)

    def keep(
        self, received: Received, peer: Peer, incoming: Path, digest: str = ""
    ) -> KeptInstance:
        """Move a received file into the archive and index it; it can be acknowledged at the end.

        It is sealed before, so that a power cut takes neither (`storage/files.py`). `digest` is
        the digest of its data set where the caller has it. On an error nothing was acknowledged,
        and the incoming file is gone.
        """
        sealed = ""
        try:
            self.files.check_room()
            digest = digest or received_digest(incoming)
            sealed = self.files.seal(incoming, digest)
            return self._adopt(received, peer, sealed, digest)
        except BaseException:
            incoming.unlink(missing_ok=True)
            if sealed:
                Path(sealed).unlink(missing_ok=True)
            raise

    def restore(self, received: Received, file: Path, called_ae: str) -> KeptInstance:
        """Index a file that has no row, as if the peer that its meta information names sent it.

        Where it names none, it came to `called_ae`.
        """
        calling = received.calling_ae or UNKNOWN_AE
        peer = Peer(calling, received.called_ae or called_ae, is_restored=True)
        sync(file)
        return self._adopt(received, peer, str(file), received_digest(file))

    def associated(
        self, calling_ae: str, called_ae: str, address: str, at: float | None = None
    ) -> int:
        """Note an association that was accepted, just now or at that time; its row's id."""
        values = self._association(calling_ae, called_ae, address, at)
        with self.database.writing() as db:
            return self._statements.opened.number(db.connection.cursor(), values)

    def dissociated(self, association_id: int, how: str, at: float | None = None) -> None:
        """Note how an association ended: released, aborted or dropped. The first answer counts."""
        self._index.linked.pop(association_id, None)
        ended_at = self._now() if at is None else at
        ended = {"open_id": association_id, "ended_at": ended_at, "how": how[:32]}
        with self.database.writing() as db:
            self._statements.ended.run(db.connection.cursor(), ended)

    def rejected(
        self,
        calling_ae: str,
        called_ae: str,
        address: str,
        reason: str,
        at: float | None = None,
    ) -> None:
        """Note an association that was asked for and not accepted."""
        values = self._association(calling_ae, called_ae, address, at)
        ended = {"ended_at": values["opened_at"], "how": REJECTED, "reason": reason}
        with self.database.writing() as db:
            db.execute(association.insert().values(**values, **ended))

    def lose_associations(self, node: str = "") -> int:
        """End as lost what a dead node had open; at start, a dead process of this one."""
        on_it = association.c.node == (node or self._node)
        open_here = and_(on_it, association.c.ended_at.is_(None))
        lost = update(association).where(open_here).values(ended_at=self._now(), how="lost")
        with self.database.writing() as db:
            return db.execute(lost).rowcount

    def arriving(self) -> tuple[Arrival, ...]:
        """The arrivals that are not complete yet, the longest quiet first."""
        query = arrival_rows().where(OPEN_ARRIVAL).order_by(arrival.c.last_at, arrival.c.id)
        return self.database.records(Arrival, query)

    def arrival(self, arrival_id: int) -> Arrival:
        known = self.database.record(Arrival, arrival_rows().where(arrival.c.id == arrival_id))
        if known is None:
            raise NotFound(f"no arrival {arrival_id}")
        return known

    def instances(self, arrival_id: int) -> tuple[Instance, ...]:
        """The versions that count of what this peer brought of this series, the newest first.

        `received_at` is when this peer brought a version last; what it superseded by sending the
        whole series again is left out (`storage/archive.py`).
        """
        with self.database.reading() as db:
            return brought_by_peer(db, arrival_id)

    def instances_after(self, arrival_id: int, instance_id: int) -> tuple[Instance, ...]:
        """The versions of an arrival that came first after the one of that id, in their order."""
        query = (
            select(instance)
            .join(arrival_instance, arrival_instance.c.instance_id == instance.c.id)
            .where(
                arrival_instance.c.arrival_id == arrival_id,
                instance.c.id > instance_id,
                instance.c.path.is_not(None),
            )
            .order_by(instance.c.id)
        )
        return self.database.records(Instance, query)

    def brought_by_each(self, of: Arrival) -> tuple[Brought, ...]:
        """The instances that each peer has brought of a series, in the order of their coming."""
        peer = (arrival.c.calling_ae, arrival.c.called_ae)
        query = (
            select(func.max(arrival.c.id))
            .where(arrival.c.series_id == of.series_id)
            .group_by(*peer)
            .order_by(func.min(arrival.c.id))
        )
        with self.database.reading() as db:
            newest = [
                to_record(Arrival, db.execute(arrival_rows().where(arrival.c.id == last)).one())
                for last in db.execute(query).scalars().all()
            ]
            return tuple(Brought(it, brought_by_peer(db, it.id)) for it in newest)

    def instances_of(self, series_id: int) -> tuple[Instance, ...]:
        """All versions of all instances of a series, whoever brought them; the newest first."""
        newest = instance.c.received_at.desc(), instance.c.id.desc()
        query = select(instance).where(instance.c.series_id == series_id).order_by(*newest)
        return self.database.records(Instance, query)

    def arrivals_of(self, series_uid: str) -> tuple[Arrival, ...]:
        """All arrivals of a series, the newest first."""
        query = arrival_rows().where(series.c.series_uid == series_uid)
        newest = arrival.c.last_at.desc(), arrival.c.id.desc()
        return self.database.records(Arrival, query.order_by(*newest))

    def newest_of_peers(self, series_uid: str) -> tuple[Arrival, ...]:
        """The last arrival by which each peer brought this series, in each study that it is in."""
        peer = arrival.c.series_id, arrival.c.calling_ae, arrival.c.called_ae
        of_uid = select(series.c.id).where(series.c.series_uid == series_uid)
        last = select(func.max(arrival.c.id)).where(arrival.c.series_id.in_(of_uid)).group_by(*peer)
        query = arrival_rows().where(arrival.c.id.in_(last)).order_by(arrival.c.id)
        return self.database.records(Arrival, query)

    def other_studies(self, of: Arrival) -> tuple[str, ...]:
        """Other studies that came with the same Series UID: one of them is another patient's."""
        query = (
            select(series.c.study_uid)
            .where(series.c.series_uid == of.series_uid, series.c.id != of.series_id)
            .order_by(series.c.study_uid)
        )
        return self.database.values(query)

    def senders_of_other_studies(self, of: Arrival) -> tuple[str, ...]:
        """The calling AE titles that brought the same Series UID in another study."""
        query = (
            select(arrival.c.calling_ae)
            .join(series, series.c.id == arrival.c.series_id)
            .where(series.c.series_uid == of.series_uid, series.c.id != of.series_id)
            .distinct()
            .order_by(arrival.c.calling_ae)
        )
        return self.database.values(query)

    def brought_by_others(self, of: Arrival) -> tuple[Instance, ...]:
        """Instances of the same series that only other peers have brought; newest first."""
        mine = {version.instance_uid for version in self.instances(of.id)}
        query = _kept().where(instance.c.series_id == of.series_id)
        versions = self.database.records(Instance, query)
        return tuple(version for version in versions if version.instance_uid not in mine)

    def beside(self, of: Arrival) -> tuple[tuple[Instance, ...], ...]:
        """The instances of the other received series of its study, without results of a node."""
        own = exists().where(derived.c.series_uid == series.c.series_uid)
        others = select(series.c.id).where(
            series.c.study_uid == of.study_uid, series.c.id != of.series_id, ~own
        )
        with self.database.reading() as db:
            ids = db.execute(others.order_by(series.c.id)).scalars().all()
            queries = [_kept().where(instance.c.series_id == series_id) for series_id in ids]
            by_series = [to_records(Instance, db.execute(query)) for query in queries]
        return tuple(instances for instances in by_series if instances)

    def series_of(self, ids: Sequence[int]) -> tuple[Series, ...]:
        """These series, in this order."""
        with self.database.reading() as db:
            return _series(db, ids)

    def series_by_uid(self, series_uid: str) -> tuple[Series, ...]:
        """The series of that UID, one a study: it may, wrongly, come in two of them."""
        query = select(series.c.id).where(series.c.series_uid == series_uid)
        query = query.order_by(series.c.last_at.desc(), series.c.id.desc())
        with self.database.reading() as db:
            return _series(db, db.execute(query).scalars().all())

    def _association(
        self, calling_ae: str, called_ae: str, address: str, at: float | None
    ) -> dict[str, object]:
        return {
            "node": self._node,
            "calling_ae": calling_ae[:16],
            "called_ae": called_ae[:16],
            "address": address[:64],
            "opened_at": self._now() if at is None else at,
        }

    def _adopt(self, received: Received, peer: Peer | None, file: str, digest: str) -> KeptInstance:
        clean = fits(received)
        place = self.files.received_path(clean.study_uid, clean.series_uid, digest)
        size = os.stat(file).st_size  # noqa: PTH116 - a Path takes ten times as long
        to_index = ReceivedFile(clean, peer, file, digest, size, place)
        kept = self._commits.run(partial(self._index.add, to_index), order=clean.series_uid)
        if peer is not None and peer.association is not None:
            self._index.linked[peer.association] = kept.arrival_id
        return kept


def _kept() -> Select[*tuple[Any, ...]]:
    """Instances whose files are there, the newest first."""
    newest = instance.c.received_at.desc(), instance.c.id.desc()
    return select(instance).where(instance.c.path.is_not(None)).order_by(*newest)


def arrival_rows() -> Select[*tuple[Any, ...]]:
    """Arrivals with the counts that completion is decided on."""
    over = (
        select(func.count())
        .select_from(arrival_association.join(association))
        .where(arrival_association.c.arrival_id == arrival.c.id)
    )
    brought = select(func.count()).where(arrival_instance.c.arrival_id == arrival.c.id)
    return select(
        arrival,
        series.c.study_uid,
        series.c.series_uid,
        brought.scalar_subquery().label("instances"),
        over.where(association.c.ended_at.is_(None)).scalar_subquery().label("open_associations"),
        over.where(association.c.how == "released").scalar_subquery().label("released"),
        over.where(association.c.how.in_(NOT_RELEASED)).scalar_subquery().label("aborted"),
    ).join(series, series.c.id == arrival.c.series_id)


def _series(db: Connection, ids: Sequence[int]) -> tuple[Series, ...]:
    """These series, in this order, with their counts and states."""
    here = instance.c.series_id == series.c.id
    kept = and_(here, instance.c.path.is_not(None))
    count = select(func.count(instance.c.instance_uid.distinct())).where(here)
    size = select(func.coalesce(func.sum(instance.c.size), 0)).where(kept)
    query = select(
        *(column for column in series.c if column.name != "name_key"),
        count.scalar_subquery().label("instances"),
        size.scalar_subquery().label("bytes"),
    )
    by_id = {row.id: row for row in db.execute(query.where(series.c.id.in_(ids)))}
    return tuple(
        to_record(Series, row, bytes=int(row.bytes), states=_states(db, row.id))
        for row in map(by_id.get, ids)
        if row is not None
    )


def _states(db: Connection, series_id: int) -> tuple[str, ...]:
    arrivals = select(arrival.c.state).where(arrival.c.series_id == series_id)
    jobs = select(job.c.state).where(job.c.series_id == series_id)
    return (
        *db.execute(arrivals.order_by(arrival.c.id)).scalars(),
        *db.execute(jobs.order_by(job.c.id)).scalars(),
    )


def newest_arrival(database: Database, series_uid: str) -> Arrival | None:
    """The last time that a peer brought this series; None where nobody did."""
    newest = (
        select(arrival.c.id)
        .join(series, series.c.id == arrival.c.series_id)
        .where(series.c.series_uid == series_uid)
        .order_by(arrival.c.last_at.desc(), arrival.c.id.desc())
        .limit(1)
    )
    query = arrival_rows().where(arrival.c.id == newest.scalar_subquery())
    return database.record(Arrival, query)
