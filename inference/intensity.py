"""Stored values and Hounsfield units: decoding, padding, rounding, clipping (PS3.3 C.11.1)."""

import hashlib
import struct
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

from inference.dataset import DAMAGED, Header
from inference.errors import Reason, Unprocessable
from inference.volume import Plane

Stored = NDArray[np.int32]  # (rows, columns), as in the file, sign extended, no bits above High Bit
Mask = NDArray[np.bool_]

AIR_HU = -1024.0
# No tissue, no gas and no noise lies below; what does is padding that the header does not declare.
UNDECLARED_PADDING_HU = -1500.0
# Decoded slices that are kept in memory, so that a usual series is decoded once.
CACHE_BYTES = 256 << 20
PACKAGES = {
    "1.2.840.10008.1.2.4.5": "pylibjpeg-libjpeg",  # JPEG baseline, extended, lossless
    "1.2.840.10008.1.2.4.7": "pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.8": "pyjpegls",  # JPEG-LS
    "1.2.840.10008.1.2.4.9": "pylibjpeg-openjpeg",  # JPEG 2000
    "1.2.840.10008.1.2.4.20": "pylibjpeg-openjpeg",  # HTJ2K
}
JPEG_FAMILY = "1.2.840.10008.1.2.4."
# The other decoder of JPEG-LS makes a picture of a damaged code stream without a word.
PREFERRED = {"1.2.840.10008.1.2.4.80": "pyjpegls", "1.2.840.10008.1.2.4.81": "pyjpegls"}
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


@dataclass(frozen=True)
class PixelFormat:
    """How stored values are encoded, and what they mean."""

    bits: int
    is_signed: bool
    is_inverted: bool  # MONOCHROME1
    slope: float
    intercept: float
    padding: tuple[int, int] | None  # first and last declared padding value

    @classmethod
    def of(cls, header: Header) -> "PixelFormat":
        slope, intercept = header.number("RescaleSlope"), header.number("RescaleIntercept")
        bits, allocated = header.integer("BitsStored"), header.integer("BitsAllocated")
        if not bits or allocated not in (8, 16, 32) or bits > allocated:
            sentence = f"The images have {bits} of {allocated} bits a pixel, which is impossible."
            raise Unprocessable(Reason.PIXEL_DATA_ERROR, sentence)
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
        )

    @property
    def least(self) -> int:
        return -(1 << (self.bits - 1)) if self.is_signed else 0

    @property
    def most(self) -> int:
        return self.least + (1 << self.bits) - 1

    def padded(self, stored: Stored) -> Mask:
        """Where a pixel is no measurement: declared padding, or below every possible value."""
        mask = np.zeros(stored.shape, bool)
        if self.padding is not None:
            mask = (stored >= self.padding[0]) & (stored <= self.padding[1])
        if not self.is_inverted:
            mask |= stored * self.slope + self.intercept < UNDECLARED_PADDING_HU
        return mask

    def hounsfield(self, stored: Stored) -> Plane:
        """Stored values in HU; padding becomes air."""
        values = self.least + self.most - stored if self.is_inverted else stored
        plane = (values * self.slope + self.intercept).astype(np.float32)
        plane[self.padded(stored)] = AIR_HU
        return plane

    def stored(self, plane: Plane) -> NDArray[np.float64]:
        """HU as stored values, rounded half to even, not yet clipped."""
        values = np.rint((plane.astype(np.float64) - self.intercept) / self.slope)
        return self.least + self.most - values if self.is_inverted else values


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


class PixelReader:
    """Decodes slices when they are asked for and keeps the last ones, up to a fixed size."""

    def __init__(self, cache_bytes: int = CACHE_BYTES) -> None:
        self._kept: OrderedDict[object, Stored] = OrderedDict()
        self._room = cache_bytes

    def stored(self, header: Header) -> Stored:
        """The stored values of a slice, read-only."""
        if header.path in self._kept:
            self._kept.move_to_end(header.path)
            return self._kept[header.path]
        plane = decode(header)
        plane.setflags(write=False)
        self._kept[header.path] = plane
        while sum(kept.nbytes for kept in self._kept.values()) > self._room and self._kept:
            self._kept.popitem(last=False)
        return plane

    def hounsfield(self, header: Header) -> Plane:
        return PixelFormat.of(header).hounsfield(self.stored(header))

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
        digest.update(np.ascontiguousarray(stored, dtype="<i4").tobytes())
        return digest.hexdigest()


