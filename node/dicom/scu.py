"""The Storage and Verification SCU: sends instances over one association, each with its answer."""

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol, TypedDict, Unpack

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.association import Association
from pynetdicom.dsutils import encode, split_dataset
from pynetdicom.events import EventHandlerType
from pynetdicom.pdu_primitives import A_ASSOCIATE, SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from inference.release import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.dicom.contexts import (
    MAX_CONTEXTS,
    MAX_PDU_BYTES,
    UNCOMPRESSED,
    context_name,
    proposed_contexts,
)
from node.dicom.messages import StoreRequest
from node.dicom.requests import OTHER, Answer, Message, Requests
from node.dicom.status import (
    LONGEST_COMMENT,
    SOP_CLASS_NOT_SUPPORTED,
    SUCCESS,
    Outcome,
    abort_text,
    rejection,
    status_text,
)
from node.dicom.tls import ClientTls, TlsFailed
from node.dicom.transport import PromptSocket
from node.dicom.upper_layer import RequestorAE
from storage.files import data_set_offset

MAX_MESSAGE_ID = 65535


@dataclass(frozen=True)
class PeerAddress:
    """The address of a peer, and the AE title that the node uses towards it."""

    ae_title: str
    host: str
    port: int
    calling_ae_title: str
    tls: ClientTls | None = None


@dataclass(frozen=True)
class Outgoing:
    """A Part 10 file to send; `id` is the caller's."""

    id: int
    instance_uid: str
    sop_class_uid: str
    transfer_syntax: str
    path: Path | str


@dataclass(frozen=True)
class Timeouts:
    """The waits for a peer, in seconds; that for an answer begins when the instance is sent."""

    connect: float = 10.0
    associate: float = 30.0
    answer: float = 60.0


@dataclass(frozen=True)
class SendResult:
    """The result of sending. STORED: each instance has its answer, which may be a failure.

    RETRY and REFUSED are about the association; the sentence is for the administrator.
    """

    outcome: Outcome
    sentence: str = ""


@dataclass(frozen=True)
class EchoResult:
    """The result of a C-ECHO, and the time that it took with its association."""

    ok: bool
    seconds: float
    sentence: str


Answered = Callable[[Outgoing, int | None, str], None]
TIMEOUTS = Timeouts()


class SendOptions(TypedDict):
    """The options of `send`, in full."""

    answered: Answered
    stop: Callable[[], bool]
    abandon: Callable[[], bool]
    timeouts: Timeouts
    associations: int


class Send(Protocol):
    """`send`, or what stands in for it where there is no peer."""

    def __call__(
        self, peer: PeerAddress, files: Iterable[Outgoing], **options: Unpack[SendOptions]
    ) -> SendResult:
        """Offer each file to the peer; `answered` takes its status and comment."""


def send(
    peer: PeerAddress,
    files: Iterable[Outgoing],
    *,
    answered: Answered,
    stop: Callable[[], bool],
    abandon: Callable[[], bool] = lambda: False,
    timeouts: Timeouts = TIMEOUTS,
    associations: int = 1,
) -> SendResult:
    """Offer each file to the peer; `answered` is told the status, or None where there was none, and
    the comment with it.

    `stop` ends it after the instance that is on the wire, `abandon`, which is asked again and again
    while the peer is silent, without waiting for its answer. Several associations share the files;
    where the peer gives fewer, those that it gives send them all. `answered` is called by one
    thread at a time.

    An instance for which the peer accepts no presentation context is answered 0122 by ourselves.
    Those after a lost association, or after `stop`, are not offered and not answered.
    """
    for batch in _batches(list(files)):
        sending = _Sending(peer, batch, answered, stop, abandon, timeouts)
        sent = sending.run(associations)
        if sent.outcome is not Outcome.STORED:
            return sent
    return SendResult(Outcome.STORED)


def echo(peer: PeerAddress, *, timeouts: Timeouts = TIMEOUTS) -> EchoResult:
    """Ask a peer whether it is there: PS3.4 A.4."""
    began = time.monotonic()
    contexts = [build_context(Verification, [*UNCOMPRESSED])]
    association = associate(peer, contexts, timeouts)
    if isinstance(association, SendResult):
        return EchoResult(False, time.monotonic() - began, association.sentence)
    status = None
    try:
        status = _status(association.send_c_echo())
    finally:
        if status is None:  # a release may wait in vain where the peer has just gone
            association.abort()
        else:
            association.release()
    seconds = time.monotonic() - began
    if status is None:
        return EchoResult(False, seconds, f"{peer.ae_title} does not answer the C-ECHO.")
    if status != SUCCESS:
        return EchoResult(
            False, seconds, f"{peer.ae_title} answers the C-ECHO with {status_text(status)}."
        )
    return EchoResult(True, seconds, f"{peer.ae_title} answers.")


