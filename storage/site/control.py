"""Control of a running node: switches, requests of people, the applied configuration."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, delete, select, update

from storage.database import Database
from storage.errors import NotFound, WrongState
from storage.records import Configured, Switch, SwitchName, Wish, WishKind, WishState
from storage.schema import OPEN_WISH, configuration, switch, wish
from storage.site.audit import acting

# Every node of a storage reads the same switches, at the latest a second later.

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


GIVE_UP_SECONDS = 600.0
GAVE_UP = "No node has taken it up within ten minutes; is the node running?"
STOPPED = "The node stopped before it was done; ask again."


def ask(database: Database, now: float, who: str, kind: WishKind, subject: str = "") -> Wish:
    """Ask for it; where the same is asked for already, that wish counts."""
    values = {"kind": kind, "subject": subject[:64], "who": who[:64], "asked_at": now}
    same = and_(OPEN_WISH, wish.c.kind == kind, wish.c.subject == subject[:64])
    with acting(database, now, who, f"ask: {kind}".replace("_", " "), subject) as db:
        row = db.execute(select(wish).where(same).limit(1)).one_or_none()
        if row is None:
            new = wish.insert().values(**values, state=WishState.ASKED)
            row = db.execute(new.returning(wish)).one()
        return _wish(row)


def get_request(database: Database, wish_id: int) -> Wish:
    with database.reading() as db:
        row = db.execute(select(wish).where(wish.c.id == wish_id)).one_or_none()
    if row is None:
        raise NotFound(f"no wish {wish_id}")
    return _wish(row)


def asked(database: Database) -> tuple[Wish, ...]:
    """What nobody has done yet, the oldest first."""
    with database.reading() as db:
        rows = db.execute(select(wish).where(OPEN_WISH).order_by(wish.c.id))
        return tuple(_wish(row) for row in rows)


def newest(database: Database, kind: WishKind | None = None, limit: int = 20) -> tuple[Wish, ...]:
    """What was asked for last, with what came of it."""
    query = select(wish).order_by(wish.c.id.desc()).limit(limit)
    with database.reading() as db:
        rows = db.execute(query if kind is None else query.where(wish.c.kind == kind))
        return tuple(_wish(row) for row in rows)


def take(database: Database, wish_id: int, node: str) -> bool:
    """A node is going to do it; False where another was faster."""
    free = and_(OPEN_WISH, wish.c.id == wish_id, wish.c.node.is_(None))
    with database.writing() as db:
        return bool(db.execute(update(wish).where(free).values(node=node)).rowcount)


def close(database: Database, now: float, wish_id: int, *, ok: bool, sentence: str) -> None:
    """What came of it; the first answer counts."""
    one = and_(wish.c.id == wish_id, wish.c.state == WishState.ASKED)
    _end(database, now, one, WishState.DONE if ok else WishState.FAILED, sentence)


def interrupted(database: Database, now: float, node: str) -> int:
    """At start: what a dead process of this node had taken up has failed. How many."""
    return _end(database, now, and_(OPEN_WISH, wish.c.node == node), WishState.FAILED, STOPPED)


def give_up(database: Database, now: float) -> int:
    """Wishes that no node has taken up in time have failed. How many."""
    old = and_(OPEN_WISH, wish.c.node.is_(None), wish.c.asked_at < now - GIVE_UP_SECONDS)
    return _end(database, now, old, WishState.FAILED, GAVE_UP)


def forget(database: Database, before: float) -> None:
    """Remove what was asked long ago; the audit events stay."""
    old = and_(wish.c.asked_at < before, wish.c.done_at.is_not(None))
    with database.writing() as db:
        db.execute(delete(wish).where(old))


def _end(
    database: Database, now: float, which: ColumnElement[bool], state: WishState, sentence: str
) -> int:
    told = {"state": state, "done_at": now, "sentence": sentence}
    with database.reading() as db:  # it is looked at every second: that must wait for nobody
        if db.execute(select(wish.c.id).where(which)).first() is None:
            return 0
    with database.writing() as db:
        return db.execute(update(wish).where(which).values(**told)).rowcount


def _wish(row: Row[*tuple[Any, ...]]) -> Wish:
    values = dict(row._mapping)
    kind, state = WishKind(values["kind"]), WishState(values["state"])
    return Wish(**{**values, "kind": kind, "state": state})


def applied(
    database: Database,
    now: float,
    node: str,
    values: Mapping[str, object],
    restart: Sequence[str] = (),
) -> None:
    """The node works with these values; `restart` are keys whose new value needs a restart."""
    known = {
        "applied_at": now,
        "text": json.dumps(values),
        "restart": json.dumps(list(restart)),
        "refused_at": None,
        "problems": "[]",
    }
    row = database.insert(configuration).values(node=node, **known)
    with database.writing() as db:
        db.execute(row.on_conflict_do_update(index_elements=["node"], set_=known))


def refused(database: Database, now: float, node: str, problems: Sequence[str]) -> None:
    """What the node has read last it cannot use; it goes on with what it had."""
    told = {"refused_at": now, "problems": json.dumps(list(problems))}
    with database.writing() as db:
        db.execute(update(configuration).where(configuration.c.node == node).values(**told))


def applied_configuration(database: Database, node: str) -> Configured | None:
    with database.reading() as db:
        one = select(configuration).where(configuration.c.node == node)
        row = db.execute(one).one_or_none()
    return _configured(row) if row is not None else None


def _configured(row: Row[*tuple[Any, ...]]) -> Configured:
    return Configured(
        node=row.node,
        applied_at=row.applied_at,
        values=json.loads(row.text),
        restart=tuple(json.loads(row.restart)),
        refused_at=row.refused_at,
        problems=tuple(json.loads(row.problems)),
    )
