"""Interpolation without training: linear, cubic and optical flow (DIS), and the model `linear`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.errors import Reason, Unprocessable
from inference.model import Limits, Parameters, Prediction, Produces, Step, Window
from inference.volume import Geometry, Offset, Plane, moved, on_line

LEAST_FACTOR, MOST_FACTOR = 2, 10
# A gap of 5.02 mm at a target of 2.5 mm is two slices, not three: the ratio may exceed a whole
# number by this much before another slice is made.
RATIO_TOLERANCE = 0.01
# Two slices nearer than this are the same place twice, not a gap.
LEAST_GAP_MM = 1e-3

Flow = NDArray[np.float32]  # (rows, columns, 2): x then y, in pixels, as OpenCV orders them
Extent = tuple[slice, slice]  # rows, columns
NO_MAP = np.empty(0, np.float32)  # x and y lie in the first one
# What flow is searched in: air to enhanced soft tissue in 8 bits. Bone and metal saturate; the
# 8-bit picture serves the search alone, slices are always sampled in float.
FLOW_LOW_HU, FLOW_HIGH_HU = -1100.0, 500.0
# DIS searches a pyramid of patches and needs some room; smaller slices are padded for the search.
LEAST_FLOW_SIDE = 64
# A shift below a thousandth of a pixel is rounding of positions, not gantry tilt.
LEAST_SHIFT_PIXELS = 1e-3
# A neighbour nearer than this share of the gap says nothing of the slope across it but noise.
LEAST_BESIDE_GAP = 0.25
UNKNOWN_OVERLAP = 0.5  # thickness over gap of slices whose thickness nobody says
# From here on what moves does so by more than four pixels; the envelope looks eight far.
WIDE_GAP_MM = 6.0


def gap_factors(geometry: Geometry, parameters: Parameters) -> tuple[int, ...]:
    """For each gap of the stack the slices out per slice in; 1 = nothing is generated there."""
    factor, target = parameters.factor, parameters.target_spacing_mm
    if (factor is None) == (target is None):
        raise ValueError("exactly one of factor and target_spacing_mm must be given")
    if factor is not None:
        if not LEAST_FACTOR <= factor <= MOST_FACTOR:
            raise ValueError(f"factor = {factor}: allowed is {LEAST_FACTOR} to {MOST_FACTOR}")
        return tuple(factor if gap > LEAST_GAP_MM else 1 for gap in geometry.gaps_mm)
    assert target is not None
    if not (math.isfinite(target) and target > 0.0):
        raise ValueError(f"target_spacing_mm = {target}: allowed is a number above 0")
    ratios = (math.ceil(gap / target - RATIO_TOLERANCE) for gap in geometry.gaps_mm.tolist())
    return tuple(max(1, min(MOST_FACTOR, ratio)) for ratio in ratios)


def plan_gaps(geometry: Geometry, parameters: Parameters, *, reach: int) -> Sequence[Step]:
    """One step per gap to fill, needing `reach` received slices on either side of it."""
    if len(geometry) < 2:
        raise Unprocessable(
            Reason.TOO_FEW_SLICES,
            f"The stack has {len(geometry)} slice; at least 2 are needed to fill a gap.",
        )
    steps = []
    for gap, factor in enumerate(gap_factors(geometry, parameters)):
        if factor > 1:
            needs = range(max(0, gap + 1 - reach), min(len(geometry), gap + 1 + reach))
            fractions = tuple(k / factor for k in range(1, factor))
            steps.append(Step(needs=tuple(needs), gap=gap, fractions=fractions))
    if not steps:
        raise Unprocessable(
            Reason.NOTHING_TO_DO,
            f"The slices lie {float(geometry.gaps_mm.max()):.2f} mm apart at most, which is "
            "already as close as requested.",
        )
    return tuple(steps)


# All of it works on a *neighbourhood*: the received slices P, A, C, N around a gap A-C, of which P
# and N may be missing at an end of the stack. A stack that shears against its orientation (gantry
# tilt) is followed: each slice is sampled once, where the patient's point lies in it.


@dataclass(frozen=True)
class FlowSearch:
    """The effort of DIS in search of flow (Kroeger et al., ECCV 2016), at half the resolution."""

    stride: int  # pixels between two patches of 8
    descents: int  # steps of gradient descent, a patch and level
    refinements: int  # steps that smooth the flow, a level


# OpenCV's preset "medium", by which flow is judged wherever methods are compared, and what the
# generator uses: 0.6 of the time for the same error.
MEDIUM, QUICK = FlowSearch(stride=3, descents=25, refinements=5), FlowSearch(4, 12, 3)


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """The received slices around one gap, and where each lies relative to it."""

    planes: Mapping[int, Plane]  # -1: P, 0: A, 1: C, 2: N; P and N where the stack has them
    distances_mm: Mapping[int, float]  # along the normal, from A
    shifts: Mapping[int, Offset]  # off the normal through A
    pixel_mm: float
    thickness_mm: float | None = None
    search: FlowSearch = QUICK
    part: Extent | None = None  # of the slice at t, which alone is made; None = all of it

    @classmethod
    def of(cls, step: Step, window: Window) -> "Neighbourhood":
        """The slices of a step of `plan_gaps`; it may need fewer than P and N."""
        assert step.gap is not None
        wanted = {place: step.gap + place for place in (-1, 0, 1, 2)}
        return cls.around({p: i for p, i in wanted.items() if i in step.needs}, window)

    @classmethod
    def leaving_out(cls, step: Step, window: Window) -> "Neighbourhood":
        """The slices around the one that a survey step leaves out: a gap of twice the width."""
        assert step.survey is not None
        wanted = {-1: step.survey - 2, 0: step.survey - 1, 1: step.survey + 1, 2: step.survey + 2}
        return cls.around({p: i for p, i in wanted.items() if i in step.needs}, window)

    @classmethod
    def around(cls, present: Mapping[int, int], window: Window) -> "Neighbourhood":
        """The slices at places (0: A, 1: C, ...) by their indices in the stack."""
        geometry, first = window.geometry, present[0]
        origin = geometry.distances_mm[first]
        return cls(
            planes={place: window.slices[index] for place, index in present.items()},
            distances_mm={
                place: float(geometry.distances_mm[index] - origin)
                for place, index in present.items()
            },
            shifts={place: geometry.shift_pixels(first, index) for place, index in present.items()},
            pixel_mm=geometry.pixel_mm,
            thickness_mm=geometry.thickness_mm,
        )

    def reversed(self) -> "Neighbourhood":
        """The same gap with z running the other way: C becomes A, and N becomes P."""
        at_c = self.shifts[1]
        return replace(
            self,
            planes={1 - place: plane for place, plane in self.planes.items()},
            distances_mm={1 - place: self.gap_mm - mm for place, mm in self.distances_mm.items()},
            shifts={
                1 - place: (shift[0] - at_c[0], shift[1] - at_c[1])
                for place, shift in self.shifts.items()
            },
        )

    @property
    def gap_mm(self) -> float:
        return self.distances_mm[1]

    @property
    def overlap(self) -> float:
        """Thickness of received slices over their gap; more than 1 where they overlap."""
        return UNKNOWN_OVERLAP if self.thickness_mm is None else self.thickness_mm / self.gap_mm

    @cached_property
    def extent(self) -> Extent:
        """The rows and columns that are made."""
        rows, columns = self.planes[0].shape
        return self.part or (slice(0, rows), slice(0, columns))

    @cached_property
    def is_sheared(self) -> bool:
        return max(map(abs, self.shifts[1])) >= LEAST_SHIFT_PIXELS

    def offset(self, place: int, t: float) -> Offset:
        """The offset from a pixel of the slice at `t` to its point in a neighbour."""
        return on_line(self.shifts[1], self.shifts[place], t)

    def aligned(self, place: int, t: float) -> Plane:
        """A neighbour in the in-plane frame of the slice at `t`: itself unless the stack shears."""
        return shifted(self.planes[place], self.offset(place, t), self.extent)

    @cached_property
    def opposite(self) -> Plane:
        """All of C in the frame of A; sampled once per gap."""
        return shifted(self.planes[1], self.offset(1, 0.0))

    @cached_property
    def flows(self) -> tuple[Flow, Flow]:
        """DIS from A to C and from C to A, on whole slices, in A's frame; searched once per gap."""
        return flow_between(self.planes[0], self.opposite, self.search)

    @cached_property
    def extremes(self) -> tuple[Extent, Mapping[int, tuple[Plane, Plane]]]:
        """Least and greatest value around each pixel of A (0) and of C (1); once per gap.

        They are those of a part of the slices: the extent and what may be moved into it.
        """
        # Half a pixel may be lost by moving whole pixels only; one more ring covers it.
        reach = (4 if self.gap_mm < WIDE_GAP_MM else 8) + self.is_sheared
        seen = grown(self.extent, reach + math.ceil(max(map(abs, self.shifts[1]))))
        window = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
        return seen, {
            place: (
                np.asarray(cv2.erode(self.planes[place][seen], window), np.float32),
                np.asarray(cv2.dilate(self.planes[place][seen], window), np.float32),
            )
            for place in (0, 1)
        }

    @cached_property
    def envelopes(self) -> dict[tuple[tuple[int, int], ...], tuple[Plane, Plane]]:
        """Those that `envelope` has made, by whole pixels of shift; upright slices have one."""
        return {}


