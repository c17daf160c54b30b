"""What holds of the generator whatever it is given: exactly, or as near as flow allows.

Optical flow itself knows its pixel grid: flips and shifts change DIS by several HU, so that they
can be promised of the gain on real slices, not of every pixel.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.model import Limits, Parameters, Prediction, Step
from inference.models import classical
from inference.models.classical import Neighbourhood
from inference.models.midslice import Midslice
from inference.runner import Runner
from inference.stacks import open_volume, read_headers, stacks_of
from inference.volume import Geometry, Plane, Volume
from node import demo
from tests.conftest import EXAMPLES
from tests.models.made import made_geometry, made_planes, window_of

REAL_CT = Path(demo.__file__).parent / "data"
GAPS = (2, 8, 14, 20)  # of the demonstration's series
MOST_DB = 0.1
Planes = list[Plane]


@cache
def shipped() -> Midslice:
    return Midslice()


def predictions(
    geometry: Geometry, planes: Sequence[Plane], factor: int = 2, at_once: int = 1
) -> dict[int, Prediction]:
    """Every gap as a job fills it, surveys first."""
    steps = shipped().plan(geometry, Parameters(factor=factor))
    volume = Volume(geometry, lambda index: planes[index].copy())
    runner = Runner(shipped(), volume, Limits(), at_once)
    found = runner.predictions(steps, cancelled=lambda: False)
    return {step.gap: prediction for step, prediction in found if step.gap is not None}


@cache
def real() -> tuple[Geometry, tuple[Plane, ...], tuple[Plane, ...]]:
    """The demonstration's chest: what was received, and what was acquired between, at GAPS."""
    opened = []
    for folder in ("received", "acquired"):
        (stack,) = stacks_of(read_headers(sorted((REAL_CT / folder).glob("*.dcm"))))
        opened.append(open_volume(stack))
    received, acquired = opened
    middles = (received.geometry.distances_mm[:-1] + received.geometry.distances_mm[1:]) / 2.0
    truths = [int(np.abs(acquired.geometry.distances_mm - middles[gap]).argmin()) for gap in GAPS]
    return (
        received.geometry,
        tuple(received.read(index) for index in range(len(received))),
        tuple(acquired.read(index) for index in truths),
    )


def gains_db(change: Callable[[Plane], Plane], truth: Callable[[Plane], Plane]) -> float:
    """Mean gain over linear at GAPS after every slice was changed."""
    geometry, planes, truths = real()
    changed = [np.ascontiguousarray(change(plane)) for plane in planes]
    gains = []
    for gap, true in zip(GAPS, truths, strict=True):
        step = Step(tuple(range(gap - 1, gap + 3)), gap, (0.5,))
        window = window_of(geometry, changed, step)
        (made,) = shipped().run(step, window, Limits()).planes
        linear = classical.linear(Neighbourhood.of(step, window), 0.5)
        wanted = truth(true)
        inner = (slice(8, -8), slice(8, -8))  # a shift brings other pixels in at the edge
        errors = [float(np.square(p - wanted)[inner].mean()) for p in (linear, made)]
        gains.append(10.0 * np.log10(errors[0] / errors[1]))
    return float(np.mean(gains))


CHANGES: dict[str, Callable[[Plane], Plane]] = {
    "left to right": lambda plane: plane[:, ::-1],
    "top to bottom": lambda plane: plane[::-1],
    "3 pixels along": lambda plane: np.roll(plane, 3, axis=1),
    "5 pixels down": lambda plane: np.roll(plane, 5, axis=0),
    "20 HU brighter": lambda plane: plane + np.float32(20.0),
    "20 HU darker": lambda plane: plane - np.float32(20.0),
}


@cache
def plain_db() -> float:
    return gains_db(lambda plane: plane, lambda plane: plane)


@pytest.mark.parametrize("name", CHANGES)
def test_the_gain_on_a_real_chest_does_not_hang_on_how_the_slices_lie(name: str) -> None:
    changed = gains_db(CHANGES[name], CHANGES[name])
    assert changed == pytest.approx(plain_db(), abs=MOST_DB)
    assert plain_db() > 1.0


