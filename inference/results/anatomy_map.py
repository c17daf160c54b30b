"""One page that shows where findings lie: a coronal overview, and two planes through each.

The pictures are of the received slices; the page is read before it is anything else, so its words
stand in its pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from inference.geometry import Layout
from inference.results.captures import FAINT, MARGIN, MARK, SMALL, Page, Rgb, grey
from inference.results.findings import NumberedFinding
from inference.volume import Geometry, Plane

Line = NDArray[np.float32]
Places = NDArray[np.float64]
Span = tuple[float, float]  # mm

LUNG = -600.0, 1500.0  # centre and width, HU
LEAST = -750.0, 700.0  # of the overview: airways, lung, and what is denser
AIR_HU = -1024.0  # beyond the edges of the slices
OVERVIEW_SIDE, VIEW_SIDE, VIEW_MM = 512, 168, 80.0
CELLS_ACROSS, GAP, LINE_HEIGHT = 2, 12, 36  # of the page; the last two in pixels
HEAD = 96
LEAST_COSINE = 0.5  # of a row that runs from one side of the patient to the other


@dataclass
class Overview:
    """Collects, slice by slice in their order, what the page is drawn from."""

    findings: Sequence[NumberedFinding]
    coronal: list[Line] = field(default_factory=list)  # (columns,) of each slice
    sagittal: dict[int, list[Line]] = field(default_factory=dict)  # finding -> (rows,) of each
    axial: dict[int, Plane] = field(default_factory=dict)  # finding -> (rows, columns)

    def add(self, plane: Plane, organs: NDArray[np.bool_] | None) -> None:
        """The next slice in HU, with the pixels of the organs that the model looked in.

        Of these the overview shows the least value, of the rest of the slice the mean.
        """
        place, line = len(self.coronal), plane.mean(axis=0)
        if organs is not None and organs.any():
            least = np.where(organs, plane, np.inf).min(axis=0)
            line = np.where(np.isfinite(least), least, line)
        self.coronal.append(np.asarray(line, np.float32))
        for of in self.findings:
            column = sum(of.box(of.middle).columns) // 2
            self.sagittal.setdefault(of.number, []).append(plane[:, column].copy())
            if place == of.middle:
                self.axial[of.number] = plane.copy()


@dataclass(frozen=True)
class _Axis:
    """A side of a picture: where in the stack its pixels lie, in mm."""

    first_mm: float
    step_mm: float
    count: int
    index_of: Callable[[Places], Places]  # mm -> row, column or slice

    @property
    def indices(self) -> NDArray[np.float32]:
        places = self.first_mm + self.step_mm * np.arange(self.count, dtype=np.float64)
        return np.asarray(self.index_of(places), np.float32)

    def pixels(self, span: Span) -> Span:
        """From the lower to the higher pixel."""
        first, last = sorted((mm - self.first_mm) / self.step_mm for mm in span)
        return first, last


def page(overview: Overview, layout: Layout, title: str, line: str) -> Page:
    """The whole page, with a title and a line below it."""
    geometry, findings = layout.geometry, overview.findings
    front = _coronal(overview, geometry)
    wide, high = 2 * (VIEW_SIDE + GAP), VIEW_SIDE + LINE_HEIGHT + GAP
    rows = -(-len(findings) // CELLS_ACROSS)
    width = front.width + min(len(findings), CELLS_ACROSS) * wide + 2 * MARGIN + 2 * GAP
    sheet = Page(width, HEAD + max(front.height, rows * high) + MARGIN, title)
    sheet.text(MARGIN, sheet.top, line, SMALL)
    front.put(sheet, MARGIN, HEAD)
    for place, of in enumerate(findings):
        row, column = divmod(place, CELLS_ACROSS)
        left, top = MARGIN + front.width + 2 * GAP + column * wide, HEAD + row * high
        axial, sagittal = _views(overview, of, geometry)
        axial.put(sheet, left, top)
        sagittal.put(sheet, left + VIEW_SIDE + GAP // 2, top)
        below = sheet.text(left, top + VIEW_SIDE + 3, of.words(layout.headers), SMALL)
        sheet.text(left, below, of.where, SMALL, FAINT)
    return sheet


@dataclass(frozen=True, eq=False)
class _View:
    """A picture of the stack with boxes on it."""

    pixels: Rgb
    boxes: Sequence[tuple[Span, Span, str]]  # rows, columns, number
    sides: str = ""  # of the patient, that of its left edge first

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    def put(self, sheet: Page, left: int, top: int) -> None:
        """Draw it on a page, each box a little outside of what it is about."""
        sheet.picture(left, top, self.pixels, self.width, self.height)
        for rows, columns, number in self.boxes:
            first = left + max(0, round(columns[0]) - 2), top + max(0, round(rows[0]) - 2)
            last = (
                left + min(self.width - 1, round(columns[1]) + 2),
                top + min(self.height - 1, round(rows[1]) + 2),
            )
            sheet.outline(first, last, MARK)
            right = min(last[0] + 4, left + self.width - 2 * SMALL)
            sheet.text(right, first[1] - 2, number, colour=MARK)
        for side, at in zip(self.sides, (left + 4, left + self.width - SMALL), strict=False):
            sheet.text(at, top + 2, side, SMALL)


def _coronal(overview: Overview, geometry: Geometry) -> _View:
    """The overview from the front, the head up, with a numbered box for each finding."""
    deep, wide = geometry.distances_mm, geometry.pixel_spacing[1]
    wide_mm, high_mm = geometry.columns * wide, float(np.ptp(deep))
    step = max(wide_mm, high_mm) / OVERVIEW_SIDE
    down = _slices(geometry, float(deep[0] + deep[-1]) / 2.0, high_mm, step)
    across = _plane(wide, wide_mm / 2.0, wide_mm, step)
    boxes = [
        (
            down.pixels(_depth(of, geometry)),
            across.pixels(_in_mm([of.box(place).columns for place in of.slices], wide)),
            str(of.number),
        )
        for of in overview.findings
    ]
    front = _picture(np.stack(overview.coronal), down, across, LEAST)
    return _View(front, boxes, sides_of(geometry))


def _views(overview: Overview, of: NumberedFinding, geometry: Geometry) -> tuple[_View, _View]:
    """An axial and a sagittal picture around a finding."""
    box, (high, wide) = of.box(of.middle), geometry.pixel_spacing
    rows, columns = _in_mm([box.rows], high), _in_mm([box.columns], wide)
    step, depth = VIEW_MM / VIEW_SIDE, _depth(of, geometry)
    down = _plane(high, sum(rows) / 2.0, VIEW_MM, step)
    across = _plane(wide, sum(columns) / 2.0, VIEW_MM, step)
    deep = _slices(geometry, sum(depth) / 2.0, VIEW_MM, step)
    axial = _picture(overview.axial[of.number], down, across, LUNG)
    sagittal = _picture(np.stack(overview.sagittal[of.number]), deep, down, LUNG)
    all_rows = _in_mm([of.box(place).rows for place in of.slices], high)
    return (
        _View(axial, [(down.pixels(rows), across.pixels(columns), "")], sides_of(geometry)),
        _View(sagittal, [(deep.pixels(depth), down.pixels(all_rows), "")]),
    )


def sides_of(geometry: Geometry) -> str:
    """The letters of the patient's sides at both ends of a row; nothing where a row has none."""
    across = float(geometry.orientation[0, 0])
    if abs(across) < LEAST_COSINE:
        return ""
    return "RL" if across > 0 else "LR"  # +x is to the left of the patient


