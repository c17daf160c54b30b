"""A chest for the tests of the nodule model: a body with two lungs, airways, a vessel, nodules."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.volume import Geometry

SLICES, GAP, SIDE, PIXEL = 62, 2.0, 84, 2.4  # mm
BODY_HU, LUNG_HU, AIR_HU = 40.0, -850.0, -1000.0
HIGH = (SLICES - 1) * GAP / 2.0  # mm from the middle to either end

Hu = NDArray[np.float32]


@dataclass(frozen=True)
class Ball:
    """A nodule: its place in the patient (mm from the middle of the chest), radius and density."""

    x: float
    y: float
    z: float
    radius: float
    hu: float = 40.0

    @property
    def place(self) -> tuple[float, float, float]:
        return self.x, self.y, self.z


FREE = Ball(-46.0, 15.0, 10.0, 6.0)  # in the right lung
PLEURAL = Ball(56.0, 41.0, -20.0, 6.0)  # in the left one, at the chest wall
NODULES = (FREE, PLEURAL)


def geometry(slices: int = SLICES, gap: float = GAP) -> Geometry:
    """Axial slices from the base up, the middle of the chest at the origin."""
    positions = np.zeros((slices, 3))
    positions[:, :2] = -(SIDE - 1) / 2.0 * PIXEL
    positions[:, 2] = (np.arange(slices) - (slices - 1) / 2.0) * gap
    return Geometry(
        positions=positions,
        orientation=np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        pixel_spacing=(PIXEL, PIXEL),
        rows=SIDE,
        columns=SIDE,
        thickness_mm=gap,
    )


def chest(balls: Sequence[Ball] = NODULES, *, lungs: Sequence[int] = (-1, 1)) -> Hu:
    """(slices, rows, columns) HU of that geometry; a side of `lungs` is -1 right or 1 left."""
    places = (np.arange(SIDE) - (SIDE - 1) / 2.0) * PIXEL
    z = ((np.arange(SLICES) - (SLICES - 1) / 2.0) * GAP)[:, None, None]
    y, x = places[None, :, None], places[None, None, :]
    hu = np.full((SLICES, SIDE, SIDE), AIR_HU, np.float32)
    hu[np.broadcast_to((x / 96.0) ** 2 + (y / 72.0) ** 2 < 1.0, hu.shape)] = BODY_HU
    for side in lungs:
        inside = ((x - side * 51.0) / 33.0) ** 2 + (y / 52.0) ** 2 + (z / 66.0) ** 2 < 1.0
        hu[inside] = LUNG_HU
        vessel = np.hypot(x - side * 51.0, y + 20.0) < 2.0
        hu[inside & vessel] = BODY_HU
    for centre, low, high in ((0.0, 0.0, HIGH), (-9.0, -25.0, 2.0), (9.0, -25.0, 2.0)):
        tube = (np.hypot(x - centre, y - 10.0) < 6.0) & (z >= low) & (z <= high)
        hu[tube] = AIR_HU
    for ball in balls:
        far = np.sqrt((x - ball.x) ** 2 + (y - ball.y) ** 2 + (z - ball.z) ** 2)
        share = np.clip((ball.radius - far) / 2.0 + 0.5, 0.0, 1.0)
        drawn = share * (ball.hu - LUNG_HU) + LUNG_HU
        hu = np.where(share > 0.0, np.maximum(hu, drawn), hu)
    noise = np.random.default_rng(1).normal(0.0, 15.0, hu.shape)
    return np.asarray(hu + noise, np.float32)
