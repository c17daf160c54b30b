"""Peers as an administrator sees them: senders, rejected callers, destinations and their echoes."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, select, update

from storage.database import Database, to_record
from storage.records import (
    DAY,
    DeliveryState,
    DestinationSummary,
    Echo,
    Page,
    Reach,
    Rejected,
    SenderSummary,
    SwitchName,
)
from storage.schema import (
    OPEN_ARRIVAL,
    OPEN_DELIVERY,
    REJECTED_ASSOCIATION,
    arrival,
    arrival_instance,
    association,
    delivery,
    echo,
    fact,
    reach,
    switch,
)
from storage.site import control
from storage.site.notices import post

# One echo that fails in the night is no reason to wake anybody.
DOWN_AFTER = 2
UNREACHABLE = "UNREACHABLE"  # why a delivery is put off that got no association


def record(
    database: Database, now: float, destination: str, *, ok: bool, seconds: float, sentence: str
) -> Reach:
    """Write down an echo, and what it says of the destination."""
    values = {"destination": destination, "at": now, "ok": int(ok), "seconds": seconds}
    with database.writing() as db:
        db.execute(echo.insert().values(**values, sentence=sentence))
        return _write_reach(
            database, db, now, destination, up=ok, sentence=sentence, open_until=0.0
        )


def answered(database: Database, now: float, destination: str) -> Reach:
    """Note that a delivery was answered: the destination is up and its breaker closed."""
    with database.writing() as db:
        return _write_reach(database, db, now, destination, up=True, sentence="", open_until=0.0)


def unreachable(
    database: Database, now: float, destination: str, sentence: str, *, open_until: float
) -> Reach:
    """Note that it gave a delivery no association: nothing is tried there before `open_until`."""
    with database.writing() as db:
        return _write_reach(
            database, db, now, destination, up=False, sentence=sentence, open_until=open_until
        )


def try_now(db: Connection, destination: str) -> None:
    """Let the next delivery be tried, for a person, although the destination seems to be down."""
    is_open = and_(reach.c.destination == destination, reach.c.open_until > 0.0)
    db.execute(update(reach).where(is_open).values(open_until=0.0))


def may_send(database: Database, now: float, destination: str, longest: float) -> bool:
    """True where a delivery there may begin: nobody has paused it, and its breaker is closed.

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


def reachability(database: Database) -> tuple[Reach, ...]:
    """The reachability of each destination, by name."""
    query = select(reach).order_by(reach.c.destination)
    return database.records(Reach, query)


def newest(database: Database, destination: str, limit: int = 20) -> tuple[Echo, ...]:
    """The last echoes of a destination, the newest first."""
    query = select(echo).where(echo.c.destination == destination)
    query = query.order_by(echo.c.at.desc(), echo.c.id.desc()).limit(limit)
    return database.records(Echo, query)


def last_echoes(database: Database, destinations: Iterable[str]) -> dict[str, Echo]:
    """The last echo of each of these destinations that ever had one."""
    last = {name: newest(database, name, 1) for name in destinations}
    return {name: echoes[0] for name, echoes in last.items() if echoes}


def forget(database: Database, before: float) -> None:
    """Remove what is of no interest any more; the last echo of each destination stays."""
    newest_ids = select(func.max(echo.c.id)).group_by(echo.c.destination)
    with database.writing() as db:
        db.execute(delete(echo).where(echo.c.at < before, echo.c.id.not_in(newest_ids)))


def _write_reach(
    database: Database,
    db: Connection,
    now: float,
    destination: str,
    *,
    up: bool,
    sentence: str,
    open_until: float,
) -> Reach:
    """Write down whether a destination answers, with the notice of a change."""
    mine = reach.c.destination == destination
    columns = {"checked_at": now, "sentence": sentence, "open_until": open_until}
    first = database.insert(reach).values(
        destination=destination, up=int(up), since=now, failures=0 if up else 1, **columns
    )
    if db.execute(first.on_conflict_do_nothing().returning(reach.c.destination)).first() is None:
        before = db.execute(select(reach).where(mine).with_for_update()).one()
        if bool(before.up) != up:
            columns |= {"up": int(up), "since": now}
        failures = 0 if up else before.failures + 1
        db.execute(update(reach).where(mine).values(**columns, failures=failures))
        if up and not before.up:
            _go_on(db, now, destination)
        if not up and failures == DOWN_AFTER:
            _post(database, db, now, "destination_down", before, sentence)
        elif up and before.failures >= DOWN_AFTER:
            _post(database, db, now, "destination_up", before, "")
    return to_record(Reach, db.execute(select(reach).where(mine)).one())


