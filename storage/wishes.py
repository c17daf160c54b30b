"""What a person asks a node to do once; the node writes what came of it."""

from typing import Any

from sqlalchemy import ColumnElement, Row, and_, delete, select, update

from storage.audit import acting
from storage.database import Database
from storage.errors import NotFound
from storage.schema_site import OPEN_WISH, wish
from storage.site import Wish, WishKind, WishState

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


def get(database: Database, wish_id: int) -> Wish:
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
