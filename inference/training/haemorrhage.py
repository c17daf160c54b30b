"""Training and judging of the haemorrhage model: five folds of patients, then all of them.

The first blocks keep the weights of ImageNet, so their output for each altered picture is computed
once and serves every fold. What follows is trained with balanced batches, its weights averaged
over the last third of the steps. Nothing is fitted on the fold that is reported: temperature and
threshold of a fold come from the scores of the other folds' patients.
"""

import csv
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from inference.models.haemorrhage.head import Pictures, prepared, triples
from inference.models.haemorrhage.network import Network

TYPES = ("intraventricular", "intraparenchymal", "subarachnoid", "epidural", "subdural")
FOLDS = 5
NOMINAL_MM = 0.86  # pixel size of the training pictures; the true ones were not published
LEVELS = 255.0

logger = logging.getLogger(__name__)
Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class HeadPatient:
    """One patient of the training set: pictures from the base to the vertex, and their labels."""

    name: str
    fold: int
    age_years: float
    pictures: Pictures  # (slices, side, side), the head alone
    bleeds: Flags  # (slices,)
    types: Mapping[str, Flags]  # (slices,) each


def load_heads(data: Path) -> tuple[HeadPatient, ...]:
    """The patients of a folder with `patients.csv`, `labels.csv` and the pictures they name."""
    with (data / "patients.csv").open(newline="") as file:
        patients = list(csv.DictReader(file))
    rows: dict[str, list[dict[str, str]]] = {}
    with (data / "labels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["patient"], []).append(row)
    return tuple(_head(data, facts, rows[facts["patient"]]) for facts in patients)


def _head(data: Path, facts: Mapping[str, str], rows: Sequence[Mapping[str, str]]) -> HeadPatient:
    ordered = sorted(rows, key=lambda row: int(row["index"]))
    strip = np.asarray(Image.open(data / ordered[0]["file"]).convert("L"))
    pictures = strip.reshape(-1, strip.shape[1], strip.shape[1])
    indices = [int(row["index"]) for row in ordered]

    def flags(column: str) -> Flags:
        return np.array([row[column] == "1" for row in ordered])

    return HeadPatient(
        name=facts["patient"],
        fold=int(facts["fold"]),
        age_years=float(facts["age_years"]),
        pictures=prepared(pictures, NOMINAL_MM)[indices],
        bleeds=flags("haemorrhage"),
        types={name: flags(name) for name in TYPES},
    )


@dataclass(frozen=True)
class HeadPlan:
    """The plan of a training; with one seed and device it gives the same weights."""

    seed: int = 1
    device: str = "cpu"
    versions: int = 8  # altered copies of each slice, the first one unaltered
    epochs: float = 24.0  # times that each slice with haemorrhage is seen
    positives: int = 6  # a batch
    negatives: int = 10
    learning_rate: float = 3e-4
    weight_decay: float = 1e-2
    smoothing: float = 0.02  # of the labels


def altered(triple: NDArray[np.uint8], random: Generator) -> NDArray[np.uint8]:
    """(3, side, side): turned, scaled, mirrored, brighter or darker, all three alike."""
    side = triple.shape[-1]
    centre = (side - 1) / 2.0
    matrix = cv2.getRotationMatrix2D(
        (centre, centre), random.uniform(-20.0, 20.0), random.uniform(0.88, 1.12)
    )
    matrix[:, 2] += random.uniform(-0.04, 0.04, size=2) * side
    if random.random() < 0.5:
        triple = triple[..., ::-1]
    moved = cv2.warpAffine(np.ascontiguousarray(triple.transpose(1, 2, 0)), matrix, (side, side))
    gain, shift = random.uniform(0.9, 1.1), random.uniform(-10.0, 10.0)
    inside = moved > 0
    bright = np.where(inside, moved * gain + shift, 0.0)
    return np.clip(bright, 0.0, LEVELS).astype(np.uint8).transpose(2, 0, 1)


def as_input(pictures: NDArray[np.uint8]) -> Tensor:
    """Pictures as the network takes them: float32, -1 to 1."""
    return torch.from_numpy(pictures.astype(np.float32) / (LEVELS / 2.0) - 1.0)


class Cache:
    """The output of the frozen blocks for each version of each slice, in half precision."""

    def __init__(
        self,
        heads: Sequence[HeadPatient],
        network: Network,
        plan: HeadPlan,
        progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> None:
        random = default_rng(plan.seed)
        stacks = [triples(head.pictures) for head in heads]
        self.patient = np.repeat(np.arange(len(heads)), [len(stack) for stack in stacks])
        self.bleeds = np.concatenate([head.bleeds for head in heads])
        self.folds = np.array([head.fold for head in heads])[self.patient]
        everything = np.concatenate(stacks)
        versions = []
        with torch.inference_mode():
            for version in range(plan.versions):
                parts = []
                for start in range(0, len(everything), 32):
                    part = everything[start : start + 32]
                    if version:
                        part = np.stack([altered(triple, random) for triple in part])
                    shallow = network.shallow(as_input(part).to(plan.device))
                    parts.append(shallow.to("cpu", torch.float16))
                    progress(version * len(everything) + start, plan.versions * len(everything))
                versions.append(torch.cat(parts))
        self.shallow = torch.stack(versions)  # (versions, slices, 40, side / 8, side / 8)


def fit(network: Network, cache: Cache, train: Flags, plan: HeadPlan) -> Network:
    """A copy of the network with its later blocks trained on these slices."""
    random = default_rng(plan.seed + 1)
    torch.manual_seed(plan.seed)
    model = deepcopy(network).to(plan.device)
    positive, negative = (np.flatnonzero(train & (cache.bleeds == is_)) for is_ in (True, False))
    steps = round(plan.epochs * len(positive) / plan.positives)
    trained = [*model.blocks[5:].parameters(), *model.head.parameters(), *model.score.parameters()]
    optimiser = torch.optim.AdamW(trained, plan.learning_rate, weight_decay=plan.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, plan.learning_rate, total_steps=steps, pct_start=0.2
    )
    model.eval()  # batch norm keeps the statistics of ImageNet
    model.dropout.train()
    average: dict[str, Tensor] = {}
    seen = 0
    labels = torch.tensor([1.0] * plan.positives + [0.0] * plan.negatives, device=plan.device)
    soft = labels * (1.0 - plan.smoothing) + plan.smoothing / 2.0
    for step in range(steps):
        chosen = np.concatenate(
            [random.choice(positive, plan.positives), random.choice(negative, plan.negatives)]
        )
        version = random.integers(0, plan.versions, size=len(chosen))
        shallow = cache.shallow[version, chosen].to(plan.device, torch.float32)
        loss = F.binary_cross_entropy_with_logits(model.scored(model.deep(shallow)), soft)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        if step >= 2 * steps // 3:
            seen += 1
            for name, tensor in model.state_dict().items():
                if tensor.is_floating_point():
                    kept = average.setdefault(name, tensor.clone())
                    kept += (tensor - kept) / seen
    model.load_state_dict(average, strict=False)
    return model.eval()


def logits_of(model: Network, cache: Cache, chosen: Flags, device: str = "cpu") -> Floats:
    """Logits of the unaltered slices."""
    parts = []
    with torch.inference_mode():
        for part in torch.split(cache.shallow[0, np.flatnonzero(chosen)], 64):
            parts.append(model.scored(model.deep(part.to(device, torch.float32))).cpu())
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float32)
