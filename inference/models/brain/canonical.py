"""A stack turned to right, anterior, superior by a permutation and flips, and back."""

from dataclasses import dataclass
from itertools import permutations
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

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
