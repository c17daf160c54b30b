"""Kinds of image: what two slices must share to be of one volume, and what merely differs.

How pixels are stored parts nothing: bits, sign, rescale, photometric interpretation and transfer
syntax say how a slice was written down, not what it shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from inference.dataset import Header
from inference.image_type import NO_SLICES, words_of
from inference.volume import Vector

T = TypeVar("T")
Places = NDArray[np.float64]  # (slices,), mm along a normal

# Directions and spacings that differ by less than this part of a pixel, measured at the far edge
# of the image, are the same: noise of the decimal strings.
NOISE_PIXELS = 0.25
# Slices nearer than this are at one place: the place was acquired twice.
REPEATED_MM = 0.1
# Fields of view whose sides differ by less than this part show the same.
SAME_FIELD = 0.1
# Planes whose normals differ by less (cosine) are parallel.
PARALLEL = 1e-3
# The attributes of the grid that the pixels of a slice lie on.
GRID = ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient")


@dataclass(frozen=True)
class Kind:
    """The kind of an image; two kinds at one place are two images, neither stands for the other."""

    cut: str  # value 3 of Image Type: AXIAL, ...
    words: frozenset[str]  # of Image Type that say more: a projection
    energy: str  # value 4 of a multi-energy image
    kernel: str
    kilovolts: float | None


def kinds_of(headers: Sequence[Header]) -> list[Kind]:
    """The kind of each slice of a series. What a slice does not say is what the others say."""
    cuts = _completed([header.value("ImageType", 2).upper() for header in headers], "")
    kernels = _completed([_kernel(header) for header in headers], "")
    kilovolts = _completed([header.number("KVP") for header in headers], None)
    return [
        Kind(cut, words_of(header, *NO_SLICES), _energy(header), kernel, kilovolt)
        for header, cut, kernel, kilovolt in zip(headers, cuts, kernels, kilovolts, strict=True)
    ]


def _completed(values: list[T], absent: T) -> list[T]:
    known = set(values) - {absent}
    return values if len(known) != 1 else [*known] * len(values)


def _kernel(header: Header) -> str:
    return "\\".join(header.values("ConvolutionKernel")).upper()


def _energy(header: Header) -> str:
    is_multi_energy = header.text("MultienergyCTAcquisition").upper() == "YES"
    return header.value("ImageType", 3).upper() if is_multi_energy else ""


def is_same_grid(first: Header, second: Header) -> bool:
    """True for slices of the same rows, columns, spacing and directions, but for noise."""
    sides = [first.integer(keyword) for keyword in ("Rows", "Columns")]
    if sides != [second.integer(keyword) for keyword in ("Rows", "Columns")]:
        return False
    rows, columns = (side or 1 for side in sides)
    spacing, other = first.numbers("PixelSpacing"), second.numbers("PixelSpacing")
    if len(spacing) != len(other):
        return False
    noise = [abs(a - b) * max(rows, columns) for a, b in zip(spacing, other, strict=True)]
    if any(off >= NOISE_PIXELS * abs(a) for off, a in zip(noise, spacing, strict=True) if off):
        return False
    cosines, others = (h.numbers("ImageOrientationPatient") for h in (first, second))
    if len(cosines) != 6 or len(others) != 6:
        return cosines == others
    turned = np.subtract(cosines, others).reshape(2, 3)
    along_row, along_column = np.linalg.norm(turned, axis=1)
    return bool(max(along_row * columns, along_column * rows) < NOISE_PIXELS)


def shows_same_place(first: Header, second: Header) -> bool:
    """True where two slices of one kind lie in parallel planes and show as much of them."""
    if not is_parallel(first, second):
        return False
    for side, keyword in enumerate(("Rows", "Columns")):
        side_mm, other_mm = (_side_mm(header, keyword, side) for header in (first, second))
        if abs(side_mm - other_mm) > SAME_FIELD * max(side_mm, other_mm):
            return False
    return True


def is_parallel(first: Header, second: Header) -> bool:
    return abs(float(_normal(first) @ _normal(second))) > 1.0 - PARALLEL


def distance_mm(header: Header, along: Header) -> float:
    """Place of a slice along the normal of another; 0 where there is no geometry.

    One normal for all: what directions differ by as noise would move a slice far from the origin.
    """
    position = header.numbers("ImagePositionPatient")
    return float(np.dot(_normal(along), position)) if len(position) == 3 else 0.0


def distances_mm(headers: Sequence[Header]) -> Places:
    """The place of each slice along the normal of the first."""
    return np.array([distance_mm(header, headers[0]) for header in headers])


def _normal(header: Header) -> Vector:
    cosines = header.numbers("ImageOrientationPatient")
    if len(cosines) != 6:
        return np.zeros(3)
    return np.asarray(np.cross(cosines[:3], cosines[3:]))


def _side_mm(header: Header, keyword: str, side: int) -> float:
    spacing = header.numbers("PixelSpacing")
    return (header.integer(keyword) or 0) * (spacing[side] if len(spacing) == 2 else 0.0)
