"""Where a finding lies: the slice in which it is largest, its boxes and its outline."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw
from scipy import ndimage

from inference.model import Finding
from inference.results.findings import NumberedFinding, numbered
from tests.chest_findings import NODULE


def finding(mask: np.ndarray, first: tuple[int, int, int] = (4, 10, 20)) -> NumberedFinding:
    return numbered([Finding(0.5, first, mask, 2.0, 1.0, 3.0)], NODULE)[0]


@pytest.mark.parametrize(
    ("areas", "middle"), [([1, 3, 2], 5), ([2, 2, 2], 5), ([2, 2], 4), ([3, 1, 3, 3], 6), ([1], 4)]
)
def test_the_middle_is_the_largest_slice_nearest_to_the_middle(
    areas: list[int], middle: int
) -> None:
    mask = np.array([[[column < area for column in range(4)]] for area in areas])
    assert finding(mask).middle == middle


def test_empty_slices_of_a_block_are_none_of_its_slices() -> None:
    mask = np.zeros((5, 2, 3), bool)
    mask[1, 1, 1] = mask[3, 0, 0] = True
    made = finding(mask)
    assert (made.slices, made.middle) == ([5, 7], 5)
    assert (made.box(5).rows, made.box(5).columns) == ((11, 12), (21, 22))
    assert made.box(7).outline == [(20, 10), (21, 10), (21, 11), (20, 11), (20, 10)]


@pytest.mark.parametrize(
    ("rows", "outline"),
    [
        (["#"], [(0, 0), (1, 0), (1, 1), (0, 1)]),
        (["##", "##"], [(0, 0), (2, 0), (2, 2), (0, 2)]),
        (["#.", "##"], [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (0, 2)]),
        (["###", "#.#", "###"], [(0, 0), (3, 0), (3, 3), (0, 3)]),
        (["##.", "##.", "..#"], [(0, 0), (2, 0), (2, 2), (0, 2)]),
    ],
    ids=["a pixel", "a square", "a corner", "a hole", "touching at a corner"],
)
def test_an_outline_runs_along_the_edges_of_the_largest_part(
    rows: list[str], outline: list[tuple[int, int]]
) -> None:
    mask = np.array([[[sign == "#" for sign in row] for row in rows]])
    wanted = [(x + 20.0, y + 10.0) for x, y in (*outline, outline[0])]
    assert finding(mask).outline() == wanted


@given(arrays(bool, (1, 6, 7)).filter(np.any))
def test_an_outline_filled_again_is_the_largest_part_without_its_holes(mask: np.ndarray) -> None:
    labels, count = ndimage.label(mask[0])
    around = np.ones((3, 3))  # what lies outside may touch itself at corners
    numbers = range(1, count + 1)
    parts = [ndimage.binary_fill_holes(labels == number, around) for number in numbers]
    size = max(part.sum() for part in parts)
    corners = [(8 * (x - 20), 8 * (y - 10)) for x, y in finding(mask).outline()]
    sheet = Image.new("1", (56, 48))
    ImageDraw.Draw(sheet).polygon([(x - 0.5, y - 0.5) for x, y in corners], fill=1)
    filled = np.asarray(sheet)[4::8, 4::8]
    assert filled.sum() == size
    assert any(np.array_equal(filled, part) for part in parts)
