"""The audit: events written once, never changed, without a patient attribute."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from sqlalchemy import Connection, Select, and_, delete, func, select

from storage.database import Database, to_json
from storage.records import AuditEvent
from storage.schema import audit

FIND = "find"  # somebody looked for a patient, on a page, by REST or at the command line
# The first of each is the word of today, the others are those of earlier releases: whoever filters
# by one of them finds all.
VIEW, VIEW_PICTURES = "view", "view pictures"  # of a series by its UID, of the result of a job
SAME = ((FIND, "search"), (VIEW, "look"), (VIEW_PICTURES, "look at pictures"))
NODE = "midslice"  # who acts where nobody does: what the node tells of itself


class Audit:
    """The audit events of a database; there is no way to change one."""

    def __init__(self, database: Database, now: Callable[[], float]) -> None:
        self._database = database
        self._now = now

    def record(
        self, who: str, what: str, which: str = "", detail: Mapping[str, object] | None = None
    ) -> None:
        """Write an event: `who` is a person or the node, `which` a job, series or destination."""
        with self._database.writing() as db:
            note(db, self._now(), who, what, which, detail)

    def list(
        self, limit: int = 100, offset: int = 0, *, who: str = "", what: str = ""
    ) -> tuple[AuditEvent, ...]:
        """The events, the newest first; of one person, of one kind of action."""
        query = _events(who, what).order_by(audit.c.id.desc()).limit(limit).offset(offset)
        return self._database.records(AuditEvent, query)

    def count(self, *, who: str = "", what: str = "") -> int:
        """Count the events that `list` has in all."""
        query = select(func.count()).select_from(_events(who, what).subquery())
        with self._database.reading() as db:
            return int(db.execute(query).scalar_one())


def forget(database: Database, before: float) -> int:
    """Remove the events of long ago, where a site must not keep them for ever; how many."""
    with database.writing() as db:
        return db.execute(delete(audit).where(audit.c.at < before)).rowcount


@contextmanager
def acting(
    database: Database,
    now: float,
    who: str,
    what: str,
    which: str = "",
    detail: Mapping[str, object] | None = None,
) -> Iterator[Connection]:
    """The transaction of what a person does: the change and its audit event, or neither.

    Without `who` it is a step of the node's own, which is no audit event.
    """
    with database.writing() as db:
        yield db
        if who:
            note(db, now, who, what, which, detail)


def note(
    db: Connection,
    now: float,
    who: str,
    what: str,
    which: str = "",
    detail: Mapping[str, object] | None = None,
) -> None:
    """Write an audit event in the transaction of what it tells of."""
    row = {"at": now, "who": who[:64], "what": what[:64], "which": which}
    db.execute(audit.insert().values(**row, detail=to_json(detail or {})))


def _events(who: str, what: str) -> Select[tuple[object, ...]]:
    wanted = [audit.c.who == who] if who else []
    if what:
        words = next((words for words in SAME if what in words), (what,))
        wanted.append(audit.c.what.in_(words))
    return select(audit).where(and_(True, *wanted))