def check_decoder(header: Header) -> None:
    """Raise Unprocessable where no installed decoder takes the transfer syntax."""
    syntax = header.transfer_syntax
    try:
        decoder = get_decoder(UID(syntax))
    except (NotImplementedError, ValueError):
        raise _without_decoder(syntax, "no package decodes it") from None
    if not decoder.is_available:
        known = (name for prefix, name in PACKAGES.items() if syntax.startswith(prefix))
        raise _without_decoder(syntax, next(known, "; ".join(decoder.missing_dependencies)))


def _without_decoder(syntax: str, package: str) -> Unprocessable:
    name = UID(syntax).name if syntax else "(not given)"
    sentence = f"The pixels are encoded as {name} [{syntax}], for which a decoder is missing"
    return Unprocessable(Reason.NO_DECODER, f"{sentence}: {package}.")


def decode(header: Header) -> Stored:
    """The stored values of a slice; raises Unprocessable where they cannot be had."""
    check_decoder(header)
    try:
        dataset = dcmread(header.path)
        plugin = PREFERRED.get(header.transfer_syntax, "")
        if header.transfer_syntax.startswith(JPEG_FAMILY) and not _is_whole(dataset):
            raise _broken(header, "the code stream has no end")
        plane = pixel_array(dataset, raw=True, decoding_plugin=plugin)
    except (*DAMAGED, RuntimeError, OSError) as error:
        raise _broken(header, f"they cannot be decoded: {type(error).__name__}") from error
    shape = (header.integer("Rows"), header.integer("Columns"))
    if plane.shape != shape:
        raise _broken(header, f"{plane.shape} pixels instead of {shape}")
    return _in_format(plane, header)


def _is_whole(dataset: Dataset) -> bool:
    """True where the code stream has its end marker: decoders make something of a cut one."""
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    return frame.rstrip(b"\0").endswith(b"\xff\xd9")


def _broken(header: Header, why: str) -> Unprocessable:
    number = header.text("InstanceNumber") or "?"
    sentence = f"The pixels of image {number} are damaged or incomplete ({why}); send it again."
    return Unprocessable(Reason.PIXEL_DATA_ERROR, sentence)


def _in_format(plane: NDArray[np.generic], header: Header) -> Stored:
    """Only the bits from High Bit down, sign extended: old files keep overlays above them."""
    layout = PixelFormat.of(header)
    high_bit = header.integer("HighBit")
    unused = 0 if high_bit is None else max(0, high_bit + 1 - layout.bits)
    values = np.asarray(plane).astype(np.int64) >> unused
    values &= (1 << layout.bits) - 1
    if layout.is_signed:
        values = np.where(values > layout.most, values - (1 << layout.bits), values)
    return values.astype(np.int32)


def generated_values(plane: Plane, before: Header, after: Header, pixels: PixelReader) -> Stored:
    """A predicted slice in the stored values of the slice before it.

    Within what the two neighbours hold, never the padding value, and padding where either is.
    """
    layout = PixelFormat.of(before)
    first, second = pixels.stored(before), _as_stored(after, layout, pixels)
    outside = (layout.padded(first), PixelFormat.of(after).padded(pixels.stored(after)))
    inside = np.concatenate([first[~outside[0]], second[~outside[1]]])
    least, most = layout.least, layout.most
    if inside.size:
        least, most = max(least, int(inside.min())), min(most, int(inside.max()))
    values = np.clip(layout.stored(plane), least, most).astype(np.int32)
    values = _off_padding(values, layout, least)
    values[outside[1]] = second[outside[1]]
    values[outside[0]] = first[outside[0]]
    return values


def _as_stored(header: Header, layout: PixelFormat, pixels: PixelReader) -> Stored:
    """The stored values of another slice as `layout` would store them."""
    own = PixelFormat.of(header)
    stored = pixels.stored(header)
    if (own.slope, own.intercept) == (layout.slope, layout.intercept):
        return stored
    plane = own.hounsfield(stored)
    values = np.clip(layout.stored(plane), layout.least, layout.most).astype(np.int32)
    if layout.padding is not None:
        values[own.padded(stored)] = layout.padding[0]
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
    data = (stored.astype(np.int64) & mask).astype(f"<u{allocated // 8}").tobytes()
    return data if len(data) % 2 == 0 else data + b"\0"


def is_lossy(header: Header) -> bool:
    """True where pixels were ever compressed with loss; it is never taken back (C.7.6.1.1.5)."""
    return header.text("LossyImageCompression") == "01" or header.transfer_syntax in LOSSY_SYNTAXES
