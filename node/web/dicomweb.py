"""DICOMweb of the node (PS3.18): QIDO-RS and WADO-RS over received and derived series.

Rows answer searches, files are sent as they are. What needs a data set to be read, metadata and
pictures, is asked of a short-lived process, as the rule tester's questions are.
"""

import json
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from fastapi import APIRouter, Depends
from pydantic import AfterValidator
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from node.web.access import AsViewer, Visitor
from node.web.api.inputs import UID
from node.web.problems import RETRY_SECONDS, Problem
from node.web.rule_tester import ask
from node.web.state import Parts, PartsOf, RecentViews
from storage.errors import NotFound
from storage.queries.dicom_web import (
    COLUMNS,
    MODALITIES,
    HeldInstance,
    Level,
    Match,
    held_instances,
    modalities,
    search,
)
from storage.site.audit import FIND, VIEW

JSON, DICOM = "application/dicom+json", "application/dicom"
MOST_MATCHES = 1000
MOST_METADATA = 2000  # instances in one answer
CHUNK_BYTES = 1 << 20
LONGEST_INLINE = 1024  # bytes of a binary value in metadata; of a longer one there is an address
WAIT_SECONDS = 30.0  # for a turn of the process that reads: a viewer asks for many series at once
MOST_WAITING = 16  # requests; each holds one of the threads that answer pages too
# Tag and value representation of what a search answers with: PS3.6.
TAGS: Mapping[str, tuple[str, str]] = {
    "StudyInstanceUID": ("0020000D", "UI"),
    "StudyDate": ("00080020", "DA"),
    "AccessionNumber": ("00080050", "SH"),
    "PatientID": ("00100020", "LO"),
    "PatientName": ("00100010", "PN"),
    "SeriesInstanceUID": ("0020000E", "UI"),
    "Modality": ("00080060", "CS"),
    "SeriesDescription": ("0008103E", "LO"),
    "SOPInstanceUID": ("00080018", "UI"),
    "SOPClassUID": ("00080016", "UI"),
}
KEYWORDS = {tag: keyword for keyword, (tag, _) in TAGS.items()} | {"00080061": "ModalitiesInStudy"}
SETTINGS = ("limit", "offset", "includefield", "fuzzymatching")  # of a search; no attributes
DATES = re.compile(r"(\d{8})?(-)?(\d{8})?")


def _uid(text: str) -> str:
    if not re.fullmatch(UID, text):
        detail = "A UID in the address is none that is stored: 1-64 letters, digits and . - _"
        raise Problem(HTTPStatus.BAD_REQUEST, detail)
    return text


_waiting = threading.BoundedSemaphore(MOST_WAITING)
Uid: TypeAlias = Annotated[str, AfterValidator(_uid)]
router = APIRouter(prefix="/dicom-web", include_in_schema=False)


@router.get("/studies")
def studies(request: Request, visitor: AsViewer, parts: PartsOf) -> Response:
    """Search for studies."""
    return _found(request, visitor, parts, "study", {})


@router.get("/series")
def all_series(request: Request, visitor: AsViewer, parts: PartsOf) -> Response:
    """Search for series, whatever their study."""
    return _found(request, visitor, parts, "series", {})


@router.get("/studies/{study}/series")
def series(study: Uid, request: Request, visitor: AsViewer, parts: PartsOf) -> Response:
    """Search for series of a study."""
    return _found(request, visitor, parts, "series", {"study_uid": study})


@router.get("/studies/{study}/instances")
def of_study(study: Uid, request: Request, visitor: AsViewer, parts: PartsOf) -> Response:
    """Search for instances of a study."""
    return _found(request, visitor, parts, "instance", {"study_uid": study})


@router.get("/studies/{study}/series/{series}/instances")
def of_series(
    study: Uid, series: Uid, request: Request, visitor: AsViewer, parts: PartsOf
) -> Response:
    """Search for instances of a series."""
    given = {"study_uid": study, "series_uid": series}
    return _found(request, visitor, parts, "instance", given)


@dataclass(frozen=True)
class Held:
    """The instances that a path names, for somebody who may see them; a look is audited."""

    instances: tuple[HeldInstance, ...]
    paths: tuple[Path, ...]
    parts: Parts


def _held(
    views: RecentViews,
    visitor: Visitor,
    parts: Parts,
    study: str,
    series: str = "",
    instance: str = "",
) -> Held:
    instances = held_instances(parts.database, study, series, instance)
    if not instances:
        what = "instance" if instance else "series" if series else "study"
        raise NotFound(f"no such {what} is kept here")
    for uid in dict.fromkeys(it.series_uid for it in instances):
        views.record(visitor.name, VIEW, uid, parts.gate.now())
    paths = tuple(parts.store.files.path(it.path) for it in instances)
    if gone := sum(not path.exists() for path in paths):
        raise NotFound(f"{gone} of its files are no longer kept; have it sent again")
    return Held(instances, paths, parts)


