"""How a series came last."""

from sqlalchemy import select

from storage.archive import arrival_rows
from storage.database import Database
from storage.records import Arrival
from storage.rows import to_arrival
from storage.schema import arrival, series


def newest_arrival(database: Database, series_uid: str) -> Arrival | None:
    """The last time that a peer brought this series; None where nobody did."""
    newest = (
        select(arrival.c.id)
        .join(series, series.c.id == arrival.c.series_id)
        .where(series.c.series_uid == series_uid)
        .order_by(arrival.c.last_at.desc(), arrival.c.id.desc())
        .limit(1)
    )
    with database.reading() as db:
        row = db.execute(
            arrival_rows().where(arrival.c.id == newest.scalar_subquery())
        ).one_or_none()
    return to_arrival(row) if row is not None else None
