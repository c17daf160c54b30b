"""The frames of a Part 10 file as they are encoded (PS3.5 8 and A.4), without decoding any."""

import struct
from dataclasses import dataclass
from pathlib import Path

from pydicom.encaps import get_frame
from pydicom.uid import UID, ExplicitVRLittleEndian

from node.dicom.elements import UNDEFINED, Unreadable, Walk
from storage.files import data_set_offset

SAMPLES, FRAMES, ROWS, COLUMNS, BITS_ALLOCATED = (
    *(0x00280002, 0x00280008, 0x00280010, 0x00280011),
    0x00280100,
)
PIXEL_DATA = 0x7FE00010
DESCRIBING = frozenset({SAMPLES, FRAMES, ROWS, COLUMNS, BITS_ALLOCATED})
LONGEST_VALUE = 16  # of a wanted one: IS has 12 characters
MOST_FRAMES = 100_000
LARGEST_FRAME = 1 << 30


@dataclass(frozen=True)
class EncodedFrames:
    """Where the frames of a file lie; what is not compressed has one length, and no fragments."""

    path: Path
    transfer_syntax: str  # in which each frame is given
    count: int
    at: int
    frame_bytes: int  # 0: in fragments

    def frame(self, number: int) -> bytes:
        """A frame, the first has the number 1; Unreadable where the file is broken."""
        with self.path.open("rb") as file:
            if not self.frame_bytes:
                file.seek(self.at)
                try:
                    return get_frame(file, number - 1, number_of_frames=self.count)
                except (ValueError, struct.error) as error:
                    raise Unreadable("its fragments cannot be told apart") from error
            file.seek(self.at + (number - 1) * self.frame_bytes)
            content = file.read(self.frame_bytes)
        if len(content) < self.frame_bytes:
            raise Unreadable("its pixel data end too early")
        return content


def encoded_frames(path: Path, transfer_syntax: str) -> EncodedFrames | None:
    """Find the frames of a file; None where they can only be had by decoding, or there are none.

    That is so for a data set that is deflated or big endian as a whole, and for packed bits of
    which a frame does not fill bytes.
    """
    syntax = UID(transfer_syntax)
    if syntax.is_deflated or not syntax.is_little_endian:
        return None
    values: dict[int, bytes] = {}
    with path.open("rb") as file:
        file.seek(data_set_offset(file) or 0)
        walk = Walk(file, little=True, implicit=syntax.is_implicit_VR)
        walk.detect_encoding()
        while (element := walk.next()) and element.tag != PIXEL_DATA:
            if element.tag in DESCRIBING and element.length <= LONGEST_VALUE:
                values[element.tag] = walk.read(element.length)
            else:
                walk.skip(element)
        if element is None:
            return None
        at = file.tell()
    count = _count(values)
    if element.length == UNDEFINED:
        return EncodedFrames(path, transfer_syntax, count, at, 0)
    sizes = (_number(values, tag) for tag in (ROWS, COLUMNS, SAMPLES, BITS_ALLOCATED))
    rows, columns, samples, bits = sizes
    frame_bytes, rest = divmod(rows * columns * samples * bits, 8)
    if rest or not 0 < frame_bytes <= LARGEST_FRAME:
        return None
    return EncodedFrames(path, str(ExplicitVRLittleEndian), count, at, frame_bytes)


def _count(values: dict[int, bytes]) -> int:
    text = values.get(FRAMES, b"1").strip(b" \0") or b"1"
    return min(int(text), MOST_FRAMES) if text.isdigit() else 1


def _number(values: dict[int, bytes], tag: int) -> int:
    value = values.get(tag, b"\1\0" if tag == SAMPLES else b"\0\0")
    return int(struct.unpack("<H", value[:2])[0]) if len(value) >= 2 else 0
