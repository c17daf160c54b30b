"""Peers as an administrator sees them: who sends, who was turned away, where results go."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, select

from storage import echoes, switches
from storage.database import Database
from storage.lines import DestinationLine, Page, Rejected, Sender
from storage.records import DeliveryState
from storage.schema import OPEN_ARRIVAL, OPEN_DELIVERY, arrival, arrival_instance, delivery
from storage.schema_site import REJECTED_ASSOCIATION, association, fact
from storage.site import SwitchName

DAY = 86_400.0
GUEST = "~SELFTEST-"  # how the calling AE titles of self-tests begin: they are nobody's
WELL = (DeliveryState.SENT, DeliveryState.CONFIRMED)
EXPECTED = "sender {}"  # the fact that says when the node first expected a sender to send
MOST_ADDRESSES = 5
LATE_ASSOCIATIONS = 200  # so many, the newest, say where a peer comes from


def senders(database: Database, today: float) -> tuple[Sender, ...]:
    """Every calling AE title that ever brought something or associates; `today` is midnight."""
    with database.reading() as db:
        last = _last_instances(db)
        seen = _last_associations(db)
        rejected = _rejected_since(db, today)
        opened = _open(db)
        series, instances = _today(db, today)
        names = {name for name in (*last, *seen) if name and not name.startswith(GUEST)}
        addresses = {name: _addresses(db, name) for name in names}
    found = [
        Sender(
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
    return tuple(sorted(found, key=lambda one: (-one.last_at, one.ae_title)))


def last_heard(database: Database, ae_titles: Sequence[str]) -> dict[str, float]:
    """When each of these peers brought its last instance; who never did is left out."""
    found = {}
    with database.reading() as db:
        for name in ae_titles:
            newest = select(func.max(arrival.c.last_at)).where(arrival.c.calling_ae == name)
            at = db.execute(newest).scalar()
            if at is not None:
                found[name] = float(at)
    return found


def quiet_since(database: Database, ae_titles: Sequence[str]) -> dict[str, float]:
    """Since when each of them brought nothing: its last instance, else when it was first expected.

    Who only asks, and is turned away, is as silent as who is switched off.
    """
    names = {EXPECTED.format(one): one for one in ae_titles}
    first = select(fact.c.name, fact.c.value).where(fact.c.name.in_(names))
    with database.reading() as db:
        found = {names[row.name]: float(row.value) for row in db.execute(first)}
    return found | last_heard(database, ae_titles)


def rejections(
    database: Database, since: float, limit: int = 50, offset: int = 0
) -> Page[Rejected]:
    """Who was turned away since then, alike ones together, the newest first."""
    alike = (
        association.c.calling_ae,
        association.c.called_ae,
        association.c.address,
        association.c.reason,
    )
    last = func.max(association.c.opened_at).label("last_at")
    query = (
        select(*alike, func.count(), func.min(association.c.opened_at), last)
        .where(REJECTED_ASSOCIATION, association.c.opened_at >= since)
        .group_by(*alike)
        .order_by(last.desc(), *alike)
    )
    with database.reading() as db:
        rows = db.execute(query).all()
    lines = tuple(Rejected(*row) for row in rows[offset : offset + limit])
    return Page(lines, len(rows), limit, offset)


def destinations(
    database: Database, now: float, names: Sequence[str], *, days: float = 7.0
) -> tuple[DestinationLine, ...]:
    """These destinations, and those that something waits for though nobody names them."""
    reaches = {one.destination: one for one in echoes.reaches(database)}
    paused = {one.subject: one for one in switches.all_on(database, SwitchName.PAUSED)}
    with database.reading() as db:
        waits = _waiting(db)
        every = list(dict.fromkeys((*names, *sorted(waits))))
        ended = {name: _ended(db, name, now - days * DAY) for name in every}
    last = echoes.last(database, every)
    return tuple(
        _destination(name, reaches.get(name), last.get(name), paused.get(name), waits, ended[name])
        for name in every
    )


def _addresses(db: Connection, name: str) -> tuple[str, ...]:
    """Where the peer came from of late, the newest first."""
    newest = (
        select(association.c.address)
        .where(association.c.calling_ae == name)
        .order_by(association.c.opened_at.desc())
        .limit(LATE_ASSOCIATIONS)
    )
    return tuple(dict.fromkeys(db.execute(newest).scalars()))[:MOST_ADDRESSES]


def _open(db: Connection) -> Counter[str]:
    open_ones = select(association.c.calling_ae).where(association.c.ended_at.is_(None))
    return Counter(db.execute(open_ones).scalars())


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


def _last_instances(db: Connection) -> dict[str, float]:
    return _newest_of(db, arrival.c.calling_ae, arrival.c.last_at)


def _last_associations(db: Connection) -> dict[str, float]:
    """When each peer asked for its last association, whatever the answer was."""
    return _newest_of(db, association.c.calling_ae, association.c.opened_at)


def _newest_of(db: Connection, name: Any, at: Any) -> dict[str, float]:
    """Each name with its newest time: hops through the index instead of reading all of it."""
    found: dict[str, float] = {}
    following = db.execute(select(func.min(name))).scalar()
    while following is not None:
        newest = db.execute(select(func.max(at)).where(name == following)).scalar()
        found[following] = float(newest or 0.0)
        following = db.execute(select(func.min(name)).where(name > following)).scalar()
    return found


def _rejected_since(db: Connection, today: float) -> dict[str, int]:
    query = (
        select(association.c.calling_ae, func.count())
        .where(REJECTED_ASSOCIATION, association.c.opened_at >= today)
        .group_by(association.c.calling_ae)
    )
    return {row[0]: int(row[1]) for row in db.execute(query)}


def _waiting(db: Connection) -> dict[str, dict[str, tuple[int, float]]]:
    """Of each destination, how many deliveries are in each open state, the oldest since when."""
    query = (
        select(
            delivery.c.destination,
            delivery.c.state,
            func.count(),
            func.min(delivery.c.queued_at),
        )
        .where(OPEN_DELIVERY)
        .group_by(delivery.c.destination, delivery.c.state)
    )
    found: dict[str, dict[str, tuple[int, float]]] = {}
    for name, state, count, oldest in db.execute(query):
        found.setdefault(name, {})[state] = (int(count), float(oldest))
    return found


def _ended(db: Connection, name: str, since: float) -> tuple[int, int]:
    """How many deliveries ended well there since then, and how many did not."""
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
) -> DestinationLine:
    states = waits.get(name, {})
    oldest = [at for state, (_, at) in states.items() if state != DeliveryState.HELD]
    well, badly = ended
    return DestinationLine(
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
