"""The figures of what a reader looks at: vessels, small nodules, edges and noise.

Vessels are bright ridges in the lung by the Hessian (Sato et al., 1998), the stronger curvature of
three scales; a pixel beside another counts as the same. Nodules are simulated: smooth solid bodies
of 4 to 10 mm, drawn into the thin slices with their centres anywhere in the slice that is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from scipy import ndimage

from inference.training.data import ThinSeries
from inference.training.leave_out import LeaveOutStack, Target
from inference.training.metrics import LEAST_FLAT_PIXELS, Mask, TruthSlice
from inference.training.simulated import Body
from inference.volume import Plane

VESSEL_SCALES_MM = (1.0, 1.5, 2.0)
VESSEL_HU = 60.0  # second derivative times the square of the scale
CLOSED_MM, EDGE_MM = 5.0, 3.0  # vessels belong to the lung, its border does not
BESIDE = np.ones((3, 3), bool)

DIAMETERS_MM = (4.0, 6.0, 8.0, 10.0)
NODULE_HU = 40.0
FREE_MM, APART_MM = 3.0, 8.0  # from the border of the lung, and between the surfaces of two
TRIES = 60
CORE = 0.6  # of the radius: where contrast is measured
NEAR_MM = 2.0  # of the place of a nodule, where the detector may find it
# Of the Laplacian of a Gaussian that fits the nodule: a quarter of what a solid one gives.
FOUND_HU = 160.0
SEED = 2026

# Gaussians in pixels between which an octave of the noise lies, fine to coarse.
OCTAVES = ((0.0, 1.0), (1.0, 2.0), (2.0, 4.0))


@dataclass(frozen=True)
class NoduleFigures:
    """The simulated nodules of one diameter on one method's slices."""

    diameter_mm: float
    nodules: int
    found_in_truth: float  # share, by the same detector
    found: float
    contrast: float  # mean, over that in the truth


@dataclass(frozen=True)
class ReaderFigures:
    """What a reader looks at, of one method on one cell."""

    vessels_kept: float | None  # share of the truth's vessel pixels
    vessels_invented: float | None  # share of its own
    nodules: tuple[NoduleFigures, ...]
    edge_sharpness: float | None  # gradient on the truth's edges, over the truth's
    noise_power: tuple[float | None, ...]  # by octave, fine to coarse, over the truth's
    laa_950_off: float | None

    @property
    def nodules_found(self) -> float | None:
        """Share over all diameters."""
        total = sum(of.nodules for of in self.nodules)
        return sum(of.found * of.nodules for of in self.nodules) / total if total else None

    @property
    def nodule_contrast(self) -> float | None:
        total = sum(of.nodules for of in self.nodules)
        return sum(of.contrast * of.nodules for of in self.nodules) / total if total else None


def vessels_of(plane: Plane, lung: Mask, pixel_mm: float) -> Mask:
    """Bright ridges and dots in the lung."""
    vessels = np.zeros(plane.shape, bool)
    inside = np.argwhere(lung)
    if not len(inside):
        return vessels
    room = int(4.0 * max(VESSEL_SCALES_MM) / pixel_mm) + 1  # farther than a Gaussian reaches
    (top, left), (bottom, right) = inside.min(0) - room, inside.max(0) + room + 1
    part = slice(max(0, top), bottom), slice(max(0, left), right)
    vessels[part] = lung[part] & (_ridges_hu(plane[part], pixel_mm) > VESSEL_HU)
    return vessels


def _ridges_hu(plane: Plane, pixel_mm: float) -> Plane:
    """The strongest downward curvature of three scales, times the square of the scale."""
    strongest = np.zeros(plane.shape, np.float32)
    for scale_mm in VESSEL_SCALES_MM:
        sigma = scale_mm / pixel_mm
        orders = ((2, 0), (0, 2), (1, 1))
        down, across, mixed = (
            sigma**2 * ndimage.gaussian_filter(plane, sigma, order, truncate=3.0)
            for order in orders
        )
        least = (down + across) / 2.0 - np.hypot((down - across) / 2.0, mixed)
        np.maximum(strongest, -least, out=strongest)
    return strongest


def inside_lung(lungs: Mask, pixel_mm: float) -> Mask:
    """The lungs with their vessels, without a border."""
    closed = ndimage.binary_closing(lungs, _disc(CLOSED_MM / pixel_mm))
    return np.asarray(ndimage.binary_erosion(closed, _disc(EDGE_MM / pixel_mm)))


def _disc(radius: float) -> Mask:
    side = np.arange(-int(radius), int(radius) + 1)
    return np.asarray(side[:, None] ** 2 + side**2 <= radius**2)


def octaves_hu(plane: Plane, flat: Mask) -> NDArray[np.float64] | None:
    """(3,): the noise of each octave in flat tissue; None where there is too little of it."""
    if np.count_nonzero(flat) < LEAST_FLAT_PIXELS:
        return None
    blurred = {s: ndimage.gaussian_filter(plane, s) if s else plane for o in OCTAVES for s in o}
    bands = [blurred[fine] - blurred[coarse] for fine, coarse in OCTAVES]
    return np.array([band[flat].std(dtype=np.float64) for band in bands])


