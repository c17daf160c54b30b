"""Leases: one code to claim, renew and give up a row for a limited time, fenced by its attempt.

Jobs, deliveries, messages and requests are leased alike: `lease_until` is set for as long as one
attempt holds the row. A row whose holder has died (`left_behind`) is claimed again like one that
waits, by the module of its table: a job by `storage/jobs.py`, a delivery by `storage/ledger.py`. A
job ends after too many deaths (`die` of `storage/transitions.py`).
"""

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    TextClause,
    and_,
    false,
    or_,
    select,
    update,
)

from storage.database import Database
from storage.errors import LeaseLost

LeasedRow: TypeAlias = Row[*tuple[Any, ...]]
Taken = TypeVar("Taken")
Key = TypeVar("Key", bound=Hashable)

# The columns of a row that nobody holds.
IDLE: dict[str, object] = {"worker": None, "node": None, "lease_until": None}


@dataclass(frozen=True)
class Holder:
    """The process that holds rows: its node, its clocks, and how long it holds one unrenewed."""

    node: str
    now: Callable[[], float]
    seconds: float
    steady: Callable[[], float] = time.monotonic  # a clock that nobody sets


class Leased(Protocol):
    """A row as its holder has got it."""

    @property
    def id(self) -> int: ...

    @property
    def attempt(self) -> int: ...


class Liveness(Generic[Key]):
    """Signs of life, such as heartbeats and leases, and since when each was seen unchanged.

    The time in a row is that of the clock on the wall, which a time server or a person may set
    forward by an hour: by it every lease of a node that lives would have ended. So a holder counts
    as dead once its sign was seen unchanged for as long as it lasts, by a clock that nobody sets.
    """

    def __init__(self, steady: Callable[[], float], seconds: float) -> None:
        self._steady = steady
        self._seconds = seconds
        self._seen: dict[str, dict[Key, tuple[object, float]]] = {}
        self._lock = threading.Lock()

    def begin(self, key: Key, sign: object, of: str = "") -> None:
        """This process has just given the sign: its time begins now."""
        with self._lock:
            self._seen.setdefault(of, {})[key] = (sign, self._steady())

    def dead(self, signs: Mapping[Key, object], of: str = "") -> tuple[Key, ...]:
        """Those whose sign stands still; `signs` are all there are, or all of one part."""
        now = self._steady()
        with self._lock:
            before = self._seen.get(of, {})
            seen = {
                key: before[key] if key in before and before[key][0] == sign else (sign, now)
                for key, sign in signs.items()
            }
            self._seen[of] = seen
            return tuple(key for key, (_, since) in seen.items() if now - since > self._seconds)


class Leases:
    """The leases of one table, as one process gives, renews and sees them."""

    def __init__(self, database: Database, table: Table, holder: Holder) -> None:
        self._database = database
        self._table = table
        self._now = holder.now
        self._node = holder.node
        self._seconds = holder.seconds
        self._liveness: Liveness[int] = Liveness(holder.steady, holder.seconds)

    def claim(
        self,
        due: Callable[[Connection], Select[*tuple[Any, ...]]],
        take: Callable[[Connection, LeasedRow], Taken | None],
        *,
        in_turn: str = "",
    ) -> tuple[Taken, ...]:
        """The due rows, each as `take` has leased it, in one transaction.

        `take` answers None for a row that it leaves, or that it ends since its holder has died.
        Claims that have the same name for `in_turn` see what the one before has taken.
        """
        with self._database.reading() as db:  # workers ask all the time: who writes waits for none
            if db.execute(due(db)).first() is None:
                return ()
        with self._database.writing() as db:
            if in_turn:
                self._database.in_turn(db, in_turn)
            # PostgreSQL claims twice without the lock; SQLite ignores it: its writer is alone.
            rows = db.execute(due(db).with_for_update(skip_locked=True)).all()
            taken = [take(db, row) for row in rows]
        return tuple(leased for leased in taken if leased is not None)

    def take(
        self,
        db: Connection,
        row: LeasedRow,
        worker: str,
        values: Mapping[str, object] = MappingProxyType({}),
        *,
        of: str = "",
    ) -> None:
        """Lease a locked row to a worker of this node, with these columns."""
        attempt, until = row.attempt + 1, self._now() + self._seconds
        lease = {"worker": worker, "node": self._node, "lease_until": until, "attempt": attempt}
        self._update(db, row.id, **lease, **values)
        self._liveness.begin(row.id, (attempt, until), of)

    def left_behind(
        self, db: Connection, *part: ColumnElement[bool] | TextClause, of: str = ""
    ) -> ColumnElement[bool]:
        """The rows whose holder has died; for a query that locks what it finds.

        `part` are conditions that hold for all rows of one part of the table, named `of`.
        """
        columns = self._table.c
        query = select(columns.id, columns.attempt, columns.lease_until)
        rows = db.execute(query.where(*part, columns.lease_until.is_not(None))).all()
        leases = {row.id: (row.attempt, row.lease_until) for row in rows}
        dead = self._liveness.dead(leases, of)
        # Who renews it between this look and the lock has another time in its row by then.
        return or_(false(), *(self._is(row_id, *leases[row_id]) for row_id in dead))

    @contextmanager
    def holding(self, leased: Leased) -> Iterator[tuple[Connection, LeasedRow]]:
        """The transaction of a holder, with its row; LeaseLost where another attempt holds it."""
        mine = select(self._table).where(self._is_held_by(leased)).with_for_update()
        with self._database.writing() as db:
            row = db.execute(mine).one_or_none()
            if row is None:
                raise self._lost(leased)
            yield db, row

    def renew(self, leased: Leased, *columns: Column[Any], **values: object) -> LeasedRow:
        """Keep the lease; these columns of the row. LeaseLost where another attempt holds it."""
        renewal = update(self._table).where(self._is_held_by(leased))
        renewal = renewal.values(lease_until=self._now() + self._seconds, **values)
        with self._database.writing() as db:
            row = db.execute(renewal.returning(self._table.c.id, *columns)).one_or_none()
        if row is None:
            raise self._lost(leased)
        return row

    def give_up(self, leased: Leased, **values: object) -> None:
        """Hold the row no more, and leave it like this."""
        with self.holding(leased) as (db, _):
            self._update(db, leased.id, **IDLE, **values)

    def left_by(self, node: str = "") -> ColumnElement[bool]:
        """The rows that a dead node has left leased; at start, a dead process of this one."""
        holder = self._table.c.node == (node or self._node)
        return and_(holder, self._table.c.lease_until.is_not(None))

    def _update(self, db: Connection, row_id: int, **values: object) -> None:
        db.execute(update(self._table).where(self._table.c.id == row_id).values(**values))

    def _is_held_by(self, leased: Leased) -> ColumnElement[bool]:
        # A holder whose lease was taken over still has the old attempt: its write matches no row.
        columns = self._table.c
        return and_(
            columns.id == leased.id,
            columns.attempt == leased.attempt,
            columns.lease_until.is_not(None),
        )

    def _is(self, row_id: int, attempt: int, lease_until: float) -> ColumnElement[bool]:
        columns = self._table.c
        return and_(
            columns.id == row_id, columns.attempt == attempt, columns.lease_until == lease_until
        )

    def _lost(self, leased: Leased) -> LeaseLost:
        return LeaseLost(f"{self._table.name} {leased.id}, attempt {leased.attempt}")
