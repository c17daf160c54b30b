"""The configuration as the running node has read it, for those who only see the database."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, select, update

from storage.database import Database
from storage.schema_site import configuration
from storage.site import Configured


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


def get(database: Database, node: str) -> Configured | None:
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
