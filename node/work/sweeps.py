"""Sweeps: the clock (APScheduler), requests of people, and retention; never the queue."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from apscheduler.schedulers.background import BackgroundScheduler

from node.config import Config, Storage
from node.errors import UsageError
from node.store import LEASE_SECONDS
from node.work.deliver import Reachability
from node.work.notify import SAMPLE_SECONDS, Notifier, NotSent, Watches
from node.work.selftest import SelfTests
from storage import retention
from storage.database import Database
from storage.errors import StorageError
from storage.files import Files
from storage.records import DAY, NodeRequest, RequestKind
from storage.retention import report_held_work
from storage.site import audit, control, nodes, notices, peers, people, selftests

logger = logging.getLogger(__name__)

JUMP_SECONDS = 2.0  # of the clock on the wall
SECOND, MINUTE, HOUR = 1.0, 60.0, 3600.0
NOTICE_SECONDS = 2.0
# How long it is kept what was found and told; audit events by storage.keep_audit_days.
NOTICE_DAYS, ECHO_DAYS, REQUEST_DAYS, SELFTEST_DAYS, DISK_DAYS = 90.0, 30.0, 30.0, 400.0, 400.0

FAULT = "The node's own code raised an exception; the log has the frames."


@dataclass
class RequestHandlers:
    """The sweep over requests; a handler that may take its time has a thread of its own."""

    database: Database
    node_id: str
    now: Callable[[], float]
    reach: Reachability
    tests: SelfTests
    notifier: Notifier
    process_now: Callable[[str, str], str]  # Series UID, who -> what was done
    ask_reload: Callable[[], None]

    def __post_init__(self) -> None:
        self._requests = control.RequestQueue(
            self.database, self.now, node=self.node_id, lease_seconds=LEASE_SECONDS
        )

    def recover(self) -> None:
        """At start: what a dead process of this node had taken up has failed."""
        self._requests.recover()

    def sweep(self) -> None:
        """Take up what is asked for, and keep what is under way."""
        for request in self._requests.claim():
            if request.kind is RequestKind.RELOAD:
                self.ask_reload()  # the main thread does it, and says what came of it
            elif request.kind is RequestKind.PROCESS_NOW:
                self._do(request)
            else:
                name = f"request-{request.id}"
                threading.Thread(target=self._do, args=(request,), daemon=True, name=name).start()
        self._requests.renew()

    def reloaded(self, *, ok: bool, sentence: str) -> None:
        """Answer everybody who has asked for the configuration to be read again."""
        for request in self._requests.held(RequestKind.RELOAD):
            self._answer(request, ok=ok, sentence=sentence)

    def _do(self, request: NodeRequest) -> None:
        """Do it; whoever asked gets an answer, whatever happens."""
        try:
            ok, sentence = self._done(request)
        except (NotSent, StorageError, UsageError) as error:
            ok, sentence = False, str(error)
        except Exception:
            extra = {"request": request.id, "kind": str(request.kind)}
            logger.exception("request not done", extra=extra)
            ok, sentence = False, FAULT
        self._answer(request, ok=ok, sentence=sentence)

    def _done(self, request: NodeRequest) -> tuple[bool, str]:
        match request.kind:
            case RequestKind.ECHO:
                return self._echo(request.subject)
            case RequestKind.SELFTEST:
                test = self.tests.run(request.who)
                return test.state == "passed", test.sentence
            case RequestKind.NOTIFY:
                return True, self.notifier.test(request)
            case _:
                return True, self.process_now(request.subject, request.who)

    def _echo(self, name: str) -> tuple[bool, str]:
        for destination in self.reach.destinations:
            if destination.name == name:
                answer = self.reach.echo(destination)
                return answer.ok, f"{answer.sentence} {answer.seconds:.2f} s"
        raise UsageError(f"no destination {name!r} is configured")

    def _answer(self, request: NodeRequest, *, ok: bool, sentence: str) -> None:
        self._requests.answer(request, ok=ok, sentence=sentence)
        extra = {"request": request.id, "kind": str(request.kind), "ok": ok}
        logger.info("request done", extra=extra)


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
        """Run every pass now where somebody set the clock: the next one may lie an hour away."""
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


class Background:
    """The parts of a node beside the queue, with their sweeps."""

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
        self._watches = Watches(database, settings, node_id, time.time)
        self._notifier = Notifier(
            database, node_id, settings.node.ae_title, settings.notify, time.time
        )
        self._handlers = RequestHandlers(
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
        """Fail what a dead process left undone, and begin the sweeps."""
        self._handlers.recover()
        self._tests.tidy()
        schedule.every(SECOND, "requests", self._handlers.sweep)
        schedule.every(NOTICE_SECONDS, "notices", self._tell)
        schedule.every(MINUTE / 6, "echoes", self._reach.sweep)
        schedule.every(MINUTE, "senders", self._watches.senders)
        schedule.every(MINUTE, "self-test", self._tests.sweep)
        schedule.every(SAMPLE_SECONDS, "disk", self._watches.disk)
        schedule.every(HOUR, "forgetting", self._forget)

    def follow(self, settings: Config) -> None:
        """The configuration was read again."""
        self._watches.settings = settings
        self._notifier.settings = settings.notify
        self._reach.settings = settings.delivery
        self._reach.destinations = settings.destinations
        self._tests.settings = settings

    def reloaded(self, *, ok: bool, sentence: str) -> None:
        """Answer those who asked for the configuration to be read again."""
        self._handlers.reloaded(ok=ok, sentence=sentence)

    def stop(self) -> None:
        """End what runs; a self-test that was under way has failed."""
        self._tests.stop()

    def _tell(self) -> None:
        self._watches.attention()
        self._notifier.sweep()

    def _forget(self) -> None:
        """Remove what is of no use any more; each by its own time."""
        database, now = self._database, time.time()
        notices.forget(database, now - NOTICE_DAYS * DAY)
        peers.forget(database, now - ECHO_DAYS * DAY)
        control.forget(database, now - REQUEST_DAYS * DAY)
        selftests.forget(database, now - SELFTEST_DAYS * DAY)
        nodes.forget(database, now - DISK_DAYS * DAY)
        people.forget_logins(database, now)
        if self._keep_audit_days:
            audit.forget(database, now - self._keep_audit_days * DAY)


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
        waits = report_held_work(self.database, now, settings.keep_days)
        if waits is not None:
            logger.warning("notice", extra={"kind": "retention", **vars(waits)})
        retention.forget_associations(self.database, now)
