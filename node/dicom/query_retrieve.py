"""Query/Retrieve as SCU, Study Root (PS3.4 Annex C): C-FIND, and C-GET or C-MOVE of a study."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context, build_role
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    EncapsulatedPDFStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedSRStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    UltrasoundImageStorage,
)

from node.dicom.contexts import (
    LOSSLESS,
    LOSSY,
    MAX_CONTEXTS,
    TRANSFER_SYNTAXES,
    UNCOMPRESSED,
)
from node.dicom.handlers import Keep, handle_store
from node.dicom.scu import TIMEOUTS, PeerAddress, SendResult, Timeouts, associate
from node.dicom.status import SUCCESS, Outcome, outcome, status_text
from node.dicom.upper_layer import Conversation, Retrieval
from storage.records import Peer

STUDY_ROOT_FIND = str(StudyRootQueryRetrieveInformationModelFind)
STUDY_ROOT_GET = str(StudyRootQueryRetrieveInformationModelGet)
STUDY_ROOT_MOVE = str(StudyRootQueryRetrieveInformationModelMove)
PENDING = (0xFF00, 0xFF01)
MOVE_DESTINATION_UNKNOWN = 0xA801  # PS3.4 C.4.2.1.5
MOST_ANSWERS = 100_000  # to one C-FIND
# Of a peer that does not say in a C-FIND which ones a study has: those that models take first.
USUAL_SOP_CLASSES = (
    *(CTImageStorage, MRImageStorage, EnhancedCTImageStorage, EnhancedMRImageStorage),
    *(SecondaryCaptureImageStorage, SegmentationStorage, EnhancedSRStorage, ComprehensiveSRStorage),
    *(Comprehensive3DSRStorage, KeyObjectSelectionDocumentStorage),
    *(GrayscaleSoftcopyPresentationStateStorage, PositronEmissionTomographyImageStorage),
    *(ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation),
    *(EncapsulatedPDFStorage, RTStructureSetStorage, UltrasoundImageStorage),
)
MOST_SOP_CLASSES = 120

Abandon = Callable[[], bool]


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Found:
    """The instances that a peer names, or why it names none: SOP Instance and SOP Class UIDs."""

    outcome: Outcome
    instance_uids: frozenset[str] = frozenset()
    sentence: str = ""
    sop_class_uids: frozenset[str] = frozenset()


def find_instances(
    peer: PeerAddress,
    series: Iterable[tuple[str, str]],
    *,
    abandon: Abandon = _never,
    timeouts: Timeouts = TIMEOUTS,
) -> Found:
    """Ask a peer for the instances that it has of these series (Study and Series Instance UID).

    Of a study whose Series Instance UID is empty, all series are asked for first.
    """
    contexts = [build_context(STUDY_ROOT_FIND, [*UNCOMPRESSED])]
    association = associate(peer, contexts, timeouts)
    if isinstance(association, SendResult):
        return Found(association.outcome, sentence=association.sentence)
    association.dimse = Conversation(association, abandon)
    query = _Query(association)
    try:
        for study_uid, series_uid in series:
            query.ask_instances(study_uid, series_uid)
            if query.status != SUCCESS:
                return _not_found(peer, query.status)
    finally:
        association.release()
    return Found(Outcome.STORED, frozenset(query.uids), "", frozenset(query.sop_classes))


class _Query:
    """C-FIND requests over one association; `status` is the last one's, None without an answer."""

    def __init__(self, association: Association) -> None:
        self._association = association
        self.status: int | None = SUCCESS
        self.uids: set[str] = set()
        self.sop_classes: set[str] = set()

    def ask_instances(self, study_uid: str, series_uid: str) -> None:
        """Add the instances of a series that the peer names, or of all series of the study."""
        series = [series_uid] if series_uid else self._series_of(study_uid)
        for uid in series:
            wanted = Dataset()
            wanted.QueryRetrieveLevel = "IMAGE"
            wanted.StudyInstanceUID, wanted.SeriesInstanceUID = study_uid, uid
            wanted.SOPInstanceUID = wanted.SOPClassUID = ""
            for answer in self._answers(wanted):
                self.uids.add(str(answer.get("SOPInstanceUID", "")))
                self.sop_classes.add(str(answer.get("SOPClassUID", "")))
            if self.status != SUCCESS:
                return
        self.uids.discard("")
        self.sop_classes.discard("")

    def _series_of(self, study_uid: str) -> list[str]:
        wanted = Dataset()
        wanted.QueryRetrieveLevel = "SERIES"
        wanted.StudyInstanceUID, wanted.SeriesInstanceUID = study_uid, ""
        return [
            uid for it in self._answers(wanted) if (uid := str(it.get("SeriesInstanceUID", "")))
        ]

    def _answers(self, query: Dataset) -> list[Dataset]:
        """The identifiers of what matches; `status` says whether they are all."""
        self.status, identifiers = None, []
        if not self._association.is_established:
            return []
        for answer, identifier in self._association.send_c_find(query, STUDY_ROOT_FIND):
            status = int(answer.Status) if "Status" in answer else None
            if status not in PENDING:
                self.status = status
                break
            if identifier is not None:
                identifiers.append(identifier)
            if len(identifiers) > MOST_ANSWERS:
                self._association.abort()
                break
        return identifiers


