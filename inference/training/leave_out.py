"""Slices left out of thin series: which are received, which are targets, and what they are.

`sub-sampled` keeps every f-th slice. `slab` first averages f slices, as a scanner with slices as
thick as their gap does. `left-out` leaves out one interior slice at a time, wherever it lies: the
way to judge on a series whose slices are unevenly spaced.
"""

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from inference.model import Step, Window
from inference.training.data import ThinSeries
from inference.volume import Geometry, Plane, Volume

Mode = Literal["sub-sampled", "slab", "left-out"]

# The list of the known series is kept in `targets.json`, so that no change of a random generator
# can move it; a series that is not in it is drawn by the rule that made the list.
COMMITTED = Path(__file__).with_name("targets.json")
SEED = 2026
TARGETS = 20  # slices a cell
KEPT_PLANES = 24  # read slices in memory: the spline looks back and forth over some of them
MOST_SHIFT_PIXELS = 0.01  # between two slices, beyond which a mean of them is no slab


@dataclass(frozen=True)
class SeriesTargets:
    """The targets of one series at one factor; `slices` and `name` say which series it is."""

    name: str  # of its folder
    slices: int  # of the thin series, or of what averaging leaves of it
    factor: int
    targets: tuple[int, ...]


def drawn_targets(name: str, slices: int, factor: int, count: int = TARGETS) -> tuple[int, ...]:
    """The rule: a permutation of the left-out slices, seeded by the name of the series."""
    last = (slices - 1) // factor * factor
    left_out = [index for index in range(last) if index % factor]
    digest = hashlib.sha256(f"{SEED}/{name}/{slices}/{factor}".encode()).digest()
    random = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    drawn = random.permutation(left_out)[:count]
    return tuple(sorted(int(index) for index in drawn))


class TargetList:
    """Targets by name, slices and factor: those of a list first, those of the rule else."""

    def __init__(self, listed: Iterable[SeriesTargets] = ()) -> None:
        self._listed = {(cell.name, cell.slices, cell.factor): cell.targets for cell in listed}

    def __len__(self) -> int:
        return len(self._listed)

    def targets(self, name: str, slices: int, factor: int, count: int = TARGETS) -> tuple[int, ...]:
        """A list holds whole cells: a smaller or larger count is drawn by the rule."""
        known = self._listed.get((name, slices, factor))
        if known is not None and count == TARGETS:
            return known
        return drawn_targets(name, slices, factor, count)


def read_list(path: Path = COMMITTED) -> TargetList:
    """A list as `write_list` wrote it."""
    return TargetList(
        SeriesTargets(cell["name"], cell["slices"], cell["factor"], tuple(cell["targets"]))
        for cell in json.loads(path.read_text())["series"]
    )


def write_list(listed: Iterable[SeriesTargets], path: Path) -> None:
    """One line a cell, in an order that does not depend on how the series were found."""
    ordered = sorted(listed, key=lambda cell: (cell.name, cell.slices, cell.factor))
    lines = ",\n    ".join(json.dumps(asdict(cell)) for cell in ordered)
    head = f'  "seed": {SEED},\n  "slices_a_cell": {TARGETS},\n'
    path.write_text(f'{{\n{head}  "series": [\n    {lines}\n  ]\n}}\n')


@dataclass(frozen=True)
class Target:
    """A slice to predict: its place among the thin slices, and in its gap."""

    index: int  # of the thin series; of a slab, its first slice
    gap: int  # between received slices `gap` and `gap + 1`
    t: float


