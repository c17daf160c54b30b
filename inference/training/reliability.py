"""The reliability of the map of the expected error: what it says of squares, and what they are off.

A square is one value of the map, 4 x 4 pixels of a slice that was left out, inside the body.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from inference.models.confidence import body_of
from inference.previews import STEP_HU, reduced
from inference.volume import Plane

BOUNDS_HU = (0.0, 5.0, 10.0, 20.0, 40.0, 60.0, 100.0, float("inf"))
FAR_HU = 60.0  # where the map says it or more, the true error is to be it or more too
Squares = NDArray[np.floating]


@dataclass(frozen=True)
class ReliabilityBand:
    """The squares of which the map says an error of `least_hu` and more, below `most_hu`."""

    least_hu: float
    most_hu: float | None  # None: there is no limit
    squares: int
    expected_hu: float  # mean
    true_hu: float  # mean
    far: float  # the share of squares that are off by FAR_HU or more

    @property
    def name(self) -> str:
        if self.most_hu is None:
            return f"{self.least_hu:g} and more"
        return f"{self.least_hu:g} to {self.most_hu:g}"


def squares_of(expected_hu: Plane, plane: Plane, truth: Plane) -> tuple[Squares, Squares]:
    """Expected and true mean absolute error of each square of the body."""
    expected, true, body = (
        reduced(values) * STEP_HU
        for values in (
            expected_hu,
            np.abs(plane - truth),
            body_of(truth).astype(np.float32),
        )
    )
    inside = body > 0.5
    return expected[inside], true[inside]


def reliability(slices: Sequence[tuple[Squares, Squares]]) -> tuple[ReliabilityBand, ...]:
    """One band after the other, without those that no square is in."""
    if not slices:
        return ()
    expected, true = (np.concatenate(values) for values in zip(*slices, strict=True))
    bands = []
    for least, most in pairwise(BOUNDS_HU):
        inside = (expected >= least) & (expected < most)
        if inside.any():
            bands.append(
                ReliabilityBand(
                    least_hu=least,
                    most_hu=most if np.isfinite(most) else None,
                    squares=int(inside.sum()),
                    expected_hu=round(float(expected[inside].mean()), 1),
                    true_hu=round(float(true[inside].mean()), 1),
                    far=round(float((true[inside] >= FAR_HU).mean()), 3),
                )
            )
    return tuple(bands)
