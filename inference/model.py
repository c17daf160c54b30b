"""What a model is: the contract between the node and every plug-in. Arrays in, arrays out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """One piece of a model's work: the slices it needs and, for a gap, the places to fill.

    `fractions` are the places of the generated slices between `slices[gap]` and the next one,
    each in (0, 1), ascending; they come from positions, not from counts.
    """

    needs: tuple[int, ...]  # indices of received slices, ascending
    gap: int | None = None  # the gap between received slices `gap` and `gap + 1`
    fractions: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Window:
    """The received slices that a step needs, read-only, with the geometry of the whole stack."""

    geometry: Geometry
    slices: Mapping[int, Plane]  # slice index -> (rows, columns) HU, float32


@dataclass(frozen=True)
class Limits:
    """How much a step may take; the out-of-memory ladder lowers it and the step runs again."""

    device: str = "cpu"  # a torch device
    batch: int = 4  # slices predicted at once
    tile: int | None = None  # side of a square tile in pixels; None = whole slices


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model made of one step: HU for `slices`, 0/1 for `mask`, a record for `findings`."""

    planes: tuple[Plane, ...] = ()  # one per fraction of the step (or per needed slice of a mask)
    findings: tuple[Mapping[str, object], ...] = ()
    scale_hu: tuple[
        NDArray[np.float32], ...
    ] = ()  # expected absolute error, where a model knows it


class Model(Protocol):
    """A plug-in. It keeps no state between steps but its weights, and never modifies its input.

    Its constructor takes no argument, or `weights: pathlib.Path` and `device: str` where the
    configuration names weights.
    """

    name: str
    version: str
    weights_sha256: str  # "" for a model without weights
    produces: Produces

    def plan(self, geometry: Geometry, parameters: Parameters) -> Sequence[Step]:
        """The steps for a stack, in order; raises Unprocessable where the model cannot serve it."""
        ...

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        """The prediction of one step; deterministic on one device."""
        ...
