"""The methods of an evaluation: exact on stacks whose truth is known, where theory says so."""

import cv2
import numpy as np
import pytest

from inference.model import Limits
from inference.models.classical import MEDIUM, Linear
from inference.training.data import ThinSeries
from inference.training.evaluate import (
    CLASSICAL,
    DIS,
    LINEAR,
    SMOOTHED,
    RunOptions,
    TargetPlace,
    classical_methods,
    neighbourhood,
    predictions,
    spline_weights,
)
from inference.training.leave_out import Mode, TargetList, leave_out
from inference.volume import Plane
from tests.models.made import drifting, made_geometry, ramp, sheared, thin_series


def made(series: ThinSeries, method: str, factor: int = 4, mode: Mode = "sub-sampled") -> float:
    """The greatest error of a method on a series, 12 pixels away from the edges."""
    (cut,) = leave_out(series, factor, mode, TargetList(), 100)
    worst = 0.0
    for gap, targets in cut.by_gap():
        near = neighbourhood(cut, gap)
        for target in targets:
            plane = classical_methods()[method](TargetPlace(cut, gap, near, target.t))
            error = np.abs(plane - cut.truth(target))[12:-12, 12:-12]
            worst = max(worst, float(error.max()))
    return worst


def test_every_named_method_is_there() -> None:
    assert tuple(classical_methods()) == CLASSICAL


@pytest.mark.parametrize("method", [LINEAR, "cubic", "spline"])
@pytest.mark.parametrize("mode", ["sub-sampled", "slab"])
def test_what_changes_evenly_along_z_is_exact(method: str, mode: Mode) -> None:
    assert made(ramp(), method, mode=mode) < 0.01


def test_nearest_is_off_by_as_much_as_the_way_to_the_nearest() -> None:
    assert made(ramp(), "nearest") == pytest.approx(2 * 8.0, rel=0.6)


@pytest.mark.parametrize("method", [LINEAR, "cubic", "spline", "nearest"])
def test_a_leaning_stack_of_a_straight_column_is_exact(method: str) -> None:
    """Shifts of whole pixels at 4x between slices 4 pixels apart: nothing is left to guess."""
    assert made(sheared(), method) < 0.5


def test_without_the_shift_the_leaning_stack_would_be_far_off() -> None:
    upright = sheared()
    geometry = made_geometry(len(upright), 64, 64, gaps_mm=1.0)
    planes = [upright.read(index) for index in range(len(upright))]
    assert made(thin_series(planes, geometry), LINEAR) > 50.0


def parabola() -> ThinSeries:
    geometry = made_geometry(21, 40, 40, gaps_mm=1.0)
    planes = [np.full((40, 40), 0.5 * z * z, np.float32) for z in geometry.distances_mm]
    return thin_series(planes, geometry)


def test_a_parabola_is_exact_for_cubic_and_not_for_linear() -> None:
    assert made(parabola(), LINEAR, factor=2) == pytest.approx(0.5)
    (cut,) = leave_out(parabola(), 2, "sub-sampled", TargetList(), 100)
    inner = [target for target in cut.targets if 0 < target.gap < len(cut.volume) - 2]
    for target in inner:
        place = TargetPlace(cut, target.gap, neighbourhood(cut, target.gap), target.t)
        plane = classical_methods()["cubic"](place)
        assert plane == pytest.approx(cut.truth(target), abs=1e-3)


def test_smoothing_keeps_what_is_even_and_takes_noise_away() -> None:
    series = drifting(9)
    (cut,) = leave_out(series, 2, "sub-sampled", TargetList(), 100)
    near = neighbourhood(cut, 1)
    place = TargetPlace(cut, 1, near, 0.5)
    methods = classical_methods()
    plain, smooth = methods[LINEAR](place), methods[SMOOTHED](place)
    tissue = np.s_[34:42, 34:42]
    assert smooth[tissue].std() < 0.7 * plain[tissue].std()
    assert smooth.mean() == pytest.approx(plain.mean(), abs=1.0)


