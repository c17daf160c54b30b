"""A series as the demo looks at it: read and decoded by itself, without the node's own code."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

SAME_PLACE_MM = 0.01

Hounsfield = NDArray[np.float64]  # (rows, columns)


@dataclass(frozen=True, eq=False)
class Series:
    """The instances of one series in ascending order along their common normal."""

    instances: tuple[Dataset, ...]
    heights_mm: NDArray[np.float64]  # (instances,): along the normal

    @classmethod
    def read(cls, paths: Sequence[Path]) -> "Series":
        """The series in Part 10 files, whatever their names and their order."""
        instances = [dcmread(path) for path in paths]
        return cls.of(instances)

    @classmethod
    def of(cls, instances: Sequence[Dataset]) -> "Series":
        """The series of these data sets."""
        if not instances:
            raise ValueError("a series without instances")
        row, column = np.array(instances[0].ImageOrientationPatient, float).reshape(2, 3)
        normal = np.cross(row, column)
        heights = np.array([np.array(i.ImagePositionPatient, float) @ normal for i in instances])
        order = np.argsort(heights, kind="stable")
        return cls(tuple(instances[i] for i in order), heights[order])

    def __len__(self) -> int:
        return len(self.instances)

    @cached_property
    def positions(self) -> NDArray[np.float64]:
        """(instances, 3): Image Position (Patient), mm."""
        return np.array([i.ImagePositionPatient for i in self.instances], float)

    @cached_property
    def gap_mm(self) -> float:
        """The usual distance between neighbours; 0 for a single slice."""
        return float(np.median(np.diff(self.heights_mm))) if len(self) > 1 else 0.0

    @cached_property
    def pixel_spacing_mm(self) -> tuple[float, float]:
        """Between rows, between columns."""
        rows, columns = self.instances[0].PixelSpacing
        return float(rows), float(columns)

    @property
    def series_uid(self) -> str:
        """Of the first instance."""
        return str(self.instances[0].SeriesInstanceUID)

    def hounsfield(self, index: int) -> Hounsfield:
        """One slice in HU."""
        instance = self.instances[index]
        stored = instance.pixel_array.astype(np.float64)
        return stored * float(instance.RescaleSlope) + float(instance.RescaleIntercept)

    def volume(self) -> NDArray[np.int16]:
        """(instances, rows, columns) HU, rounded: enough for a picture, half the memory."""
        first = self.hounsfield(0)
        whole = np.empty((len(self), *first.shape), np.int16)
        for index in range(len(self)):
            whole[index] = np.clip(np.rint(self.hounsfield(index)), -32768, 32767)
        return whole

    def at(self, height_mm: float) -> int | None:
        """The index of the slice at that height, where there is one."""
        nearest = int(np.argmin(np.abs(self.heights_mm - height_mm)))
        return nearest if abs(self.heights_mm[nearest] - height_mm) < SAME_PLACE_MM else None
