"""Pixels: decoders, stored values and Hounsfield units, padding, versions of one instance."""

import hashlib
import logging
import re
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.pixels.utils import pixel_array
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLSLossless,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from inference import jpeg
from inference.dataset import (
    DAMAGED,
    MOST_INFLATED,
    Header,
    data_set_of,
    inflated,
    newest,
    numbers_of,
    quoted,
    with_inner_meta,
)
from inference.errors import Reason, Unprocessable, duplicates
from inference.scope import MR_IMAGE
from inference.scratch import ScratchFile
from inference.volume import Offset, Plane, moved

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=np.generic)
Raw = NDArray[np.generic]  # (rows, columns), as the decoder gives it

PACKAGES = {
    "1.2.840.10008.1.2.4.5": jpeg.PLUGIN,  # JPEG baseline, extended, lossless
    "1.2.840.10008.1.2.4.7": jpeg.PLUGIN,
    "1.2.840.10008.1.2.4.8": "pyjpegls",  # JPEG-LS
    "1.2.840.10008.1.2.4.9": jpeg.PLUGIN,  # JPEG 2000
    "1.2.840.10008.1.2.4.20": "pylibjpeg-openjpeg",  # HTJ2K
}
JPEG_FAMILY = "1.2.840.10008.1.2.4."
# The other decoder of JPEG-LS makes a picture of a damaged code stream without a word.
PREFERRED = {
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    **dict.fromkeys(map(str, jpeg.SYNTAXES), jpeg.PLUGIN),
}
# Transfer syntaxes that the parser's dictionary lacks, by name, and that no package decodes here.
NEW_SYNTAXES = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
}
START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
# Of JPEG and JPEG-LS; of JPEG 2000, the segment that says how it is coded, and a reversible one.
JPEG_START, START_OF_JPEG_LS = b"\xff\xd8\xff", 0xF7
JPEG_2000_START, JPEG_2000_CODING, REVERSIBLE = b"\xff\x4f\xff\x51", b"\xff\x52", b"\x01"
RLE_HEADER_BYTES = b"\x40\0\0\0"
FIRST_ITEM = b"\xfe\xff\x00\xe0"  # of encapsulated pixels (PS3.5 A.4)
# What the parser puts before the words of a decoder.
DECODERS_SAID = re.compile(r"^.*raised by all available plugins:\s*", re.DOTALL)

Stored = NDArray[np.int32]  # (rows, columns), as in the file, sign extended, no bits above High Bit
Mask = NDArray[np.bool_]
AIR_HU = -1024.0
MOST_EXACT = 1 << 20  # whole numbers, of which sums with 16 bits are exact in a float32
UPRIGHT: tuple[Offset, Offset] = ((0.0, 0.0), (0.0, 0.0))  # of a stack that does not shear
SAMPLED_PIXELS = 2  # that bicubic sampling reads to each side
# No tissue, no gas and no noise lies below. One value that many pixels have there is padding that
# the header does not declare; values that vary are streaks of metal on an extended scale.
UNDECLARED_PADDING_HU = -1500.0
PADDING_SHARE = 1 / 1000  # of the pixels of a slice; never a single one
# A declared padding value in here is that of tissue: taken for padding, it makes holes in a body.
TISSUE_HU = (-950.0, 3000.0)
# Decoded slices that are kept in memory; of a longer compressed series the others are on disk.
CACHE_BYTES = 256 << 20
BYTES_IN_MEMORY = 5  # of a pixel: its value and its place in the mask of padding
# Of these the file itself is as quick to read again as decoded values would be.
NATIVE_SYNTAXES = frozenset({ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian})
LOSSY_SYNTAXES = frozenset(
    {
        "1.2.840.10008.1.2.4.50",
        "1.2.840.10008.1.2.4.51",
        "1.2.840.10008.1.2.4.53",
        "1.2.840.10008.1.2.4.55",
        "1.2.840.10008.1.2.4.81",
        "1.2.840.10008.1.2.4.91",
        "1.2.840.10008.1.2.4.93",
        "1.2.840.10008.1.2.4.203",
    }
)
DECODER_BYTES = 64_000_000  # more than any decoder needs for a slice of 1024 x 1024; never touched
PADDING = (0x00280120, 0x00280121)  # Pixel Padding Value and Range Limit
UNREADABLE = frozenset({Reason.PIXEL_DATA_ERROR, Reason.NO_DECODER})

jpeg.register()  # before the first decoder is asked for