def _go_on(db: Connection, now: float, destination: str) -> None:
    """Make due what was put off because the destination gave no association: it answers again."""
    put_off = and_(
        OPEN_DELIVERY,
        delivery.c.destination == destination,
        delivery.c.state == DeliveryState.QUEUED,
        delivery.c.reason == UNREACHABLE,
    )
    db.execute(update(delivery).where(put_off).values(due_at=now))


def _post(
    database: Database,
    db: Connection,
    now: float,
    event: str,
    before: Row[*tuple[Any, ...]],
    sentence: str,
) -> None:
    facts = {"destination": before.destination, "sentence": sentence, "since": before.since}
    post(database, db, now, event, f"{event} {before.destination} {now:.3f}", facts)


GUEST = "~SELFTEST-"  # how the calling AE titles of self-tests begin: they are nobody's
WELL = (DeliveryState.SENT, DeliveryState.CONFIRMED)
EXPECTED = "sender {}"  # the fact that says when the node first expected a sender to send
MOST_ADDRESSES = 5
LATE_ASSOCIATIONS = 200  # so many, the newest, say where a peer comes from


def senders(database: Database, today: float) -> tuple[SenderSummary, ...]:
    """Every calling AE title that ever brought something or associates; `today` is midnight."""
    with database.reading() as db:
        last = _newest_of(db, arrival.c.calling_ae, arrival.c.last_at)
        seen = _newest_of(db, association.c.calling_ae, association.c.opened_at)
        rejected = _rejected_since(db, today)
        still_open = select(association.c.calling_ae).where(association.c.ended_at.is_(None))
        opened = Counter(db.execute(still_open).scalars())
        series, instances = _today(db, today)
        names = {name for name in (*last, *seen) if name and not name.startswith(GUEST)}
        addresses = {name: _addresses(db, name) for name in names}
    unordered = [
        SenderSummary(
            ae_title=name,
            addresses=addresses[name],
            last_at=max(last.get(name, 0.0), seen.get(name, 0.0)),
            last_image_at=last.get(name),
            open=opened[name],
            series_today=series[name],
            instances_today=instances[name],
            rejected_today=rejected.get(name, 0),
        )
        for name in names
    ]
    return tuple(sorted(unordered, key=lambda sender: (-sender.last_at, sender.ae_title)))


def last_heard(database: Database, ae_titles: Sequence[str]) -> dict[str, float]:
    """The time of the last instance of each of these peers that ever brought one."""
    newest = select(func.max(arrival.c.last_at))
    with database.reading() as db:
        last = {
            name: db.execute(newest.where(arrival.c.calling_ae == name)).scalar()
            for name in ae_titles
        }
    return {name: float(at) for name, at in last.items() if at is not None}


def quiet_since(database: Database, ae_titles: Sequence[str]) -> dict[str, float]:
    """The time since which each brought nothing: its last instance, or when it was first expected.

    Who only asks, and is turned away, is as silent as who is switched off.
    """
    names = {EXPECTED.format(ae_title): ae_title for ae_title in ae_titles}
    first = select(fact.c.name, fact.c.value).where(fact.c.name.in_(names))
    with database.reading() as db:
        expected = {names[row.name]: float(row.value) for row in db.execute(first)}
    return expected | last_heard(database, ae_titles)


def rejections(
    database: Database, since: float, limit: int = 50, offset: int = 0
) -> Page[Rejected]:
    """The callers that were turned away since then, alike ones together, the newest first."""
    alike = [association.c[name] for name in ("calling_ae", "called_ae", "address", "reason")]
    last = func.max(association.c.opened_at).label("last_at")
    first = func.min(association.c.opened_at).label("first_at")
    query = (
        select(*alike, func.count().label("count"), first, last)
        .where(REJECTED_ASSOCIATION, association.c.opened_at >= since)
        .group_by(*alike)
        .order_by(last.desc(), *alike)
    )
    lines = database.records(Rejected, query)
    return Page(lines[offset : offset + limit], len(lines), limit, offset)


