"""The clock: what happens every so often. APScheduler calls; the queue is in the database."""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from apscheduler.schedulers.background import BackgroundScheduler

logger = logging.getLogger(__name__)

JUMP_SECONDS = 2.0


class Schedule:
    """Periodic passes, each in its own thread and never twice at once."""

    def __init__(self) -> None:
        self._offset = _offset()
        self._scheduler = BackgroundScheduler(
            timezone="UTC",
            job_defaults={"max_instances": 1, "coalesce": True, "misfire_grace_time": None},
        )

    def every(self, seconds: float, name: str, sweep: Callable[[], None]) -> None:
        """Call `sweep` every `seconds`, and once at the start."""
        first = datetime.now(UTC)  # of its own, an interval begins with a pause
        self._scheduler.add_job(
            _guarded(sweep, name), "interval", seconds=seconds, id=name, next_run_time=first
        )

    def start(self) -> None:
        """Begin."""
        self._offset = _offset()
        self._scheduler.start()

    def mind_the_clock(self) -> None:
        """Where somebody set the clock, run every pass now: the next one may lie an hour away."""
        offset = _offset()
        if abs(offset - self._offset) < JUMP_SECONDS:
            return
        logger.warning("clock was set", extra={"seconds": round(offset - self._offset, 1)})
        self._offset = offset
        for job in self._scheduler.get_jobs():
            job.modify(next_run_time=datetime.now(UTC))

    def stop(self) -> None:
        """End after the passes that run now."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)


def _offset() -> float:
    """Between the clock on the wall and the one that nobody sets, in seconds."""
    return time.time() - time.monotonic()


def _guarded(sweep: Callable[[], None], name: str) -> Callable[[], None]:
    def run() -> None:
        try:
            sweep()
        except Exception:
            logger.exception("sweep failed", extra={"sweep": name})

    return run
