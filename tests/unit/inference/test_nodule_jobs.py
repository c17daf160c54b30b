"""Jobs of the model of nodules: a made chest with two of them, and what is no chest."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.errors import Reason
from inference.registry import spec_of
from inference.request import Derived, Output, Parameters, Verdict
from node.finding_opinion import check
from tests import chest
from tests.phantoms import Edit, Series, dataset, raw_pixels, save
from tests.unit.inference.made import request, unchecked
from tests.validators import dciodvfy

LARGER = 1.25  # than the made chest, whose lungs are those of a child
SERIES = Series(
    slices=chest.SLICES,
    spacing_mm=chest.GAP * LARGER,
    thickness_mm=chest.GAP * LARGER,
    rows=chest.SIDE,
    columns=chest.SIDE,
    pixel_mm=(chest.PIXEL * LARGER, chest.PIXEL * LARGER),
)
SMALL = replace(
    SERIES,
    spacing_mm=chest.GAP,
    thickness_mm=chest.GAP,
    pixel_mm=(chest.PIXEL, chest.PIXEL),
)


def written(
    folder: Path, hu: NDArray[np.float32], edit: Edit | None = None, series: Series = SERIES
) -> list[Path]:
    """A made chest as the slices of a CT, from the base up."""
    folder.mkdir()
    paths = []
    for index, plane in enumerate(hu):
        made = dataset(series, index)
        values = np.rint(plane - series.pixels.intercept).astype(np.int64)
        made.PixelData = raw_pixels(values, made.BitsAllocated)
        if edit is not None:
            edit(made, index)
        paths.append(folder / f"{index:04d}.dcm")
        save(paths[-1], made)
    return paths


def outcome_of(folder: Path, files: Sequence[Path]) -> Derived | Verdict:
    asked = request(files, folder / "results", output=Output())
    outcome = unchecked(replace(asked, model=spec_of("nodules"), parameters=Parameters()))
    assert isinstance(outcome, Derived | Verdict), outcome
    return outcome


def test_two_nodules_of_a_chest_are_reported_at_their_places_and_sides(tmp_path: Path) -> None:
    files = written(tmp_path / "received", chest.chest())
    outcome = outcome_of(tmp_path, files)
    assert isinstance(outcome, Derived), outcome
    results = sorted((tmp_path / "results").glob("*.dcm"))
    assert not check(files, results)
    known = set(dciodvfy(files[0]))
    assert not [line for path in results for line in dciodvfy(path) if line not in known]
    findings = outcome.record["findings"]
    middle = np.array([-150.0, -120.0, -300.0]) + (chest.SIDE - 1) / 2.0 * chest.PIXEL * LARGER
    middle[2] = -300.0 + chest.HIGH * LARGER
    for nodule, side in zip(chest.NODULES, ("right", "left"), strict=True):
        place = middle + np.array(nodule.place) * LARGER
        off = [np.linalg.norm(place - of["centre_mm"]) for of in findings]
        nearest = findings[int(np.argmin(off))]
        assert min(off) < nodule.radius * LARGER
        assert nearest["site"] == side
        assert nearest["diameter_mm"] == pytest.approx(2 * nodule.radius * LARGER, abs=4.0)
        assert nearest["where"]


def test_a_phantom_with_lungs_of_no_adult_is_held(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, written(tmp_path / "received", chest.chest(), series=SMALL))
    assert isinstance(outcome, Verdict)
    assert (outcome.reason, outcome.held) == (Reason.LOW_CONFIDENCE, True)
    assert outcome.record["findings"]


def test_a_chest_with_one_lung_is_held_with_what_was_found(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, written(tmp_path / "received", chest.chest(lungs=(-1,))))
    assert isinstance(outcome, Verdict)
    assert (outcome.reason, outcome.held) == (Reason.LOW_CONFIDENCE, True)
    assert "findings" in outcome.record
    assert not list((tmp_path / "results").iterdir())


def test_a_body_without_lungs_is_refused_by_its_pixels(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, written(tmp_path / "received", chest.chest((), lungs=())))
    assert isinstance(outcome, Verdict)
    assert (outcome.reason, outcome.held) == (Reason.OUT_OF_SCOPE, False)
    assert "lungs" in outcome.sentence
    assert "findings" not in outcome.record


def test_a_generated_slice_is_no_evidence(tmp_path: Path) -> None:
    def edit(made: object, index: int) -> None:
        if index == 30:
            made.SyntheticData = "YES"  # type: ignore[attr-defined]

    outcome = outcome_of(tmp_path, written(tmp_path / "received", chest.chest(), edit))
    assert isinstance(outcome, Verdict)
    assert (outcome.reason, outcome.held) == (Reason.DERIVED_INPUT, False)
