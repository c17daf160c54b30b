"""Storage commitment at work: a thread a destination asks for it, one a sender reports on it."""

import logging
import random
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from node import wording
from node.children import AT_ONCE, IDLE_SECONDS, WorkerLoop, wait_for
from node.config import Config, DeliverySettings, Destination, ExpectedSender
from node.dicom import commitment as dialogue
from node.dicom import query_retrieve
from node.dicom.scu import PeerAddress, SendResult
from node.dicom.status import AGAIN_SECONDS, PASSING_FAILURES, Outcome, status_text
from node.rules import backoff
from node.work.deliver import Reachability
from storage.commitment_scp import OwedReports
from storage.commitment_scu import NOT_CONFIRMED, Commitments, NextStep, Settled, Shortfall
from storage.errors import LeaseLost
from storage.records import (
    Commitment,
    CommitmentReport,
    CommitmentState,
    Evidence,
    OwedReport,
    Reference,
    Unconfirmed,
)

logger = logging.getLogger(__name__)

# From a request of a sender to a report on an association of our own: until then its own is used.
OWN_ASSOCIATION_SECONDS = 5.0
NO_LONGER = "It is not configured any more that this sender may ask for storage commitment."
NOTHING_STORED = "Nothing is stored there that could be confirmed."
NO_REPORT = "No report came within {hours}."
NO_QUERY = "{why} C-FIND proves nothing either: {sentence}"


def next_step(shortfall: Shortfall, now: float) -> NextStep:
    """Decide what follows where a destination has not proved to keep what it has stored."""
    named = {failure for failure in shortfall.failures if failure is not None}
    sentence = _shortfall(shortfall, sorted(named))
    is_final = not named <= PASSING_FAILURES
    if not is_final and shortfall.tries < len(AGAIN_SECONDS):
        return NextStep("ask again", sentence, now + AGAIN_SECONDS[shortfall.tries])
    if not is_final and not shortfall.resent:
        return NextStep("send again", f"{sentence} They are sent again.")
    if shortfall.is_supplement:
        return NextStep("do without", f"The derived series is confirmed. {sentence}")
    return NextStep("hold", sentence)


def _shortfall(shortfall: Shortfall, named: Sequence[int]) -> str:
    instances = wording.count(shortfall.instances, "instance is", "instances are")
    if shortfall.evidence is Evidence.QUERY:
        return f"{instances} stored, but C-FIND does not name them."
    reasons = ", ".join(status_text(failure) for failure in named) or "without a reason"
    return f"{instances} stored, but not committed: {reasons}."


