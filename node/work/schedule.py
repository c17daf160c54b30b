"""The clock: what happens every so often. APScheduler calls; the queue is in the database."""

import logging
from collections.abc import Callable

from apscheduler.schedulers.background import BackgroundScheduler

logger = logging.getLogger(__name__)


class Schedule:
    """Periodic passes, each in its own thread and never twice at once."""

    def __init__(self) -> None:
        self._scheduler = BackgroundScheduler(
            timezone="UTC",
            job_defaults={"max_instances": 1, "coalesce": True, "misfire_grace_time": None},
        )

    def every(self, seconds: float, name: str, sweep: Callable[[], None]) -> None:
        """Call `sweep` every `seconds`, and once at the start."""
        self._scheduler.add_job(_guarded(sweep, name), "interval", seconds=seconds, id=name)

    def start(self) -> None:
        """Begin."""
        self._scheduler.start()

    def stop(self) -> None:
        """End after the passes that run now."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)


def _guarded(sweep: Callable[[], None], name: str) -> Callable[[], None]:
    def run() -> None:
        try:
            sweep()
        except Exception:
            logger.exception("sweep failed", extra={"sweep": name})

    return run
