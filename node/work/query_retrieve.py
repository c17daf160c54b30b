"""Query/retrieve at work: whether a peer has more of a series, and studies that people fetch."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from node import wording
from node.children import AT_ONCE, IDLE_SECONDS, WorkerLoop
from node.config import Completion, Config, Destination
from node.dicom import query_retrieve as dialogue
from node.dicom.query_retrieve import Found, Receiving, Wanted
from node.dicom.scu import PeerAddress, Timeouts
from node.dicom.status import Outcome
from node.errors import UsageError
from node.rules.completion import Evidence, PeerCount, after_asking
from storage.archive import Archive
from storage.files import Files
from storage.jobs import Queue
from storage.records import Arrival, Peer

logger = logging.getLogger(__name__)

# Of a peer that is asked whether it has more: a series waits for it, so it has to be quick.
QUICK = Timeouts(connect=5.0, associate=10.0, answer=20.0)
LONGEST_SECONDS = 90.0  # that an arrival waits for an answer, those before it in the queue included
AGAIN_SECONDS = 10.0  # the question is put again while the peer has more
AWAY_SECONDS = 60.0  # a peer that did not answer is not asked about other series
# Of a peer that sends a study: some fetch it from a tape library, and say nothing meanwhile.
PATIENT = Timeouts(answer=600.0)
NO_ANSWER = "It did not answer within {seconds:.0f} s."


class Find(Protocol):
    """`find_instances`, or what stands in for it where there is no peer."""

    def __call__(
        self,
        peer: PeerAddress,
        series: list[tuple[str, str]],
        *,
        abandon: Callable[[], bool],
        timeouts: Timeouts,
    ) -> Found:
        """Ask a peer for the instances that it has of these series."""


@dataclass
class _Question:
    """An arrival that waits for the answer, or has it."""

    arrival: Arrival
    since: float  # by the steady clock: when it was asked first
    answer: PeerCount | None = None
    answered_at: float = 0.0

    def is_about(self, arrival: Arrival) -> bool:
        """False where an instance came meanwhile."""
        mine = (self.arrival.instances, self.arrival.last_at)
        return mine == (arrival.instances, arrival.last_at)


@dataclass
class PeerQuestions:
    """Asks the peer of `completion.ask` which instances it has; one thread asks, in turn.

    A peer that is away, refuses or is slow costs a bounded time: then the quiet period decides.
    """

    archive: Archive
    queue: Queue
    ae_title: str
    now: Callable[[], float]
    steady: Callable[[], float] = time.monotonic
    find: Find = dialogue.find_instances
    _questions: dict[int, _Question] = field(default_factory=dict)
    _waiting: deque[tuple[int, Destination]] = field(default_factory=deque)
    _away: dict[str, tuple[float, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stopping = threading.Event()
        self.loop = WorkerLoop("ask", self._ask_next, self._log_failure)

    def stop(self) -> None:
        """End now; what waits for an answer is asked about after the next start."""
        self._stopping.set()
        self.loop.drain()

    def evidence(
        self, arrival: Arrival, completion: Completion, destination: Destination
    ) -> Evidence | None:
        """What the peer's answer adds to the evidence; None: the arrival waits."""
        question = self._questions.get(arrival.id)
        if question is None or not question.is_about(arrival):
            self._questions[arrival.id] = question = _Question(arrival, self.steady())
            self._put(arrival.id, destination)
            return None
        if question.answer is None:
            if self.steady() - question.since < LONGEST_SECONDS:
                return None
            sentence = NO_ANSWER.format(seconds=LONGEST_SECONDS)
            question.answer = PeerCount(destination.name, sentence=sentence)
        decided = after_asking(arrival, question.answer, now=self.now(), completion=completion)
        if decided is not None:
            self._questions.pop(arrival.id, None)
        elif self.steady() - question.answered_at >= AGAIN_SECONDS:
            question.answered_at = self.steady()  # until the next answer
            self._put(arrival.id, destination)
        return decided

    def forget(self, arrivals: set[int]) -> None:
        """Keep what is known of these arrivals alone: the others are closed."""
        for closed in self._questions.keys() - arrivals:
            self._questions.pop(closed, None)

    def _put(self, arrival_id: int, destination: Destination) -> None:
        self._waiting.append((arrival_id, destination))
        self.loop.wake()

    def _ask_next(self) -> float:
        if not self._waiting:
            return IDLE_SECONDS
        arrival_id, destination = self._waiting.popleft()
        question = self._questions.get(arrival_id)
        if question is not None:
            question.answer = self._answer(question.arrival, destination)
            question.answered_at = self.steady()
            self._note(question.arrival, question.answer)
        return AT_ONCE

    def _log_failure(self) -> None:
        logger.exception("asking failed")  # noqa: LOG004 - called by its handler

    def _answer(self, arrival: Arrival, destination: Destination) -> PeerCount:
        name = destination.name
        until, sentence = self._away.get(name, (0.0, ""))
        if self.steady() < until:
            return PeerCount(name, sentence=sentence)
        found = self.find(
            PeerAddress(*destination.address(self.ae_title)),
            [(arrival.study_uid, arrival.series_uid)],
            abandon=self._stopping.is_set,
            timeouts=QUICK,
        )
        if found.outcome is not Outcome.STORED:
            self._away[name] = (self.steady() + AWAY_SECONDS, found.sentence)
            return PeerCount(name, sentence=found.sentence)
        ours: frozenset[str] = frozenset()
        for part in self.archive.brought_by_each(arrival):
            ours |= part.uids
        return PeerCount(name, len(found.instance_uids), len(found.instance_uids - ours))

    def _note(self, arrival: Arrival, answer: PeerCount) -> None:
        """Say it in the log, and while the series waits for the rest on its pages."""
        extra: dict[str, object] = {"series_uid": arrival.series_uid, "destination": answer.peer}
        if answer.sentence:
            logger.warning("peer not asked", extra=extra | {"sentence": answer.sentence})
            return
        counts = {"instances": answer.instances, "missing": answer.missing}
        logger.info("peer asked", extra=extra | counts)
        if answer.missing:
            self.queue.note_waiting(arrival.id, answer.peer, answer.missing)


