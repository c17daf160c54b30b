"""Training of the generator: the same on a processor and on CUDA; it survives an interruption."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.random import default_rng
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from inference.errors import ModelLoadError
from inference.models.network import Network, load_network
from inference.models.runtime import has_fast_bfloat16, with_channels_last
from inference.training.checkpoint import (
    Checkpoint,
    Tensors,
    load_checkpoint,
    optimiser_tensors,
    restore_optimiser,
    save_checkpoint,
    save_weights,
)
from inference.training.data import Patient, divided, load_patients
from inference.training.losses import Adversary, balanced, grain_loss, inner, loss_of, lung_loss
from inference.training.samples import Pool, unaltered

HELD_SEED = 20  # of the gaps that are measured: the same in every training
HELD_GAPS = 12  # a patient
LEAST_ERROR = 1.0  # HU squared: flat air, where everything is perfect, counts next to nothing
REMEMBERED = 300  # values of a running mean

logger = logging.getLogger(__name__)
CHECKPOINT = Path("var/training/midslice.safetensors")
# Beside it: the product's own are replaced by a person who has evaluated these.
WEIGHTS = CHECKPOINT.with_name("weights.safetensors")
LEARNING_RATE = 2e-3
WARM_UP_STEPS = 100
LEAST_RATE = 0.01  # share of the learning rate at the end of the cosine
CLIP_NORM = 0.05  # twice the usual norm of the gradient
AVERAGE_DECAY = 0.999


@dataclass(frozen=True)
class TrainingProgress:
    """The state of a training; gains in dB, of the last some hundred steps on training patches."""

    share: float  # done, 0 to 1
    step: int
    seconds: float  # of processor time
    loss: float
    gain_over_dis_db: float
    gain_over_linear_db: float
    held_over_dis_db: float | None = None  # of the average, on the patients that were left out
    adversary_loss: float = 0.0  # 2 where it guesses


class Mean:
    """An exponential moving mean."""

    def __init__(self) -> None:
        self.value, self._count = 0.0, 0

    def add(self, value: float) -> None:
        self._count += 1
        self.value += (value - self.value) / min(self._count, REMEMBERED)


def gain_db(ours: Tensor, other: Tensor, truth: Tensor) -> float:
    """Mean gain in PSNR over (B, 1, rows, columns), but for the border, where no error counts."""
    error_ours, error_other = (
        np.square(inner(slice_hu - truth).cpu().numpy()).mean(axis=(1, 2, 3)) + LEAST_ERROR
        for slice_hu in (ours, other)
    )
    return float(10.0 * np.log10(error_other / error_ours).mean())


class HeldOut:
    """Gaps of patients that are not trained on, measured now and then."""

    def __init__(self, patients: Sequence[Patient]) -> None:
        random = default_rng(HELD_SEED)
        self._samples = [
            sample
            for patient in patients
            for _ in range(HELD_GAPS)
            for sample in unaltered(patient, random)
        ]

    def gain_over_dis_db(self, network: Network, average: Tensors, device: str) -> float | None:
        """Of the network with these weights; None where nobody was left out."""
        gains = []
        for sample in self._samples:
            planes, conditions, cubic = _tensors(
                device,
                sample.planes[None].astype(np.float32),  # (1, 7, side, side)
                sample.conditions[None],
                sample.cubic[None].copy(),
            )
            with torch.inference_mode():
                inputs = planes[:, :6], conditions, cubic
                slice_hu, _ = functional_call(network, dict(average), inputs)
            gains.append(gain_db(slice_hu, _mixed(planes, conditions, 4), planes[:, 6:]))
        return float(np.mean(gains)) if gains else None


def add_to_course(now: TrainingProgress, path: Path) -> None:
    """Add a measurement to the learning curve, a CSV file that a resumed training goes on with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = "" if now.held_over_dis_db is None else f"{now.held_over_dis_db:.4f}"
    with path.open("a", encoding="ascii") as file:
        if file.tell() == 0:
            file.write("step,minutes,loss,over_dis_db,over_linear_db,held_over_dis_db\n")
        file.write(
            f"{now.step},{now.seconds / 60.0:.2f},{now.loss:.6f},{now.gain_over_dis_db:.4f},"
            f"{now.gain_over_linear_db:.4f},{held}\n"
        )


