"""The generator `midslice`: optical flow, corrected and blended by a small network.

The slice at t between A and C is a blend, pixel by pixel, of three candidates that need no
training (linear, cubic, and A and C moved along the DIS flow). The network sees the four received
slices around the gap and says how the flow is to be corrected, how much of A and C to take, how
much of each candidate, and a small residual that vanishes at t = 0 and t = 1. Untrained, it is
close to the DIS blend; at t = 0 and t = 1 it is A and C exactly.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.model import Draft, Limits, Parameters, Prediction, Produces, Step, Window
from inference.models.classical import Neighbourhood, cubic_weights, plan_gaps, warped
from inference.models.filling import Filling, Inputs
from inference.models.gate import (
    LEAST_HU,
    MOST_HU,
    calibration_path,
    load_calibration,
    plan_surveys,
)
from inference.models.network import load_network
from inference.models.runtime import Runtime
from inference.volume import Geometry

SHIPPED_WEIGHTS = Path(__file__).with_name("midslice.safetensors")

IN_Z, TOLD_IN_Z = (3, 2, 1, 0, 5, 4), (0, 1, 2, 3, 5, 4)  # their order when z is reversed
# P and N lie at most two gaps away in training. Four gaps away they cost 0.1 dB, ten 0.5 dB, as
# beside a hole, or where the spacing changes; the cubic candidate knows their real places.
MOST_GAPS_BESIDE = 2.02


def _beside(near: Neighbourhood) -> frozenset[int]:
    """Those of P (-1) and N (2) that the network is shown: no farther than it was trained with."""
    most = MOST_GAPS_BESIDE * near.gap_mm
    far = {-1: -near.distances_mm.get(-1, -math.inf), 2: near.distances_mm.get(2, math.inf)}
    far[2] -= near.gap_mm
    return frozenset(place for place, mm in far.items() if mm <= most)


def conditions_of(near: Neighbourhood, t: float) -> NDArray[np.float32]:
    """(6,): the conditions that the network gets beside the slices."""
    gap, beside = near.gap_mm, _beside(near)
    conditions = (
        t,
        gap / 10.0,
        math.log(gap / near.pixel_mm) / 2.0,
        min(near.overlap, 2.0),
        float(-1 in beside),
        float(2 in beside),
    )
    return np.array(conditions, np.float32)


def planes_of(near: Neighbourhood, t: float, *, has_warps: bool = True) -> NDArray[np.float32]:
    """(6, rows, columns): P, A, C, N and the warps in the frame of the slice at t, clipped to HU.

    A missing or far P or N is replaced by its nearest real neighbour; the conditions say so.
    Without warps, which take the search for flow, there are four of them.
    """
    a, c, beside = near.aligned(0, t), near.aligned(1, t), _beside(near)
    p = near.aligned(-1, t) if -1 in beside else a
    n = near.aligned(2, t) if 2 in beside else c
    seen = (p, a, c, n, *(warped(near, t) if has_warps else ()))
    planes = np.empty((len(seen), *a.shape), np.float32)
    for plane, own in zip(planes, seen, strict=True):
        np.clip(own, LEAST_HU, MOST_HU, out=plane)
    return planes


def z_reversed(inputs: Inputs) -> Inputs:
    """The same with z running the other way: A and C, P and N change places."""
    conditions = inputs.conditions[[*TOLD_IN_Z]]
    conditions[0] = 1.0 - conditions[0]
    order = [place for place in IN_Z if place < len(inputs.planes)]
    return Inputs(inputs.planes[order], conditions, inputs.cubic[::-1])


def inputs_of(near: Neighbourhood, t: float, *, has_warps: bool = True) -> Inputs:
    """The network's input with the nearer neighbour as A, so that z reversed gives the same slice.

    In the middle of a gap the brighter neighbour is C: a choice that does not know z either.
    """
    planes = planes_of(near, t, has_warps=has_warps)
    inputs = Inputs(planes, conditions_of(near, t), cubic_weights(near.distances_mm, t))
    if math.isclose(t, 0.5, abs_tol=1e-6):
        a, c = (cv2.sumElems(np.clip(near.planes[place], LEAST_HU, MOST_HU))[0] for place in (0, 1))
        return z_reversed(inputs) if a > c else inputs
    return z_reversed(inputs) if t > 0.5 else inputs


class Midslice:
    """The model `midslice`, version and weights; keeps nothing between two steps."""

    name = "midslice"
    version = "1.4.1"
    produces: Produces = "slices"
    concurrent = True

    def __init__(
        self, weights: Path | None = None, device: str = "cpu", precision: str = ""
    ) -> None:
        path = weights or SHIPPED_WEIGHTS
        network, self.weights_sha256 = load_network(path)
        network.eval().requires_grad_(requires_grad=False)
        self.calibration = load_calibration(calibration_path(path), self.weights_sha256)
        runtime = Runtime(network, device, precision)
        self.runtime = f"{runtime.name}, calibration {self.calibration.digest}"
        self._filling = Filling(runtime, inputs_of, self.calibration)

    def plan(self, geometry: Geometry, parameters: Parameters) -> Sequence[Step]:
        """A survey of the stack, then its gaps."""
        gaps = plan_gaps(geometry, parameters, reach=2)
        return (*plan_surveys(geometry, gaps), *gaps)

    def draft(self, step: Step, slices: Window, limits: Limits) -> Draft:
        """All of a gap that needs no survey: flow and network."""
        return self._filling.draft(step, slices, limits)

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        """Fill one gap, or survey one slice."""
        if step.survey is not None:
            return self._filling.survey(step, slices, limits)
        return self._filling.fill(step, slices, limits)