def _look(request: Request, visitor: AsViewer, parts: PartsOf) -> Callable[..., Held]:
    return partial(_held, request.app.state.recent_views, visitor, parts)


Look: TypeAlias = Annotated[Callable[..., Held], Depends(_look)]


def _held_study(look: Look, study: Uid) -> Held:
    return look(study)


def _held_series(look: Look, study: Uid, series: Uid) -> Held:
    return look(study, series)


def _held_one(look: Look, study: Uid, series: Uid, instance: Uid) -> Held:
    return look(study, series, instance)


HeldStudy = Annotated[Held, Depends(_held_study)]
HeldSeries = Annotated[Held, Depends(_held_series)]
HeldOne = Annotated[Held, Depends(_held_one)]
OF_STUDY = "/studies/{study}"
OF_SERIES = "/studies/{study}/series/{series}"
OF_INSTANCE = "/studies/{study}/series/{series}/instances/{instance}"


@router.get(OF_STUDY)
def study_files(request: Request, held: HeldStudy) -> Response:
    """Retrieve the files of a study."""
    return _files(request, held)


@router.get(OF_SERIES)
def series_files(request: Request, held: HeldSeries) -> Response:
    """Retrieve the files of a series."""
    return _files(request, held)


@router.get(OF_INSTANCE)
def instance_file(request: Request, held: HeldOne) -> Response:
    """Retrieve the file of an instance."""
    return _files(request, held)


@router.get(f"{OF_STUDY}/metadata")
def study_metadata(request: Request, held: HeldStudy) -> Response:
    """Retrieve the attributes of a study's instances, without pixels."""
    return _metadata(request, held)


@router.get(f"{OF_SERIES}/metadata")
def series_metadata(request: Request, held: HeldSeries) -> Response:
    """Retrieve those of a series."""
    return _metadata(request, held)


@router.get(f"{OF_INSTANCE}/metadata")
def instance_metadata(request: Request, held: HeldOne) -> Response:
    """Retrieve those of an instance."""
    return _metadata(request, held)


def _found(
    request: Request, visitor: Visitor, parts: Parts, level: Level, given: Mapping[str, str]
) -> Response:
    check_accept(request, JSON)
    matches = [Match(column, values=(uid,)) for column, uid in given.items()]
    names = [name for name in request.query_params if name not in SETTINGS]
    matches += [_match(name, request.query_params[name]) for name in names]
    limit = _number(request, "limit", MOST_MATCHES)
    offset = _number(request, "offset", 0)
    rows = search(parts.database, level, matches, min(limit, MOST_MATCHES), offset)
    detail = {"by": names, "found": len(rows), "how": "QIDO-RS"}
    parts.store.audit.record(visitor.name, FIND, "", detail)
    if not rows:
        return Response(status_code=HTTPStatus.NO_CONTENT)
    document = [_attributes(row, level) for row in rows]
    if level == "study":
        kinds = modalities(parts.database, [row["study_uid"] for row in rows])
        for row, answer in zip(rows, document, strict=True):
            answer["00080061"] = {"vr": "CS", "Value": sorted(kinds.get(row["study_uid"], ()))}
    return Response(json.dumps(document), media_type=JSON)


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise Problem(HTTPStatus.BAD_REQUEST, f"{name}={text[:20]}: a whole number.")
    return int(text)


def _match(name: str, text: str) -> Match:
    """A condition of a search; a name that no row has is no filter."""
    keyword = KEYWORDS.get(name.upper(), name)
    keyword = "Modality" if keyword == "ModalitiesInStudy" else keyword
    if keyword not in COLUMNS:
        known = ", ".join((*COLUMNS, "ModalitiesInStudy", *SETTINGS))
        raise Problem(HTTPStatus.BAD_REQUEST, f"{name[:64]} is no filter here; allowed: {known}.")
    column, text = COLUMNS[keyword][1], text.replace("\0", "")
    if not text:
        return Match(column, pattern="*")
    if TAGS[keyword][1] == "UI":
        return Match(column, values=tuple(text.split(",")))
    if keyword == "StudyDate":
        dates = DATES.fullmatch(text)
        if dates is None or not (dates[1] or dates[3]):
            wanted = "a date as 20261201, or a range as 20261101-20261201"
            raise Problem(HTTPStatus.BAD_REQUEST, f"StudyDate: {wanted}.")
        least, most = dates[1] or "", dates[3] or ""
        return Match(column, least=least, most=most if dates[2] else least)
    return Match(column, pattern=text)


