"""Trachea and main bronchi of a chest at 1 mm: a chain of round holes, grown until it leaks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference.models.nodule.grid import Hu, Mask, Voxel

TRACHEA_HU = -800
TRACHEA_MM2 = (50.0, 800.0)
ROUND = 0.8  # area over that of its hull
NEAR_MIDDLE_MM = 45.0
MOST_STEP_MM = 6.0  # from one slice to the next
LEAST_TRACHEA_MM = 20

AIRWAY_HU = (-970, -950, -930, -910, -890, -870)  # the highest that does not leak is taken
MOST_AIRWAY_ML = 120.0
AROUND_MM = (80, 60, 150)  # reach of the main bronchi: to the side, to front and back, down
SMOOTHING_MM = 1.0
WALL_MM = 2
BRONCHUS_MM2, BRONCHI_APART_MM = 30.0, 60.0
LEAST_DIVIDED_MM = 4  # over which two parts stay two


@dataclass(frozen=True, eq=False)
class Airways:
    """The lumen with its wall, in a box of the working grid."""

    wall: Mask
    corner: tuple[int, int, int]
    carina: Voxel | None

    def mask(self, z: int, shape: tuple[int, ...]) -> Mask:
        """(y, x) of a slice of the whole grid."""
        whole = np.zeros(shape, bool)
        own = z - self.corner[0]
        if 0 <= own < len(self.wall):
            _, high, wide = self.wall.shape
            y, x = self.corner[1:]
            whole[y : y + high, x : x + wide] = self.wall[own]
        return whole

    def masks(self, shape: tuple[int, ...]) -> Iterator[tuple[int, Mask]]:
        for z in range(self.corner[0], self.corner[0] + len(self.wall)):
            yield z, self.mask(z, shape)


NO_AIRWAYS = Airways(np.zeros((0, 0, 0), bool), (0, 0, 0), None)


@dataclass(frozen=True)
class Hole:
    """A round region of air in one slice."""

    z: int
    y: float
    x: float

    def follows(self, other: "Hole") -> bool:
        return abs(self.y - other.y) + abs(self.x - other.x) <= MOST_STEP_MM


def find_airways(hu: Hu, inner: Mask, middle: float) -> Airways:
    """The airways under the longest chain of holes near the middle of the body."""
    trachea = _trachea(hu, inner, middle)
    if len(trachea) < LEAST_TRACHEA_MM:
        return NO_AIRWAYS
    box = _box(trachea, hu.shape)
    corner = tuple(side.start for side in box)
    smooth = ndimage.gaussian_filter(hu[box].astype(np.float32), SMOOTHING_MM)
    lumen = _grown(smooth, inner[box], [_inside(hole, corner) for hole in trachea])
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * WALL_MM + 1,) * 2)
    wall = np.stack([cv2.dilate(plane.astype(np.uint8), disc) > 0 for plane in lumen])
    carina = _carina(lumen, _inside(trachea[0], corner))
    if carina is not None:
        carina = (carina[0] + corner[0], carina[1] + corner[1], carina[2] + corner[2])
    return Airways(wall, (corner[0], corner[1], corner[2]), carina)


def _inside(hole: Hole, corner: Sequence[int]) -> tuple[int, int, int]:
    return hole.z - corner[0], round(hole.y) - corner[1], round(hole.x) - corner[2]


def _trachea(hu: Hu, inner: Mask, middle: float) -> list[Hole]:
    """The longest chain of holes, from the head down."""
    chains: list[list[Hole]] = []
    best: list[Hole] = []
    for z in range(len(hu) - 1, -1, -1):
        going_on: list[list[Hole]] = []
        for hole in _holes(hu[z], inner[z], z, middle):
            before = [chain for chain in chains if hole.follows(chain[-1])]
            chain = [*max(before, key=len, default=[]), hole]
            going_on.append(chain)
            best = max(best, chain, key=len)
        chains = going_on
    return best


def _holes(plane: NDArray[np.int16], inner: Mask, z: int, middle: float) -> Iterator[Hole]:
    smooth = cv2.blur(plane.astype(np.float32), (3, 3))
    air = ((smooth < TRACHEA_HU) & inner).astype(np.uint8)
    first = max(0, int(middle - NEAR_MIDDLE_MM))
    air[:, :first] = 0
    air[:, int(middle + NEAR_MIDDLE_MM) :] = 0
    count, labels, stats, centres = cv2.connectedComponentsWithStats(air, connectivity=4)
    for number in range(1, count):
        area = stats[number, cv2.CC_STAT_AREA]
        if not TRACHEA_MM2[0] <= area <= TRACHEA_MM2[1]:
            continue
        points = np.argwhere(labels == number)[:, ::-1].astype(np.int32)
        hull = cv2.convexHull(points)
        around = cv2.contourArea(hull) + cv2.arcLength(hull, closed=True) / 2.0 + 1.0
        if area / around >= ROUND:
            x, y = centres[number]
            yield Hole(z, float(y), float(x))


def _box(trachea: Sequence[Hole], shape: tuple[int, ...]) -> tuple[slice, slice, slice]:
    to_side, to_back, down = AROUND_MM
    y = [hole.y for hole in trachea]
    x = [hole.x for hole in trachea]
    ends = (
        (trachea[-1].z - down, trachea[0].z),
        (min(y) - to_back, max(y) + to_back),
        (min(x) - to_side, max(x) + to_side),
    )
    z, y_, x_ = (
        slice(max(0, int(first)), min(size, int(last) + 1))
        for (first, last), size in zip(ends, shape, strict=True)
    )
    return z, y_, x_


def _grown(smooth: NDArray[np.float32], inner: Mask, seeds: Sequence[tuple[int, ...]]) -> Mask:
    """The component of the seeds at the highest threshold at which it does not fill a lung."""
    lumen = np.zeros(smooth.shape, bool)
    for threshold in AIRWAY_HU:
        labels, _ = ndimage.label((smooth < threshold) & inner)
        numbers = np.unique([labels[seed] for seed in seeds])
        grown = np.isin(labels, numbers[numbers > 0])
        if grown.sum() > MOST_AIRWAY_ML * 1000.0:
            break
        lumen = grown
    return lumen


def _carina(lumen: Mask, top: Voxel) -> Voxel | None:
    """The middle between two parts where one becomes two and stays so."""
    centre = np.array(top[1:], float)
    divided: list[tuple[float, float, float]] = []
    for z in range(int(top[0]), -1, -1):
        count, _, stats, centres = cv2.connectedComponentsWithStats(lumen[z].astype(np.uint8))
        large = [n for n in range(1, count) if stats[n, cv2.CC_STAT_AREA] >= BRONCHUS_MM2]
        points = np.array([centres[n][::-1] for n in large]).reshape(-1, 2)
        near = points[np.hypot(*(points - centre).T) < BRONCHI_APART_MM / 2.0]
        if len(near) == 1:
            centre, divided = near[0], []
        elif len(near) >= 2:
            y, x = near.mean(axis=0)
            divided.append((float(z), float(y), float(x)))
            if len(divided) >= LEAST_DIVIDED_MM:
                return divided[0]
    return None
