"""Delivery: one thread a destination brings derived series there, again and again."""

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from node import wording
from node.children import AT_ONCE, IDLE_SECONDS, WorkerLoop, wait_for
from node.config import Config, DeliverySettings, Destination
from node.dicom import scu, stow
from node.dicom.status import FEW_RETRY_SECONDS, Outcome, outcome, status_text
from node.rules import backoff, routing
from storage.database import Database
from storage.errors import Busy, LeaseLost, NoRoom
from storage.files import Files, digest
from storage.ledger import NO_DESTINATION, InstanceAnswer, Ledger
from storage.records import Delivery, DeliveryState, Reach, Unsent
from storage.site import peers
from storage.site.peers import UNREACHABLE

logger = logging.getLogger(__name__)

RENEW_SECONDS = 1.0
WRITE_SECONDS, MOST_UNWRITTEN = 0.1, 200  # answers that share a transaction
INTACT_SECONDS = 300.0  # that a digest counts for, where nothing has touched the file
MARK_SECONDS = 0.05  # a file that was changed just now may change again under the same time
MOST_KNOWN = 20_000  # files
PROGRESS_SECONDS = 1.0  # after an association that ended, but had brought something
SUPPLEMENT_FAILURES = 5  # in a row; then a supplement of a series that is stored is given up
NOT_CONFIGURED = (
    "No destination {destination!r} is configured; add it, and the delivery continues by itself "
    "once the configuration is reloaded."
)
UNKNOWN_SENDER = (
    "The sender {sender!r} belongs to no destination; name it in sends_as of one, or add one with "
    "that ae_title, and the delivery continues by itself once the configuration is read again."
)
NOT_TAKEN = "OBJECT_NOT_TAKEN"
LEFT_OUT = "LEFT_OUT"
EXPLICIT_LE = "1.2.840.10008.1.2.1"


@dataclass
class Reachability:
    """The reachability of each destination; a delivery asks for it before it begins."""

    database: Database
    now: Callable[[], float]
    ae_title: str
    settings: DeliverySettings
    destinations: Sequence[Destination] = ()
    _busy: dict[str, threading.Thread] = field(default_factory=dict)
    _jitter: random.Random = field(default_factory=random.Random)
    _echo: Callable[[Destination, str], scu.EchoResult] = stow.echo
    _steady: Callable[[], float] = time.monotonic  # a clock that nobody sets

    def __post_init__(self) -> None:
        self._offset = self.now() - self._steady()

    def waited(self, delivery: Delivery) -> float:
        """The seconds since a delivery was queued, by a clock that nobody has set forward since."""
        set_forward = max(0.0, self.now() - self._steady() - self._offset)
        return self.now() - set_forward - delivery.queued_at

    def may_send(self, destination: str) -> bool:
        """True where nobody has paused it and it was not unreachable just now."""
        longest = 2 * self.settings.retry_seconds[1]
        return peers.may_send(self.database, self.now(), destination, longest)

    def answered(self, destination: str) -> None:
        """Note that it has answered a delivery."""
        before = self._reach(destination)
        if before is None or not before.up or before.failures or before.open_until:
            self._log_change(peers.answered(self.database, self.now(), destination), before)

    def unreachable(self, destination: str, sentence: str) -> None:
        """Note that it gave no association: others that wait need not find that out one by one."""
        before = self._reach(destination)
        failures = before.failures if before is not None else 0
        wait = backoff.delay(failures, *self.settings.retry_seconds, self._jitter)
        until = self.now() + wait
        reach = peers.unreachable(
            self.database, self.now(), destination, sentence, open_until=until
        )
        self._log_change(reach, before)

    def echo(self, destination: Destination) -> scu.EchoResult:
        """Send it a C-ECHO now, and note the result."""
        before = self._reach(destination.name)
        answer = self._echo(destination, self.ae_title)
        reach = peers.record(
            self.database,
            self.now(),
            destination.name,
            ok=answer.ok,
            seconds=answer.seconds,
            sentence="" if answer.ok else answer.sentence,
        )
        self._log_change(reach, before)
        return answer

    def sweep(self) -> None:
        """Send a C-ECHO to those whose time it is, in threads of their own: a peer may hang."""
        if not self.settings.echo_minutes:
            return
        last = peers.last_echoes(
            self.database, [destination.name for destination in self.destinations]
        )
        every = self.settings.echo_minutes * 60
        for destination in self.destinations:
            echo = last.get(destination.name)
            due = echo is None or not 0 <= self.now() - echo.at < every
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

    def _reach(self, destination: str) -> Reach | None:
        reaches = peers.reachability(self.database)
        return next((reach for reach in reaches if reach.destination == destination), None)

    def _log_change(self, reach: Reach, before: Reach | None) -> None:
        if reach.up and before is not None and not before.up:
            logger.info("destination up", extra={"destination": reach.destination})
        elif not reach.up and (before is None or before.up):
            logger.warning("destination down", extra={"destination": reach.destination})


