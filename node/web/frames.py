"""Frames and other bulk data of DICOMweb (WADO-RS, PS3.18 10.4), in a transfer syntax agreed on.

Frames are sent as they are encoded, straight from the file, which is quick enough to scroll
through. Where a client asks for them without compression, a short-lived process decodes them.
"""

import base64
import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter
from fastapi import Path as InPath
from python_multipart.multipart import parse_options_header
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from node.web.dicomweb import OF_INSTANCE, Held, HeldOne, Read, asked
from node.web.problems import Problem
from storage.errors import NotFound, WrongState

if TYPE_CHECKING:
    from node.dicom.frames import EncodedFrames

OCTETS, MULTIPART, ANY = "application/octet-stream", "multipart/related", "*/*"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
MOST_FRAMES = 1000  # in one answer
MOST_DECODED = 32  # which are in memory together
# The media types of compressed frames: PS3.18 Table 8.7.3-5.
MEDIA_TYPES = {
    "1.2.840.10008.1.2.4.50": "image/jpeg",
    "1.2.840.10008.1.2.4.51": "image/jpeg",
    "1.2.840.10008.1.2.4.57": "image/jpeg",
    "1.2.840.10008.1.2.4.70": "image/jpeg",
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.4.92": "image/jpx",
    "1.2.840.10008.1.2.4.93": "image/jpx",
    "1.2.840.10008.1.2.4.110": "image/jxl",
    "1.2.840.10008.1.2.4.111": "image/jxl",
    "1.2.840.10008.1.2.4.112": "image/jxl",
    "1.2.840.10008.1.2.4.201": "image/jphc",
    "1.2.840.10008.1.2.4.202": "image/jphc",
    "1.2.840.10008.1.2.4.203": "image/jphc",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}

router = APIRouter(prefix="/dicom-web", include_in_schema=False)


@dataclass(frozen=True)
class MediaRange:
    """What a client accepts: a media type, a transfer syntax of it, and whether in parts."""

    kind: str
    syntax: str  # "*": any; empty: that which is usual for the type
    in_parts: bool


@dataclass(frozen=True)
class Form:
    """The form in which frames are sent."""

    kind: str
    syntax: str
    in_parts: bool

    @property
    def content_type(self) -> str:
        """The header of a part."""
        return f"{self.kind}; transfer-syntax={self.syntax}"


@router.get(f"{OF_INSTANCE}/frames/{{frames}}")
def frames(
    request: Request, held: HeldOne, frames: Annotated[str, InPath(max_length=8000)]
) -> Response:
    """Retrieve frames, listed with commas; the first one has the number 1."""
    from node.dicom.elements import Unreadable
    from node.dicom.frames import encoded_frames

    numbers = _numbers(frames)
    stored = held.instances[0].transfer_syntax
    try:
        encoded = encoded_frames(held.paths[0], stored)
        form = agreed(_accepted(request), encoded.transfer_syntax if encoded else "")
        if form is None:
            raise _not_acceptable(request, encoded.transfer_syntax if encoded else EXPLICIT_LE)
        if encoded is None or form.syntax != encoded.transfer_syntax:
            return _answer(form, _decoded(held, numbers))
        _check(numbers, encoded)
        return _answer(form, [encoded.frame(numbers[0])], encoded, numbers[1:])
    except Unreadable as error:
        raise WrongState(f"the pixel data of the instance cannot be read: {error}") from error


@router.get(f"{OF_INSTANCE}/bulkdata/{{place:path}}")
def bulk_data(
    request: Request, held: HeldOne, place: Annotated[str, InPath(max_length=200)]
) -> Response:
    """Retrieve a long binary value, by the address that the metadata give."""
    ranges = _accepted(request)
    form = agreed(ranges, EXPLICIT_LE)
    if form is None:
        raise _not_acceptable(request, EXPLICIT_LE)
    text = asked(value_of, (held.paths[0], place), held.parts).text
    if not text:
        raise NotFound(f"the instance has no binary value at {place[:64]}")
    return _answer(form, [base64.b64decode(text)])


def agreed(ranges: Iterable[MediaRange], stored: str) -> Form | None:
    """The form for the first range that can be served; as stored where the client takes that.

    `stored` is the transfer syntax in which frames can be had at once, empty where in none.
    """
    own = MEDIA_TYPES.get(stored, OCTETS)
    for it in ranges:
        if stored and it.kind == own and it.syntax in ("", "*", stored):
            return Form(own, stored, it.in_parts)
        if it.kind not in (ANY, OCTETS):
            continue
        if stored and it.syntax in ("*", stored):
            return Form(OCTETS, stored, it.in_parts)
        if it.syntax in ("", "*", EXPLICIT_LE):
            return Form(OCTETS, EXPLICIT_LE, it.in_parts)
    return None


