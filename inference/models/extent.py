"""The part of a slice that the network is asked about: what is there, without the air around.

A fifth of a chest's slices is air above and below the patient. What the network could say of it is
which of three candidates to take, and where nothing is and nothing moves all of them are the same.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.models.classical import Neighbourhood
from inference.models.guards import LEAST_HU
from inference.models.runtime import MULTIPLE
from inference.volume import Offset, Plane

# Something is where the mean of a square of 8 pixels is above air, or where A and C differ there:
# a fold of cloth is thinner than a square, and moves. Noise in air is a few HU in such a mean.
AIR_HU, MOVED_HU = -900.0, 30.0
# Pixels of air that the network sees around what is there; its share fades to nothing over them.
AROUND = MULTIPLE
# Sides are multiples of it, for memory: each shape of a slice costs the runtime some of its own.
SIDE = 4 * MULTIPLE

Extent = tuple[slice, slice]  # rows, columns
Edges = tuple[float, float, float, float]  # top, left, bottom, right; the last two are outside


def extent_of(near: Neighbourhood) -> Extent:
    """Rows and columns around all that A or C holds, wherever in their gap a slice may lie.

    Each begins where the network's coarsest pixels do on a whole slice, so that it says the same of
    what is there. All of the slice, where there is nothing but air.
    """
    rows, columns = near.planes[0].shape
    squares = {place: _squares(near.planes[place]) for place in (0, 1)}
    masks = [
        (0, squares[0] > AIR_HU),
        (1, squares[1] > AIR_HU),
        (0, np.abs(squares[0] - _squares(near.opposite)) > MOVED_HU),
    ]
    found = [
        _moved(_edges(mask, (rows, columns)), near.offset(place, t))
        for place, mask in masks
        if mask.any()
        for t in (0.0, 1.0)
    ]
    if not found:
        return slice(0, rows), slice(0, columns)
    tops, lefts, bottoms, rights = zip(*found, strict=True)
    return _span(min(tops), max(bottoms), rows), _span(min(lefts), max(rights), columns)


def pasted(inside: Plane, around: Plane, extent: Extent) -> Plane:
    """A slice with `inside` in its extent, which fades into what lies around, in air."""
    rows, columns = (_shares(*each) for each in zip(extent, around.shape, strict=True))
    share = rows[:, None] * columns
    whole = around.copy()
    whole[extent] += share * (inside - around[extent])
    return whole


def spread(inside: Plane, extent: Extent, shape: tuple[int, ...]) -> Plane:
    """What is known inside an extent, with its edges repeated beyond it."""
    beyond = [(kept.start, size - kept.stop) for kept, size in zip(extent, shape, strict=True)]
    return np.pad(inside, beyond, mode="edge")


def _squares(plane: Plane) -> Plane:
    """Means of squares of 8 x 8 pixels, as the network sees them."""
    rows, columns = plane.shape
    reduced = (max(1, columns // MULTIPLE), max(1, rows // MULTIPLE))
    seen = np.maximum(plane, np.float32(LEAST_HU))
    return np.asarray(cv2.resize(seen, reduced, interpolation=cv2.INTER_AREA), np.float32)


def _edges(mask: NDArray[np.bool_], shape: tuple[int, int]) -> Edges:
    """The box around what is true, in pixels of the slice."""
    high, wide = (whole / reduced for whole, reduced in zip(shape, mask.shape, strict=True))
    down, across = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return high * down[0], wide * across[0], high * (down[-1] + 1), wide * (across[-1] + 1)


def _moved(edges: Edges, offset: Offset) -> Edges:
    """The box in the frame of a slice whose pixels plus `offset` are the pixels of the box."""
    top, left, bottom, right = edges
    return top - offset[0], left - offset[1], bottom - offset[0], right - offset[1]


def _span(first: float, last: float, size: int) -> slice:
    start = max(0, MULTIPLE * int(np.floor(first / MULTIPLE)) - AROUND)
    stop = min(size, MULTIPLE * int(np.ceil(last / MULTIPLE)) + AROUND)
    length = SIDE * -((start - stop) // SIDE)
    start = max(0, min(start, (size - length) // MULTIPLE * MULTIPLE))
    return slice(start, max(stop, min(size, start + length)))


def _shares(kept: slice, size: int) -> Plane:
    """How much of the network is taken along one side: 1, but less and less at its ends in air."""
    rising = np.arange(1, AROUND + 1, dtype=np.float32) / (AROUND + 1)
    shares = np.ones(kept.stop - kept.start, np.float32)
    if kept.start > 0:
        shares[:AROUND] = rising
    if kept.stop < size:
        shares[-AROUND:] = rising[::-1]
    return shares
