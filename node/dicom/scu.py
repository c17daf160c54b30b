"""The Storage and Verification SCU: sends instances over one association, each with its answer."""

import contextlib
import queue
import ssl
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE, DimsePrimitiveType
from pynetdicom.dsutils import encode
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import AddressInformation

from node.dicom.contexts import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    MAX_CONTEXTS,
    MAX_PDU_BYTES,
    UNCOMPRESSED,
    proposed_contexts,
)
from node.dicom.status import SOP_CLASS_NOT_SUPPORTED, SUCCESS, Outcome, rejection, said
from node.dicom.upper_layer import PromptSocket

if TYPE_CHECKING:
    from pynetdicom.dimse import _QueueItem


# The library passes each PDU through two queues and its state machine, which matters with peers
# that take 16 KiB at a time. Answers, release and abort stay with the library.

WRITE_BYTES = 1 << 18
LARGEST_PDU_BYTES = 1 << 17  # also for a peer that takes any length, which it says with a 0
PDV_HEAD_BYTES = 6  # length, context id, message control header: PS3.8 9.3.5.1
POLL_SECONDS = 0.2  # how soon `abandon` is heard
NO_TIMEOUT_SECONDS = 3600.0  # where none was set: every wait has an end
COMMAND, LAST = 1, 2  # bits of the message control header: PS3.8 E.2


class Sender(DIMSEServiceProvider):
    """The library's DIMSE provider, with C-STORE requests written past its queues."""

    def __init__(self, assoc: "Association", abandon: Callable[[], bool]) -> None:
        super().__init__(assoc)
        self._abandon = abandon

    def send_msg(self, primitive: DimsePrimitiveType, context_id: int) -> None:
        """Send a message; where the connection breaks, the answer that is waited for is none."""
        if not isinstance(primitive, C_STORE):
            super().send_msg(primitive, context_id)
            return
        message = C_STORE_RQ()
        message.primitive_to_message(primitive)
        command = encode(message.command_set, True, True)  # Implicit VR: PS3.7 6.3.1
        assert command is not None
        largest = min(self.maximum_pdu_size or LARGEST_PDU_BYTES, LARGEST_PDU_BYTES)
        most = max(1, largest - PDV_HEAD_BYTES)
        with _data_set(primitive) as data:
            self._write(pdus(command, data, context_id=context_id, most=most))

    def get_msg(self, block: bool = False) -> "_QueueItem":
        """The answer that `send_c_store` waits for; none for the association's own thread.

        That thread is paused while a request is under way, but the library lets it run for a moment
        between two requests: it then took the next answer off the queue, once in about 1,000
        instances on a busy machine, and the sender waited for it until its time was over.
        """
        if not block:
            return None, None
        waited_until = time.monotonic() + (self.dimse_timeout or NO_TIMEOUT_SECONDS)
        while time.monotonic() < waited_until and not self._abandon():
            with contextlib.suppress(queue.Empty):
                return self.msg_queue.get(timeout=POLL_SECONDS)
        return None, None

    def _write(self, pieces: Iterator[bytes]) -> None:
        transport = self.dul.socket
        assert isinstance(transport, PromptSocket)
        waiting = bytearray()
        for piece in pieces:
            waiting += piece
            if len(waiting) >= WRITE_BYTES:
                transport.write(waiting)
                waiting = bytearray()
        transport.write(waiting)


def pdus(command: bytes, data: BinaryIO, *, context_id: int, most: int) -> Iterator[bytes]:
    """A C-STORE request as P-DATA-TF PDUs, each with one fragment of at most so many bytes."""
    for start in range(0, len(command), most):
        fragment = command[start : start + most]
        yield _pdu(fragment, context_id, COMMAND, is_last=start + most >= len(command))
    fragment, is_last = data.read(most), False
    while not is_last:
        following = data.read(most)
        is_last = not following
        yield _pdu(fragment, context_id, 0, is_last=is_last)
        fragment = following


@contextlib.contextmanager
def _data_set(request: C_STORE) -> Iterator[BinaryIO]:
    """The encoded data set of a request: in a file, after its meta information, or in memory."""
    if isinstance(request._dataset_path, tuple):
        path, offset = request._dataset_path
        with path.open("rb") as file:
            file.seek(offset)
            yield file
    else:
        assert request.DataSet is not None
        request.DataSet.seek(0)
        yield request.DataSet


