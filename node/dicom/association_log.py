"""The log of associations, written behind them: no peer waits for the database to be let in.

A disk that is full or read-only, and a database that is busy, take no image; whether the node is
there must still be answered (C-ECHO). So an association begins and ends without a write. A thread
writes both down in their order, again and again until they are written; only an instance, which
needs the database itself, waits for the row of its association.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from storage.errors import Busy, StorageError

logger = logging.getLogger(__name__)

RETRY_SECONDS = 0.5
ROW_SECONDS = 5.0  # that an instance waits for the row of its association
LAST_SECONDS = 2.0  # for what waits when the node stops; the next start ends it as lost
MOST_WAITING = 10_000  # entries; then no further one is kept


class AssociationLog(Protocol):
    """The log of associations."""

    def associated(self, calling_ae: str, called_ae: str, address: str, at: float) -> int:
        """Note an association that was accepted; returns the number that ends it."""

    def dissociated(self, association_id: int, how: str, at: float) -> None:
        """Note how it ended: released, aborted or dropped."""

    def rejected(
        self, calling_ae: str, called_ae: str, address: str, reason: str, at: float
    ) -> None:
        """Note an association that was rejected."""


@dataclass
class Entry:
    """An association in the log; its number is known once it is written."""

    calling_ae: str
    called_ae: str
    address: str
    at: float
    number: int | None = None


class AssociationWriter:
    """Writes the log of associations in a thread of its own."""

    def __init__(self, log: AssociationLog, now: Callable[[], float] = time.time) -> None:
        self._log = log
        self._now = now
        self._waiting: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._is_late = False  # said in the log when it begins
        self._thread = threading.Thread(target=self._run, daemon=True, name="association-log")

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def opened(self, calling_ae: str, called_ae: str, address: str) -> Entry:
        """Note an association that was accepted."""
        entry = Entry(calling_ae, called_ae, address, self._now())
        self._put(partial(self._write_opened, entry))
        return entry

    def ended(self, entry: Entry, how: str) -> None:
        """Note how it ended."""
        self._put(partial(self._write_ended, entry, how, self._now()))

    def rejected(self, calling_ae: str, called_ae: str, address: str, reason: str) -> None:
        """Note one that was not accepted."""
        names = (calling_ae, called_ae, address)
        self._put(partial(self._log.rejected, *names, reason, self._now()))

    def number(self, entry: Entry) -> int:
        """The number of an association, waited for; Busy where it cannot be written."""
        with self._changed:
            if not self._changed.wait_for(lambda: entry.number is not None, ROW_SECONDS):
                raise Busy("the association could not be written down in time")
        assert entry.number is not None
        return entry.number

    def flush(self, seconds: float) -> bool:
        """True as soon as all is written, False after so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, seconds)

    def close(self) -> None:
        """Write what can be written soon, then end."""
        if not self._thread.is_alive():
            return
        self.flush(LAST_SECONDS)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _put(self, write: Callable[[], None]) -> None:
        with self._changed:
            if len(self._waiting) < MOST_WAITING:
                self._waiting.append(write)
                self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    return
                write = self._waiting[0]
            if not self._written(write):
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, RETRY_SECONDS)
                continue
            with self._changed:
                self._waiting.popleft()
                self._changed.notify_all()

    def _written(self, write: Callable[[], None]) -> bool:
        """False where it is to be tried again."""
        try:
            write()
        except (StorageError, OSError) as error:
            if not self._is_late:
                extra = {"reason": type(error).__name__}
                logger.warning("associations not written yet", extra=extra)
            self._is_late = True
            return False
        except Exception:
            logger.exception("association not written")  # the next ones are, all the same
        self._is_late = False
        return True

    def _write_opened(self, entry: Entry) -> None:
        names = (entry.calling_ae, entry.called_ae, entry.address)
        entry.number = self._log.associated(*names, entry.at)

    def _write_ended(self, entry: Entry, how: str, at: float) -> None:
        if entry.number is not None:  # the log was too full for its begin
            self._log.dissociated(entry.number, how, at)
