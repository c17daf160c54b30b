"""What a person has set while the node runs: it stays until somebody takes it back.

Every node of a storage reads the same switches, at the latest a second later.
"""

from collections.abc import Collection
from typing import Any

from sqlalchemy import Row, and_, delete, select

from storage.audit import acting
from storage.database import Database
from storage.errors import WrongState
from storage.schema_site import switch
from storage.site import Switch, SwitchName

LONGEST_SUBJECT = 64

# What the audit events call it, set and taken back.
WORDS = {
    SwitchName.DRAINING: ("drain", "stop draining"),
    SwitchName.PAUSED: ("pause destination", "resume destination"),
    SwitchName.NEVER: ("never process", "process again"),
    SwitchName.ALLOWED_AE: ("allow AE title", "take AE title back"),
}


def turn(
    database: Database, now: float, who: str, name: SwitchName, subject: str = "", *, on: bool
) -> bool:
    """Set a switch, or take it back; False where it was so already."""
    if len(subject) > LONGEST_SUBJECT or (name is SwitchName.DRAINING) != (subject == ""):
        raise WrongState(f"{name}: no {subject!r}; allowed: 1-{LONGEST_SUBJECT} characters")
    same = and_(switch.c.name == name, switch.c.subject == subject)
    what = WORDS[name][0 if on else 1]
    with acting(database, now, who, what, subject) as db:
        if not on:
            return bool(db.execute(delete(switch).where(same)).rowcount)
        row = database.insert(switch).values(name=name, subject=subject, who=who[:64], at=now)
        inserted = row.on_conflict_do_nothing().returning(switch.c.name)
        return db.execute(inserted).first() is not None


def draining(database: Database) -> Switch | None:
    """Who drains the node: it receives and delivers, and starts no jobs."""
    return is_on(database, SwitchName.DRAINING)


def is_on(database: Database, name: SwitchName, subject: str = "") -> Switch | None:
    one = and_(switch.c.name == name, switch.c.subject == subject)
    with database.reading() as db:
        row = db.execute(select(switch).where(one)).one_or_none()
    return _switch(row) if row is not None else None


def all_on(database: Database, name: SwitchName | None = None) -> tuple[Switch, ...]:
    """What is set, of one name or at all."""
    query = select(switch).order_by(switch.c.name, switch.c.subject)
    with database.reading() as db:
        rows = db.execute(query if name is None else query.where(switch.c.name == name))
        return tuple(_switch(row) for row in rows)


def of_subjects(
    database: Database, name: SwitchName, subjects: Collection[str]
) -> dict[str, Switch]:
    """What is set of one name for these."""
    query = select(switch).where(switch.c.name == name, switch.c.subject.in_(subjects))
    with database.reading() as db:
        return {row.subject: _switch(row) for row in db.execute(query)}


def _switch(row: Row[*tuple[Any, ...]]) -> Switch:
    return Switch(SwitchName(row.name), row.subject, row.who, row.at)
