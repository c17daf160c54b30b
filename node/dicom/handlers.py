"""Answers C-STORE requests; nothing else in the node returns a DIMSE status."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.dimse_primitives import C_STORE

from node.dicom import header
from node.dicom.incoming import Incoming, Refusal, uid_of
from node.dicom.status import (
    CANNOT_UNDERSTAND,
    DOES_NOT_MATCH,
    LONGEST_COMMENT,
    OUT_OF_RESOURCES,
    SUCCESS,
    UID_INVALID,
)
from storage.errors import Busy, NoRoom

logger = logging.getLogger(__name__)

COMMAND_GROUP = 0x0000
UIDS = {
    header.STUDY_UID: "Study Instance UID",
    header.SERIES_UID: "Series Instance UID",
    header.INSTANCE_UID: "SOP Instance UID",
}


@dataclass(frozen=True)
class Identity:
    """What a received instance is, from its data set; texts are decoded as far as they can be."""

    study_uid: str
    series_uid: str
    instance_uid: str
    sop_class_uid: str
    transfer_syntax: str
    modality: str = ""
    patient_id: str = ""
    accession: str = ""
    study_date: str = ""
    description: str = ""
    patient_name: str = ""


@dataclass(frozen=True)
class PeerNames:
    """Who brings an instance: the AE titles, and the number under which `opened` knows it."""

    calling_ae: str
    called_ae: str
    association: int | None = None


Keep = Callable[[Identity, PeerNames, Path], None]


def handle_store(event: evt.Event, keep: Keep, peer: PeerNames) -> int | Dataset:
    """Answer a C-STORE request. Success means: on disk, indexed, and fsynced.

    What is raised and not named here escapes to pynetdicom, which answers C211: a failure.
    """
    request = event.request
    assert isinstance(request, C_STORE)
    incoming = request.DataSet
    extra = {"sop_instance_uid": str(request.AffectedSOPInstanceUID), "calling_ae": peer.calling_ae}
    if not isinstance(incoming, Incoming):
        return _failure(Refusal(CANNOT_UNDERSTAND, "there is no data set"), extra)
    try:
        path, data_at = incoming.finish()
        identity = identify(path, data_at, str(event.context.transfer_syntax))
        check_match(identity, request)
        keep(identity, peer, path)
    except Refusal as refusal:
        return _failure(refusal, extra)
    except (NoRoom, Busy, OSError) as error:
        reason = type(error).__name__
        logger.exception("instance not kept", extra=extra | {"reason": reason})
        return _status(Refusal(OUT_OF_RESOURCES, f"not stored, try again later: {reason}"))
    finally:
        incoming.discard()
    logger.info("instance stored", extra=extra | {"series_uid": identity.series_uid})
    return SUCCESS


def identify(path: Path, data_at: int, transfer_syntax: str) -> Identity:
    """What the data set in this file is; Refusal where it cannot be read or names itself not."""
    try:
        with path.open("rb") as file:
            file.seek(data_at)
            values = header.read(file, transfer_syntax)
    except header.Unreadable as error:
        raise Refusal(CANNOT_UNDERSTAND, str(error)) from error
    uids = {tag: _uid(values, tag) for tag in UIDS}
    return Identity(
        study_uid=uids[header.STUDY_UID],
        series_uid=uids[header.SERIES_UID],
        instance_uid=uids[header.INSTANCE_UID],
        sop_class_uid=uid_of(values.get(header.SOP_CLASS_UID, b"")),
        transfer_syntax=transfer_syntax,
        modality=header.text(values, header.MODALITY)[:16],
        patient_id=header.text(values, header.PATIENT_ID),
        accession=header.text(values, header.ACCESSION),
        study_date=header.text(values, header.STUDY_DATE)[:16],
        description=header.text(values, header.SERIES_DESCRIPTION),
        patient_name=header.text(values, header.PATIENT_NAME),
    )


def check_match(identity: Identity, request: C_STORE) -> None:
    """The command and the data set have to speak of the same instance: PS3.4 Table B.2-1, A9xx."""
    if identity.sop_class_uid != request.AffectedSOPClassUID:
        comment = "SOP Class UID differs from the command's"
        raise Refusal(DOES_NOT_MATCH, comment, header.SOP_CLASS_UID)
    if identity.instance_uid != request.AffectedSOPInstanceUID:
        comment = "SOP Instance UID differs from the command's"
        raise Refusal(DOES_NOT_MATCH, comment, header.INSTANCE_UID)


def _uid(values: Mapping[int, bytes], tag: int) -> str:
    uid = uid_of(values.get(tag, b""))
    if not uid:
        raise Refusal(UID_INVALID, f"{UIDS[tag]}: 1-64 of 0-9 and .", tag)
    # PS3.5 9.1 forbids these; old scanners send them, and they identify as well as any other.
    if any(not part or (part[0] == "0" and part != "0") for part in uid.split(".")):
        logger.warning("unusual UID", extra={"uid": uid, "attribute": UIDS[tag]})
    return uid


def _failure(refusal: Refusal, extra: Mapping[str, object]) -> Dataset:
    status = f"0x{refusal.status:04X}"
    logger.warning("instance refused", extra={**extra, "status": status, "why": refusal.comment})
    return _status(refusal)


def _status(refusal: Refusal) -> Dataset:
    answer = Dataset()
    answer.Status = refusal.status
    answer.ErrorComment = refusal.comment[:LONGEST_COMMENT]
    if refusal.elements:
        answer.OffendingElement = list(refusal.elements)
    if any(tag >> 16 == COMMAND_GROUP for tag in refusal.elements):
        # What was mended there, so that the library could carry it, is not the peer's.
        answer.AffectedSOPClassUID = None
        answer.AffectedSOPInstanceUID = None
    return answer
