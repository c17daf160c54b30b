"""What a destination has answered to the instances of one delivery, alike answers together."""

from dataclasses import dataclass

from sqlalchemy import and_, func, select

from storage.database import Database
from storage.schema import delivery, delivery_instance, derived_instance


@dataclass(frozen=True)
class Answers:
    """So many instances with the same last status; None: none was given, or it was not asked."""

    status: int | None
    stored: bool
    instances: int
    offers: int  # how often the one that was offered most was offered


def answers(database: Database, delivery_id: int) -> tuple[Answers, ...]:
    """What is not stored first."""
    mine = and_(
        delivery_instance.c.delivery_id == delivery_id,
        delivery_instance.c.derived_instance_id == derived_instance.c.id,
    )
    stored = func.coalesce(delivery_instance.c.stored, 0)
    query = (
        select(
            delivery_instance.c.status,
            stored,
            func.count(),
            func.coalesce(func.max(delivery_instance.c.offers), 0),
        )
        .select_from(derived_instance)
        .join(delivery, delivery.c.derived_id == derived_instance.c.derived_id)
        .outerjoin(delivery_instance, mine)
        .where(delivery.c.id == delivery_id)
        .group_by(delivery_instance.c.status, stored)
        .order_by(stored, delivery_instance.c.status)
    )
    with database.reading() as db:
        return tuple(
            Answers(row[0], bool(row[1]), int(row[2]), int(row[3])) for row in db.execute(query)
        )