# --- the natural spline -----------------------------------------------------------------------


def test_the_natural_spline_through_0_1_0_is_the_one_in_the_books() -> None:
    """s(0.5) = 11 / 16 for places 0, 1, 2: second derivatives 0, -3, 0."""
    weights = spline_weights((0.0, 1.0, 2.0), 0, 0.5)
    assert weights @ np.array([0.0, 1.0, 0.0]) == pytest.approx(11.0 / 16.0)
    assert weights.sum() == pytest.approx(1.0)


def test_the_spline_passes_through_its_values_and_does_not_bend_at_its_ends() -> None:
    places = (0.0, 1.0, 2.5, 3.0, 5.0)
    for gap in range(4):
        assert spline_weights(places, gap, 0.0) == pytest.approx(np.eye(5)[gap], abs=1e-6)
        assert spline_weights(places, gap, 1.0) == pytest.approx(np.eye(5)[gap + 1], abs=1e-6)
    values, step = np.array([3.0, -1.0, 4.0, 1.0, -5.0]), 1e-2
    near_end = [float(spline_weights(places, 0, k * step) @ values) for k in range(3)]
    bend = (near_end[0] - 2.0 * near_end[1] + near_end[2]) / step**2
    middle = [float(spline_weights(places, 1, 0.5 + k * step) @ values) for k in (-1, 0, 1)]
    assert abs(bend) < 0.05 * abs((middle[0] - 2.0 * middle[1] + middle[2]) / step**2)


def test_two_slices_alone_make_a_line() -> None:
    assert spline_weights((0.0, 2.0), 0, 0.25) == pytest.approx([0.75, 0.25])


# --- the model --------------------------------------------------------------------------------


def through_runner(series: ThinSeries, at_once: int) -> dict[tuple[int, float], Plane]:
    (cut,) = leave_out(series, 3, "sub-sampled", TargetList(), 7)
    asked = {gap: tuple(target.t for target in targets) for gap, targets in cut.by_gap()}
    found = {}
    for gap, prediction in predictions(Linear(), cut, RunOptions(Limits(), at_once), asked):
        for t, plane in zip(asked[gap], prediction.planes, strict=True):
            found[gap, t] = plane
    return found


@pytest.mark.parametrize("at_once", [1, 2])
def test_the_model_runs_through_the_nodes_runner_on_the_asked_places_alone(at_once: int) -> None:
    series = drifting(19)
    (cut,) = leave_out(series, 3, "sub-sampled", TargetList(), 7)
    found = through_runner(series, at_once)
    assert sorted(found) == [(target.gap, target.t) for target in cut.targets]
    for target in cut.targets:
        place = TargetPlace(cut, target.gap, neighbourhood(cut, target.gap), target.t)
        expected = classical_methods()[LINEAR](place)
        assert np.array_equal(found[target.gap, target.t], expected)


def test_flow_is_judged_by_the_preset_however_the_generator_searches() -> None:
    series = drifting(9)
    (cut,) = leave_out(series, 2, "sub-sampled", TargetList(), 100)
    assert neighbourhood(cut, 1).search == MEDIUM
    preset = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    told = (
        preset.getPatchStride(),
        preset.getGradientDescentIterations(),
        preset.getVariationalRefinementIterations(),
    )
    assert told == (MEDIUM.stride, MEDIUM.descents, MEDIUM.refinements)


def test_dis_follows_what_linear_doubles() -> None:
    """A disc that moves by eight pixels across a gap: linear shows two halves of it."""
    geometry = made_geometry(9, 96, 96, gaps_mm=1.0)
    y, x = np.mgrid[:96, :96].astype(np.float32)
    planes = []
    for index in range(9):
        away = np.hypot(y - 48.0, x - 40.0 - 2.0 * index)
        planes.append(np.asarray(-900.0 + 950.0 * np.clip(16.0 - away, 0.0, 1.0), np.float32))
    series = thin_series(planes, geometry)
    assert made(series, DIS) < 0.6 * made(series, LINEAR)
