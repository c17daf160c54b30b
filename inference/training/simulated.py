"""Simulated nodules: bodies that are drawn into real lungs, in the slices of the source.

They stand in for what few scans hold: small nodules, and other densities. They are smooth bodies
with lobes, some with spicules; what a figure says of them it says of simulated ones only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from inference.models.nodule.grid import Grid, Hu
from inference.volume import Geometry

Kind = Literal["solid", "part-solid", "ground glass", "spiculated"]
Attached = Literal["", "pleura", "vessel"]
KINDS: tuple[Kind, ...] = ("solid", "solid", "spiculated", "part-solid", "ground glass")
ATTACHED: tuple[Attached, ...] = ("", "", "pleura", "vessel")

DIAMETERS_MM, LARGE_MM, LARGE_SHARE = (4.0, 20.0), (20.0, 28.0), 0.08
SOLID_HU, GLASS_HU = (20.0, 60.0), (-600.0, -300.0)
EDGE_MM = (0.3, 0.6)  # how softly the body ends
FLATTEST = 0.75  # shortest axis over the mean one
LOBES, LOBE_SHARE = (2, 6), 0.18
SPICULES, SPICULE_REACH, SPICULE_MM = (8, 16), (1.4, 2.0), 0.9
CORE = (0.35, 0.6)  # of the diameter, in a part-solid one
PLEURAL_DEPTH = (0.3, 0.8)  # of the radius, from the pleura to the centre
VESSEL_HU, PARENCHYMA_HU = -400.0, -600.0
APART_MM = 10.0  # between the surfaces of two, and from what readers marked
SEEN = 0.5  # share of a body that must lie in what was lung
END_MM = 8.0  # from the first and the last slice
TRIES = 40  # for each body

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Simulated:
    """A body that was drawn; its measures are those of what is seen of it."""

    centre: tuple[float, float, float]  # LPS, mm
    diameter_mm: float  # of a sphere of the same volume
    kind: Kind
    attached: Attached


@dataclass(frozen=True)
class Body:
    """The surface of a nodule, as its radius in each direction, and its spicules."""

    radius_mm: float
    stretch: Floats  # (3,) of its axes
    lobes: Floats  # (n, 4): direction and height
    spicules: Floats  # (n, 4): direction and length in mm
    edge_mm: float

    @classmethod
    def drawn(cls, radius_mm: float, random: Generator, *, spiculated: bool) -> "Body":
        stretch = random.uniform(FLATTEST, 1.0 / FLATTEST, 3)
        stretch /= np.prod(stretch) ** (1.0 / 3.0)
        heights = random.uniform(-LOBE_SHARE, LOBE_SHARE, random.integers(*LOBES))
        reach = radius_mm * random.uniform(*SPICULE_REACH, random.integers(*SPICULES)) + 1.0
        spicules = np.column_stack([_directions(len(reach), random), reach])
        return cls(
            radius_mm,
            stretch,
            np.column_stack([_directions(len(heights), random), heights]),
            spicules if spiculated else np.zeros((0, 4)),
            random.uniform(*EDGE_MM),
        )

    def inside(self, points: Floats, share: float = 1.0) -> Floats:
        """0 to 1 at (..., 3) places from the centre, of the body shrunk to a share."""
        far = np.linalg.norm(points / self.stretch, axis=-1)
        towards = points / np.maximum(np.linalg.norm(points, axis=-1, keepdims=True), 1e-6)
        radius = np.full(far.shape, self.radius_mm * share)
        for *direction, height in self.lobes:
            radius *= 1.0 + height * np.maximum(0.0, towards @ np.array(direction)) ** 2
        result = _soft((radius - far) / self.edge_mm)
        for *direction, length in self.spicules:
            along = points @ np.array(direction)
            across = np.linalg.norm(points - along[..., None] * np.array(direction), axis=-1)
            width = np.where(along > 0.0, SPICULE_MM * (1.0 - along / length), -9.0)
            result = np.maximum(result, _soft((width - across) / self.edge_mm))
        return result


def _soft(depth: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(depth, -30.0, 30.0))))


def _directions(count: int, random: Generator) -> Floats:
    vectors = random.normal(size=(count, 3))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


@dataclass(frozen=True, eq=False)
class Lung:
    """What the drawing needs to know of a scan."""

    grid: Grid
    corner: Floats  # of what follows, on the working grid
    depth: NDArray[np.float32]  # mm from the border of the lung
    smooth: NDArray[np.float32]  # HU
    kept_free: Floats  # (n, 4): voxel and radius of what readers marked

    @classmethod
    def of(
        cls, grid: Grid, corner: Floats, hu: Hu, labels: NDArray[np.uint8], kept_free: Floats
    ) -> "Lung":
        depth = np.zeros(hu.shape, np.float32)
        smooth = np.full(hu.shape, -1000.0, np.float32)
        box = ndimage.find_objects((labels > 0).astype(np.uint8))[0]
        depth[box] = ndimage.distance_transform_edt(np.pad(labels[box] > 0, 1))[1:-1, 1:-1, 1:-1]
        smooth[box] = ndimage.gaussian_filter(hu[box].astype(np.float32), 1.0)
        return cls(grid, corner, depth, smooth, kept_free)


def simulate(
    planes: NDArray[np.int16], geometry: Geometry, lung: Lung, count: int, random: Generator
) -> tuple[NDArray[np.int16], list[Simulated]]:
    """A copy of the slices with up to `count` bodies in the lungs, and these bodies."""
    result = planes.copy()
    taken = lung.kept_free
    bodies = []
    for _ in range(count):
        kind = KINDS[random.integers(len(KINDS))]
        attached = ATTACHED[random.integers(len(ATTACHED))]
        radius = _radius(random)
        place = _place(lung, radius, attached, taken, random)
        if place is None:
            continue
        body = Body.drawn(radius, random, spiculated=kind == "spiculated")
        centre = lung.grid.patient(lung.corner + place[None])[0]
        drawn = _draw(result, geometry, centre, body, kind, random)
        if drawn is None:
            continue
        where, diameter = drawn
        bodies.append(Simulated(where, diameter, kind, attached))
        taken = np.vstack([taken, [*place, radius]])
    return result, bodies


def _radius(random: Generator) -> float:
    """Small ones are as frequent as large ones in each doubling."""
    low, high = LARGE_MM if random.random() < LARGE_SHARE else DIAMETERS_MM
    return float(np.exp(random.uniform(np.log(low), np.log(high))) / 2.0)


def _place(
    lung: Lung, radius: float, attached: Attached, taken: Floats, random: Generator
) -> Floats | None:
    """A voxel where it may lie; None where a few tries find none."""
    end = END_MM
    deep = len(lung.depth)
    if attached == "pleura":
        low, high = (max(0.7, share * radius) for share in PLEURAL_DEPTH)
        is_fit = (lung.depth >= low) & (lung.depth <= high + 0.5)
    elif attached == "vessel":
        is_fit = (lung.depth > radius + 4.0) & (lung.smooth > VESSEL_HU)
    else:
        is_fit = (lung.depth > radius + 2.0) & (lung.smooth < PARENCHYMA_HU)
    places = np.flatnonzero(is_fit)
    for number in random.choice(places, TRIES) if len(places) else ():
        place = np.array(np.unravel_index(number, is_fit.shape), float)
        if attached == "vessel":
            place = place + _directions(1, random)[0] * radius * 0.9
        far = np.linalg.norm(taken[:, :3] - place, axis=1) - taken[:, 3] - radius
        if end <= place[0] < deep - end and (far > APART_MM).all():
            return place
    return None


def _draw(
    planes: NDArray[np.int16],
    geometry: Geometry,
    centre: Floats,
    body: Body,
    kind: Kind,
    random: Generator,
) -> tuple[tuple[float, float, float], float] | None:
    """Draw a body; its seen centre and diameter, or None where too little would be seen."""
    block, places = _around(geometry, centre, 2.2 * body.radius_mm + 4.0)
    points = places - centre
    gap = float(np.median(geometry.gaps_mm))
    thick = min(geometry.thickness_mm or gap, 2.0 * gap)
    parts = [points + share * thick * geometry.normal for share in (-1 / 3, 0.0, 1 / 3)]
    share = cast(Floats, np.mean([body.inside(part) for part in parts], axis=0))
    hu = planes[block].astype(np.float64)
    sigma = 0.3, 1.0 / geometry.pixel_spacing[0], 1.0 / geometry.pixel_spacing[1]
    smooth = ndimage.gaussian_filter(hu, sigma)
    was_lung = (share >= 0.5) & (smooth < PARENCHYMA_HU + 100.0)
    if was_lung.sum() < SEEN * (share >= 0.5).sum() or was_lung.sum() < 3:
        return None
    is_glass = kind in ("ground glass", "part-solid")
    target = share * (random.uniform(*(GLASS_HU if is_glass else SOLID_HU)) - smooth)
    if kind == "part-solid":
        size = random.uniform(*CORE)
        core = np.mean([body.inside(part, size) for part in parts], axis=0)
        target = np.maximum(target, core * (random.uniform(*SOLID_HU) - smooth))
    planes[block] = np.rint(hu + np.maximum(target, 0.0)).astype(np.int16)
    weights = share * was_lung
    x, y, z = (weights[..., None] * places).sum(axis=(0, 1, 2)) / weights.sum()
    voxel_mm3 = gap * geometry.pixel_spacing[0] * geometry.pixel_spacing[1]
    volume = float((share * (smooth < PARENCHYMA_HU + 100.0)).sum()) * voxel_mm3
    return (float(x), float(y), float(z)), float(np.cbrt(6.0 * volume / np.pi))


def _around(
    geometry: Geometry, centre: Floats, reach: float
) -> tuple[tuple[slice, slice, slice], Floats]:
    """The block of a stack around a place, and the places of its pixels in the patient."""
    along_row, along_column = geometry.orientation
    near = int(np.argmin(np.abs(geometry.distances_mm - centre @ geometry.normal)))
    offset = centre - geometry.positions[near]
    middles: Sequence[float] = (
        float(offset @ along_column) / geometry.pixel_spacing[0],
        float(offset @ along_row) / geometry.pixel_spacing[1],
    )
    is_near = np.abs(geometry.distances_mm - centre @ geometry.normal) <= reach
    slices = np.flatnonzero(is_near)
    rows, columns = (
        np.arange(max(0, int(middle - reach / step)), min(size, int(middle + reach / step) + 2))
        for middle, step, size in zip(
            middles, geometry.pixel_spacing, (geometry.rows, geometry.columns), strict=True
        )
    )
    block = tuple(slice(int(axis[0]), int(axis[-1]) + 1) for axis in (slices, rows, columns))
    places = (
        geometry.positions[slices][:, None, None]
        + (rows * geometry.pixel_spacing[0])[None, :, None, None] * along_column
        + (columns * geometry.pixel_spacing[1])[None, None, :, None] * along_row
    )
    return cast(tuple[slice, slice, slice], block), places