def grown(extent: Extent, room: int) -> Extent:
    """The extent and some pixels around; it may end outside the slice, never before it."""
    rows, columns = (slice(max(0, span.start - room), span.stop + room) for span in extent)
    return rows, columns


def shifted(plane: Plane, offset: Offset, extent: Extent | None = None) -> Plane:
    """The plane, or an extent of it, at every pixel plus `offset`, bicubic; edges repeat."""
    rows, columns = extent or (slice(0, side) for side in plane.shape)
    if max(abs(offset[0]), abs(offset[1])) < LEAST_SHIFT_PIXELS:
        return plane[rows, columns]
    still = np.zeros((rows.stop - rows.start, columns.stop - columns.start, 2), np.float32)
    return sample(plane, still, _from((rows, columns), offset))


def _from(extent: Extent, offset: Offset) -> Offset:
    """The offset of a plane's pixels from those of an extent that is moved by `offset`."""
    return offset[0] + extent[0].start, offset[1] + extent[1].start


def sample(plane: Plane, flow: Flow, offset: Offset = (0.0, 0.0)) -> Plane:
    """The plane sampled once, bicubic, at every pixel plus offset plus flow; edges repeat."""
    rows, columns = flow.shape[:2]
    places = flow + _pixels(rows, columns, offset)
    return np.asarray(
        cv2.remap(plane, places, NO_MAP, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE),
        np.float32,
    )