class CommitmentAsker:
    """The thread of a destination that is asked for storage commitment."""

    def __init__(
        self,
        destination: Destination,
        calling_ae: str,
        settings: DeliverySettings,
        commitments: Commitments,
        reach: Reachability,
        reported: Callable[[CommitmentReport], bool],
        settled: Callable[[Settled], None],
        now: Callable[[], float],
    ) -> None:
        assert destination.commitment is not None
        self.destination = destination
        self.settings = settings
        self._asked = destination.commitment
        self._commitments = commitments
        self._reach = reach
        self._reported = reported
        self._settled = settled
        self._now = now
        self._jitter = random.Random()  # noqa: S311 - spreads retries; nothing secret
        self._peer = PeerAddress(*destination.commitment_address(calling_ae))
        self._archive = PeerAddress(*destination.address(calling_ae))
        self._stopping = threading.Event()
        self.loop = WorkerLoop(f"commit-{destination.name}", self._work_next, self._log_failure)

    def stop(self) -> None:
        """End now; a report that is still to come finds its request in the database."""
        self.loop.drain()
        self._stopping.set()

    def _work_next(self) -> float:
        name = self.destination.name
        may_ask = self._reach.may_send(name)
        leased = self._commitments.claim(name, self.loop.name) if may_ask else None
        if leased is None:
            return IDLE_SECONDS
        try:
            self._prove(leased)
        except LeaseLost:
            pass  # the report has come meanwhile, or the delivery began anew
        except Exception as error:
            logger.exception("commitment not finished", extra={"delivery": leased.delivery_id})
            with suppress(LeaseLost):
                sentence = f"The node failed to ask: {type(error).__name__}."
                self._retry(leased, sentence, leased.evidence)
        return AT_ONCE

    def _log_failure(self) -> None:
        extra = {"destination": self.destination.name}
        logger.exception("queue not read", extra=extra)  # noqa: LOG004 - called by its handler

    def _prove(self, leased: Commitment) -> None:
        missing = self._commitments.unconfirmed(leased)
        deadline = leased.queued_at + self._seconds
        if not missing:
            self._commitments.unproved(leased, NOTHING_STORED)
        elif leased.evidence is Evidence.COMMITMENT and self._now() < deadline:
            self._ask(leased, missing, deadline)
        else:
            self._query(leased, missing, deadline)

    def _ask(self, leased: Commitment, missing: Sequence[Unconfirmed], deadline: float) -> None:
        transaction_uid = f"2.25.{uuid.uuid4().int}"
        self._commitments.begin(leased, transaction_uid)

        def accepted() -> None:
            with suppress(LeaseLost):  # the report was quicker
                self._commitments.accepted(leased, transaction_uid, deadline)

        answer = dialogue.ask(
            self._peer,
            transaction_uid,
            [instance.reference for instance in missing],
            reported=self._reported,
            accepted=accepted,
            has_ended=lambda: not self._commitments.is_open(transaction_uid),
            wait_seconds=self._asked.wait_seconds,
            abandon=self._stopping.is_set,
        )
        extra = {"destination": self.destination.name, "delivery": leased.delivery_id}
        if answer.outcome is Outcome.STORED:
            counts: dict[str, object] = {"instances": len(missing)}
            request = {"transaction_uid": transaction_uid}
            logger.info("commitment asked", extra=extra | counts | request)
            return
        logger.warning("commitment not asked", extra=extra | {"sentence": answer.sentence})
        if answer.status is not None:
            self._commitments.refused(leased, transaction_uid, answer.status)
        if answer.outcome is Outcome.REFUSED:  # it does not offer it, or not to this node
            query = Evidence.QUERY
            self._commitments.retry(leased, self._now(), answer.sentence, evidence=query)
        else:
            self._retry(leased, answer.sentence)

    def _query(self, leased: Commitment, missing: Sequence[Unconfirmed], deadline: float) -> None:
        """Ask by C-FIND which instances the destination has."""
        series = dict.fromkeys((instance.study_uid, instance.series_uid) for instance in missing)
        found = query_retrieve.find_instances(self._archive, series, abandon=self._stopping.is_set)
        if found.outcome is Outcome.STORED:
            uids = found.instance_uids
            named = [it.reference for it in missing if it.instance_uid in uids]
            decide = partial(next_step, now=self._now())
            self._settled(self._commitments.found(leased, named, decide))
        elif found.outcome is Outcome.REFUSED or self._now() >= deadline + self._seconds:
            hours = wording.amount(self._asked.give_up_hours, "hour")
            why = leased.sentence or NO_REPORT.format(hours=hours)
            sentence = NO_QUERY.format(why=why, sentence=found.sentence)
            self._commitments.unproved(leased, sentence)
            extra = {"destination": self.destination.name, "delivery": leased.delivery_id}
            logger.error("delivery not confirmed", extra=extra)
        else:
            self._retry(leased, found.sentence, Evidence.QUERY)

    def _retry(
        self, leased: Commitment, sentence: str, evidence: Evidence = Evidence.COMMITMENT
    ) -> None:
        if self._stopping.is_set():
            self._commitments.release(leased)
            return
        wait = backoff.delay(leased.failures, *self.settings.retry_seconds, self._jitter)
        self._commitments.retry(leased, self._now() + wait, sentence, evidence=evidence)

    @property
    def _seconds(self) -> float:
        return self._asked.give_up_hours * 3600


