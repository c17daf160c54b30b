"""Filling of one gap, or survey of one slice: candidates, network, guards, gate, confidence."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.model import Draft, Limits, Measured, Prediction, Step, Trust, Window
from inference.models import confidence, gate
from inference.models.classical import Extent, Neighbourhood, envelope, linear, shifted
from inference.models.confidence import Expectation, PlaceInGap
from inference.models.gate import DIS, LEAST_HU, Calibration, SeriesGate
from inference.models.runtime import MARGIN, MULTIPLE, Margins, Runtime
from inference.volume import Offset, Plane, on_line

# A fifth of a chest's slices is air above and below the patient. What flow and network could say
# of it is which of three candidates to take, and where nothing is and nothing moves all of them are
# the same: there a slice is linear interpolation.

# Something is where the mean of a square of 8 pixels is above air, or where A and C differ there:
# a fold of cloth is thinner than a square, and moves. Noise in air is a few HU in such a mean.
AIR_HU, MOVED_HU = -900.0, 30.0
# Pixels of air that the network sees around what is there; its share fades to nothing over them.
AROUND = MULTIPLE
# Sides are multiples of it, for memory: each shape of a slice costs the runtime some of its own.
SIDE = 4 * MULTIPLE

Edges = tuple[float, float, float, float]  # top, left, bottom, right; the last two are outside

Planes = NDArray[np.float32]
PLACE_DIGITS = 9


def extent_of(near: Neighbourhood) -> Extent:
    """Rows and columns around all that A or C holds, wherever in their gap a slice may lie.

    Each begins where the network's coarsest pixels do on a whole slice, so that it says the same of
    what is there. All of the slice, where there is nothing but air.
    """
    rows, columns = near.planes[0].shape
    squares = {place: _squares(near.planes[place]) for place in (0, 1)}
    opposite = _squares(near.opposite) if near.is_sheared else squares[1]
    masks = [
        (0, squares[0] > AIR_HU),
        (1, squares[1] > AIR_HU),
        (0, np.abs(squares[0] - opposite) > MOVED_HU),
    ]
    boxes = [
        _moved(_edges(mask, (rows, columns)), near.offset(place, t))
        for place, mask in masks
        if mask.any()
        for t in (0.0, 1.0)
    ]
    if not boxes:
        return slice(0, rows), slice(0, columns)
    tops, lefts, bottoms, rights = zip(*boxes, strict=True)
    return _span(min(tops), max(bottoms), rows), _span(min(lefts), max(rights), columns)


def margins_of(near: Neighbourhood) -> Margins:
    """The margins of the extent: none where it ends in air before the slice does."""
    rows, columns = near.extent
    height, width = near.planes[0].shape
    ends = rows.start > 0, rows.stop < height, columns.start > 0, columns.stop < width
    top, bottom, left, right = (0 if is_in_air else MARGIN for is_in_air in ends)
    return top, bottom, left, right


def pasted(inside: Plane, around: Plane, extent: Extent) -> Plane:
    """A slice with `inside` in its extent, which fades into what lies around, in air."""
    if inside.shape == around.shape:
        return inside
    rows, columns = (_shares(span, size) for span, size in zip(extent, around.shape, strict=True))
    share = rows[:, None] * columns
    whole = around.copy()
    whole[extent] += share * (inside - around[extent])
    return whole


def spread(inside: Plane, extent: Extent, shape: tuple[int, ...]) -> Plane:
    """A plane of an extent, with its edges repeated beyond it."""
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
    """The network's share along one side: 1, but less and less at its ends in air."""
    rising = np.arange(1, AROUND + 1, dtype=np.float32) / (AROUND + 1)
    shares = np.ones(kept.stop - kept.start, np.float32)
    if kept.start > 0:
        shares[:AROUND] = rising
    if kept.stop < size:
        shares[-AROUND:] = rising[::-1]
    return shares


@dataclass(frozen=True, eq=False)
class Inputs:
    """The input of the network for one slice."""

    planes: (
        Planes  # (6, rows, columns) of P, A, C, N, and A and C moved along the flow, or (4, ...)
    )
    conditions: Planes  # (6,); the first is t
    cubic: Planes  # (4,): weights of P, A, C, N

    @property
    def t(self) -> float:
        """The place between A and C as the network counts it."""
        return float(self.conditions[0])