@dataclass(frozen=True, eq=False)
class LeaveOutStack:
    """A received stack and the targets in its gaps, ascending."""

    thin: "_ThinSlices"
    mode: Mode
    factor: int
    received: Sequence[int]  # thin slices, ascending
    targets: tuple[Target, ...]

    @property
    def series(self) -> ThinSeries:
        return self.thin.series

    @cached_property
    def volume(self) -> Volume:
        """The received slices as the node would read them."""
        geometry = self._part(self.received)
        return Volume(geometry, lambda place: self.thin.read(self.received[place]))

    def truth(self, target: Target) -> Plane:
        return self.thin.read(target.index)

    def stored(self, plane: Plane, gap: int, t: float) -> Plane:
        """A predicted slice of a gap and t, as files would hold it."""
        return self.thin.stored(plane, self.received[gap], self.received[gap + 1], t)

    def by_gap(self) -> Iterator[tuple[int, tuple[Target, ...]]]:
        """The targets of each gap that has some."""
        for gap in sorted({target.gap for target in self.targets}):
            yield gap, tuple(target for target in self.targets if target.gap == gap)

    def whole_gaps(self, count: int) -> tuple[tuple[int, tuple[float, ...]], ...]:
        """`count` gaps from the middle on with every place that the factor fills, to time."""
        gaps = len(self.volume) - 1
        first = max(0, (gaps - count) // 2)
        places = tuple(k / self.factor for k in range(1, self.factor))
        return tuple((gap, places) for gap in range(first, min(gaps, first + count)))

    def survey(self, index: int) -> tuple[Step, Window]:
        """One thin slice among the two received ones on each side; it may be one of them."""
        before, after = bisect_left(self.received, index), bisect_right(self.received, index)
        below, above = self.received[max(0, before - 2) : before], self.received[after : after + 2]
        indices = [*below, index, *above]
        # Slabs are whole numbers here, as in files.
        slices = {place: np.rint(self.thin.read(index)) for place, index in enumerate(indices)}
        return Step(tuple(slices), survey=len(below)), Window(self._part(indices), slices)

    def _part(self, indices: Sequence[int]) -> Geometry:
        geometry = self.thin.geometry
        return replace(geometry, positions=geometry.positions[list(indices)])


def slices_left(series: ThinSeries, factor: int, mode: Mode) -> int:
    """The number of thin slices, or of slabs of them, that there are to choose from."""
    return len(series) - (factor - 1 if mode == "slab" else 0)


def unsuitable(series: ThinSeries, factor: int, mode: Mode) -> str | None:
    """The reason why no slices can be left out of a series so; None where they can."""
    if mode == "left-out":
        return None
    if slices_left(series, factor, mode) <= factor:
        return f"{len(series)} slices are too few to leave out {factor - 1} of {factor}"
    if mode == "slab" and not series.is_even:
        return "unevenly spaced slices cannot be averaged to slabs"
    if mode == "slab" and max(map(abs, series.geometry.shift_pixels(0, 1))) > MOST_SHIFT_PIXELS:
        return "slices of a tilted gantry cannot be averaged to slabs"
    return None


def leave_out(
    series: ThinSeries, factor: int, mode: Mode, listed: TargetList, count: int = TARGETS
) -> tuple[LeaveOutStack, ...]:
    """The stacks of one cell: one, or for `left-out` one a slice that is left out."""
    if mode == "left-out":
        whole = _ThinSlices(series, 1)
        return tuple(_without(whole, index) for index in range(1, len(series) - 1))
    left = slices_left(series, factor, mode)
    thin = _ThinSlices(series, factor if mode == "slab" else 1)
    targets = tuple(
        _target(thin.geometry, index, factor)
        for index in listed.targets(series.name, left, factor, count)
    )
    if not targets:
        return ()
    return (LeaveOutStack(thin, mode, factor, range(0, left, factor), targets),)


def replaced_series(stack: LeaveOutStack, series: ThinSeries) -> LeaveOutStack:
    """The same slices received and left out, of a series with other pixels."""
    width = stack.factor if stack.mode == "slab" else 1
    return replace(stack, thin=_ThinSlices(series, width))


def _without(thin: "_ThinSlices", index: int) -> LeaveOutStack:
    places = thin.geometry.distances_mm
    received = [other for other in range(len(places)) if other != index]
    t = (places[index] - places[index - 1]) / (places[index + 1] - places[index - 1])
    return LeaveOutStack(thin, "left-out", 2, received, (Target(index, index - 1, float(t)),))


def _target(geometry: Geometry, index: int, factor: int) -> Target:
    """Its place comes from positions, not from counts."""
    gap, places = index // factor, geometry.distances_mm
    before, after = places[gap * factor], places[(gap + 1) * factor]
    return Target(index, gap, float((places[index] - before) / (after - before)))


class _ThinSlices:
    """The thin slices, each the mean of `width` of them; the last ones read are kept."""

    def __init__(self, series: ThinSeries, width: int) -> None:
        self.series, self._width = series, width
        own = series.geometry
        thickness = own.thickness_mm or series.spacing_mm
        # All slabs are moved by the same half thickness, which no method can see.
        self.geometry = replace(
            own,
            positions=own.positions[: len(own) - width + 1],
            thickness_mm=thickness + (width - 1) * series.spacing_mm,
        )
        self._kept: OrderedDict[int, Plane] = OrderedDict()

    def read(self, index: int) -> Plane:
        if index not in self._kept:
            parts = [self.series.read(index + k) for k in range(self._width)]
            plane = parts[0] if self._width == 1 else np.asarray(np.mean(parts, axis=0))
            plane.setflags(write=False)
            self._kept[index] = plane
        self._kept.move_to_end(index)
        while len(self._kept) > KEPT_PLANES:
            self._kept.popitem(last=False)
        return self._kept[index]

    def stored(self, plane: Plane, before: int, after: int, t: float) -> Plane:
        """Slabs are rounded to whole HU: what files of them would hold is not known."""
        if self._width > 1:
            return np.asarray(np.rint(plane))
        return self.series.stored(plane, before, after, t)
