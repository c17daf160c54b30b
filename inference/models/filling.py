"""Fills one gap, or surveys one slice: candidates, network, guards, gate and confidence in order.

Flow, warps and guards work on whole slices; the network alone may work in tiles.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.model import Limits, Measured, Prediction, Step, Trust, Window
from inference.models import confidence, gate, guards
from inference.models.calibration import Calibration
from inference.models.classical import LEAST_SHIFT_PIXELS, Neighbourhood, shifted
from inference.models.confidence import Expectation, Place
from inference.models.extent import extent_of, pasted, spread
from inference.models.guards import DIS, Gate
from inference.models.runtime import Runtime
from inference.volume import Plane, on_line

Planes = NDArray[np.float32]

PLACE_DIGITS = 9


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the network is given for one slice."""

    planes: Planes  # (6, rows, columns): P, A, C, N, and A and C moved along the flow
    conditions: Planes  # (6,); the first is t
    cubic: Planes  # (4,): weights of P, A, C, N

    @property
    def t(self) -> float:
        """The place between A and C as the network counts it."""
        return float(self.conditions[0])


@dataclass(frozen=True, eq=False)
class Seen:
    """One slice before the gate: the network's, and the candidates that need no training."""

    plane: Plane
    scale_hu: Plane
    classical: dict[str, Plane]


@dataclass(frozen=True, eq=False)
class Made:
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
        inputs_of: Callable[[Neighbourhood, float], Inputs],
        calibration: Calibration,
    ) -> None:
        self._runtime = runtime
        self._inputs_of = inputs_of
        self._calibration = calibration

    def fill(self, step: Step, window: Window, limits: Limits) -> Prediction:
        """The slices of one gap, with what is expected of them."""
        assert step.gap is not None
        near, places = oriented(Neighbourhood.of(step, window), step.fractions)
        surveyed, first_mm = window.surveyed, float(window.geometry.distances_mm[step.gap])
        series = gate.decided(surveyed, self._calibration)
        expectation = Expectation.of(surveyed, self._calibration)
        noise_hu = confidence.noise_of(near)
        made = []
        seen_all = self._seen(near, places, limits)
        for fraction, t, seen in zip(step.fractions, places, seen_all, strict=True):
            at_mm = first_mm + fraction * near.gap_mm
            here = gate.at_height(surveyed, series, at_mm)
            plane = _finished(near, t, seen, here)
            mixed = gate.mixed_error(surveyed, here.weight, at_mm)
            place = Place.of(near, t, noise_hu)
            expected, scale = confidence.trusted(
                expectation, plane, seen.scale_hu, place, at_mm, mixed
            )
            classical = guards.bounded(near, t, seen.classical[series.classical])
            instead = gate.classical_error(surveyed, series.classical, at_mm) / mixed
            other = confidence.multiplied(expected, instead)
            made.append(Made(plane, here.weight, scale, expected, classical, other))
        return self._prediction(made, series)

    def _prediction(self, made: Sequence["Made"], series: Gate) -> Prediction:
        return Prediction(
            planes=tuple(one.plane for one in made),
            weights=tuple(one.weight for one in made),
            scale_hu=tuple(one.scale_hu for one in made),
            trust=self._told([one.trust for one in made]),
            classical=tuple(one.classical for one in made),
            classical_name=series.classical,
            classical_trust=self._told([one.classical_trust for one in made]),
            record=_record(series),
        )

    def survey(self, step: Step, window: Window, limits: Limits) -> Prediction:
        """How the network and the candidates compare with a received slice that is left out."""
        assert step.survey is not None
        near = Neighbourhood.leaving_out(step, window)
        at_mm = window.geometry.distances_mm
        t = float(at_mm[step.survey] - at_mm[step.survey - 1]) / near.gap_mm
        truth = _truth(step.survey, near, t, window)
        near, (t,) = oriented(near, (t,))
        (seen,) = self._seen(near, (t,), limits)
        prior = Gate(1.0, self._calibration.classical, 0)
        plane = _finished(near, t, seen, prior)
        place = Place.of(near, t, confidence.noise_of(near))
        measured: Measured = {
            "at_mm": float(at_mm[step.survey]),
            **gate.errors_of(truth, plane, seen.classical),
            **confidence.compared(plane, truth, seen.scale_hu, place, self._calibration),
        }
        return Prediction(measured=measured)

    def _told(self, trust: Sequence[Trust]) -> tuple[Trust, ...]:
        """Nothing is said of slices whose network nobody calibrated."""
        return tuple(trust) if self._calibration.is_fitted else ()

    def _seen(
        self, near: Neighbourhood, fractions: Sequence[float], limits: Limits
    ) -> Sequence[Seen]:
        # A processor gains nothing from batches: one slice's layers stay in its cache.
        batch = 1 if limits.device == "cpu" else max(1, limits.batch)
        extent = rows, columns = extent_of(near)
        found: list[Seen] = []
        for first in range(0, len(fractions), batch):
            some = [self._inputs_of(near, t) for t in fractions[first : first + batch]]
            slices, scales = self._runtime.predict(
                np.stack([given.planes[:, rows, columns] for given in some]),
                np.stack([given.conditions for given in some]),
                np.stack([given.cubic for given in some]),
                limits,
            )
            for given, inside, scale in zip(some, slices, scales, strict=True):
                classical = guards.candidates(given.planes, given.cubic, given.t)
                plane = pasted(inside, classical[guards.LINEAR], extent)
                found.append(Seen(plane, spread(scale, extent, plane.shape), dict(classical)))
        return found


def oriented(
    near: Neighbourhood, fractions: Sequence[float]
) -> tuple[Neighbourhood, tuple[float, ...]]:
    """The gap with the brighter slice as C: then z reversed gives the same bits.

    Places are rounded, since 1 - 1/3 and 2/3 are two numbers.
    """
    a, c = (float(near.planes[place].sum(dtype=np.float64)) for place in (0, 1))
    if a > c:
        return near.reversed(), tuple(round(1.0 - t, PLACE_DIGITS) for t in fractions)
    return near, tuple(round(t, PLACE_DIGITS) for t in fractions)


def _finished(near: Neighbourhood, t: float, seen: Seen, decided: Gate) -> Plane:
    """The slice after every guard that does not need stored values."""
    best = seen.classical[decided.classical]
    plane = guards.with_low_frequencies_of(best, seen.plane)
    return guards.bounded(near, t, guards.gated(seen.classical[DIS], plane, decided.weight))


def _truth(left_out: int, near: Neighbourhood, t: float, window: Window) -> Plane:
    """The slice that was left out, in the frame of the line between its neighbours."""
    own = window.geometry.shift_pixels(left_out - 1, left_out)
    offset = on_line(near.shifts[1], own, t)
    is_there = max(abs(offset[0]), abs(offset[1])) < LEAST_SHIFT_PIXELS
    return window.slices[left_out] if is_there else shifted(window.slices[left_out], offset)


def _record(decided: Gate) -> dict[str, object]:
    return {
        "network_weight": round(decided.weight, 4),
        "classical": decided.classical,
        "surveyed": decided.surveyed,
    }
