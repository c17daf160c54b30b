"""The nodes on one storage: signs of life, what the first of them does for all, lost nodes.

Each writes its heartbeat by the time of the database. What one of them alone is to do, such as
retention, the first by name of those that live does. A node that gives no sign of life for
`node.lost_seconds` is lost: another one takes over what it had leased, and what lies in its folder
of `incoming`. Should it live all the same, its attempts are fenced (`storage/leases.py`).
"""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from inference.release import RELEASE
from node.config import Config
from node.dicom.handlers import identify_file
from node.errors import ConfigError
from node.store import Store
from node.work.sweeps import RequestHandlers
from storage import files, recovery
from storage.errors import StorageError
from storage.records import NodeState
from storage.site import notices, selftests
from storage.site.nodes import SERVING, of_web_process

logger = logging.getLogger(__name__)

MOST_BEAT_SECONDS = 5.0
BEATS = 4  # within lost_seconds, at least
LOST = (
    "The node {node} gave no sign of life for {seconds:.0f} s. {by} has taken over its jobs and "
    "deliveries; what it was receiving was not acknowledged, and its peers send it again. Look "
    "after its machine."
)


def check_release(store: Store) -> None:
    """Raise ConfigError where nodes of another release are at work on this storage."""
    for other in store.nodes.others(store.node_id, store.config.node.lost_seconds):
        if other.version not in ("", RELEASE):
            problem = (
                f"the node {other.id} on this storage runs release {other.version}, this is "
                f"{RELEASE}: stop every node, then start one release on all of them"
            )
            raise ConfigError(f"{store.config.path.name}: {problem}")


@dataclass
class Cluster:
    """This node among those on its storage."""

    store: Store
    settings: Config
    handlers: RequestHandlers
    recover_commitment: Callable[[str], None]
    lacking: Callable[[], str]  # why jobs of this node wait for a worker
    state: str = SERVING
    steady: Callable[[], float] = time.monotonic
    _beaten_at: float = field(default=0.0, init=False)
    _since: float = field(default=0.0, init=False)  # the heartbeats of this node have no gap
    _leads: bool = field(default=True, init=False)

    @property
    def beat_seconds(self) -> float:
        """The time between two heartbeats."""
        return min(MOST_BEAT_SECONDS, self.settings.node.lost_seconds / BEATS)

    def leading(self, sweep: Callable[[], None]) -> Callable[[], None]:
        """A pass that one node does for all of them."""

        def swept() -> None:
            if self._leads:
                sweep()

        return swept

    def beat(self) -> None:
        """Give a sign of life, and see who else lives."""
        store, seconds = self.store, self.settings.node.lost_seconds
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
        store.nodes.beat(store.node_id, self.state, round(load, 2), self.lacking())
        if self._has_gap():
            self._since = self.steady()
        self._beaten_at = self.steady()
        living = (store.node_id, *(it.id for it in store.nodes.others(store.node_id, seconds)))
        self._leads = min(living) == store.node_id

    def take_over(self) -> None:
        """Take over from nodes that are lost; one of those that live does it."""
        seconds = self.settings.node.lost_seconds
        store = self.store
        if store.database.is_sqlite or self._has_gap() or self.steady() - self._since < seconds:
            return
        before = store.now() - seconds
        if not store.nodes.silent(before):
            return
        with store.database.alone("take over") as is_ours:
            for silent in store.nodes.silent(before) if is_ours else ():
                if silent.id != store.node_id:
                    self._take_over(silent)

    def _has_gap(self) -> bool:
        """True where this node has given no sign of life for a while: it must judge nobody.

        Perhaps no node could reach the database, or the machines of all stood still, and each gives
        its next sign of life now.
        """
        return self.steady() - self._beaten_at > 2 * self.beat_seconds + 1

    def _take_over(self, silent: NodeState) -> None:
        """Queue again what it had; a node that dies meanwhile leaves the rest to the next one."""
        store, name = self.store, silent.id
        for receiver in (name, of_web_process(name)):
            store.archive.lose_associations(receiver)
        jobs = store.queue.recover(name)
        deliveries = store.ledger.recover(name)
        self.recover_commitment(name)
        self.handlers.requests.recover(name)
        selftests.interrupted(store.database, store.now(), name)
        for kind in (files.UPLOADS, files.MADE):
            files.sweep_scratch(store.files, kind, name)
        title = self.settings.node.ae_title
        recovered = recovery.take_over(store.archive, identify_file, name, called_ae=title)
        if not store.nodes.lose(silent):
            return
        away = store.now() - silent.heartbeat
        self._tell(silent, away)
        extra = {"node": name, "seconds": round(away, 1), "files": len(recovered.indexed)}
        logger.error("node lost", extra=extra | {"jobs": len(jobs), "deliveries": deliveries})

    def _tell(self, silent: NodeState, away: float) -> None:
        sentence = LOST.format(node=silent.id, seconds=away, by=self.store.node_id)
        database, now = self.store.database, self.store.now()
        key = f"node lost {silent.id} {silent.heartbeat:.0f}"
        try:
            with database.writing() as db:
                notices.post(database, db, now, "attention", key, {"sentence": sentence})
        except StorageError:
            logger.exception("sweep failed", extra={"sweep": "lost nodes"})
