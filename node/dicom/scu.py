"""The Storage and Verification SCU: sends instances over one association, each with its answer."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydicom import dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pynetdicom.association import Association
from pynetdicom.events import EventHandlerType
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
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
from node.dicom.upper_layer import PromptSocket, RequestorAE, RequestSender

MAX_MESSAGE_ID = 65535
MOST_ELEMENTS = 4  # that are named of those that offend


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
    path: Path


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
        timeouts: Timeouts,
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
) -> SendResult:
    """Offer each file to the peer; `answered` is told the status, or None where there was none, and
    the comment with it.

    `stop` ends it after the instance that is on the wire, `abandon` without waiting for its answer.

    An instance for which the peer accepts no presentation context is answered 0122 by ourselves.
    Those after a lost association, or after `stop`, are not offered and not answered.
    """
    for batch in _batches(list(files)):
        pairs = [(file.sop_class_uid, file.transfer_syntax) for file in batch]
        association = associate(peer, proposed_contexts(pairs), timeouts)
        if isinstance(association, SendResult):
            return association
        association.dimse = RequestSender(association, abandon)
        try:
            sent = _send_all(association, peer, batch, answered, stop, timeouts)
        finally:
            association.release()
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
    try:
        status = _status(association.send_c_echo())
    finally:
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


def _send_all(
    association: Association,
    peer: PeerAddress,
    files: Sequence[Outgoing],
    answered: Answered,
    stop: Callable[[], bool],
    timeouts: Timeouts,
) -> SendResult:
    for count, file in enumerate(files):
        if stop():
            return SendResult(Outcome.RETRY, "The sending was stopped.")
        began = time.monotonic()
        answer = _offer(association, file, message_id=1 + count % MAX_MESSAGE_ID)
        status = _status(answer)
        answered(file, status, comment_of(answer))
        if status is None:
            silent = time.monotonic() - began >= timeouts.answer
            what = "no longer answers" if silent else _end(association)
            done = f" after {count} of {len(files)} instances"
            return SendResult(Outcome.RETRY, f"{peer.ae_title} {what}{done}.")
    return SendResult(Outcome.STORED)


def _end(association: Association) -> str:
    """The end of an association that the peer did not leave to the node."""
    abort = getattr(association.dul, "abort", None)
    if abort is None:
        return "ended the association"
    if abort.by == "peer":
        return f"aborted the association ({abort_text(abort.source, abort.reason)})"
    return "sent something that is not a DICOM message, so the node aborted the association"


def _offer(association: Association, file: Outgoing, *, message_id: int) -> Dataset:
    """Send one instance, encoded as it is or, without loss, as the peer takes it.

    The answer has no status where the peer gave none.
    """
    accepted = {
        str(context.transfer_syntax[0])
        for context in association.accepted_contexts
        if context.abstract_syntax == file.sop_class_uid
    }
    source: Path | Dataset = file.path
    if file.transfer_syntax not in accepted:
        if file.transfer_syntax not in UNCOMPRESSED or accepted.isdisjoint(UNCOMPRESSED):
            return _refused(file)
        source = dcmread(file.path)
    if not association.is_established:
        return Dataset()
    try:
        return association.send_c_store(source, msg_id=message_id)
    except RuntimeError:  # the association ended between the two lines
        return Dataset()


def _refused(file: Outgoing) -> Dataset:
    """The answer that the node gives itself: the peer takes the instance in no form."""
    answer = Dataset()
    answer.Status = SOP_CLASS_NOT_SUPPORTED
    context = build_context(file.sop_class_uid, file.transfer_syntax)
    answer.ErrorComment = f"it accepts no {context_name(context)}"[:LONGEST_COMMENT]
    return answer


def comment_of(answer: Dataset) -> str:
    """The Error Comment and the offending elements of an answer, printable and of bounded length.

    It may name a patient: it is for pages and for REST, never for the log.
    """
    comment = str(answer.get("ErrorComment", "") or "")
    text = "".join(letter if letter.isprintable() else " " for letter in comment).strip()
    elements = answer.get("OffendingElement", None)
    tags = list(elements) if isinstance(elements, MultiValue) else [elements]
    names = [_element_name(tag) for tag in tags if tag is not None]
    offending = f"offending elements {', '.join(names[:MOST_ELEMENTS])}" if names else ""
    return "; ".join(part for part in (text[:LONGEST_COMMENT], offending) if part)


def _element_name(tag: int) -> str:
    keyword = keyword_for_tag(tag)
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {keyword}".strip()


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
    if association.is_rejected:
        primitive = association.acceptor.primitive
        assert primitive is not None
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