def _batches(files: Sequence[Outgoing]) -> Iterator[Sequence[Outgoing]]:
    """As many files at a time as one association has presentation contexts for."""
    batch: list[Outgoing] = []
    pairs: dict[tuple[str, str], None] = {}
    for file in files:
        pair = {(file.sop_class_uid, file.transfer_syntax): None}
        wider = pairs | pair
        if len(wider) > len(pairs) and len(proposed_contexts(wider)) > MAX_CONTEXTS:
            yield batch
            batch, wider = [], pair
        batch.append(file)
        pairs = wider
    if batch:
        yield batch


class _Sending:
    """Instances that one association has contexts for, and the associations that share them."""

    def __init__(
        self,
        peer: PeerAddress,
        files: Sequence[Outgoing],
        answered: Answered,
        stop: Callable[[], bool],
        abandon: Callable[[], bool],
        timeouts: Timeouts,
    ) -> None:
        self.peer = peer
        self.timeouts = timeouts
        self._answered = answered
        self._stop = stop
        self._abandon = abandon
        self._pairs = [(file.sop_class_uid, file.transfer_syntax) for file in files]
        self._total, self._done = len(files), 0
        self._waiting = deque(files)
        self._lock = threading.Lock()
        self._results: list[SendResult] = []
        self._error: BaseException | None = None

    def run(self, associations: int) -> SendResult:
        """Send them all; an error of the caller's functions ends all associations."""
        further = [
            threading.Thread(target=self._share, daemon=True, name="send")
            for _ in range(min(associations, self._total) - 1)
        ]
        for thread in further:
            thread.start()
        self._share()
        for thread in further:
            thread.join()
        if self._error is not None:
            raise self._error
        failed = [sent for sent in self._results if sent.outcome is not Outcome.STORED]
        return failed[0] if failed and self._done < self._total else SendResult(Outcome.STORED)

    def _share(self) -> None:
        """Send over one association what no other one has taken."""
        try:
            sent = self._send()
        except BaseException as error:  # noqa: BLE001 - raised by `run`
            self._error = self._error or error
        else:
            self._results.append(sent)

    def _send(self) -> SendResult:
        association = associate(self.peer, proposed_contexts(self._pairs), self.timeouts)
        if isinstance(association, SendResult):
            return association
        requests = Requests(association, self.timeouts.answer, self._abandon)
        try:
            return self._send_over(association, requests)
        finally:
            requests.close()
            association.release()

    def _send_over(self, association: Association, requests: Requests) -> SendResult:
        offers = _Offers(requests, association, self._waiting)
        while (file := offers.next()) is not None:
            if self._error is not None or self._stop():
                return SendResult(Outcome.RETRY, "The sending was stopped.")
            began = time.monotonic()
            answer = offers.offer()
            with self._lock:
                self._done += answer.status is not None
                self._answered(file, answer.status, answer.comment)
            if answer.status is None:
                offers.leave()
                silent = time.monotonic() - began >= self.timeouts.answer
                what = "no longer answers" if silent else requests.problem or _end(association)
                done = f" after {self._done} of {self._total} instances"
                return SendResult(Outcome.RETRY, f"{self.peer.ae_title} {what}{done}.")
        return SendResult(Outcome.STORED)


class _Offers:
    """The instances that go over one association, each made ready while one is on its way."""

    def __init__(
        self, requests: Requests, association: Association, waiting: deque[Outgoing]
    ) -> None:
        self._requests = requests
        self._context_ids = {
            (str(context.abstract_syntax), str(context.transfer_syntax[0])): context.context_id
            for context in association.accepted_contexts
        }
        self._message_ids = itertools.cycle(range(1, MAX_MESSAGE_ID + 1))
        self._waiting = waiting
        self._file: Outgoing | None = None
        self._message: Message | Answer | Exception = Answer(None)

    def next(self) -> Outgoing | None:
        """The instance whose turn it is, taken from those that wait."""
        if self._file is None and self._waiting:
            with contextlib.suppress(IndexError):  # another association was faster
                self._file = self._waiting.popleft()
                self._message = self._made_ready(self._file)
        return self._file

    def offer(self) -> Answer:
        """Send that instance, or say why the peer would not take it."""
        self._file, message = None, self._message
        if isinstance(message, Exception):
            raise message
        if isinstance(message, Answer):
            return message
        return self._requests.store(message, self.next)

    def leave(self) -> None:
        """Leave what was not offered to other associations."""
        if self._file is not None:
            self._waiting.appendleft(self._file)

    def _made_ready(self, file: Outgoing) -> Message | Answer | Exception:
        """An error is the next instance's, while one waits for its answer."""
        try:
            return self._message_of(file)
        except Exception as error:  # noqa: BLE001 - raised when its turn has come
            return error

    def _message_of(self, file: Outgoing) -> Message | Answer:
        """The request of an instance, encoded as it is or, without loss, as the peer takes it."""
        others = UNCOMPRESSED if file.transfer_syntax in UNCOMPRESSED else ()
        for syntax in (UID(file.transfer_syntax), *others):
            context_id = self._context_ids.get((file.sop_class_uid, str(syntax)))
            if context_id is not None:
                uids = (file.sop_class_uid, file.instance_uid, str(syntax))
                request = StoreRequest(next(self._message_ids), *uids)
                return self._requests.message(request, context_id, _data_set(file, syntax))
        context = build_context(file.sop_class_uid, file.transfer_syntax)
        comment = f"it accepts no {context_name(context)}"[:LONGEST_COMMENT]
        return Answer(SOP_CLASS_NOT_SUPPORTED, comment)


