"""The model `nodules`: what looks like a lung nodule on chest CT, with its sizes and its place.

Bright spheres in the lungs are candidates; a network scores each of them, moves it to its centre
and expects a diameter. What scores at the operating point or above is measured on the slices as
they were received.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from inference.errors import ModelLoadError, Reason, Unprocessable
from inference.model import (
    CodeTriple,
    Finding,
    Limits,
    Parameters,
    Prediction,
    Segment,
    Step,
    Window,
)
from inference.models.nodule.candidates import APART_MM, MOST, find_candidates
from inference.models.nodule.grid import Grid, Hu
from inference.models.nodule.lungs import LEFT, RIGHT, Labels, Lungs, find_lungs
from inference.models.nodule.measuring import anatomy_of, measured
from inference.models.nodule.network import OFFSET_MM, TYPICAL_MM, NoduleNetwork, crops
from inference.models.weights import fill
from inference.volume import Geometry, Plane

SHIPPED_WEIGHTS = Path(__file__).with_name("nodule.safetensors")
BATCH = 32  # candidates at once
MOST_OFFSET_MM = 12.0
DIAMETERS_MM = 3.0, 40.0  # an expectation beyond them is brought back to them
SAME = 0.5  # of the larger diameter: centres nearer than that are of one nodule
MOST_FINDINGS = 50

FEWEST_SLICES, MOST_GAP_MM, LEAST_COVERAGE_MM = 60, 3.0, 100.0
MOST_TILT_DEGREES = 30.0
ROUNDING = 0.01  # of positions in headers
LUNGS_ML, LEAST_SHARE = (1500.0, 9000.0), 0.25
# Vessels, and what the closing takes in, are soft tissue in the lungs: 1.8 to 3.0 % in four
# patients. Foam that stands for lungs in a phantom has none but the balls that are put into it.
SOFT_TISSUE_HU, LEAST_SOFT = -300.0, 0.006

STRUCTURE: CodeTriple = ("123037004", "SCT", "Anatomical Structure")
LUNG: CodeTriple = ("39607008", "SCT", "Lung")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class OperatingPoint:
    """The score from which on a candidate is a finding, and what the weights were trained on."""

    threshold: float
    false_positives: float  # a scan, at which it was set
    patients: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> "OperatingPoint":
        """Raises ModelLoadError for a file that is missing or another."""
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            patients = tuple(facts["patients"])
            return cls(float(facts["threshold"]), float(facts["false_positives"]), patients)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelLoadError(f"{path}: not an operating point of nodule: {error}") from error

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class ScoredPlace:
    """A candidate after the network: a centre on the working grid."""

    voxel: tuple[float, float, float]
    score: float  # 0 to 1
    diameter_mm: float


class Nodule:
    """The model `nodules`, version and weights; keeps nothing between two stacks."""

    name = "nodules"
    version = "1.0.0"
    produces: Literal["findings"] = "findings"
    finding = Segment(
        "Nodule",
        ("49755003", "SCT", "Morphologically Abnormal Structure"),
        ("27925004", "SCT", "Nodule"),
        region=LUNG,
    )
    segments = (
        Segment("Right lung", STRUCTURE, LUNG, ("24028007", "SCT", "Right")),
        Segment("Left lung", STRUCTURE, LUNG, ("7771000", "SCT", "Left")),
    )

    most_candidates = MOST

    def __init__(self, weights: Path | None = None, device: str = "cpu") -> None:
        path = weights or SHIPPED_WEIGHTS
        self._network, self.weights_sha256 = load_network(path)
        self._device = device
        self._network.placed(device)
        self.point = OperatingPoint.read(path.with_suffix(".json"))
        self.threshold = self.point.threshold
        self.operating_point = f"threshold={self.threshold:.2f}"
        self.trained_on = (
            f"{len(self.point.patients)} chest CTs of LIDC-IDRI, and nodules simulated in them"
        )

    def plan(self, geometry: Geometry, parameters: Parameters) -> Sequence[Step]:
        """One step with every slice; raises Unprocessable for a stack out of scope."""
        check_geometry(geometry)
        return (Step(tuple(range(len(geometry)))),)

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        """Lungs and findings; raises Unprocessable where no lungs are seen."""
        planes = [slices.slices[index] for index in step.needs]
        grid = Grid.of(slices.geometry)
        hu = grid.resampled(lambda index: planes[index])
        lungs = find_lungs(hu)
        check_lungs(lungs)
        places = self.scored(hu, lungs.labels, limits.batch * BATCH // 4)
        organs = list(grid.on_source(lungs.labels))
        findings = self._findings(places, grid, lungs, planes, organs)
        record = {
            "lungs_ml": {
                "right": round(lungs.volume_ml(RIGHT)),
                "left": round(lungs.volume_ml(LEFT)),
            },
            "lungs_whole": lungs.is_whole,
            "carina_seen": lungs.carina is not None,
            "candidates": len(places),
            "threshold": self.threshold,
            "doubts": [*doubts_of(lungs), *phantom_doubts(hu, lungs)],
        }
        return Prediction(
            planes=tuple(plane.astype(np.float32) for plane in organs),
            findings=tuple(findings),
            record=record,
        )

    def scored(self, hu: Hu, labels: Labels, batch: int = BATCH) -> list[ScoredPlace]:
        """The candidates of a scan, the highest score first, each nodule once."""
        candidates = find_candidates(hu, labels, self.most_candidates)
        places = np.array([own.voxel for own in candidates], float).reshape(-1, 3)
        return scored_places(self._network, hu, labels, places, self._device, batch)

    def _findings(
        self,
        places: Sequence[ScoredPlace],
        grid: Grid,
        lungs: Lungs,
        planes: Sequence[Plane],
        organs: Sequence[NDArray[np.uint8]],
    ) -> list[Finding]:
        findings: list[Finding] = []
        for place in places:
            if place.score < self.threshold or len(findings) == MOST_FINDINGS:
                break
            voxel = np.array(place.voxel)
            centre = grid.patient(voxel[None])[0]
            size = measured(centre, place.diameter_mm, grid.geometry, planes, organs)
            diameter = (size.long_axis_mm + size.short_axis_mm) / 2.0
            anatomy = anatomy_of(voxel, diameter, lungs)
            findings.append(
                Finding(
                    score=place.score,
                    first=size.first,
                    mask=size.mask,
                    long_axis_mm=size.long_axis_mm,
                    short_axis_mm=size.short_axis_mm,
                    volume_mm3=size.volume_mm3,
                    site=anatomy.side,
                    record=anatomy.as_record(),
                )
            )
        return findings


def load_network(path: Path) -> tuple[NoduleNetwork, str]:
    """The network of a weights file, ready to predict, and the SHA-256 of the file."""
    network = NoduleNetwork()
    return network, fill(network, path, "nodule")


def predicted(
    network: NoduleNetwork,
    hu: Hu,
    labels: Labels,
    voxels: NDArray[np.int64],
    device: str,
    batch: int = BATCH,
) -> Floats:
    """(n, 5): what the network gives for each voxel, the mean with that of the mirrored crop."""
    parts = [np.zeros((0, 5))]
    with torch.inference_mode():
        for start in range(0, len(voxels), batch):
            seen = torch.from_numpy(crops(hu, labels, voxels[start : start + batch])).to(device)
            plain, mirrored = network(seen), network(seen.flip(-1))
            # The middle voxel of an even side has moved by one.
            mirrored[:, 3] = -mirrored[:, 3] - 1.0 / OFFSET_MM
            parts.append(((plain + mirrored) / 2.0).cpu().double().numpy())
    return np.concatenate(parts)


def scored_places(
    network: NoduleNetwork,
    hu: Hu,
    labels: Labels,
    places: Floats,
    device: str,
    batch: int = BATCH,
) -> list[ScoredPlace]:
    """Candidates with their scores at the centres that the network gives, each nodule once."""
    voxels = np.rint(places).astype(np.int64)
    given = predicted(network, hu, labels, voxels, device, batch)
    offsets = np.clip(given[:, 1:4] * OFFSET_MM, -MOST_OFFSET_MM, MOST_OFFSET_MM)
    centres = np.clip(voxels + offsets, 0, np.array(hu.shape) - 1)
    diameters = np.clip(TYPICAL_MM * np.exp(given[:, 4]), *DIAMETERS_MM)
    scores = 1.0 / (1.0 + np.exp(-given[:, 0]))
    kept: list[ScoredPlace] = []
    for index in np.argsort(-scores, kind="stable").tolist():
        z, y, x = centres[index].tolist()
        own = ScoredPlace((z, y, x), float(scores[index]), float(diameters[index]))
        if not any(_is_same(own, other) for other in kept):
            kept.append(own)
    return kept


def _is_same(one: ScoredPlace, other: ScoredPlace) -> bool:
    distance = float(np.linalg.norm(np.subtract(one.voxel, other.voxel)))
    return distance < max(APART_MM, SAME * max(one.diameter_mm, other.diameter_mm))


def check_geometry(geometry: Geometry) -> None:
    """Raise Unprocessable for a stack that is no thin axial stack of a chest's height."""
    if len(geometry) < FEWEST_SLICES:
        raise Unprocessable(
            Reason.TOO_FEW_SLICES,
            f"The stack has {len(geometry)} slices; at least {FEWEST_SLICES} are needed to look "
            "for nodules.",
        )
    gap, coverage = float(geometry.gaps_mm.max()), float(np.ptp(geometry.distances_mm))
    tilt = float(np.degrees(np.arccos(min(1.0, abs(float(geometry.normal[2]))))))
    tests = {
        f"ImageOrientationPatient: the slices are tilted by {tilt:.0f} degrees; at most "
        f"{MOST_TILT_DEGREES:.0f} degrees from axial are in scope.": (
            tilt > MOST_TILT_DEGREES + ROUNDING
        ),
        f"ImagePositionPatient: the slices are up to {gap:.2f} mm apart; at most "
        f"{MOST_GAP_MM:g} mm are in scope: small nodules vanish between thicker ones.": (
            gap > MOST_GAP_MM + ROUNDING
        ),
        f"ImagePositionPatient: the slices cover {coverage:.0f} mm; at least "
        f"{LEAST_COVERAGE_MM:g} mm are in scope.": coverage < LEAST_COVERAGE_MM - ROUNDING,
    }
    for sentence, applies in tests.items():
        if applies:
            raise Unprocessable(Reason.OUT_OF_SCOPE, sentence)