@dataclass
class Tally:
    """The answers of one association, counted: the worst status decides what happens next."""

    stored: int = 0
    refused: list[int] = field(default_factory=list)
    few_retries: list[int] = field(default_factory=list)
    retries: list[int] = field(default_factory=list)
    heard: int = 0  # answers of any kind: the destination is there
    tries: int = 0  # the most often that one instance was not understood before

    @property
    def unsent(self) -> list[int]:
        return [*self.refused, *self.few_retries, *self.retries]


class _Answers:
    """The answers of a destination on their way into the ledger, several in one transaction.

    One is written at once where none was for a while, and all before the peer's next silence or
    the end. What a crash takes with it is offered once more; no row says more than was answered.
    """

    def __init__(self, ledger: Ledger, delivery: Delivery, now: Callable[[], float]) -> None:
        self._ledger = ledger
        self._delivery = delivery
        self._now = now
        self._waiting: list[InstanceAnswer] = []
        self._written_at, self._renewed_at = 0.0, now()
        self._lock = threading.Lock()  # several associations wait for their peer

    def add(self, answer: InstanceAnswer) -> None:
        """Write it, or keep it for a moment."""
        with self._lock:
            self._waiting.append(answer)
            is_fresh = 0 <= self._now() - self._written_at < WRITE_SECONDS
        if not is_fresh or len(self._waiting) >= MOST_UNWRITTEN:
            self.write()

    def write(self) -> None:
        """Write what waits; LeaseLost where the delivery is another's by now."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            if waiting:
                self._ledger.record(self._delivery, waiting)
                self._written_at = self._now()

    def renew(self) -> bool:
        """Keep the lease; True where it was time for that. LeaseLost where it is another's."""
        with self._lock:
            if 0 <= self._now() - self._renewed_at < RENEW_SECONDS:  # below 0: a clock set back
                return False
            self._renewed_at = self._now()
            self._ledger.renew(self._delivery)
            return True


class Intact:
    """The files of derived series that are what the worker has verified.

    The digest of a file is worked out once for all destinations that it goes to now, and again
    where something has touched the file, or a while has passed. By then it is forgotten: of all
    files ever sent none is kept in memory.
    """

    def __init__(self, steady: Callable[[], float] = time.monotonic) -> None:
        self._steady = steady
        # By path, the oldest first.
        self._known: dict[str, tuple[str, tuple[int, ...], float]] = {}
        self._changing = threading.Lock()
        self._locks = [threading.Lock() for _ in range(16)]  # two that want the same file wait

    def holds(self, path: str, expected: str) -> bool:
        """True where the file has this digest."""
        with self._locks[hash(path) % len(self._locks)]:
            try:
                mark = _mark(path)
            except FileNotFoundError:
                return False
            known = self._known.get(path)
            is_known = known is not None and known[:2] == (expected, mark)
            if is_known and known and self._steady() - known[2] < INTACT_SECONDS:
                return True
            with self._changing:
                self._known.pop(path, None)
            if digest(path) != expected:
                return False
            if abs(time.time() - mark[-1] / 1e9) > MARK_SECONDS:
                self._keep(path, (expected, mark, self._steady()))
            return True

    @property
    def count(self) -> int:
        """The number of files whose digest it remembers."""
        return len(self._known)

    def _keep(self, path: str, entry: tuple[str, tuple[int, ...], float]) -> None:
        with self._changing:  # the locks of two files differ
            while self._known:
                oldest = next(iter(self._known))
                is_over = self._steady() - self._known[oldest][2] >= INTACT_SECONDS
                if not is_over and len(self._known) < MOST_KNOWN:
                    break
                del self._known[oldest]
            self._known[path] = entry