def decoded(header: Header) -> Raw:
    """The pixels of a slice as its decoder gives them; raises Unprocessable without them."""
    check_decoder(header)
    try:
        plane = _pixels(_whole_data_set(header), header)
    except (*DAMAGED, RuntimeError, OSError) as error:
        bytearray(DECODER_BYTES)  # MemoryError where that was the fault: decoders do not tell
        logger.warning("pixels not decoded", extra={"error": type(error).__name__})
        raise broken(header, quoted(DECODERS_SAID.sub("", str(error)))) from error
    rows, columns = header.integer("Rows"), header.integer("Columns")
    if plane.shape != (rows, columns):
        size = " x ".join(map(str, plane.shape))
        raise broken(header, f"{size} pixels instead of {rows} x {columns}")
    return plane


def decoder_of(syntax: UID) -> Decoder:
    """The decoder of pydicom for a transfer syntax; raises NotImplementedError without one.

    It knows the product's own plug-in, which is registered when this module is imported.
    """
    return get_decoder(syntax)


def check_decoder(header: Header) -> None:
    """Raise Unprocessable where no installed decoder takes the transfer syntax."""
    syntax = header.transfer_syntax
    try:
        decoder = decoder_of(UID(syntax))
    except (NotImplementedError, ValueError):
        raise _without_decoder(syntax, "no package decodes it") from None
    if not decoder.is_available:
        known = (name for prefix, name in PACKAGES.items() if syntax.startswith(prefix))
        package = next(known, "; ".join(decoder.missing_dependencies))
        raise _without_decoder(syntax, f"the package {package} is not installed")


def _without_decoder(syntax: str, why: str) -> Unprocessable:
    uid = quoted(syntax) if syntax else ""
    name = NEW_SYNTAXES.get(uid, UID(uid).name) if uid else "(not given)"
    sentence = f"The pixels are encoded as {name} [{uid}]: {why}. Send the series uncompressed."
    return Unprocessable(Reason.NO_DECODER, sentence)


def broken(header: Header, why: str) -> Unprocessable:
    """The verdict on a slice whose pixels cannot be had, with the number that scanners show."""
    number = quoted(header.text("InstanceNumber") or "?")
    sentence = f"The pixels of image {number} are damaged or incomplete ({why}); send it again."
    return Unprocessable(Reason.PIXEL_DATA_ERROR, sentence)


def _whole_data_set(header: Header) -> Dataset:
    """The data set with its pixels; of a deflated one no more than these pixels can take."""
    if (inner := with_inner_meta(header.path)) is not None:
        return data_set_of(*inner)
    syntax = header.transfer_syntax
    if syntax != DeflatedExplicitVRLittleEndian:
        return dcmread(_repaired(header) if header.repairs else header.path)
    sides = (header.integer("Rows") or 0) * (header.integer("Columns") or 0)
    most = MOST_INFLATED + sides * (header.integer("BitsAllocated") or 0) // 8
    return data_set_of(syntax, inflated(header.path, most))


def _repaired(header: Header) -> BytesIO:
    """The file with value representations that the library knows, so that it reads to the end."""
    content = bytearray(header.path.read_bytes())
    for at, known in header.repairs:
        content[at : at + len(known)] = known
    return BytesIO(content)


def _pixels(dataset: Dataset, header: Header) -> Raw:
    syntax = header.transfer_syntax
    is_encapsulated = dataset.PixelData.startswith(FIRST_ITEM)
    if syntax.startswith(JPEG_FAMILY) or syntax == RLELossless:
        if not is_encapsulated:
            return _native(dataset, header)
    elif is_encapsulated and len(dataset.PixelData) not in _native_lengths(header):
        return _encapsulated(dataset, header)
    return _by_plug_in(dataset, syntax)


def _by_plug_in(dataset: Dataset, syntax: str) -> Raw:
    if UID(syntax) in JPEGLSTransferSyntaxes:
        return _jpeg_ls(dataset, syntax)
    return pixel_array(dataset, raw=True, decoding_plugin=PREFERRED.get(syntax, ""))


def _native(dataset: Dataset, header: Header) -> Raw:
    """Pixels that lie uncompressed under a compressed transfer syntax, where all of them are there.

    A gateway that decompresses may leave the old syntax; their length leaves no other reading.
    """
    if len(dataset.PixelData) not in _native_lengths(header):
        raise _under_wrong_syntax(header, "not encoded as it says")
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return pixel_array(dataset, raw=True)


def _native_lengths(header: Header) -> tuple[int, int]:
    sides = (header.integer("Rows") or 0) * (header.integer("Columns") or 0)
    expected = sides * (header.integer("BitsAllocated") or 0) // 8
    return expected, expected + expected % 2


