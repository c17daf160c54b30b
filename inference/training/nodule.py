"""Training of the nodule model: each patient left out in turn, then on all of them.

Positives are the nodules of two readers or more and simulated ones, seen from jittered places;
negatives are candidates away from every mark. In a second round small nodules are seen more often;
twice the negatives that still score high are sought out, and seen more often too. Nothing is fitted
on the patient that is reported: the length is fixed beforehand, and the operating point of a fold
comes from the scores of the other patients, each by the network that had not seen that one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from torch import Tensor

from inference.models.nodule.network import (
    OFFSET_MM,
    SIDE,
    SLICES,
    TYPICAL_MM,
    NoduleNetwork,
    scaled,
)
from inference.models.nodule.nodule import OperatingPoint, predicted
from inference.models.runtime import has_fast_bfloat16
from inference.training.beside import Report, Table, TrainingOrder
from inference.training.charts import write_lines
from inference.training.checkpoint import save_weights
from inference.training.chest_ct import ChestPatient, load_chests
from inference.training.data import NoSeries
from inference.training.froc import threshold_at
from inference.training.nodule_cases import ChestCase, made_ready
from inference.training.nodule_figures import POINT_RATE, judged, scored_cases, write_card

WEIGHTS = "nodule.safetensors"
STEPS, FIRST_ROUND = 1000, 0.7  # of each training; share of the first round
FULL_MINUTES = 25.0  # of processor time on one core for the whole plan; fewer shorten trainings
RECENT = 50  # steps of a running mean
READY, TRAINED = 0.3, 0.9  # of the time

POSITIVES, REAL_ONES, NEGATIVES = 8, 3, 12  # of a batch; of the positives at most so many real
WEIGHT_DECAY = 1e-3
SMOOTHING = 0.02  # of the labels
OFFSET_BETA = 0.2  # where the loss of offset and diameter turns from square to straight
HARD_SHARE, HARDEST = 0.5, 0.15  # of the negatives of a batch, of all of them
SMALL_MM = 8.0
AVERAGED = 0.7  # of the steps; after that the weights are averaged

# Ranges of the augmentation.
JITTER, MOST_JITTER_MM = 0.6, 7.0  # of the radius
NEGATIVE_JITTER_MM = 2.0
SCALES = 0.85, 1.18
SHIFT_HU, GAINS, NOISE_HU = 25.0, (0.94, 1.06), 30.0
BLURRED, THICKENED, BLURS = 0.25, 0.25, (0.4, 1.0)

Floats = NDArray[np.float64]
Hounsfield = NDArray[np.float32]
Progress = Callable[[float, float], None]


@dataclass(frozen=True)
class NodulePlan:
    """The plan of a training; with one seed and device it gives the same weights."""

    steps: int = STEPS
    seed: int = 1
    device: str = "cpu"

    @classmethod
    def of(cls, order: TrainingOrder) -> "NodulePlan":
        """Fewer minutes than the plan takes on one core shorten it, whatever the machine."""
        share = min(1.0, order.minutes / FULL_MINUTES)
        steps = order.steps or max(1, round(STEPS * share))
        return cls(steps, order.seed, order.device)

    @property
    def rounds(self) -> tuple[int, int]:
        """The steps of both rounds."""
        first = math.ceil(FIRST_ROUND * self.steps)
        return first, self.steps - first


@dataclass(frozen=True)
class Round:
    """A part of a training, which begins with the weights of the one before."""

    learning_rate: float
    hard_from: float  # share of its steps after which hard negatives are sought
    small_share: float  # of the simulated nodules are drawn from those under 8 mm


ROUNDS = Round(2e-3, 0.5, 0.0), Round(1e-3, 0.0, 0.5)


@dataclass(frozen=True, eq=False)
class Sample:
    """A place to look at, and what lies there."""

    case: int
    voxel: Floats
    diameter_mm: float = 0.0  # 0: nothing


@dataclass(eq=False)
class Batches:
    """Batches of one training, drawn from its samples."""

    cases: Sequence[ChestCase]
    random: Generator
    small_share: float = 0.0
    real: list[Sample] = field(default_factory=list)
    simulated: list[Sample] = field(default_factory=list)
    small: list[Sample] = field(default_factory=list)
    negatives: list[Sample] = field(default_factory=list)
    hard: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number, case in enumerate(self.cases):
            own = [Sample(number, np.array(t.voxel), t.diameter_mm) for t in case.truths]
            (self.real if case.is_real else self.simulated).extend(own)
            if case.is_real:
                away = (case.hit(case.places) < 0) & ~case.is_ignored(case.places)
                self.negatives += [Sample(number, place) for place in case.places[away]]
        self.small = [own for own in self.simulated if own.diameter_mm < SMALL_MM]
        if not (self.real or self.simulated) or not self.negatives:
            raise NoSeries("training needs nodules, and candidates that are none")

    def next(self) -> tuple[Tensor, Tensor]:
        """(B, 2, 9, 48, 48) and (B, 5): 1 or 0, offset, logarithm of the diameter."""
        pairs = [self.seen(sample) for sample in self._drawn()]
        seen, targets = zip(*pairs, strict=True)
        return torch.from_numpy(np.stack(seen)), torch.from_numpy(np.stack(targets))

    def _drawn(self) -> list[Sample]:
        real = min(REAL_ONES, len(self.real)) if self.simulated else POSITIVES
        drawn = [self._one(self.real) for _ in range(real)]
        small_share = self.small_share if self.small else 0.0
        for _ in range(POSITIVES - real):
            is_small = small_share > 0.0 and self.random.random() < small_share
            drawn.append(self._one(self.small if is_small else self.simulated))
        for _ in range(NEGATIVES):
            is_hard = self.hard and self.random.random() < HARD_SHARE
            drawn.append(self._one(self.hard if is_hard else self.negatives))
        return drawn

    def _one(self, samples: Sequence[Sample]) -> Sample:
        return samples[int(self.random.integers(len(samples)))]

    def seen(self, sample: Sample) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A sample turned, scaled, mirrored, moved, and by another scanner."""
        random, reach = self.random, NEGATIVE_JITTER_MM
        if sample.diameter_mm:
            reach = min(MOST_JITTER_MM, JITTER * sample.diameter_mm / 2.0)
        direction = random.normal(size=3)
        jitter = direction / np.linalg.norm(direction) * reach * np.sqrt(random.random())
        turn = drawn_turn(random)
        crop = cut(self.cases[sample.case], sample.voxel + jitter, turn)
        crop[0] = scaled(relit(crop[0], random))
        target = np.zeros(5, np.float32)
        if sample.diameter_mm:
            back = np.linalg.inv(turn)
            target[0] = 1.0
            target[1:4] = back @ -jitter / OFFSET_MM
            target[4] = np.log(sample.diameter_mm * abs(back[0, 0]) / TYPICAL_MM)
        return crop, target

    def seek_hard(self, network: NoduleNetwork, device: str) -> None:
        """Keep the negatives with the highest scores, to see them more often."""
        scores = np.empty(len(self.negatives))
        for number, case in enumerate(self.cases):
            own = [n for n, sample in enumerate(self.negatives) if sample.case == number]
            if own:
                places = np.array([self.negatives[n].voxel for n in own])
                voxels = np.rint(places).astype(np.int64)
                scores[own] = predicted(network, case.hu, case.labels, voxels, device)[:, 0]
        order = np.argsort(-scores, kind="stable")[: max(1, round(HARDEST * len(scores)))]
        self.hard = [self.negatives[n] for n in order.tolist()]


