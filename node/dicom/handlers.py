"""Answers C-STORE requests; nothing else in the node returns a DIMSE status."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pydicom import dcmread
from pydicom.charset import decode_bytes, python_encoding
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.dimse_primitives import C_STORE

from node.dicom.contexts import TRANSFER_SYNTAXES
from node.dicom.elements import (
    HEAD,
    LONG_LENGTH,
    LONG_VRS,
    LONGEST_HEAD,
    SHORT_VRS,
    UNDEFINED,
    Unreadable,
    Walk,
    inflated,
)
from node.dicom.incoming import Arrived, Incoming, Refusal, uid_of
from node.dicom.messages import StoreRequest
from node.dicom.status import (
    CANNOT_UNDERSTAND,
    DOES_NOT_MATCH,
    LONGEST_COMMENT,
    OUT_OF_RESOURCES,
    SUCCESS,
    UID_INVALID,
)
from node.dicom.upper_layer import MALFORMED
from storage.errors import Busy, NoRoom
from storage.files import data_set_offset
from storage.records import Peer, Received

logger = logging.getLogger(__name__)

CHARACTER_SET = 0x00080005
SOP_CLASS_UID = 0x00080016
INSTANCE_UID = 0x00080018
STUDY_DATE = 0x00080020
ACCESSION = 0x00080050
MODALITY = 0x00080060
SERIES_DESCRIPTION = 0x0008103E
PATIENT_NAME = 0x00100010
PATIENT_ID = 0x00100020
LONGEST_AE = 16  # characters (PS3.5 6.2)
STUDY_UID = 0x0020000D
SERIES_UID = 0x0020000E
WANTED = frozenset(
    {CHARACTER_SET, SOP_CLASS_UID, INSTANCE_UID, STUDY_DATE, ACCESSION, MODALITY}
    | {SERIES_DESCRIPTION, PATIENT_NAME, PATIENT_ID, STUDY_UID, SERIES_UID}
)

IN_EXPLICIT_VR = frozenset(
    syntax
    for syntax in TRANSFER_SYNTAXES
    if syntax.is_little_endian and not syntax.is_implicit_VR and not syntax.is_deflated
)

MAX_VALUE_BYTES = 1024  # of a wanted value: the longest, LO in four-byte characters, has 256
MAX_META_BYTES = 1 << 20  # private information may be in it; a length that lies asks for more

COMMAND_GROUP = 0x0000
UIDS = {
    STUDY_UID: "Study Instance UID",
    SERIES_UID: "Series Instance UID",
    INSTANCE_UID: "SOP Instance UID",
}

CONFORMANT_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")
# The walk goes on behind the Series Instance UID until it has these: elements may lie in any order.
NEEDED = frozenset({*UIDS, PATIENT_NAME, PATIENT_ID})

# Takes the identity, the peer, the file and the digest of its data set.
Keep = Callable[[Received, Peer, Path, str], object]


class Answer(NamedTuple):
    """The answer to a C-STORE request, and what is left to do once it is on its way."""

    status: int | Dataset
    then: Callable[[], None]


def handle_store(event: evt.Event, keep: Keep, peer: Peer) -> int | Dataset:
    """Answer a C-STORE request that the library has read.

    What is raised and not answered escapes to pynetdicom, which answers C211: a failure.
    """
    request = event.request
    assert isinstance(request, C_STORE)
    asked = StoreRequest(
        int(request.MessageID or 0),
        str(request.AffectedSOPClassUID),
        str(request.AffectedSOPInstanceUID),
        str(event.context.transfer_syntax),
    )
    answer = answer_store(asked, request.DataSet, keep, peer)
    answer.then()
    return answer.status


def answer_store(request: StoreRequest, incoming: BytesIO | None, keep: Keep, peer: Peer) -> Answer:
    """Answer a C-STORE request. Success means: on disk, indexed, and safe from a power cut.

    `keep` is that of `storage/archive.py`, which does all three before it returns.
    """
    extra = {"sop_instance_uid": request.instance_uid, "calling_ae": peer.calling_ae}
    if not isinstance(incoming, Incoming):
        refusal = Refusal(CANNOT_UNDERSTAND, "there is no data set")
        return Answer(_status(refusal), partial(_log_refusal, refusal, extra))
    try:
        arrived = incoming.finish()
        received = _identity(arrived, request.transfer_syntax)
        check_match(received, request)
        keep(received, peer, arrived.path, arrived.digest)
    except Refusal as refusal:
        incoming.discard()
        return Answer(_status(refusal), partial(_log_refusal, refusal, extra))
    except (NoRoom, Busy, OSError) as error:
        incoming.discard()
        reason = type(error).__name__
        logger.exception("instance not kept", extra=extra | {"reason": reason})
        comment = f"not stored, try again later: {reason}"
        return Answer(_status(Refusal(OUT_OF_RESOURCES, comment)), _nothing)
    except BaseException:
        incoming.discard()
        raise
    incoming.hand_over()
    stored = extra | {"series_uid": received.series_uid}
    return Answer(SUCCESS, lambda: logger.info("instance stored", extra=stored))


def _nothing() -> None:
    pass


def _identity(arrived: Arrived, transfer_syntax: str) -> Received:
    values = quick_read(arrived.begin) if transfer_syntax in IN_EXPLICIT_VR else None
    if values is None:
        return identify(arrived.path, arrived.data_at, transfer_syntax)
    return _received(values, transfer_syntax)


def identify(path: Path, data_at: int, transfer_syntax: str) -> Received:
    """The identity of the data set in this file; Refusal where it cannot be read or has none."""
    try:
        with path.open("rb") as file:
            file.seek(data_at)
            values = read(file, transfer_syntax)
    except Unreadable as error:
        raise Refusal(CANNOT_UNDERSTAND, str(error)) from error
    return _received(values, transfer_syntax)


def _received(values: Mapping[int, bytes], transfer_syntax: str) -> Received:
    uids = {tag: _uid(values, tag) for tag in UIDS}
    return Received(
        study_uid=uids[STUDY_UID],
        series_uid=uids[SERIES_UID],
        instance_uid=uids[INSTANCE_UID],
        sop_class_uid=uid_of(values.get(SOP_CLASS_UID, b"")),
        transfer_syntax=transfer_syntax,
        modality=text(values, MODALITY)[:16],
        patient_id=text(values, PATIENT_ID),
        accession=text(values, ACCESSION),
        study_date=text(values, STUDY_DATE)[:16],
        description=text(values, SERIES_DESCRIPTION),
        patient_name=text(values, PATIENT_NAME),
    )


def check_match(received: Received, request: StoreRequest) -> None:
    """The command and the data set have to speak of the same instance: PS3.4 Table B.2-1, A9xx."""
    if received.sop_class_uid != request.sop_class_uid:
        comment = "SOP Class UID differs from the command's"
        raise Refusal(DOES_NOT_MATCH, comment, SOP_CLASS_UID)
    if received.instance_uid != request.instance_uid:
        comment = "SOP Instance UID differs from the command's"
        raise Refusal(DOES_NOT_MATCH, comment, INSTANCE_UID)


def _uid(values: Mapping[int, bytes], tag: int) -> str:
    uid = uid_of(values.get(tag, b""))
    if not uid:
        raise Refusal(UID_INVALID, f"{UIDS[tag]}: 1-64 letters, digits and . - _", tag)
    # PS3.5 9.1 forbids others; old scanners send them, and they identify as well as any.
    if not CONFORMANT_UID.fullmatch(uid):
        logger.warning("unusual UID", extra={"uid": uid, "attribute": UIDS[tag]})
    return uid


def _log_refusal(refusal: Refusal, extra: Mapping[str, object]) -> None:
    status = f"0x{refusal.status:04X}"
    logger.warning("instance refused", extra={**extra, "status": status, "why": refusal.comment})


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


def identify_file(path: Path) -> Received | None:
    """The identity of a whole file; None where it is broken, or does not say what it is."""
    try:
        with path.open("rb") as file:
            data_at = data_set_offset(file)
            if data_at is None or data_at > MAX_META_BYTES:
                return None
            file.seek(0)
            # Nothing of the data set is parsed here: no sequence that a peer nests gets that far.
            meta = dcmread(BytesIO(file.read(data_at))).file_meta
        return replace(
            identify(path, data_at, str(meta.TransferSyntaxUID)),
            calling_ae=str(meta.get("SendingApplicationEntityTitle", ""))[:LONGEST_AE],
            called_ae=str(meta.get("ReceivingApplicationEntityTitle", ""))[:LONGEST_AE],
        )
    except (*MALFORMED, OSError, Refusal):
        return None


def read(stream: BinaryIO, transfer_syntax: str) -> Mapping[int, bytes]:
    """The wanted attributes of the data set that starts here, undecoded; absent ones left out."""
    syntax = UID(transfer_syntax)
    if syntax.is_deflated:
        stream = inflated(stream)
    walk = Walk(stream, little=syntax.is_little_endian, implicit=syntax.is_implicit_VR)
    walk.detect_encoding()
    values: dict[int, bytes] = {}
    try:
        _collect(walk, values)
    except Unreadable:
        if not values.keys() >= UIDS.keys():
            raise
    return values


def _collect(walk: Walk, values: dict[int, bytes]) -> None:
    """Add the wanted attributes; of one that comes twice the first with a value counts."""
    while element := walk.next():
        if element.tag > SERIES_UID and values.keys() >= NEEDED:
            return
        is_wanted = element.tag in WANTED and not values.get(element.tag, b"").strip(b"\0 ")
        if is_wanted and element.length <= MAX_VALUE_BYTES:
            values[element.tag] = walk.read(element.length)
        else:
            walk.skip(element)


def quick_read(begin: bytes) -> Mapping[int, bytes] | None:
    """The wanted attributes of a data set in Explicit VR Little Endian that begins so.

    None where it has anything that needs a second look, or the identity is not within.
    """
    values: dict[int, bytes] = {}
    unpack, unpack_length = HEAD.unpack_from, LONG_LENGTH.unpack_from
    at, before, end = 0, -1, len(begin) - LONGEST_HEAD
    while at <= end:
        group, number, vr, length = unpack(begin, at)
        tag, at = group << 16 | number, at + 8
        if vr not in SHORT_VRS:
            if vr not in LONG_VRS:
                return None
            (length,) = unpack_length(begin, at)
            at += 4
        if tag > SERIES_UID and values.keys() >= NEEDED:
            return values
        if tag <= before or length == UNDEFINED:
            return None
        if tag in WANTED:
            if length > MAX_VALUE_BYTES or at + length > len(begin):
                return None
            values[tag] = begin[at : at + length]
        at, before = at + length, tag
    return None


def text(values: Mapping[int, bytes], tag: int) -> str:
    """A text value in the data set's own character set; what cannot be decoded is replaced."""
    return _decoded(values.get(tag, b""), values.get(CHARACTER_SET, b""))


@lru_cache(maxsize=1024)  # most texts are those of the series
def _decoded(value: bytes, character_set: bytes) -> str:
    value = value.strip(b" \0")
    names = character_set.decode("ascii", "replace").split("\\")
    encodings = [python_encoding.get(name.strip(" \0"), "latin-1") for name in names]
    if b"\x1b" in value:  # ISO 2022 escapes: PS3.5 6.1.2.5
        try:
            return decode_bytes(value, encodings, set())
        except (LookupError, ValueError, UserWarning):
            return value.decode("ascii", "replace")
    return value.decode(encodings[0], "replace")