def _encapsulated(dataset: Dataset, header: Header) -> Raw:
    """Compressed pixels under an uncompressed transfer syntax, by what their code stream says.

    A gateway that compresses may leave the old syntax. Lossless ones alone are taken: nothing would
    mark a result of the others as made from lossy pixels.
    """
    syntax = lossless_syntax_of(get_frame(dataset.PixelData, 0, number_of_frames=1))
    if syntax is None:
        raise _under_wrong_syntax(header, "compressed, and not known to be lossless")
    dataset.file_meta.TransferSyntaxUID = syntax
    return _by_plug_in(dataset, syntax)


def lossless_syntax_of(stream: bytes) -> UID | None:
    """The transfer syntax of a lossless code stream, by its markers; None for any other one."""
    if stream.startswith(JPEG_2000_START):
        coding = stream.partition(JPEG_2000_CODING)[2]
        return JPEG2000Lossless if coding[11:12] == REVERSIBLE else None
    segments = jpeg.marker_segments(stream)[0] if stream.startswith(JPEG_START) else {}
    if jpeg.START_OF_LOSSLESS in segments:
        return JPEGLossless
    if START_OF_JPEG_LS in segments:
        scan = segments.get(jpeg.START_OF_SCAN, b"\0")
        near = scan[1 + 2 * scan[0] :][:1]  # behind the components (ISO/IEC 14495-1 C.2.3)
        return JPEGLSLossless if near == b"\0" else None
    # PS3.5 G.5: a header of 64 bytes, and the first segment right behind it.
    is_rle = stream[4:8] == RLE_HEADER_BYTES and 1 <= int.from_bytes(stream[:4], "little") <= 15
    return RLELossless if is_rle else None


def _under_wrong_syntax(header: Header, how: str) -> Unprocessable:
    name, number = UID(header.transfer_syntax).name, quoted(header.text("InstanceNumber") or "?")
    return Unprocessable(
        Reason.PIXEL_DATA_ERROR,
        f"The pixels of image {number} came as {name}, but are {how}; "
        "correct the program that sends them.",
    )


def _jpeg_ls(dataset: Dataset, syntax: str) -> Raw:
    """JPEG-LS up to its end marker, which is given back to a code stream that lost it.

    Without one the decoder never ends. Zero bytes before it are no data where the decoder has all
    it needs without them (a public reference sample has one): it refuses whatever lacks a bit.
    """
    stream = get_frame(dataset.PixelData, 0, number_of_frames=1)
    # In the data of a scan no byte above 7F follows FF (ISO/IEC 14495-1 A.1): this is the marker.
    start = max(stream.find(START_OF_SCAN), 0)
    coded, marker, _ = stream[start:].partition(END_OF_IMAGE)
    coded = stream[:start] + (coded if marker else coded.rstrip(b"\0"))
    dataset.PixelData = encapsulate([coded + END_OF_IMAGE])
    try:
        return pixel_array(dataset, raw=True, decoding_plugin=PREFERRED[syntax])
    except RuntimeError:
        if not coded.endswith(b"\0"):
            raise
    dataset.PixelData = encapsulate([coded.rstrip(b"\0") + END_OF_IMAGE])
    return pixel_array(dataset, raw=True, decoding_plugin=PREFERRED[syntax])


