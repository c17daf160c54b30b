"""A stack as slices in Hounsfield units with their place in the patient (LPS, mm)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)

Plane = NDArray[np.float32]  # (rows, columns), HU
Vector = NDArray[np.float64]  # (3,), mm, LPS
Offset: TypeAlias = tuple[float, float]  # rows, columns, in pixels

# Of the map of the expected error: means of squares of pixels, in tenths of a HU.
REDUCTION = 4
# Beyond it an expectation says "far off" and no more (see the reliability table of the model card).
MOST_ERROR_HU = 250.0
STEP_HU = 0.1  # of a stored value

StoredMap = NDArray[np.uint16]  # (rows / 4, columns / 4), tenths of a HU

# Of a shift in pixels: with z reversed its sums come in another order, and slices shall not differ.
SHIFT_DIGITS = 6


@dataclass(frozen=True, eq=False)
class Geometry:
    """The places of the slices of a stack, ascending along the normal (PS3.3 C.7.6.2.1.1)."""

    positions: NDArray[np.float64]  # (slices, 3), Image Position (Patient)
    orientation: NDArray[np.float64]  # (2, 3): direction of a row, direction of a column
    pixel_spacing: tuple[float, float]  # mm between rows, mm between columns
    rows: int
    columns: int
    thickness_mm: float | None = None

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def normal(self) -> Vector:
        """Unit vector across the slices: row direction x column direction."""
        return np.asarray(np.cross(self.orientation[0], self.orientation[1]))

    @cached_property
    def distances_mm(self) -> NDArray[np.float64]:
        """(slices,): distance of each slice from the origin along the normal, ascending."""
        return self.positions @ self.normal

    @cached_property
    def gaps_mm(self) -> NDArray[np.float64]:
        """(slices - 1,): perpendicular distance between neighbours."""
        return np.diff(self.distances_mm)

    @cached_property
    def axis(self) -> int:
        """The axis of the patient that the normal lies nearest to: 0 x, 1 y, 2 z."""
        return int(np.argmax(np.abs(self.normal)))

    def place_mm(self, position: Vector) -> float:
        """A position on that axis: what a PACS shows of Image Position (Patient)."""
        return round(float(position[self.axis]), 3)

    @property
    def pixel_mm(self) -> float:
        """Side of a square pixel of the same area."""
        return float(np.sqrt(self.pixel_spacing[0] * self.pixel_spacing[1]))

    def shift_pixels(self, first: int, second: int) -> Offset:
        """(rows, columns) by which slice `second` lies off the normal through slice `first`.

        Zero unless the stack shears against its orientation (gantry tilt): a point of the patient
        at pixel p of `first` then lies at pixel p - shift of `second`.
        """
        step = self.positions[second] - self.positions[first]
        along_row, along_column = self.orientation @ step
        return along_column / self.pixel_spacing[0], along_row / self.pixel_spacing[1]

    def offsets(self, first: int, second: int, t: float) -> tuple[Offset, Offset]:
        """Offsets from a pixel of the slice at `t` between two to its point in each."""
        end = self.shift_pixels(first, second)
        return on_line(end, (0.0, 0.0), t), on_line(end, end, t)


def on_line(end: Offset, own: Offset, t: float) -> Offset:
    """The offset from a pixel of the slice at `t` of a line to its point in a received slice.

    `end` is how far the slice at the end of the line lies off the normal through the one where it
    begins, `own` how far the received slice does; the slice at `t` does so by t times `end`.
    """
    return round(t * end[0] - own[0], SHIFT_DIGITS), round(t * end[1] - own[1], SHIFT_DIGITS)


def moved(values: NDArray[T], offset: tuple[int, int]) -> NDArray[T]:
    """(rows, columns) sampled at every pixel plus `offset`, in whole pixels; edges repeat."""
    if offset == (0, 0):
        return values
    rows = np.clip(np.arange(values.shape[0]) + offset[0], 0, values.shape[0] - 1)
    columns = np.clip(np.arange(values.shape[1]) + offset[1], 0, values.shape[1] - 1)
    return values[np.ix_(rows, columns)]


@dataclass(frozen=True, eq=False)
class Volume:
    """A stack whose slices are read when they are asked for: a long series fits in no memory."""

    geometry: Geometry
    read: Callable[[int], Plane]  # slice index -> HU, not clipped, padding replaced by air

    def __len__(self) -> int:
        return len(self.geometry)


def reduced(expected_hu: Plane) -> StoredMap:
    """The means of squares of pixels; those at the edge of an odd size repeat its last ones."""
    rows, columns = (-side % REDUCTION for side in expected_hu.shape)
    whole = np.pad(expected_hu, ((0, rows), (0, columns)), mode="edge")
    # Strips added to one another: a tenth of the time of `mean` over two axes, and the same bits.
    sums = reduce(np.add, (whole[:, at::REDUCTION] for at in range(REDUCTION)))
    means = reduce(np.add, (sums[at::REDUCTION] for at in range(REDUCTION))) / np.float32(
        REDUCTION**2
    )
    stored: StoredMap = np.rint(np.clip(means, 0.0, MOST_ERROR_HU) / STEP_HU).astype(np.uint16)
    return stored
