"""What a reader looks at: vessels, simulated nodules and noise of slices beside the truth."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from inference.models.midslice import Midslice
from inference.training.data import ThinSeries
from inference.training.leave_out import TargetList, leave_out
from inference.training.metrics import TruthSlice
from inference.training.reader import (
    DIAMETERS_MM,
    NODULE_HU,
    Reading,
    nodules_for,
    octaves_hu,
    vessels_of,
    with_nodules,
)
from inference.training.report import StudyRequest, run, worse_than_linear
from inference.volume import Geometry, Plane
from tests.models.made import made_geometry

SIDE, PIXEL_MM, LUNG_HU = 160, 1.0, -850.0
CHEST = Path(__file__).parents[2] / "node" / "demo" / "data" / "acquired"  # 23 slices


def chest_plane(seed: int = 0, noise_hu: float = 15.0) -> Plane:
    """A body of 120 pixels with one lung of 80 in it."""
    rows, columns = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    far = np.hypot(rows, columns)
    plane = np.where(far < 60, 40.0, -1000.0)
    plane[far < 40] = LUNG_HU
    noise = np.random.default_rng(seed).normal(0.0, noise_hu, plane.shape)
    return (plane + noise).astype(np.float32)


def with_vessels(plane: Plane) -> Plane:
    changed = plane.copy()
    changed[60:100, 70:72] = 0.0
    changed[60:100, 90:93] = 0.0
    return np.asarray(ndimage.gaussian_filter(changed, 0.6), np.float32)


def chest_series(slices: int = 13) -> ThinSeries:
    geometry: Geometry = made_geometry(slices, SIDE, SIDE, gaps_mm=2.5, pixel_mm=PIXEL_MM)
    return ThinSeries("lungs", False, geometry, chest_plane, lambda plane, *_: np.rint(plane))


def test_vessels_that_a_slice_lost_and_made_up_are_counted() -> None:
    truth = with_vessels(chest_plane())
    one_vessel = truth.copy()
    one_vessel[:, 80:] = chest_plane()[:, 80:]
    moved = np.roll(truth, 6, axis=1)
    reading = Reading(("whole", "half", "moved"), PIXEL_MM, {})
    planes = {"whole": truth, "half": one_vessel, "moved": moved}
    reading.add(3, TruthSlice(truth, PIXEL_MM), planes)
    whole, half, elsewhere = (reading.figures_of(name, None, None) for name in planes)
    assert (whole.vessels_kept, whole.vessels_invented) == (1.0, 0.0)
    assert half.vessels_kept == pytest.approx(0.5, abs=0.15)
    assert half.vessels_invented is not None and half.vessels_invented < 0.05
    assert elsewhere.vessels_kept is not None and elsewhere.vessels_kept < 0.4
    assert elsewhere.vessels_invented is not None and elsewhere.vessels_invented > 0.5


def test_noise_and_smooth_gradients_are_no_vessels() -> None:
    lung = np.ones((SIDE, SIDE), bool)
    noise = np.random.default_rng(2).normal(LUNG_HU, 30.0, (SIDE, SIDE)).astype(np.float32)
    ramp = np.linspace(-900.0, -700.0, SIDE, dtype=np.float32)[None].repeat(SIDE, 0)
    assert vessels_of(noise, lung, PIXEL_MM).mean() < 0.001
    assert not vessels_of(ramp, lung, PIXEL_MM).any()


def test_nodules_of_every_diameter_lie_in_the_slice_left_out_and_apart() -> None:
    (stack,) = leave_out(chest_series(), 2, "sub-sampled", TargetList(), 6)
    drawn = nodules_for(stack)
    again = nodules_for(stack)
    nodules = [nodule for of_target in drawn.values() for nodule in of_target]
    places = [(n.row, n.column, n.at_mm, n.diameter_mm) for n in nodules]
    assert places == [(n.row, n.column, n.at_mm, n.diameter_mm) for o in again.values() for n in o]
    assert {nodule.diameter_mm for nodule in nodules} == set(DIAMETERS_MM)
    for index, of_target in drawn.items():
        for nodule in of_target:
            assert abs(nodule.at_mm - stack.series.geometry.distances_mm[index]) <= 1.25
    for place, first in enumerate(places):
        for other in places[place + 1 :]:
            far = np.linalg.norm(np.subtract(first[:3], other[:3]))
            assert far > (first[3] + other[3]) / 2.0 + 7.9


def test_a_drawn_nodule_is_as_dense_as_tissue_and_small_ones_miss_the_received_slices() -> None:
    (stack,) = leave_out(chest_series(), 2, "sub-sampled", TargetList(), 6)
    drawn = nodules_for(stack)
    index, of_target = next((k, of) for k, of in drawn.items() if len(of) == 4)
    small, *_, large = of_target
    changed = with_nodules(stack.series, [large]).read(index) - stack.series.read(index)
    middle = changed[int(large.row), int(large.column)]
    assert middle == pytest.approx(NODULE_HU - LUNG_HU, abs=60.0)
    series = with_nodules(stack.series, [small])
    changed = series.read(index) - stack.series.read(index)
    assert 0 < (changed > 100.0).sum() < 40
    for beside in (place for place in range(13) if abs(place - index) > 2):
        difference = series.read(beside) - stack.series.read(beside)
        assert np.abs(difference).max() < 10.0  # the edge of a body is soft
    assert not np.array_equal(series.read(index), stack.series.read(index))


def test_the_detector_finds_what_is_there_and_not_what_is_missing() -> None:
    (stack,) = leave_out(chest_series(), 2, "sub-sampled", TargetList(), 6)
    drawn = nodules_for(stack)
    series = with_nodules(stack.series, [n for of in drawn.values() for n in of])
    reading = Reading(("kept", "lost", "faint"), PIXEL_MM, drawn)
    for index in drawn:
        without, present = stack.series.read(index), series.read(index)
        before = dict.fromkeys(("kept", "lost", "faint"), without)
        reading.add(index, TruthSlice(without, PIXEL_MM), before)
        faint = without + 0.1 * (present - without)
        reading.add_with_nodules(index, present, {"kept": present, "lost": without, "faint": faint})
    kept, lost, faint = (reading.figures_of(n, None, None) for n in ("kept", "lost", "faint"))
    assert (kept.nodules_found, kept.nodule_contrast) == (1.0, 1.0)
    assert (lost.nodules_found, lost.nodule_contrast) == (0.0, 0.0)
    assert faint.nodules_found == 0.0
    assert faint.nodule_contrast == pytest.approx(0.1, abs=0.001)


def test_noise_power_tells_fine_grain_from_coarse() -> None:
    flat = np.ones((SIDE, SIDE), bool)
    fine = np.random.default_rng(1).normal(0.0, 20.0, (SIDE, SIDE)).astype(np.float32)
    blurred = ndimage.gaussian_filter(fine, 1.0)
    whole, soft = octaves_hu(fine, flat), octaves_hu(blurred, flat)
    assert whole is not None and soft is not None
    shares = soft / whole
    assert shares[0] < 0.3 < shares[1] < shares[2] <= 1.0
    assert octaves_hu(fine, np.zeros_like(flat)) is None


def test_a_chest_is_judged_by_what_a_reader_looks_at() -> None:
    study = run(StudyRequest(CHEST, (2,), targets=2), lambda _: Midslice(), TargetList())
    (cell,) = study.cells
    assert cell.gap_to_thickness == pytest.approx(10.0 / 2.5)
    assert set(cell.reader) == set(cell.methods)
    linear = cell.reader["linear"]
    assert 0.1 < (linear.vessels_kept or 0.0) < 0.9
    assert sum(of.nodules for of in linear.nodules) == 8
    assert all(of.found_in_truth == 1.0 for of in linear.nodules)
    assert 0.0 < (linear.nodule_contrast or 0.0) < 0.9
    assert set(worse_than_linear(cell)) < {
        "vessels kept",
        "invented",
        "nodules found",
        "contrast",
        "sharpness",
        "noise power",
        "LAA off",
    }