def _mark(path: str) -> tuple[int, ...]:
    """What changes with every change of a file; the last is the time of the change itself."""
    status = os.stat(path)  # noqa: PTH116 - see `Files.text_path`
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Deliverer:
    """One thread a destination: a PACS that is down keeps no other waiting."""

    def __init__(
        self,
        destination: Destination,
        calling_ae: str,
        ledger: Ledger,
        files: Files,
        settings: DeliverySettings,
        now: Callable[[], float],
        reach: Reachability,
        intact: Intact,
        send: scu.Send = scu.send,
    ) -> None:
        self.destination = destination
        self.settings = settings
        self._ledger = ledger
        self._files = files
        self._now = now
        self._reach = reach
        self._intact = intact
        self._send = send
        self._paused = False  # as seen last, while something is sent
        self._jitter = random.Random()  # noqa: S311 - spreads retries; nothing secret
        self._peer = scu.PeerAddress(*destination.address(calling_ae))
        self._stopping = threading.Event()
        self._abandoned = threading.Event()
        name = destination.name
        self.loop = WorkerLoop(f"deliver-{name}", self._work_next, self._log_failure)

    def stop(self) -> None:
        """End after the instance that is on the wire; the rest is sent another time."""
        self.loop.drain()
        self._stopping.set()

    def abandon(self) -> None:
        """End now: an instance that is on the wire has no answer and is offered again."""
        self.stop()
        self._abandoned.set()

    def _work_next(self) -> float:
        name = self.destination.name
        may_send = self._reach.may_send(name)
        delivery = self._ledger.claim(name, self.loop.name) if may_send else None
        if delivery is None:
            return IDLE_SECONDS
        self._do(delivery)
        return AT_ONCE

    def _log_failure(self) -> None:
        extra = {"destination": self.destination.name}
        logger.exception("queue not read", extra=extra)  # noqa: LOG004 - called by its handler

    def _do(self, delivery: Delivery) -> None:
        """Run one delivery; whatever happens, its row says so."""
        try:
            self._try(delivery)
        except LeaseLost:
            logger.warning("lease lost", extra={"delivery": delivery.id})
        except (Busy, NoRoom) as error:
            extra = {"destination": self.destination.name, "delivery": delivery.id}
            logger.warning("delivery given back", extra=extra | {"why": str(error)})
            self._give_back(delivery)

    def _try(self, delivery: Delivery) -> None:
        try:
            self._deliver(delivery)
        except (LeaseLost, Busy, NoRoom):
            raise
        except Exception as error:
            logger.exception("delivery not finished", extra={"delivery": delivery.id})
            sentence = f"The node failed to send it: {type(error).__name__}."
            result = scu.SendResult(Outcome.RETRY, sentence)
            self._decide(delivery, Tally(), result, is_our_fault=True)

    def _give_back(self, delivery: Delivery) -> None:
        """Give it back once the database takes it.

        Its lease would keep everything from this destination until it ends.
        """
        while True:
            try:
                self._ledger.release(delivery)
            except LeaseLost:
                return
            except (Busy, NoRoom):
                if self._stopping.wait(RENEW_SECONDS):
                    return
            else:
                return

    def _deliver(self, delivery: Delivery) -> None:
        unsent, _ = self._split(delivery)
        tally, beside = Tally(), Tally()
        self._paused = False
        result = scu.SendResult(Outcome.STORED)
        # A destination that chokes on the SOP Class of a supplement has the series by then; and
        # it is offered none beside slices that it lacks.
        for is_supplement in (False, True):
            group = [instance for instance in unsent if instance.is_supplement is is_supplement]
            if damaged := self._damaged(delivery, group):
                files = wording.count(damaged, "file is", "files are")
                if not is_supplement:
                    sentence = f"{files} missing or changed in the derived series."
                    self._hold(delivery, "DAMAGED_FILES", sentence)
                    return
                result = scu.SendResult(Outcome.REFUSED, f"{files} missing or changed here.")
            elif group:
                answers = beside if is_supplement else tally
                result = self._send_group(delivery, group, answers)
                if result.outcome is not Outcome.STORED or answers.unsent or self._has_to_stop():
                    break
        tally.heard += beside.heard
        tally.stored += beside.stored
        self._decide(delivery, tally, result)

    def _split(self, delivery: Delivery) -> tuple[Sequence[Unsent], Sequence[Unsent]]:
        """What the destination has not stored: what it is to have, and what is left out for it."""
        unsent, kinds = self._ledger.unsent(delivery), self.destination.leave_out
        return (
            [instance for instance in unsent if instance.kind not in kinds],
            [instance for instance in unsent if instance.kind in kinds],
        )

    def _send_group(
        self, delivery: Delivery, unsent: Sequence[Unsent], tally: Tally
    ) -> scu.SendResult:
        """Offer these in associations of their own."""
        answers = _Answers(self._ledger, delivery, self._now)
        try:
            return self._send(
                self._peer,
                [_outgoing(instance, self._files) for instance in unsent],
                answered=self._answered(delivery, unsent, tally, answers),
                stop=lambda: self._is_stopped(delivery, answers),
                abandon=lambda: self._is_abandoned(delivery, answers),
                timeouts=scu.Timeouts(answer=self.destination.answer_seconds),
                associations=self.destination.associations,
            )
        finally:
            answers.write()

    def _is_stopped(self, delivery: Delivery, answers: _Answers) -> bool:
        """True where the next instance is not to be offered.

        LeaseLost where the node stood still after the last one, and another node has it by now.
        """
        self._keep(delivery, answers)
        return self._has_to_stop()

    def _is_abandoned(self, delivery: Delivery, answers: _Answers) -> bool:
        """True where nobody waits for the answer any more; asked while the peer is silent."""
        answers.write()
        self._keep(delivery, answers)
        return self._abandoned.is_set()

    def _keep(self, delivery: Delivery, answers: _Answers) -> None:
        """Keep the lease; see whether somebody has paused the destination, or is more urgent."""
        if answers.renew():
            is_overtaken = self._ledger.is_overtaken(delivery)  # the rest is sent after it
            self._paused = is_overtaken or not self._reach.may_send(self.destination.name)

    def _has_to_stop(self) -> bool:
        return self._stopping.is_set() or self._paused

    def _damaged(self, delivery: Delivery, unsent: Sequence[Unsent]) -> int:
        """Count the files that are not what the worker verified, just before they go."""
        damaged, renewed = 0, self._now()
        # In no order, so that the threads of several destinations share the work of one series.
        for instance in self._jitter.sample(unsent, len(unsent)):
            damaged += not self._intact.holds(self._files.text_path(instance.path), instance.digest)
            if self._now() - renewed >= RENEW_SECONDS:
                renewed = self._now()
                self._ledger.renew(delivery)
        return damaged

    def _answered(
        self, delivery: Delivery, unsent: Sequence[Unsent], tally: Tally, answers: _Answers
    ) -> scu.Answered:
        by_id = {instance.id: instance for instance in unsent}

        def answered(outgoing: scu.Outgoing, status: int | None, comment: str) -> None:
            before = by_id[outgoing.id]
            was_offered = before.offers > 0 or delivery.attempt > 1  # the crash came before the row
            is_stored = _count(tally, before, status, was_offered=was_offered)
            tally.heard += status is not None
            unclear = status is not None and outcome(status) is Outcome.FEW_RETRIES
            answers.add(InstanceAnswer(outgoing.id, status, is_stored, comment, unclear))
            self._keep(delivery, answers)

        return answered

    def _decide(
        self,
        delivery: Delivery,
        tally: Tally,
        result: scu.SendResult,
        *,
        is_our_fault: bool = False,  # then nothing is known of the destination
    ) -> None:
        if tally.heard:
            self._reach.answered(self.destination.name)
        unsent, left_out = self._split(delivery)
        missing = len(unsent)
        may_go_on = not self._has_to_stop()
        lacks_little = may_go_on and all(instance.is_supplement for instance in unsent)
        if not unsent or (lacks_little and self._is_vain(delivery, unsent, tally, result)):
            self._sent(delivery, unsent, left_out, result)
        elif not may_go_on:
            self._ledger.release(delivery)
        elif tally.refused or result.outcome is Outcome.REFUSED:
            self._hold(delivery, "REFUSED_BY_PEER", _sentence(tally.refused, missing, result))
        elif tally.few_retries and tally.tries >= len(FEW_RETRY_SECONDS):
            self._hold(delivery, "NOT_UNDERSTOOD", _sentence(tally.few_retries, missing, result))
        elif self._is_late(delivery) and not (lacks_little and tally.stored):
            hours = wording.amount(self.settings.give_up_hours, "hour")
            self._hold(delivery, "GAVE_UP", f"Not delivered in {hours}. {result.sentence}")
        else:
            is_off = not tally.heard and result.outcome is Outcome.RETRY and not is_our_fault
            if is_off and not lacks_little:  # nor keep others waiting for what it may not know
                self._reach.unreachable(self.destination.name, result.sentence)
            reason = UNREACHABLE if is_off else "RETRY"
            statuses = [*tally.few_retries, *tally.retries]
            sentence = _sentence(statuses, missing, result)
            self._retry(delivery, tally, reason, sentence, is_lost=result.outcome is Outcome.RETRY)

    def _retry(
        self, delivery: Delivery, tally: Tally, reason: str, sentence: str, *, is_lost: bool
    ) -> None:
        first, longest = self.settings.retry_seconds
        # A delivery that got something stored has found its peer alive: begin the back-off anew.
        failures = 0 if tally.stored else delivery.failures
        wait = backoff.delay(failures, first, longest, self._jitter)
        if tally.stored and is_lost:  # a peer that ends the association after each instance
            wait = min(PROGRESS_SECONDS, wait)
        if tally.few_retries:
            wait = max(wait, FEW_RETRY_SECONDS[min(tally.tries, len(FEW_RETRY_SECONDS) - 1)])
        due_at, is_first = self._now() + wait, tally.stored > 0
        self._ledger.retry(delivery, due_at, reason, sentence, is_first=is_first)
        extra = {"destination": self.destination.name, "delivery": delivery.id}
        logger.warning("delivery delayed", extra=extra | {"seconds": round(wait, 1)})

    def _is_vain(
        self,
        delivery: Delivery,
        unsent: Sequence[Unsent],
        tally: Tally,
        result: scu.SendResult,
    ) -> bool:
        """True where the destination has the series, and does without its supplements."""
        failures = 0 if tally.stored else delivery.failures
        if result.outcome is Outcome.REFUSED or failures >= SUPPLEMENT_FAILURES:
            return True
        were_offered = all(instance.offers > 0 for instance in unsent)
        return (were_offered and self._is_late(delivery)) or all(map(_is_refused, unsent))

    def _is_late(self, delivery: Delivery) -> bool:
        return self._reach.waited(delivery) > self.settings.give_up_hours * 3600

    def _sent(
        self,
        delivery: Delivery,
        unsent: Sequence[Unsent],
        left_out: Sequence[Unsent],
        result: scu.SendResult,
    ) -> None:
        """The destination has the series; what it does not take beside it is named."""
        stored = delivery.total - len(unsent) - len(left_out)
        extra = {"destination": self.destination.name, "instances": stored}
        kinds_left, omitted = self.destination.leave_out, _left_out(left_out)
        if unsent:
            reason = NOT_TAKEN
            sentence = f"{_not_taken(unsent, result)} {omitted}".strip()
            kinds = sorted({instance.kind for instance in unsent})
            logger.warning(
                "object not taken", extra=extra | {"delivery": delivery.id, "which": kinds}
            )
        else:
            reason = LEFT_OUT if left_out else ""
            sentence = omitted
        is_asked = self.destination.commitment is not None
        self._ledger.sent(delivery, reason, sentence, kinds_left, is_asked_for_proof=is_asked)
        logger.info("delivery sent", extra=extra | {"delivery": delivery.id})

    def _hold(self, delivery: Delivery, reason: str, sentence: str) -> None:
        self._ledger.hold(delivery, reason, sentence)
        extra = {"destination": self.destination.name, "delivery": delivery.id, "reason": reason}
        logger.error("delivery held", extra=extra)