# The checkpoint (weights, moving average, optimiser, random state) lies in `var/training/` and is
# written every minute, with a line of the learning curve beside it; a run that finds one with the
# same patients goes on from there. Patients who are left out are measured at the same times.


@dataclass(frozen=True)
class Plan:
    """The plan of a training: everything but the data that changes the result."""

    minutes: float = 60.0  # of processor time
    steps: int | None = None  # instead of minutes: repeatable to the bit on one machine
    seed: int = 1
    device: str = "cpu"
    batch: int = 8
    side: int = 96  # of a patch, in pixels
    pool: int = 3000  # crops kept in memory, about 0.7 MB each
    first: int = 200  # crops in the pool before the first step
    refresh: int = 6  # steps between two new gaps in the pool
    start: Path | None = None  # weights to begin from, else from nothing
    learning_rate: float = LEARNING_RATE  # at its height
    adversarial: float = 0.0  # how hard an adversary pulls beside the loss; 0: there is none
    checkpoint_seconds: float = 60.0


@dataclass(frozen=True)
class Trained:
    """The weights that a training wrote, and its course."""

    weights: Path
    sha256: str
    steps: int
    seconds: float  # of processor time, all sittings
    patients: tuple[str, ...]
    last: TrainingProgress


def train(
    data: Path,
    plan: Plan | None = None,
    *,
    weights: Path = WEIGHTS,
    checkpoint: Path = CHECKPOINT,
    leave_out: frozenset[str] = frozenset(),
    progress: Callable[[TrainingProgress], None] = lambda _: None,
) -> Trained:
    """Train on every patient of a folder (of its `ct-train`, where it has one); write weights."""
    plan = plan or Plan()
    patients, left_out = divided(load_patients(data, "ct-train"), leave_out)
    names = tuple(patient.name for patient in patients)
    training = Training(patients, plan, HeldOut(left_out))
    if checkpoint.exists():
        training.restore(load_checkpoint(checkpoint))
        logger.info("training resumed", extra={"step": training.step})
    course = checkpoint.with_suffix(".csv")
    written = time.monotonic()
    while training.share < 1.0:
        training.advance()
        if training.step % 50 == 0:
            progress(training.progress())
        if time.monotonic() - written > plan.checkpoint_seconds:
            add_to_course(training.measure(), course)
            save_checkpoint(training.checkpoint(), checkpoint)
            written = time.monotonic()
    last = training.measure()
    add_to_course(last, course)
    save_checkpoint(training.checkpoint(), checkpoint)
    sha256 = save_weights(training.average, weights)
    return Trained(weights, sha256, training.step, training.seconds, names, last)


