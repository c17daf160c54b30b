"""The generated slices beside the acquired ones that were held back, measured in dB."""

import statistics
from dataclasses import dataclass, field

import numpy as np

from node.second_opinion import Check, Hounsfield, ImageSeries

LEAST_HU, MOST_HU = -1024.0, 2048.0  # the window of the figures
TOLERANCE_DB = 0.02  # rounding to stored values costs a linear slice no more than this


@dataclass(frozen=True)
class ComparedSlice:
    """One acquired slice that the node never saw, and what was made in its place."""

    height_mm: float
    generated_db: float
    linear_db: float
    true: Hounsfield = field(repr=False, compare=False)

    @property
    def gain_db(self) -> float:
        """Gain over linear interpolation."""
        return self.generated_db - self.linear_db


@dataclass(frozen=True)
class Comparison:
    """Every acquired slice against the generated one at its place."""

    slices: tuple[ComparedSlice, ...]
    acquired: int

    @property
    def generated_db(self) -> float:
        """Mean PSNR of the generated slices."""
        return statistics.fmean(slice_.generated_db for slice_ in self.slices)

    @property
    def linear_db(self) -> float:
        """Mean PSNR of linear interpolation at the same places."""
        return statistics.fmean(slice_.linear_db for slice_ in self.slices)

    @property
    def gain_db(self) -> float:
        return self.generated_db - self.linear_db

    @property
    def closer(self) -> int:
        """Number of places where the generated slice is closer to the truth."""
        return sum(slice_.gain_db > 0.0 for slice_ in self.slices)

    @property
    def typical(self) -> ComparedSlice:
        """The place whose gain is the median: neither the best nor the worst to show."""
        return sorted(self.slices, key=lambda slice_: slice_.gain_db)[len(self.slices) // 2]

    def check(self, *, must_gain: bool) -> Check:
        """The row of the table: all compared, and better than linear, or as good where it is."""
        least = 0.0 if must_gain else -TOLERANCE_DB
        ok = bool(self.slices) and len(self.slices) == self.acquired and self.gain_db > least
        figures = f"{len(self.slices)} of {self.acquired} acquired slices could be compared"
        if self.slices:
            figures = (
                f"{self.generated_db:.2f} dB against {self.linear_db:.2f} dB, closer at "
                f"{self.closer} of {self.acquired} places"
            )
        relation = "Closer to the truth" if must_gain else "No worse"
        return Check(f"{relation} than linear interpolation", ok, figures)


def compare(received: ImageSeries, derived: ImageSeries, acquired: ImageSeries) -> Comparison:
    """The figures for each acquired slice between two received ones."""
    compared = []
    for slice_, height in zip(acquired.slices, map(float, acquired.heights_mm), strict=True):
        generated, true = derived.at(height), slice_.hounsfield()
        if generated is not None and received.at(height) is None:
            generated_db = psnr(derived.slices[generated].hounsfield(), true)
            linear_db = psnr(linear(received, height), true)
            compared.append(ComparedSlice(height, generated_db, linear_db, true))
    return Comparison(tuple(compared), len(acquired))


def linear(received: ImageSeries, height_mm: float) -> Hounsfield:
    """A blend of the two received neighbours of that height, as a viewer shows it."""
    below, above = neighbours(received, height_mm)
    start, end = received.heights_mm[below], received.heights_mm[above]
    share = (height_mm - start) / (end - start)
    lower, upper = (received.slices[index].hounsfield() for index in (below, above))
    blend: Hounsfield = (1.0 - share) * lower + share * upper
    return blend


def neighbours(received: ImageSeries, height_mm: float) -> tuple[int, int]:
    """The indices of the received slices below and above a height between them."""
    above = int(np.searchsorted(received.heights_mm, height_mm))
    return above - 1, above


def psnr(plane: Hounsfield, true: Hounsfield) -> float:
    """Peak signal-to-noise ratio in dB over the window; infinite for equal slices."""
    error = np.clip(plane, LEAST_HU, MOST_HU) - np.clip(true, LEAST_HU, MOST_HU)
    squared = float(np.mean(error**2))
    return float(10.0 * np.log10((MOST_HU - LEAST_HU) ** 2 / squared)) if squared else float("inf")
