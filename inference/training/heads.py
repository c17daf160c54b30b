"""Heads to train and to judge brain extraction on, each with a reference mask.

A folder a head: `dicom/` with its slices and `brain.npz` with a mask (`brain`, slices x rows x
columns in the order of the file names).
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.dataset import newest, read_headers
from inference.geometry import Layout, arrange
from inference.models.brain.canonical import Turn
from inference.models.brain.mask import Mask
from inference.models.brain.unet import on_grid, prepared
from inference.mr import open_volume
from inference.pixels import PixelReader
from inference.training.data import NoSeries
from inference.volume import Geometry

MASK_FILE, SLICES = "brain.npz", "dicom"
Grid = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Head:
    """One head and its mask; its volume is read when it is asked for."""

    name: str
    folder: Path

    @cached_property
    def layout(self) -> Layout:
        return arrange(newest(read_headers(self._files())))

    @property
    def geometry(self) -> Geometry:
        return self.layout.geometry

    def volume(self) -> Grid:
        """(slices, rows, columns), scanner units."""
        volume = open_volume(self.layout, PixelReader())
        return np.stack([volume.read(index) for index in range(len(volume))])

    def mask(self) -> Mask:
        """The reference, in the axes of the volume."""
        with np.load(self.folder / MASK_FILE) as file:
            mask = np.asarray(file["brain"] > 0)
        files = self._files()
        return mask[[files.index(header.path) for header in self.layout.headers]]

    def on_grid(self) -> tuple[Grid, Grid]:
        """(what the network sees, the share of brain of each voxel), canonical, at 2 mm."""
        turn = Turn.of(self.geometry)
        mask = on_grid(turn.turned(self.mask().astype(np.float32)), turn.spacing_mm)
        return prepared(turn.turned(self.volume()), turn.spacing_mm), mask

    def _files(self) -> list[Path]:
        return sorted((self.folder / SLICES).glob("*.dcm"))


def load_heads(data: Path) -> tuple[Head, ...]:
    """Every head below a folder; raises NoSeries where there is none."""
    folders = sorted(path.parent for path in data.rglob(MASK_FILE))
    heads = tuple(Head(f.name, f) for f in folders if (f / SLICES).is_dir())
    if not heads:
        raise NoSeries(f"{data}: no folder in it has {MASK_FILE} and {SLICES}/")
    return heads