def _end(association: Association) -> str:
    """The end of an association that the peer did not leave to the node."""
    abort = getattr(association.dul, "abort", None)
    if abort is None:
        return "ended the association"
    if abort.by == "peer":
        return f"aborted the association ({abort_text(abort.source, abort.reason)})"
    return OTHER


def _data_set(file: Outgoing, syntax: UID) -> BinaryIO:
    """The data set of a file in that transfer syntax: the file itself from there on, or a copy."""
    if syntax != file.transfer_syntax:
        encoded = encode(dcmread(file.path), syntax.is_implicit_VR, syntax.is_little_endian)
        if encoded is None:
            raise ValueError(f"the data set cannot be encoded in {syntax.name}")
        return BytesIO(encoded)
    stream = open(file.path, "rb", buffering=0)  # noqa: PTH123, SIM115 - closed by the caller
    offset = data_set_offset(stream)
    stream.seek(split_dataset(Path(file.path))[1] if offset is None else offset)
    return stream


def _status(answer: Dataset) -> int | None:
    return int(answer.Status) if "Status" in answer else None


def associate(
    peer: PeerAddress,
    contexts: list[PresentationContext],
    timeouts: Timeouts,
    *,
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    handlers: Sequence[EventHandlerType] = (),
) -> Association | SendResult:
    """An established association, or the reason that there is none."""
    entity = RequestorAE(peer.calling_ae_title, timeouts.answer, peer.tls, peer.host)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.connection_timeout = timeouts.connect
    entity.acse_timeout = timeouts.associate
    entity.dimse_timeout = timeouts.answer
    entity.network_timeout = None  # the caller decides when nothing is to be sent
    began = time.monotonic()
    try:
        association = entity.associate(
            peer.host,
            peer.port,
            contexts,
            peer.ae_title,
            MAX_PDU_BYTES,
            ext_neg=[*roles],
            evt_handlers=[*handlers],
        )
    except TlsFailed as error:  # the files of our own side
        return SendResult(Outcome.RETRY, f"No TLS connection to {peer.ae_title}: {error}.")
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that no DNS can hold
        return SendResult(
            Outcome.RETRY, f"The host {peer.host} of {peer.ae_title} is unknown: {error}."
        )
    if association.is_established:
        return association
    return _failure(association, peer, timeouts, began)


def _failure(
    association: Association, peer: PeerAddress, timeouts: Timeouts, began: float
) -> SendResult:
    where = f"{peer.ae_title} at {peer.host}:{peer.port}"
    now = time.monotonic()
    # Where a rejection came before the library has looked, it takes the closed connection for one
    # that was never made, and the rejection lies unread.
    primitive = association.acceptor.primitive or association.dul.peek_next_pdu()
    if isinstance(primitive, A_ASSOCIATE) and primitive.result:
        answer = (primitive.result or 0, primitive.result_source or 0, primitive.diagnostic or 0)
        return SendResult(*rejection(answer, calling=peer.calling_ae_title, called=peer.ae_title))
    if association.rejected_contexts:
        why = "accepts none of the SOP Classes and transfer syntaxes that are to be sent"
        names = "; ".join(
            context_name(context) for context in association.requestor.requested_contexts
        )
        return SendResult(Outcome.REFUSED, f"{where} {why}: {names}.")
    transport = association.dul.socket
    assert isinstance(transport, PromptSocket)
    if transport.secured is not None and transport.secured.problem:
        problem = transport.secured.problem
        return SendResult(Outcome.RETRY, f"{where}, no TLS connection: {problem}.")
    if transport.opened_at is None:
        silent = now - began >= timeouts.connect
        why = "cannot be reached" if silent else "refuses the connection; it may not be running"
        return SendResult(Outcome.RETRY, f"{where} {why}.")
    problem = getattr(association.dul, "problem", "")
    if problem:
        why = f"accepts the association in a form that the node does not understand: {problem}"
        return SendResult(Outcome.RETRY, f"{where} {why}.")
    silent = now - transport.opened_at >= timeouts.associate
    why = "does not answer the request for an association" if silent else "aborts the association"
    return SendResult(Outcome.RETRY, f"{where} {why}.")