@dataclass
class Deliverers:
    """The threads of all destinations; `follow` is called when the configuration was read."""

    ledger: Ledger
    files: Files
    reach: Reachability
    now: Callable[[], float]
    send: scu.Send = scu.send
    _settings: Config | None = None
    _intact: Intact = field(default_factory=Intact)
    _by_name: dict[str, Deliverer] = field(default_factory=dict)

    def follow(self, settings: Config) -> None:
        """Start a thread for each destination; end those of what changed or is gone."""
        self._settings = settings
        by_name = {destination.name: destination for destination in settings.destinations}
        for name, deliverer in list(self._by_name.items()):
            if by_name.get(name) != deliverer.destination:
                deliverer.stop()  # its thread ends after the instance that is on the wire
                del self._by_name[name]
        for name, destination in by_name.items():
            if name in self._by_name:
                self._by_name[name].settings = settings.delivery
                continue
            self._by_name[name] = Deliverer(
                destination,
                settings.node.ae_title,
                self.ledger,
                self.files,
                settings.delivery,
                self.now,
                self.reach,
                self._intact,
                self.send if destination.kind == "dimse" else stow.sender(destination),
            )
            self._by_name[name].loop.start()

    def sweep_unknown(self) -> None:
        """Hold what waits for a destination that nobody has configured, until somebody does."""
        if self._settings is not None:
            sweep_unknown(self.ledger, self._settings.destinations)

    def wake(self) -> None:
        """Look for deliveries now: some were queued."""
        for deliverer in list(self._by_name.values()):
            deliverer.loop.wake()

    def drain(self) -> None:
        """Begin no further delivery; what runs goes on."""
        for deliverer in self._by_name.values():
            deliverer.loop.drain()

    def wait(self, seconds: float) -> bool:
        """True when nothing is being sent any more, False when the time is over."""
        return wait_for([deliverer.loop for deliverer in self._by_name.values()], seconds)

    def abandon(self) -> None:
        """End now, whatever is on the wire."""
        for deliverer in self._by_name.values():
            deliverer.abandon()


