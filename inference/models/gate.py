"""The gate: how far a series may trust the network, from received slices that are left out.

A sample of the received slices is predicted from their neighbours, across twice the gap, and
compared with what was received. The weight that would have been best for them, drawn towards what
training found on patients it had not seen, decides how the network and the flow blend are mixed;
along z the surveys near a slice say how far that holds there: what a network fails on (the top of a
head, for one that has seen chests alone) is a part of a series, seldom all of it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

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
# How many surveys at a distance of nothing it takes to outweigh the series as a whole.
LOCAL_STRENGTH = 0.5
LEAST_REACH_MM = 5.0


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


def at_height(surveyed: Sequence[Measured], series: Gate, at_mm: float) -> Gate:
    """The gate at one height: the series' weight, as far as the surveys near it agree."""
    if not surveyed:
        return series
    squares = np.array([max(m["square_dis"], LEAST_SQUARE) for m in surveyed])
    along = np.array([m["along"] for m in surveyed]) / squares
    apart = np.array([m["apart"] for m in surveyed]) / squares
    near = nearness([m["at_mm"] for m in surveyed], at_mm)
    held = LOCAL_STRENGTH * float(apart.mean())
    total = float(near @ apart) + held
    if total == 0.0:
        return series
    weight = (float(near @ along) + held * series.weight) / total
    # Rounded: with z reversed the sums come in another order, and the slice shall be the same.
    return replace(series, weight=round(float(np.clip(weight, 0.0, 1.0)), 6))


def nearness(heights_mm: Sequence[float], at_mm: float) -> NDArray[np.float64]:
    """How much each survey says of a height: 1 at its own, falling over the way to the next."""
    heights = np.array(heights_mm)
    reach = max(LEAST_REACH_MM, float(np.ptp(heights)) / max(1, len(heights) - 1))
    return np.asarray(np.exp(-0.5 * np.square((heights - at_mm) / reach)))


def mixed_error(surveyed: Sequence[Measured], weight: float, at_mm: float) -> float:
    """The error of the mixture over that of the network alone, in the surveys near a height."""
    squares = [
        m["square_dis"] - 2.0 * weight * m["along"] + weight**2 * m["apart"] for m in surveyed
    ]
    return _ratio(surveyed, squares, at_mm)


def classical_error(surveyed: Sequence[Measured], classical: str, at_mm: float) -> float:
    """The error of a classical candidate over that of the network, in the surveys near a height."""
    return _ratio(surveyed, [m[f"square_{classical}"] for m in surveyed], at_mm)


def _ratio(surveyed: Sequence[Measured], squares: Sequence[float], at_mm: float) -> float:
    """A typical error over the network's; the nearer surveys count most, all of them somewhat."""
    if not surveyed:
        return 1.0
    least = LEAST_SQUARE
    logs = np.array(
        [
            np.log(max(square, least)) - np.log(max(m["square_net"], least))
            for square, m in zip(squares, surveyed, strict=True)
        ]
    )
    near = nearness([m["at_mm"] for m in surveyed], at_mm)
    mean = (near @ logs + LOCAL_STRENGTH * logs.mean()) / (near.sum() + LOCAL_STRENGTH)
    return float(np.exp(0.5 * mean))


def _typical(surveyed: Sequence[Measured], key: str) -> float:
    """The geometric mean: it is decibels that are compared."""
    return float(np.mean([np.log(max(measured[key], LEAST_SQUARE)) for measured in surveyed]))
