"""The confidence of the generator: its expected error over the body in HU, and a number 0 to 1."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.model import Measured, Trust
from inference.models.classical import UNKNOWN_OVERLAP, Neighbourhood
from inference.models.gate import Calibration, nearness
from inference.volume import Plane

BODY_HU = -500.0

# Where confidence is one half: what interpolation of a chest at a gap of 10 mm is wrong by.
HALF_CONFIDENCE_HU = 60.0
# Intervals are said to hold 90 % of a slice's pixels and fitted to hold a little more: what is
# expected of a series is wrong by a tenth now and then, and too narrow is worse than too wide.
WIDTH_SHARE = 0.92
# How many surveys at a distance of nothing it takes to outweigh the series as a whole, and how
# many to outweigh training.
LOCAL_STRENGTH, SERIES_STRENGTH = 2.0, 4.0
LEAST_HU = 0.5  # nothing is known better than to half a HU
# Noise of a chest in a smooth kernel; a high-pass above 1.5 pixels sees most of it.
USUAL_NOISE_HU, NOISE_SIGMA = 20.0, 1.5
FINE_SIDE = 256  # means over the body are taken of every second pixel of a larger slice


def body_of(plane: Plane) -> NDArray[np.bool_]:
    """The largest dense piece with everything it encloses: lungs and bowel gas belong to it."""
    dense = (plane > BODY_HU).astype(np.uint8)
    # Opening sheds the table and its cover.
    opened = cv2.morphologyEx(dense, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    outlines, _ = cv2.findContours(opened, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    body = np.zeros(plane.shape, np.uint8)
    if outlines:
        largest = max(outlines, key=cv2.contourArea)
        cv2.drawContours(body, [largest], -1, color=1, thickness=cv2.FILLED)
    return body.astype(bool)


# The network says for each pixel how wrong it expects to be. Received slices that were left out
# say how that compares with the truth in this series, and where in it: their errors at twice the
# gap are brought to this one by what training found, the nearer ones counting most.


@dataclass(frozen=True)
class PlaceInGap:
    """The place of a slice in its gap, and what of the slices around it makes it hard."""

    t: float
    overlap: float = UNKNOWN_OVERLAP  # thickness over gap, 1 at most
    noise_hu: float = USUAL_NOISE_HU  # of the received slices

    @classmethod
    def of(cls, near: Neighbourhood, t: float, noise_hu: float) -> "PlaceInGap":
        return cls(t, min(near.overlap, 1.0), noise_hu)


def noise_of(near: Neighbourhood) -> float:
    """The noise of A and C in HU: the usual size of what smoothing takes from their bodies.

    The median passes over edges and vessels; of a normal deviation it is 0.6745.
    """
    step = _step(near.planes[0])
    noises = [max(_noise(near.planes[place][near.extent], step), LEAST_HU) for place in (0, 1)]
    return float(np.sqrt(noises[0] * noises[1]))


def _noise(plane: Plane, step: int) -> float:
    coarse = np.ascontiguousarray(plane[::step, ::step])
    body = body_of(coarse)
    if not body.any():
        return USUAL_NOISE_HU
    rest = np.abs(coarse - cv2.GaussianBlur(plane, (0, 0), NOISE_SIGMA)[::step, ::step])
    return float(np.median(rest[body])) / 0.6745


@dataclass(frozen=True)
class Expectation:
    """The correction of the network's own expectation by the surveys of a series."""

    calibration: Calibration
    at_mm: tuple[float, ...] = ()
    logs: tuple[float, ...] = ()  # of true over expected error, brought to the gap itself
    widths: tuple[float, ...] = ()  # of true over expected 90 % intervals

    @classmethod
    def of(cls, surveyed: Sequence[Measured], calibration: Calibration) -> "Expectation":
        known = [measured for measured in surveyed if measured["expected_hu"] > 0.0]
        doubled = float(np.log(calibration.doubled))
        return cls(
            calibration,
            tuple(m["at_mm"] for m in known),
            tuple(float(np.log(m["true_hu"] / m["expected_hu"])) + doubled for m in known),
            tuple(m["width"] for m in known),
        )

    def error_hu(self, own_hu: float, at_mm: float) -> float:
        """The network's error to expect at a height, where it expects `own_hu` by itself."""
        if not self.logs:
            return own_hu
        logs = np.array(self.logs)
        series = logs.sum() / (len(logs) + SERIES_STRENGTH)
        near = nearness(self.at_mm, at_mm)
        local = (near @ logs + LOCAL_STRENGTH * series) / (near.sum() + LOCAL_STRENGTH)
        return float(own_hu * np.exp(local))

    @property
    def interval(self) -> float:
        """The multiple of a pixel's expected error that 90 % of the errors stay below."""
        prior = self.calibration.interval
        logs = np.log(np.array(self.widths) / prior) if self.widths else np.zeros(0)
        return float(prior * np.exp(logs.sum() / (len(logs) + SERIES_STRENGTH)))


