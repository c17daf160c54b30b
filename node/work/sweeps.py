"""Sweeps: the clock (APScheduler), requests of people, and retention; never the queue."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeAlias

from apscheduler.schedulers.background import BackgroundScheduler

from node.config import Config, Storage
from node.errors import UsageError
from node.rules.reasons import FUTILE
from node.store import LEASE_SECONDS
from node.work.audit_trail import AuditTrail
from node.work.deliver import Reachability
from node.work.notify import SAMPLE_SECONDS, Notifier, NotSent, Watches
from node.work.query_retrieve import Fetcher
from node.work.selftest import SelfTests
from storage import commitment_scp, retention, scrub
from storage.database import Database
from storage.errors import StorageError
from storage.files import Files
from storage.leases import Holder
from storage.records import DAY, NodeRequest, RequestKind
from storage.retention import report_held_work
from storage.site import audit, control, nodes, notices, peers, people, selftests

logger = logging.getLogger(__name__)

JUMP_SECONDS = 2.0  # of the clock on the wall
SECOND, MINUTE, HOUR = 1.0, 60.0, 3600.0
NOTICE_SECONDS = 2.0
AUDIT_SECONDS = 5.0
RETENTION_SECONDS, SCRUB_SECONDS = 600.0, 60.0
RELIEF_SECONDS = 5.0
RELIEF = 1.25  # of the reserve: below it images are refused
# How long it is kept what was found and told; audit events by storage.keep_audit_days.
NOTICE_DAYS, ECHO_DAYS, REQUEST_DAYS, SELFTEST_DAYS, DISK_DAYS = 90.0, 30.0, 30.0, 400.0, 400.0
REPORT_DAYS = 400.0

# A pass of this node as one that of several nodes one does.
Leading: TypeAlias = Callable[[Callable[[], None]], Callable[[], None]]

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
    process_by_route: Callable[[str, str, str], str]  # Series UID, route, who -> what was done
    fetcher: Fetcher
    ask_reload: Callable[[], None]

    def __post_init__(self) -> None:
        self.requests = control.RequestQueue(
            self.database, Holder(self.node_id, self.now, LEASE_SECONDS)
        )

    def sweep(self) -> None:
        """Take up what is asked for, and keep what is under way."""
        for request in self.requests.claim():
            if request.kind is RequestKind.RELOAD:
                self.ask_reload()  # the main thread does it, and says what came of it
            elif request.kind is RequestKind.PROCESS_NOW:
                self._do(request)
            else:
                name = f"request-{request.id}"
                threading.Thread(target=self._do, args=(request,), daemon=True, name=name).start()
        self.requests.renew()

    def reloaded(self, *, ok: bool, sentence: str) -> None:
        """Answer everybody who has asked for the configuration to be read again."""
        for request in self.requests.held(RequestKind.RELOAD):
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
            case RequestKind.FETCH:
                return self.fetcher.fetch(request.destination, request.subject, request.series_uid)
            case _ if request.route:
                return True, self.process_by_route(request.subject, request.route, request.who)
            case _:
                return True, self.process_now(request.subject, request.who)

    def _echo(self, name: str) -> tuple[bool, str]:
        for destination in self.reach.destinations:
            if destination.name == name:
                answer = self.reach.echo(destination)
                return answer.ok, f"{answer.sentence} {answer.seconds:.2f} s"
        raise UsageError(f"no destination {name!r} is configured")

    def _answer(self, request: NodeRequest, *, ok: bool, sentence: str) -> None:
        self.requests.answer(request, ok=ok, sentence=sentence)
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
            _guarded, "interval", (sweep, name), seconds=seconds, id=name, next_run_time=first
        )

    def start(self) -> None:
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


def _guarded(sweep: Callable[[], None], name: str) -> None:
    try:
        sweep()
    except Exception:
        logger.exception("sweep failed", extra={"sweep": name})


@dataclass
class Background:
    """The parts of a node beside the queue, with their sweeps."""

    database: Database
    settings: Config
    handlers: RequestHandlers
    audit: AuditTrail
    now: Callable[[], float]
    leading: Leading

    def __post_init__(self) -> None:
        self._watches = Watches(self.database, self.settings, self.handlers.node_id, self.now)
        self.follow(self.settings)

    def begin(self, schedule: Schedule) -> None:
        """Fail what a dead process left undone, and begin the sweeps."""
        handlers = self.handlers
        handlers.requests.recover()
        handlers.tests.tidy()
        schedule.every(SECOND, "requests", handlers.sweep)
        schedule.every(NOTICE_SECONDS, "notices", self._tell)
        leading = self.leading
        schedule.every(MINUTE / 6, "echoes", leading(handlers.reach.sweep))
        schedule.every(MINUTE, "senders", leading(self._watches.senders))
        schedule.every(MINUTE, "self-test", handlers.tests.sweep)
        schedule.every(SAMPLE_SECONDS, "disk", self._watches.disk)
        schedule.every(HOUR, "certificates", self._watches.certificates)
        schedule.every(HOUR, "forgetting", leading(self._forget))
        self.audit.start()
        schedule.every(AUDIT_SECONDS, "audit", self.audit.sweep)

    def follow(self, settings: Config) -> None:
        """The configuration was read again."""
        handlers = self.handlers
        self._watches.settings = handlers.tests.settings = handlers.fetcher.settings = settings
        handlers.notifier.settings = settings.notify
        handlers.reach.settings = settings.delivery
        handlers.reach.destinations = settings.destinations

    def _tell(self) -> None:
        notices.tell_new(self.database, self.now(), FUTILE)
        self.handlers.notifier.sweep()

    def _forget(self) -> None:
        """Remove what is of no use any more; each by its own time."""
        database, now = self.database, self.now()
        notices.forget(database, now - NOTICE_DAYS * DAY)
        peers.forget(database, now - ECHO_DAYS * DAY)
        commitment_scp.forget(database, now - REPORT_DAYS * DAY)
        control.forget(database, now - REQUEST_DAYS * DAY)
        selftests.forget(database, now - SELFTEST_DAYS * DAY)
        nodes.forget(database, now - DISK_DAYS * DAY)
        people.forget_logins(database, now)
        if keep_days := self.settings.storage.keep_audit_days:
            audit.forget(database, now - keep_days * DAY)


@dataclass
class Retention:
    """The sweeps that keep the disk from filling up, and watch what lies on it."""

    database: Database
    files: Files
    settings: Storage
    now: Callable[[], float]

    def begin(self, schedule: Schedule, leading: Leading) -> None:
        """Begin the sweeps; of several nodes on one storage one does them."""
        schedule.every(RETENTION_SECONDS, "retention", leading(self.sweep))
        schedule.every(RELIEF_SECONDS, "relief", leading(self.relieve))
        schedule.every(SCRUB_SECONDS, "scrub", leading(self.scrub))

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

    def relieve(self) -> None:
        """Make room before images are refused: what was sent goes, the oldest first.

        Nothing that is unsent, held, failed, promised or unrouted goes before its time.
        """
        wanted = int(RELIEF * self.files.min_free_bytes)
        if not self.settings.purge_early or self.files.free_bytes() >= wanted:
            return
        for oldest in retention.sent(self.database):
            retention.report_early(self.database, self.now())  # people hear of it before
            purged = retention.purge(self.database, self.files, (oldest,), self.now())
            free = self.files.free_bytes()
            extra = {"series": len(purged.series), "bytes": purged.bytes, "free": free}
            logger.warning("series purged early", extra=extra)
            if free >= wanted:
                return

    def scrub(self) -> None:
        """Read some kept files again; people are told of damaged ones."""
        if self.settings.scrub_days:
            share = scrub.share_of(SCRUB_SECONDS, self.settings.scrub_days)
            scrub.step(self.database, self.files, self.now(), share)
