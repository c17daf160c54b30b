"""Made thin series for the tests of the evaluation, in memory and as files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inference.training.data import ThinSeries
from inference.volume import Geometry, Plane
from tests.models.stacks import made_geometry, made_plane


def thin_series(
    planes: Sequence[Plane], geometry: Geometry, *, name: str = "made", trained_on: bool = False
) -> ThinSeries:
    """Planes as a series; they are stored as they are."""

    def read(index: int) -> Plane:
        return np.array(planes[index], np.float32)

    return ThinSeries(name, trained_on, geometry, read, lambda plane, *_: plane)


def ramp(slices: int = 13, gap_mm: float = 1.0) -> ThinSeries:
    """Every pixel changes evenly along z, each at its own pace: linear interpolation is exact."""
    geometry = made_geometry(slices, 48, 48, gaps_mm=gap_mm)
    pace = np.linspace(-8.0, 8.0, 48 * 48, dtype=np.float32).reshape(48, 48)
    planes = [np.float32(40.0) + pace * np.float32(z) for z in geometry.distances_mm]
    return thin_series(planes, geometry)


def sheared(slices: int = 13) -> ThinSeries:
    """A column that stands straight in the patient while the stack leans by a pixel a slice."""
    geometry = made_geometry(slices, 64, 64, gaps_mm=1.0, shear_mm=0.7, pixel_mm=0.7)
    y, x = np.mgrid[:64, :64].astype(np.float32)
    planes = []
    for index in range(slices):
        away = np.hypot(y - 38.0 + index, x - 32.0)
        planes.append(np.asarray(-1000.0 + 1040.0 * np.exp(-((away / 9.0) ** 2)), np.float32))
    return thin_series(planes, geometry, name="sheared")


def drifting(slices: int = 25, *, name: str = "drifting") -> ThinSeries:
    """A bony ring around soft tissue that drifts and grows along z, with noise."""
    geometry = made_geometry(slices, 80, 80, gaps_mm=1.0)
    planes = [made_plane(geometry, 3.0 * z, noise_hu=8.0, seed=z) for z in range(slices)]
    return thin_series([np.rint(plane) for plane in planes], geometry, name=name)


def write_npz(folder: Path, series: ThinSeries, spacing_mm: float = 1.0) -> Path:
    """The series as a volume.npz of a folder with its name."""
    place = folder / series.name
    place.mkdir(parents=True)
    hu = np.stack([series.read(index) for index in range(len(series))]).astype(np.int16)
    np.savez(place / "volume.npz", hu=hu, spacing_mm=np.array([spacing_mm, 0.7, 0.7]))
    return place
