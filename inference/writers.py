"""Threads that write results and read them again while the model predicts the next ones.

What takes their time (files, the disk, arrays) leaves the interpreter to others, and a model that
waits for nobody uses the cores that are left.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

THREADS = 2
MOST_WAITING = 8  # pieces of work, each with a slice or two in memory
# They wait for the disk alone: together, so that one commit of its journal serves several files.
SYNC_THREADS, MOST_UNSYNCED = 8, 64


class Writers:
    """Does what it is handed, in any order; whoever hands over too much waits.

    The first error is raised where the next piece is handed over, or at the end. An error of the
    block that it is used in ends what waits; when the block is left, no thread writes any more.
    """

    def __init__(self, threads: int = THREADS, most_waiting: int = MOST_WAITING) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="writer")
        self._room = threading.Semaphore(threads + most_waiting)
        self._sync_pool = ThreadPoolExecutor(SYNC_THREADS, thread_name_prefix="sync")
        self._unsynced = threading.Semaphore(MOST_UNSYNCED)
        self._errors: list[BaseException] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=error is not None)
        if error is not None:
            self._errors.append(error)
        self._sync_pool.shutdown(wait=True)
        if error is None:
            self._raise()

    def hand_over(self, work: Callable[[], None]) -> None:
        """Have a piece of work done; waits where too many wait already."""
        self._room.acquire()
        self._raise()
        self._pool.submit(self._do, work)

    def bring_to_disk(self, descriptor: int) -> None:
        """Have an open file fsynced and closed before the block is left; waits for a slow disk."""
        self._unsynced.acquire()
        self._sync_pool.submit(self._sync, descriptor)

    def _sync(self, descriptor: int) -> None:
        try:
            if not self._errors:
                os.fsync(descriptor)
        except OSError as error:
            self._errors.append(error)
        finally:
            os.close(descriptor)
            self._unsynced.release()

    def _do(self, work: Callable[[], None]) -> None:
        try:
            if not self._errors:
                work()
        except BaseException as error:  # noqa: BLE001 - raised where the next piece is handed over
            self._errors.append(error)
        finally:
            self._room.release()

    def _raise(self) -> None:
        if self._errors:
            raise self._errors[0]