def check_lungs(lungs: Lungs) -> None:
    """Raise Unprocessable where the pixels show no lungs of a chest's height."""
    if lungs.height_mm < LEAST_COVERAGE_MM:
        raise Unprocessable(
            Reason.OUT_OF_SCOPE,
            f"The pixels show lungs on {lungs.height_mm:.0f} mm; at least "
            f"{LEAST_COVERAGE_MM:g} mm are needed.",
        )


def phantom_doubts(hu: Hu, lungs: Lungs) -> tuple[str, ...]:
    """A doubt where the lungs have no vessels."""
    inside = hu[lungs.labels > 0]
    soft = float((inside > SOFT_TISSUE_HU).mean()) if inside.size else 0.0
    if soft >= LEAST_SOFT:
        return ()
    return (
        f"hardly a vessel is seen in the lungs ({soft:.1%} of them is soft tissue, at least "
        f"{LEAST_SOFT:.1%} in a patient): it may be a phantom",
    )


def doubts_of(lungs: Lungs) -> tuple[str, ...]:
    """Doubts that a person should look at before the findings are used."""
    right, left = (lungs.volume_ml(side) for side in (RIGHT, LEFT))
    doubts = []
    least, most = LUNGS_ML
    if not least <= right + left <= most:
        doubts.append(
            f"the lungs have {(right + left) / 1000.0:.1f} L, outside {least / 1000.0:g} to "
            f"{most / 1000.0:g} L"
        )
    if min(right, left) < LEAST_SHARE * max(right, left):
        smaller = "right" if right < left else "left"
        doubts.append(
            f"the {smaller} lung has {min(right, left) / 1000.0:.1f} L, less than a quarter of the "
            "other"
        )
    return tuple(doubts)