def confidence_of(error_hu: float) -> float:
    """1 for a perfect slice, one half at 60 HU, falling with the square of the error."""
    return 1.0 / (1.0 + (error_hu / HALF_CONFIDENCE_HU) ** 2)


def law_hu(scale_hu: float, place: PlaceInGap, calibration: Calibration) -> float:
    """The expected error of a slice of that mean scale, as training corrects the network's."""
    middle = max(4.0 * place.t * (1.0 - place.t), 1e-3)
    power = scale_hu**calibration.power
    power *= middle ** (calibration.place + calibration.shared * place.overlap)
    power *= (place.noise_hu / USUAL_NOISE_HU) ** calibration.noise
    return float(calibration.factor * power * np.exp(calibration.overlap * place.overlap))


def own_hu(scale_hu: Plane, body: Plane, place: PlaceInGap, calibration: Calibration) -> float:
    """The mean error in the body that the network expects of itself, as training corrects it."""
    return law_hu(max(mean_over(scale_hu, body), LEAST_HU), place, calibration)


def trusted(
    expectation: Expectation,
    plane: Plane,
    scale_hu: Plane,
    place: PlaceInGap,
    at_mm: float,
    mixed: float = 1.0,
) -> tuple[Trust, Plane]:
    """The trust in a slice, and the expected error of each of its pixels.

    `mixed` is the error of the gate's mixture over that of the network, whose scale it is.
    """
    body = body_mask(plane)
    own = own_hu(scale_hu, body, place, expectation.calibration)
    error = mixed * expectation.error_hu(own, at_mm)
    scaled = scale_hu * np.float32(error / max(mean_over(scale_hu, body), LEAST_HU))
    return Trust(error, confidence_of(error), expectation.interval), scaled


def multiplied(trust: Trust, times: float) -> Trust:
    """The trust in a slice that is so many times as wrong."""
    error = trust.error_hu * times
    return Trust(error, confidence_of(error), trust.interval)


def compared(
    plane: Plane, truth: Plane, scale_hu: Plane, place: PlaceInGap, calibration: Calibration
) -> dict[str, float]:
    """Expected and true error of a slice that was received, and how wide its interval must be."""
    body = body_mask(truth)
    error = np.abs(plane - truth)
    true_hu = max(mean_over(error, body), LEAST_HU)
    scale = scale_hu * np.float32(true_hu / max(mean_over(scale_hu, body), LEAST_HU))
    step = _step(plane)
    inside = body > 0.0
    widths = (error[::step, ::step] / np.maximum(scale[::step, ::step], 1e-3))[inside]
    return {
        "t": place.t,
        "overlap": place.overlap,
        "noise_hu": place.noise_hu,
        "scale_hu": max(mean_over(scale_hu, body), LEAST_HU),
        "true_hu": true_hu,
        "expected_hu": own_hu(scale_hu, body, place, calibration) if inside.any() else 0.0,
        "width": max(float(np.quantile(widths, WIDTH_SHARE)), 0.1) if inside.any() else 1.0,
    }


def body_mask(plane: Plane) -> Plane:
    """The body as 0 and 1 on a coarser grid."""
    step = _step(plane)
    return body_of(np.ascontiguousarray(plane[::step, ::step])).astype(np.float32)


def mean_over(plane: Plane, body: Plane) -> float:
    """The mean over the body; over everything where there is none."""
    step = _step(plane)
    coarse = plane[::step, ::step]
    total = float(body.sum())
    return float(cv2.mean(coarse, body.astype(np.uint8))[0]) if total else float(coarse.mean())


def _step(plane: Plane) -> int:
    rows, columns = plane.shape
    return max(1, int(min(rows, columns)) // FINE_SIDE)
