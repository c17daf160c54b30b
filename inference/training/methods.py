"""What is compared: interpolation without training, and a model run exactly as the node runs it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.model import Limits, Model, Prediction, Step, Window
from inference.models import classical
from inference.models.classical import MEDIUM, Neighbourhood, shifted
from inference.runner import Runner
from inference.training.cuts import Cut
from inference.volume import Plane, on_line

LINEAR, DIS = "linear", "dis"
# Is a gain nothing but smoothing? The width is near the best one on the series it was tried on.
SMOOTHED, SMOOTHED_SIGMA = "linear, smoothed", 0.7
CLASSICAL = ("nearest", LINEAR, SMOOTHED, "cubic", "spline", DIS)
# Received slices with a smaller weight change the spline by less than 0.1 HU.
LEAST_WEIGHT = 3e-5


@dataclass(frozen=True, eq=False)
class Place:
    """Where a slice is to be made: a gap of a cut, what lies around it, and t."""

    cut: Cut
    gap: int
    near: Neighbourhood
    t: float


@dataclass(frozen=True)
class Way:
    """How the model is run, and whether its slices are shown."""

    limits: Limits
    at_once: int = 1  # gaps, as the node runs them
    pictures: bool = False


Method = Callable[[Place], Plane]


def classical_methods() -> Mapping[str, Method]:
    """By the names of CLASSICAL."""
    return {
        "nearest": lambda place: classical.nearest(place.near, place.t),
        LINEAR: lambda place: classical.linear(place.near, place.t),
        SMOOTHED: smoothed_linear,
        "cubic": lambda place: classical.cubic(place.near, place.t),
        "spline": spline,
        DIS: lambda place: classical.dis(place.near, place.t),
    }


def neighbourhood(cut: Cut, gap: int) -> Neighbourhood:
    """The four received slices around a gap; flow is searched for as OpenCV's preset does it."""
    needs = tuple(i for i in range(gap - 1, gap + 3) if 0 <= i < len(cut.volume))
    slices = {index: cut.volume.read(index) for index in needs}
    near = Neighbourhood.of(Step(needs, gap), Window(cut.volume.geometry, slices))
    return replace(near, search=MEDIUM)


def smoothed_linear(place: Place) -> Plane:
    """The control: what a Gaussian makes of linear interpolation."""
    plane = classical.linear(place.near, place.t)
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), SMOOTHED_SIGMA), np.float32)


def spline(place: Place) -> Plane:
    """The natural cubic spline through every received slice, each in the frame of the made one."""
    geometry = place.cut.volume.geometry
    weights = _weights(tuple(geometry.distances_mm.tolist()), place.gap, place.t)
    at_c = geometry.shift_pixels(place.gap, place.gap + 1)
    total = np.zeros((geometry.rows, geometry.columns), np.float32)
    for index in np.flatnonzero(np.abs(weights) > LEAST_WEIGHT).tolist():
        offset = on_line(at_c, geometry.shift_pixels(place.gap, index), place.t)
        total += weights[index] * shifted(place.cut.volume.read(index), offset)
    return total


@lru_cache(maxsize=512)
def _weights(places: tuple[float, ...], gap: int, t: float) -> NDArray[np.float32]:
    return spline_weights(np.array(places), gap, t)


def spline_weights(places: NDArray[np.float64], gap: int, t: float) -> NDArray[np.float32]:
    """(n,): how much of each of n values the natural cubic spline takes at `t` of a gap.

    Second derivatives m solve h0 m0 + 2 (h0 + h1) m1 + h1 m2 = 6 (slope1 - slope0) at each inner
    place and are 0 at the ends (de Boor, A Practical Guide to Splines, chapter IV).
    """
    count, gaps = len(places), np.diff(places)
    values = np.eye(count)
    slopes = np.diff(values, axis=0) / gaps[:, None]
    left, right = np.eye(count), np.zeros((count, count))
    for i in range(1, count - 1):
        left[i, i - 1 : i + 2] = gaps[i - 1], 2.0 * (gaps[i - 1] + gaps[i]), gaps[i]
        right[i] = 6.0 * (slopes[i] - slopes[i - 1])
    bends = np.linalg.solve(left, right)
    u, h = 1.0 - t, gaps[gap]
    weights = u * values[gap] + t * values[gap + 1]
    weights = weights + h * h / 6.0 * ((u**3 - u) * bends[gap] + (t**3 - t) * bends[gap + 1])
    return np.asarray(weights, np.float32)


def predictions(
    model: Model, cut: Cut, way: Way, asked: Mapping[int, tuple[float, ...]]
) -> Iterator[tuple[int, Prediction]]:
    """What the node's runner makes of the asked places in gaps, in the order of the gaps.

    The model plans for the whole stack; the gaps without a target are left out of its plan, which
    changes nothing, because it keeps no state between two gaps.
    """
    kept = []
    for step in model.plan(cut.volume.geometry, cut.parameters):
        if step.gap is None:
            kept.append(step)
        elif step.gap in asked:
            kept.append(replace(step, fractions=asked[step.gap]))
    runner = Runner(model, cut.volume, way.limits, way.at_once)
    for step, prediction in runner.predictions(kept, cancelled=lambda: False):
        if step.gap is not None:
            yield step.gap, prediction
