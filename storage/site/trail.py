"""The acts that an audit record repository is told of, in their order, and up to where it was."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sqlalchemy import Select, and_, func, literal, or_, select

from storage.database import Database, to_records
from storage.records import AuditEvent, DeliveryState
from storage.schema import (
    arrival,
    arrival_instance,
    association,
    audit,
    delivery,
    derived,
    derived_instance,
    instance,
    job,
    series,
    trail,
)
from storage.site.audit import VIEW, VIEW_PICTURES

# What a transaction that began before writes with an earlier time is there by then.
SETTLED_SECONDS = 10.0
MOST = 200  # acts at once


@dataclass(frozen=True)
class Position:
    """The last act of a kind that the repository was told of."""

    at: float
    id: int


@dataclass(frozen=True)
class Transfer:
    """Instances of one series that came, went to a destination, or were seen by a person."""

    id: int
    at: float
    peer: str  # the calling AE title, the destination, or the person
    study_uid: str
    patient_id: str
    instances: int
    sop_class_uid: str


@dataclass(frozen=True)
class Rejected:
    """An association that was rejected."""

    id: int
    at: float
    calling_ae: str
    address: str
    reason: str


Act = TypeVar("Act")


class Trail:
    """Reads the acts of each kind that follow a position."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def position(self, kind: str, now: float) -> Position:
        """The last act of this kind that was told; where none was, those before now count so."""
        query = select(trail.c.at, trail.c.last_id.label("id")).where(trail.c.kind == kind)
        known = self._database.record(Position, query)
        if known is None:
            known = Position(now - SETTLED_SECONDS, self._newest_event())
            self.remember(kind, known)
        return known

    def remember(self, kind: str, last: Position) -> None:
        """Note that the repository was told of all up to this act."""
        values = {"at": last.at, "last_id": last.id}
        row = self._database.insert(trail).values(kind=kind, **values)
        with self._database.writing() as db:
            db.execute(row.on_conflict_do_update(index_elements=["kind"], set_=values))

    def events(self, after: Position, now: float) -> Sequence[AuditEvent]:
        """What people did, by the audit events: in their order, also where a clock is set back."""
        following = select(audit).where(audit.c.id > after.id, audit.c.at <= now - SETTLED_SECONDS)
        with self._database.reading() as db:
            return to_records(AuditEvent, db.execute(following.order_by(audit.c.id).limit(MOST)))

    def viewed(self, event: AuditEvent) -> Transfer | None:
        """The series that a person saw in an act; None where that names none, or more than one."""
        job_id = event.which.removeprefix("job ")
        if event.what == VIEW:
            named = series.c.series_uid == event.which
        elif event.what == VIEW_PICTURES and job_id.isdecimal():
            named = series.c.id.in_(select(job.c.series_id).where(job.c.id == int(job_id)))
        else:
            return None
        uids = func.count(func.distinct(instance.c.instance_uid))
        query = (
            select(
                *(literal(event.id).label("id"), literal(event.at).label("at")),
                literal(event.who).label("peer"),
                *(series.c.study_uid, series.c.patient_id, uids.label("instances")),
                func.coalesce(func.min(instance.c.sop_class_uid), "").label("sop_class_uid"),
            )
            .select_from(series.outerjoin(instance, instance.c.series_id == series.c.id))
            .where(named)
            .group_by(series.c.id)
        )
        rows = self._database.records(Transfer, query)
        return rows[0] if len(rows) == 1 else None

    def _newest_event(self) -> int:
        with self._database.reading() as db:
            return int(db.execute(select(func.coalesce(func.max(audit.c.id), 0))).scalar_one())

    def rejected(self, after: Position, now: float) -> Sequence[Rejected]:
        """Associations that were rejected."""
        at = association.c.opened_at
        named = (association.c.calling_ae, association.c.address, association.c.reason)
        query = select(association.c.id, at.label("at"), *named)
        query = query.where(association.c.how == "rejected")
        return self._read(Rejected, query, at, association.c.id, after, now)

    def received(self, after: Position, now: float) -> Sequence[Transfer]:
        """Series that have arrived."""
        at = arrival.c.completed_at
        query = select(
            arrival.c.id,
            at.label("at"),
            arrival.c.calling_ae.label("peer"),
            series.c.study_uid,
            series.c.patient_id,
            arrival.c.brought.label("instances"),
            select(func.coalesce(func.min(instance.c.sop_class_uid), ""))
            .join(arrival_instance, arrival_instance.c.instance_id == instance.c.id)
            .where(arrival_instance.c.arrival_id == arrival.c.id)
            .scalar_subquery()
            .label("sop_class_uid"),
        ).join(series, series.c.id == arrival.c.series_id)
        return self._read(Transfer, query, at, arrival.c.id, after, now)

    def sent(self, after: Position, now: float) -> Sequence[Transfer]:
        """Results that a destination has taken."""
        at = delivery.c.finished_at
        of_result = derived_instance.c.derived_id == derived.c.id
        query = (
            select(
                delivery.c.id,
                at.label("at"),
                delivery.c.destination.label("peer"),
                series.c.study_uid,
                series.c.patient_id,
                select(func.count()).where(of_result).scalar_subquery().label("instances"),
                select(func.min(derived_instance.c.sop_class_uid))
                .where(of_result)
                .scalar_subquery()
                .label("sop_class_uid"),
            )
            .join(derived, derived.c.id == delivery.c.derived_id)
            .join(series, series.c.id == derived.c.series_id)
            .where(delivery.c.state.in_((DeliveryState.SENT, DeliveryState.CONFIRMED)))
        )
        return self._read(Transfer, query, at, delivery.c.id, after, now)

    def _read(
        self, kind: type[Act], query: Select[Any], at: Any, id: Any, after: Position, now: float
    ) -> Sequence[Act]:
        later = or_(at > after.at, and_(at == after.at, id > after.id))
        query = query.where(later, at <= now - SETTLED_SECONDS).order_by(at, id).limit(MOST)
        with self._database.reading() as db:
            return to_records(kind, db.execute(query))


def last_of(acts: Sequence[Any]) -> Position:
    """The position behind these acts."""
    return replace(Position(0.0, 0), at=acts[-1].at, id=acts[-1].id)
