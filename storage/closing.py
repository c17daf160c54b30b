"""Closes an arrival: from here on what its peer brings of the series belongs to another one."""

from collections.abc import Mapping

from sqlalchemy import Connection, func, select, update

from storage.errors import NotFound, WrongState
from storage.records import ArrivalState
from storage.rows import to_json
from storage.schema import arrival, arrival_instance, series


def close(
    db: Connection, arrival_id: int, evidence: Mapping[str, object], seen: int | None, now: float
) -> str:
    """Close an arrival that has as many instances as were `seen`; its Series UID."""
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
    closed = {"state": ArrivalState.COMPLETE, "completed_at": now, "brought": count}
    db.execute(update(arrival).where(one).values(**closed, evidence=to_json(evidence)))
    named = select(series.c.series_uid).where(series.c.id == row.series_id)
    return str(db.execute(named).scalar_one())
