"""The map of findings: boxes lie around what they are about, the head is up, sides are named."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset

from inference.dataset import read_headers
from inference.geometry import Layout, arrange
from inference.model import Finding
from inference.results import anatomy_map
from inference.results.anatomy_map import OVERVIEW_SIDE, VIEW_SIDE, Overview
from inference.results.captures import MARGIN, MARK
from inference.results.findings import numbered
from tests import phantoms
from tests.chest_findings import NODULE
from tests.phantoms import Edit, Series

SERIES = Series(slices=20, spacing_mm=4.0, thickness_mm=4.0, rows=64, columns=64, pixel_mm=(2, 2))
FIRST, SIZE = (15, 20, 10), 6  # of a cube near the upper end: slice, row, column


def arranged(folder: Path, edit: Edit | None = None) -> Layout:
    paths = phantoms.write(folder, Series(**{**vars(SERIES), "edit": edit}))
    return arrange(read_headers(paths))


def upside_down(made: Dataset, index: int) -> None:
    """The same patient from the feet: rows run from left to right, slices from head to feet."""
    made.ImageOrientationPatient = ["-1", "0", "0", "0", "1", "0"]
    made.ImagePositionPatient = ["63", "-63", f"{-4.0 * index:g}"]


def page_of(layout: Layout) -> NDArray[np.uint8]:
    """The page of a bright cube in air."""
    mask = np.ones((3, SIZE, SIZE), bool)
    record = {"where": "upper third"}
    finding = Finding(0.8, FIRST, mask, 12.0, 12.0, 100.0, "right", record)
    overview = Overview(numbered([finding], NODULE))
    for place in range(len(layout.geometry)):
        plane = np.full((64, 64), -1000.0, np.float32)
        if 0 <= place - FIRST[0] < len(mask):
            plane[FIRST[1] : FIRST[1] + SIZE, FIRST[2] : FIRST[2] + SIZE] = 200.0
        overview.add(plane, None)
    return anatomy_map.page(overview, layout, "Map", "line").pixels


def box_in(page: NDArray[np.uint8], left: int, width: int) -> tuple[slice, slice]:
    """The rows and columns within the box in a part of the page below its head."""
    part = page[anatomy_map.HEAD :, left : left + width]
    rows, columns = np.nonzero((part == MARK).all(axis=-1))
    return (
        slice(rows.min() + anatomy_map.HEAD + 2, rows.max() + anatomy_map.HEAD - 1),
        slice(columns.min() + left + 2, columns.max() + left - 1),
    )


@pytest.mark.parametrize("edit", [None, upside_down], ids=["from the head", "from the feet"])
def test_the_boxes_of_both_planes_are_full_of_the_finding_and_the_rest_is_air(
    tmp_path: Path, edit: Edit | None
) -> None:
    page = page_of(arranged(tmp_path, edit))
    left = MARGIN + OVERVIEW_SIDE + 2 * anatomy_map.GAP
    for start in (left, left + VIEW_SIDE + anatomy_map.GAP // 2):
        rows, columns = box_in(page, start, VIEW_SIDE)
        inside = page[rows, columns, 0]
        assert np.median(inside) > 200
        assert page[anatomy_map.HEAD + VIEW_SIDE - 10, start + 10, 0] < 100


@pytest.mark.parametrize(
    ("edit", "sides"), [(None, "RL"), (upside_down, "LR")], ids=["from the head", "from the feet"]
)
def test_the_head_is_up_and_the_sides_of_the_patient_are_named(
    tmp_path: Path, edit: Edit | None, sides: str
) -> None:
    layout = arranged(tmp_path, edit)
    page = page_of(layout)
    rows, _ = box_in(page, MARGIN, OVERVIEW_SIDE - 40)
    high = round(4.0 * 19 / (64 * 2) * OVERVIEW_SIDE)  # of the overview
    middle = (rows.start + rows.stop) / 2.0 - anatomy_map.HEAD
    is_near_head = edit is None  # slices are counted along the normal
    assert bool(middle < high / 2.0) is is_near_head
    assert anatomy_map.sides_of(layout.geometry) == sides
