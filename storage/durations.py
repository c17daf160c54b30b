"""How long each step takes, and how much is done: percentiles over hours or days.

The steps of one job: `receive` from its first instance to its last, `wait` until its arrival is
complete, `queue` until a worker takes it, `infer` until its result is verified, `send` until the
destination has stored it, `total` from the last instance to there.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, func, select

from storage.database import Database
from storage.lines import Bucket, Percentiles
from storage.records import DeliveryState, JobState
from storage.schema import arrival, delivery, job

STEPS = ("receive", "wait", "queue", "infer", "send", "total")
SOON = 60.0  # a job that was queued later than this after its arrival was asked for by a person
# So many, the newest, say it: more would tell the same, and a page must not read a year.
MOST_JOBS = 1000
NEWEST_JOBS = 10  # say which devices are used
WELL = (DeliveryState.SENT, DeliveryState.CONFIRMED)
UNHAPPY = (JobState.FAILED, JobState.HELD)


def durations(database: Database, since: float, until: float) -> Mapping[str, Percentiles]:
    """Each step of the jobs that ended in this time."""
    with database.reading() as db:
        return _percentiles(_samples(db, since, until, MOST_JOBS))


def buckets(database: Database, since: float, until: float, width: float) -> tuple[Bucket, ...]:
    """The same for each hour or day of this time, the oldest first."""
    count = max(1, round((until - since) / width))
    with database.reading() as db:
        starts = [since + number * width for number in range(count)]
        samples = [_samples(db, at, at + width, MOST_JOBS // count) for at in starts]
        ended = _per_bucket(db, job.c.finished_at, since, until, width)
        failed = _per_bucket(db, job.c.finished_at, since, until, width, job.c.state.in_(UNHAPPY))
        received = _received(db, since, until, width)
    return tuple(
        Bucket(
            start=start,
            end=start + width,
            steps=_percentiles(samples[number]),
            jobs=ended.get(number, 0),
            instances=received.get(number, 0),
            failed=failed.get(number, 0),
        )
        for number, start in enumerate(starts)
    )


def devices(database: Database) -> tuple[str, ...]:
    """What the newest jobs really ran on, the newest first; a model may use no accelerator."""
    newest = select(job.c.record).where(job.c.state == JobState.SUCCEEDED)
    newest = newest.order_by(job.c.finished_at.desc()).limit(NEWEST_JOBS)
    with database.reading() as db:
        told = [json.loads(text).get("device") for text in db.execute(newest).scalars()]
    return tuple(dict.fromkeys(str(one) for one in told if one))


def percentile(values: Sequence[float], share: float) -> float | None:
    """By linear interpolation between the two nearest ranks; `values` are sorted."""
    if not values:
        return None
    place = share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def _percentiles(samples: Iterable[Mapping[str, float]]) -> dict[str, Percentiles]:
    each: dict[str, list[float]] = {step: [] for step in STEPS}
    for steps in samples:
        for step, seconds in steps.items():
            each[step].append(seconds)
    found = {step: sorted(values) for step, values in each.items()}
    return {
        step: Percentiles(len(values), percentile(values, 0.5), percentile(values, 0.95))
        for step, values in found.items()
    }


def _samples(db: Connection, since: float, until: float, most: int) -> list[dict[str, float]]:
    """The steps of the jobs that ended then; a clock that was set back is no duration."""
    arrived = select(func.min(delivery.c.finished_at)).where(
        delivery.c.derived_id == job.c.derived_id, delivery.c.state.in_(WELL)
    )
    newest = (
        select(
            job.c.state,
            job.c.queued_at,
            job.c.started_at,
            job.c.finished_at,
            arrival.c.first_at,
            arrival.c.last_at,
            arrival.c.completed_at,
            arrived.scalar_subquery().label("sent_at"),
        )
        .join(arrival, arrival.c.id == job.c.arrival_id)
        .where(job.c.finished_at >= since, job.c.finished_at < until, job.c.kind == "infer")
        .order_by(job.c.finished_at.desc())
        .limit(most)
    )
    return [_steps(row) for row in db.execute(newest)]


def _steps(row: Any) -> dict[str, float]:
    spans: dict[str, tuple[float | None, float | None]] = {
        "receive": (row.first_at, row.last_at),
        "wait": (row.last_at, row.completed_at),
        "queue": (row.queued_at, row.started_at),
    }
    if row.state == JobState.SUCCEEDED:
        spans["infer"] = (row.started_at, row.finished_at)
        spans["send"] = (row.finished_at, row.sent_at)
        # Of a job that was put back by a person, the wait for that person does not count.
        if row.completed_at is not None and row.queued_at <= row.completed_at + SOON:
            spans["total"] = (row.last_at, row.sent_at)
    return {
        step: last - first
        for step, (first, last) in spans.items()
        if first is not None and last is not None and last >= first
    }


def _per_bucket(
    db: Connection, at: Any, since: float, until: float, width: float, *which: Any
) -> dict[int, int]:
    number = func.floor((at - since) / width).label("number")
    query = select(number, func.count()).where(at >= since, at < until, *which).group_by(number)
    return {int(row[0]): int(row[1]) for row in db.execute(query)}


def _received(db: Connection, since: float, until: float, width: float) -> dict[int, int]:
    """Instances of the arrivals that were complete in each bucket."""
    number = func.floor((arrival.c.completed_at - since) / width).label("number")
    within = (arrival.c.completed_at >= since, arrival.c.completed_at < until)
    query = select(number, func.sum(arrival.c.brought)).where(*within).group_by(number)
    return {int(row[0]): int(row[1]) for row in db.execute(query)}
