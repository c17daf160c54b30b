"""The mark in the overlay plane of a generated slice: its words, its place, and who reads it."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset

from inference.request import Output
from inference.results.derived import drawn, words_of
from tests import phantoms, validators
from tests.phantoms import Series
from tests.unit.inference.made import derive, read, request

SIZES = [(512, 512), (128, 128), (768, 512), (64, 64)]
Grey = NDArray[np.uint8]


def derived(folder: Path, size: tuple[int, int], **output: object) -> list[Path]:
    series = Series(slices=2, rows=size[0], columns=size[1])
    files = phantoms.write(folder / "received", series)
    asked = request(files, folder / "derived", output=Output(**output))  # type: ignore[arg-type]
    return derive(asked)


def rendered(path: Path, folder: Path) -> Grey:
    """What DCMTK makes of an instance in its window: the pixels, with the overlays over them."""
    return _written(["dcm2pnm", "+Wi", "1", str(path), "rendered.pgm"], folder, "rendered.pgm")


def seen(path: Path, folder: Path) -> Grey:
    """The overlay that DCMTK's presentation of an instance shows by default."""
    return _written(["dcmp2pgm", "-v", str(path), "image.pgm"], folder, "ovl_0101.pgm")


def _written(command: list[str], folder: Path, name: str) -> Grey:
    subprocess.run(command, check=True, capture_output=True, timeout=60, cwd=folder)
    with Image.open(folder / name) as picture:
        return np.asarray(picture, np.uint8)


def overlay_of(made: Dataset) -> NDArray[np.uint8] | None:
    return made.overlay_array(0x6000) if (0x6000, 0x3000) in made else None


@pytest.mark.parametrize("size", SIZES)
def test_the_mark_lies_in_a_corner_and_its_letters_can_be_read(size: tuple[int, int]) -> None:
    plane = drawn(words_of(23.4), *size)
    assert plane is not None
    rows, columns = (np.flatnonzero(plane.any(axis=axis)) for axis in (1, 0))
    assert rows[-1] < size[0] * (0.1 if size[0] >= 512 else 0.55)
    assert columns[-1] < size[1] * (0.45 if size[1] >= 128 else 0.9)
    scale = max(1, round(min(size) / 256))
    assert plane[: 11 * scale].any()  # a line of letters 11 pixels high, or as many times that
    blocks = plane[: size[0] // scale * scale, : size[1] // scale * scale]
    blocks = blocks.reshape(size[0] // scale, scale, size[1] // scale, scale)
    assert (blocks.all(axis=(1, 3)) == blocks.any(axis=(1, 3))).all()


def test_words_with_another_error_are_another_picture() -> None:
    pictures = {str(np.flatnonzero(drawn(words_of(hu), 256, 256))) for hu in (None, 5, 8, 60, 120)}
    assert len(pictures) == 5


def test_a_slice_without_room_says_the_shortest_word_or_nothing() -> None:
    shortest = drawn(words_of(9.0), 32, 40)
    assert shortest is not None
    assert shortest.any(axis=0).nonzero()[0].max() < 14
    assert drawn(words_of(9.0), 8, 8) is None


def test_generated_slices_are_marked_and_copies_are_not(tmp_path: Path) -> None:
    made = read(derived(tmp_path, (128, 128)))
    planes = [overlay_of(slice_) for slice_ in made]
    assert [plane is not None for plane in planes] == [False, True, False]
    assert np.array_equal(planes[1], drawn("AI, not acquired", 128, 128))
    assert made[1][0x6000, 0x0022].value == "AI, not acquired"
    assert made[1].SeriesDescription.startswith("AI-INTERP x2 1 of 3 NOT ACQUIRED")


def test_a_route_can_do_without_the_mark(tmp_path: Path) -> None:
    made = read(derived(tmp_path, (128, 128), overlay=False))
    assert [overlay_of(slice_) for slice_ in made] == [None, None, None]


@pytest.mark.parametrize("size", SIZES)
def test_dcmtk_draws_the_mark_over_the_pixels_and_leaves_the_rest(
    size: tuple[int, int], tmp_path: Path
) -> None:
    path = derived(tmp_path / "marked", size)[1]
    assert validators.dciodvfy(path) == []
    shown = rendered(path, tmp_path)
    without = rendered(derived(tmp_path / "plain", size, overlay=False)[1], tmp_path)
    plane = drawn("AI, not acquired", *size)
    assert plane is not None
    assert np.array_equal(shown != without, plane & (without != 255))
    assert (shown[plane] == 255).all()
    assert np.array_equal(seen(path, tmp_path) > 0, plane)