def _accepted(request: Request) -> list[MediaRange]:
    """What the client accepts, in its order; without a header, anything."""
    given = ",".join(request.headers.getlist("accept")) or ANY
    return [_range(text) for text in given.split(",")]


def _range(text: str) -> MediaRange:
    kind, options = parse_options_header(text.strip())
    name = kind.decode("latin-1").lower()
    syntax = options.get(b"transfer-syntax", b"").decode("latin-1")
    if name in (MULTIPART, ANY, "multipart/*"):
        of = options.get(b"type", ANY.encode()).decode("latin-1").lower()
        return MediaRange(of, syntax, in_parts=True)
    return MediaRange(OCTETS if name == "application/*" else name, syntax, in_parts=False)


def _not_acceptable(request: Request, stored: str) -> Problem:
    offered = [f'{MULTIPART}; type="{OCTETS}"; transfer-syntax={it}' for it in ("*", EXPLICIT_LE)]
    if stored in MEDIA_TYPES:
        offered.append(f'{MULTIPART}; type="{MEDIA_TYPES[stored]}"; transfer-syntax={stored}')
    given = request.headers.get("accept", "")[:200]
    detail = f"Accept: {given}; offered: {', '.join(offered)}."
    return Problem(HTTPStatus.NOT_ACCEPTABLE, detail)


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) < 7 for part in parts):
        detail = f"frames/{text[:40]}: numbers from 1 on, with commas between, as 1,2,3."
        raise Problem(HTTPStatus.BAD_REQUEST, detail)
    if len(parts) > MOST_FRAMES:
        detail = f"These are {len(parts)} frames; at most {MOST_FRAMES} in one request."
        raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
    return [int(part) for part in parts]


def _check(numbers: Sequence[int], encoded: "EncodedFrames") -> None:
    if missing := [number for number in numbers if not 1 <= number <= encoded.count]:
        raise NotFound(f"the instance has {encoded.count} frames, and no frame {missing[0]}")


def _answer(
    form: Form,
    contents: Sequence[bytes],
    encoded: "EncodedFrames | None" = None,
    further: Sequence[int] = (),
) -> Response:
    """Send contents, and then frames that are read only when it is their turn."""
    if not form.in_parts and not further and len(contents) == 1:
        return Response(contents[0], media_type=form.content_type)
    boundary = uuid.uuid4().hex
    head = f"--{boundary}\r\nContent-Type: {form.content_type}\r\n\r\n".encode()

    def parts() -> Iterator[bytes]:
        for content in contents:
            yield head + content + b"\r\n"
        if encoded is not None:
            for number in further:
                yield head + encoded.frame(number) + b"\r\n"
        yield f"--{boundary}--\r\n".encode()

    media_type = f'{MULTIPART}; type="{form.kind}"; boundary={boundary}'
    return StreamingResponse(parts(), media_type=media_type)


def _decoded(held: Held, numbers: Sequence[int]) -> list[bytes]:
    if len(numbers) > MOST_DECODED:
        detail = f"These are {len(numbers)} frames to decode; at most {MOST_DECODED} in a request."
        raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
    text = asked(decoded_frames, (held.paths[0], tuple(numbers)), held.parts).text
    if not text:
        raise NotFound(f"the instance has not all of the frames {', '.join(map(str, numbers))}")
    return [base64.b64decode(frame) for frame in json.loads(text)]


def decoded_frames(question: tuple[Path, tuple[int, ...]]) -> Read:
    """Decode frames to little endian, in the other process; empty where one is not there."""
    from pydicom import dcmread
    from pydicom.pixels.utils import pack_bits, pixel_array

    path, numbers = question
    dataset = dcmread(path)
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    if "PixelData" not in dataset or not all(1 <= number <= count for number in numbers):
        return Read("")
    contents = []
    for number in numbers:
        pixels = pixel_array(dataset, index=number - 1, raw=True)
        little = pixels.astype(pixels.dtype.newbyteorder("<"))
        is_bits = dataset.BitsAllocated == 1
        contents.append(pack_bits(little) if is_bits else little.tobytes())
    return Read(json.dumps([base64.b64encode(it).decode() for it in contents]))


def value_of(question: tuple[Path, str]) -> Read:
    """Read a binary value by its place, tag/item/tag, in the other process."""
    from pydicom import dcmread

    path, place = question
    value: object = dcmread(path)
    try:
        for step in place.split("/"):
            value = value[int(step, 16 if len(step) == 8 else 10)]  # type: ignore[index]
            value = getattr(value, "value", value)
    except (LookupError, TypeError, ValueError):
        return Read("")
    return Read(base64.b64encode(value).decode() if isinstance(value, bytes) else "")
