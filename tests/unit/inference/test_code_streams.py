"""Code streams that others read: what decodes whole is taken, what lacks a sample is not."""

import struct
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from inference import jpeg
from inference.dataset import quoted, read_header
from inference.errors import Reason, Unprocessable
from inference.pixels import decode
from node import second_opinion
from tests import phantoms
from tests.phantoms import Series

STREAMS = Path("tests/data/code-streams")
END = b"\xff\xd9"


def picture(bits: int, *, flat_end: bool = False) -> NDArray[np.uint16]:
    rng = np.random.default_rng(bits)
    samples = rng.integers(0, 1 << bits, (24, 20)).astype(np.uint16)
    samples[4:12] = np.arange(20)  # smooth, as well as noise
    if flat_end:
        samples[12:] = 1 << (bits - 1)  # what the decoder makes up for rows that it lacks
    return samples


def lossless(samples: NDArray[np.uint16], bits: int, predictor: int) -> bytes:
    stream = imagecodecs.jpeg8_encode(
        samples, lossless=True, predictor=predictor, bitspersample=bits
    )
    return bytes(stream)


@pytest.mark.parametrize("flat_end", [False, True])
@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("predictor", range(1, 8))
def test_the_bits_of_lossless_samples_are_counted_to_the_last_byte(
    predictor: int, bits: int, flat_end: bool
) -> None:
    samples = picture(bits, flat_end=flat_end)
    stream = lossless(samples, bits, predictor)
    scan = jpeg.LosslessScan.of(stream)
    assert scan is not None
    needed = scan.bits_of(imagecodecs.jpeg8_decode(stream))
    assert needed is not None
    assert scan.bits - 8 < needed <= scan.bits


@pytest.mark.parametrize("flat_end", [False, True])
@pytest.mark.parametrize("predictor", [1, 4, 7])
def test_a_lossless_stream_cut_anywhere_lacks_samples(predictor: int, flat_end: bool) -> None:
    stream = lossless(picture(12, flat_end=flat_end), 12, predictor)
    start = stream.index(b"\xff\xda") + 10
    for cut in range(start, len(stream) - 2):
        if stream[cut - 1] == 0xFF:
            continue  # FF before the marker would be a fill byte: the same as one byte less
        shorter = stream[:cut] + END
        assert not jpeg._is_whole(shorter, imagecodecs.jpeg8_decode(shorter)), cut


def with_stream(source: Path, folder: Path, stream: bytes) -> Path:
    changed = dcmread(source)
    changed.PixelData = encapsulate([stream + b"\0" * (len(stream) % 2)])
    changed.save_as(folder / "changed.dcm")
    return folder / "changed.dcm"


def whole(folder: Path, name: str) -> Path:
    if name.startswith("jpeg-"):
        return STREAMS / f"{name}.dcm"
    series = Series(slices=1, rows=64, columns=64, transfer_syntax=name)
    return phantoms.write(folder / "whole", series)[0]


def stream_of(dataset: Dataset) -> bytes:
    return get_frame(dataset.PixelData, 0, number_of_frames=1).rstrip(b"\0")


@pytest.mark.parametrize("padding", [b"\xc0", b"\x0f", b"\xff", b"\xff\xff", b"\0", b"\0\xd9\0\0"])
@pytest.mark.parametrize(
    "name",
    ["jpeg-baseline", "jpeg-extended", "jpeg-lossless", "jpeg-lossless-sv1"]
    + [JPEGLSLossless, JPEG2000Lossless],
)
def test_bytes_behind_the_end_marker_mean_nothing(
    tmp_path: Path, name: str, padding: bytes
) -> None:
    path = whole(tmp_path, name)
    padded = with_stream(path, tmp_path, stream_of(dcmread(path)) + padding)
    assert np.array_equal(decode(read_header(padded)), decode(read_header(path)))


@pytest.mark.parametrize("name", ["jpeg-lossless-sv1", JPEGLSLossless])
def test_a_stream_that_lacks_its_end_marker_alone_is_whole(tmp_path: Path, name: str) -> None:
    path = whole(tmp_path, name)
    unmarked = with_stream(path, tmp_path, stream_of(dcmread(path)).removesuffix(END))
    assert np.array_equal(decode(read_header(unmarked)), decode(read_header(path)))


@pytest.mark.parametrize("zeros", [1, 2])
def test_zero_bytes_before_the_end_marker_of_jpeg_ls_are_no_data(
    tmp_path: Path, zeros: int
) -> None:
    path = whole(tmp_path, JPEGLSLossless)
    stream = stream_of(dcmread(path)).removesuffix(END) + b"\0" * zeros + END
    padded = with_stream(path, tmp_path, stream)
    assert np.array_equal(decode(read_header(padded)), decode(read_header(path)))


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_native_pixels_under_a_compressed_syntax_are_read_where_all_are_there(
    tmp_path: Path, syntax: str
) -> None:
    plain = phantoms.write(tmp_path / "plain", Series(slices=1))[0]
    claimed = tmp_path / "claimed.dcm"
    claimed.write_bytes(_claiming(plain.read_bytes(), syntax))
    assert np.array_equal(decode(read_header(claimed)), decode(read_header(plain)))
    assert np.array_equal(second_opinion.Slice.read(claimed).pixels, decode(read_header(plain)))
    claimed.write_bytes(claimed.read_bytes()[:-100])
    with pytest.raises(Unprocessable):
        decode(read_header(claimed))


