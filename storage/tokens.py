"""Programs that may call the API: a token each, kept as its SHA-256."""

import contextlib
from typing import Any

from sqlalchemy import Row, and_, select, update

from storage.audit import acting
from storage.database import Database
from storage.errors import NotFound, StorageError
from storage.schema_site import token
from storage.site import ApiToken, Role

USED_SECONDS = 60.0  # how exactly it is kept when a token was used last


def add(database: Database, now: float, who: str, name: str, role: Role, digest: str) -> ApiToken:
    """A new token; `digest` is the SHA-256 of what the program will show."""
    values = {"digest": digest, "name": name[:64], "role": role, "created_by": who[:64]}
    with acting(database, now, who, "token add", name, {"role": role}) as db:
        row = token.insert().values(**values, created_at=now).returning(token)
        return _token(db.execute(row).one())


def find(database: Database, now: float, digest: str) -> ApiToken | None:
    """The program that shows this token; None where it is unknown or revoked."""
    valid = and_(token.c.digest == digest, token.c.revoked_at.is_(None))
    with database.reading() as db:
        row = db.execute(select(token).where(valid)).one_or_none()
    if row is None:
        return None
    if row.used_at is None or now - row.used_at > USED_SECONDS:
        # On a full disk too: monitoring must not fall silent then.
        with contextlib.suppress(StorageError), database.writing() as db:
            db.execute(update(token).where(token.c.id == row.id).values(used_at=now))
    return _token(row)


def tokens(database: Database) -> tuple[ApiToken, ...]:
    """All of them, revoked ones too, the newest first."""
    with database.reading() as db:
        return tuple(_token(row) for row in db.execute(select(token).order_by(token.c.id.desc())))


def revoke(database: Database, now: float, who: str, token_id: int) -> None:
    """The program may not call any more."""
    valid = and_(token.c.id == token_id, token.c.revoked_at.is_(None))
    with acting(database, now, who, "token revoke", str(token_id)) as db:
        if not db.execute(update(token).where(valid).values(revoked_at=now)).rowcount:
            raise NotFound(f"there is no valid token {token_id}")


def _token(row: Row[*tuple[Any, ...]]) -> ApiToken:
    values = {name: value for name, value in row._mapping.items() if name != "digest"}
    return ApiToken(**{**values, "role": Role(values["role"])})
