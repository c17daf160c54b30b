"""Whether destinations answer: asked by C-ECHO every so often, and found out by each delivery."""

import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from node.config import Delivery as DeliverySettings
from node.config import Destination
from node.dicom import scu
from node.rules import backoff
from storage.database import Database
from storage.records import Reach
from storage.site import peers

logger = logging.getLogger(__name__)


@dataclass
class Reachability:
    """What is known of each destination; a delivery asks it before it begins."""

    database: Database
    now: Callable[[], float]
    ae_title: str
    settings: DeliverySettings
    destinations: Sequence[Destination] = ()
    _busy: dict[str, threading.Thread] = field(default_factory=dict)
    _jitter: random.Random = field(default_factory=random.Random)

    def may_send(self, destination: str) -> bool:
        """Nobody has paused it, and it was not unreachable just now."""
        longest = 2 * self.settings.retry_seconds[1]
        return peers.may_send(self.database, self.now(), destination, longest)

    def answered(self, destination: str) -> None:
        """It has answered a delivery."""
        known = self._known().get(destination)
        if known is None or not known.up or known.failures or known.open_until:
            self._tell(peers.answered(self.database, self.now(), destination), known)

    def unreachable(self, destination: str, sentence: str) -> None:
        """It gave no association: the others that wait need not find that out one by one."""
        known = self._known().get(destination)
        failures = known.failures if known is not None else 0
        wait = backoff.delay(failures, *self.settings.retry_seconds, self._jitter)
        until = self.now() + wait
        found = peers.unreachable(
            self.database, self.now(), destination, sentence, open_until=until
        )
        self._tell(found, known)

    def echo(self, destination: Destination) -> scu.Echo:
        """Ask it now; what it says is written down."""
        known = self._known().get(destination.name)
        answer = scu.echo(address(destination, self.ae_title))
        found = peers.record(
            self.database,
            self.now(),
            destination.name,
            ok=answer.ok,
            seconds=answer.seconds,
            sentence="" if answer.ok else answer.sentence,
        )
        self._tell(found, known)
        return answer

    def sweep(self) -> None:
        """Ask those whose time it is; each in a thread of its own, for one that hangs."""
        if not self.settings.echo_minutes:
            return
        last = peers.last_echoes(self.database, [one.name for one in self.destinations])
        every = self.settings.echo_minutes * 60
        for destination in self.destinations:
            asked = last.get(destination.name)
            due = asked is None or not 0 <= self.now() - asked.at < every
            running = self._busy.get(destination.name)
            if due and (running is None or not running.is_alive()):
                thread = threading.Thread(
                    target=self._echo_quietly, args=(destination,), daemon=True, name="echo"
                )
                self._busy[destination.name] = thread
                thread.start()

    def _echo_quietly(self, destination: Destination) -> None:
        try:
            self.echo(destination)
        except Exception:
            logger.exception("sweep failed", extra={"sweep": "echo"})

    def _known(self) -> Mapping[str, Reach]:
        return {one.destination: one for one in peers.reachability(self.database)}

    def _tell(self, found: Reach, before: Reach | None) -> None:
        if found.up and before is not None and not before.up:
            logger.info("destination up", extra={"destination": found.destination})
        elif not found.up and (before is None or before.up):
            logger.warning("destination down", extra={"destination": found.destination})


def address(destination: Destination, ae_title: str) -> scu.PeerAddress:
    """Where a destination is, and what the node calls itself towards it."""
    return scu.PeerAddress(
        ae_title=destination.ae_title,
        host=destination.host,
        port=destination.port,
        calling_ae_title=destination.calling_ae_title or ae_title,
    )
