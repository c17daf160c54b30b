"""Which leases nobody renews any more, by a clock that nobody sets.

The time in a row is that of the clock on the wall, which a time server or a person may set forward
by an hour: by it every lease of a node that lives would have ended. So a lease counts as left
behind once it has been seen unchanged for as long as it lasts, measured by a monotonic clock.
"""

import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from sqlalchemy import Column, ColumnElement, Row, Table, and_, false, or_

Lease: TypeAlias = tuple[int, float]  # the attempt, and until when it is leased
COLUMNS = ("id", "attempt", "lease_until")


class Leases:
    """What one process has seen of the leases in a table, and since when."""

    def __init__(self, table: Table, steady: Callable[[], float], seconds: float) -> None:
        self._table = table
        self._steady = steady
        self._seconds = seconds
        self._seen: dict[str, dict[int, tuple[Lease, float]]] = {}
        self._lock = threading.Lock()

    @property
    def columns(self) -> tuple[Column[Any], ...]:
        """What a look at the leases must read."""
        return tuple(self._table.c[name] for name in COLUMNS)

    def given(self, row_id: int, attempt: int, lease_until: float, of: str = "") -> None:
        """This process has just given a lease: its time begins now."""
        with self._lock:
            lease = ((attempt, lease_until), self._steady())
            self._seen.setdefault(of, {})[row_id] = lease

    def left_behind(
        self, rows: Iterable[Row[*tuple[Any, ...]]], of: str = ""
    ) -> ColumnElement[bool]:
        """Of all that is leased now, what nobody renews; for a query that locks what it finds.

        `rows` are all leases of the table, or all of one part of it.
        """
        now = self._steady()
        found = {row.id: (row.attempt, row.lease_until) for row in rows}
        with self._lock:
            before = self._seen.get(of, {})
            seen = {
                row_id: before[row_id]
                if row_id in before and before[row_id][0] == lease
                else (lease, now)
                for row_id, lease in found.items()
            }
            self._seen[of] = seen
            dead = [key for key, (_, since) in seen.items() if now - since > self._seconds]
        # Who renews it between this look and the lock has another time in its row by then.
        return or_(false(), *(self._is(row_id, *found[row_id]) for row_id in dead))

    def _is(self, row_id: int, attempt: int, lease_until: float) -> ColumnElement[bool]:
        columns = self._table.c
        return and_(
            columns.id == row_id, columns.attempt == attempt, columns.lease_until == lease_until
        )
