"""Deliveries as jobs make and end them, inside the job's own transaction.

Rows are locked in one order everywhere: series, job, delivery, derived.
"""

from collections.abc import Collection, Sequence

from sqlalchemy import Connection, and_, func, select, update

from storage.database import Database
from storage.records import DeliveryState
from storage.schema import delivery, delivery_instance, derived, derived_instance

IDLE: dict[str, object] = {"worker": None, "node": None, "lease_until": None}
UNDELIVERED = (DeliveryState.QUEUED, DeliveryState.RUNNING, DeliveryState.HELD)
REPLACED = (
    "A newer derived series replaces this one before all of it was sent; "
    "{stored} of {total} instances are at the destination."
)


def queue_deliveries(
    database: Database,
    db: Connection,
    derived_id: int,
    destinations: Sequence[str],
    priority: int,
    now: float,
) -> None:
    """Bring a kept derived series to these destinations; what was there is offered again."""
    for destination in dict.fromkeys(destinations):
        _queue(database, db, derived_id, destination, priority, now)
    wanted = and_(derived.c.id == derived_id, derived.c.superseded_at.is_not(None))
    db.execute(update(derived).where(wanted).values(superseded_at=None))


def cancel_undelivered(
    db: Connection, derived_id: int, reason: str, now: float, keep: Collection[str] = ()
) -> None:
    """What is not at its destination yet will not get there; a sender at work loses its lease.

    To the destinations in `keep` it still goes: somebody else wants it there.
    """
    undelivered = and_(
        delivery.c.derived_id == derived_id,
        delivery.c.state.in_(UNDELIVERED),
        delivery.c.destination.not_in(keep),
    )
    query = select(delivery.c.id).where(undelivered).order_by(delivery.c.id)
    total = select(func.count()).where(derived_instance.c.derived_id == derived_id)
    for delivery_id in db.execute(query.with_for_update()).scalars().all():
        stored = select(func.count()).where(
            delivery_instance.c.delivery_id == delivery_id, delivery_instance.c.stored == 1
        )
        counts = {
            name: db.execute(q).scalar_one() for name, q in (("stored", stored), ("total", total))
        }
        end = {"state": DeliveryState.CANCELLED, "reason": reason, "finished_at": now, **IDLE}
        set_delivery(db, delivery_id, sentence=REPLACED.format(**counts), **end)


def end_leases(db: Connection, derived_id: int, destinations: Sequence[str]) -> None:
    """A person wants all of it sent again: who is sending the rest of it just now stops."""
    running = and_(
        delivery.c.derived_id == derived_id,
        delivery.c.destination.in_(destinations),
        delivery.c.state == DeliveryState.RUNNING,
    )
    db.execute(update(delivery).where(running).values(state=DeliveryState.QUEUED, **IDLE))


def set_delivery(db: Connection, delivery_id: int, **values: object) -> None:
    db.execute(update(delivery).where(delivery.c.id == delivery_id).values(**values))


def queued_again(now: float) -> dict[str, object]:
    """The columns of a delivery that begins anew."""
    return {
        "state": DeliveryState.QUEUED,
        "reason": "",
        "sentence": "",
        "queued_at": now,
        "due_at": now,
        "started_at": None,
        "finished_at": None,
        "failures": 0,
        **IDLE,
    }


def offer_again(db: Connection, delivery_id: int, priority: int, now: float) -> None:
    """Start a delivery anew: nothing counts as stored; how often it was offered stays."""
    again = {"stored": 0, "status": None, "not_understood": 0}
    ledger = delivery_instance.c.delivery_id == delivery_id
    db.execute(update(delivery_instance).where(ledger).values(**again))
    set_delivery(db, delivery_id, priority=priority, **queued_again(now))


def _queue(
    database: Database, db: Connection, derived_id: int, destination: str, priority: int, now: float
) -> None:
    key = {"derived_id": derived_id, "destination": destination}
    new = database.insert(delivery).values(**key, priority=priority, **queued_again(now))
    if db.execute(new.on_conflict_do_nothing().returning(delivery.c.id)).first() is not None:
        return
    same = and_(delivery.c.derived_id == derived_id, delivery.c.destination == destination)
    row = db.execute(select(delivery).where(same).with_for_update()).one()
    if row.state != DeliveryState.RUNNING:  # a running one is on its way there already
        offer_again(db, row.id, priority, now)