@dataclass(frozen=True, eq=False)
class Nodule:
    """A simulated nodule of one left-out slice."""

    row: float  # pixels
    column: float
    at_mm: float  # along the normal
    diameter_mm: float
    body: Body

    def share_at(self, plane: Plane, at_mm: float, thick_mm: float, pixel_mm: float) -> Plane:
        """How much of each pixel of a slice the body fills."""
        far = 1.5 * self.diameter_mm
        if abs(at_mm - self.at_mm) > far + thick_mm:
            return np.zeros(plane.shape, np.float32)
        rows, columns = self._block(plane, far / pixel_mm)
        down = (np.arange(rows.start, rows.stop) - self.row) * pixel_mm
        across = (np.arange(columns.start, columns.stop) - self.column) * pixel_mm
        points = np.zeros((len(down), len(across), 3))
        points[..., 0], points[..., 1] = across[None], down[:, None]
        parts = []
        for part in (-1 / 3, 0.0, 1 / 3):
            points[..., 2] = at_mm + part * thick_mm - self.at_mm
            parts.append(self.body.inside(points))
        share = np.zeros(plane.shape, np.float32)
        share[rows, columns] = np.mean(parts, axis=0)
        return share

    def contrast_part(self, plane: Plane, pixel_mm: float) -> float:
        """The mean in the middle of the nodule."""
        reach = CORE * self.diameter_mm / 2.0 / pixel_mm
        rows, columns = self._block(plane, reach + 1.0)
        inside = self._within(rows, columns, reach)
        return float(plane[rows, columns][inside].mean(dtype=np.float64))

    def response_hu(self, plane: Plane, pixel_mm: float) -> float:
        """The strongest answer of the detector near its place."""
        sigma = self.diameter_mm / 2.0 / np.sqrt(2.0) / pixel_mm
        near = NEAR_MM / pixel_mm
        rows, columns = self._block(plane, near + 4.0 * sigma + 1.0)
        answer = -(sigma**2) * ndimage.gaussian_laplace(plane[rows, columns], sigma)
        return float(answer[self._within(rows, columns, near)].max())

    def _block(self, plane: Plane, reach: float) -> tuple[slice, slice]:
        rows, columns = (
            slice(max(0, int(middle - reach)), min(side, int(middle + reach) + 2))
            for middle, side in zip((self.row, self.column), plane.shape, strict=True)
        )
        return rows, columns

    def _within(self, rows: slice, columns: slice, reach: float) -> Mask:
        down = np.arange(rows.start, rows.stop) - self.row
        across = np.arange(columns.start, columns.stop) - self.column
        return np.asarray(down[:, None] ** 2 + across**2 <= max(reach, 1.0) ** 2)


def nodules_for(stack: LeaveOutStack) -> Mapping[int, tuple[Nodule, ...]]:
    """Nodules of every diameter for each target that has lung to hold them, by its index.

    Drawn by the name of the series, the factor and the mode, so that every run has the same.
    """
    seed = sha256(f"{SEED}/{stack.series.name}/{stack.factor}/{stack.mode}".encode()).digest()
    random = default_rng(int.from_bytes(seed[:8], "big"))
    taken: list[Nodule] = []
    drawn: dict[int, tuple[Nodule, ...]] = {}
    for target in stack.targets:
        before = len(taken)
        taken += _of_target(stack, target, taken, random)
        drawn[target.index] = tuple(taken[before:])
    return drawn


def _of_target(
    stack: LeaveOutStack, target: Target, taken: Sequence[Nodule], random: Generator
) -> list[Nodule]:
    series, plane = stack.series, stack.truth(target)
    pixel_mm = series.geometry.pixel_mm
    width = stack.factor if stack.mode == "slab" else 1
    middle = series.geometry.distances_mm[target.index] + (width - 1) / 2.0 * series.spacing_mm
    lung = inside_lung(TruthSlice(plane, pixel_mm).lungs, pixel_mm)
    depth = ndimage.distance_transform_edt(lung) * pixel_mm
    placed: list[Nodule] = []
    for diameter in DIAMETERS_MM:
        body = Body.drawn(diameter / 2.0, random, spiculated=False)
        at_mm = float(middle + random.uniform(-0.5, 0.5) * width * series.spacing_mm)
        places = np.argwhere(depth > diameter / 2.0 + FREE_MM)
        for row, column in random.choice(places, TRIES) if len(places) else ():
            nodule = Nodule(float(row), float(column), at_mm, diameter, body)
            is_free = all(_apart(nodule, other, pixel_mm) for other in (*taken, *placed))
            if is_free and nodule.response_hu(plane, pixel_mm) < FOUND_HU / 2.0:
                placed.append(nodule)
                break
    return placed


def _apart(first: Nodule, second: Nodule, pixel_mm: float) -> bool:
    across = np.hypot(first.row - second.row, first.column - second.column) * pixel_mm
    far = np.hypot(across, first.at_mm - second.at_mm)
    return bool(far > (first.diameter_mm + second.diameter_mm) / 2.0 + APART_MM)


