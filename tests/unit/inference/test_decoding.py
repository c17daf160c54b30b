"""Whether a file holds all its pixels: every kind of code stream, whole and cut."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from inference.dataset import MOST_INFLATED, read_header
from inference.errors import Reason, Unprocessable
from inference.pixels import decode, decoded
from tests import phantoms
from tests.phantoms import Series
from tests.unit.inference.made import request, unchecked

STREAMS = Path("tests/data/code-streams")
# Made files of the transfer syntaxes that pydicom does not encode, and the same pixels native.
NAMED = ("jpeg-baseline", "jpeg-extended", "jpeg-lossless", "jpeg-lossless-sv1", "htj2k")
END = b"\xff\xd9"


def stream_of(made: Dataset) -> bytes:
    return get_frame(made.PixelData, 0, number_of_frames=1).rstrip(b"\0")


def with_stream(source: Path, folder: Path, stream: bytes) -> Path:
    made = dcmread(source)
    made.PixelData = encapsulate([stream + b"\0" * (len(stream) % 2)])
    made.save_as(folder / "changed.dcm")
    return folder / "changed.dcm"


def reason(path: Path) -> Reason:
    with pytest.raises(Unprocessable) as caught:
        decode(read_header(path))
    return caught.value.reason


def encoded(folder: Path, name: str) -> Path:
    """A slice of 64 x 64 in a transfer syntax, by its name or its UID."""
    if name in NAMED:
        return STREAMS / f"{name}.dcm"
    series = Series(slices=1, rows=64, columns=64, transfer_syntax=name)
    return phantoms.write(folder / "whole", series)[0]


ALL = (*NAMED, JPEGLSLossless, JPEG2000Lossless)


@pytest.mark.parametrize("name", NAMED)
def test_what_only_other_programs_encode_is_decoded(name: str) -> None:
    native = decode(read_header(STREAMS / "native.dcm"))
    found = decode(read_header(STREAMS / f"{name}.dcm"))
    lossy = 1.0 if name in ("jpeg-baseline", "jpeg-extended") else 0.0
    expected = native >> 4 if name == "jpeg-baseline" else native
    assert np.abs(found - expected).mean() <= lossy


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", ALL)
def test_a_code_stream_that_lacks_its_end_is_damaged(
    tmp_path: Path, name: str, part: float
) -> None:
    path = encoded(tmp_path, name)
    stream = stream_of(dcmread(path))
    cut = stream[: int(len(stream) * part)]
    assert reason(with_stream(path, tmp_path, cut)) == Reason.PIXEL_DATA_ERROR


@pytest.mark.parametrize("part", [0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", ALL)
def test_a_code_stream_that_lacks_its_middle_and_has_its_end_is_damaged(
    tmp_path: Path, name: str, part: float
) -> None:
    path = encoded(tmp_path, name)
    stream = stream_of(dcmread(path))
    data = entropy_coded(stream)
    cut = stream[: data + int((len(stream) - 2 - data) * part)].removesuffix(b"\xff")
    assert reason(with_stream(path, tmp_path, cut + END)) == Reason.PIXEL_DATA_ERROR


def entropy_coded(stream: bytes) -> int:
    """Where the data begins that a cut can shorten: after the header of the scan or the tile."""
    start_of_scan = stream.rfind(b"\xff\xda")
    start_of_data = stream.rfind(b"\xff\x93")
    return max(start_of_scan + 14, start_of_data + 2)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_an_rle_frame_that_was_cut_is_damaged(tmp_path: Path, part: float) -> None:
    path = encoded(tmp_path, RLELossless)
    made = dcmread(path)
    frame = get_frame(made.PixelData, 0, number_of_frames=1)
    cut = frame[: int(len(frame) * part)]
    assert reason(with_stream(path, tmp_path, cut)) == Reason.PIXEL_DATA_ERROR


@pytest.mark.filterwarnings("ignore:End of file")
@pytest.mark.parametrize("part", [0.5, 0.9, 0.99])
def test_a_deflated_data_set_that_was_cut_is_damaged(tmp_path: Path, part: float) -> None:
    path = encoded(tmp_path, DeflatedExplicitVRLittleEndian)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    outcome = unchecked(request([path, *others(tmp_path)], tmp_path / "derived"))
    assert getattr(outcome, "reason", None) == Reason.PIXEL_DATA_ERROR


def others(folder: Path) -> list[Path]:
    """The other slices of the same made series, whole."""
    series = Series(slices=4, rows=64, columns=64, transfer_syntax=DeflatedExplicitVRLittleEndian)
    return phantoms.write(folder / "others", series)[1:]


def bomb(folder: Path, keyword: str, megabytes: int) -> Path:
    """A deflated slice with a value of so many megabytes of nothing: some kilobytes on disk."""

    def edit(made: Dataset, _: int) -> None:
        made.add_new(keyword, "OB", b"\0" * (megabytes << 20))

    series = Series(slices=1, transfer_syntax=DeflatedExplicitVRLittleEndian, edit=edit)
    return phantoms.write(folder, series)[0]


def test_a_deflated_header_is_inflated_only_so_far_as_headers_go(tmp_path: Path) -> None:
    path = bomb(tmp_path, "ICCProfile", 100)
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    try:
        header = read_header(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * MOST_INFLATED
    assert "RescaleSlope" in header  # it comes before the value that fills everything
    assert reason(path) == Reason.PIXEL_DATA_ERROR


def test_a_deflated_slice_is_inflated_to_no_more_than_its_pixels(tmp_path: Path) -> None:
    header = read_header(bomb(tmp_path / "bomb", "DataSetTrailingPadding", 100))
    plain = phantoms.write(tmp_path / "plain", Series(slices=1))[0]
    tracemalloc.start()
    try:
        found = decoded(header)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * MOST_INFLATED
    assert (found == decoded(read_header(plain))).all()
