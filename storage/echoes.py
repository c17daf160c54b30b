"""Whether destinations answer: each echo, and since when a destination is up or down."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, select, update

from storage.database import Database
from storage.notices import note
from storage.records import DeliveryState
from storage.schema import OPEN_DELIVERY, delivery
from storage.schema_site import echo, reach, switch
from storage.site import Echo, Reach, SwitchName

# One echo that fails in the night is no reason to wake anybody.
DOWN_AFTER = 2
UNREACHABLE = "UNREACHABLE"  # why a delivery is put off that got no association


def record(
    database: Database, now: float, destination: str, *, ok: bool, seconds: float, sentence: str
) -> Reach:
    """Write an echo down, and what it says of the destination."""
    values = {"destination": destination, "at": now, "ok": int(ok), "seconds": seconds}
    with database.writing() as db:
        db.execute(echo.insert().values(**values, sentence=sentence))
        return _note(database, db, now, destination, up=ok, sentence=sentence, open_until=0.0)


def answered(database: Database, now: float, destination: str) -> Reach:
    """A delivery was answered: the destination is up and its breaker closed."""
    with database.writing() as db:
        return _note(database, db, now, destination, up=True, sentence="", open_until=0.0)


def unreachable(
    database: Database, now: float, destination: str, sentence: str, *, open_until: float
) -> Reach:
    """No association for a delivery: nothing else is tried there before `open_until`."""
    with database.writing() as db:
        return _note(
            database, db, now, destination, up=False, sentence=sentence, open_until=open_until
        )


def try_now(db: Connection, destination: str) -> None:
    """A person wants the next delivery tried although the destination seems to be down."""
    one = and_(reach.c.destination == destination, reach.c.open_until > 0.0)
    db.execute(update(reach).where(one).values(open_until=0.0))


def may_send(database: Database, now: float, destination: str, longest: float) -> bool:
    """Whether a delivery there may begin: nobody has paused it, and its breaker is closed.

    `longest` is for how long a breaker is ever open: later than that, the clock was set back.
    """
    paused = and_(switch.c.name == SwitchName.PAUSED, switch.c.subject == destination)
    is_open = and_(
        reach.c.destination == destination,
        reach.c.open_until > now,
        reach.c.open_until <= now + longest,
    )
    with database.reading() as db:
        if db.execute(select(switch.c.name).where(paused)).first() is not None:
            return False
        return db.execute(select(reach.c.destination).where(is_open)).first() is None


def reaches(database: Database) -> tuple[Reach, ...]:
    """What is known of each destination, by name."""
    with database.reading() as db:
        return tuple(_reach(row) for row in db.execute(select(reach).order_by(reach.c.destination)))


def newest(database: Database, destination: str, limit: int = 20) -> tuple[Echo, ...]:
    """The last echoes of a destination, the newest first."""
    query = select(echo).where(echo.c.destination == destination)
    query = query.order_by(echo.c.at.desc(), echo.c.id.desc()).limit(limit)
    with database.reading() as db:
        return tuple(_echo(row) for row in db.execute(query))


def last(database: Database, destinations: Iterable[str]) -> dict[str, Echo]:
    """The last echo of each of these destinations that ever had one."""
    found = {name: newest(database, name, 1) for name in destinations}
    return {name: echoes[0] for name, echoes in found.items() if echoes}


def forget(database: Database, before: float) -> None:
    """Remove what is of no interest any more; the last echo of each destination stays."""
    newest_ids = select(func.max(echo.c.id)).group_by(echo.c.destination)
    with database.writing() as db:
        db.execute(delete(echo).where(echo.c.at < before, echo.c.id.not_in(newest_ids)))


def _note(
    database: Database,
    db: Connection,
    now: float,
    destination: str,
    *,
    up: bool,
    sentence: str,
    open_until: float,
) -> Reach:
    """Write down how a destination was found; who is to be told is told in the same transaction."""
    one = reach.c.destination == destination
    known = {"checked_at": now, "sentence": sentence, "open_until": open_until}
    first = database.insert(reach).values(
        destination=destination, up=int(up), since=now, failures=0 if up else 1, **known
    )
    if db.execute(first.on_conflict_do_nothing().returning(reach.c.destination)).first() is None:
        before = db.execute(select(reach).where(one).with_for_update()).one()
        if bool(before.up) != up:
            known |= {"up": int(up), "since": now}
        failures = 0 if up else before.failures + 1
        db.execute(update(reach).where(one).values(**known, failures=failures))
        if up and not before.up:
            _go_on(db, now, destination)
        if not up and failures == DOWN_AFTER:
            _tell(database, db, now, "destination_down", before, sentence)
        elif up and before.failures >= DOWN_AFTER:
            _tell(database, db, now, "destination_up", before, "")
    return _reach(db.execute(select(reach).where(one)).one())


def _go_on(db: Connection, now: float, destination: str) -> None:
    """What was put off because the destination gave no association is due: it answers again."""
    put_off = and_(
        OPEN_DELIVERY,
        delivery.c.destination == destination,
        delivery.c.state == DeliveryState.QUEUED,
        delivery.c.reason == UNREACHABLE,
    )
    db.execute(update(delivery).where(put_off).values(due_at=now))


def _tell(
    database: Database,
    db: Connection,
    now: float,
    event: str,
    before: Row[*tuple[Any, ...]],
    sentence: str,
) -> None:
    facts = {"destination": before.destination, "sentence": sentence, "since": before.since}
    note(database, db, now, event, f"{event} {before.destination} {now:.3f}", facts)


def _echo(row: Row[*tuple[Any, ...]]) -> Echo:
    return Echo(row.id, row.destination, row.at, bool(row.ok), row.seconds, row.sentence)


def _reach(row: Row[*tuple[Any, ...]]) -> Reach:
    values = dict(row._mapping)
    return Reach(**{**values, "up": bool(values["up"])})