@dataclass(frozen=True, eq=False)
class NetworkSlice:
    """The extent of a slice before the gate: the network's, and what it was given for that."""

    plane: Plane
    scale_hu: Plane
    flow_blend: Plane
    given: Inputs

    def classical(self, name: str) -> Plane:
        """A candidate that needs no training."""
        if name == DIS:
            return self.flow_blend
        return gate.candidate(name, self.given.planes, self.given.cubic, self.given.t)


class InputsOf(Protocol):
    """What the network is given for a slice at t of a gap; without warps it needs no flow."""

    def __call__(self, near: Neighbourhood, t: float, *, has_warps: bool = True) -> Inputs: ...


@dataclass(frozen=True, eq=False)
class FilledSlice:
    """One slice after the gate, what is expected of it, and the candidate that may replace it."""

    plane: Plane
    weight: float  # of the network in it
    scale_hu: Plane
    trust: Trust
    classical: Plane
    classical_trust: Trust


class Filling:
    """Fills gaps with one network; keeps nothing between two of them."""

    def __init__(
        self,
        runtime: Runtime,
        inputs_of: InputsOf,
        calibration: Calibration,
    ) -> None:
        self._runtime = runtime
        self._inputs_of = inputs_of
        self._calibration = calibration

    def draft(self, step: Step, window: Window, limits: Limits) -> Draft:
        """The slices of one gap before the gate, which needs the surveys of the whole stack."""
        whole, places = oriented(Neighbourhood.of(step, window), step.fractions)
        made = self._network_slices(within_extent(whole), places, limits)
        return Draft(
            tuple(plane for seen in made for plane in (seen.plane, seen.scale_hu, seen.flow_blend))
        )

    def fill(self, step: Step, window: Window, limits: Limits) -> Prediction:
        """The slices of one gap, with what is expected of them."""
        assert step.gap is not None
        whole, places = oriented(Neighbourhood.of(step, window), step.fractions)
        near = within_extent(whole)
        surveyed, first_mm = window.surveyed, float(window.geometry.distances_mm[step.gap])
        series = gate.decided(surveyed, self._calibration)
        expectation = Expectation.of(surveyed, self._calibration)
        noise_hu = confidence.noise_of(near)
        filled = []
        if window.draft is None:
            network_slices = self._network_slices(near, places, limits)
        else:
            network_slices = self._drafted(near, places, window.draft)
        for fraction, t, seen in zip(step.fractions, places, network_slices, strict=True):
            at_mm = first_mm + fraction * near.gap_mm
            here = gate.at_height(surveyed, series, at_mm)
            around = interpolated(whole, t)
            candidate = seen.classical(series.classical)
            plane = pasted(_finished(near, t, seen, here.weight, candidate), around, near.extent)
            mixed = gate.mixed_error(surveyed, here.weight, at_mm)
            place = PlaceInGap.of(near, t, noise_hu)
            scale = spread(seen.scale_hu, near.extent, plane.shape)
            expected, scale = confidence.trusted(expectation, plane, scale, place, at_mm, mixed)
            classical = pasted(gate.bounded(near, t, candidate), around, near.extent)
            instead = gate.classical_error(surveyed, series.classical, at_mm) / mixed
            other = confidence.multiplied(expected, instead)
            filled.append(FilledSlice(plane, here.weight, scale, expected, classical, other))
        return self._prediction(filled, series)

    def _prediction(self, filled: Sequence[FilledSlice], series: SeriesGate) -> Prediction:
        return Prediction(
            planes=tuple(slice_.plane for slice_ in filled),
            weights=tuple(slice_.weight for slice_ in filled),
            scale_hu=tuple(slice_.scale_hu for slice_ in filled),
            trust=self._if_calibrated([slice_.trust for slice_ in filled]),
            classical=tuple(slice_.classical for slice_ in filled),
            classical_name=series.classical,
            classical_trust=self._if_calibrated([slice_.classical_trust for slice_ in filled]),
            record={
                "network_weight": round(series.weight, 4),
                "classical": series.classical,
                "surveyed": series.surveyed,
            },
        )

    def survey(self, step: Step, window: Window, limits: Limits) -> Prediction:
        """Compare the network and the candidates with a received slice that is left out."""
        assert step.survey is not None
        near = Neighbourhood.leaving_out(step, window)
        at_mm = window.geometry.distances_mm
        t = float(at_mm[step.survey] - at_mm[step.survey - 1]) / near.gap_mm
        # In the frame of the line between its neighbours.
        own = window.geometry.shift_pixels(step.survey - 1, step.survey)
        offset = on_line(near.shifts[1], own, t)
        whole, (t,) = oriented(near, (t,))
        near = within_extent(whole)
        truth = shifted(window.slices[step.survey], offset)
        (seen,) = self._network_slices(near, (t,), limits)
        inside = _finished(near, t, seen, 1.0, seen.classical(self._calibration.classical))
        plane = pasted(inside, interpolated(whole, t), near.extent)
        scale = spread(seen.scale_hu, near.extent, plane.shape)
        place = PlaceInGap.of(near, t, confidence.noise_of(near))
        candidates = {name: seen.classical(name) for name in gate.CLASSICAL}
        measured: Measured = {
            "at_mm": float(at_mm[step.survey]),
            **gate.errors_of(truth[near.extent], inside, candidates),
            **confidence.compared(plane, truth, scale, place, self._calibration),
        }
        return Prediction(measured=measured)

    def _if_calibrated(self, trust: Sequence[Trust]) -> tuple[Trust, ...]:
        """Nothing is said of slices whose network nobody calibrated."""
        return tuple(trust) if self._calibration.is_fitted else ()

    def _drafted(
        self, near: Neighbourhood, fractions: Sequence[float], draft: Draft
    ) -> Sequence[NetworkSlice]:
        made = zip(draft.planes[::3], draft.planes[1::3], draft.planes[2::3], strict=True)
        return [
            NetworkSlice(plane, scale_hu, blend, self._inputs_of(near, t, has_warps=False))
            for t, (plane, scale_hu, blend) in zip(fractions, made, strict=True)
        ]

    def _network_slices(
        self, near: Neighbourhood, fractions: Sequence[float], limits: Limits
    ) -> Sequence[NetworkSlice]:
        # A processor gains nothing from batches: one slice's layers stay in its cache.
        batch = 1 if limits.device == "cpu" else max(1, limits.batch)
        network_slices: list[NetworkSlice] = []
        for first in range(0, len(fractions), batch):
            some = [self._inputs_of(near, t) for t in fractions[first : first + batch]]
            slices, scales = self._runtime.predict(
                some[0].planes[None] if batch == 1 else np.stack([one.planes for one in some]),
                np.stack([given.conditions for given in some]),
                np.stack([given.cubic for given in some]),
                limits,
                margins_of(near),
            )
            for given, plane, scale in zip(some, slices, scales, strict=True):
                blend = gate.candidate(DIS, given.planes, given.cubic, given.t)
                network_slices.append(NetworkSlice(plane, scale, blend, given))
        return network_slices