@dataclass(frozen=True)
class PixelFormat:
    """The encoding of stored values, and their meaning."""

    bits: int
    is_signed: bool
    is_inverted: bool  # MONOCHROME1
    slope: float
    intercept: float
    padding: tuple[int, int] | None  # first and last declared padding value

    @classmethod
    def of(cls, header: Header) -> "PixelFormat":
        """The format that a header declares; raises Unprocessable where it is none."""
        known = _FORMATS.get(header)
        if known is None:
            known = _FORMATS[header] = cls._declared(header)
        return known

    @classmethod
    def _declared(cls, header: Header) -> "PixelFormat":
        slope, intercept = header.number("RescaleSlope"), header.number("RescaleIntercept")
        bits, allocated = header.integer("BitsStored"), header.integer("BitsAllocated")
        if not bits or allocated not in (8, 16, 32) or bits > allocated:
            sentence = f"The images have {bits} of {allocated} bits a pixel, which is impossible."
            raise Unprocessable(Reason.PIXEL_DATA_ERROR, sentence)
        if header.text("SOPClassUID") == MR_IMAGE:  # in units of its own, rescaled or not
            slope, intercept = slope or 1.0, intercept or 0.0
        if not slope or intercept is None:
            sentence = "The images do not say how their values become Hounsfield units."
            raise Unprocessable(Reason.NOT_HU, sentence)
        return cls(
            bits=bits,
            is_signed=header.is_signed,
            is_inverted=header.text("PhotometricInterpretation") == "MONOCHROME1",
            slope=slope,
            intercept=intercept,
            padding=_padding(header, bits),
        )._believed()

    def _believed(self) -> "PixelFormat":
        """Without a declared padding that is the value of tissue."""
        if self.padding is None:
            return self
        ends = [self.least + self.most - end if self.is_inverted else end for end in self.padding]
        low, high = sorted(end * self.slope + self.intercept for end in ends)
        is_tissue = low < TISSUE_HU[1] and high > TISSUE_HU[0]
        return replace(self, padding=None) if is_tissue else self

    def means_the_same(self, other: "PixelFormat") -> bool:
        """True where a stored value of one is the same measurement in the other."""
        same_bits = replace(self, bits=other.bits, is_signed=other.is_signed)
        return same_bits == other and not self.is_inverted

    @property
    def least(self) -> int:
        return -(1 << (self.bits - 1)) if self.is_signed else 0

    @property
    def most(self) -> int:
        return self.least + (1 << self.bits) - 1

    def padded(self, stored: Stored) -> Mask:
        """The pixels that are no measurement: declared padding, or undeclared one."""
        declared, below = self.declared(stored), self.impossible(stored)
        if not below.any():
            return declared
        values, counts = np.unique(stored[below], return_counts=True)
        constant = values[counts >= max(2, PADDING_SHARE * stored.size)]
        return declared | (below & np.isin(stored, constant)) if constant.size else declared

    def impossible(self, stored: Stored) -> Mask:
        """The pixels whose value no tissue has: undeclared padding, or streaks of metal."""
        if self.is_inverted or not stored.size:
            return np.zeros(stored.shape, bool)
        lowest = stored.min() if self.slope > 0 else stored.max()
        if lowest * self.slope + self.intercept >= UNDECLARED_PADDING_HU:
            return np.zeros(stored.shape, bool)
        return np.asarray(stored * self.slope + self.intercept < UNDECLARED_PADDING_HU)

    def declared(self, stored: Stored) -> Mask:
        """The pixels whose value the header declares as padding."""
        if self.padding is None:
            return np.zeros(stored.shape, bool)
        return (stored >= self.padding[0]) & (stored <= self.padding[1])

    def hounsfield(self, stored: Stored) -> Plane:
        """Stored values in HU; padding becomes air."""
        return self.hounsfield_around(stored, self.padded(stored))

    def hounsfield_around(self, stored: Stored, padded: Mask) -> Plane:
        """The same, where it is known what is padding."""
        values = self.least + self.most - stored if self.is_inverted else stored
        if self._is_exact_in_32_bits:
            plane = values.astype(np.float32)
            plane += np.float32(self.intercept)
        else:
            plane = (values * self.slope + self.intercept).astype(np.float32)
        np.copyto(plane, np.float32(AIR_HU), where=padded)
        return plane

    @property
    def _is_exact_in_32_bits(self) -> bool:
        """True where whole numbers are added that a float32 holds exactly, as is usual in CT."""
        is_whole = self.intercept.is_integer() and abs(self.intercept) < MOST_EXACT
        return self.slope == 1.0 and self.bits <= 16 and is_whole

    def stored(self, plane: NDArray[np.floating]) -> NDArray[np.float64]:
        """HU as stored values, rounded half to even, not yet clipped."""
        values = plane.astype(np.float64)
        values -= self.intercept
        values /= self.slope
        np.rint(values, out=values)
        return self.least + self.most - values if self.is_inverted else values


# Most headers are asked many times.
_FORMATS: "WeakKeyDictionary[Header, PixelFormat]" = WeakKeyDictionary()


def padding_notes(headers: Sequence[Header]) -> list[str]:
    """A note where a declared padding value was not believed."""
    if not any(map(is_padding_unbelievable, headers)):
        return []
    return ["the declared Pixel Padding Value is a value of tissue, so it was ignored"]


def is_padding_unbelievable(header: Header) -> bool:
    """True where the header declares the value of tissue as padding."""
    layout = PixelFormat.of(header)
    return layout.padding is None and _padding(header, layout.bits) is not None


