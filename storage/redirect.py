"""Deliveries that were held for want of a destination go on once there is one."""

from typing import Any, TypeAlias

from sqlalchemy import Connection, Row, and_, or_, select, update

from storage.deliveries import IDLE, queued_again, set_delivery
from storage.records import DeliveryState
from storage.rows import to_json, to_names
from storage.schema import OPEN_DELIVERY, delivery, job, job_asker

NO_DESTINATION = "NO_DESTINATION"
GOES_TO = "It goes to {destination!r}, which has a delivery of this derived series already."

DeliveryRow: TypeAlias = Row[*tuple[Any, ...]]


def waiting_for(db: Connection, destination: str) -> list[DeliveryRow]:
    """Deliveries that were held because nobody knew this destination."""
    query = select(delivery).where(
        OPEN_DELIVERY,
        delivery.c.destination == destination,
        delivery.c.state == DeliveryState.HELD,
        delivery.c.reason == NO_DESTINATION,
    )
    return list(db.execute(query.order_by(delivery.c.id)))


def redirect(db: Connection, before: str, now_to: str, now: float) -> int:
    """What goes to one destination goes to another, or to the same that is known again; how many.

    The jobs that named it name the other one too: a delivery that is asked for again follows.
    """
    rename(db, before, now_to)
    waits = or_(
        delivery.c.state == DeliveryState.QUEUED,
        and_(delivery.c.state == DeliveryState.HELD, delivery.c.reason == NO_DESTINATION),
    )
    mine = and_(OPEN_DELIVERY, delivery.c.destination == before, waits)
    query = select(delivery).where(mine).order_by(delivery.c.id)
    rows = db.execute(query.with_for_update(of=delivery)).all()
    for row in rows:
        if before != now_to and _has_one(db, row.derived_id, now_to):
            sentence = GOES_TO.format(destination=now_to)
            end = {"state": DeliveryState.CANCELLED, "finished_at": now, **IDLE}
            set_delivery(db, row.id, reason="", sentence=sentence, **end)
        else:
            set_delivery(db, row.id, destination=now_to, **queued_again(now))
    return len(rows)


def rename(db: Connection, before: str, now_to: str) -> None:
    """Jobs, and those who asked for them, name another destination."""
    if before == now_to:
        return
    name = to_json((before,))[1:-1]
    for table in (job, job_asker):
        keys = table.primary_key.columns
        named = table.c.destinations.contains(name, autoescape=True)
        for row in db.execute(select(*keys, table.c.destinations).where(named)).all():
            names = (now_to if one == before else one for one in to_names(row.destinations))
            one_row = and_(*(key == row._mapping[key.name] for key in keys))
            values = {"destinations": to_json(tuple(dict.fromkeys(names)))}
            db.execute(update(table).where(one_row).values(**values))


def _has_one(db: Connection, derived_id: int, destination: str) -> bool:
    same = and_(delivery.c.derived_id == derived_id, delivery.c.destination == destination)
    return db.execute(select(delivery.c.id).where(same)).first() is not None