def sweep_unknown(ledger: Ledger, destinations: Sequence[Destination]) -> None:
    """Hold what waits for a destination that is not configured, and let it go once it is.

    A sender that has become a destination, by its AE title or `sends_as`, gets what was held.
    """
    known = {destination.name for destination in destinations}
    for entry in ledger.backlog():
        name = entry.destination
        goes_to = name if name in known else routing.owner_of(destinations, name)
        if goes_to is None and entry.state == DeliveryState.QUEUED:
            _hold_unknown(ledger, name)
        elif goes_to is not None and (goes_to != name or entry.state == DeliveryState.HELD):
            count = ledger.redirect(name, goes_to)
            if count:
                extra = {"destination": goes_to, "before": name, "deliveries": count}
                logger.info("deliveries released", extra=extra)


def _hold_unknown(ledger: Ledger, destination: str) -> None:
    sentence = NOT_CONFIGURED.format(destination=destination)
    sender = routing.sender_in(destination)
    if sender is not None:
        sentence = UNKNOWN_SENDER.format(sender=sender)
    while (delivery := ledger.claim(destination, "configuration")) is not None:
        ledger.hold(delivery, NO_DESTINATION, sentence)
        extra = {"destination": destination, "delivery": delivery.id}
        logger.error("delivery held", extra=extra | {"reason": NO_DESTINATION})


