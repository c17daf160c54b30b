"""The nodes that work on this storage, their disks, and facts that must never change."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import linear_regression

from sqlalchemy import and_, delete, func, select, update

from storage.database import Database, to_records
from storage.errors import NotFound, SecretMismatch, StorageError
from storage.records import DAY, DeliveryState, JobState, NodeState, NodeWork
from storage.schema import (
    OPEN_DELIVERY,
    OPEN_JOB,
    association,
    delivery,
    disk,
    fact,
    job,
    node,
)

SERVING = "serving"
STOPPING = "stopping"
STOPPED = "stopped"
LOST = "lost"  # it gave no sign of life; others have taken over its work
STATES = (SERVING, STOPPING, STOPPED)
AT_WORK = (SERVING, STOPPING)

SECRET = "secret"  # noqa: S105 - the name of the fact that holds its fingerprint


WEB = "/web"
ID_LENGTH = 64


def of_web_process(node_id: str) -> str:
    """The name by which the web process of a node receives."""
    return f"{node_id}{WEB}"[:ID_LENGTH]


class Nodes:
    """One row a node; its heartbeat says that it lives."""

    def __init__(self, database: Database, now: Callable[[], float]) -> None:
        self._database = database
        self._now = now

    def start(self, node_id: str, version: str = "", address: str = "") -> float:
        """Begin to serve; the time since which files must be looked at (`recovery.recover`)."""
        now = self._now()
        alive: dict[str, object] = {"started_at": now, "heartbeat": now, "state": SERVING}
        alive |= {"version": version, "address": address, "lacks": "", "lacking_since": None}
        with self._database.writing() as db:
            clean = select(node.c.clean_at).where(node.c.id == node_id)
            since = db.execute(clean).scalar_one_or_none()
            row = self._database.insert(node).values(id=node_id, **alive)
            db.execute(row.on_conflict_do_update(index_elements=["id"], set_=alive))
        return since or 0.0

    def recovered(self, node_id: str) -> None:
        """Note that all files up to the start of this node have their rows."""
        with self._database.writing() as db:
            mine = update(node).where(node.c.id == node_id)
            db.execute(mine.values(clean_at=node.c.started_at))

    def beat(self, node_id: str, state: str = SERVING, load: float = 0.0, lacks: str = "") -> None:
        """Note that the node lives, and its state; `stopped`: nothing is left half done.

        `lacks` says why its jobs wait for a worker.
        """
        if state not in STATES:
            raise StorageError(f"node state {state!r}; allowed: {', '.join(STATES)}")
        now = self._now()
        since = func.coalesce(node.c.lacking_since, now) if lacks else None
        values: dict[str, object] = {"heartbeat": now, "state": state, "load": load}
        values |= {"lacks": lacks, "lacking_since": since}
        if state == STOPPED:
            values["clean_at"] = now
        with self._database.writing() as db:
            changed = db.execute(update(node).where(node.c.id == node_id).values(**values)).rowcount
        if not changed:
            raise NotFound(f"no node {node_id}")

    def get(self) -> tuple[NodeState, ...]:
        """All nodes that ever worked on this storage."""
        return self._database.records(NodeState, select(node).order_by(node.c.id))

    def others(self, node_id: str, seconds: float) -> tuple[NodeState, ...]:
        """The other nodes that are at work, and gave a sign of life in the last seconds.

        On SQLite one node alone works: another one's row is that of the same under a former name.
        """
        if self._database.is_sqlite:
            return ()
        since = self._now() - seconds
        return tuple(
            other
            for other in self.get()
            if other.id != node_id and other.state in AT_WORK and other.heartbeat >= since
        )

    def silent(self, before: float) -> tuple[NodeState, ...]:
        """The nodes that are to be at work, and gave no sign of life since then."""
        query = select(node).where(node.c.state.in_(AT_WORK), node.c.heartbeat < before)
        return self._database.records(NodeState, query.order_by(node.c.id))

    def lose(self, silent: NodeState) -> bool:
        """Note that others have its work; False where it has given a sign of life meanwhile."""
        same = and_(node.c.id == silent.id, node.c.heartbeat == silent.heartbeat)
        with self._database.writing() as db:
            return bool(db.execute(update(node).where(same).values(state=LOST)).rowcount)

    def work(self) -> dict[str, NodeWork]:
        """Count, for each node, what it has under way."""
        still_open = association.c.ended_at.is_(None)
        running = and_(OPEN_JOB, job.c.state == JobState.RUNNING)
        sending = and_(OPEN_DELIVERY, delivery.c.state == DeliveryState.RUNNING)
        work: dict[str, NodeWork] = {}
        with self._database.reading() as db:
            for what, table, which in (
                ("associations", association, still_open),
                ("jobs", job, running),
                ("deliveries", delivery, sending),
            ):
                query = select(table.c.node, func.count()).where(which).group_by(table.c.node)
                for name, count in db.execute(query):
                    node_id = str(name).removesuffix(WEB)
                    known = work.get(node_id, NodeWork())
                    total = int(count) + getattr(known, what)
                    work[node_id] = replace(known, **{what: total})
        return work

    def fact(self, name: str, value: str) -> None:
        """Set a fact once; another value later is refused."""
        known = fact_or_set(self._database, name, value)
        if known == value:
            return
        if name == SECRET:
            raise SecretMismatch(
                "the secret is not the one that this database was made with: derived UIDs would "
                "differ from those already sent; restore the secret from the site's backup"
            )
        raise StorageError(f"{name} is {known!r} in this database and cannot become {value!r}")


def fact_or_set(database: Database, name: str, value: str) -> str:
    """A fact as it was set first: now, where nobody has set it yet."""
    query = select(fact.c.value).where(fact.c.name == name)
    with database.reading() as db:
        known = db.execute(query).scalar_one_or_none()
    if known is not None:
        return str(known)
    with database.writing() as db:
        row = database.insert(fact).values(name=name, value=value)
        db.execute(row.on_conflict_do_nothing())
        return str(db.execute(query).scalar_one())


FORECAST_DAYS = 7.0  # so far back a forecast looks
LEAST_HOURS = 6.0  # from less nobody can say anything
MOST_SAMPLES = 2000


@dataclass(frozen=True)
class DiskSample:
    """The disk at one moment, in bytes."""

    at: float
    free: int
    total: int


@dataclass(frozen=True)
class Forecast:
    """The time until only the reserve is left; None: it does not fill, or nobody can say yet."""

    days_left: float | None
    bytes_per_day: float | None  # negative: it empties


def record(database: Database, now: float, node: str, free: int, total: int) -> None:
    with database.writing() as db:
        db.execute(disk.insert().values(node=node, at=now, free=free, total=total))


def samples(database: Database, node: str, since: float) -> tuple[DiskSample, ...]:
    """The samples of a disk, the oldest first."""
    query = select(disk.c.at, disk.c.free, disk.c.total).where(disk.c.at >= since)
    newest = query.where(disk.c.node == node).order_by(disk.c.at.desc()).limit(MOST_SAMPLES)
    with database.reading() as db:
        return to_records(DiskSample, reversed(db.execute(newest).all()))


def forecast(taken: Sequence[DiskSample], reserve: int) -> Forecast:
    """Extend the straight line through the samples; `reserve` is `storage.min_free_gb` in bytes."""
    if len(taken) < 2 or taken[-1].at - taken[0].at < LEAST_HOURS * 3600:
        return Forecast(None, None)
    days = [(sample.at - taken[0].at) / DAY for sample in taken]
    slope, _ = linear_regression(days, [float(sample.free) for sample in taken])
    left = taken[-1].free - reserve
    if left <= 0:
        return Forecast(0.0, -slope)
    return Forecast(left / -slope if slope < 0 else None, -slope)


def forget(database: Database, before: float) -> None:
    with database.writing() as db:
        db.execute(delete(disk).where(disk.c.at < before))