def _padding(header: Header, bits: int) -> tuple[int, int] | None:
    """The declared padding values; real headers give them with the wrong sign."""
    values = [
        _resigned(int(number), bits, is_signed=header.is_signed)
        for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")
        if (number := _padding_number(header, keyword)) is not None
    ]
    return (min(values), max(values)) if values else None


def _padding_number(header: Header, keyword: str) -> int | None:
    raw = header.raw(keyword)
    if len(raw) != 2:
        return None
    element = header.elements[0x00280120 if keyword == "PixelPaddingValue" else 0x00280121]
    little = getattr(element, "is_little_endian", True)
    return int(struct.unpack("<H" if little else ">H", raw)[0])


def _resigned(number: int, bits: int, *, is_signed: bool) -> int:
    if not is_signed:
        return number
    number &= 0xFFFF
    number = number - 0x10000 if number >= 0x8000 else number
    # A 12-bit pattern whose sign bit was not extended into the 16 bits of the attribute.
    return number - (1 << bits) if bits < 16 and number >= 1 << (bits - 1) else number


@dataclass(frozen=True, eq=False)
class DecodedSlice:
    """The stored values of one slice, read-only, and what is worked out of them once."""

    header: Header
    stored: Stored

    @cached_property
    def padded(self) -> Mask:
        """The pixels that are no measurement."""
        return PixelFormat.of(self.header).padded(self.stored)

    @cached_property
    def ends(self) -> tuple[int, int] | None:
        """The least and the greatest stored value of a measurement; None where there is none."""
        ends = ends_of(self.stored, self.padded)
        return None if ends is None else (int(ends[0]), int(ends[1]))

    @cached_property
    def ends_hu(self) -> tuple[np.float32, np.float32] | None:
        """The same in HU."""
        if self.ends is None:
            return None
        stored, is_padded = np.array(self.ends, np.int32), np.zeros(2, bool)
        plane = PixelFormat.of(self.header).hounsfield_around(stored, is_padded)
        return plane.min(), plane.max()

    def hounsfield(self) -> Plane:
        """A plane in HU, the caller's own."""
        return PixelFormat.of(self.header).hounsfield_around(self.stored, self.padded)

    @property
    def nbytes(self) -> int:
        return BYTES_IN_MEMORY * self.stored.size


def ends_of(values: NDArray[T], padded: Mask) -> tuple[T, T] | None:
    """The least and the greatest of the values that are not padded; None where all are."""
    inside = values[~padded] if padded.any() else values
    return (inside.min(), inside.max()) if inside.size else None


def _kept_as(header: Header) -> np.dtype[np.integer]:
    """The smallest type that holds the stored values of a slice."""
    layout = PixelFormat.of(header)
    if layout.bits > 16:
        return np.dtype(np.int32)
    return np.dtype(np.int16) if layout.is_signed else np.dtype(np.uint16)


