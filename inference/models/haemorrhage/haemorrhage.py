"""The model `haemorrhage`: scores of haemorrhage for each slice of a head CT, and for the series.

Each slab of 5 mm is seen between its neighbours, once as it is and once mirrored; the logits are
smoothed along the patient. A score is a probability in a department where as many slices bleed as
in the training set (12 %), and as many patients (44 %).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.errors import ModelLoadError
from inference.model import (
    Limits,
    Prediction,
    Produces,
    Scored,
    Scores,
    SeriesFacts,
    Step,
    Window,
)
from inference.models.haemorrhage.head import (
    Pictures,
    Square,
    cropped,
    head_mask,
    triples,
    windowed,
)
from inference.models.haemorrhage.network import ScoreNetwork, heat
from inference.models.haemorrhage.scope import (
    HeadPixels,
    check_facts,
    check_pixels,
    doubts_about,
    examined,
)
from inference.models.haemorrhage.stack import (
    Slab,
    Upright,
    check_geometry,
    slabs_of,
    upright_slabs,
)
from inference.models.weights import fill
from inference.request import Parameters
from inference.volume import Geometry, Plane

SHIPPED_WEIGHTS = Path(__file__).with_name("haemorrhage.safetensors")
LEVELS = 255.0
BATCH = 16  # slabs at once
NEIGHBOURS = (0.25, 0.5, 0.25)  # of the smoothed logit: a haemorrhage rarely ends within a slab
STRONGEST = 3  # slabs whose mean logit is that of the series
METAL_HU, MOST_METAL_SLICES = 3000.0, 2

# The score of a series is poorly calibrated: it is called a certainty.
HAEMORRHAGE = Scored(
    "Haemorrhage",
    ("1386000", "SCT", "Intracranial hemorrhage"),
    ("12738006", "SCT", "Brain"),
    "The heat map shows what the network used, not where blood is.",
    is_slice_calibrated=True,
)

Floats = NDArray[np.float64]
Volume = NDArray[np.float32]  # (slices, rows, columns) HU


def as_input(pictures: Pictures) -> Tensor:
    """(n, 3, side, side) pictures as the network takes them: float32, -1 to 1."""
    return torch.from_numpy(pictures.astype(np.float32) / (LEVELS / 2.0) - 1.0)


def smoothed(logits: Floats) -> Floats:
    """Logits of the slabs of one patient, in order, with those of their neighbours."""
    return np.convolve(np.pad(logits, 1, mode="edge"), NEIGHBOURS, mode="valid")


def series_logit(logits: Floats) -> float:
    """The logit of a series: the mean of its highest ones."""
    return float(np.sort(logits)[-STRONGEST:].mean())


@dataclass(frozen=True)
class Scale:
    """From logits to probabilities (Platt), and the probability from which a score is high."""

    slope: float
    shift: float
    threshold: float

    def probability(self, logits: Floats) -> Floats:
        return 1.0 / (1.0 + np.exp(-(self.slope * logits + self.shift)))


@dataclass(frozen=True)
class ScoreCalibration:
    """The scales of a model, fitted on scores of patients that were left out of its training."""

    slices: Scale
    series: Scale
    patients: tuple[str, ...]  # on which it was trained

    @classmethod
    def read(cls, path: Path) -> "ScoreCalibration":
        """Raises ModelLoadError for a file that is missing or another."""
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            slices, series = (Scale(**facts[name]) for name in ("slices", "series"))
            return cls(slices, series, tuple(facts["patients"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelLoadError(f"{path}: not a calibration of haemorrhage: {error}") from error

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True, eq=False)
class SeriesScores:
    """The result for one stack; slices are those of the source, in its order."""

    slices: Floats  # (slices,) probability of haemorrhage
    series: float
    calibration: ScoreCalibration
    pixels: HeadPixels
    heat: Mapping[int, Plane]  # strongest slices -> (rows, columns) 0 to 1: what the network used
    doubts: tuple[str, ...]

    def as_record(self) -> dict[str, Any]:
        """JSON: what was seen in the pixels, and what is doubtful."""
        seen = {
            "head_slices": self.pixels.head_slices,
            "vessels_per_mille": round(self.pixels.vessels_per_mille, 3),
        }
        return {"head": seen, "doubts": list(self.doubts)}


class Haemorrhage:
    """The model `haemorrhage`, version and weights; keeps nothing between two stacks."""

    name = "haemorrhage"
    version = "1.0.0"
    produces: Produces = "scores"
    scored = HAEMORRHAGE

    def __init__(self, weights: Path | None = None, device: str = "cpu") -> None:
        path = weights or SHIPPED_WEIGHTS
        self._network, self.weights_sha256 = load_network(path)
        self._network.placed(device)
        self._device = device
        self.calibration = ScoreCalibration.read(path.with_suffix(".json"))

    @property
    def runtime(self) -> str:
        """A text that changes with the calibration: other scores are another result."""
        facts = json.dumps(asdict(self.calibration), sort_keys=True)
        return f"calibration {hashlib.sha256(facts.encode()).hexdigest()[:12]}"

    @property
    def operating_point(self) -> str:
        """The thresholds, as results name them."""
        slices, series = self.calibration.slices, self.calibration.series
        return f"slice threshold {slices.threshold:.4f}, series threshold {series.threshold:.4f}"

    @property
    def trained_on(self) -> str:
        return (
            f"{len(self.calibration.patients)} patients of CT-ICH 1.0.0 (doi 10.3390/data5010014)"
        )

    def check_scope(self, facts: SeriesFacts, geometry: Geometry) -> None:
        """Raise Unprocessable for what headers put out of scope."""
        check_facts(facts)

    def doubts_about(self, facts: SeriesFacts) -> Sequence[str]:
        """What headers leave doubtful."""
        return doubts_about(facts)

    def plan(self, geometry: Geometry, parameters: Parameters) -> Sequence[Step]:
        """One step that needs the whole stack; raises Unprocessable where it is out of scope."""
        check_geometry(geometry)
        return (Step(needs=tuple(range(len(geometry)))),)

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        """The scores; the record says what was seen in the pixels and what is doubtful."""
        if limits.device != self._device:  # memory did not suffice on the other one
            self._network.placed(limits.device)
            self._device = limits.device
        volume = np.stack([slices.slices[index] for index in step.needs])
        result = self.scores(volume, slices.geometry)
        calibration = result.calibration
        scores = Scores(
            result.slices,
            result.series,
            calibration.slices.threshold,
            calibration.series.threshold,
            result.heat,
        )
        return Prediction(scores=scores, record=result.as_record())

    def scores(self, volume: Volume, geometry: Geometry) -> SeriesScores:
        """The scores of a stack in HU; raises Unprocessable where it is out of scope."""
        check_geometry(geometry)
        slabs, upright = slabs_of(geometry), Upright.of(geometry)
        planes = upright_slabs(volume, slabs, upright)
        pixels = examined(planes, geometry.pixel_mm)
        check_pixels(pixels)
        pictures = windowed(planes)
        mask = head_mask(pictures, geometry.pixel_mm)
        square = Square.around(mask)
        inside = np.where(mask, pictures, 0).astype(np.uint8)
        logits, features = self.seen(cropped(inside, square))
        slab_scores = self.calibration.slices.probability(logits)
        series = self.calibration.series.probability(np.array([series_logit(logits)]))[0]
        heat_planes = {
            slabs[number].middle: upright.back(square.spread(features[number], mask[number]))
            for number in np.argsort(-slab_scores, kind="stable")[:STRONGEST].tolist()
        }
        per_slice = np.empty(len(geometry))
        for slab, score in zip(slabs, slab_scores, strict=True):
            per_slice[list(slab.members)] = score
        doubts = (*pixels.doubts, *doubts_of(volume, slabs))
        return SeriesScores(per_slice, float(series), self.calibration, pixels, heat_planes, doubts)

    def seen(self, pictures: Pictures) -> tuple[Floats, NDArray[np.float32]]:
        """Smoothed logits, and coarse heat maps, of the prepared pictures of one head in order."""
        stack = triples(pictures)
        logits, maps = [], []
        with torch.inference_mode():
            for start in range(0, len(stack), BATCH):
                part = as_input(stack[start : start + BATCH]).to(
                    self._device, memory_format=torch.channels_last
                )
                pair = [self._network.deep(self._network.shallow(x)) for x in (part, part.flip(-1))]
                both = self._network.scored(pair[0]) + self._network.scored(pair[1])
                logits.append(both.cpu() / 2.0)
                maps.append(heat(pair[0], self._network.score.weight).cpu())
        return smoothed(torch.cat(logits).double().numpy()), torch.cat(maps).numpy()


def load_network(path: Path) -> tuple[ScoreNetwork, str]:
    """The network of a weights file, ready to predict, and the SHA-256 of the file."""
    network = ScoreNetwork()
    return network, fill(network, path, "haemorrhage")


def doubts_of(volume: Volume, slabs: tuple[Slab, ...]) -> tuple[str, ...]:
    """Doubts that a person should look at before the scores are used."""
    used = [index for slab in slabs for index in slab.averaged]
    metal = sum(bool(volume[index].max() > METAL_HU) for index in used)
    if metal <= MOST_METAL_SLICES:
        return ()
    return (f"Metal in {metal} slices (above {METAL_HU:.0f} HU): its streaks are taken for blood.",)
