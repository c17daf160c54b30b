"""Models whose worth is known, to be evaluated: one that has seen the truth, and a lazy one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.model import Limits, Model, Parameters, Prediction, Produces, Step, Trust, Window
from inference.models.classical import Linear, Neighbourhood, nearest, plan_gaps
from inference.training.data import open_series
from inference.training.leave_out import TargetList
from inference.training.report import Study, StudyRequest, run
from inference.volume import Geometry

NAMES = ["nearest", "linear", "linear, smoothed", "cubic", "spline", "dis"]


class Knowing:
    """A model that has seen the truth, and says how sure it is: the best that there can be."""

    name, version, weights_sha256 = "knowing", "1.0.0", ""
    produces: Produces = "slices"

    def __init__(
        self,
        truth: NDArray[np.float32],
        factor: int,
        *,
        off_hu: float = 0.0,
        confidence: float = 0.9,
    ) -> None:
        self._truth, self._factor, self._off = truth, factor, np.float32(off_hu)
        self._confidence = confidence

    def plan(self, geometry: Geometry, parameters: Parameters) -> Sequence[Step]:
        return plan_gaps(geometry, parameters, reach=2)

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        assert step.gap is not None
        last = len(self._truth) - 1  # of slabs there are fewer than of thin slices
        places = [min(last, round((step.gap + t) * self._factor)) for t in step.fractions]
        scale = np.full(self._truth.shape[1:], 4.0, np.float32)
        return Prediction(
            planes=tuple(self._truth[place] + self._off for place in places),
            scale_hu=(scale,) * len(places),
            trust=tuple(Trust(2.0 + place, self._confidence, 2.0) for place in places),
            classical=tuple(self._truth[place] - np.float32(20.0) for place in places),
            classical_name="dis",
        )


class Lazy(Linear):
    """A model that repeats the nearest slice: worse than linear wherever something moves."""

    name = "lazy"

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        near = Neighbourhood.of(step, slices)
        return Prediction(planes=tuple(nearest(near, t) for t in step.fractions))


def study_of(data: Path, model: Model, *factors: int, targets: int = 4, **changes: object) -> Study:
    wanted = StudyRequest(data, factors, targets=targets)
    wanted = replace(wanted, **changes)  # type: ignore[arg-type]
    return run(wanted, lambda _weights: model, TargetList())


def hu_of(data: Path) -> NDArray[np.float32]:
    ((series,), _) = open_series(data)
    return np.stack([series.read(index) for index in range(len(series))])
