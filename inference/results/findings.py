"""Findings on the slices of their stack: their numbers, slices, boxes, and places in the patient.

All of it on the grid of the source, whatever grid a model works on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from inference.dataset import Header
from inference.errors import PredictionError
from inference.geometry import Layout
from inference.model import CodeTriple, Finding, Segment
from inference.results.segmentation import Region
from inference.volume import Geometry, Vector

SIDES: Mapping[str, CodeTriple] = {
    "right": ("24028007", "SCT", "Right"),
    "left": ("7771000", "SCT", "Left"),
}


Corner = tuple[int, int]  # between pixels: x, y
# (the pixel beside, the corner where its side begins, the way along it), clockwise.
SIDES_OF_PIXEL = (
    ((0, -1), (0, 0), (1, 0)),
    ((1, 0), (1, 0), (0, 1)),
    ((0, 1), (1, 1), (-1, 0)),
    ((-1, 0), (0, 1), (0, -1)),
)


@dataclass(frozen=True)
class Box:
    """The pixels of a slice around a finding: from `top` and `left` to before `bottom`, `right`."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def rows(self) -> tuple[int, int]:
        return self.top, self.bottom

    @property
    def columns(self) -> tuple[int, int]:
        return self.left, self.right

    @property
    def outline(self) -> list[tuple[float, float]]:
        """Its corners as (column, row), closed; a pixel reaches from its number to the next."""
        corners = [(self.left, self.top), (self.right, self.top), (self.right, self.bottom)]
        return [*corners, (self.left, self.bottom), (self.left, self.top)]


@dataclass(frozen=True, eq=False)
class NumberedFinding:
    """A finding by its number: 1 is that with the highest score."""

    number: int
    finding: Finding
    kind: Segment  # what findings of its model are

    @property
    def label(self) -> str:
        return f"{self.kind.label} {self.number}"

    def words(self, headers: Sequence[Header]) -> str:
        """A line about it; what it means is for a person to say."""
        of, number = self.finding, headers[self.middle].integer("InstanceNumber")
        sizes = f"{of.diameter_mm:.1f} mm ({of.long_axis_mm:.1f} x {of.short_axis_mm:.1f})"
        site = f", {of.site}" if of.site else ""
        image = f", image {number}" if number is not None else ""
        return f"{self.number}: {sizes}{site}{image}, score {of.score:.2f}"

    @property
    def where(self) -> str:
        """What the model says of the place, in words; "" for nothing."""
        return str(self.finding.record.get("where", ""))

    @property
    def region(self) -> Region:
        """Its segment, with the side where that is known."""
        side = SIDES.get(self.finding.site)
        segment = replace(self.kind, label=self.label, region_modifier=side)
        return Region(segment, self.finding.mask, self.label, self.finding.first)

    @cached_property
    def slices(self) -> Sequence[int]:
        """The slices of the stack in which it lies, ascending."""
        return sorted(self.region.slices)

    @cached_property
    def middle(self) -> int:
        """The slice in which it is largest; of several, the one nearest to its middle."""
        areas = self.finding.mask.sum(axis=(1, 2))
        largest = self.finding.first[0] + np.flatnonzero(areas == areas.max())
        centre = (self.slices[0] + self.slices[-1]) / 2.0
        return int(min(largest, key=lambda place: (abs(place - centre), place)))

    def box(self, place: int) -> Box:
        """Around its pixels in a slice of the stack that it lies in."""
        first, row, column = self.finding.first
        plane = self.finding.mask[place - first]
        rows, columns = np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0))
        return Box(
            int(row + rows[0]),
            int(column + columns[0]),
            int(row + rows[-1] + 1),
            int(column + columns[-1] + 1),
        )

    def outline(self) -> list[tuple[float, float]]:
        """Around its largest part in the slice where it is largest: (column, row), closed.

        Along the edges of its pixels; the first pixel reaches from 0 to 1 (PS3.3 C.18.6.1.1).
        """
        _, row, column = self.finding.first
        plane = self.finding.mask[self.middle - self.finding.first[0]]
        return [(x + float(column), y + float(row)) for x, y in _largest_outline(plane)]

    def centre_mm(self, geometry: Geometry) -> Vector:
        """The mean of its pixels in the patient (LPS)."""
        slices, rows, columns = np.nonzero(self.finding.mask)
        first, row, column = self.finding.first
        across, down = geometry.orientation
        places = geometry.positions[slices + first].mean(axis=0)
        place: Vector = (
            places
            + across * geometry.pixel_spacing[1] * (columns.mean() + column)
            + down * geometry.pixel_spacing[0] * (rows.mean() + row)
        )
        return place

    def record(self, layout: Layout) -> Mapping[str, object]:
        """For the page of the job and for scripts: its place, its sizes and its score."""
        finding, box = self.finding, self.box(self.middle)
        geometry = layout.geometry
        return {
            **finding.record,
            "number": self.number,
            "label": self.label,
            "score": round(finding.score, 3),
            "slice": self.middle,
            "instance_number": layout.headers[self.middle].integer("InstanceNumber"),
            "at_mm": geometry.place_mm(geometry.positions[self.middle]),
            "slices": [self.slices[0], self.slices[-1]],
            "box": [box.left, box.top, box.right, box.bottom],
            "centre_mm": [round(float(mm), 2) for mm in self.centre_mm(geometry)],
            "diameter_mm": finding.diameter_mm,
            "long_axis_mm": round(finding.long_axis_mm, 1),
            "short_axis_mm": round(finding.short_axis_mm, 1),
            "volume_mm3": round(finding.volume_mm3, 1),
            "site": finding.site,
        }