def _pdu(fragment: bytes, context_id: int, kind: int, *, is_last: bool) -> bytes:
    control = kind | (LAST if is_last else 0)
    length = len(fragment) + PDV_HEAD_BYTES
    head = struct.pack(">BBIIBB", 0x04, 0, length, length - 4, context_id, control)
    return head + fragment


# A file is read in pieces and sent as it is, not decoded and encoded again.
_config.STORE_SEND_CHUNKED_DATASET = True

MAX_MESSAGE_ID = 65535


@dataclass(frozen=True)
class PeerAddress:
    """Where a peer is, and what the node calls itself towards it."""

    ae_title: str
    host: str
    port: int
    calling_ae_title: str


@dataclass(frozen=True)
class Outgoing:
    """A Part 10 file to send; `id` is the caller's."""

    id: int
    instance_uid: str
    sop_class_uid: str
    transfer_syntax: str
    path: Path


@dataclass(frozen=True)
class Timeouts:
    """How long to wait for a peer, in seconds; the answer's begins when the instance is sent."""

    connect: float = 10.0
    associate: float = 30.0
    answer: float = 60.0


@dataclass(frozen=True)
class Sent:
    """How the sending went. STORED: each instance has its answer, which may be a failure.

    RETRY and REFUSED are about the association; the sentence is for the administrator.
    """

    outcome: Outcome
    sentence: str = ""


@dataclass(frozen=True)
class Echo:
    """Whether a peer answers a C-ECHO, and how long that took with its association."""

    ok: bool
    seconds: float
    sentence: str


Answered = Callable[[Outgoing, int | None], None]
TIMEOUTS = Timeouts()


class Send(Protocol):
    """`send`, or what stands in for it where there is no peer."""

    def __call__(
        self,
        peer: PeerAddress,
        files: Iterable[Outgoing],
        *,
        answered: Answered,
        stop: Callable[[], bool],
        abandon: Callable[[], bool],
    ) -> Sent:
        """Offer each file to the peer; `answered` takes its status."""


def send(
    peer: PeerAddress,
    files: Iterable[Outgoing],
    *,
    answered: Answered,
    stop: Callable[[], bool],
    abandon: Callable[[], bool] = lambda: False,
    timeouts: Timeouts = TIMEOUTS,
) -> Sent:
    """Offer each file to the peer; `answered` is told the status, or None where there was none.

    `stop` ends it after the instance that is on the wire, `abandon` without waiting for its answer.

    An instance for which the peer accepts no presentation context is answered 0122 by ourselves.
    Those after a lost association, or after `stop`, are not offered and not answered.
    """
    for batch in _batches(list(files)):
        pairs = [(one.sop_class_uid, one.transfer_syntax) for one in batch]
        association = _associate(peer, proposed_contexts(pairs), timeouts)
        if isinstance(association, Sent):
            return association
        association.dimse = Sender(association, abandon)
        try:
            sent = _send_all(association, peer, batch, answered, stop, timeouts)
        finally:
            association.release()
        if sent.outcome is not Outcome.STORED:
            return sent
    return Sent(Outcome.STORED)


def echo(peer: PeerAddress, *, timeouts: Timeouts = TIMEOUTS) -> Echo:
    """Ask a peer whether it is there: PS3.4 A.4."""
    began = time.monotonic()
    contexts = [build_context(Verification, [*UNCOMPRESSED])]
    association = _associate(peer, contexts, timeouts)
    if isinstance(association, Sent):
        return Echo(False, time.monotonic() - began, association.sentence)
    try:
        status = _status(association.send_c_echo())
    finally:
        association.release()
    seconds = time.monotonic() - began
    if status is None:
        return Echo(False, seconds, f"{peer.ae_title} does not answer the C-ECHO.")
    if status != SUCCESS:
        return Echo(False, seconds, f"{peer.ae_title} answers the C-ECHO with {said(status)}.")
    return Echo(True, seconds, f"{peer.ae_title} answers.")


def _batches(files: Sequence[Outgoing]) -> Iterator[Sequence[Outgoing]]:
    """As many files at a time as one association has presentation contexts for."""
    batch: list[Outgoing] = []
    pairs: dict[tuple[str, str], None] = {}
    for one in files:
        wider = pairs | {(one.sop_class_uid, one.transfer_syntax): None}
        if len(wider) > len(pairs) and len(proposed_contexts(wider)) > MAX_CONTEXTS:
            yield batch
            batch, wider = [], {(one.sop_class_uid, one.transfer_syntax): None}
        batch.append(one)
        pairs = wider
    if batch:
        yield batch


