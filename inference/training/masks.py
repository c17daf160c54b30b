"""Masks beside reference masks: overlap, distance of the surfaces, volume, and a baseline."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray
from scipy import ndimage

from inference.models.brain.canonical import steps_mm
from inference.models.brain.mask import Mask, Probability, Spacing, box_of, clean
from inference.models.brain.unet import on_grid
from inference.volume import Geometry

BOOTSTRAP_DRAWS, BOOTSTRAP_SEED = 1000, 2026
THRESHOLDS = tuple(step / 20 for step in range(1, 20))
# The baseline: what is bright, cut loose by an erosion, its largest part, grown back.
LOOSE_MM = 4.0
# The head: skull and sinuses are as dark as air, and closed in by what is not.
HEAD_SHARE = 0.4  # of Otsu's threshold
CLOSED_MM = 8.0


@dataclass(frozen=True)
class MaskFigures:
    """The figures of one mask against its reference."""

    dice: float
    iou: float
    surface_95_mm: float
    volume_off: float  # share of the reference; negative = too small


def compared(mask: Mask, reference: Mask, spacing_mm: Spacing) -> MaskFigures:
    """Both on one grid, neither empty."""
    common, sizes = int((mask & reference).sum()), (int(mask.sum()), int(reference.sum()))
    dice = 2.0 * common / sum(sizes)
    return MaskFigures(
        dice=dice,
        iou=dice / (2.0 - dice),
        surface_95_mm=_surface_95_mm(mask, reference, spacing_mm),
        volume_off=sizes[0] / sizes[1] - 1.0,
    )


def _surface_95_mm(mask: Mask, reference: Mask, spacing_mm: Spacing) -> float:
    """95th percentile of the distances from each surface to the other."""
    box = box_of(mask | reference, margin=1)
    surfaces = [part[box] & ~ndimage.binary_erosion(part[box]) for part in (mask, reference)]
    distances = [
        ndimage.distance_transform_edt(~other, spacing_mm)[own]
        for own, other in (surfaces, surfaces[::-1])
    ]
    return float(np.percentile(np.concatenate(distances), 95))


def thresholded(volume: NDArray[np.float32], spacing_mm: Spacing) -> Mask:
    """The brain without any learning: Otsu's threshold, erosion, largest part, dilation."""
    bright = volume > otsu(volume)
    far = ndimage.distance_transform_edt(bright, spacing_mm) > LOOSE_MM
    loose, _ = clean(far)
    if not loose.any():
        return loose
    near = ndimage.distance_transform_edt(~loose, spacing_mm) <= LOOSE_MM
    mask, _ = clean(near)
    return mask


def outside_head_cm3(mask: Mask, volume: NDArray[np.float32], spacing_mm: Spacing) -> float:
    """The part of a mask that lies in the air around the head, at 2 mm.

    The head is all that is brighter than a part of Otsu's threshold, with its holes filled.
    """
    small = on_grid(volume - volume.min(), spacing_mm)
    bright = small > HEAD_SHARE * otsu(small)
    spacing = [
        size * step / new
        for size, step, new in zip(volume.shape, spacing_mm, small.shape, strict=True)
    ]
    near = ndimage.distance_transform_edt(~bright, spacing) <= CLOSED_MM
    head, _ = clean(ndimage.distance_transform_edt(near, spacing) > CLOSED_MM)
    share = on_grid(mask.astype(np.float32), spacing_mm)
    return float(share[~head].sum() * np.prod(spacing) / 1000.0)


def otsu(volume: NDArray[np.float32]) -> float:
    """The threshold that parts two classes with the least variance inside them."""
    counts, edges = np.histogram(volume, 256)
    middles = (edges[1:] + edges[:-1]) / 2
    below, weighted = np.cumsum(counts), np.cumsum(counts * middles)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (weighted / below - (weighted[-1] - weighted) / above) ** 2
    return float(middles[np.nanargmax(between)])


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % of the means of as many patients, drawn from these with replacement."""
    random = default_rng(BOOTSTRAP_SEED)
    drawn = random.choice(np.array(values), (BOOTSTRAP_DRAWS, len(values)))
    low, high = np.percentile(drawn.mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def precision_and_recall(probability: Probability, reference: Mask) -> list[tuple[float, float]]:
    """(recall, precision) of the voxels at each threshold."""
    points = []
    for threshold in THRESHOLDS:
        chosen = probability > threshold
        common = float((chosen & reference).sum())
        points.append((common / reference.sum(), common / max(1, int(chosen.sum()))))
    return points


def inside(
    points_mm: NDArray[np.float64], mask: Mask, geometry: Geometry, within_mm: float = 0.0
) -> float:
    """The share of points of the patient (LPS) that lie in a mask, or so near to it."""
    steps = steps_mm(geometry)
    places = (points_mm - geometry.positions[0]) @ np.linalg.inv(steps)
    at = np.rint(places).astype(int).clip(0, np.array(mask.shape) - 1)
    if within_mm == 0.0:
        return float(mask[tuple(at.T)].mean())
    box = box_of(mask, margin=int(within_mm / np.linalg.norm(steps, axis=1).min()) + 2)
    away = np.full(mask.shape, np.inf, np.float32)
    away[box] = ndimage.distance_transform_edt(~mask[box], np.linalg.norm(steps, axis=1))
    return float((away[tuple(at.T)] <= within_mm).mean())
