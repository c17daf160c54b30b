"""How far the generated slices are from the slices that the scanner really took."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from node.demo.series import Hounsfield, Series
from node.demo.verify import Check

LEAST_HU, MOST_HU = -1024.0, 2048.0  # the window of the figures
TOLERANCE_DB = 0.02  # rounding to stored values costs a linear slice no more than this


@dataclass(frozen=True)
class Place:
    """One acquired slice that the node never saw, and what was made in its place."""

    height_mm: float
    generated_db: float
    linear_db: float
    true: Hounsfield = field(repr=False, compare=False)

    @property
    def gain_db(self) -> float:
        """How much closer to the truth than linear interpolation."""
        return self.generated_db - self.linear_db


@dataclass(frozen=True)
class Comparison:
    """Every acquired slice against the generated one at its place."""

    places: tuple[Place, ...]
    acquired: int

    @property
    def generated_db(self) -> float:
        """Mean PSNR of the generated slices."""
        return statistics.fmean(place.generated_db for place in self.places)

    @property
    def linear_db(self) -> float:
        """Mean PSNR of linear interpolation at the same places."""
        return statistics.fmean(place.linear_db for place in self.places)

    @property
    def gain_db(self) -> float:
        """The mean gain."""
        return self.generated_db - self.linear_db

    @property
    def closer(self) -> int:
        """At how many places the generated slice is closer to the truth."""
        return sum(place.gain_db > 0.0 for place in self.places)

    @property
    def typical(self) -> Place:
        """The place whose gain is the median: neither the best nor the worst to show."""
        return sorted(self.places, key=lambda place: place.gain_db)[len(self.places) // 2]

    def check(self, *, must_gain: bool) -> Check:
        """The row of the table: all compared, and better than linear, or as good where it is."""
        least = 0.0 if must_gain else -TOLERANCE_DB
        ok = bool(self.places) and len(self.places) == self.acquired and self.gain_db > least
        found = f"{len(self.places)} of {self.acquired} acquired slices could be compared"
        if self.places:
            found = (
                f"{self.generated_db:.2f} dB against {self.linear_db:.2f} dB, closer at "
                f"{self.closer} of {self.acquired} places"
            )
        name = "Closer to the truth than linear interpolation"
        return Check(name if must_gain else "No worse than linear interpolation", ok, found)


def compare(received: Series, derived: Series, acquired: Series) -> Comparison:
    """The figures for each acquired slice between two received ones."""
    return Comparison(tuple(_places(received, derived, acquired)), len(acquired))


def _places(received: Series, derived: Series, acquired: Series) -> Iterator[Place]:
    for index, height in enumerate(acquired.heights_mm):
        made = derived.at(float(height))
        if made is None or received.at(float(height)) is not None:
            continue
        true = acquired.hounsfield(index)
        yield Place(
            height_mm=float(height),
            generated_db=psnr(derived.hounsfield(made), true),
            linear_db=psnr(linear(received, float(height)), true),
            true=true,
        )


def linear(received: Series, height_mm: float) -> Hounsfield:
    """What a viewer would show at that height: a blend of the two received neighbours."""
    below, above = neighbours(received, height_mm)
    start, end = received.heights_mm[below], received.heights_mm[above]
    share = (height_mm - start) / (end - start)
    blend: Hounsfield = (1.0 - share) * received.hounsfield(below) + share * received.hounsfield(
        above
    )
    return blend


def neighbours(received: Series, height_mm: float) -> tuple[int, int]:
    """The indices of the received slices below and above a height between them."""
    above = int(np.searchsorted(received.heights_mm, height_mm))
    return above - 1, above


def psnr(plane: Hounsfield, true: Hounsfield) -> float:
    """Peak signal-to-noise ratio in dB over the window; infinite for equal slices."""
    error = np.clip(plane, LEAST_HU, MOST_HU) - np.clip(true, LEAST_HU, MOST_HU)
    squared = float(np.mean(error**2))
    return float(10.0 * np.log10((MOST_HU - LEAST_HU) ** 2 / squared)) if squared else float("inf")
