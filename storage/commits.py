"""Group commit: callers that wait at the same time share one transaction, and one fsync."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Generic, TypeVar

from sqlalchemy import Connection

from storage.database import Database
from storage.errors import Busy, StorageError
from storage.files import sync

Result = TypeVar("Result")

# So many share a transaction at most: none waits long for the others of its group.
LARGEST_GROUP = 64


@dataclass
class Group:
    """What the members of one group share: the transaction, and the folders to fsync before it."""

    db: Connection
    folders: set[Path] = field(default_factory=set)


class _Told(Enum):
    """What a member that waits is woken for."""

    LEAD = "the leader before is done: commit for all who wait"
    DONE = "your work is on disk"
    ALONE = "somebody's work spoiled the group's transaction: each for itself"
    BUSY = "the database did not take the transaction in time"


class _Member(Generic[Result]):
    """One caller's work and, once it was told so, its result."""

    def __init__(self, work: Callable[[Group], Result], order: str) -> None:
        self._work = work
        self.order = order
        self.told = _Told.LEAD
        self.wake = threading.Event()
        self.results: list[Result] = []

    def join(self, group: Group) -> None:
        self.results = [self._work(group)]

    def tell(self, what: _Told) -> None:
        self.told = what
        self.wake.set()


class GroupCommit:
    """The first caller leads: it commits for all who came meanwhile, then the next one leads.

    Work may run twice, in its group and then alone: it must not mind.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._guard = threading.Lock()
        self._waiting: list[_Member[object]] = []
        self._has_leader = False

    def run(self, work: Callable[[Group], Result], order: str = "") -> Result:
        """Do `work` in a transaction, which is on disk when this returns.

        `order` is the same in all processes for rows that two of them lock, so that none waits
        for the other in a circle.
        """
        member = _Member(work, order)
        with self._guard:
            self._waiting.append(member)  # type: ignore[arg-type]  # a result goes to its caller only
            leads, self._has_leader = not self._has_leader, True
        if not leads:
            member.wake.wait()  # ends: the transactions of those before have time limits
        if member.told is _Told.LEAD:
            self._lead()
        if member.told is _Told.ALONE:
            self._transact([member])  # type: ignore[list-item]
        if member.told is _Told.BUSY:
            raise Busy("the database did not take the write in time")
        return member.results[0]

    def _lead(self) -> None:
        """Commit for all who wait; tell each of them, and one of the next to lead."""
        with self._guard:
            group = self._waiting[:LARGEST_GROUP]
            self._waiting = self._waiting[LARGEST_GROUP:]
        told = _Told.ALONE
        try:
            self._transact(group)
            told = _Told.DONE
        except Busy:
            told = _Told.BUSY
        except (StorageError, OSError, ValueError):
            if len(group) == 1:
                raise
        finally:
            for member in group:
                member.tell(told)
            with self._guard:
                self._has_leader = bool(self._waiting)
                following = self._waiting[:1]
            for member in following:
                member.tell(_Told.LEAD)

    def _transact(self, members: list[_Member[object]]) -> None:
        with self._database.writing() as db:
            group = Group(db)
            for member in sorted(members, key=lambda one: one.order):
                member.join(group)
            for folder in group.folders:
                sync(folder)