def check_sides(
    findings: Sequence[NumberedFinding], organs: Mapping[str, Region], geometry: Geometry
) -> None:
    """Raise PredictionError where a model has taken the patient's left for the right.

    `organs` are the pair that it looked in, by side; nothing is judged without both.
    """
    if organs.keys() != SIDES.keys():
        return
    right, left = (_mean_x_mm(organs[side].mask, geometry) for side in SIDES)
    if right >= left:  # +x is to the left of the patient (LPS)
        raise PredictionError("the model gave a right organ that lies left of the left one")
    for of in findings:
        pixels = {side: _common(of.finding, organ.mask) for side, organ in organs.items()}
        if of.finding.site and pixels[of.finding.site] < max(pixels.values()):
            raise PredictionError(f"the model gave finding {of.number} a side that it is not on")


def _common(finding: Finding, organ: NDArray[np.bool_]) -> int:
    """The number of pixels of a finding that lie in an organ."""
    ends = zip(finding.first, finding.mask.shape, strict=True)
    block = organ[tuple(slice(first, first + length) for first, length in ends)]
    return int(np.count_nonzero(block & finding.mask))


def _mean_x_mm(organ: NDArray[np.bool_], geometry: Geometry) -> float:
    """From the patient's right to the left."""
    slices, rows, columns = (organ.sum(axis=axes) for axes in ((1, 2), (0, 2), (0, 1)))
    across, down = geometry.orientation[:, 0]
    return float(
        np.average(geometry.positions[:, 0], weights=slices)
        + across * geometry.pixel_spacing[1] * np.average(np.arange(len(columns)), weights=columns)
        + down * geometry.pixel_spacing[0] * np.average(np.arange(len(rows)), weights=rows)
    )


def numbered(findings: Sequence[Finding], kind: Segment) -> list[NumberedFinding]:
    """The findings of a prediction, which come with the highest score first."""
    return [NumberedFinding(number, of, kind) for number, of in enumerate(findings, start=1)]


def _largest_outline(plane: NDArray[np.bool_]) -> list[Corner]:
    """Around the largest part of a mask, closed, by the corners at which it turns."""
    edges = _edges(plane)
    outlines = []
    while edges:
        first = min(edges)
        outline, corner, along = [first], first, edges[first][0]
        while True:
            edges[corner].remove(along)
            if not edges[corner]:
                del edges[corner]
            corner = (corner[0] + along[0], corner[1] + along[1])
            outline.append(corner)
            if corner == first:
                break
            # Where two parts touch at a corner, to the right: around the same part.
            right = (-along[1], along[0])
            along = right if right in edges[corner] else edges[corner][0]
        outlines.append(outline)
    largest = max(outlines, key=_area)
    return [at for place, at in enumerate(largest) if _is_turn(largest, place)]


def _edges(plane: NDArray[np.bool_]) -> dict[Corner, list[Corner]]:
    """The edges of a mask, its pixels on their right: corner (x, y) -> the ways that lead on."""
    inside = np.pad(plane, 1)
    edges: dict[Corner, list[Corner]] = {}
    for (right, down), (x, y), along in SIDES_OF_PIXEL:
        beside = np.roll(inside, (-down, -right), (0, 1))
        for row, column in np.argwhere(inside & ~beside).tolist():
            edges.setdefault((column - 1 + x, row - 1 + y), []).append(along)
    return edges


def _area(outline: Sequence[Corner]) -> float:
    """Twice the area within; below 0 around a hole."""
    return sum(x * v - u * y for (x, y), (u, v) in pairwise(outline))


def _is_turn(outline: Sequence[Corner], place: int) -> bool:
    """True for a corner of a closed outline that is not on a straight line, and for its ends."""
    if place in (0, len(outline) - 1):
        return True
    (a, b), (x, y), (u, v) = outline[place - 1 : place + 2]
    return (x - a) * (v - y) != (u - x) * (y - b)
