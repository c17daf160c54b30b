"""What a model's plan and predictions must be; a model is foreign code and may give anything."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from inference.errors import PredictionError
from inference.model import Measured, Prediction, Step, Trust
from inference.volume import Plane, Volume


def check_prediction(step: Step, prediction: Prediction, volume: Volume) -> None:
    """Raise PredictionError for a prediction that is not what the step asked for."""
    wanted = len(step.fractions)
    if len(prediction.planes) != wanted:
        raise PredictionError(
            f"the model gave {len(prediction.planes)} slices for a gap of {wanted}"
        )
    trusts = prediction.trust, prediction.classical_trust
    for beside in (prediction.scale_hu, prediction.classical, prediction.weights, *trusts):
        if len(beside) not in (0, wanted):
            raise PredictionError(f"the model says {len(beside)} things of {wanted} slices")
    for plane in (*prediction.planes, *prediction.scale_hu, *prediction.classical):
        _check_plane(plane, (volume.geometry.rows, volume.geometry.columns))
    for trust in itertools.chain(*trusts):
        _check_trust(trust)


def _check_plane(plane: Plane, shape: tuple[int, int]) -> None:
    if plane.shape != shape:
        raise PredictionError(f"the model gave a slice of {plane.shape}, not {shape}")
    if not np.isfinite(plane).all():
        raise PredictionError("the model gave values that are not finite numbers")


def _check_trust(trust: Trust) -> None:
    is_known = all(map(math.isfinite, (trust.error_hu, trust.confidence, trust.interval)))
    if not (
        is_known and 0.0 <= trust.confidence <= 1.0 and min(trust.error_hu, trust.interval) >= 0
    ):
        raise PredictionError(f"the model expects what cannot be: {trust}")


def check_measured(measured: Measured) -> None:
    """Raise PredictionError for a survey that measured nothing, or no finite number."""
    if not measured or not all(math.isfinite(value) for value in measured.values()):
        raise PredictionError("a survey of the model measured no finite numbers")


def check_steps(steps: Sequence[Step], slices: int) -> None:
    """Raise PredictionError for a plan that does not fit the stack."""
    surveys = list(itertools.takewhile(lambda step: step.survey is not None, steps))
    for step in surveys:
        _check_survey(step, slices)
    seen: set[int] = set()
    for step in steps[len(surveys) :]:
        if step.survey is not None:
            raise PredictionError("the model planned a survey after a gap")
        if step.gap is None or not 0 <= step.gap < slices - 1 or step.gap in seen:
            raise PredictionError(f"the model planned gap {step.gap} of {slices - 1}")
        seen.add(step.gap)
        _check_gap(step, step.gap, slices)


def _check_survey(step: Step, slices: int) -> None:
    left_out = step.survey or 0
    if not 0 < left_out < slices - 1 or step.gap is not None or step.fractions:
        raise PredictionError(f"the model planned a survey of slice {step.survey} of {slices}")
    if not {left_out - 1, left_out, left_out + 1} <= set(step.needs) <= set(range(slices)):
        raise PredictionError(f"the model needs slices {step.needs} to survey {left_out}")


def _check_gap(step: Step, gap: int, slices: int) -> None:
    if not {gap, gap + 1} <= set(step.needs) <= set(range(slices)):
        raise PredictionError(f"the model needs slices {step.needs} for gap {gap}")
    inside = all(0.0 < fraction < 1.0 for fraction in step.fractions)
    if not step.fractions or not inside or sorted(set(step.fractions)) != [*step.fractions]:
        raise PredictionError(f"the model planned places {step.fractions} in a gap")
