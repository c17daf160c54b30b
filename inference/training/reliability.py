"""The reliability of the map of the expected error: what it says of squares, and what they are off.

A square is one value of the map, 4 x 4 pixels of a slice that was left out, inside the body.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from inference.models.confidence import body_of
from inference.volume import REDUCTION, STEP_HU, Plane, reduced

BOUNDS_HU = (0.0, 5.0, 10.0, 20.0, 40.0, 60.0, 100.0, float("inf"))
# The claims of the map's bounds: so many of the pixels that it says are within these, are.
WITHIN_HU, WITHIN_SHARE = (20.0, 60.0), 0.9
LARGE_HU, LARGE_SHARE = 100.0, 0.5  # of errors beyond it, this share lies where the map says so
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


@dataclass(frozen=True)
class BoundCounts:
    """Pixels of one slice by the bound that the map gives, and whether they kept it."""

    said: tuple[int, ...]  # within each of WITHIN_HU
    kept: tuple[int, ...]
    large: int  # off by more than LARGE_HU
    large_said: int  # those of them that the map says may be
    said_large: int
    body: int


@dataclass(frozen=True)
class MapBounds:
    """How the bounds of the map hold: its value times the interval that holds 90 % of errors."""

    within: tuple[float | None, ...]  # of the pixels said to be within WITHIN_HU, the share that is
    said_within: tuple[float, ...]  # share of the body of which that is said
    large_said: float | None  # share of the errors beyond LARGE_HU that lie where the map says so
    said_large: float  # share of the body of which that is said

    @property
    def holds(self) -> bool:
        shares = [share for share in self.within if share is not None]
        held = all(share >= WITHIN_SHARE for share in shares)
        return held and (self.large_said is None or self.large_said >= LARGE_SHARE)


def bound_counts(expected_hu: Plane, interval: float, plane: Plane, truth: Plane) -> BoundCounts:
    """Of the pixels in the body, each with the value of its square of the map."""
    rows, columns = truth.shape
    bound = np.kron(reduced(expected_hu) * (STEP_HU * interval), np.ones((REDUCTION, REDUCTION)))
    body = body_of(truth)
    bound, error = bound[:rows, :columns][body], np.abs(plane - truth)[body]
    within = [bound <= limit for limit in WITHIN_HU]
    large = error > LARGE_HU
    return BoundCounts(
        said=tuple(int(said.sum()) for said in within),
        kept=tuple(
            int((error[said] <= limit).sum()) for said, limit in zip(within, WITHIN_HU, strict=True)
        ),
        large=int(large.sum()),
        large_said=int((bound[large] > LARGE_HU).sum()),
        said_large=int((bound > LARGE_HU).sum()),
        body=int(body.sum()),
    )


def map_bounds(counts: Sequence[BoundCounts]) -> MapBounds | None:
    """Over the slices of a cell; None of a model without a map."""
    body = sum(of.body for of in counts)
    if not body:
        return None
    said, kept = (np.sum([getattr(of, name) for of in counts], 0) for name in ("said", "kept"))
    large = sum(of.large for of in counts)
    return MapBounds(
        within=tuple(float(k / s) if s else None for k, s in zip(kept, said, strict=True)),
        said_within=tuple(float(s / body) for s in said),
        large_said=sum(of.large_said for of in counts) / large if large else None,
        said_large=sum(of.said_large for of in counts) / body,
    )


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
