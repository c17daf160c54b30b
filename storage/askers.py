"""Who asked for a job: its result goes to all of them, until they ask for another instead."""

from collections.abc import Sequence

from sqlalchemy import Connection, Select, and_, delete, select

from storage.database import Database
from storage.rows import to_json, to_names
from storage.schema import arrival, job_asker


def ask(
    database: Database, db: Connection, job_id: int, arrival_id: int, destinations: Sequence[str]
) -> tuple[str, ...]:
    """An arrival wants the result of a job; the destinations of all who do.

    What its peer wanted before, perhaps by another configuration, counts no more.
    """
    leave(db, job_id, arrival_id)
    values = {
        "job_id": job_id,
        "arrival_id": arrival_id,
        "destinations": to_json(tuple(destinations)),
    }
    db.execute(database.insert(job_asker).values(**values))
    return wanted(db, job_id)


def leave(db: Connection, job_id: int, arrival_id: int) -> None:
    """The peer of an arrival does not want a job any more, in whichever arrival it asked."""
    gone = job_asker.c.arrival_id.in_(same_peer(arrival_id))
    db.execute(delete(job_asker).where(job_asker.c.job_id == job_id, gone))


def wanted(db: Connection, job_id: int) -> tuple[str, ...]:
    """Where the result of a job goes: to the destinations of each who asked, the first first."""
    asked = select(job_asker.c.destinations).where(job_asker.c.job_id == job_id)
    rows = db.execute(asked.order_by(job_asker.c.arrival_id)).scalars()
    return tuple(dict.fromkeys(name for names in rows for name in to_names(names)))


def is_asked_for(db: Connection, job_id: int) -> bool:
    """True where somebody still wants the job; shadow mode has askers without a destination."""
    asked = select(job_asker.c.job_id).where(job_asker.c.job_id == job_id)
    return db.execute(asked.limit(1)).first() is not None


def same_peer(arrival_id: int) -> Select[tuple[int]]:
    """The arrivals of a series that its peer, calling and called AE title, has brought."""
    this, theirs = arrival.alias("this"), arrival.alias("theirs")
    columns = ("series_id", "calling_ae", "called_ae")
    same = and_(*(this.c[name] == theirs.c[name] for name in columns))
    return select(theirs.c.id).join(this, same).where(this.c.id == arrival_id)
