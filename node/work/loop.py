"""The worker loop: a thread that takes up one piece of work after the other until it is drained."""

import threading
import time
from collections.abc import Callable, Iterable

AT_ONCE = 0.0
IDLE_SECONDS = 0.5  # how soon new work is seen by a thread that waits
PAUSE_SECONDS = 5.0  # after something that will not be better at once


class WorkerLoop:
    """A thread that a bad piece of work never ends: that would stop the department.

    `work_next` claims one piece and does it; it returns the seconds to wait before the next.
    `log_failure` is called where it raises: the queue could not be read.
    """

    def __init__(
        self, name: str, work_next: Callable[[], float], log_failure: Callable[[], None]
    ) -> None:
        self.name = name
        self._work_next = work_next
        self._log_failure = log_failure
        self._draining = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def is_working(self) -> bool:
        """True while its thread is alive."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def drain(self) -> None:
        """Claim nothing further; what is under way goes on."""
        self._draining.set()

    def join(self, seconds: float) -> None:
        """Wait so long for the thread to end."""
        if self.is_working:
            self._thread.join(max(0.0, seconds))

    def _run(self) -> None:
        while not self._draining.is_set():
            try:
                seconds = self._work_next()
            except Exception:  # noqa: BLE001 - a database that is away for a while ends no thread
                self._log_failure()
                seconds = PAUSE_SECONDS
            self._draining.wait(seconds)


def wait_for(loops: Iterable[WorkerLoop], seconds: float) -> bool:
    """Wait so long for all of them; True where none works any more."""
    loops = tuple(loops)
    deadline = time.monotonic() + seconds
    for loop in loops:
        loop.join(deadline - time.monotonic())
    return not any(loop.is_working for loop in loops)
