"""Jobs with their deliveries, a page at once: two queries, however long the page is."""

from collections.abc import Sequence

from sqlalchemy import select

from storage.database import Database
from storage.ledger import delivery_rows
from storage.records import Delivery, Job
from storage.rows import to_delivery, to_job
from storage.schema import delivery, job
from storage.transitions import JOBS


def jobs_with_deliveries(
    database: Database, ids: Sequence[int]
) -> tuple[tuple[Job, tuple[Delivery, ...]], ...]:
    """These jobs, in this order; one that is gone is left out."""
    derived = select(job.c.derived_id).where(job.c.id.in_(ids), job.c.derived_id.is_not(None))
    of_these = delivery_rows().where(delivery.c.derived_id.in_(derived)).order_by(delivery.c.id)
    with database.reading() as db:
        jobs = {row.id: to_job(row) for row in db.execute(JOBS.where(job.c.id.in_(ids)))}
        deliveries: dict[int, list[Delivery]] = {}
        for row in db.execute(of_these):
            deliveries.setdefault(row.derived_id, []).append(to_delivery(row))
    found = (jobs[one] for one in ids if one in jobs)
    return tuple((one, tuple(deliveries.get(one.derived_id or 0, ()))) for one in found)
