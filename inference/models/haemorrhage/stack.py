"""A stack as the network was trained on: 5 mm slabs from base to vertex, upright.

A tilted stack stays as it was taken: that is how the training pictures are.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.errors import Reason, Unprocessable
from inference.volume import Geometry, Plane

SLAB_MM = 5.0  # of the training pictures
OVERLAP = 1.1  # thickness over gap from which neighbours show the same tissue
FEWEST_SLICES, LEAST_COVERAGE_MM = 10, 80.0
MOST_GAP_MM = 6.0
PIXELS_MM = (0.3, 1.0)
MOST_TILT_DEGREES = 30.0
ROUNDING = 0.01  # of positions and spacings in headers


def check_geometry(geometry: Geometry) -> None:
    """Raise Unprocessable for a stack that is no axial stack of a whole head."""
    if len(geometry) < FEWEST_SLICES:
        raise Unprocessable(
            Reason.TOO_FEW_SLICES,
            f"The stack has {len(geometry)} slices; at least {FEWEST_SLICES} are needed to score "
            "a head.",
        )
    gap, pixels = float(geometry.gaps_mm.max()), geometry.pixel_spacing
    coverage = float(np.ptp(geometry.distances_mm))
    tilt = float(np.degrees(np.arccos(min(1.0, abs(float(geometry.normal[2]))))))
    least, most = PIXELS_MM
    tests = {
        f"The slices are tilted by {tilt:.0f} degrees; at most {MOST_TILT_DEGREES:.0f} degrees "
        "from axial are in scope.": tilt > MOST_TILT_DEGREES + ROUNDING,
        f"The slices are up to {gap:.2f} mm apart; at most {MOST_GAP_MM:g} mm are in scope.": (
            gap > MOST_GAP_MM + ROUNDING
        ),
        f"The slices cover {coverage:.0f} mm; at least {LEAST_COVERAGE_MM:g} mm are in scope.": (
            coverage < LEAST_COVERAGE_MM - ROUNDING
        ),
        f"The pixels are {min(pixels):.2f} to {max(pixels):.2f} mm wide; {least:g} to {most:g} mm "
        "are in scope.": not least - ROUNDING <= min(pixels) <= max(pixels) <= most + ROUNDING,
    }
    for sentence, applies in tests.items():
        if applies:
            raise Unprocessable(Reason.OUT_OF_SCOPE, sentence)


@dataclass(frozen=True)
class Slab:
    """Neighbouring slices that get one score; those in the middle are averaged."""

    members: tuple[int, ...]
    averaged: tuple[int, ...]

    @property
    def middle(self) -> int:
        """The slice that stands for it."""
        return self.members[(len(self.members) - 1) // 2]


def slabs_of(geometry: Geometry) -> tuple[Slab, ...]:
    """The slabs of a stack, from base to vertex; each slice of about 5 mm is one of its own."""
    gap = float(np.median(geometry.gaps_mm))
    stride = max(1, round(SLAB_MM / gap))
    thickness = geometry.thickness_mm or gap
    wanted = stride
    if thickness > OVERLAP * gap:
        wanted = min(stride, max(1, 1 + round((SLAB_MM - thickness) / gap)))
    count = len(geometry)
    starts = range(0, count - stride + 1, stride)  # what is left over goes to the last slab
    ends = [*starts[1:], count]
    slabs = []
    for start, end in zip(starts, ends, strict=True):
        members = tuple(range(start, end))
        first = (len(members) - wanted) // 2
        slabs.append(Slab(members, members[first : first + wanted]))
    return tuple(slabs if geometry.normal[2] > 0 else reversed(slabs))


@dataclass(frozen=True)
class Upright:
    """A plane turned so that its columns run to the patient's left and its rows to the back."""

    transposed: bool
    flipped: tuple[int, ...]  # axes of the upright plane that run the other way

    @classmethod
    def of(cls, geometry: Geometry) -> "Upright":
        along_row, along_column = geometry.orientation
        transposed = bool(abs(along_row[0]) < abs(along_row[1]))
        to_left, to_back = (along_column, along_row) if transposed else (along_row, along_column)
        directions = ((0, to_back[1]), (1, to_left[0]))
        return cls(transposed, tuple(axis for axis, cosine in directions if cosine < 0.0))

    def turned(self, plane: Plane) -> Plane:
        """A view."""
        return np.flip(plane.T if self.transposed else plane, self.flipped)

    def back(self, plane: Plane) -> Plane:
        """A view in the axes of the stack."""
        plane = np.flip(plane, self.flipped)
        return plane.T if self.transposed else plane


def upright_slabs(
    planes: NDArray[np.float32], slabs: tuple[Slab, ...], upright: Upright
) -> NDArray[np.float32]:
    """(slabs, rows, columns) HU of (slices, rows, columns) HU."""
    return np.stack([upright.turned(planes[list(slab.averaged)].mean(axis=0)) for slab in slabs])
