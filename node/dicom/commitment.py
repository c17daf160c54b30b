"""Storage Commitment Push Model: asks and reports as SCU and SCP (PS3.4 Annex J).

The request is an N-ACTION, the report an N-EVENT-REPORT. A report may come on the association of
the request or on one that its sender opens later, perhaps under another AE title.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol, cast

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.presentation import PresentationContext, build_context, build_role
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]

from node.dicom.contexts import UNCOMPRESSED, commitment_context
from node.dicom.incoming import uid_of
from node.dicom.negotiation import titles
from node.dicom.scu import TIMEOUTS, PeerAddress, SendResult, Timeouts, associate
from node.dicom.status import (
    INVALID_ARGUMENT,
    NO_SUCH_ACTION,
    NO_SUCH_EVENT_TYPE,
    NO_SUCH_INSTANCE,
    NOT_AUTHORISED,
    PROCESSING_FAILURE,
    SUCCESS,
    Outcome,
    outcome,
    status_text,
)
from node.dicom.upper_layer import MALFORMED, AcceptedAssociation, Conversation, Receiver
from storage.errors import StorageError
from storage.records import CommitmentReport, Reference

logger = logging.getLogger(__name__)

PUSH_MODEL = str(StorageCommitmentPushModel)
PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1.1"  # the same everywhere: PS3.4 J.3
WELL_KNOWN = (PUSH_MODEL, PUSH_MODEL_INSTANCE)
REQUEST = 1  # Action Type ID
ALL_COMMITTED, FAILURES_EXIST = 1, 2  # Event Type IDs
QUIET_SECONDS = 1.0  # of a peer that has asked, before the report on its own association
MESSAGE_ID = 1

Answer = tuple[int, Dataset | None]


class CommitmentService(Protocol):
    """What the node does about storage commitment with peers that open an association."""

    def roles(self, calling_ae: str, *, is_reporting: bool) -> tuple[bool, bool]:
        """True where it may ask, and where it may report."""

    def reported(self, report: CommitmentReport) -> bool:
        """Take a report in; False where nobody has asked for it."""

    def asked(
        self, calling_ae: str, called_ae: str, transaction_uid: str, references: Sequence[Reference]
    ) -> int:
        """Keep a request; the number of the report that is owed."""

    def report_on(self, report_id: int, send: Callable[[CommitmentReport], SendResult]) -> None:
        """Send the report that is owed in this way, unless it was sent already."""


@dataclass(frozen=True)
class Asked:
    """The result of an N-ACTION; RETRY and REFUSED have a sentence for the administrator."""

    outcome: Outcome
    sentence: str = ""
    status: int | None = None


def ask(
    peer: PeerAddress,
    transaction_uid: str,
    references: Sequence[Reference],
    *,
    reported: Callable[[CommitmentReport], bool],
    accepted: Callable[[], None],
    has_ended: Callable[[], bool],
    wait_seconds: float,
    abandon: Callable[[], bool] = lambda: False,
    timeouts: Timeouts = TIMEOUTS,
) -> Asked:
    """Ask a peer to commit itself to these instances, and stay for its report for a moment."""
    contexts = [build_context(PUSH_MODEL, [*UNCOMPRESSED])]
    handlers = [(evt.EVT_N_EVENT_REPORT, answer_report, [reported, peer.ae_title])]
    association = associate(peer, contexts, timeouts, handlers=cast(Any, handlers))
    if isinstance(association, SendResult):
        return Asked(association.outcome, association.sentence)
    association.dimse = conversation = Conversation(association, abandon)
    try:
        asked = _asked(association, peer, transaction_uid, references)
        if asked.outcome is Outcome.STORED:
            accepted()
            until = time.monotonic() + wait_seconds
            conversation.serve(lambda: has_ended() or time.monotonic() >= until)
        return asked
    finally:
        association.release()


def _asked(
    association: Association,
    peer: PeerAddress,
    transaction_uid: str,
    references: Sequence[Reference],
) -> Asked:
    information = _information(transaction_uid, references)
    answer, _ = association.send_n_action(information, REQUEST, PUSH_MODEL, PUSH_MODEL_INSTANCE)
    if "Status" not in answer:
        return Asked(Outcome.RETRY, f"{peer.ae_title} does not answer the N-ACTION.")
    status = int(answer.Status)
    result = outcome(status)
    if result is Outcome.STORED:
        return Asked(result, status=status)
    sentence = f"{peer.ae_title} answers the N-ACTION with {status_text(status)}."
    is_passing = result in (Outcome.RETRY, Outcome.FEW_RETRIES)
    return Asked(Outcome.RETRY if is_passing else Outcome.REFUSED, sentence, status)


def send_report(
    peer: PeerAddress,
    report: CommitmentReport,
    *,
    abandon: Callable[[], bool] = lambda: False,
    timeouts: Timeouts = TIMEOUTS,
) -> SendResult:
    """Report to a peer that has asked, on an association of our own, as its SCP."""
    contexts = [build_context(PUSH_MODEL, [*UNCOMPRESSED])]
    association = associate(peer, contexts, timeouts, roles=[build_role(PUSH_MODEL, scp_role=True)])
    if isinstance(association, SendResult):
        return association
    association.dimse = conversation = Conversation(association, abandon)
    try:
        request, context_id = _report_request(association, report)
        conversation.send_msg(request, context_id)
        return _heard(peer.ae_title, conversation.get_msg(block=True)[1])
    finally:
        association.release()


def report_within(association: Association, report: CommitmentReport) -> SendResult:
    """Report to a peer on its own association, in the thread of that."""
    receiver = association.dimse
    assert isinstance(receiver, Receiver)
    request, context_id = _report_request(association, report)
    return _heard("The sender", receiver.converse(request, context_id))


def _report_request(
    association: Association, report: CommitmentReport
) -> tuple[N_EVENT_REPORT, int]:
    context = _context(association)
    request = N_EVENT_REPORT()
    request.MessageID = MESSAGE_ID
    request.AffectedSOPClassUID = UID(PUSH_MODEL)
    request.AffectedSOPInstanceUID = UID(PUSH_MODEL_INSTANCE)
    request.EventTypeID = FAILURES_EXIST if report.failed else ALL_COMMITTED
    information = _information(report.transaction_uid, report.committed)
    if report.failed:
        information.FailedSOPSequence = [
            _reference(reference, failure) for reference, failure in report.failed.items()
        ]
    syntax = context.transfer_syntax[0]
    encoded = encode(information, syntax.is_implicit_VR, syntax.is_little_endian)
    assert encoded is not None
    request.EventInformation = BytesIO(encoded)
    return request, context.context_id or 0


def _context(association: Association) -> PresentationContext:
    contexts = association.accepted_contexts
    return next(context for context in contexts if context.abstract_syntax == PUSH_MODEL)


def _heard(name: str, answer: object) -> SendResult:
    status = getattr(answer, "Status", None)
    if status is None:
        return SendResult(Outcome.RETRY, f"{name} does not answer the N-EVENT-REPORT.")
    if outcome(status) is Outcome.STORED:
        return SendResult(Outcome.STORED)
    sentence = f"{name} answers the N-EVENT-REPORT with {status_text(status)}."
    is_passing = outcome(status) in (Outcome.RETRY, Outcome.FEW_RETRIES)
    return SendResult(Outcome.RETRY if is_passing else Outcome.REFUSED, sentence)


def _information(transaction_uid: str, references: Sequence[Reference]) -> Dataset:
    """Action or Event Information: PS3.4 Tables J.3-1 and J.3-2."""
    information = Dataset()
    information.TransactionUID = transaction_uid
    if references:
        information.ReferencedSOPSequence = [_reference(reference) for reference in references]
    return information


def _reference(reference: Reference, failure: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = reference.sop_class_uid
    item.ReferencedSOPInstanceUID = reference.instance_uid
    if failure is not None:
        item.FailureReason = failure
    return item


class CommitmentDialogue:
    """Storage commitment on an association that a peer has opened: it asks, reports, or both."""

    def __init__(
        self, association: AcceptedAssociation, service: CommitmentService, may_ask: bool
    ) -> None:
        self._association = association
        self._service = service
        self._calling_ae, self._called_ae = titles(association.provider.request)
        self._owed: list[int] = []  # the numbers of reports
        reporting = [service.reported, self._calling_ae]
        association.bind(evt.EVT_N_EVENT_REPORT, answer_report, reporting)
        asking = [may_ask, self._take, self._calling_ae]
        association.bind(evt.EVT_N_ACTION, answer_request, asking)

    @classmethod
    def offer(cls, association: AcceptedAssociation, service: CommitmentService) -> None:
        """Accept the context where the peer may use it; called before the contexts are negotiated.

        A peer that says it will act as SCP may report whoever it is: what it says counts only
        where it knows the Transaction UID of a request of ours.
        """
        request = association.requestor.primitive
        contexts = request.presentation_context_definition_list if request is not None else []
        if all(context.abstract_syntax != PUSH_MODEL for context in contexts):
            return
        roles = association.requestor.role_selection.get(UID(PUSH_MODEL))
        is_reporting = roles is not None and bool(roles.scp_role)
        calling_ae, _ = titles(association.provider.request)
        may_ask, may_report = service.roles(calling_ae, is_reporting=is_reporting)
        if not (may_ask or may_report):
            return
        own = commitment_context(asks=may_ask, reports=may_report)
        acceptor = association.acceptor
        acceptor.supported_contexts = [*acceptor.supported_contexts, own]
        cls(association, service, may_ask)

    def _take(self, transaction_uid: str, references: Sequence[Reference]) -> None:
        asked = (self._calling_ae, self._called_ae, transaction_uid, references)
        self._owed.append(self._service.asked(*asked))
        self._association.receiver.when_idle = self._report

    def _report(self) -> None:
        """Report once the peer has been silent for a moment: it waits, or it would have gone."""
        is_quiet = self._association.receiver.silence() >= QUIET_SECONDS
        if not (self._owed and is_quiet and self._association.is_established):
            return
        report_id = self._owed.pop(0)
        self._service.report_on(report_id, lambda it: report_within(self._association, it))


def answer_report(
    event: evt.Event, reported: Callable[[CommitmentReport], bool], calling_ae: str
) -> Answer:
    """Answer an N-EVENT-REPORT request. Success means: what it says is in the database."""
    request = event.request
    assert isinstance(request, N_EVENT_REPORT)
    if (request.AffectedSOPClassUID, request.AffectedSOPInstanceUID) != WELL_KNOWN:
        return _refused(NO_SUCH_INSTANCE, calling_ae), None
    if request.EventTypeID not in (ALL_COMMITTED, FAILURES_EXIST):
        return _refused(NO_SUCH_EVENT_TYPE, calling_ae), None
    try:
        report = _read_report(event.event_information, calling_ae)
    except MALFORMED:
        return _refused(INVALID_ARGUMENT, calling_ae), None
    try:
        is_known = reported(report)
    except StorageError:
        logger.exception("commitment report not kept", extra={"calling_ae": calling_ae})
        return PROCESSING_FAILURE, None
    if not is_known:
        return _refused(INVALID_ARGUMENT, calling_ae, report.transaction_uid), None
    return SUCCESS, None


def answer_request(
    event: evt.Event,
    may_ask: bool,
    asked: Callable[[str, Sequence[Reference]], None],
    calling_ae: str,
) -> Answer:
    """Answer an N-ACTION request. Success means: the report is owed, whatever happens."""
    request = event.request
    assert isinstance(request, N_ACTION)
    if not may_ask:
        return _refused(NOT_AUTHORISED, calling_ae), None
    if (request.RequestedSOPClassUID, request.RequestedSOPInstanceUID) != WELL_KNOWN:
        return _refused(NO_SUCH_INSTANCE, calling_ae), None
    if request.ActionTypeID != REQUEST:
        return _refused(NO_SUCH_ACTION, calling_ae), None
    try:
        information = event.action_information
        transaction_uid = _transaction_uid(information)
        references = tuple(_references(information, "ReferencedSOPSequence"))
    except MALFORMED:
        return _refused(INVALID_ARGUMENT, calling_ae), None
    if not references:
        return _refused(INVALID_ARGUMENT, calling_ae), None
    try:
        asked(transaction_uid, [reference for reference, _ in references])
    except StorageError:
        logger.exception("commitment request not kept", extra={"calling_ae": calling_ae})
        return PROCESSING_FAILURE, None
    return SUCCESS, None


def _refused(status: int, calling_ae: str, transaction_uid: str = "") -> int:
    extra = {"calling_ae": calling_ae, "status": f"0x{status:04X}"}
    logger.warning("commitment refused", extra=extra | {"transaction_uid": transaction_uid})
    return status


def _read_report(information: Dataset, calling_ae: str) -> CommitmentReport:
    """The content of a report; one of MALFORMED where it has none."""
    committed = _references(information, "ReferencedSOPSequence")
    failed = dict(_references(information, "FailedSOPSequence"))
    return CommitmentReport(
        transaction_uid=_transaction_uid(information),
        committed=tuple(reference for reference, _ in committed if reference not in failed),
        failed=failed,
        calling_ae=calling_ae,
    )


def _transaction_uid(information: Dataset) -> str:
    return _uid(information.TransactionUID)


def _uid(value: object) -> str:
    """A UID that the database can hold; ValueError where it is none."""
    uid = uid_of(str(value).encode("ascii"))
    if not uid:
        raise ValueError("not a UID")
    return uid


def _references(information: Dataset, keyword: str) -> Iterator[tuple[Reference, int]]:
    """The instances of a sequence, each with its Failure Reason, where it has one."""
    for item in information.get(keyword, None) or ():
        failure = item.get("FailureReason", None)
        reference = Reference(_uid(item.ReferencedSOPClassUID), _uid(item.ReferencedSOPInstanceUID))
        yield reference, int(failure or PROCESSING_FAILURE)