@pytest.mark.parametrize("slope_hu", [2.0, 30.0, -30.0])
def test_a_brightness_that_rises_evenly_along_z_is_followed(slope_hu: float) -> None:
    geometry = made_geometry(6, 96, 96)
    still = made_planes(geometry, noise_hu=0.0)[2]
    planes = [still + np.float32(slope_hu * index) for index in range(6)]
    for gap, prediction in predictions(geometry, planes, factor=4).items():
        for t, plane in zip((0.25, 0.5, 0.75), prediction.planes, strict=True):
            truth = still + np.float32(slope_hu * (gap + t))
            assert abs(float((plane - truth).mean())) < 0.5


@pytest.mark.parametrize(("t", "place"), [(0.0, 0), (1.0, 1)], ids=["A", "C"])
def test_at_its_end_points_a_gap_is_its_received_slices_to_the_stored_value(
    t: float, place: int
) -> None:
    geometry, planes, _ = real()
    step = Step((7, 8, 9, 10), 8, (t,))
    (made,) = shipped().run(step, window_of(geometry, list(planes), step), Limits()).planes
    assert np.array_equal(np.rint(made), np.rint(planes[8 + place]))


def test_a_job_gives_the_same_bits_however_many_gaps_are_filled_at_once() -> None:
    geometry = made_geometry(9, 80, 72)
    planes = made_planes(geometry)
    alone, together = (predictions(geometry, planes, 3, at_once) for at_once in (1, 3))
    assert list(alone) == list(together)
    for gap, prediction in alone.items():
        assert prediction.trust == together[gap].trust
        for one, other in zip(prediction.planes, together[gap].planes, strict=True):
            assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("shear_mm", [0.0, 1.9, 5.6])  # of 0.7 mm a pixel; the last moves squares
@pytest.mark.parametrize("factor", [2, 3, 7])
def test_a_series_turned_over_gives_the_same_bits_turned_over(factor: int, shear_mm: float) -> None:
    gaps = [2.5, 5.0, 5.0, 3.3, 4.1, 5.0]
    there = made_geometry(7, 120, 80, gaps_mm=gaps, shear_mm=shear_mm)
    back = made_geometry(7, 120, 80, gaps_mm=gaps[::-1], shear_mm=-shear_mm)
    planes = made_planes(there)
    forth = predictions(there, planes, factor)
    reverse = predictions(back, planes[::-1], factor)
    for gap, prediction in forth.items():
        turned = reverse[5 - gap].planes[::-1]
        for one, other in zip(prediction.planes, turned, strict=True):
            assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("value", [-1024.0, 0.0, 40.0, 3071.0, 12000.0])
def test_constant_in_constant_out(value: float) -> None:
    geometry = made_geometry(6, 64, 64)
    planes = [np.full((64, 64), value, np.float32) for _ in range(6)]
    for prediction in predictions(geometry, planes, factor=3).values():
        for plane in prediction.planes:
            assert np.array_equal(np.rint(plane), np.rint(planes[0]))


@settings(max_examples=max(1, EXAMPLES // 6), deadline=None)  # each fills a gap
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(9, 70),
    columns=st.integers(9, 70),
    gap_mm=st.floats(0.5, 12.0),
    shear_mm=st.sampled_from((0.0, 1.3)),
    t=st.floats(0.05, 0.95),
)
def test_whatever_is_received_the_slice_is_finite_and_inside_what_its_neighbours_hold(
    seed: int, rows: int, columns: int, gap_mm: float, shear_mm: float, t: float
) -> None:
    random = np.random.default_rng(seed)
    geometry = made_geometry(4, rows, columns, gaps_mm=gap_mm, shear_mm=shear_mm)
    wild = [random.normal(0.0, 1500.0, (rows, columns)).astype(np.float32) for _ in range(4)]
    step = Step((0, 1, 2, 3), 1, (t,))
    window = window_of(geometry, wild, step)
    prediction = shipped().run(step, window, Limits())
    low, high = classical.envelope(Neighbourhood.of(step, window), t)
    slack = 1e-2  # a place is rounded, and with it which pixel of a sheared neighbour is nearest
    for plane in (*prediction.planes, *prediction.classical):
        assert np.isfinite(plane).all()
        assert ((plane >= low - slack) & (plane <= high + slack)).all()