def oriented(
    near: Neighbourhood, fractions: Sequence[float]
) -> tuple[Neighbourhood, tuple[float, ...]]:
    """The gap with the brighter slice as C: then z reversed gives the same bits.

    Places are rounded, since 1 - 1/3 and 2/3 are two numbers.
    """
    a, c = (cv2.sumElems(near.planes[place])[0] for place in (0, 1))
    if a > c:
        return near.reversed(), tuple(round(1.0 - t, PLACE_DIGITS) for t in fractions)
    return near, tuple(round(t, PLACE_DIGITS) for t in fractions)


def within_extent(near: Neighbourhood) -> Neighbourhood:
    """The gap, of which only what is there or moves is asked about."""
    return replace(near, part=extent_of(near))


def interpolated(near: Neighbourhood, t: float) -> Plane:
    """The slice at `t` as it is in air; straight interpolation needs no guard but for shear."""
    plane = linear(near, t)
    return np.clip(plane, *envelope(near, t)) if near.is_sheared else plane


def _finished(
    near: Neighbourhood, t: float, seen: NetworkSlice, weight: float, candidate: Plane
) -> Plane:
    """The slice after every guard that does not need stored values."""
    plane = gate.with_low_frequencies_of(candidate, seen.plane)
    if weight < 1.0:
        plane = gate.gated(seen.classical(DIS), plane, weight)
    return gate.bounded(near, t, plane)