class CommitmentReporter:
    """The thread of a sender that may ask for storage commitment."""

    def __init__(
        self,
        sender: ExpectedSender,
        owed: OwedReports,
        report: Callable[[OwedReport, Callable[[CommitmentReport], SendResult]], None],
    ) -> None:
        assert sender.commitment is not None
        self.sender = sender
        self._address = sender.commitment
        self._owed = owed
        self._report = report
        self._stopping = threading.Event()
        self.loop = WorkerLoop(f"report-{sender.ae_title}", self._work_next, self._log_failure)

    def stop(self) -> None:
        """End now; what is owed is reported after the next start."""
        self.loop.drain()
        self._stopping.set()

    def _work_next(self) -> float:
        leased = self._owed.claim(self.sender.ae_title, self.loop.name)
        if leased is None:
            return IDLE_SECONDS
        address = self._address
        title = address.ae_title or self.sender.ae_title
        peer = PeerAddress(title, address.host, address.port, leased.called_ae, address.tls)
        self._report(leased, partial(dialogue.send_report, peer, abandon=self._stopping.is_set))
        return AT_ONCE

    def _log_failure(self) -> None:
        extra = {"destination": self.sender.ae_title}
        logger.exception("queue not read", extra=extra)  # noqa: LOG004 - called by its handler


