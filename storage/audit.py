"""Who did what, when: written once, never changed, without a patient attribute."""

from collections.abc import Callable, Mapping

from sqlalchemy import select

from storage.database import Database
from storage.records import AuditEvent
from storage.rows import to_audit_event, to_json
from storage.schema import audit


class Audit:
    """The audit events of a database; there is no way to change or to remove one."""

    def __init__(self, database: Database, now: Callable[[], float]) -> None:
        self._database = database
        self._now = now

    def record(
        self, who: str, what: str, which: str = "", detail: Mapping[str, object] | None = None
    ) -> None:
        """`who` is a person or the node, `which` a job, series or destination by its id."""
        row = {"at": self._now(), "who": who[:64], "what": what[:64], "which": which}
        with self._database.writing() as db:
            db.execute(audit.insert().values(**row, detail=to_json(detail or {})))

    def list(self, limit: int = 100, offset: int = 0) -> tuple[AuditEvent, ...]:
        """The newest first."""
        query = select(audit).order_by(audit.c.id.desc()).limit(limit).offset(offset)
        with self._database.reading() as db:
            return tuple(to_audit_event(row) for row in db.execute(query))
