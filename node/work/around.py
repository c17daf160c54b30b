"""What a node does besides its work: looks around, tells people, and does what they ask for."""

import time
from collections.abc import Callable

from node.config import Config
from node.work.errands import Errands
from node.work.notify import Notifier
from node.work.reach import Reachability
from node.work.schedule import Schedule
from node.work.selftest import SelfTests
from node.work.watch import SAMPLE_SECONDS, Watch
from storage.database import Database
from storage.site import audit, control, nodes, notices, peers, people, selftests

SECOND, MINUTE, HOUR, DAY = 1.0, 60.0, 3600.0, 86_400.0
NOTICE_SECONDS = 2.0
# How long it is kept what was found and told; audit events by storage.keep_audit_days.
NOTICE_DAYS, ECHO_DAYS, WISH_DAYS, SELFTEST_DAYS, DISK_DAYS = 90.0, 30.0, 30.0, 400.0, 400.0


class Around:
    """The parts of it, with their sweeps."""

    def __init__(
        self,
        database: Database,
        settings: Config,
        node_id: str,
        *,
        reach: Reachability,
        tests: SelfTests,
        process_now: Callable[[str, str], str],
        ask_reload: Callable[[], None],
    ) -> None:
        self._database = database
        self._node_id = node_id
        self._keep_audit_days = settings.storage.keep_audit_days
        self._reach = reach
        self._tests = tests
        self._watch = Watch(database, settings, node_id, time.time)
        self._notifier = Notifier(database, settings.node.ae_title, settings.notify, time.time)
        self._errands = Errands(
            database,
            node_id,
            time.time,
            reach=reach,
            tests=tests,
            notifier=self._notifier,
            process_now=process_now,
            ask_reload=ask_reload,
        )
        self.follow(settings)

    def begin(self, schedule: Schedule) -> None:
        """Say what a dead process left undone, and begin to look around."""
        now = time.time()
        control.interrupted(self._database, now, self._node_id)
        self._tests.tidy()
        schedule.every(SECOND, "wishes", self._errands.sweep)
        schedule.every(NOTICE_SECONDS, "notices", self._tell)
        schedule.every(MINUTE / 6, "echoes", self._reach.sweep)
        schedule.every(MINUTE, "senders", self._watch.senders)
        schedule.every(MINUTE, "self-test", self._tests.sweep)
        schedule.every(SAMPLE_SECONDS, "disk", self._watch.disk)
        schedule.every(HOUR, "forgetting", self._forget)

    def follow(self, settings: Config) -> None:
        """The configuration was read again."""
        self._watch.settings = settings
        self._notifier.settings = settings.notify
        self._reach.settings = settings.delivery
        self._reach.destinations = settings.destinations
        self._tests.settings = settings

    def reloaded(self, *, ok: bool, sentence: str) -> None:
        """What came of reading the configuration again, for who asked for it."""
        self._errands.reloaded(ok=ok, sentence=sentence)

    def stop(self) -> None:
        """End what runs; a self-test that was under way has failed."""
        self._tests.stop()

    def _tell(self) -> None:
        self._watch.attention()
        self._notifier.sweep()

    def _forget(self) -> None:
        """What is of no use any more; each by its own time."""
        database, now = self._database, time.time()
        notices.forget(database, now - NOTICE_DAYS * DAY)
        peers.forget(database, now - ECHO_DAYS * DAY)
        control.forget(database, now - WISH_DAYS * DAY)
        selftests.forget(database, now - SELFTEST_DAYS * DAY)
        nodes.forget(database, now - DISK_DAYS * DAY)
        people.forget_logins(database, now)
        if self._keep_audit_days:
            audit.forget(database, now - self._keep_audit_days * DAY)