class PixelReader:
    """Decodes slices when they are asked for and keeps the last ones, up to a fixed size.

    With a folder a compressed slice is decoded once: what has no more room in memory goes into a
    scratch file there. Threads share a reader: who asks for a slice that another one decodes waits
    for it.
    """

    def __init__(self, cache_bytes: int | None = None, scratch_folder: Path | None = None) -> None:
        self._kept: OrderedDict[Path, Future[DecodedSlice]] = OrderedDict()
        self._bytes = 0
        self._room = CACHE_BYTES if cache_bytes is None else cache_bytes
        self._scratch: ScratchFile[Path, np.integer] | None = None
        if scratch_folder is not None:
            self._scratch = ScratchFile(scratch_folder)
        self._lock = threading.Lock()

    def scratch_bytes(self, headers: Sequence[Header]) -> int:
        """The most that decoded slices of a stack may take on disk."""
        sides = [
            (header.integer("Rows") or 0) * (header.integer("Columns") or 0) for header in headers
        ]
        if self._scratch is None or sum(sides) * BYTES_IN_MEMORY <= self._room:
            return 0
        return sum(
            pixels * _kept_as(header).itemsize
            for header, pixels in zip(headers, sides, strict=True)
            if header.transfer_syntax not in NATIVE_SYNTAXES
        )

    def decoded(self, header: Header) -> DecodedSlice:
        """A slice, which nobody may change; raises Unprocessable where it cannot be had."""
        with self._lock:
            kept = self._kept.get(header.path)
            if kept is not None:
                self._kept.move_to_end(header.path)
            else:
                own = self._kept[header.path] = Future()
        if kept is not None:
            return kept.result()
        try:
            own.set_result(self._decoded_slice(header))
        except BaseException as error:
            own.set_exception(error)
            self._forget(header.path)
            raise
        self._make_room(own.result().nbytes)
        return own.result()

    def _decoded_slice(self, header: Header) -> DecodedSlice:
        if self._scratch is not None and header.path in self._scratch:
            stored = self._scratch[header.path].astype(np.int32)
        else:
            stored = decode(header)
        stored.setflags(write=False)
        return DecodedSlice(header, stored)

    def stored(self, header: Header) -> Stored:
        """The stored values of a slice, read-only."""
        return self.decoded(header).stored

    def hounsfield(self, header: Header) -> Plane:
        return self.decoded(header).hounsfield()

    def digest(self, header: Header) -> str:
        """SHA-256 over what makes the slice: its values, their meaning and its place.

        The same for every transfer syntax and whatever else the header says.
        """
        layout = PixelFormat.of(header)
        place = [
            header.numbers(keyword)
            for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
        ]
        stored = self.stored(header)
        digest = hashlib.sha256(repr((layout, place, stored.shape)).encode("ascii"))
        digest.update(np.ascontiguousarray(stored, dtype="<i4").data)
        return digest.hexdigest()

    def _make_room(self, taken: int) -> None:
        with self._lock:
            self._bytes += taken
            while self._bytes > self._room:
                path = next((path for path, kept in self._kept.items() if kept.done()), None)
                if path is None:
                    return
                slice_ = self._kept.pop(path).result()
                self._bytes -= slice_.nbytes
                self._put_aside(slice_)

    def _put_aside(self, slice_: DecodedSlice) -> None:
        """Write a slice that leaves memory where decoding it again would take longer."""
        header = slice_.header
        is_native = header.transfer_syntax in NATIVE_SYNTAXES
        if self._scratch is None or is_native or header.path in self._scratch:
            return
        self._scratch[header.path] = slice_.stored.astype(_kept_as(header))

    def _forget(self, path: Path) -> None:
        with self._lock:
            del self._kept[path]


def decode(header: Header) -> Stored:
    """The stored values of a slice; raises Unprocessable where they cannot be had."""
    return _in_format(decoded(header), header)


def native_values(header: Header, data: bytes) -> Stored:
    """The stored values of uncompressed little endian pixels; raises Unprocessable."""
    rows, columns = header.integer("Rows") or 0, header.integer("Columns") or 0
    allocated = header.integer("BitsAllocated") or 16
    if allocated % 8 or len(data) not in _native_lengths(header):
        raise broken(header, f"{len(data)} bytes for {rows} x {columns} pixels")
    values = np.frombuffer(data, f"<u{allocated // 8}", rows * columns)
    return _in_format(values.reshape(rows, columns), header)


def _in_format(plane: NDArray[np.generic], header: Header) -> Stored:
    """Only the bits from High Bit down, sign extended: old files keep overlays above them."""
    layout = PixelFormat.of(header)
    high_bit = header.integer("HighBit")
    unused = 0 if high_bit is None else max(0, high_bit + 1 - layout.bits)
    is_narrow = plane.dtype.kind in "iu" and plane.dtype.itemsize <= 2
    values: NDArray[np.signedinteger] = plane.astype(np.int32 if is_narrow else np.int64)
    if unused:
        values >>= unused
    values &= (1 << layout.bits) - 1
    if layout.is_signed:
        np.subtract(values, 1 << layout.bits, out=values, where=values > layout.most)
    return values.astype(np.int32, copy=False)


def generated_values(
    plane: Plane,
    before: Header,
    after: Header,
    pixels: PixelReader,
    like: Header | None = None,
    offsets: tuple[Offset, Offset] = UPRIGHT,
) -> Stored:
    """A predicted slice in stored values of the slice before it, or in the format of another one.

    Within what the two neighbours hold, never the padding value, and padding where either is. In a
    stack that shears (gantry tilt) a pixel's point lies at `offsets` from it in the neighbours
    (`Geometry.offsets`): where that is in the padding of one of them, the other one's value stands.
    """
    layout = PixelFormat.of(before if like is None else like)
    neighbours = [pixels.decoded(header) for header in (before, after)]
    first, second = (_as_stored(neighbour, layout) for neighbour in neighbours)
    outside = [neighbour.padded for neighbour in neighbours]
    ends = [
        neighbour.ends if stored is neighbour.stored else ends_of(stored, neighbour.padded)
        for neighbour, stored in zip(neighbours, (first, second), strict=True)
    ]
    least, most = layout.least, layout.most
    if inside := [pair for pair in ends if pair is not None]:
        least = max(least, min(int(pair[0]) for pair in inside))
        most = min(most, max(int(pair[1]) for pair in inside))
    wanted = layout.stored(plane)
    values = np.clip(wanted, least, most, out=wanted).astype(np.int32)
    values = _off_padding(values, layout, least)
    _take_what_is_not_padded(values, (first, second), outside, offsets)
    np.copyto(values, second, where=outside[1])
    np.copyto(values, first, where=outside[0])
    return values


