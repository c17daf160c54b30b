"""Brain extraction as a model of the node: one step a stack, its slices in, its mask out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.errors import Reason, Unprocessable
from inference.model import Limits, Prediction, Produces, Segment, Step, Window
from inference.models.brain.canonical import Straight, Turn, steps_mm
from inference.models.brain.mask import (
    THRESHOLD,
    Mask,
    Measures,
    Probability,
    clean,
    doubts,
    measure,
)
from inference.request import Parameters
from inference.volume import Geometry

FEWEST_SLICES = 40
MOST_GAP_MM, MOST_PIXEL_MM = 3.0, 1.5
LEAST_COVERAGE_MM = 100.0
ROUNDING_MM = 0.01  # of positions and spacings in headers

BRAIN = Segment(
    "Brain",
    ("123037004", "SCT", "Anatomical Structure"),
    ("12738006", "SCT", "Brain"),
)

# (right, anterior, superior) in scanner units, its spacing in mm, device -> probability of brain
Network = Callable[[NDArray[np.float32], tuple[float, ...], str], Probability]


@dataclass(frozen=True, eq=False)
class Extraction:
    """A mask in the axes of its stack, with the figures that it is judged by."""

    mask: Mask  # (slices, rows, columns)
    probability: Probability
    measures: Measures


def check_geometry(geometry: Geometry) -> None:
    """Raise Unprocessable for a stack that a brain cannot be found in."""
    if len(geometry) < FEWEST_SLICES:
        sentence = (
            f"The stack has {len(geometry)} slices; at least {FEWEST_SLICES} are needed to find "
            "a brain."
        )
        raise Unprocessable(Reason.TOO_FEW_SLICES, sentence)
    gap, pixel = float(geometry.gaps_mm.max()), max(geometry.pixel_spacing)
    coverage = float(np.ptp(geometry.distances_mm))
    tests = {
        f"The slices are up to {gap:.2f} mm apart; at most {MOST_GAP_MM:g} mm are in scope.": (
            gap > MOST_GAP_MM + ROUNDING_MM
        ),
        f"The pixels are {pixel:.2f} mm wide; at most {MOST_PIXEL_MM:g} mm are in scope.": (
            pixel > MOST_PIXEL_MM + ROUNDING_MM
        ),
        f"The slices cover {coverage:.0f} mm; at least {LEAST_COVERAGE_MM:g} mm are in scope.": (
            coverage < LEAST_COVERAGE_MM - ROUNDING_MM
        ),
    }
    for sentence, applies in tests.items():
        if applies:
            raise Unprocessable(Reason.OUT_OF_SCOPE, sentence)


def extract(
    volume: NDArray[np.float32], geometry: Geometry, network: Network, device: str = "cpu"
) -> Extraction:
    """The brain of a stack, (slices, rows, columns); raises Unprocessable where there is none."""
    straight = Straight.of(geometry)
    turn = Turn.of(straight.geometry)
    turned = turn.turned(straight.straightened(volume))
    probability = turn.back(network(turned, turn.spacing_mm, device))
    probability = straight.back(probability, geometry.rows, geometry.columns)
    mask, share = clean(probability > THRESHOLD)
    if not mask.any():
        raise no_brain()
    steps = np.linalg.norm(steps_mm(straight.geometry), axis=1)
    spacing = tuple(float(step) for step in steps)
    return Extraction(mask, probability, measure(mask, probability, share, spacing, volume))


def no_brain() -> Unprocessable:
    return Unprocessable(Reason.OUT_OF_SCOPE, "No brain was found in the images.")


class BrainExtraction:
    """The common part of the two models; each brings name, version, weights and network."""

    name: str
    version: str
    weights_sha256: str
    produces: Produces = "mask"
    segment = BRAIN
    operating_point = f"threshold={THRESHOLD:g}"

    def probability(
        self, volume: NDArray[np.float32], spacing_mm: tuple[float, ...], device: str
    ) -> Probability:
        raise NotImplementedError

    def plan(self, geometry: Geometry, parameters: Parameters) -> Sequence[Step]:
        """One step that needs the whole stack; raises Unprocessable where it is out of scope."""
        check_geometry(geometry)
        return (Step(needs=tuple(range(len(geometry)))),)

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        """0 or 1 for every pixel of the stack; the record has the figures and what is doubtful."""
        volume = np.stack([slices.slices[index] for index in step.needs])
        result = extract(volume, slices.geometry, self.probability, limits.device)
        return Prediction(
            planes=tuple(result.mask.astype(np.float32)),
            record={
                "brain": result.measures.as_record(),
                "doubts": list(doubts(result.measures)),
            },
        )
