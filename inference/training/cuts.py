"""Thick stacks cut out of thin series: what a model is given, and the truth between it.

`sub-sampled` keeps every f-th slice. `slab` first averages f slices, as a scanner with slices as
thick as their gap does. `left-out` leaves out one interior slice at a time, wherever it lies: the
way to judge on a series whose slices are unevenly spaced.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from inference.model import Parameters
from inference.training.targets import TARGETS, TargetList
from inference.training.thin import ThinSeries
from inference.volume import Geometry, Plane, Volume

Mode = Literal["sub-sampled", "slab", "left-out"]

KEPT_PLANES = 24  # read slices in memory: the spline looks back and forth over some of them


@dataclass(frozen=True)
class Target:
    """A slice to predict: its place among the thin slices, and in its gap."""

    index: int  # of the thin series; of a slab, its first slice
    gap: int  # between received slices `gap` and `gap + 1`
    t: float


@dataclass(frozen=True, eq=False)
class Cut:
    """A received stack and the targets in its gaps, ascending."""

    series: ThinSeries
    mode: Mode
    factor: int
    volume: Volume  # the received stack
    targets: tuple[Target, ...]
    truth: Callable[[Target], Plane]
    stored: Callable[[Plane, int, float], Plane]  # a predicted slice of a gap and t, as on disk

    @property
    def parameters(self) -> Parameters:
        return Parameters(factor=self.factor)

    @property
    def gap_mm(self) -> float:
        return float(np.median(self.volume.geometry.gaps_mm))

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


def slices_left(series: ThinSeries, factor: int, mode: Mode) -> int:
    """How many thin slices, or slabs of them, there are to choose from."""
    return len(series) - (factor - 1 if mode == "slab" else 0)


def why_not(series: ThinSeries, factor: int, mode: Mode) -> str | None:
    """Why a series cannot be cut so; None where it can."""
    if mode == "left-out":
        return None
    if slices_left(series, factor, mode) <= factor:
        return f"{len(series)} slices are too few to leave out {factor - 1} of {factor}"
    if mode == "slab" and not series.is_even:
        return "unevenly spaced slices cannot be averaged to slabs"
    shift = series.geometry.shift_pixels(0, 1)
    if mode == "slab" and max(abs(shift[0]), abs(shift[1])) > 0.01:
        return "slices of a tilted gantry cannot be averaged to slabs"
    return None


def cuts_of(
    series: ThinSeries, factor: int, mode: Mode, listed: TargetList, count: int = TARGETS
) -> tuple[Cut, ...]:
    """The stacks of one cell: one, or for `left-out` one a slice that is left out."""
    if mode == "left-out":
        whole = _Thin(series, 1)
        return tuple(_without(whole, index) for index in range(1, len(series) - 1))
    left = slices_left(series, factor, mode)
    wanted = listed.targets(series.name, left, factor, count)
    thin = _Thin(series, factor if mode == "slab" else 1)
    received = range(0, left, factor)
    targets = tuple(_target(thin.geometry, index, factor) for index in wanted)
    return (_cut(thin, mode, factor, received, targets),) if targets else ()


def _without(thin: "_Thin", index: int) -> Cut:
    places = thin.geometry.distances_mm
    received = [other for other in range(len(places)) if other != index]
    t = (places[index] - places[index - 1]) / (places[index + 1] - places[index - 1])
    target = Target(index, index - 1, float(t))
    return _cut(thin, "left-out", 2, received, (target,))


def _target(geometry: Geometry, index: int, factor: int) -> Target:
    """Its place comes from positions, not from counts."""
    gap = index // factor
    places = geometry.distances_mm
    before, after = places[gap * factor], places[(gap + 1) * factor]
    return Target(index, gap, float((places[index] - before) / (after - before)))


def _cut(
    thin: "_Thin", mode: Mode, factor: int, received: Sequence[int], targets: tuple[Target, ...]
) -> Cut:
    geometry = thin.geometry
    stack = Geometry(
        positions=geometry.positions[list(received)],
        orientation=geometry.orientation,
        pixel_spacing=geometry.pixel_spacing,
        rows=geometry.rows,
        columns=geometry.columns,
        thickness_mm=geometry.thickness_mm,
    )

    def stored(plane: Plane, gap: int, t: float) -> Plane:
        return thin.stored(plane, received[gap], received[gap + 1], t)

    return Cut(
        series=thin.series,
        mode=mode,
        factor=factor,
        volume=Volume(stack, lambda place: thin.read(received[place])),
        targets=targets,
        truth=lambda target: thin.read(target.index),
        stored=stored,
    )


class _Thin:
    """The thin slices, each the mean of `width` of them; the last ones read are kept."""

    def __init__(self, series: ThinSeries, width: int) -> None:
        self.series, self._width = series, width
        own = series.geometry
        count = len(own) - width + 1
        thickness = own.thickness_mm or series.spacing_mm
        # All slabs are moved by the same half thickness, which no method can see.
        self.geometry = Geometry(
            positions=own.positions[:count],
            orientation=own.orientation,
            pixel_spacing=own.pixel_spacing,
            rows=own.rows,
            columns=own.columns,
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
        """What files of slabs would hold is not known: they are rounded to whole HU."""
        if self._width > 1:
            return np.asarray(np.rint(plane))
        return self.series.stored(plane, before, after, t)