def _take_what_is_not_padded(
    values: Stored,
    neighbours: tuple[Stored, Stored],
    outside: Sequence[Mask],
    offsets: tuple[Offset, Offset],
) -> None:
    """Padding counted as air while the slice was predicted; in a shear that reaches inside."""
    wholes = [(round(rows), round(columns)) for rows, columns in offsets]
    if wholes == [(0, 0), (0, 0)] or not (outside[0].any() or outside[1].any()):
        return
    hidden = [moved(_grown(mask), at) for mask, at in zip(outside, wholes, strict=True)]
    for own, other in ((0, 1), (1, 0)):
        lost = hidden[own] & ~hidden[other]
        values[lost] = moved(neighbours[other], wholes[other])[lost]


def _grown(mask: Mask) -> Mask:
    """The mask and what bicubic sampling mixes with it."""
    grown = mask.copy()
    for axis in (0, 1):
        padded = np.pad(grown, [(SAMPLED_PIXELS * (axis == side),) * 2 for side in (0, 1)])
        span = range(2 * SAMPLED_PIXELS + 1)
        count = mask.shape[axis]
        grown = np.logical_or.reduce([padded.take(range(at, at + count), axis) for at in span])
    return grown


def _as_stored(slice_: DecodedSlice, layout: PixelFormat) -> Stored:
    """The stored values of another slice as `layout` would store them."""
    own, stored = PixelFormat.of(slice_.header), slice_.stored
    is_wide_enough = layout.least <= own.least and own.most <= layout.most
    if own == layout or (is_wide_enough and own.means_the_same(layout)):
        return stored
    direct = own.least + own.most - stored if own.is_inverted else stored
    plane = direct * own.slope + own.intercept  # padding that nobody declares keeps its value
    values = np.clip(layout.stored(plane), layout.least, layout.most).astype(np.int32)
    if layout.padding is not None:
        values[slice_.padded] = layout.padding[0]
    return values


def _off_padding(values: Stored, layout: PixelFormat, least: int) -> Stored:
    if layout.padding is None:
        return values
    first, last = layout.padding
    beside = last + 1 if last + 1 <= layout.most and first - 1 < least else first - 1
    values[(values >= first) & (values <= last)] = beside
    return values


def encoded(stored: Stored, header: Header) -> bytes:
    """Native little endian pixel data of even length, in the format of the header."""
    allocated = header.integer("BitsAllocated") or 16
    bits = (1 << (header.integer("BitsStored") or allocated)) - 1
    # Bits above High Bit hold the sign (PS3.5 8.1.1 leaves them open; readers expect it there).
    mask = (1 << allocated) - 1 if header.is_signed else bits
    wide = stored.astype(np.int64) if allocated > 16 else stored
    data = (wide & mask).astype(f"<u{allocated // 8}").tobytes()
    return data if len(data) % 2 == 0 else data + b"\0"


def is_lossy(header: Header) -> bool:
    """True where pixels were ever compressed with loss; it is never taken back (C.7.6.1.1.5)."""
    return header.text("LossyImageCompression") == "01" or header.transfer_syntax in LOSSY_SYNTAXES


def common_format(headers: Sequence[Header], pixels: PixelReader) -> Header | None:
    """A slice in whose pixel format every generated slice is written; None where all have one.

    One that can store every value of the stack: a received one with the finest slope, so that no
    value moves by more than half of it (derived-objects 2), else the same in 16 bits, signed.
    Copies keep their own. None too where 16 bits have no room: then each takes its neighbour's.
    """
    formats = [PixelFormat.of(header) for header in headers]
    if len(set(zip(formats, map(_allocated, headers), strict=True))) == 1:
        return None
    ranges = [_held(layout, pixels, header) for layout, header in _both(formats, headers)]
    low, high = min(least for least, _ in ranges), max(most for _, most in ranges)
    best = min(map(_preference, formats))
    chosen = [header for layout, header in _both(formats, headers) if _preference(layout) == best]
    for header in (*chosen, *map(_in_16_bits, chosen)):
        layout = PixelFormat.of(header)
        least, most = _in_hu(layout, layout.least, layout.most)
        is_padded = layout.padding is not None or not any(other.padding for other in formats)
        if least <= low and high <= most and is_padded:
            return header
    return None


