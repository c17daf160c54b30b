"""A Series UID that stands for more than one patient: whatever it has under way waits."""

import logging

from sqlalchemy import Connection, and_, select, update

from storage.deliveries import IDLE, set_delivery
from storage.records import DeliveryState, Enqueued, JobState, Verdict
from storage.schema import delivery, derived, job, series

logger = logging.getLogger(__name__)


def hold_all(db: Connection, series_uid: str, verdict: Verdict, now: float) -> tuple[Enqueued, ...]:
    """Hold the unfinished jobs of a Series UID, in every study, and what is not yet delivered.

    A running job stops at its next step and is held then. What a person has held or cancelled, and
    what is at its destination, stays as it is.
    """
    told: dict[str, object] = {"reason": verdict.reason, "sentence": verdict.sentence}
    named = select(series.c.id).where(series.c.series_uid == series_uid)
    waiting = and_(job.c.series_id.in_(named), job.c.state.in_((JobState.QUEUED, JobState.RUNNING)))
    rows = db.execute(select(job).where(waiting).order_by(job.c.id).with_for_update()).all()
    held = {**told, "state": JobState.HELD, "finished_at": now}
    for row in rows:
        values = {**told, "cancel_requested": 1} if row.state == JobState.RUNNING else held
        db.execute(update(job).where(job.c.id == row.id).values(**values))
    _hold_deliveries(db, series_uid, told, now)
    return tuple(Enqueued(row.id, "held", reason=verdict.reason) for row in rows)


def _hold_deliveries(db: Connection, series_uid: str, told: dict[str, object], now: float) -> None:
    under_way = (DeliveryState.QUEUED, DeliveryState.RUNNING)
    query = (
        select(delivery.c.id, delivery.c.destination)
        .join(derived, derived.c.id == delivery.c.derived_id)
        .join(series, series.c.id == derived.c.series_id)
        .where(series.c.series_uid == series_uid, delivery.c.state.in_(under_way))
        .order_by(delivery.c.id)
    )
    for row in db.execute(query.with_for_update(of=delivery)).all():
        end = {"state": DeliveryState.HELD, "finished_at": now, **IDLE}
        set_delivery(db, row.id, **told, **end)  # a sender at work loses its lease
        extra = {"destination": row.destination, "delivery": row.id, "reason": told["reason"]}
        logger.warning("delivery held", extra=extra)
