"""The part of a slice that the network is asked about: whatever is there, without the air around.

A fifth of a chest's slices is air above and below the patient. What the network could say of it is
which of three candidates to take, and in air all of them are the same.
"""

import cv2
import numpy as np

from inference.models.classical import Neighbourhood
from inference.models.runtime import MULTIPLE
from inference.volume import Offset, Plane

# Means of squares of 8 pixels: noise in air is a few HU there, cloth and foam are above -900.
AIR_HU = -900.0
AROUND = MULTIPLE  # pixels of air that the network sees around what is there
ROUNDING = 1e-3  # pixels: with z reversed a shift differs in its last digits, and the box shall not

Extent = tuple[slice, slice]
Edges = tuple[float, float, float, float]  # top, left, bottom, right; the last two are outside


def extent_of(near: Neighbourhood) -> Extent:
    """Rows and columns around all that A or C holds, wherever in their gap a slice may lie.

    Each begins where the network's coarsest pixels do on a whole slice, so that it says the same of
    what is there. All of the slice, where there is nothing but air.
    """
    rows, columns = near.planes[0].shape
    found = [
        _moved(edges, near.offset(place, t))
        for place in (0, 1)
        for edges in _edges(near.planes[place])
        for t in (0.0, 1.0)
    ]
    if not found:
        return slice(0, rows), slice(0, columns)
    tops, lefts, bottoms, rights = zip(*found, strict=True)
    return _span(min(tops), max(bottoms), rows), _span(min(lefts), max(rights), columns)


def _edges(plane: Plane) -> list[Edges]:
    """The box around all that is not air; none where there is nothing else."""
    rows, columns = plane.shape
    reduced = (max(1, columns // MULTIPLE), max(1, rows // MULTIPLE))
    means = cv2.resize(plane, reduced, interpolation=cv2.INTER_AREA)
    there = np.asarray(means) > AIR_HU
    down, across = (np.flatnonzero(there.any(axis=axis)) for axis in (1, 0))
    if not len(down):
        return []
    high, wide = rows / reduced[1], columns / reduced[0]
    return [(high * down[0], wide * across[0], high * (down[-1] + 1), wide * (across[-1] + 1))]


def _moved(edges: Edges, offset: Offset) -> Edges:
    """The box in the frame of a slice whose pixels plus `offset` are the pixels of the box."""
    top, left, bottom, right = edges
    return top - offset[0], left - offset[1], bottom - offset[0], right - offset[1]


def _span(first: float, last: float, size: int) -> slice:
    start = MULTIPLE * int(np.floor((first + ROUNDING) / MULTIPLE)) - AROUND
    stop = MULTIPLE * int(np.ceil((last - ROUNDING) / MULTIPLE)) + AROUND
    return slice(max(0, start), min(size, stop))