def _plane(spacing: float, centre_mm: float, length_mm: float, step: float) -> _Axis:
    """Along the rows or the columns of the slices."""
    count = max(1, round(length_mm / step))
    first = centre_mm - length_mm / 2.0 + step / 2.0
    return _Axis(first, step, count, lambda mm: mm / spacing - 0.5)


def _slices(geometry: Geometry, centre_mm: float, length_mm: float, step: float) -> _Axis:
    """Across the slices, the head up."""
    up = 1.0 if geometry.normal[2] > 0 else -1.0
    count = max(1, round(length_mm / step))
    first = centre_mm + up * (length_mm / 2.0 - step / 2.0)
    deep = geometry.distances_mm

    def index_of(mm: Places) -> Places:
        places = np.arange(len(deep))
        return np.asarray(np.interp(mm, deep, places, left=-2.0, right=len(deep) + 1.0))

    return _Axis(first, -up * step, count, index_of)


def _picture(
    values: NDArray[np.float32], down: _Axis, across: _Axis, window: tuple[float, float]
) -> Rgb:
    sampled = _sampled(_sampled(values, down.indices).T, across.indices).T
    return grey(sampled, *window)


def _sampled(values: NDArray[np.float32], at: NDArray[np.float32]) -> NDArray[np.float32]:
    """(len(at), ...): between the lines of `values`, by linear interpolation; air beyond them."""
    first = np.floor(at).astype(int)
    share = (at - first)[:, None]
    bordered = np.pad(values, ((1, 1), (0, 0)), constant_values=AIR_HU)
    low, high = (np.clip(first + step, 0, len(values) + 1) for step in (1, 2))
    mixed = bordered[low] * (1.0 - share) + bordered[high] * share
    return np.asarray(mixed, np.float32)


def _in_mm(spans: Sequence[tuple[int, int]], spacing: float) -> Span:
    """From the first to the last pixel of several spans."""
    return min(first for first, _ in spans) * spacing, max(last for _, last in spans) * spacing


def _depth(of: NumberedFinding, geometry: Geometry) -> Span:
    """From below its first slice to above its last one, half a gap each, in mm."""
    deep, half = geometry.distances_mm, float(np.median(geometry.gaps_mm)) / 2.0
    return float(deep[of.slices[0]]) - half, float(deep[of.slices[-1]]) + half