def _not_found(peer: PeerAddress, status: int | None) -> Found:
    if status is None:
        return Found(Outcome.RETRY, sentence=f"{peer.ae_title} does not answer the C-FIND.")
    is_passing = outcome(status) in (Outcome.RETRY, Outcome.FEW_RETRIES)
    sentence = f"{peer.ae_title} answers the C-FIND with {status_text(status)}."
    return Found(Outcome.RETRY if is_passing else Outcome.REFUSED, sentence=sentence)


@dataclass(frozen=True)
class Wanted:
    """A study, or one series of it, and the SOP Classes that it has where they are known."""

    study_uid: str
    series_uid: str = ""
    sop_classes: frozenset[str] = frozenset()

    @property
    def identifier(self) -> Dataset:
        """The unique keys by which it is retrieved: PS3.4 C.4.2.1.4."""
        query = Dataset()
        query.QueryRetrieveLevel = "SERIES" if self.series_uid else "STUDY"
        query.StudyInstanceUID = self.study_uid
        if self.series_uid:
            query.SeriesInstanceUID = self.series_uid
        return query


@dataclass(frozen=True)
class Receiving:
    """What receives the instances of a C-GET: as those of a C-STORE request of that sender."""

    keep: Keep
    sender: Peer
    folder: Path
    min_free_bytes: int = 0
    opened: Callable[[], int | None] = lambda: None  # notes the association; its number


@dataclass(frozen=True)
class Retrieved:
    """The result of retrieving; `how` is empty where the peer did not get as far."""

    how: Literal["", "C-GET", "C-MOVE"]
    ok: bool
    sentence: str
    completed: int = 0
    failed: int = 0
    association: int | None = field(default=None, compare=False)


def retrieve(
    peer: PeerAddress,
    wanted: Wanted,
    receiving: Receiving,
    *,
    move_destination: str,
    abandon: Abandon = _never,
    timeouts: Timeouts = TIMEOUTS,
) -> Retrieved:
    """Have a peer send what is wanted: by C-GET where it offers that, else by C-MOVE."""
    classes = [*(wanted.sop_classes or USUAL_SOP_CLASSES)][:MOST_SOP_CLASSES]
    roles = [build_role(sop_class, scp_role=True) for sop_class in classes]
    association_id: list[int | None] = []

    def keep_stored(event: evt.Event) -> int | Dataset:
        if not association_id:
            association_id.append(receiving.opened())
        sender = Peer(receiving.sender.calling_ae, receiving.sender.called_ae, association_id[0])
        return handle_store(event, receiving.keep, sender)

    handlers = cast(Any, [(evt.EVT_C_STORE, keep_stored)])
    association = associate(
        peer, retrieval_contexts(classes), timeouts, roles=roles, handlers=handlers
    )
    if isinstance(association, SendResult):
        return Retrieved("", False, association.sentence)
    retrieval = Retrieval(
        association,
        receiving.folder,
        (receiving.sender.calling_ae, receiving.sender.called_ae),
        min_free_bytes=receiving.min_free_bytes,
        abandon=abandon,
    )
    association.dimse = retrieval
    try:
        result = _retrieved(association, peer, wanted, move_destination)
    finally:
        association.release()
        retrieval.close()
    number = association_id[0] if association_id else None
    return Retrieved(
        result.how, result.ok, result.sentence, result.completed, result.failed, number
    )