def _outgoing(instance: Unsent, files: Files) -> scu.Outgoing:
    return scu.Outgoing(
        id=instance.id,
        instance_uid=instance.instance_uid,
        sop_class_uid=instance.sop_class_uid,
        transfer_syntax=EXPLICIT_LE,
        path=files.text_path(instance.path),
    )


def _count(tally: Tally, before: Unsent, status: int | None, *, was_offered: bool) -> bool:
    """Count an answer; True where the destination has the instance."""
    if status is None:
        return False
    match outcome(status):
        case Outcome.STORED:
            tally.stored += 1
            return True
        case Outcome.STORED_IF_OURS:
            if was_offered:
                tally.stored += 1
                return True
            tally.refused.append(status)
        case Outcome.FEW_RETRIES:
            tally.few_retries.append(status)
            tally.tries = max(tally.tries, before.not_understood)
        case Outcome.REFUSED:
            tally.refused.append(status)
        case Outcome.RETRY:
            tally.retries.append(status)
    return False


def _is_refused(instance: Unsent) -> bool:
    """True where the destination has answered that it does not take the instance."""
    refusals = (Outcome.REFUSED, Outcome.STORED_IF_OURS)
    return instance.status is not None and outcome(instance.status) in refusals


def _left_out(instances: Sequence[Unsent]) -> str:
    """The kinds of objects that a destination is not to have; "" where it has them all."""
    kinds = sorted({instance.kind for instance in instances})
    return f"Left out for this destination: {', '.join(kinds)}." if kinds else ""


def _not_taken(unsent: Sequence[Unsent], result: scu.SendResult) -> str:
    """The objects that a destination has not stored beside the series, each with its answer."""
    objects = {
        f"its {instance.kind}"
        + (f" ({status_text(instance.status)})" if instance.status is not None else "")
        for instance in unsent
    }
    sentence = f"The derived series is stored; not taken: {', '.join(sorted(objects))}."
    return f"{sentence} {result.sentence}".strip()


def _sentence(statuses: Sequence[int], missing: int, result: scu.SendResult) -> str:
    """The number of missing instances and the answers of the peer, for the administrator."""
    named = ", ".join(status_text(status) for status in sorted(set(statuses)))
    answer = f" The destination answered {named}." if named else ""
    stored = wording.count(missing, "instance is", "instances are")
    return f"{stored} not stored.{answer} {result.sentence}".strip()