@lru_cache(maxsize=8)
def _pixels(rows: int, columns: int, offset: Offset) -> Flow:
    """(rows, columns, 2): x and y of every pixel plus offset; those of a series are mostly one."""
    x = np.arange(columns, dtype=np.float32) + np.float32(offset[1])
    y = np.arange(rows, dtype=np.float32) + np.float32(offset[0])
    pixels = np.stack(np.meshgrid(x, y), axis=-1)
    pixels.flags.writeable = False
    return pixels


def flow_between(a: Plane, c: Plane, search: FlowSearch = QUICK) -> tuple[Flow, Flow]:
    """DIS optical flow both ways: a(p) looks like c(p + forth(p)), c(p) like a(p + back(p))."""
    rows, columns = a.shape
    bottom, right = max(0, LEAST_FLOW_SIDE - rows), max(0, LEAST_FLOW_SIDE - columns)
    whole = columns + right, rows + bottom
    # The preset begins at half the resolution: pictures of that size, halved once for both ways.
    a8, c8 = (
        cv2.resize(
            cv2.copyMakeBorder(_for_flow(plane), 0, bottom, 0, right, cv2.BORDER_REPLICATE),
            (whole[0] // 2, whole[1] // 2),
            interpolation=cv2.INTER_AREA,
        )
        for plane in (a, c)
    )
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setFinestScale(0)
    dis.setPatchStride(search.stride)
    dis.setGradientDescentIterations(search.descents)
    dis.setVariationalRefinementIterations(search.refinements)
    start = np.zeros((*a8.shape, 2), np.float32)
    halves = dis.calc(a8, c8, start.copy()), dis.calc(c8, a8, start.copy())
    forth, back = (
        np.asarray(cv2.resize(half, whole, interpolation=cv2.INTER_LINEAR), np.float32)
        for half in halves
    )
    return np.float32(2.0) * forth[:rows, :columns], np.float32(2.0) * back[:rows, :columns]


def _for_flow(plane: Plane) -> NDArray[np.uint8]:
    scaled = plane - np.float32(FLOW_LOW_HU)
    scaled *= np.float32(255.0 / (FLOW_HIGH_HU - FLOW_LOW_HU))
    return np.clip(scaled, 0.0, 255.0, out=scaled).astype(np.uint8)


def warped(near: Neighbourhood, t: float) -> tuple[Plane, Plane]:
    """A and C brought to `t` along the flow (linear in z), each sampled once from the received."""
    forth, back = near.flows
    here = near.offset(0, t)  # the flow field lies in A's frame
    if max(abs(here[0]), abs(here[1])) >= LEAST_SHIFT_PIXELS:
        forth, back = _shifted_flow(forth, here), _shifted_flow(back, here)
    forth, back = forth[near.extent], back[near.extent]
    to_a = cv2.addWeighted(back, t * t, forth, -t * (1.0 - t), 0.0)
    to_c = cv2.addWeighted(forth, (1.0 - t) * (1.0 - t), back, -t * (1.0 - t), 0.0)
    return (
        sample(near.planes[0], np.asarray(to_a, np.float32), _from(near.extent, here)),
        sample(near.planes[1], np.asarray(to_c, np.float32), _from(near.extent, near.offset(1, t))),
    )


def _shifted_flow(flow: Flow, offset: Offset) -> Flow:
    matrix = np.array([[1.0, 0.0, offset[1]], [0.0, 1.0, offset[0]]])
    size = (flow.shape[1], flow.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(flow, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.float32)


def cubic_weights(distances_mm: Mapping[int, float], t: float) -> NDArray[np.float32]:
    """(4,): weights of P, A, C, N for a cubic through A and C on the real positions.

    Slopes are those of the parabola through three neighbours; where one is missing, or too near to
    tell, the curve ends without curvature (a natural end); between two alone it is a line.
    """
    gap = distances_mm[1]
    p, a, c, n = np.eye(4)
    secant = (c - a) / gap
    slopes: dict[int, NDArray[np.float64]] = {}
    before, after = -distances_mm.get(-1, 0.0), distances_mm.get(2, gap) - gap
    if before > LEAST_BESIDE_GAP * gap:
        slopes[0] = (gap * (a - p) / before + before * secant) / (before + gap)
    if after > LEAST_BESIDE_GAP * gap:
        slopes[1] = (gap * (n - c) / after + after * secant) / (after + gap)
    at_a = slopes.get(0, 1.5 * secant - 0.5 * slopes[1] if 1 in slopes else secant)
    at_c = slopes.get(1, 1.5 * secant - 0.5 * slopes[0] if 0 in slopes else secant)
    weights = (
        (1.0 + 2.0 * t) * (1.0 - t) ** 2 * a
        + t * (1.0 - t) ** 2 * gap * at_a
        + t**2 * (3.0 - 2.0 * t) * c
        - t**2 * (1.0 - t) * gap * at_c
    )
    return weights.astype(np.float32)


def nearest(near: Neighbourhood, t: float) -> Plane:
    return near.aligned(0 if t < 0.5 else 1, t)


def linear(near: Neighbourhood, t: float) -> Plane:
    """Linear interpolation of A and C, shift-corrected."""
    return np.float32(1.0 - t) * near.aligned(0, t) + np.float32(t) * near.aligned(1, t)


def cubic(near: Neighbourhood, t: float) -> Plane:
    """Cubic interpolation through A and C with slopes from P and N, on real positions."""
    weights = cubic_weights(near.distances_mm, t)
    total = np.zeros_like(near.aligned(0, t))
    for place in sorted(near.planes):
        total += weights[place + 1] * near.aligned(place, t)
    return total


def dis(near: Neighbourhood, t: float) -> Plane:
    """The blend of A and C, both moved along the DIS flow."""
    from_a, from_c = warped(near, t)
    return np.float32(1.0 - t) * from_a + np.float32(t) * from_c


def envelope(near: Neighbourhood, t: float) -> tuple[Plane, Plane]:
    """Least and greatest value received in A and C near each pixel of the slice at `t`."""
    offsets = near.offset(0, t), near.offset(1, t)
    wholes = tuple((round(rows), round(columns)) for rows, columns in offsets)
    if wholes not in near.envelopes:
        seen, extremes = near.extremes
        rows, columns = (
            slice(span.start - around.start, span.stop - around.start)
            for span, around in zip(near.extent, seen, strict=True)
        )
        lows, highs = zip(
            *(
                [moved(values, whole)[rows, columns] for values in extremes[place]]
                for place, whole in enumerate(wholes)
            ),
            strict=True,
        )
        near.envelopes[wholes] = np.minimum(*lows), np.maximum(*highs)
    return near.envelopes[wholes]


class Linear:
    """The model `linear`: shift-corrected linear interpolation; no weights, instant."""

    name = "linear"
    version = "1.0.0"
    weights_sha256 = ""
    produces: Produces = "slices"

    def plan(self, geometry: Geometry, parameters: Parameters) -> Sequence[Step]:
        return plan_gaps(geometry, parameters, reach=1)

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        """Linear needs no device, batch or tile: `limits` changes nothing."""
        del limits
        near = Neighbourhood.of(step, slices)
        return Prediction(planes=tuple(linear(near, t) for t in step.fractions))