def with_nodules(series: ThinSeries, nodules: Sequence[Nodule]) -> ThinSeries:
    """The series as it would be, had the patient these nodules."""
    geometry = series.geometry
    places, pixel_mm = geometry.distances_mm, geometry.pixel_mm
    thick = min(geometry.thickness_mm or series.spacing_mm, 2.0 * series.spacing_mm)

    def read(index: int) -> Plane:
        plane = series.read(index)
        share = np.zeros(plane.shape, np.float32)
        for nodule in nodules:
            filled = nodule.share_at(plane, float(places[index]), thick, pixel_mm)
            np.maximum(share, filled, out=share)
        if not share.any():
            return plane
        smooth = ndimage.gaussian_filter(plane, 1.0 / pixel_mm)  # so that noise stays
        return np.asarray(plane + share * np.maximum(NODULE_HU - smooth, 0.0), np.float32)

    return replace(series, read=read)


@dataclass
class _Counts:
    """What adds up over the slices of one method."""

    true: int = 0
    kept: int = 0
    made: int = 0
    invented: int = 0
    octaves: list[NDArray[np.float64]] = field(default_factory=list)
    without: dict[tuple[int, int], float] = field(default_factory=dict)
    contrast: dict[tuple[int, int], float] = field(default_factory=dict)
    found: dict[tuple[int, int], bool] = field(default_factory=dict)


class Reading:
    """The slices of every method on one cell, as they are read."""

    TRUTH = "truth"

    def __init__(
        self, names: Sequence[str], pixel_mm: float, nodules: Mapping[int, tuple[Nodule, ...]]
    ) -> None:
        self._counts = {name: _Counts() for name in (self.TRUTH, *names)}
        self._pixel_mm, self._nodules = pixel_mm, nodules

    def add(self, target: int, truth: TruthSlice, planes: Mapping[str, Plane]) -> None:
        """The slices of one target, without nodules."""
        lung = inside_lung(truth.lungs, self._pixel_mm)
        vessels = vessels_of(truth.plane, lung, self._pixel_mm)
        around = ndimage.binary_dilation(vessels, BESIDE)
        octaves = octaves_hu(truth.plane, truth.flat)
        for name, plane in {self.TRUTH: truth.plane, **planes}.items():
            counts = self._counts[name]
            own = vessels_of(plane, lung, self._pixel_mm)
            counts.true += int(vessels.sum())
            counts.kept += int((vessels & ndimage.binary_dilation(own, BESIDE)).sum())
            counts.made += int(own.sum())
            counts.invented += int((own & ~around).sum())
            if octaves is not None:
                shares = octaves_hu(plane, truth.flat)
                assert shares is not None
                counts.octaves.append((shares / np.maximum(octaves, 1e-3)) ** 2)
            for number, nodule in enumerate(self._nodules.get(target, ())):
                mean = nodule.contrast_part(plane, self._pixel_mm)
                counts.without[target, number] = mean

    def add_with_nodules(self, target: int, truth: Plane, planes: Mapping[str, Plane]) -> None:
        """The slices of the same target in the series with nodules."""
        for name, plane in {self.TRUTH: truth, **planes}.items():
            counts = self._counts[name]
            for number, nodule in enumerate(self._nodules.get(target, ())):
                key = target, number
                mean = nodule.contrast_part(plane, self._pixel_mm)
                counts.contrast[key] = mean - counts.without[key]
                counts.found[key] = nodule.response_hu(plane, self._pixel_mm) >= FOUND_HU

    def figures_of(
        self, name: str, edge_sharpness: float | None, laa_950_off: float | None
    ) -> ReaderFigures:
        counts = self._counts[name]
        octaves = np.mean(counts.octaves, axis=0) if counts.octaves else [None] * len(OCTAVES)
        return ReaderFigures(
            vessels_kept=counts.kept / counts.true if counts.true else None,
            vessels_invented=counts.invented / counts.made if counts.made else None,
            nodules=tuple(
                figures
                for diameter in DIAMETERS_MM
                if (figures := self._nodules_of(counts, diameter)) is not None
            ),
            edge_sharpness=edge_sharpness,
            noise_power=tuple(None if share is None else float(share) for share in octaves),
            laa_950_off=laa_950_off,
        )

    def _nodules_of(self, counts: _Counts, diameter: float) -> NoduleFigures | None:
        truth = self._counts[self.TRUTH]
        keys = [
            (target, number)
            for target, nodules in self._nodules.items()
            for number, nodule in enumerate(nodules)
            if nodule.diameter_mm == diameter and (target, number) in counts.contrast
        ]
        if not keys:
            return None
        contrast = [counts.contrast[key] / max(truth.contrast[key], 1.0) for key in keys]
        return NoduleFigures(
            diameter_mm=diameter,
            nodules=len(keys),
            found_in_truth=float(np.mean([truth.found[key] for key in keys])),
            found=float(np.mean([counts.found[key] for key in keys])),
            contrast=float(np.mean(contrast)),
        )
