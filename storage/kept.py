"""Whether what a person wants done again is still there, and what to do where it is not."""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, or_, select

from storage.errors import WrongState
from storage.records import JobState
from storage.schema import derived, instance, job, job_instance, series

SEND_AGAIN = "let the sender send the series again"

# What to do about a job that has made nothing, by its state.
INSTEAD = {
    JobState.QUEUED: "it waits for its turn, and its result is delivered then",
    JobState.RUNNING: "it is running, and its result is delivered then",
    JobState.REFUSED: "it was refused and has made nothing; requeue it to have it all the same",
    JobState.FAILED: "it failed and has made nothing; requeue it",
    JobState.HELD: "it is held and has made nothing; requeue it, or cancel it",
    JobState.CANCELLED: "it was cancelled and has made nothing; requeue it",
}


def check_received(db: Connection, job_id: int) -> None:
    """The received instances that a job works on have their files."""
    gone = or_(instance.c.path.is_(None), series.c.purged_at.is_not(None))  # or about to go
    query = (
        select(series.c.purged_at)
        .join(instance, instance.c.series_id == series.c.id)
        .join(job_instance, job_instance.c.instance_id == instance.c.id)
        .where(job_instance.c.job_id == job_id, gone)
    )
    row = db.execute(query.limit(1)).one_or_none()
    if row is not None:
        raise WrongState(
            f"job {job_id}: its received files were removed{_on(row.purged_at)} (storage.keep_days "
            f"or keep_unrouted_days) and it cannot be requeued; {SEND_AGAIN}: that asks for it anew"
        )


def without_files(db: Connection, jobs: Collection[int]) -> frozenset[int]:
    """Those of these jobs that cannot be done again, because what they work on was removed."""
    gone = or_(instance.c.path.is_(None), series.c.purged_at.is_not(None))
    works_on = (
        select(job_instance.c.job_id)
        .join(instance, instance.c.id == job_instance.c.instance_id)
        .join(series, series.c.id == instance.c.series_id)
        .where(job_instance.c.job_id == job.c.id, gone)
    )
    query = select(job.c.id).where(job.c.id.in_(jobs), works_on.exists())
    return frozenset(db.execute(query).scalars())


def check_derived(db: Connection, of_job: Row[*tuple[Any, ...]]) -> None:
    """The job has made a derived series, and its files are there."""
    job_id, made_id = of_job.id, of_job.derived_id
    made = db.execute(select(derived).where(derived.c.id == made_id)).one_or_none()
    if made is None:
        raise WrongState(f"job {job_id} cannot be delivered: {INSTEAD[JobState(of_job.state)]}")
    if made.purged_at is not None:
        raise WrongState(f"job {job_id}: {_removed(made.purged_at)}")


def check_delivery(db: Connection, delivery_id: int, derived_id: int) -> None:
    """The derived series of a delivery has its files."""
    query = select(derived.c.purged_at).where(derived.c.id == derived_id)
    purged_at = db.execute(query).scalar_one()
    if purged_at is not None:
        raise WrongState(f"delivery {delivery_id}: {_removed(purged_at)}")


def _removed(at: float) -> str:
    return (
        f"its derived series was removed{_on(at)} (storage.keep_days) and cannot be sent; "
        f"{SEND_AGAIN}: it is made anew and delivered"
    )


def _on(at: float | None) -> str:
    return f" on {datetime.fromtimestamp(at, UTC):%Y-%m-%d}" if at is not None else ""
