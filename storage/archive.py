"""The received instances: kept for good before their peer hears Success, and found again."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Select, and_, exists, func, select, update

from storage.commits import GroupCommit
from storage.database import Database
from storage.errors import NotFound
from storage.files import Files, settle
from storage.index import Entry, Index
from storage.records import Arrival, Instance, Kept, Peer, Received, Recovered, Series
from storage.recovery import ReadHeader, recover, reindex
from storage.rows import fits, to_arrival, to_instance
from storage.schema import (
    OPEN_ARRIVAL,
    arrival,
    arrival_association,
    arrival_instance,
    derived,
    instance,
    job,
    series,
)
from storage.schema_site import association
from storage.versions import brought_by_peer

# How an association ends that did not end well: PS3.8 A-ABORT, a lost connection, a dead node.
NOT_RELEASED = ("aborted", "dropped", "lost")
REJECTED = "rejected"


class Archive:
    """Rows and files of what peers have sent."""

    def __init__(
        self, database: Database, files: Files, now: Callable[[], float], *, node: str = "node"
    ) -> None:
        self._database = database
        self._files = files
        self._now = now
        self._node = node
        self._index = Index(database, files, now)
        self._commits = GroupCommit(database)

    def recover(self, read_header: ReadHeader, *, since: float = 0.0) -> Recovered:
        """At start: look at `incoming`, and at folders that changed since the last clean stop."""
        return recover(self._database, self._files, read_header, self._restore, since=since)

    def reindex(self, read_header: ReadHeader) -> Recovered:
        """Rebuild the index from the files; rows whose file is gone say so then."""
        return reindex(self._database, self._files, read_header, self._restore)

    def keep(self, received: Received, peer: Peer, incoming: Path) -> Kept:
        """Move a received file into the archive and index it; both are on disk at the end.

        On an error nothing was acknowledged, and the incoming file is gone.
        """
        try:
            self._files.check_room()
            return self._adopt(received, peer, incoming)
        finally:
            incoming.unlink(missing_ok=True)  # a duplicate, or a failure: else it has moved

    def associated(self, calling_ae: str, called_ae: str, address: str) -> int:
        """An association is open; its row's id."""
        values = self._association(calling_ae, called_ae, address)
        with self._database.writing() as db:
            key = db.execute(association.insert().values(**values)).inserted_primary_key
        assert key is not None
        return int(key[0])

    def dissociated(self, association_id: int, how: str) -> None:
        """An association has ended: released, aborted or dropped. The first answer counts."""
        one = and_(association.c.id == association_id, association.c.ended_at.is_(None))
        with self._database.writing() as db:
            db.execute(update(association).where(one).values(ended_at=self._now(), how=how[:32]))

    def rejected(self, calling_ae: str, called_ae: str, address: str, reason: str) -> None:
        """An association was asked for and not accepted."""
        values = self._association(calling_ae, called_ae, address)
        with self._database.writing() as db:
            db.execute(
                association.insert().values(
                    **values, ended_at=values["opened_at"], how=REJECTED, reason=reason
                )
            )

    def lose_associations(self) -> int:
        """At start: what a dead process of this node had open ends as lost. How many."""
        open_here = and_(association.c.node == self._node, association.c.ended_at.is_(None))
        with self._database.writing() as db:
            return db.execute(
                update(association).where(open_here).values(ended_at=self._now(), how="lost")
            ).rowcount

    def arriving(self) -> tuple[Arrival, ...]:
        """What is not complete yet, the longest quiet first."""
        with self._database.reading() as db:
            rows = db.execute(
                arrival_rows().where(OPEN_ARRIVAL).order_by(arrival.c.last_at, arrival.c.id)
            )
            return tuple(to_arrival(row) for row in rows)

    def arrival(self, arrival_id: int) -> Arrival:
        with self._database.reading() as db:
            row = db.execute(arrival_rows().where(arrival.c.id == arrival_id)).one_or_none()
        if row is None:
            raise NotFound(f"no arrival {arrival_id}")
        return to_arrival(row)

    def instances(self, arrival_id: int) -> tuple[Instance, ...]:
        """What counts of all that this peer brought of this series, the newest first.

        `received_at` is when this peer brought a version last; what it superseded by sending the
        whole series again is left out (`storage/versions.py`).
        """
        with self._database.reading() as db:
            return brought_by_peer(db, arrival_id)

    def other_studies(self, of: Arrival) -> tuple[str, ...]:
        """Other studies that came with the same Series UID: one of them is another patient's."""
        query = (
            select(series.c.study_uid)
            .where(series.c.series_uid == of.series_uid, series.c.id != of.series_id)
            .order_by(series.c.study_uid)
        )
        with self._database.reading() as db:
            return tuple(db.execute(query).scalars())

    def brought_by_others(self, of: Arrival) -> tuple[Instance, ...]:
        """Instances of the same series that only other peers have brought; newest first."""
        mine = {one.instance_uid for one in self.instances(of.id)}
        query = _kept().where(instance.c.series_id == of.series_id)
        with self._database.reading() as db:
            found = tuple(to_instance(row) for row in db.execute(query))
        return tuple(one for one in found if one.instance_uid not in mine)

    def beside(self, of: Arrival) -> tuple[tuple[Instance, ...], ...]:
        """The instances of the other received series of its study, without results of a node."""
        own = exists().where(derived.c.series_uid == series.c.series_uid)
        others = select(series.c.id).where(
            series.c.study_uid == of.study_uid, series.c.id != of.series_id, ~own
        )
        with self._database.reading() as db:
            ids = db.execute(others.order_by(series.c.id)).scalars().all()
            found = [db.execute(_kept().where(instance.c.series_id == one)).all() for one in ids]
        return tuple(tuple(to_instance(row) for row in rows) for rows in found if rows)

    def series(self, limit: int = 100, offset: int = 0) -> tuple[Series, ...]:
        """What was received, the newest first."""
        newest = series.c.last_at.desc(), series.c.id.desc()
        with self._database.reading() as db:
            ids = db.execute(select(series.c.id).order_by(*newest).limit(limit).offset(offset))
            return _series(db, tuple(ids.scalars()))

    def series_of(self, ids: Sequence[int]) -> tuple[Series, ...]:
        """These series, in this order."""
        with self._database.reading() as db:
            return _series(db, tuple(ids))

    def series_by_uid(self, series_uid: str) -> tuple[Series, ...]:
        """One a study: a Series UID may, wrongly, come in two of them."""
        with self._database.reading() as db:
            ids = db.execute(
                select(series.c.id)
                .where(series.c.series_uid == series_uid)
                .order_by(series.c.last_at.desc(), series.c.id.desc())
            )
            return _series(db, tuple(ids.scalars()))

    def _association(self, calling_ae: str, called_ae: str, address: str) -> dict[str, object]:
        return {
            "node": self._node,
            "calling_ae": calling_ae[:16],
            "called_ae": called_ae[:16],
            "address": address[:64],
            "opened_at": self._now(),
        }

    def _restore(self, received: Received, file: Path) -> Kept:
        # Nobody knows who brought it: it belongs to no arrival until its peer sends it again.
        return self._adopt(received, None, file)

    def _adopt(self, received: Received, peer: Peer | None, file: Path) -> Kept:
        digest, size = settle(file)
        clean = fits(received)
        place = self._files.received_path(clean.study_uid, clean.series_uid, digest)
        entry = Entry(clean, peer, file, digest, size, place)
        return self._commits.run(partial(self._index.add, entry), order=clean.series_uid)


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
    rows = db.execute(
        select(
            *(column for column in series.c if column.name != "name_key"),
            select(func.count(instance.c.instance_uid.distinct()))
            .where(here)
            .scalar_subquery()
            .label("instances"),
            select(func.coalesce(func.sum(instance.c.size), 0))
            .where(kept)
            .scalar_subquery()
            .label("bytes"),
        ).where(series.c.id.in_(ids))
    )
    found = {row.id: dict(row._mapping) for row in rows}
    states = {series_id: _states(db, series_id) for series_id in found}
    return tuple(
        Series(**{**found[one], "bytes": int(found[one]["bytes"])}, states=states[one])
        for one in ids
        if one in found
    )


def _states(db: Connection, series_id: int) -> tuple[str, ...]:
    arrivals = select(arrival.c.state).where(arrival.c.series_id == series_id)
    jobs = select(job.c.state).where(job.c.series_id == series_id)
    return (
        *db.execute(arrivals.order_by(arrival.c.id)).scalars(),
        *db.execute(jobs.order_by(job.c.id)).scalars(),
    )
