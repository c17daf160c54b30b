"""What tells a derived series from those that were made of the same received stack before.

A first result says nothing of it, so that its UIDs are those of its content alone. What comes after
it has another Series Number, and says its revision, or which route has made it. The mark of a
content is decided once: when the job that makes it is claimed. A content that was made before, by
whatever job, keeps the mark that it has (`marks`), and so its UIDs.
"""

from sqlalchemy import Connection, select

from storage.records import JobState, Mark
from storage.rows import to_mark
from storage.schema import derived, job, series
from storage.transitions import JobRow


def next_mark(db: Connection, row: JobRow) -> Mark:
    """The mark of what this job makes, beside what exists and what is being made."""
    columns = ("stack", "route", "revision", "place", "named")
    made = select(*(derived.c[name] for name in columns)).where(
        derived.c.series_id == row.series_id, derived.c.stack == row.stack
    )
    coming = select(*(job.c[name] for name in columns)).where(
        job.c.series_id == row.series_id,
        job.c.stack == row.stack,
        job.c.state == JobState.RUNNING,
        job.c.id != row.id,
    )
    others = [*db.execute(made), *db.execute(coming)]
    same_route = [other.revision for other in others if other.route == row.route]
    return Mark(
        revision=1 + max(same_route, default=0),
        place=1 + max((other.place for other in others), default=-1),
        route=row.route if len(same_route) < len(others) else "",
    )


def marks(db: Connection, series_id: int) -> dict[str, Mark]:
    """The mark of each content that was made of a received series."""
    columns = ("content_uid", "route", "revision", "place", "named")
    query = select(*(derived.c[name] for name in columns)).where(derived.c.series_id == series_id)
    rows = db.execute(query.order_by(derived.c.id))
    return {row.content_uid: to_mark(row) for row in rows}


def lock_for_marks(db: Connection, series_id: int) -> bool:
    """Keep others from deciding a mark of this series; False where somebody is at it just now.

    Nobody waits: a claim has locked its job already, and others lock the series first.
    """
    one = select(series.c.id).where(series.c.id == series_id)
    return db.execute(one.with_for_update(skip_locked=True)).first() is not None
