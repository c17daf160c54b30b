"""Made stacks for the tests of models: a bony ring around soft tissue that drifts along z."""

from collections.abc import Sequence

import numpy as np

from inference.model import Step, Window
from inference.volume import Geometry, Plane

AXIAL = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def made_geometry(
    slices: int,
    rows: int = 64,
    columns: int = 64,
    *,
    gaps_mm: Sequence[float] | float = 5.0,
    shear_mm: float = 0.0,
    pixel_mm: float = 0.7,
) -> Geometry:
    """An axial stack; with `shear_mm` each slice lies that much further along the column."""
    gaps = [gaps_mm] * (slices - 1) if isinstance(gaps_mm, float) else list(gaps_mm)
    positions = np.zeros((slices, 3))
    positions[1:, 2] = np.cumsum(gaps)
    positions[:, 1] = np.arange(slices) * shear_mm
    return Geometry(positions, AXIAL, (pixel_mm, pixel_mm), rows, columns, thickness_mm=2.5)


def made_plane(geometry: Geometry, z_mm: float, *, noise_hu: float = 0.0, seed: int = 0) -> Plane:
    """The body at height z: everything moves 0.1 pixel per mm and grows with z."""
    rows, columns = geometry.rows, geometry.columns
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    drift = np.float32(0.1 * z_mm)
    away = np.hypot(y - rows / 2 - drift, x - columns / 2 - drift)
    radius = np.float32(min(rows, columns) * 0.33 + 0.05 * z_mm)
    plane = np.full((rows, columns), -1000.0, np.float32)
    plane += 1040.0 * np.clip(radius + 2.0 - away, 0.0, 1.0)
    plane += 700.0 * np.clip(1.5 - np.abs(away - radius), 0.0, 1.0)
    random = np.random.default_rng(seed)
    plane += np.float32(noise_hu) * random.standard_normal(plane.shape, dtype=np.float32)
    return plane


def made_planes(geometry: Geometry, *, noise_hu: float = 10.0) -> list[Plane]:
    """Every slice of a stack; read-only, as a model gets them."""
    planes = []
    for index, z in enumerate(geometry.distances_mm):
        plane = made_plane(geometry, float(z), noise_hu=noise_hu, seed=index)
        plane.flags.writeable = False
        planes.append(plane)
    return planes


def window_of(geometry: Geometry, planes: Sequence[Plane], step: Step) -> Window:
    """What the runner hands a model for a step: the slices it needs and no others."""
    return Window(geometry, {index: planes[index] for index in step.needs})
