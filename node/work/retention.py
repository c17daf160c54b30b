"""Deletes what may go: never what is arriving, queued, running, held or not yet sent."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from node.config import Storage
from storage import retention
from storage.database import Database
from storage.files import Files
from storage.retention import tell_what_waits

logger = logging.getLogger(__name__)


@dataclass
class Retention:
    """The sweep that keeps the disk from filling up."""

    database: Database
    files: Files
    settings: Storage
    now: Callable[[], float]

    def sweep(self) -> None:
        """Remove the files of expired series; their rows, UIDs and digests stay."""
        settings, now = self.settings, self.now()
        expired = retention.expired(
            self.database, now, settings.keep_days, settings.keep_unrouted_days
        )
        if expired:
            purged = retention.purge(self.database, self.files, expired, now)
            counts = {"series": len(purged.series), "failed": len(purged.failed)}
            logger.info("series purged", extra=counts | {"bytes": purged.bytes})
        waits = tell_what_waits(self.database, now, settings.keep_days)
        if waits is not None:
            logger.warning("notice", extra={"kind": "retention", **vars(waits)})
        retention.forget_associations(self.database, now)