@dataclass
class CommitmentWork:
    """Both sides of storage commitment; `follow` is called when the configuration was read."""

    commitments: Commitments
    owed: OwedReports
    reach: Reachability
    now: Callable[[], float]
    _settings: Config | None = None
    _askers: dict[str, CommitmentAsker] = field(default_factory=dict)
    _reporters: dict[str, CommitmentReporter] = field(default_factory=dict)
    _jitter: random.Random = field(default_factory=random.Random)

    def recover(self, node: str = "") -> None:
        """Give up what a dead node, or a process of this one, had under way."""
        self.commitments.recover(node)
        self.owed.recover(node)

    def follow(self, settings: Config) -> None:
        """Start a thread for each destination and sender; end those of what changed or is gone."""
        self._settings = settings
        askers = {place.name: place for place in settings.destinations if place.commitment}
        reporters = {peer.ae_title: peer for peer in settings.senders if peer.commitment}
        self._follow_destinations(askers, settings)
        self._follow_senders(reporters)
        self.sweep()

    def sweep(self) -> None:
        """Ask for what was sent before it was to be proved, and no more for what is not."""
        self.commitments.adopt(self._askers)
        self.owed.leave(self._reporters, NO_LONGER)

    def _follow_destinations(self, places: Mapping[str, Destination], settings: Config) -> None:
        for name, asker in list(self._askers.items()):
            asker.settings = settings.delivery
            if places.get(name) != asker.destination:
                asker.stop()
                del self._askers[name]
        for name in places.keys() - self._askers.keys():
            self._askers[name] = self._asker(places[name], settings)
            self._askers[name].loop.start()

    def _follow_senders(self, peers: Mapping[str, ExpectedSender]) -> None:
        for title, reporter in list(self._reporters.items()):
            if peers.get(title) != reporter.sender:
                reporter.stop()
                del self._reporters[title]
        for title in peers.keys() - self._reporters.keys():
            self._reporters[title] = CommitmentReporter(peers[title], self.owed, self._report)
            self._reporters[title].loop.start()

    def drain(self) -> None:
        """Begin nothing further, and end what only waits."""
        for asker in self._askers.values():
            asker.stop()
        for reporter in self._reporters.values():
            reporter.stop()

    def wait(self, seconds: float) -> bool:
        """True when nothing is under way any more, False when the time is over."""
        asking = [asker.loop for asker in self._askers.values()]
        reporting = [reporter.loop for reporter in self._reporters.values()]
        return wait_for([*asking, *reporting], seconds)

    def roles(self, calling_ae: str, *, is_reporting: bool) -> tuple[bool, bool]:
        """True where a peer may ask, and where it may report."""
        if self._settings is None:
            return False, False
        titles = [place.reporting_ae_titles for place in self._settings.destinations]
        may_ask = calling_ae in self._reporters
        may_report = any(calling_ae in some or (is_reporting and some) for some in titles)
        return may_ask, bool(may_report)

    def reported(self, report: CommitmentReport) -> bool:
        """Take a report in; False where nobody has asked for it."""
        settled = self.commitments.reported(report, partial(next_step, now=self.now()))
        if settled is None:
            return False
        extra = {"destination": settled.destination, "delivery": settled.delivery_id}
        extra |= {"calling_ae": report.calling_ae, "transaction_uid": report.transaction_uid}
        counts = {"committed": len(report.committed), "failed": len(report.failed)}
        logger.info("commitment reported", extra=extra | counts | {"is_news": settled.is_news})
        self._log(settled)
        return True

    def asked(
        self, calling_ae: str, called_ae: str, transaction_uid: str, references: Sequence[Reference]
    ) -> int:
        """Keep a request of a sender; the number of the report that it is owed."""
        due_at = self.now() + OWN_ASSOCIATION_SECONDS
        report_id = self.owed.owe(calling_ae, called_ae, transaction_uid, references, due_at)
        extra = {"calling_ae": calling_ae, "transaction_uid": transaction_uid}
        logger.info("commitment requested", extra=extra | {"instances": len(references)})
        return report_id

    def report_on(self, report_id: int, send: Callable[[CommitmentReport], SendResult]) -> None:
        """Send the report that is owed in this way, unless somebody else does."""
        leased = self.owed.claim_one(report_id, "association")
        if leased is not None:
            self._report(leased, send)

    def _asker(self, place: Destination, settings: Config) -> CommitmentAsker:
        return CommitmentAsker(
            place,
            settings.node.ae_title,
            settings.delivery,
            self.commitments,
            self.reach,
            self.reported,
            self._log,
            self.now,
        )

    def _log(self, settled: Settled) -> None:
        extra: dict[str, object] = {"destination": settled.destination}
        extra |= {"delivery": settled.delivery_id}
        if not settled.is_news:
            return
        if settled.state is CommitmentState.CONFIRMED:
            logger.info("delivery confirmed", extra=extra | {"instances": settled.instances})
        elif settled.state is CommitmentState.FAILED:
            logger.error("delivery held", extra=extra | {"reason": NOT_CONFIRMED})
        else:
            sentence = {"sentence": settled.sentence}
            logger.warning("delivery not yet confirmed", extra=extra | sentence)

    def _report(self, leased: OwedReport, send: Callable[[CommitmentReport], SendResult]) -> None:
        """Report what is true now; whatever happens, the row of the report says so."""
        report = self.owed.judge(leased)
        result = send(report)
        extra: dict[str, object] = {"calling_ae": leased.calling_ae}
        extra |= {"transaction_uid": leased.transaction_uid}
        with suppress(LeaseLost):
            if result.outcome is Outcome.STORED:
                self.owed.sent(leased, report)
                counts = {"committed": len(report.committed), "failed": len(report.failed)}
                logger.info("commitment answered", extra=extra | counts)
            elif result.outcome is Outcome.REFUSED or self._is_late(leased):
                self.owed.failed(leased, result.sentence)
                logger.error("commitment not answered", extra=extra)
            else:
                self.owed.retry(leased, self.now() + self._wait(leased), result.sentence)
                logger.warning("commitment answer delayed", extra=extra)

    def _wait(self, leased: OwedReport) -> float:
        assert self._settings is not None
        return backoff.delay(leased.tries, *self._settings.delivery.retry_seconds, self._jitter)

    def _is_late(self, leased: OwedReport) -> bool:
        assert self._settings is not None
        hours = self._settings.delivery.give_up_hours
        return self.now() - leased.asked_at > hours * 3600