def drawn_turn(random: Generator) -> Floats:
    """(3, 3): from an offset in a crop (z, y, x) to that in the scan."""
    angle, scale = random.uniform(0.0, 2.0 * np.pi), random.uniform(*SCALES)
    turn = np.eye(3)
    turn[1:, 1:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    mirrored: Floats = turn * random.choice([-1.0, 1.0], 3) / scale
    return mirrored


def cut(case: ChestCase, voxel: Floats, turn: Floats) -> NDArray[np.float32]:
    """(2, 9, 48, 48): HU, and 1 in the lung, around a place, turned in its plane."""
    inplane = turn[1:, 1:][::-1, ::-1]  # OpenCV counts (x, y)
    start = voxel[[2, 1]] - inplane @ np.full(2, SIDE // 2)
    affine = np.column_stack([inplane, start])
    result = np.empty((2, SLICES, SIDE, SIDE), np.float32)
    for number, step in enumerate(range(-(SLICES // 2), SLICES // 2 + 1)):
        z = float(voxel[0] + step * turn[0, 0])
        low = int(np.floor(z))
        near = [_warped(case.hu, at, affine, cv2.INTER_LINEAR) for at in (low, low + 1)]
        result[0, number] = (1.0 - (z - low)) * near[0] + (z - low) * near[1]
        result[1, number] = _warped(case.labels, round(z), affine, cv2.INTER_NEAREST) > 0
    return result


def _warped(volume: NDArray[np.generic], z: int, affine: Floats, how: int) -> Hounsfield:
    plane = volume[int(np.clip(z, 0, len(volume) - 1))]
    flags = how | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(
        plane, affine, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(moved, np.float32)


def relit(hu: Hounsfield, random: Generator) -> Hounsfield:
    """HU of another scanner: softer, thicker, noisier, a little off."""
    if random.random() < BLURRED:
        sigma = random.uniform(*BLURS)
        hu = np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in hu])
    if random.random() < THICKENED:
        padded = np.pad(hu, ((1, 1), (0, 0), (0, 0)), mode="edge")
        hu = (padded[:-2] + 2.0 * hu + padded[2:]) / 4.0
    noise = random.standard_normal(hu.shape, np.float32) * random.uniform(0.0, NOISE_HU)
    shift = random.uniform(-SHIFT_HU, SHIFT_HU)
    return np.asarray((hu + 1000.0) * random.uniform(*GAINS) - 1000.0 + noise + shift, np.float32)


def loss_of(result: Tensor, target: Tensor) -> Tensor:
    """Of the score, and of offset and diameter where there is a nodule."""
    is_nodule = target[:, 0]
    soft = is_nodule * (1.0 - 2.0 * SMOOTHING) + SMOOTHING
    score = F.binary_cross_entropy_with_logits(result[:, 0], soft)
    off = F.smooth_l1_loss(result[:, 1:], target[:, 1:], reduction="none", beta=OFFSET_BETA)
    return score + (off.sum(dim=1) * is_nodule).sum() / is_nodule.sum().clamp(min=1.0)


def fit(cases: Sequence[ChestCase], plan: NodulePlan, progress: Progress) -> NoduleNetwork:
    """A network trained on these cases; with one seed and device always the same.

    Its weights are those of half precision, in which they are written.
    """
    torch.manual_seed(plan.seed)
    network = NoduleNetwork().placed(plan.device)
    done = 0
    for number, (part, steps) in enumerate(zip(ROUNDS, plan.rounds, strict=True)):
        before = done
        if number:
            torch.manual_seed(plan.seed + number)

        def tell(step: int, loss: float, before: int = before) -> None:
            progress((before + step) / plan.steps, loss)

        batches = Batches(cases, default_rng(plan.seed + number), part.small_share)
        network = fit_round(network, batches, part, steps, plan.device, tell)
        done += steps
    return network


def fit_round(
    network: NoduleNetwork,
    batches: Batches,
    part: Round,
    steps: int,
    device: str,
    progress: Callable[[int, float], None],
) -> NoduleNetwork:
    """The network after a round, its weights averaged over the last steps."""
    network.train().requires_grad_(requires_grad=True)
    rate = part.learning_rate
    optimiser = torch.optim.AdamW(network.parameters(), rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=max(2, steps), pct_start=0.1
    )
    is_narrow = has_fast_bfloat16(device)
    average = torch.optim.swa_utils.AveragedModel(network, use_buffers=True)
    for step in range(steps):
        if step == int(part.hard_from * steps):
            batches.seek_hard(network.eval(), device)
            network.train()
        crop, target = (tensor.to(device) for tensor in batches.next())
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=is_narrow):
            result = network(crop)
        loss = loss_of(result.float(), target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimiser.step()
        schedule.step()
        if step >= int(AVERAGED * steps):
            average.update_parameters(network)
        progress(step, float(loss.detach()))
    trained = average.module
    assert isinstance(trained, NoduleNetwork)
    return trained.half().float().eval().requires_grad_(requires_grad=False)


def train_all(order: TrainingOrder, report: Report) -> Table:
    """Each patient left out in turn, then on all; figures of those that were left out."""
    patients, plan = load_chests(order.data), NodulePlan.of(order)
    people = list(dict.fromkeys(patient.person for patient in patients))
    if len(people) < 2:
        raise NoSeries(f"{order.data}: two patients at least are needed, to leave one out")
    cases = made_ready(patients, lambda share, what: report(READY * share, what))
    left_out: list[str] = [*people[: order.folds], ""]
    networks: dict[str, NoduleNetwork] = {}
    losses: dict[str, list[float]] = {}
    for number, person in enumerate(left_out):
        names = [patient.name for patient in patients if patient.person == person]
        words = f"without {', '.join(names)}" if names else "on all"
        own: list[float] = []
        losses[words] = own

        def tell(
            share: float,
            loss: float,
            own: list[float] = own,
            number: int = number,
            words: str = words,
        ) -> None:
            own.append(loss)
            done = (number + share) / len(left_out)
            mean = np.mean(own[-RECENT:])
            report(READY + (TRAINED - READY) * done, f"{words}, loss {mean:.3f}")

        kept = [case for case in cases if case.patient not in names]
        networks[person] = fit(kept, plan, tell)
    _draw(order, losses)
    return conclude(order, patients, cases, networks, report)


def conclude(
    order: TrainingOrder,
    patients: Sequence[ChestPatient],
    cases: Sequence[ChestCase],
    networks: dict[str, NoduleNetwork],
    report: Report,
) -> Table:
    """Scores of those left out, operating points, figures, and everything that is written."""
    report(TRAINED, "figures")
    by_name = {
        patient.name: networks[patient.person] for patient in patients if patient.person in networks
    }
    judged_cases = [case for case in cases if case.patient in by_name]
    scored = scored_cases(judged_cases, by_name, order.device)
    real = [own for own in scored if own.case.is_real]
    order.out.mkdir(parents=True, exist_ok=True)
    thresholds: dict[str, float] = {}
    for person, network in networks.items():
        others = [patient.name for patient in patients if patient.person != person]
        threshold = threshold_at(
            [own.detections for own in real if own.case.patient in others], POINT_RATE
        )
        names = [patient.name for patient in patients if patient.person == person]
        thresholds |= dict.fromkeys(names, threshold)
        path = order.out / (f"without-{names[0]}.safetensors" if names else WEIGHTS)
        tensors = network.state_dict().items()
        save_weights({n: t.half() for n, t in tensors if t.is_floating_point()}, path)
        OperatingPoint(threshold, POINT_RATE, tuple(others)).write(path.with_suffix(".json"))
    table = judged(scored, thresholds, patients, order.out)
    write_card(order, order.out / WEIGHTS, table)
    report(1.0, "")
    return table


def _draw(order: TrainingOrder, losses: dict[str, list[float]]) -> None:
    """The loss of each training, as a running mean."""
    lines = {
        words: [
            (float(step), float(np.mean(own[max(0, step - RECENT) : step])))
            for step in range(1, len(own) + 1)
        ]
        for words, own in losses.items()
    }
    write_lines(order.out / "curve.png", lines, title="nodules", across="step", up="loss")
