"""Right and left lung of a chest at 1 mm: air, components, airways taken out, closed at the pleura.

The closing lets vessels, and nodules at the pleura, lie inside. Lobes are not attempted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference.models.nodule.airways import NO_AIRWAYS, Airways, find_airways
from inference.models.nodule.grid import AIR_HU, Hu, Mask, Voxel

LUNG_HU = -320
LEAST_LUNG_ML = 300.0
GAS_HU, MOST_GAS = -950, 0.85  # share of a component: above it, bowel
ONE_SIDED = 0.75  # of a lung lies on its own side of the middle; two that are joined do not
STRIP_MM = 40  # to either side of the middle: where they are parted
GREY_HU = 3  # a step of grey there
CLOSING_MM = 8
SOFT_HU, BODY_SHARE = -200, 0.05  # of the voxels along a column: it belongs to the body

RIGHT, LEFT = 1, 2
Labels = NDArray[np.uint8]  # (z, y, x): 0, RIGHT or LEFT


@dataclass(frozen=True, eq=False)
class Lungs:
    """Both lungs on the working grid, closed, and the place where the trachea divides."""

    labels: Labels
    carina: Voxel | None

    def volume_ml(self, side: int) -> float:
        return float(np.count_nonzero(self.labels == side)) / 1000.0

    @property
    def height_mm(self) -> float:
        """The extent from base to apex."""
        planes = np.flatnonzero(self.labels.any(axis=(1, 2)))
        return float(np.ptp(planes) + 1) if planes.size else 0.0

    @property
    def is_whole(self) -> bool:
        """True where the scan begins below the lungs and ends above them."""
        return not (self.labels[0].any() or self.labels[-1].any())


def find_lungs(hu: Hu) -> Lungs:
    """The lungs of a chest; without any voxel where there are none."""
    inner, middle = inner_air(hu), middle_of(hu)
    airways = find_airways(hu, inner, middle) if inner.any() else NO_AIRWAYS
    for z, mask in airways.masks(hu.shape[1:]):
        inner[z][mask] = False
    labels = np.zeros(hu.shape, np.uint8)
    for side, part in _parts(hu, inner, middle):
        _close_into(labels, part, side, airways)
    return Lungs(labels, airways.carina)


def inner_air(hu: Hu) -> Mask:
    """Air and lung to which no way in the same slice leads from the border of the picture."""
    inner = np.empty(hu.shape, bool)
    for z, plane in enumerate(hu):
        air = (plane < LUNG_HU).astype(np.uint8)
        framed = np.pad(air, 1, constant_values=1)
        _, labels = cv2.connectedComponents(framed, connectivity=4)
        inner[z] = (air > 0) & (labels[1:-1, 1:-1] != labels[0, 0])
    return inner


def middle_of(hu: Hu) -> float:
    """The x of the middle of the body."""
    columns = np.flatnonzero((hu[::10] > SOFT_HU).mean(axis=(0, 1)) > BODY_SHARE)
    return float(columns.mean()) if columns.size else hu.shape[2] / 2.0


def _parts(hu: Hu, air: Mask, middle: float) -> Iterator[tuple[int, Mask]]:
    """(side, lung) of each part; a side may have several."""
    labels, _ = ndimage.label(air)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    boxes = ndimage.find_objects(labels)
    for number in np.flatnonzero(sizes >= LEAST_LUNG_ML * 1000.0).tolist():
        box = boxes[number - 1]
        own = labels[box] == number
        if (hu[box][own] < GAS_HU).mean() > MOST_GAS:
            continue
        for side, part in _divided(own, hu[box], middle - box[2].start):
            whole = np.zeros(air.shape, bool)
            whole[box] = part
            yield side, whole


def _divided(component: Mask, hu: Hu, middle: float) -> Iterator[tuple[int, Mask]]:
    """A component by itself, or its two sides where it lies on both.

    Between the lungs both sides are flooded; they meet at the brightest surface.
    """
    columns = component.sum(axis=(0, 1))
    right = float(columns[: max(0, round(middle))].sum() / columns.sum())
    if max(right, 1.0 - right) >= ONE_SIDED:
        yield (RIGHT if right > 0.5 else LEFT), component
        return
    sides = np.zeros(component.shape, np.uint8)
    first, last = max(1, round(middle) - STRIP_MM), min(len(columns) - 1, round(middle) + STRIP_MM)
    sides[..., :first], sides[..., last:] = RIGHT, LEFT
    strip = np.s_[..., first - 1 : last + 1]
    grey = np.clip((hu[strip] - AIR_HU) / GREY_HU, 0, 255).astype(np.uint8)
    grey[~component[strip]] = 255
    markers = (sides[strip] * component[strip]).astype(np.int16)
    sides[strip] = ndimage.watershed_ift(grey, markers)
    yield RIGHT, component & (sides == RIGHT)
    yield LEFT, component & (sides == LEFT)


def _close_into(labels: Labels, part: Mask, side: int, airways: Airways) -> None:
    """Close each slice, fill small holes, and add it to the labels where nothing else lies."""
    box = ndimage.find_objects(part.astype(np.uint8))[0]
    closed, holes = part[box].copy(), np.zeros(part[box].shape, bool)
    for z, plane in enumerate(closed):
        closed[z], holes[z] = _closed(plane)
    numbers, _ = ndimage.label(holes)
    boxes = enumerate(ndimage.find_objects(numbers), start=1)
    filled = [n for n, hole in boxes if _ends_below(numbers[hole] == n, hole, closed)]
    closed |= np.isin(numbers, filled)
    for z, plane in enumerate(closed, start=box[0].start):
        free = (labels[z][box[1:]] == 0) & ~airways.mask(z, labels.shape[1:])[box[1:]]
        labels[z][box[1:]][plane & free] = side


def _ends_below(hole: Mask, box: tuple[slice, ...], closed: Mask) -> bool:
    """True for a hole with lung under it, as under a nodule or a vessel; a diaphragm has none."""
    lowest = box[0].start
    under = closed[(lowest - 1, *box[1:])] if lowest > 0 else np.zeros(hole.shape[1:], bool)
    return bool(under[hole[0]].mean() > 0.5)


def _closed(plane: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(closed, its holes) of a slice."""
    border = CLOSING_MM + 1  # OpenCV closes against the border of a picture
    inside = np.s_[border:-border, border:-border]
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * CLOSING_MM + 1,) * 2)
    closed = cv2.morphologyEx(np.pad(plane.astype(np.uint8), border), cv2.MORPH_CLOSE, disc)
    outlines, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(closed.copy(), outlines, -1, (1,), cv2.FILLED)
    return closed[inside] > 0, (filled > closed)[inside]
