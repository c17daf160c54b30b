"""Watches what nobody looks at: senders that fall silent, a disk that fills up, what is held."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from node.config import Config
from node.rules import silence
from storage.database import Database
from storage.site import nodes, notices, peers
from storage.site.nodes import fact_or_set

logger = logging.getLogger(__name__)

SAMPLE_SECONDS = 900.0
GIGA = 1e9
FULL = "Only {free:.0f} GB are free, and {reserve:g} GB are the reserve: below it nothing is taken."
FILLS = (
    "{free:.0f} GB are free; as the disk fills now, the reserve of {reserve:g} GB is reached in "
    "{days:.1f} days. Make room, or keep less long: storage.keep_days."
)


@dataclass
class Watch:
    """The sweeps that look around; what they find is told once."""

    database: Database
    settings: Config
    node_id: str
    now: Callable[[], float]

    def attention(self) -> None:
        """Tell what has begun to need a person."""
        notices.tell_new(self.database, self.now())

    def senders(self) -> None:
        """Tell who is silent in the hours in which it is expected to send: once a silence."""
        settings, now = self.settings, self.now()
        if not settings.senders:
            return
        # Who never sent is measured from when somebody first looked.
        heard = peers.last_heard(self.database, [one.ae_title for one in settings.senders])
        for sender in settings.senders:
            name = sender.ae_title
            first = float(fact_or_set(self.database, peers.EXPECTED.format(name), repr(now)))
            last_at = heard.get(name, first)
            if not silence.is_silent(sender, last_at, now, settings.node.zone):
                continue
            facts = {"sender": name, "since": silence.heard(last_at, settings.node.zone)}
            key = f"silent {name} {last_at:.0f}"
            if notices.tell(self.database, now, "sender_silent", key, facts):
                logger.warning("sender silent", extra={"calling_ae": name})

    def disk(self) -> None:
        """Take a sample of the disk; tell where it will be full soon, once a day."""
        settings, now = self.settings, self.now()
        usage = shutil.disk_usage(settings.folder)
        nodes.record(self.database, now, self.node_id, usage.free, usage.total)
        sentence = self._low(usage.free, now)
        if not sentence:
            return
        day = datetime.fromtimestamp(now, settings.node.zone).date()
        key = f"disk {self.node_id} {day}"
        if notices.tell(self.database, now, "disk_low", key, {"sentence": sentence}):
            logger.warning("disk low", extra={"free": usage.free, "total": usage.total})

    def _low(self, free: int, now: float) -> str:
        """What is wrong with the disk; nothing where it lasts."""
        reserve = self.settings.storage.min_free_gb
        facts = {"free": free / GIGA, "reserve": reserve}
        if free < self.settings.storage.min_free_bytes:
            return FULL.format(**facts)
        taken = nodes.samples(self.database, self.node_id, now - nodes.FORECAST_DAYS * nodes.DAY)
        left = nodes.forecast(taken, self.settings.storage.min_free_bytes).days_left
        if left is None or left > self.settings.notify.disk_days:
            return ""
        return FILLS.format(**facts, days=left)
