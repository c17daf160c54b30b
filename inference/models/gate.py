"""The gate: how far one series may trust the network, from received slices that are left out.

A sample of the received slices is predicted from their neighbours, across twice the gap, and
compared with what was received. The weight that would have been best for them, drawn towards what
training found on patients it had not seen, decides how the network and the flow blend are mixed.
"""

from collections.abc import Sequence

import numpy as np

from inference.model import Measured, Step
from inference.models.calibration import Calibration
from inference.models.guards import CLASSICAL, DIS, Gate
from inference.volume import Geometry, Plane

MOST_SURVEYS, LEAST_SURVEYS = 16, 3
# Below it too few slices have two neighbours: prior knowledge alone serves.
LEAST_SLICES = 5
# Each survey costs as much as a generated slice: at most one for so many of them.
SLICES_A_SURVEY = 4
# Errors are compared after this much; the rest is noise in air, or metal.
LOW_HU, HIGH_HU = -1024.0, 2048.0
LEAST_SQUARE = 1.0  # HU squared; two equal slices would be infinitely good


def plan_surveys(geometry: Geometry, gaps: Sequence[Step]) -> tuple[Step, ...]:
    """Survey steps spread evenly over the part of the stack that is filled."""
    if len(geometry) < LEAST_SLICES:
        return ()
    near = {index for step in gaps for index in step.needs}
    inner = [index for index in range(1, len(geometry) - 1) if index in near]
    generated = sum(len(step.fractions) for step in gaps)
    count = min(MOST_SURVEYS, max(LEAST_SURVEYS, generated // SLICES_A_SURVEY), len(inner))
    if count < LEAST_SURVEYS:
        return ()
    places = np.linspace(0, len(inner) - 1, count).round().astype(int)
    return tuple(_survey(inner[place], len(geometry)) for place in places)


def _survey(left_out: int, slices: int) -> Step:
    first, last = max(0, left_out - 2), min(slices - 1, left_out + 2)
    return Step(needs=tuple(range(first, last + 1)), survey=left_out)


def errors_of(truth: Plane, net: Plane, classical: dict[str, Plane]) -> dict[str, float]:
    """Mean squared errors, and what decides the best mixture of the network and the flow blend.

    The squared error of DIS + g (net - DIS) is `square_dis` - 2 g `along` + g^2 `apart`.
    """
    true = np.clip(truth, LOW_HU, HIGH_HU)
    shown = {name: np.clip(plane, LOW_HU, HIGH_HU) for name, plane in classical.items()}
    found = {f"square_{name}": _mean_square(plane - true) for name, plane in shown.items()}
    step = np.clip(net, LOW_HU, HIGH_HU) - shown[DIS]
    return found | {
        "square_net": _mean_square(step + shown[DIS] - true),
        "along": float(np.mean(step * (true - shown[DIS]), dtype=np.float64)),
        "apart": _mean_square(step),
    }


def _mean_square(plane: Plane) -> float:
    return float(np.mean(np.square(plane), dtype=np.float64))


def decided(surveyed: Sequence[Measured], prior: Calibration) -> Gate:
    """The gate of a series; each survey counts by its share of the flow blend's error."""
    if not surveyed:
        return Gate(prior.weight, prior.classical, 0)
    squares = [max(measured["square_dis"], LEAST_SQUARE) for measured in surveyed]
    along = sum(m["along"] / square for m, square in zip(surveyed, squares, strict=True))
    apart = sum(m["apart"] / square for m, square in zip(surveyed, squares, strict=True))
    strength = prior.strength * prior.apart
    total = apart + strength
    weight = (along + strength * prior.weight) / total if total > 0.0 else prior.weight
    return Gate(
        weight=float(np.clip(weight, 0.0, 1.0)),
        classical=min(CLASSICAL, key=lambda name: _typical(surveyed, f"square_{name}")),
        surveyed=len(surveyed),
    )


def mixed_error(surveyed: Sequence[Measured], weight: float) -> float:
    """The error of the mixture over that of the network alone, in the surveys."""
    logs = [
        np.log(max(m["square_dis"] - 2.0 * weight * m["along"] + weight**2 * m["apart"], 1.0))
        - np.log(max(m["square_net"], LEAST_SQUARE))
        for m in surveyed
    ]
    return float(np.exp(0.5 * np.mean(logs))) if logs else 1.0


def _typical(surveyed: Sequence[Measured], key: str) -> float:
    """The geometric mean: it is decibels that are compared."""
    return float(np.mean([np.log(max(measured[key], LEAST_SQUARE)) for measured in surveyed]))