class Training:
    """One training under way."""

    def __init__(
        self, patients: tuple[Patient, ...], plan: Plan, held: HeldOut | None = None
    ) -> None:
        cv2.setNumThreads(1)
        torch.manual_seed(plan.seed)
        self.step = 0
        self._plan = plan
        self._names = tuple(patient.name for patient in patients)
        self._random = np.random.default_rng(plan.seed)
        self._pool = Pool(patients, plan.pool, self._random)
        self._held = held or HeldOut(())
        self._network = _network(plan)
        self._optimiser = torch.optim.AdamW(self._network.parameters(), lr=plan.learning_rate)
        self._adversary = Adversary(plan.device) if plan.adversarial else None
        self.average = {
            name: tensor.detach().clone() for name, tensor in self._network.state_dict().items()
        }
        self._started = time.process_time()
        self._loss, self._over_dis, self._over_linear = Mean(), Mean(), Mean()
        self._adversary_loss = Mean()
        self._held_over_dis_db: float | None = None

    @property
    def seconds(self) -> float:
        """Processor time spent, this sitting and those before."""
        return time.process_time() - self._started

    @property
    def share(self) -> float:
        """The share of the plan that is done; the learning rate follows it."""
        if self._plan.steps is not None:
            return min(1.0, self.step / self._plan.steps)
        return min(1.0, self.seconds / (60.0 * self._plan.minutes))

    def advance(self) -> None:
        """One step of the optimiser; now and then a new sample."""
        if self.step % self._plan.refresh == 0:
            self._pool.refresh()
        while len(self._pool) < min(self._plan.first, self._plan.pool):
            self._pool.refresh()
        batch = self._pool.batch(self._plan.batch, self._plan.side)
        planes, truth, conditions, cubic = _tensors(self._plan.device, *batch)
        for group in self._optimiser.param_groups:
            group["lr"] = self._plan.learning_rate * rate(self.share, self.step)
        slice_hu, scale_hu = self._network(planes, conditions, cubic)
        blend, straight = _mixed(planes, conditions, 4), _mixed(planes, conditions, 1)
        loss = loss_of(slice_hu, scale_hu, truth, blend) + grain_loss(slice_hu, truth, straight)
        loss = loss + lung_loss(slice_hu, truth)
        self._learn(loss, slice_hu, planes, conditions)
        if self._adversary:
            found_out = self._adversary.learn(slice_hu, truth, planes, conditions)
            self._adversary_loss.add(found_out)
        self.step += 1
        self._follow()
        self._loss.add(float(loss.detach()))
        ours = slice_hu.detach()
        self._over_dis.add(gain_db(ours, blend, truth))
        self._over_linear.add(gain_db(ours, straight, truth))

    def _learn(self, loss: Tensor, slice_hu: Tensor, planes: Tensor, conditions: Tensor) -> None:
        if self._adversary:
            objection = self._adversary.objection(slice_hu, planes, conditions)
            loss = balanced(loss, objection, slice_hu, self._plan.adversarial)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), CLIP_NORM)
        self._optimiser.step()

    def _follow(self) -> None:
        """The moving average follows quickly at first."""
        decay = min(AVERAGE_DECAY, self.step / (self.step + 20.0))
        with torch.no_grad():
            for name, tensor in self._network.state_dict().items():
                self.average[name].lerp_(tensor, 1.0 - decay)

    def progress(self) -> TrainingProgress:
        return TrainingProgress(
            self.share,
            self.step,
            self.seconds,
            self._loss.value,
            self._over_dis.value,
            self._over_linear.value,
            self._held_over_dis_db,
            self._adversary_loss.value,
        )

    def measure(self) -> TrainingProgress:
        """The same, with what the average makes of the patients who were left out by now."""
        self._held_over_dis_db = self._held.gain_over_dis_db(
            self._network, self.average, self._plan.device
        )
        return self.progress()

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(
            step=self.step,
            seconds=self.seconds,
            weights=self._network.state_dict(),
            average=self.average,
            optimiser=optimiser_tensors(self._optimiser),
            random=dict(self._random.bit_generator.state),
            patients=self._names,
            adversary=self._adversary.state() if self._adversary else {},
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint; the pool is drawn anew."""
        if checkpoint.patients != self._names:
            raise ModelLoadError(
                f"the checkpoint was trained on {', '.join(checkpoint.patients)}, the data has "
                f"{', '.join(self._names)}: remove the checkpoint or name another"
            )
        self._network.load_state_dict(dict(checkpoint.weights))
        restore_optimiser(self._optimiser, checkpoint.optimiser)
        if self._adversary:
            self._adversary.restore(checkpoint.adversary)
        for name, tensor in checkpoint.average.items():
            self.average[name].copy_(tensor)
        self._random.bit_generator.state = dict(checkpoint.random)
        self.step = checkpoint.step
        self._started -= checkpoint.seconds


def _tensors(device: str, *arrays: NDArray[np.float32]) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(array).to(device) for array in arrays)


def _mixed(planes: Tensor, conditions: Tensor, place: int) -> Tensor:
    """(B, 1, H, W): the plane at that place and the next one, mixed by t."""
    t = conditions[:, 0, None, None, None]
    return (1.0 - t) * planes[:, place : place + 1] + t * planes[:, place + 1 : place + 2]


def _network(plan: Plan) -> Network:
    """From nothing or from weights; mixed precision wherever the device has it."""
    network = load_network(plan.start)[0] if plan.start is not None else Network()
    network.mixed = has_fast_bfloat16(plan.device)
    with_channels_last(network.to(plan.device))
    return network


def rate(share: float, step: int) -> float:
    """The learning rate's share: a short rise, then a cosine to almost nothing."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return warm * (LEAST_RATE + (1.0 - LEAST_RATE) * 0.5 * (1.0 + math.cos(math.pi * share)))
