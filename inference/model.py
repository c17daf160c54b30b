"""What a model is: the contract between the node and every plug-in. Arrays in, arrays out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from inference.volume import Geometry, Plane

Produces = Literal["slices", "mask", "findings"]


@dataclass(frozen=True)
class Parameters:
    """What a route or a caller asks of a model. Exactly one of the first two is set."""

    factor: int | None = None  # slices out per slice in, 2 to 10
    target_spacing_mm: float | None = None


@dataclass(frozen=True)
class Step:
    """One piece of a model's work: a gap and the places to fill in it, or a survey.

    `fractions` are the places of the generated slices between `slices[gap]` and the next one,
    each in (0, 1), ascending; they come from positions, not from counts. A survey leaves a
    received slice out and compares what the model makes of its neighbours with it; surveys come
    before every gap, and each gap is told what all of them measured.
    """

    needs: tuple[int, ...]  # indices of received slices, ascending
    gap: int | None = None  # the gap between received slices `gap` and `gap + 1`
    fractions: tuple[float, ...] = ()
    survey: int | None = None  # the received slice that is left out


# What a survey step measured; the keys are the model's own.
Measured = Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Window:
    """The received slices that a step needs, read-only, with the geometry of the whole stack."""

    geometry: Geometry
    slices: Mapping[int, Plane]  # slice index -> (rows, columns) HU, float32
    surveyed: tuple[Measured, ...] = ()  # for a gap: what every survey of the stack measured


@dataclass(frozen=True)
class Limits:
    """How much a step may take; the out-of-memory ladder lowers it and the step runs again."""

    device: str = "cpu"  # a torch device
    batch: int = 4  # slices predicted at once
    tile: int | None = None  # side of a square tile in pixels; None = whole slices


@dataclass(frozen=True)
class Trust:
    """How near to the truth a model expects one generated slice to be."""

    error_hu: float  # expected mean absolute error in the body
    confidence: float  # 0 to 1; falls as that error rises
    interval: float  # times `scale_hu`: what 90 % of the errors in the body stay below


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model made of one step: HU for `slices`, 0/1 for `mask`, a record for `findings`.

    What stands below `findings` a model gives for every fraction, or not at all.
    """

    planes: tuple[Plane, ...] = ()  # one per fraction of the step (or per needed slice of a mask)
    findings: tuple[Mapping[str, object], ...] = ()
    scale_hu: tuple[NDArray[np.float32], ...] = ()  # expected absolute error of each pixel
    trust: tuple[Trust, ...] = ()
    classical: tuple[Plane, ...] = ()  # the best interpolation without training, for poor trust
    classical_name: str = ""  # linear, cubic or dis
    weights: tuple[float, ...] = ()  # the share of each slice that is the network's, 0 to 1
    classical_trust: tuple[Trust, ...] = ()  # what is expected of `classical`, where that is known
    measured: Measured = field(default_factory=dict)  # of a survey
    record: Mapping[str, object] = field(default_factory=dict)  # JSON: how the gap was filled


class Model(Protocol):
    """A plug-in. It keeps no state between steps but its weights, and never modifies its input.

    Its constructor takes no argument, or `weights: pathlib.Path` and `device: str` where the
    configuration names weights. Two attributes may be left out: `runtime`, a text that changes
    with whatever else changes its results (precision, calibration), and `concurrent`, true where
    `run` may be called by several threads at once.
    """

    name: str
    version: str
    weights_sha256: str  # "" for a model without weights
    produces: Produces

    def plan(self, geometry: Geometry, parameters: Parameters) -> Sequence[Step]:
        """Surveys, then gaps; raises Unprocessable where the model cannot serve the stack."""
        ...

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        """The prediction of one step; deterministic on one device."""
        ...
