"""Which versions of its instances count for a peer's series, and which of them is the newest."""

from collections.abc import Iterable
from itertools import groupby
from typing import Any, TypeAlias

from sqlalchemy import Connection, Row, and_, func, select

from storage.records import Instance
from storage.rows import to_instance
from storage.schema import arrival, arrival_instance, attempt, instance, job

CONFLICT = "CONFLICTING_INSTANCES"  # the reason of a job whose versions of an instance disagree

Brought: TypeAlias = Row[*tuple[Any, ...]]


def brought_by_peer(db: Connection, arrival_id: int) -> tuple[Instance, ...]:
    """The versions that count of what the peer of an arrival brought of its series; newest first.

    `received_at` is when this peer brought the version last: bytes that come a second time, after
    others, are the newest again.
    """
    rows, told_at = _brought(db, arrival_id), _told_at(db, arrival_id)
    found = [to_instance(row) for row in _counting(rows, told_at)]
    return tuple(sorted(found, key=lambda one: (one.received_at, one.id), reverse=True))


def _brought(db: Connection, arrival_id: int) -> Iterable[Brought]:
    """One row for each arrival and version, the oldest arrival first; only what is still kept."""
    this, any_time = arrival.alias("this"), arrival.alias("any_time")
    same_peer = and_(
        this.c.series_id == any_time.c.series_id,
        this.c.calling_ae == any_time.c.calling_ae,
        this.c.called_ae == any_time.c.called_ae,
    )
    columns = (column for column in instance.c if column is not instance.c.received_at)
    query = (
        select(
            *columns,
            arrival_instance.c.arrival_id,
            arrival_instance.c.brought_at.label("received_at"),
        )
        .join(arrival_instance, arrival_instance.c.instance_id == instance.c.id)
        .join(any_time, any_time.c.id == arrival_instance.c.arrival_id)
        .join(this, same_peer)
        .where(this.c.id == arrival_id, instance.c.path.is_not(None))
        .order_by(arrival_instance.c.arrival_id)
    )
    return db.execute(query).all()


def _told_at(db: Connection, arrival_id: int) -> float | None:
    """When a person was first told of a conflict in what this peer brought of this series."""
    this, any_time = arrival.alias("this"), arrival.alias("any_time")
    same_peer = and_(
        this.c.series_id == any_time.c.series_id,
        this.c.calling_ae == any_time.c.calling_ae,
        this.c.called_ae == any_time.c.called_ae,
    )
    query = (
        select(func.min(attempt.c.ended_at))
        .join(job, job.c.id == attempt.c.job_id)
        .join(any_time, any_time.c.id == job.c.arrival_id)
        .join(this, same_peer)
        .where(this.c.id == arrival_id, attempt.c.detail == CONFLICT)
    )
    told_at: float | None = db.execute(query).scalar_one()
    return told_at


def _counting(rows: Iterable[Brought], told_at: float | None) -> Iterable[Brought]:
    """Of each version its last row, without the versions that are superseded.

    Other pixels under one UID are a conflict, and a person is told. From then on an arrival that
    alone brings every instance UID known before it says what the series is: a version that the peer
    brought before, and neither then nor later, is superseded. So the person ends the conflict by
    sending the right series again, whole. Part of a series supersedes nothing.
    """
    known: set[str] = set()
    counting: dict[int, Brought] = {}
    for _, of_arrival in groupby(rows, key=lambda row: row.arrival_id):
        these = {row.id: row for row in of_arrival}
        uids = {row.instance_uid for row in these.values()}
        since = min(row.received_at for row in these.values())
        if told_at is not None and since > told_at and uids >= known:
            counting.clear()
        known |= uids
        counting |= these
    return counting.values()