def retrieval_contexts(sop_classes: Sequence[str]) -> list[PresentationContext]:
    """The contexts of C-GET and C-MOVE, and those in which instances come by C-GET.

    Each compressed transfer syntax stands in a context of its own, so that the peer sends each
    instance as it has it; of the last SOP Classes, for which there is no room, all are in one.
    """
    models = (STUDY_ROOT_FIND, STUDY_ROOT_GET, STUDY_ROOT_MOVE)  # some peers want that of C-FIND
    contexts = [build_context(uid, [*UNCOMPRESSED]) for uid in models]
    alone = (*LOSSLESS, *LOSSY)
    for place, sop_class in enumerate(sop_classes):
        further = len(sop_classes) - place - 1
        if len(contexts) + len(alone) + further < MAX_CONTEXTS:
            contexts.append(build_context(sop_class, [*UNCOMPRESSED]))
            contexts += [build_context(sop_class, syntax) for syntax in alone]
        else:
            contexts.append(build_context(sop_class, [*TRANSFER_SYNTAXES]))
    return contexts


def _retrieved(
    association: Association, peer: PeerAddress, wanted: Wanted, move_destination: str
) -> Retrieved:
    accepted = {str(context.abstract_syntax) for context in association.accepted_contexts}
    may_store = {str(it.abstract_syntax) for it in association.accepted_contexts if it.as_scp}
    if STUDY_ROOT_GET in accepted and may_store:
        answers = association.send_c_get(wanted.identifier, STUDY_ROOT_GET)
        return _result(peer, "C-GET", answers)
    if STUDY_ROOT_MOVE in accepted:
        answers = association.send_c_move(wanted.identifier, move_destination, STUDY_ROOT_MOVE)
        return _result(peer, "C-MOVE", answers, move_destination)
    sentence = f"{peer.ae_title} offers neither C-GET nor C-MOVE to {peer.calling_ae_title}."
    return Retrieved("", False, sentence)


def _result(
    peer: PeerAddress,
    how: Literal["C-GET", "C-MOVE"],
    answers: Iterator[tuple[Dataset, Dataset | None]],
    move_destination: str = "",
) -> Retrieved:
    """Wait for the last answer, which counts the instances."""
    last = Dataset()
    completed = failed = 0
    for answer, _ in answers:
        last = answer
        done = int(answer.get("NumberOfCompletedSuboperations", 0) or 0)
        warned = int(answer.get("NumberOfWarningSuboperations", 0) or 0)
        completed = max(completed, done + warned)
        failed = max(failed, int(answer.get("NumberOfFailedSuboperations", 0) or 0))
    if "Status" not in last:
        sentence = f"{peer.ae_title} no longer answers the {how} after {completed} instances."
        return Retrieved(how, False, sentence, completed, failed)
    status = int(last.Status)
    if status == MOVE_DESTINATION_UNKNOWN:
        sentence = f"{peer.ae_title} does not know {move_destination}: enter the node there."
        return Retrieved(how, False, sentence, completed, failed)
    if status == SUCCESS and not failed:
        return Retrieved(how, True, "", completed)
    said = f"; {failed} failed" if failed else ""
    sentence = (
        f"{peer.ae_title} ended the {how} with {status_text(status)} after {completed} "
        f"instances{said}."
    )
    return Retrieved(how, False, sentence, completed, failed)
