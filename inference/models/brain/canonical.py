"""A stack turned to right, anterior, superior by a permutation and flips, and back.

A stack that shears against its planes is straightened before that.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import permutations
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference.volume import Geometry

T = TypeVar("T", bound=np.generic)

RIGHT_ANTERIOR_SUPERIOR = np.diag([-1.0, -1.0, 1.0])  # in patient coordinates (LPS)


def steps_mm(geometry: Geometry) -> NDArray[np.float64]:
    """(3, 3): what one step along slices, rows and columns is in the patient, LPS, mm.

    The place of a voxel is the first position and its indices times these.
    """
    across = (geometry.positions[-1] - geometry.positions[0]) / (len(geometry) - 1)
    down, along = geometry.pixel_spacing[0], geometry.pixel_spacing[1]
    return np.stack([across, geometry.orientation[1] * down, geometry.orientation[0] * along])


LEAST_OFFSET_PIXELS = 0.5  # of the farthest slice: less is noise of the positions


@dataclass(frozen=True, eq=False)
class Straight:
    """A stack whose slices lie behind each other, not aside as those of a tilted gantry do."""

    geometry: Geometry  # of the straight stack
    offsets: NDArray[np.float64]  # (slices, 2): rows and columns that each slice lies aside

    @classmethod
    def of(cls, geometry: Geometry) -> "Straight":
        offsets = np.array([geometry.shift_pixels(0, place) for place in range(len(geometry))])
        offsets -= offsets.min(axis=0)
        if offsets.max() < LEAST_OFFSET_PIXELS:
            return cls(geometry, np.zeros_like(offsets))
        rows, columns = (int(room) for room in np.ceil(offsets.max(axis=0)))
        along = np.outer(geometry.distances_mm - geometry.distances_mm[0], geometry.normal)
        straight = replace(
            geometry,
            positions=geometry.positions[0] + along,
            rows=geometry.rows + rows,
            columns=geometry.columns + columns,
        )
        return cls(straight, offsets)

    def straightened(self, volume: NDArray[np.float32]) -> NDArray[np.float32]:
        """(slices, rows, columns) with room for all; what no slice shows has the lowest value."""
        if not self.offsets.any():
            return volume
        room = (self.geometry.rows - volume.shape[1], self.geometry.columns - volume.shape[2])
        lowest = float(volume.min())
        around = [(0, side) for side in room]
        planes = (np.pad(plane, around, constant_values=lowest) for plane in volume)
        return _shifted(planes, self.offsets, lowest)

    def back(self, volume: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
        """The same on the grid of the stack."""
        if not self.offsets.any():
            return volume
        return _shifted(volume, -self.offsets, 0.0)[:, :rows, :columns]


def _shifted(
    planes: Iterable[NDArray[np.float32]], offsets: NDArray[np.float64], outside: float
) -> NDArray[np.float32]:
    moved = (
        ndimage.shift(plane, by, order=1, mode="grid-constant", cval=outside)
        for plane, by in zip(planes, offsets, strict=True)
    )
    return np.stack(list(moved)).astype(np.float32, copy=False)


@dataclass(frozen=True)
class Turn:
    """From (slices, rows, columns) to (right, anterior, superior) without interpolation."""

    order: tuple[int, ...]  # the axis of the stack that becomes each axis of the turned volume
    flipped: tuple[int, ...]  # axes of the turned volume that run the other way
    spacing_mm: tuple[float, ...]  # of the turned volume

    @classmethod
    def of(cls, geometry: Geometry) -> "Turn":
        steps = steps_mm(geometry)
        lengths = np.linalg.norm(steps, axis=1)
        cosines = steps / lengths[:, None] @ RIGHT_ANTERIOR_SUPERIOR
        order = max(permutations(range(3)), key=lambda axes: abs(cosines[axes, range(3)]).sum())
        flipped = tuple(axis for axis in range(3) if cosines[order[axis], axis] < 0.0)
        return cls(order, flipped, tuple(float(lengths[axis]) for axis in order))

    def turned(self, volume: NDArray[T]) -> NDArray[T]:
        """A view."""
        return np.flip(volume.transpose(self.order), self.flipped)

    def back(self, volume: NDArray[T]) -> NDArray[T]:
        """A view in the axes of the stack."""
        return np.flip(volume, self.flipped).transpose(np.argsort(self.order))
