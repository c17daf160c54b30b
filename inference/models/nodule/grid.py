"""The working grid: a chest at 1 mm in every direction, upright, and the way back to the source.

Its axes are those of the stack, so a tilted stack keeps its tilt, and slices that are sheared by a
gantry come to lie where they are in the patient.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.volume import Geometry, Plane, Vector

AIR_HU, MOST_HU = -1024.0, 3071.0

Hu = NDArray[np.int16]  # (z, y, x): to the head, to the back, to the left, 1 mm a step
Mask = NDArray[np.bool_]
Voxel = tuple[float, float, float]  # z, y, x
Read = Callable[[int], Plane]


@dataclass(frozen=True, eq=False)
class Grid:
    """The places of the working voxels in the patient and in the source."""

    geometry: Geometry  # of the source
    origin: Vector  # of voxel (0, 0, 0)
    axes: NDArray[np.float64]  # (3, 3): directions of z, y, x
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, geometry: Geometry) -> "Grid":
        """The grid that covers all slices of a stack that is nearly axial."""
        along_row, along_column = geometry.orientation
        is_transposed = abs(along_row[0]) < abs(along_row[1])
        x, y = (along_column, along_row) if is_transposed else (along_row, along_column)
        axes = np.stack([geometry.normal, y, x])
        axes *= np.sign(axes[[0, 1, 2], [2, 1, 0]])[:, None]
        corners = np.concatenate(
            [
                geometry.positions
                + row * geometry.pixel_spacing[0] * along_column
                + column * geometry.pixel_spacing[1] * along_row
                for row in (0, geometry.rows - 1)
                for column in (0, geometry.columns - 1)
            ]
        )
        places = corners @ axes.T
        first, last = places.min(axis=0), places.max(axis=0)
        z, y_, x_ = (int(np.floor(side + 1e-6)) + 1 for side in last - first)
        return cls(geometry, first @ axes, axes, (z, y_, x_))

    def patient(self, voxels: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 3) places in the patient (LPS, mm) of (n, 3) voxels."""
        return np.asarray(self.origin + voxels @ self.axes)

    def voxels(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 3) voxels of (n, 3) places in the patient."""
        return np.asarray((places - self.origin) @ self.axes.T)

    @cached_property
    def heights(self) -> NDArray[np.float64]:
        """(slices,): the working z of each slice of the source."""
        return np.asarray((self.geometry.positions - self.origin) @ self.axes[0])

    def to_pixel(self, index: int) -> NDArray[np.float64]:
        """(2, 3): from working (x, y) to (column, row) of a slice of the source."""
        along_row, along_column = self.geometry.orientation
        row_mm, column_mm = self.geometry.pixel_spacing
        directions = np.stack([along_row / column_mm, along_column / row_mm])
        turn = directions @ np.stack([self.axes[2], self.axes[1]]).T
        start = self.origin + self.heights[index] * self.axes[0] - self.geometry.positions[index]
        return np.column_stack([turn, directions @ start])

    def resampled(self, read: Read) -> Hu:
        """The stack on the working grid; each slice is read once."""
        result = np.empty(self.shape, np.int16)
        order = np.argsort(self.heights)
        below, above = 0, min(1, len(order) - 1)
        planes = {index: self._plane(read, int(order[index])) for index in {below, above}}
        for z in range(self.shape[0]):
            while above < len(order) - 1 and self.heights[order[above]] < z:
                below, above = above, above + 1
                planes = {below: planes[below], above: self._plane(read, int(order[above]))}
            low, high = (self.heights[order[index]] for index in (below, above))
            share = np.clip((z - low) / (high - low), 0.0, 1.0) if high > low else 0.0
            mixed = cv2.addWeighted(planes[below], 1.0 - share, planes[above], share, 0.0)
            result[z] = np.rint(mixed)
        return result

    def _plane(self, read: Read, index: int) -> Plane:
        plane = np.clip(read(index), AIR_HU, MOST_HU).astype(np.float32)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        size = self.shape[2], self.shape[1]
        moved = cv2.warpAffine(
            plane, self.to_pixel(index), size, flags=flags, borderValue=(AIR_HU,)
        )
        return np.asarray(moved, np.float32)

    def on_source(self, labels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        """The slices of the source in their order, each pixel with the label that it lies in."""
        size = self.geometry.columns, self.geometry.rows
        for index, height in enumerate(self.heights):
            z = int(np.clip(np.rint(height), 0, self.shape[0] - 1))
            plane = np.zeros(size[::-1], np.uint8)
            for label in np.unique(labels[z][labels[z] > 0]).tolist():
                own = (labels[z] == label).astype(np.float32)
                moved = cv2.warpAffine(own, self.to_pixel(index), size, flags=cv2.INTER_LINEAR)
                plane[moved >= 0.5] = label
            yield plane
