"""Shear, spacing and holes, decided from positions alone, beside the cases of `cases_more.py`."""

import itertools
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from inference.errors import Reason, Unprocessable
from inference.geometry import Layout, arrange, measure, verdict
from inference.request import Output
from inference.stacks import read_headers, stacks_of
from tests import phantoms
from tests.conftest import EXAMPLES
from tests.phantoms import Series
from tests.unit.inference.case import HOLE, target
from tests.unit.inference.made import derive, derive_series, only_stack, refused, request


def layout_of(tmp_path: Path, series: Series) -> Layout:
    return arrange(only_stack(phantoms.write(tmp_path, series)))


@pytest.mark.parametrize("degrees", [10.0, 18.5, -18.5, 30.0])
def test_a_sheared_stack_is_derived_on_the_line_of_its_positions(
    tmp_path: Path, degrees: float
) -> None:
    layout = layout_of(tmp_path / "layout", Series(tilt_degrees=degrees))
    assert layout.shear_degrees == pytest.approx(abs(degrees), abs=0.01)
    assert list(layout.geometry.gaps_mm) == pytest.approx([5.0] * 5, abs=1e-4)
    shift = layout.geometry.shift_pixels(0, 1)
    assert shift[0] == pytest.approx(math.tan(math.radians(degrees)) * 5.0 / 0.8, abs=1e-4)
    assert shift[1] == pytest.approx(0.0, abs=1e-6)
    files = derive_series(tmp_path, Series(tilt_degrees=degrees), 4)
    headers = arrange(read_headers(files)).headers
    positions = np.array([header.numbers("ImagePositionPatient") for header in headers])
    assert np.abs(np.diff(positions, n=2, axis=0)).max() < 1e-6
    assert headers[0].number("SpacingBetweenSlices") == pytest.approx(1.25, abs=1e-6)


def test_a_stack_is_measured_for_the_routes(tmp_path: Path) -> None:
    (stack,) = stacks_of(read_headers(phantoms.write(tmp_path / "a", Series(tilt_degrees=-15.0))))
    layout = measure(stack)
    assert layout is not None
    assert layout.gap_mm == pytest.approx(5.0, abs=1e-4)
    assert layout.shear_degrees == pytest.approx(15.0, abs=0.01)
    (single,) = stacks_of(read_headers(phantoms.write(tmp_path / "b", Series(slices=1))))
    assert measure(single) is None


def test_a_target_spacing_gives_each_gap_its_own_factor(tmp_path: Path) -> None:
    gaps = [2.5] * 4 + [5.0] * 4
    files = phantoms.write(tmp_path / "received", Series(gaps_mm=gaps, thickness_mm=2.5))
    derived = derive(request(files, tmp_path / "derived", edit=target(1.25)))
    assert len(derived) == 9 + 4 * 1 + 4 * 3
    assert "to 1.25 mm" in read_headers(derived)[0].text("SeriesDescription")
    for header in read_headers(derived):
        assert header.number("SpacingBetweenSlices") == pytest.approx(1.25)


def test_the_spacings_of_a_ge_head_are_no_holes(tmp_path: Path) -> None:
    def edit(made: Dataset, index: int) -> None:
        made.SliceThickness = "4" if index < 5 else "7"

    gaps = [4.0] * 4 + [1.08] + [7.0] * 4
    layout = layout_of(tmp_path, Series(gaps_mm=gaps, edit=edit))
    assert layout.missing == {}


@pytest.mark.parametrize(
    ("missing", "numbers", "thickness", "expected"),
    [
        ([4], True, 2.0, {3: 1}),
        ([4, 5], True, 2.0, {3: 2}),
        ([3, 5], True, 2.0, {2: 1, 3: 1}),  # side by side: the jump of the numbers tells
        ([3, 5], False, 2.0, {2: 1, 3: 1}),
        ([8], True, 2.0, {7: 1}),
        ([4], True, None, {3: 1}),
    ],
)
def test_holes_are_found(
    tmp_path: Path,
    missing: list[int],
    numbers: bool,
    thickness: float | None,
    expected: dict[int, int],
) -> None:
    def edit(made: Dataset, _: int) -> None:
        if not numbers:
            del made.InstanceNumber

    series = Series(slices=10, spacing_mm=2.0, missing=missing, thickness_mm=thickness, edit=edit)
    assert layout_of(tmp_path, series).missing == expected


@pytest.mark.parametrize(
    "numbers",
    [
        [7, 3, 11, 1, 9, 5, 12, 2, 10, 4, 8, 6],  # of some other order
        [*range(1, 10), 13, 14, 15],  # one usual gap leaps further than the holes do
        [1, 8, *range(9, 19)],
    ],
)
def test_instance_numbers_that_do_not_follow_the_places_hide_no_hole(
    tmp_path: Path, numbers: list[int]
) -> None:
    def edit(made: Dataset, index: int) -> None:
        made.InstanceNumber = numbers[index]

    series = Series(slices=12, spacing_mm=5.0, missing=[4, 6], edit=edit)
    assert layout_of(tmp_path, series).missing == {3: 1, 4: 1}


def test_the_record_of_a_held_job_says_where_slices_are_missing(tmp_path: Path) -> None:
    found = refused(tmp_path, HOLE)
    record = json.loads(json.dumps(found.record))  # a page draws it
    assert [gap["gap_mm"] for gap in record["gaps"]] == [2.0, 2.0, 4.0, 2.0, 2.0, 2.0]
    assert record["missing"] == [{"gap": 2, "slices": 1}]
    assert (record["received"], record["generated"], record["shear_degrees"]) == (7, 0, 0.0)


def test_odd_decimal_strings_are_numbers(tmp_path: Path) -> None:
    def edit(made: Dataset, index: int) -> None:
        text = f"0000.0E+00\\-12.50 \\ +{index}.50000E+01".encode()
        phantoms.put(made, "ImagePositionPatient", text)

    assert list(layout_of(tmp_path, Series(edit=edit)).geometry.gaps_mm) == [10.0] * 5


@settings(
    max_examples=max(1, EXAMPLES // 4),  # each writes files
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    gaps=st.lists(st.floats(0.5, 12.0), min_size=1, max_size=12),
    seed=st.integers(0, 99),
    tilt=st.floats(-25.0, 25.0),
)
def test_every_stack_has_an_order_or_a_reason(
    tmp_path: Path, gaps: list[float], seed: int, tilt: float
) -> None:
    folder = tmp_path / f"{seed}-{len(gaps)}-{random.random()}"
    series = Series(gaps_mm=gaps, tilt_degrees=tilt, rows=2, columns=2)
    files = phantoms.write(folder, series)
    random.Random(seed).shuffle(files)
    (stack,) = stacks_of(read_headers(files))
    try:
        layout = arrange(stack.headers)
    except Unprocessable as found:
        assert found.reason == Reason.MIXED_ACQUISITIONS
        return
    places = layout.geometry.distances_mm
    assert all(a < b for a, b in itertools.pairwise(places))
    assert list(layout.geometry.gaps_mm) == pytest.approx(gaps, abs=1e-4)
    assert (verdict(stack, Output()) is not None) == bool(layout.missing)