def destinations(
    database: Database, now: float, names: Sequence[str], *, days: float = 7.0
) -> tuple[DestinationSummary, ...]:
    """These destinations, and those that something waits for though nobody names them."""
    reaches = {reach.destination: reach for reach in reachability(database)}
    paused = {pause.subject: pause for pause in control.all_on(database, SwitchName.PAUSED)}
    with database.reading() as db:
        waits = _waiting(db)
        every = list(dict.fromkeys((*names, *sorted(waits))))
        ended = {name: _ended(db, name, now - days * DAY) for name in every}
    last = last_echoes(database, every)
    return tuple(
        _destination(name, reaches.get(name), last.get(name), paused.get(name), waits, ended[name])
        for name in every
    )


def _addresses(db: Connection, name: str) -> tuple[str, ...]:
    """The addresses that the peer came from of late, the newest first."""
    newest = (
        select(association.c.address)
        .where(association.c.calling_ae == name)
        .order_by(association.c.opened_at.desc())
        .limit(LATE_ASSOCIATIONS)
    )
    return tuple(dict.fromkeys(db.execute(newest).scalars()))[:MOST_ADDRESSES]


def _today(db: Connection, today: float) -> tuple[Counter[str], Counter[str]]:
    """Series and instances of today, by sender; what is arriving still is counted as it stands.

    Added up here: with GROUP BY the database would go through the senders' index, all of it.
    """
    columns = (arrival.c.calling_ae, arrival.c.series_id, arrival.c.brought)
    whole = db.execute(select(*columns).where(arrival.c.completed_at >= today)).all()
    still = select(func.count()).where(arrival_instance.c.arrival_id == arrival.c.id)
    here = select(*columns[:2], still.scalar_subquery().label("brought")).where(OPEN_ARRIVAL)
    instances: Counter[str] = Counter()
    pairs = set()
    for row in (*whole, *db.execute(here)):
        instances[row.calling_ae] += row.brought
        pairs.add((row.calling_ae, row.series_id))
    return Counter(name for name, _ in pairs), instances


def _newest_of(db: Connection, name: Any, at: Any) -> dict[str, float]:
    """Each name with its newest time: hops through the index instead of reading all of it."""
    newest_at: dict[str, float] = {}
    following = db.execute(select(func.min(name))).scalar()
    while following is not None:
        newest = db.execute(select(func.max(at)).where(name == following)).scalar()
        newest_at[following] = float(newest or 0.0)
        following = db.execute(select(func.min(name)).where(name > following)).scalar()
    return newest_at


def _rejected_since(db: Connection, today: float) -> dict[str, int]:
    query = (
        select(association.c.calling_ae, func.count())
        .where(REJECTED_ASSOCIATION, association.c.opened_at >= today)
        .group_by(association.c.calling_ae)
    )
    return {row[0]: int(row[1]) for row in db.execute(query)}


def _waiting(db: Connection) -> dict[str, dict[str, tuple[int, float]]]:
    """Count, by destination and open state, the deliveries; with the time of the oldest."""
    by = delivery.c.destination, delivery.c.state
    query = select(*by, func.count(), func.min(delivery.c.queued_at))
    query = query.where(OPEN_DELIVERY).group_by(*by)
    waits: dict[str, dict[str, tuple[int, float]]] = {}
    for name, state, count, oldest in db.execute(query):
        waits.setdefault(name, {})[state] = (int(count), float(oldest))
    return waits


def _ended(db: Connection, name: str, since: float) -> tuple[int, int]:
    """Count the deliveries that ended well there since then, and those that did not."""
    query = (
        select(delivery.c.state, func.count())
        .where(delivery.c.destination == name, delivery.c.finished_at >= since)
        .group_by(delivery.c.state)
    )
    counts = {row[0]: int(row[1]) for row in db.execute(query)}
    return sum(counts.get(state, 0) for state in WELL), counts.get(DeliveryState.HELD, 0)


def _destination(
    name: str,
    reach: Any,
    last_echo: Any,
    paused: Any,
    waits: dict[str, dict[str, tuple[int, float]]],
    ended: tuple[int, int],
) -> DestinationSummary:
    states = waits.get(name, {})
    oldest = [at for state, (_, at) in states.items() if state != DeliveryState.HELD]
    well, badly = ended
    return DestinationSummary(
        name=name,
        reach=reach,
        last_echo=last_echo,
        paused=paused,
        queued=states.get(DeliveryState.QUEUED, (0, 0.0))[0],
        running=states.get(DeliveryState.RUNNING, (0, 0.0))[0],
        held=states.get(DeliveryState.HELD, (0, 0.0))[0],
        oldest_at=min(oldest, default=None),
        delivered=well,
        failed=badly,
        success=well / (well + badly) if well + badly else None,
    )
