"""JPEG baseline, extended and lossless, and JPEG 2000, for pydicom: its plug-in for imagecodecs.

pydicom's own plug-ins for JPEG need a GPL package, or refuse extended JPEG of 12 bits. Lossless
frames are exact; lossy ones may differ by one value from another decoder (ISO/IEC 10918-2). The
decoder (libjpeg-turbo) makes up what a cut code stream lacks and says nothing; here it is an error.
JPEG 2000 takes the longest of all: its decoder here (OpenJPEG, as elsewhere) lets other threads of
the interpreter work meanwhile.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder
from pydicom.uid import (
    JPEG2000,
    UID,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
)

Samples = NDArray[np.integer]  # (rows, columns) or (rows, columns, colours)

PLUGIN = "imagecodecs"
JPEG_2000 = (JPEG2000Lossless, JPEG2000)
SYNTAXES = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, *JPEG_2000)
# A name that pydicom asks for: what is needed for each transfer syntax.
DECODER_DEPENDENCIES: Mapping[UID, tuple[str, ...]] = dict.fromkeys(SYNTAXES, (PLUGIN,))

CUT = "the data end before the last sample"
END_OF_IMAGE = b"\xff\xd9"
# More entropy-coded data than any row needs: a decoder that had all it wanted does not read it.
SURPLUS = b"\x55" * 256
# ISO/IEC 10918-1 table B.1
START_OF_LOSSLESS, HUFFMAN_TABLES, START_OF_SCAN, RESTART_INTERVAL = 0xC3, 0xC4, 0xDA, 0xDD
MARKER = re.compile(rb"\xff[^\x00]", re.DOTALL)  # a zero after FF: the FF is data
Predictor = Callable[..., NDArray[np.int32]]
# By selection value, of the samples to the left, above, and above to the left (table H.1).
PREDICTORS: tuple[Predictor, ...] = (
    lambda left, above, corner: left,
    lambda left, above, corner: above,
    lambda left, above, corner: corner,
    lambda left, above, corner: left + above - corner,
    lambda left, above, corner: left + ((above - corner) >> 1),
    lambda left, above, corner: above + ((left - corner) >> 1),
    lambda left, above, corner: (left + above) >> 1,
)


def register() -> None:
    """Let pydicom decode by this plug-in; a second time does nothing."""
    for syntax in SYNTAXES:
        decoder = get_decoder(syntax)
        if PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(PLUGIN, (__name__, decode_frame.__name__))


def is_available(uid: UID) -> bool:
    """True for the transfer syntaxes that this plug-in decodes; pydicom asks."""
    codec = imagecodecs.JPEG2K if uid in JPEG_2000 else imagecodecs.JPEG8
    return uid in SYNTAXES and bool(codec.available)


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """The samples of one frame, 8 or 16 bits each; raises a RuntimeError for a bad code stream."""
    samples = _samples(src, runner.transfer_syntax)
    runner.set_option("bits_allocated", 8 * samples.itemsize)
    if samples.ndim == 3:  # colours lie pixel by pixel, and are RGB by now
        runner.set_option("planar_configuration", 0)
        runner.set_option("photometric_interpretation", "RGB")
    return bytes(samples.astype(samples.dtype.newbyteorder("<")).tobytes())


def _samples(stream: bytes, syntax: UID) -> Samples:
    if syntax in JPEG_2000:
        return np.asarray(imagecodecs.jpeg2k_decode(stream))
    samples: Samples = imagecodecs.jpeg8_decode(stream)
    if not _is_whole(stream, samples):
        raise RuntimeError(CUT)
    return samples


def _is_whole(stream: bytes, samples: Samples) -> bool:
    """False where the decoder made up samples: it does so without a word where data end early."""
    scan = LosslessScan.of(stream)
    if scan is None:
        return _wants_no_more(stream, samples)
    bits = scan.bits_of(samples)
    return bits is not None and bits <= scan.bits


def _wants_no_more(stream: bytes, samples: Samples) -> bool:
    """True where more data change nothing: the decoder had all that the samples need.

    For code streams whose data cannot be told from their samples (lossy ones, restart intervals).
    """
    before, marker, _ = stream.rpartition(END_OF_IMAGE)
    # Fill bytes FF may stand before a marker (ISO/IEC 10918-1 B.1.1.2).
    entropy_coded = (before if marker else stream.rstrip(b"\0")).rstrip(b"\xff")
    try:
        again = imagecodecs.jpeg8_decode(entropy_coded + SURPLUS + END_OF_IMAGE)
    except RuntimeError:
        return False
    return np.array_equal(again, samples)


@dataclass(frozen=True)
class LosslessScan:
    """The one scan of a lossless JPEG of one component (ISO/IEC 10918-1, annex H)."""

    precision: int  # of a sample, without the bits that the point transform takes away
    predictor: int  # selection value, 1 to 7
    point_transform: int
    code_lengths: Mapping[int, int]  # by category of the difference (table H.2)
    bits: int  # that the entropy-coded segment holds

    @classmethod
    def of(cls, stream: bytes) -> "LosslessScan | None":
        """The scan of a code stream; None where it is none of the kind that can be counted."""
        segments, start = marker_segments(stream)
        frame, scan = segments.get(START_OF_LOSSLESS, b""), segments.get(START_OF_SCAN, b"")
        if len(frame) != 9 or len(scan) != 6 or any(segments.get(RESTART_INTERVAL, b"")):
            return None
        lengths = _code_lengths(segments.get(HUFFMAN_TABLES, b"")).get(scan[2] >> 4)
        shift = scan[5] & 0x0F
        if lengths is None or not 1 <= scan[3] <= 7:
            return None
        return cls(frame[0] - shift, scan[3], shift, lengths, _bits(stream, start))

    def bits_of(self, samples: Samples) -> int | None:
        """The number of bits that these samples take; None where one has no code."""
        values = samples.astype(np.int32) >> self.point_transform
        # Differences are taken modulo 2^16 (H.1.2.1).
        counts = np.bincount(((values - self._predicted(values)) & 0xFFFF).ravel(), minlength=65536)
        total = 0
        for category in range(17):
            count = _count(counts, category)
            if count and category not in self.code_lengths:
                return None
            # A difference of 32768 has no bits beside its code.
            total += count * (self.code_lengths.get(category, 0) + category % 16)
        return total

    def _predicted(self, values: NDArray[np.int32]) -> NDArray[np.int32]:
        predicted = np.empty_like(values)
        predicted[0, 0] = 1 << (self.precision - 1)
        predicted[0, 1:] = values[0, :-1]
        predicted[1:, 0] = values[:-1, 0]
        left, above, corner = values[1:, :-1], values[:-1, 1:], values[:-1, :-1]
        predicted[1:, 1:] = PREDICTORS[self.predictor - 1](left, above, corner)
        return predicted


def _count(counts: NDArray[np.intp], category: int) -> int:
    """The number of differences of so many bits, of both signs."""
    if category in (0, 16):
        return int(counts[0 if category == 0 else 32768])
    low, high = 1 << (category - 1), 1 << category
    return int(counts[low:high].sum() + counts[65536 - high + 1 : 65536 - low + 1].sum())


def marker_segments(stream: bytes) -> tuple[dict[int, bytes], int]:
    """The marker segments up to the first scan, by marker, and where its data begin."""
    segments: dict[int, bytes] = {}
    at = 2
    while stream[at : at + 1] == b"\xff" and at + 4 <= len(stream):
        marker = stream[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        segments[marker] = segments.get(marker, b"") + stream[at + 4 : end]
        at = end
        if marker == START_OF_SCAN:
            break
    return segments, at


def _code_lengths(tables: bytes) -> dict[int, dict[int, int]]:
    """The length of each value's code, by table (B.2.4.2)."""
    lengths: dict[int, dict[int, int]] = {}
    at = 0
    while at + 17 <= len(tables):
        counts = tables[at + 1 : at + 17]
        values = iter(tables[at + 17 :])
        lengths[tables[at]] = {
            value: length
            for length, count in enumerate(counts, start=1)
            for value in islice(values, count)
        }
        at += 17 + sum(counts)
    return lengths


def _bits(stream: bytes, start: int) -> int:
    """The size of an entropy-coded segment: up to a marker, without the zeros after bytes FF."""
    end = MARKER.search(stream, start)
    # Without an end marker nothing tells padding from data.
    coded = stream[start : end.start()] if end else stream[start:].rstrip(b"\0")
    return 8 * (len(coded) - coded.count(b"\xff\0"))
