"""Frames of files as they are encoded, whatever form their pixel data have."""

import io
import random
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
)

from node.dicom.elements import Unreadable
from node.dicom.frames import encoded_frames
from tests import series

CONTENTS = [b"first.", b"the second", b"3rd one.", b"the 4th"]


def made(folder: Path, syntax: UID, pixels: bytes, **attributes: int) -> Path:
    """A file of four frames with these pixel data."""
    dataset = Dataset()
    dataset.file_meta = dcmread(series.thick(1)[0]).file_meta
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.update({"SOPInstanceUID": "1.2", "NumberOfFrames": len(CONTENTS), "Rows": 2})
    dataset.update({"Columns": 3, "SamplesPerPixel": 1, "BitsAllocated": 8, **attributes})
    dataset.PixelData = pixels
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = syntax.is_encapsulated
    path = folder / "made.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("has_offsets", [True, False])
@pytest.mark.parametrize("fragments", [1, 2])
def test_frames_in_fragments(tmp_path: Path, has_offsets: bool, fragments: int) -> None:
    pixels = encapsulate(CONTENTS, fragments_per_frame=fragments, has_bot=has_offsets)
    path = made(tmp_path, JPEGLSLossless, pixels)
    frames = encoded_frames(path, JPEGLSLossless)
    assert frames is not None
    assert (frames.count, frames.transfer_syntax) == (4, JPEGLSLossless)
    if fragments == 2 and not has_offsets:  # nothing says which fragments are of one frame
        with pytest.raises(Unreadable):
            frames.frame(2)
        return
    assert [frames.frame(number).rstrip(b"\0") for number in (1, 2, 3, 4)] == CONTENTS


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_frames_of_one_length(tmp_path: Path, syntax: UID) -> None:
    pixels = bytes(range(24))
    frames = encoded_frames(made(tmp_path, syntax, pixels), syntax)
    assert frames is not None
    assert frames.transfer_syntax == ExplicitVRLittleEndian
    assert b"".join(frames.frame(number) for number in (1, 2, 3, 4)) == pixels


def test_pixel_data_that_end_too_early_are_no_frame(tmp_path: Path) -> None:
    frames = encoded_frames(
        made(tmp_path, ExplicitVRLittleEndian, bytes(20)), ExplicitVRLittleEndian
    )
    assert frames is not None
    frames.frame(3)
    with pytest.raises(Unreadable):
        frames.frame(4)


def test_what_has_to_be_decoded_has_no_frames_to_take(tmp_path: Path) -> None:
    path = made(tmp_path, ExplicitVRLittleEndian, bytes(4), BitsAllocated=1)
    assert encoded_frames(path, ExplicitVRLittleEndian) is None  # 6 bits do not fill a byte
    for syntax in (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian):
        assert encoded_frames(path, syntax) is None


def test_a_damaged_file_is_unreadable_and_nothing_else(tmp_path: Path) -> None:
    path = made(tmp_path, JPEGLSLossless, encapsulate(CONTENTS, fragments_per_frame=2))
    whole, chance = path.read_bytes(), random.Random(18)
    begin = len(whole) - 250
    for _ in range(400):
        damaged = io.BytesIO(whole[: chance.randrange(begin, len(whole) + 1)])
        for _ in range(chance.randrange(4)):
            damaged.seek(chance.randrange(begin, len(whole)))
            damaged.write(chance.randbytes(chance.randrange(1, 5)))
        path.write_bytes(damaged.getvalue())
        try:
            frames = encoded_frames(path, JPEGLSLossless)
            if frames is not None:
                frames.frame(chance.randrange(1, 5))
        except Unreadable:
            pass