COMPRESSED = ["jpeg-lossless", "jpeg-lossless-sv1", JPEGLSLossless, JPEG2000Lossless, RLELossless]


@pytest.mark.parametrize("name", COMPRESSED)
def test_lossless_code_streams_under_an_uncompressed_syntax_are_read_by_what_they_are(
    tmp_path: Path, name: str
) -> None:
    path = whole(tmp_path, name)
    claimed = tmp_path / "claimed.dcm"
    claimed.write_bytes(_claiming(path.read_bytes(), ExplicitVRLittleEndian))
    expected = decode(read_header(path))
    assert np.array_equal(decode(read_header(claimed)), expected)
    for file in (path, claimed):
        assert np.array_equal(second_opinion.Slice.read(file).pixels, expected)
    stream = stream_of(dcmread(path))
    broken = with_stream(path, tmp_path, stream[: len(stream) // 2])
    broken.write_bytes(_claiming(broken.read_bytes(), ExplicitVRLittleEndian))
    with pytest.raises(Unprocessable):
        decode(read_header(broken))


@pytest.mark.parametrize("name", ["jpeg-baseline", "jpeg-extended"])
def test_lossy_code_streams_under_an_uncompressed_syntax_are_held_for_the_true_reason(
    tmp_path: Path, name: str
) -> None:
    claimed = tmp_path / "claimed.dcm"
    claimed.write_bytes(_claiming(whole(tmp_path, name).read_bytes(), ExplicitVRLittleEndian))
    with pytest.raises(Unprocessable) as caught:
        decode(read_header(claimed))
    assert "came as Explicit VR Little Endian, but are compressed" in caught.value.sentence
    assert "send it again" not in caught.value.sentence


@pytest.mark.parametrize(
    "syntax", [*phantoms.NATIVE, JPEGLSLossless, JPEG2000Lossless, RLELossless]
)
def test_group_0002_in_the_data_set_of_a_file_means_nothing(tmp_path: Path, syntax: str) -> None:
    (path,) = phantoms.write(tmp_path / "plain", Series(slices=1, transfer_syntax=syntax))
    data = path.read_bytes()
    start = 144 + int.from_bytes(data[140:144], "little")
    wrong = RLELossless if syntax == ExplicitVRLittleEndian else ExplicitVRLittleEndian
    uid = str(wrong).encode().ljust(20, b"\0")
    order, vr = ">" if syntax == ExplicitVRBigEndian else "<", b"UI"
    head = struct.pack(f"{order}HH2sH", 2, 0x10, vr, len(uid))
    if syntax == ImplicitVRLittleEndian:
        head = struct.pack("<HHI", 2, 0x10, len(uid))
    inner = tmp_path / "inner.dcm"
    inner.write_bytes(data[:start] + head + uid + data[start:])
    header, plain = read_header(inner), read_header(path)
    assert (header.fault, header.transfer_syntax) == ("", syntax)
    assert header.elements.keys() == plain.elements.keys()
    assert np.array_equal(decode(header), decode(plain))
    if syntax != ExplicitVRBigEndian:
        assert np.array_equal(second_opinion.Slice.read(inner).pixels, decode(plain))


def _claiming(data: bytes, syntax: str) -> bytes:
    """A Part 10 file with another Transfer Syntax UID."""
    tag = b"\x02\0\x10\0UI"
    at = data.index(tag) + len(tag)
    old = int.from_bytes(data[at : at + 2], "little")
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    group = data.index(b"\x02\0\0\0UL\x04\0") + 8
    length = int.from_bytes(data[group : group + 4], "little") + len(uid) - old
    changed = data[:at] + len(uid).to_bytes(2, "little") + uid + data[at + 2 + old :]
    return changed[:group] + length.to_bytes(4, "little") + changed[group + 4 :]


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        ("1.2.840.10008.1.2.4.110", "JPEG XL Lossless"),
        ("1.2.840.10008.1.2.4.111", "JPEG XL JPEG Recompression"),
        ("1.2.840.10008.1.2.4.112", "JPEG XL"),
        ("1.2.840.10008.1.2.8.1", "Deflated Image Frame Compression"),
    ],
)
def test_a_syntax_without_a_decoder_is_refused_by_its_name(
    tmp_path: Path, syntax: str, name: str
) -> None:
    plain = phantoms.write(tmp_path / "plain", Series(slices=1))[0]
    claimed = tmp_path / "claimed.dcm"
    claimed.write_bytes(_claiming(plain.read_bytes(), syntax))
    with pytest.raises(Unprocessable) as caught:
        decode(read_header(claimed))
    assert caught.value.reason == Reason.NO_DECODER
    assert f"as {name} [{syntax}]" in caught.value.sentence


def test_the_sentence_says_what_the_decoder_said(tmp_path: Path) -> None:
    path = whole(tmp_path, "jpeg-lossless-sv1")
    stream = stream_of(dcmread(path))
    with pytest.raises(Unprocessable) as caught:
        decode(read_header(with_stream(path, tmp_path, stream[: len(stream) // 2] + END)))
    assert "imagecodecs: the data end before the last sample" in caught.value.sentence


def test_quoted_words_are_short_and_printable() -> None:
    assert quoted("a\0b\n  c\x1b[31m") == "a b c [31m"
    assert len(quoted("x" * 500)) == 64
