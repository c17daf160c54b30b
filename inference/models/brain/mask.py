"""Rules of a brain mask: how both networks clean it, and doubts whether it is plausible."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

Mask = NDArray[np.bool_]
Probability = NDArray[np.float32]
Spacing = tuple[float, ...]  # mm, of the three axes

THRESHOLD = 0.5
SHELL_MM = 3.0  # to either side of the surface
VOLUME_CM3 = (700.0, 2200.0)
MOST_AT_BORDER_CM2 = 5.0  # of the mask in the first or last slice: more, and the brain is cut
LEAST_LARGEST_SHARE = 0.95
LEAST_SHELL_PROBABILITY = 0.75
# Heads have 0.90 to 0.93 of their convex hull, a chest that is taken for one 0.72 to 0.75.
LEAST_HULL_SHARE = 0.85
# A brain has 0.39 to 0.53 of its head, of which bone and skin are a part. A phantom is filled to
# its wall: 0.88 to 0.97, and one of the size of a brain passes every other test.
MOST_HEAD_SHARE = 0.75
AIR = 0.15  # of the range of values: what is darker is no part of the head


@dataclass(frozen=True)
class Measures:
    """The figures that a mask is judged by."""

    volume_cm3: float
    border_cm2: float  # in the first or the last slice, the larger of the two
    largest_share: float  # of the largest component before the others were removed
    shell_probability: float  # mean of max(p, 1 - p) around the surface
    hull_share: float  # of the volume of the convex hull
    head_share: float  # of all that is no air

    def as_record(self) -> Mapping[str, float]:
        return {name: round(value, 4) for name, value in asdict(self).items()}


def clean(mask: Mask) -> tuple[Mask, float]:
    """(the largest component with its holes filled, its share of the mask); 26 neighbours."""
    whole = np.zeros(mask.shape, bool)
    if not mask.any():
        return whole, 0.0
    box = box_of(mask)
    labels, count = ndimage.label(mask[box], np.ones((3, 3, 3)))
    # Plane by plane: numpy counts and looks up in numbers of twice the size of the labels.
    sizes = np.zeros(count + 1, np.int64)
    for plane in labels:
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
    sizes[0] = 0
    largest = labels == sizes.argmax()
    del labels
    whole[box] = _filled(largest)
    return whole, float(sizes.max() / sizes.sum())


def _filled(mask: Mask) -> Mask:
    """With every background that does not reach the border of its box; 6 neighbours."""
    labels, count = ndimage.label(~mask)
    is_inside = np.ones(count + 1, bool)
    for axis, end in itertools.product(range(3), (0, -1)):
        is_inside[labels.take(end, axis)] = False
    is_inside[0] = True  # the mask itself
    return np.stack([is_inside[plane] for plane in labels])


def box_of(mask: Mask, margin: int = 0) -> tuple[slice, ...]:
    """The box around a mask that is not empty, wider by a margin where there is room."""
    sides = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        occupied = np.flatnonzero(mask.any(others))
        sides.append(slice(max(0, int(occupied[0]) - margin), int(occupied[-1]) + 1 + margin))
    return tuple(sides)


def measure(
    mask: Mask,
    probability: Probability,
    largest_share: float,
    spacing_mm: Spacing,
    volume: NDArray[np.float32],
) -> Measures:
    """The figures of a cleaned mask that is not empty, all in the axes of the stack."""
    voxel_mm3, pixel_mm2 = float(np.prod(spacing_mm)), float(np.prod(spacing_mm[1:]))
    ends = max(int(mask[0].sum()), int(mask[-1].sum()))
    box = box_of(mask, margin=int(SHELL_MM / min(spacing_mm)) + 2)
    inside = mask[box]
    return Measures(
        volume_cm3=int(mask.sum()) * voxel_mm3 / 1000.0,
        border_cm2=ends * pixel_mm2 / 100.0,
        largest_share=largest_share,
        shell_probability=_sure(inside, probability[box], spacing_mm),
        hull_share=float(inside.sum()) / _hull_voxels(inside),
        head_share=_head_share(mask, volume),
    )


def _head_share(mask: Mask, volume: NDArray[np.float32]) -> float:
    """Of every other voxel: that is enough, and a large volume has many."""
    half = (slice(None, None, 2),) * 3
    values, brain = volume[half], mask[half]
    low, high = np.quantile(values, (0.02, 0.99))
    head = ndimage.binary_opening(values > low + AIR * (high - low))
    return float((brain & head).sum()) / max(1, int(head.sum()))


def _sure(mask: Mask, probability: Probability, spacing_mm: Spacing) -> float:
    """Mean certainty of the voxels near the surface, with both sides of it within reach."""
    reach = [2 * round(SHELL_MM / step) + 1 for step in spacing_mm]
    sides = mask.view(np.uint8)
    shell = ndimage.maximum_filter(sides, reach) != ndimage.minimum_filter(sides, reach)
    near = probability[shell]
    return float(np.maximum(near, 1.0 - near).mean())


def _hull_voxels(mask: Mask) -> float:
    """The volume of the convex hull of the voxels' centres, in voxels."""
    surface = np.argwhere(mask & ~ndimage.binary_erosion(mask))
    try:
        return float(ConvexHull(surface).volume)
    except QhullError:  # a point, a line or a plane
        return math.inf


def doubts(measures: Measures) -> tuple[str, ...]:
    """One sentence for each figure that no whole brain has; a series with one is held."""
    least, most = VOLUME_CM3
    tests = {
        f"the mask has {measures.volume_cm3:.0f} cm3 (a brain: {least:.0f} to {most:.0f})": (
            not least <= measures.volume_cm3 <= most
        ),
        f"the mask has {measures.border_cm2:.1f} cm2 in the first or last slice "
        f"(at most {MOST_AT_BORDER_CM2:.0f}: the brain is cut)": (
            measures.border_cm2 > MOST_AT_BORDER_CM2
        ),
        f"its largest part is {measures.largest_share:.0%} of what was found "
        f"(at least {LEAST_LARGEST_SHARE:.0%})": measures.largest_share < LEAST_LARGEST_SHARE,
        f"the network is unsure of its surface ({measures.shell_probability:.2f}; "
        f"at least {LEAST_SHELL_PROBABILITY:.2f})": (
            measures.shell_probability < LEAST_SHELL_PROBABILITY
        ),
        f"it fills {measures.hull_share:.0%} of its convex hull "
        f"(at least {LEAST_HULL_SHARE:.0%}): not the shape of a brain": (
            measures.hull_share < LEAST_HULL_SHARE
        ),
        f"it is {measures.head_share:.0%} of all that is no air (a brain: at most "
        f"{MOST_HEAD_SHARE:.0%}): a phantom, or a head without its skull": (
            measures.head_share > MOST_HEAD_SHARE
        ),
    }
    return tuple(sentence for sentence, applies in tests.items() if applies)
