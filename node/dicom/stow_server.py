"""STOW-RS as origin server (PS3.18 10.5): the parts of a body on their way to disk, and the answer.

A part is handled as a C-STORE request whose command is its file meta information: what receives,
checks, keeps and refuses it are `node/dicom/incoming.py` and `node/dicom/handlers.py`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import FileMetaDataset
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from node.dicom.contexts import STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES
from node.dicom.handlers import MAX_META_BYTES, Keep, answer_store
from node.dicom.incoming import HIDDEN_ELEMENTS, Incoming, Refusal, part10_head, uid_of
from node.dicom.messages import StoreRequest
from node.dicom.status import (
    CANNOT_UNDERSTAND,
    DOES_NOT_MATCH,
    OUT_OF_RESOURCES,
    SOP_CLASS_NOT_SUPPORTED,
    SUCCESS,
    UID_INVALID,
)
from node.dicom.upper_layer import MALFORMED
from storage.files import HEAD_BYTES, data_set_offset
from storage.records import Peer, Received

DICOM = "application/dicom"
TRANSFER_SYNTAX_NOT_SUPPORTED = 0xC122  # PS3.18 Table I.2-2; C-STORE has no presentation context
MOST_PARTS = 20_000  # of one request; what is kept of each for the answer is small
PREFIX = "web-"  # of files being received: those that a dead web process left are told by it
META = ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID")
SUPPORTED_SYNTAXES = frozenset(map(str, TRANSFER_SYNTAXES))
SUPPORTED_CLASSES = frozenset(STORAGE_SOP_CLASSES)


class Malformed(Exception):
    """The body is not what it has to be; the text says why, for people."""


@dataclass(frozen=True)
class PartAnswer:
    """The answer to one part: a status as C-STORE has it, and the UIDs as far as they are known."""

    status: int
    comment: str = ""
    sop_class_uid: str = ""
    instance_uid: str = ""
    study_uid: str = ""
    series_uid: str = ""

    @property
    def is_stored(self) -> bool:
        """True where the instance is on disk and indexed."""
        return self.status == SUCCESS


@dataclass(frozen=True)
class Place:
    """Where and in whose name the instances of a request are received."""

    folder: Path
    min_free_bytes: int
    keep: Keep
    peer: Peer
    study_uid: str = ""  # that all have to belong to; empty: any


class StowBody:
    """The body of a request, which comes in pieces of any size; never much of it is in memory."""

    def __init__(self, boundary: bytes, place: Place) -> None:
        self.answers: list[PartAnswer] = []
        self._place = place
        self._header: list[bytes] = [b"", b""]
        self._headers: dict[bytes, bytes] = {}
        self._part: _Part | None = None
        self._is_whole = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._in_header(0, data[start:end]),
                "on_header_value": lambda data, start, end: self._in_header(1, data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._begin_content,
                "on_part_data": self._content,
                "on_part_end": self._end,
                "on_end": self._note_end,
            },
        )

    def feed(self, data: bytes) -> None:
        """Take the next piece; what is whole with it is kept when this returns, or refused."""
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            what = "the body is no multipart message with this boundary"
            raise Malformed(f"{what}: {error}") from error

    def finish(self) -> None:
        """Raise where the body ended too early, or has no part."""
        if not self._is_whole:
            raise Malformed("the body ends without the boundary that closes a multipart message")
        if not self.answers:
            raise Malformed("the body has no part")

    def discard(self) -> None:
        """Leave nothing behind of a part that did not come whole."""
        if self._part is not None:
            self._part.discard()

    def _begin(self) -> None:
        if len(self.answers) >= MOST_PARTS:
            raise Malformed(f"the body has more than {MOST_PARTS} parts: send several requests")
        self._headers = {}

    def _in_header(self, place: int, data: bytes) -> None:
        self._header[place] += data

    def _end_header(self) -> None:
        name, value = self._header
        self._headers[name.lower()] = value
        self._header = [b"", b""]

    def _begin_content(self) -> None:
        self._part = _Part(self._place, _refused_headers(self._headers))

    def _content(self, data: bytes, start: int, end: int) -> None:
        assert self._part is not None
        self._part.write(memoryview(data)[start:end])

    def _end(self) -> None:
        assert self._part is not None
        part, self._part = self._part, None
        self.answers.append(part.answer())

    def _note_end(self) -> None:
        self._is_whole = True


def _refused_headers(headers: Mapping[bytes, bytes]) -> Refusal | None:
    kind = parse_options_header(headers.get(b"content-type", DICOM.encode()))[0].decode("latin-1")
    if kind.lower() != DICOM:
        return Refusal(CANNOT_UNDERSTAND, f"a part is {kind[:40]}, not {DICOM}")
    coding = headers.get(b"content-transfer-encoding", b"binary").strip().lower()
    if coding not in (b"binary", b"8bit"):
        return Refusal(CANNOT_UNDERSTAND, "a part has a content transfer encoding")
    return None


class _Part:
    """A Part 10 file on its way to disk: its meta information first, then its data set."""

    def __init__(self, place: Place, refusal: Refusal | None) -> None:
        self._place = place
        self._refusal = refusal
        self._head = bytearray()  # as long as the meta information is not whole
        self._data_at = 0  # where it ends, once that is known
        self._request: StoreRequest | None = None
        self._incoming: Incoming | None = None
        self._received: Received | None = None

    def write(self, data: memoryview) -> None:
        """Take a piece of the file; what follows a refusal is read and dropped."""
        if self._refusal is not None:
            return
        if self._incoming is not None:
            self._incoming.write(data)
            return
        self._head += data
        try:
            self._read_head()
        except Refusal as refusal:
            self._refusal = refusal
            self._head.clear()

    def answer(self) -> PartAnswer:
        """Keep it, and answer as for a C-STORE request."""
        if self._request is None or self._incoming is None or self._refusal is not None:
            refusal = self._refusal or Refusal(CANNOT_UNDERSTAND, "a part is no whole Part 10 file")
            return self._answer(refusal.status, refusal.comment)
        answer = answer_store(self._request, self._incoming, self._keep, self._place.peer)
        answer.then()
        if isinstance(answer.status, int):
            return self._answer(answer.status)
        return self._answer(int(answer.status.Status), str(answer.status.ErrorComment))

    def discard(self) -> None:
        """Leave nothing behind."""
        if self._incoming is not None:
            self._incoming.discard()

    def _answer(self, status: int, comment: str = "") -> PartAnswer:
        answer = PartAnswer(status, comment)
        if self._request is not None:
            uids = self._request.sop_class_uid, self._request.instance_uid
            answer = replace(answer, sop_class_uid=uids[0], instance_uid=uids[1])
        if self._received is not None:
            of = self._received
            answer = replace(answer, study_uid=of.study_uid, series_uid=of.series_uid)
        return answer

    def _keep(self, received: Received, peer: Peer, path: Path, digest: str) -> object:
        asked = self._place.study_uid
        if asked and received.study_uid != asked:
            comment = "its Study Instance UID is not that of the address"
            raise Refusal(DOES_NOT_MATCH, comment)
        kept = self._place.keep(received, peer, path, digest)
        self._received = received
        return kept

    def _read_head(self) -> None:
        """Begin the file on disk as soon as the meta information is whole."""
        if not self._data_at and len(self._head) >= HEAD_BYTES:
            self._data_at = data_set_offset(BytesIO(self._head)) or MAX_META_BYTES + 1
        if self._data_at > MAX_META_BYTES:
            raise Refusal(CANNOT_UNDERSTAND, "a part is no Part 10 file (PS3.10 7.1)")
        if not self._data_at or len(self._head) < self._data_at:
            return
        rest = bytes(self._head[self._data_at :])
        self._request = request = _request(bytes(self._head[: self._data_at]))
        _check_supported(request)
        peer = self._place.peer
        head = part10_head(
            sop_class_uid=request.sop_class_uid,
            instance_uid=request.instance_uid,
            transfer_syntax=request.transfer_syntax,
            calling_ae=peer.calling_ae,
            called_ae=peer.called_ae,
        )
        self._head.clear()
        self._incoming = Incoming(
            self._place.folder,
            head,
            min_free_bytes=self._place.min_free_bytes,
            has_elements=request.transfer_syntax not in HIDDEN_ELEMENTS,
            prefix=PREFIX,
        )
        if rest:
            self._incoming.write(rest)


def _request(head: bytes) -> StoreRequest:
    """The C-STORE request that file meta information stands for."""
    try:
        meta = dcmread(BytesIO(head)).file_meta
        values = [_value(meta, name) for name in META]
    except MALFORMED as error:
        comment = "its file meta information cannot be read"
        raise Refusal(CANNOT_UNDERSTAND, comment) from error
    return StoreRequest(1, *values)


def _value(meta: FileMetaDataset, name: str) -> str:
    return uid_of(str(meta.get(name) or "").encode("ascii", "replace"))


def _check_supported(request: StoreRequest) -> None:
    """Raise for what no presentation context would be accepted for."""
    if not request.instance_uid:
        raise Refusal(UID_INVALID, "Media Storage SOP Instance UID: none that is stored")
    if request.sop_class_uid not in SUPPORTED_CLASSES:
        raise Refusal(SOP_CLASS_NOT_SUPPORTED, "its SOP Class is not supported")
    if request.transfer_syntax not in SUPPORTED_SYNTAXES:
        raise Refusal(TRANSFER_SYNTAX_NOT_SUPPORTED, "its transfer syntax is not supported")


def http_status(answers: Iterable[PartAnswer]) -> HTTPStatus:
    """The status of a response: PS3.18 Table 10.5.3-1; 503 where there is no room for any of it."""
    statuses = {answer.status for answer in answers}
    if statuses == {SUCCESS}:
        return HTTPStatus.OK
    if SUCCESS in statuses:
        return HTTPStatus.ACCEPTED
    return HTTPStatus.SERVICE_UNAVAILABLE if statuses == {OUT_OF_RESOURCES} else HTTPStatus.CONFLICT


def response(answers: Sequence[PartAnswer], url: Callable[..., str]) -> dict[str, Any]:
    """The Store Instances Response Module (PS3.18 Annex I) in DICOM JSON.

    `url` gives the address of a study, or of an instance from its three UIDs.
    """
    stored = [answer for answer in answers if answer.is_stored]
    refused = [answer for answer in answers if not answer.is_stored]
    failed = [_failed(answer) for answer in refused if answer.instance_uid]
    other = [_failed(answer) for answer in refused if not answer.instance_uid]
    studies = {answer.study_uid for answer in stored}
    document: dict[str, Any] = {}
    if len(studies) == 1:
        document["00081190"] = _element("UR", url(*studies))
    for tag, items in (("00081198", failed), ("0008119A", other)):
        if items:
            document[tag] = {"vr": "SQ", "Value": items}
    if stored:
        items = [_stored(answer, url) for answer in stored]
        document["00081199"] = {"vr": "SQ", "Value": items}
    return document


def _stored(answer: PartAnswer, url: Callable[..., str]) -> dict[str, Any]:
    place = url(answer.study_uid, answer.series_uid, answer.instance_uid)
    return {**_reference(answer), "00081190": _element("UR", place)}


def _failed(answer: PartAnswer) -> dict[str, Any]:
    return {**_reference(answer), "00081197": _element("US", answer.status)}


def _reference(answer: PartAnswer) -> dict[str, Any]:
    uids = {"00081150": answer.sop_class_uid, "00081155": answer.instance_uid}
    return {tag: _element("UI", uid) for tag, uid in uids.items() if uid}


def _element(vr: str, value: str | int) -> dict[str, Any]:
    return {"vr": vr, "Value": [value]}
