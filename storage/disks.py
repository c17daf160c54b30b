"""How full the disk is, every so often, and in how many days it is full as it fills now."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression

from sqlalchemy import delete, select

from storage.database import Database
from storage.schema_site import disk

DAY = 86_400.0
FORECAST_DAYS = 7.0  # so far back a forecast looks
LEAST_HOURS = 6.0  # from less nobody can say anything
MOST_SAMPLES = 2000


@dataclass(frozen=True)
class Sample:
    """The disk at one moment, in bytes."""

    at: float
    free: int
    total: int


@dataclass(frozen=True)
class Forecast:
    """When only the reserve is left; None: it does not fill, or it is too early to say."""

    days_left: float | None
    bytes_per_day: float | None  # negative: it empties


def record(database: Database, now: float, node: str, free: int, total: int) -> None:
    with database.writing() as db:
        db.execute(disk.insert().values(node=node, at=now, free=free, total=total))


def samples(database: Database, node: str, since: float) -> tuple[Sample, ...]:
    """The oldest first."""
    query = select(disk.c.at, disk.c.free, disk.c.total).where(disk.c.at >= since)
    newest = query.where(disk.c.node == node).order_by(disk.c.at.desc()).limit(MOST_SAMPLES)
    with database.reading() as db:
        return tuple(Sample(*row) for row in reversed(db.execute(newest).all()))


def forecast(taken: Sequence[Sample], reserve: int) -> Forecast:
    """By the straight line through the samples; `reserve` is `storage.min_free_gb` in bytes."""
    if len(taken) < 2 or taken[-1].at - taken[0].at < LEAST_HOURS * 3600:
        return Forecast(None, None)
    days = [(one.at - taken[0].at) / DAY for one in taken]
    slope, _ = linear_regression(days, [float(one.free) for one in taken])
    left = taken[-1].free - reserve
    if left <= 0:
        return Forecast(0.0, -slope)
    return Forecast(left / -slope if slope < 0 else None, -slope)


def forget(database: Database, before: float) -> None:
    with database.writing() as db:
        db.execute(delete(disk).where(disk.c.at < before))