def _allocated(header: Header) -> int:
    return header.integer("BitsAllocated") or 0


def _both(
    formats: Sequence[PixelFormat], headers: Sequence[Header]
) -> Iterator[tuple[PixelFormat, Header]]:
    return zip(formats, headers, strict=True)


def _preference(layout: PixelFormat) -> tuple[bool, float]:
    return layout.is_inverted, abs(layout.slope)


def _in_16_bits(header: Header) -> Header:
    """The same slice, if its values were signed and of 16 bits."""
    values = {"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1}
    elements = dict(header.elements)
    for keyword, value in values.items():
        tag = tag_for_keyword(keyword)
        assert tag is not None
        elements[tag] = RawDataElement(
            Tag(tag), "US", 2, value.to_bytes(2, "little"), 0, False, True
        )
    ends = PixelFormat.of(header).padding or ()
    for tag, value in zip(PADDING, dict.fromkeys(ends), strict=False):
        elements.pop(tag, None)
        if -(1 << 15) <= value < 1 << 15:
            data = value.to_bytes(2, "little", signed=True)
            elements[tag] = RawDataElement(Tag(tag), "SS", 2, data, 0, False, True)
    return replace(header, elements=elements)


def _held(layout: PixelFormat, pixels: PixelReader, header: Header) -> tuple[float, float]:
    """The least and the greatest value of a slice in HU, undeclared padding included."""
    stored = pixels.stored(header)
    values = stored[~layout.declared(stored)]
    if not values.size:
        return np.inf, -np.inf
    ends = values.min(), values.max()
    if layout.is_inverted:
        ends = layout.least + layout.most - ends[1], layout.least + layout.most - ends[0]
    return _in_hu(layout, *map(int, ends))


def _in_hu(layout: PixelFormat, one: int, other: int) -> tuple[float, float]:
    ends = sorted(value * layout.slope + layout.intercept for value in (one, other))
    return ends[0], ends[1]


def digests(
    headers: Sequence[Header],
    pixels: PixelReader,
    *,
    threads: int = 1,
    progress: Callable[[int], None],
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The digest of each instance's newest version, by UID, and notes about older versions.

    Versions with the same pixels, geometry and rescale are revisions of the header: the newest
    counts. Anything else under one UID is a conflict that a person decides. So many threads decode.
    """
    digest_of: dict[str, str] = {}
    notes: list[str] = []
    versions: dict[str, list[Header]] = {}
    for header in headers:
        versions.setdefault(header.uid, []).append(header)
    current = newest(headers)
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(pixels.digest, header) for header in current]
        try:
            for done, (header, future) in enumerate(zip(current, futures, strict=True), start=1):
                digest_of[header.uid] = future.result()
                older = [version for version in versions[header.uid] if version is not header]
                notes += [_compared(version, digest_of[header.uid], pixels) for version in older]
                progress(done)
        finally:
            pool.shutdown(cancel_futures=True)
    return digest_of, tuple(sorted(set(notes)))


def check_copies(
    copies: Sequence[tuple[Header, Header]], of: int, pixels: PixelReader
) -> list[str]:
    """A note on images that came under two UIDs; raises Unprocessable where pixels differ."""
    differing = [
        pair
        for pair in copies
        if not np.array_equal(pixels.hounsfield(pair[0]), pixels.hounsfield(pair[1]))
    ]
    if differing:
        raise duplicates(len(differing), of)
    if not copies:
        return []
    count = "1 image" if len(copies) == 1 else f"{len(copies)} images"
    numbers = numbers_of([other for _, other in copies])
    return [f"{count} came twice under two UIDs with the same pixels; one is used ({numbers} not)"]


def _compared(older: Header, digest: str, pixels: PixelReader) -> str:
    try:
        same = pixels.digest(older) == digest
    except Unprocessable as error:
        if error.reason not in UNREADABLE:
            raise _conflict(older) from error
        return "an older version of an instance could not be read; the newest was used"
    if not same:
        raise _conflict(older)
    return "several versions of an instance differ only in their headers; the newest was used"


def _conflict(header: Header) -> Unprocessable:
    number = header.text("InstanceNumber") or "?"
    sentence = (
        f"Image {number} was received twice under one UID with different pixels or position; "
        "find out which one is right and send the whole series again."
    )
    return Unprocessable(Reason.CONFLICTING_INSTANCES, sentence)