def _send_all(
    association: Association,
    peer: PeerAddress,
    files: Sequence[Outgoing],
    answered: Answered,
    stop: Callable[[], bool],
    timeouts: Timeouts,
) -> Sent:
    for count, one in enumerate(files):
        if stop():
            return Sent(Outcome.RETRY, "The sending was stopped.")
        began = time.monotonic()
        status = _offer(association, one, message_id=1 + count % MAX_MESSAGE_ID)
        answered(one, status)
        if status is None:
            silent = time.monotonic() - began >= timeouts.answer
            what = "does not answer any more" if silent else "ended the association"
            done = f" after {count} of {len(files)} instances"
            return Sent(Outcome.RETRY, f"{peer.ae_title} {what}{done}.")
    return Sent(Outcome.STORED)


def _offer(association: Association, one: Outgoing, *, message_id: int) -> int | None:
    """Send one instance, encoded as it is or, without loss, as the peer takes it."""
    accepted = {
        str(context.transfer_syntax[0])
        for context in association.accepted_contexts
        if context.abstract_syntax == one.sop_class_uid
    }
    source: Path | Dataset = one.path
    if one.transfer_syntax not in accepted:
        if one.transfer_syntax not in UNCOMPRESSED or accepted.isdisjoint(UNCOMPRESSED):
            return SOP_CLASS_NOT_SUPPORTED
        source = dcmread(one.path)
    if not association.is_established:
        return None
    try:
        return _status(association.send_c_store(source, msg_id=message_id))
    except RuntimeError:  # the association ended between the two lines
        return None


def _status(answer: Dataset) -> int | None:
    return int(answer.Status) if "Status" in answer else None


class _Requestor(AE):
    """An application entity whose associations have our sockets."""

    def __init__(self, ae_title: str, seconds: float) -> None:
        super().__init__(ae_title)
        self._seconds = seconds

    def _create_socket(
        self,
        assoc: Association,
        address: AddressInformation,
        tls_args: tuple[ssl.SSLContext, str] | None,
    ) -> PromptSocket:
        # A peer that is silent must not keep the node from ending: its threads are not waited for.
        assoc.daemon = assoc.dul.daemon = True
        transport = PromptSocket(assoc, self._seconds, bind_to=address)
        transport.tls_args = tls_args
        return transport


def _associate(
    peer: PeerAddress, contexts: list[PresentationContext], timeouts: Timeouts
) -> Association | Sent:
    """An established association, or why there is none."""
    entity = _Requestor(peer.calling_ae_title, timeouts.answer)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.connection_timeout = timeouts.connect
    entity.acse_timeout = timeouts.associate
    entity.dimse_timeout = timeouts.answer
    entity.network_timeout = None  # the caller decides when nothing is to be sent
    began = time.monotonic()
    try:
        association = entity.associate(peer.host, peer.port, contexts, peer.ae_title, MAX_PDU_BYTES)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that no DNS can hold
        return Sent(Outcome.RETRY, f"The host {peer.host} of {peer.ae_title} is unknown: {error}.")
    if association.is_established:
        return association
    return _why_not(association, peer, timeouts, began)


def _why_not(association: Association, peer: PeerAddress, timeouts: Timeouts, began: float) -> Sent:
    where = f"{peer.ae_title} at {peer.host}:{peer.port}"
    now = time.monotonic()
    if association.is_rejected:
        primitive = association.acceptor.primitive
        assert primitive is not None
        answer = (primitive.result or 0, primitive.result_source or 0, primitive.diagnostic or 0)
        return Sent(*rejection(answer, calling=peer.calling_ae_title, called=peer.ae_title))
    if association.rejected_contexts:
        why = "accepts none of the SOP Classes and transfer syntaxes that are to be sent"
        return Sent(Outcome.REFUSED, f"{where} {why}.")
    transport = association.dul.socket
    assert isinstance(transport, PromptSocket)
    if transport.opened_at is None:
        silent = now - began >= timeouts.connect
        why = "cannot be reached" if silent else "refuses the connection; it may not be running"
        return Sent(Outcome.RETRY, f"{where} {why}.")
    silent = now - transport.opened_at >= timeouts.associate
    why = "does not answer the request for an association" if silent else "aborts the association"
    return Sent(Outcome.RETRY, f"{where} {why}.")
