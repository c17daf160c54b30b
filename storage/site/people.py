"""Users, sessions and API tokens: who may log in, and which programs may call the API."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, case, delete, func, or_, select, update

from storage.database import Database, one_record, to_record
from storage.errors import NotFound, StorageError, WrongState
from storage.records import DAY, ApiToken, Login, Role, User
from storage.schema import account, login, login_failure, token
from storage.site.audit import acting

# Passwords come as hashes that the caller made, tokens as their SHA-256: nothing here can be used.

SEEN_SECONDS = 60.0  # how exactly it is kept when somebody was seen last: reads should not write


@dataclass(frozen=True)
class Failures:
    """Refused logins of late: under a name, from an address, both; and the last time of each."""

    of_name: int
    of_address: int
    of_both: int
    name_at: float = 0.0
    address_at: float = 0.0
    both_at: float = 0.0


def add_user(
    database: Database,
    now: float,
    who: str,
    user: str,
    role: Role,
    password: str,
    *,
    is_first: bool = False,
) -> User:
    """Add a person; `password` is a hash. Nobody else may be there where `is_first`."""
    values = {"name": user, "role": role, "password": password, "created_at": now}
    row = database.insert(account).values(**values, changed_at=now, disabled=0)
    with acting(database, now, who, "user add", user, {"role": role}) as db:
        if is_first and db.execute(select(account.c.name).limit(1)).first() is not None:
            raise WrongState("there is a user already")
        if not db.execute(row.on_conflict_do_nothing().returning(account.c.name)).first():
            raise WrongState(f"there is already a user {user!r}")
        return to_record(User, _row(db, user))


def find_user(database: Database, user: str) -> User | None:
    return database.record(User, select(account).where(account.c.name == user))


def people(database: Database) -> tuple[User, ...]:
    """Everybody, by name."""
    return database.records(User, select(account).order_by(account.c.name))


def exist(database: Database) -> bool:
    """True where anybody may log in."""
    with database.reading() as db:
        return db.execute(select(account.c.name).limit(1)).first() is not None


def change(
    database: Database,
    now: float,
    who: str,
    user: str,
    *,
    role: Role | None = None,
    password: str | None = None,
    disabled: bool | None = None,
) -> User:
    """Change role, password, or whether the person may log in; what was open before ends."""
    given = {"role": role, "password": password, "disabled": disabled}
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    detail = {name: "changed" if name == "password" else value for name, value in values.items()}
    with acting(database, now, who, "user change", user, detail) as db:
        before = to_record(User, _row(db, user))
        if disabled or role not in (None, Role.ADMINISTRATOR):
            _check_other_administrator(db, before)
        if disabled is not None:
            values["disabled"] = int(disabled)
        theirs = update(account).where(account.c.name == user)
        db.execute(theirs.values(**values, changed_at=now))
        db.execute(delete(login).where(login.c.account_name == user))
        return to_record(User, _row(db, user))


def remove(database: Database, now: float, who: str, user: str) -> None:
    """Remove a person; what was done stays in the audit events."""
    with acting(database, now, who, "user remove", user) as db:
        before = to_record(User, _row(db, user))
        others = select(account.c.name).where(account.c.name != user)
        if db.execute(others).first() is not None:
            _check_other_administrator(db, before)
        db.execute(delete(login).where(login.c.account_name == user))
        db.execute(delete(account).where(account.c.name == user))


def log_in(
    database: Database, now: float, user: str, *, id: str, csrf: str, address: str, until: float
) -> Login:
    """Begin the session of somebody with the right password; `id` is the SHA-256 of its token."""
    times = {"created_at": now, "seen_at": now, "expires_at": until}
    values = {"id": id, "account_name": user, "csrf": csrf, "address": address[:64]}
    with acting(database, now, user, "log in", "", {"address": address[:64]}) as db:
        if _row(db, user).disabled:
            raise WrongState(f"user {user!r} is disabled")
        db.execute(login.insert().values(**values, **times))
        db.execute(delete(login_failure).where(login_failure.c.account_name == user[:64]))
        session = _login(db, id, now)
    assert session is not None
    return session


def log_in_external(
    database: Database,
    now: float,
    person: str,
    role: Role,
    proof: Mapping[str, object],
    *,
    id: str,
    csrf: str,
    address: str,
    until: float,
) -> None:
    """Begin the session of somebody whom a log-in provider knows; `proof` is for the audit."""
    times = {"created_at": now, "seen_at": now, "expires_at": until}
    values = {"id": id, "person": person, "role": role, "csrf": csrf, "address": address[:64]}
    detail = {"address": address[:64], "role": role, **proof}
    with acting(database, now, person, "log in", "", detail) as db:
        db.execute(login.insert().values(**values, **times))


def end_external(database: Database, now: float, who: str, person: str) -> None:
    """End the sessions of somebody whom a log-in provider knows."""
    with acting(database, now, who, "sessions end", person) as db:
        if not db.execute(delete(login).where(login.c.person == person)).rowcount:
            raise NotFound(f"{person!r} is not logged in through a log-in provider")


def logged_in(
    database: Database, now: float, id: str, *, idle_seconds: float, is_use: bool = True
) -> Login | None:
    """The session of this token; None where it ended, was idle for long, or never existed.

    `is_use` False: an open page asks by itself; the session grows idle all the same.
    """
    with database.reading() as db:
        session = _login(db, id, now)
    if session is None or session.seen_at < now - idle_seconds:
        return None
    if is_use and now - session.seen_at > SEEN_SECONDS:
        # On a full disk too: who is known may look at what is wrong.
        with contextlib.suppress(StorageError), database.writing() as db:
            db.execute(update(login).where(login.c.id == id).values(seen_at=now))
    return session


def logins(database: Database, now: float) -> tuple[Login, ...]:
    """The sessions of everybody who is logged in, the newest first."""
    query = _logins(now).order_by(login.c.created_at.desc())
    return database.records(Login, query)


def log_out(database: Database, now: float, who: str, id: str) -> None:
    with acting(database, now, who, "log out") as db:
        db.execute(delete(login).where(login.c.id == id))


def refuse_login(
    database: Database,
    now: float,
    user: str,
    address: str,
    *,
    counted: str = "",
    what: str = "log in refused",
) -> None:
    """Count a wrong name or password, for the name as it was typed and for the address.

    `counted` is what the address is counted as, such as its network; empty = the address.
    """
    values = {"account_name": user[:64], "address": (counted or address)[:64], "at": now}
    # A password that was typed into the wrong field must not be kept for ever.
    who = user if find_user(database, user) is not None else "unknown"
    with acting(database, now, who, what, "", {"address": address[:64]}) as db:
        db.execute(login_failure.insert().values(**values))


def failures(database: Database, since: float, user: str, address: str) -> Failures:
    """Count the logins that were refused since then."""
    recent = login_failure.c.at >= since
    of_name = and_(login_failure.c.account_name == user[:64], recent)
    of_address = and_(login_failure.c.address == address[:64], recent)
    counts = select(func.count(), func.max(login_failure.c.at))
    with database.reading() as db:
        name = db.execute(counts.where(of_name)).one()
        place = db.execute(counts.where(of_address)).one()
        both = db.execute(counts.where(of_name, of_address)).one()
    rows = (name, place, both)
    return Failures(*(int(row[0]) for row in rows), *(float(row[1] or 0.0) for row in rows))


def forget_logins(database: Database, now: float) -> None:
    """Remove what has expired, and refused logins of yesterday."""
    with database.writing() as db:
        db.execute(delete(login).where(login.c.expires_at < now))
        db.execute(delete(login_failure).where(login_failure.c.at < now - DAY))


def _logins(now: float) -> Any:
    of_person = ("account_name", "person", "role")
    columns = (column for column in login.c if column.name not in of_person)
    is_external = login.c.account_name.is_(None)
    return (
        select(
            *columns,
            func.coalesce(login.c.person, account.c.name).label("name"),
            func.coalesce(login.c.role, account.c.role).label("role"),
            case((is_external, 1), else_=0).label("is_external"),
        )
        .join(account, account.c.name == login.c.account_name, isouter=True)
        .where(login.c.expires_at > now, or_(is_external, account.c.disabled == 0))
    )


def _login(db: Connection, id: str, now: float) -> Login | None:
    return one_record(Login, db, _logins(now).where(login.c.id == id))


def _row(db: Connection, user: str) -> Row[*tuple[Any, ...]]:
    query = select(account).where(account.c.name == user).with_for_update()
    row = db.execute(query).one_or_none()
    if row is None:
        raise NotFound(f"there is no user {user!r}")
    return row


def _check_other_administrator(db: Connection, user: User) -> None:
    """Raise WrongState where nobody would be left who can let others in."""
    if user.role is not Role.ADMINISTRATOR or user.disabled:
        return
    other = and_(account.c.role == Role.ADMINISTRATOR, account.c.disabled == 0)
    query = select(account.c.name).where(other, account.c.name != user.name).with_for_update()
    if db.execute(query).first() is None:
        last = f"{user.name!r} is the last administrator; make another user one first"
        raise WrongState(last)


USED_SECONDS = 60.0  # how exactly it is kept when a token was used last


def add_token(
    database: Database, now: float, who: str, name: str, role: Role, digest: str
) -> ApiToken:
    """Add a token; `digest` is the SHA-256 of what the program will show."""
    values = {"digest": digest, "name": name[:64], "role": role, "created_by": who[:64]}
    with acting(database, now, who, "token add", name, {"role": role}) as db:
        row = token.insert().values(**values, created_at=now).returning(token)
        return to_record(ApiToken, db.execute(row).one())


def find_token(database: Database, now: float, digest: str) -> ApiToken | None:
    """The program that shows this token; None where it is unknown or revoked."""
    valid = and_(token.c.digest == digest, token.c.revoked_at.is_(None))
    program = database.record(ApiToken, select(token).where(valid))
    if program is None:
        return None
    if program.used_at is None or now - program.used_at > USED_SECONDS:
        # On a full disk too: monitoring must not fall silent then.
        with contextlib.suppress(StorageError), database.writing() as db:
            db.execute(update(token).where(token.c.id == program.id).values(used_at=now))
    return program


def tokens(database: Database) -> tuple[ApiToken, ...]:
    """All of them, revoked ones too, the newest first."""
    return database.records(ApiToken, select(token).order_by(token.c.id.desc()))


def revoke_token(database: Database, now: float, who: str, token_id: int) -> None:
    """Revoke a token: its program may not call any more."""
    valid = and_(token.c.id == token_id, token.c.revoked_at.is_(None))
    with acting(database, now, who, "token revoke", str(token_id)) as db:
        if not db.execute(update(token).where(valid).values(revoked_at=now)).rowcount:
            raise NotFound(f"there is no valid token {token_id}")
