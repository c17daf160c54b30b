"""How much of the body between two slices was seen, and what a route makes of too little."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from inference.dataset import Stack
from inference.errors import Reason, Unprocessable
from inference.geometry import UNKNOWN_THICKNESS, Layout, Sampling, measure
from inference.model import Step
from inference.request import Derived, Output, Verdict
from inference.stacks import read_headers, stacks_of
from tests import phantoms
from tests.phantoms import Edit, Series
from tests.unit.inference.made import request, run

THIN = Series(slices=4, spacing_mm=10.0, thickness_mm=2.5)  # three quarters were never seen


def layout_of(folder: Path, series: Series) -> Layout:
    stack: Stack = stacks_of(read_headers(phantoms.write(folder, series)))[0]
    layout = measure(stack)
    assert layout is not None
    return layout


def sampling(layout: Layout, gaps: Sequence[int] | None = None) -> Sampling:
    """The sampling of a job that fills these gaps, or all."""
    chosen = range(len(layout.headers) - 1) if gaps is None else gaps
    return Sampling.of([Step((gap, gap + 1), gap, (0.5,)) for gap in chosen], layout)


def thicknesses(*values: float | None) -> Edit:
    def edit(made: Dataset, index: int) -> None:
        made.SliceThickness = values[index]

    return edit


@pytest.mark.parametrize(
    ("series", "undersampled"),
    [
        (Series(slices=3, spacing_mm=5.0, thickness_mm=5.0), 0),
        (Series(slices=3, spacing_mm=5.0, thickness_mm=2.5), 0),  # twice is not over twice
        (Series(slices=3, spacing_mm=5.004, thickness_mm=2.5), 0),  # a decimal string of 5
        (Series(slices=3, spacing_mm=5.1, thickness_mm=2.5), 2),
        (Series(slices=3, spacing_mm=10.0, thickness_mm=2.5), 2),
        (Series(slices=3, spacing_mm=2.5, thickness_mm=5.0), 0),  # slices that overlap
        (Series(gaps_mm=[2.5, 2.5, 7.0, 7.0], thickness_mm=2.5), 2),  # each gap by itself
        (Series(slices=3, edit=thicknesses(5.0, 1.0, 1.0)), 1),  # 3 mm on one side, 1 on the other
        (Series(slices=3, edit=thicknesses(1.0, None, 0.0)), 2),  # the one that says it, the usual
        (Series(slices=3, thickness_mm=None), 0),
    ],
)
def test_a_gap_over_twice_as_wide_as_its_slices_are_thick_is_undersampled(
    tmp_path: Path, series: Series, undersampled: int
) -> None:
    assert len(sampling(layout_of(tmp_path, series)).undersampled) == undersampled


def test_under_a_tilted_gantry_the_gap_counts_across_the_slices(tmp_path: Path) -> None:
    """The table moves 5.2 mm; across slices tilted by 25 degrees that is 4.7 mm."""
    tilted = layout_of(
        tmp_path / "tilted",
        Series(slices=3, spacing_mm=4.713, thickness_mm=2.5, tilt_degrees=25.0),
    )
    step = tilted.geometry.positions[1] - tilted.geometry.positions[0]
    assert float((step @ step) ** 0.5) > 5.19
    assert sampling(tilted).undersampled == ()


def test_only_gaps_that_are_filled_count(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, Series(gaps_mm=[2.5, 2.5, 7.0, 2.5], thickness_mm=2.5))
    assert len(sampling(layout).undersampled) == 1
    assert sampling(layout, [0, 1, 3]).undersampled == ()
    assert sampling(layout, [0, 1, 3]).facts == {}


def test_a_series_that_does_not_say_its_thickness_is_processed_with_a_note(tmp_path: Path) -> None:
    unknown = sampling(layout_of(tmp_path, Series(slices=3, thickness_mm=None)))
    assert unknown.notes == (UNKNOWN_THICKNESS,)
    unknown.check(Output(undersampled="hold"))


def test_a_route_may_hold_what_is_undersampled(tmp_path: Path) -> None:
    coarse = sampling(layout_of(tmp_path, THIN))
    coarse.check(Output())
    with pytest.raises(Unprocessable) as held:
        coarse.check(Output(undersampled="hold"))
    assert held.value.reason is Reason.UNDERSAMPLED
    assert held.value.is_held
    assert "gaps of 10 mm between slices 2.5 mm thick" in held.value.sentence
    assert "up to 75%" in held.value.sentence
    assert 'undersampled = "process"' in held.value.sentence


def test_an_undersampled_series_says_so_wherever_it_goes(tmp_path: Path) -> None:
    files = phantoms.write(tmp_path / "received", THIN)
    outcome = run(request(files, tmp_path / "derived", factor=4))
    assert isinstance(outcome, Derived)
    record = outcome.record
    assert record["undersampled"] == {
        "gaps": 3,
        "filled": 3,
        "gap_mm": 10.0,
        "thickness_mm": 2.5,
        "unseen": 0.75,
    }
    assert "undersampled: in 3 of 3 filled gaps over half" in str(record["notes"])
    counts = record["confidence_counts"]
    assert counts == {"sure": 0, "fair": 0, "unsure": 0, "large_anatomy_only": 9}
    images = [file for file in outcome.files if file.kind == "image"]
    headers = [dcmread(tmp_path / "derived" / file.name) for file in images]
    assert {"UNDERSAMPLED" in header.SeriesDescription for header in headers} == {True}
    assert all(len(header.SeriesDescription) <= 64 for header in headers)
    told = ["for large anatomy only" in header.DerivationDescription for header in headers]
    assert told == [file.generated for file in images]


def test_of_one_wide_gap_the_series_and_the_slices_of_that_gap_say_it(tmp_path: Path) -> None:
    uneven = Series(gaps_mm=[5.0, 11.0, 11.0, 5.0], thickness_mm=5.0)
    files = phantoms.write(tmp_path / "received", uneven)
    outcome = run(request(files, tmp_path / "derived"))
    assert isinstance(outcome, Derived)
    images = [file for file in outcome.files if file.kind == "image"]
    headers = [dcmread(tmp_path / "derived" / file.name) for file in images]
    assert "UNDERSAMPLED" in headers[0].SeriesDescription
    coarse = [h.InstanceNumber for h in headers if "large anatomy" in h.DerivationDescription]
    assert coarse == [4, 6]


def test_a_held_series_keeps_why_in_its_record(tmp_path: Path) -> None:
    files = phantoms.write(tmp_path / "received", THIN)
    outcome = run(request(files, tmp_path / "derived", output=Output(undersampled="hold")))
    assert isinstance(outcome, Verdict)
    assert (outcome.reason, outcome.held) == (Reason.UNDERSAMPLED, True)
    assert outcome.record["undersampled"]
    assert not list((tmp_path / "derived").glob("*.dcm"))