def _attributes(row: Mapping[str, Any], level: Level) -> dict[str, Any]:
    """A match in DICOM JSON."""
    answer: dict[str, Any] = {}
    for keyword, (_, column) in COLUMNS.items():
        if column in row:
            tag, vr = TAGS[keyword]
            value = row[column]
            if keyword == "Modality":
                value = MODALITIES.get(str(row["a_sop_class_uid"]), value)
            answer[tag] = {"vr": vr, **_value(vr, str(value))}
    if level == "study":
        answer["00201206"] = {"vr": "IS", "Value": [row["series_count"]]}
    if level != "instance":
        tag = "00201208" if level == "study" else "00201209"
        answer[tag] = {"vr": "IS", "Value": [row["instance_count"]]}
    url = resource(row["study_uid"], row.get("series_uid", ""), row.get("instance_uid", ""))
    answer["00081190"] = {"vr": "UR", "Value": [url]}
    return answer


def _value(vr: str, text: str) -> dict[str, Any]:
    if not text:
        return {}
    return {"Value": [{"Alphabetic": text} if vr == "PN" else text]}


def resource(study: str, series: str = "", instance: str = "") -> str:
    """The address of a study, a series or an instance; without a host, which anybody names."""
    path = f"{router.prefix}/studies/{study}"
    path += f"/series/{series}" if series else ""
    return path + (f"/instances/{instance}" if instance else "")


def check_accept(request: Request, *kinds: str) -> None:
    """Raise where the client takes none of these media types."""
    given = request.headers.get("accept", "*/*").lower()
    wildcards = {"*/*", "application/*", "application/json", "image/*"}
    named = {part.split(";")[0].strip() for part in given.split(",")}
    if not named & {*kinds, *wildcards}:
        offered = ", ".join(kinds)
        raise Problem(HTTPStatus.NOT_ACCEPTABLE, f"Accept: {given[:80]}; offered: {offered}.")


def _files(request: Request, held: Held) -> Response:
    check_accept(request, "multipart/related", DICOM)
    boundary = uuid.uuid4().hex
    media_type = f'multipart/related; type="{DICOM}"; boundary={boundary}'
    parts = _parts(held.paths, [it.transfer_syntax for it in held.instances], boundary)
    return StreamingResponse(parts, media_type=media_type)


def _parts(paths: Sequence[Path], syntaxes: Iterable[str], boundary: str) -> Iterator[bytes]:
    """The files as they are kept; where one goes meanwhile the answer ends without its end."""
    for path, syntax in zip(paths, syntaxes, strict=True):
        with path.open("rb") as file:
            head = f"Content-Type: {DICOM}; transfer-syntax={syntax}"
            yield f"--{boundary}\r\n{head}\r\n\r\n".encode()
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
            yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


@dataclass(frozen=True)
class Read:
    """Text that the other process has read from files: JSON, or bytes in base 64."""

    text: str


def _metadata(request: Request, held: Held) -> Response:
    check_accept(request, JSON)
    if len(held.paths) > MOST_METADATA:
        detail = f"These are {len(held.paths)} instances; at most {MOST_METADATA}: ask by series."
        raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
    it = held.instances
    urls = [resource(i.study_uid, i.series_uid, i.instance_uid) for i in it]
    question = tuple(zip(held.paths, urls, strict=True))
    return Response(asked(metadata_of, question, held.parts).text, media_type=JSON)


def asked(find: Any, question: object, parts: Parts) -> Read:
    """Ask the other process, and wait for a turn."""
    if not _waiting.acquire(blocking=False):
        detail = f"{MOST_WAITING} other requests wait for files to be read; try again soon."
        again = {"Retry-After": str(RETRY_SECONDS)}
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers=again)
    try:
        as_json = parts.settings.log_as_json
        answer: Read = ask(find, question, Read, log_as_json=as_json, wait_seconds=WAIT_SECONDS)
    finally:
        _waiting.release()
    return answer


def metadata_of(question: Sequence[tuple[Path, str]]) -> Read:
    """Read the attributes of files, in the other process; long binary values by their address."""
    from pydicom import dcmread

    read = ((dcmread(path, stop_before_pixels=True), url) for path, url in question)
    return Read(json.dumps([_plain(dataset, url) for dataset, url in read]))


def _plain(dataset: Any, url: str) -> dict[str, Any]:
    document: dict[str, Any] = dataset.to_json_dict(
        bulk_data_threshold=LONGEST_INLINE,
        bulk_data_element_handler=lambda _: "",
        suppress_invalid_tags=True,
    )
    _address(document, f"{url}/bulkdata/")
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    document["00083002"] = {"vr": "UI", "Value": [syntax]}  # Available Transfer Syntax UID
    return document


def _address(document: dict[str, Any], url: str) -> None:
    """Give each value that is left out its address: the place is tag/item/tag."""
    for tag, element in document.items():
        if "BulkDataURI" in element:
            element["BulkDataURI"] = url + tag
        if element.get("vr") == "SQ":
            for number, item in enumerate(element.get("Value", ())):
                _address(item, f"{url}{tag}/{number}/")