@dataclass
class Fetcher:
    """Has a peer send a study, or a series of it, into the same arrivals as by itself."""

    archive: Archive
    files: Files
    settings: Config
    now: Callable[[], float]
    stopping: threading.Event = field(default_factory=threading.Event)

    def fetch(self, name: str, study_uid: str, series_uid: str) -> tuple[bool, str]:
        """Fetch from a destination; whether all came, and a sentence."""
        destination = self.settings.destination(name)
        if destination.kind != "dimse":
            raise UsageError(f"{name} is a DICOMweb destination; fetch from one of kind dimse.")
        node_ae = self.settings.node.ae_title
        peer = PeerAddress(*destination.address(node_ae))
        found = self._found(peer, study_uid, series_uid)
        extra: dict[str, object] = {"destination": name, "study_uid": study_uid}
        number = 0

        def opened() -> int:
            nonlocal number
            names = (peer.ae_title, peer.calling_ae_title, peer.host)
            number = self.archive.associated(*names, self.now())
            return number

        result = dialogue.retrieve(
            peer,
            Wanted(study_uid, series_uid, found.sop_class_uids),
            Receiving(
                self.archive.keep,
                Peer(peer.ae_title, peer.calling_ae_title),
                self.files.incoming,
                self.files.min_free_bytes,
                opened,
            ),
            move_destination=node_ae,
            abandon=self.stopping.is_set,
            timeouts=PATIENT,
        )
        if number:
            self.archive.dissociated(number, "released" if result.ok else "aborted", self.now())
        counts = {"instances": result.completed, "failed": result.failed, "how": result.how}
        ok, sentence = _judged(peer, result, len(found.instance_uids))
        if ok:
            logger.info("study fetched", extra=extra | counts)
        else:
            logger.warning("study not fetched", extra=extra | counts | {"sentence": sentence})
        return ok, sentence

    def _found(self, peer: PeerAddress, study_uid: str, series_uid: str) -> Found:
        """What the peer has of it; nothing is known where it offers no C-FIND."""
        found = dialogue.find_instances(
            peer, [(study_uid, series_uid)], abandon=self.stopping.is_set
        )
        if found.outcome is Outcome.RETRY:
            raise UsageError(found.sentence)
        if found.outcome is Outcome.STORED and not found.instance_uids:
            what = "series" if series_uid else "study"
            raise UsageError(f"{peer.ae_title} has no such {what}.")
        return found


def _judged(peer: PeerAddress, result: dialogue.Retrieved, expected: int) -> tuple[bool, str]:
    """Whether all came that the peer has named before, and the sentence for who asked."""
    if not result.ok:
        return False, result.sentence
    came = f"{wording.count(result.completed, 'instance')} came from {peer.ae_title}"
    if result.completed < max(expected, 1):
        return False, f"{came} by {result.how}, of {expected} that it has."
    return True, f"{came} by {result.how}."
