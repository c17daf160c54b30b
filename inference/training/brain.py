"""Training of the brain U-Net: distilled from masks, each head left out in turn, then on all.

Everything random comes from one seed.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from inference.models.brain.unet import GRID_MM, PERCENTILES, WINDOW, BrainUNet, UNet
from inference.models.runtime import has_fast_bfloat16
from inference.training.beside import EvaluationOrder, Report, Table, TrainingOrder
from inference.training.brain_figures import judge
from inference.training.charts import write_lines
from inference.training.checkpoint import Tensors, save_weights
from inference.training.heads import Grid, load_heads

LEARNING_RATE, DECAY = 3e-3, 1e-2
LEAST_RATE = 0.01  # share of it at the end of the cosine
WARM_STEPS = 50  # in which it rises
KEPT = 0.99  # of the mean of the weights at each step: the mean is what is kept
# Voxels that count as right in every window. With few, a window without brain would teach nothing:
# the slope of its loss falls with the square of what is wrong in it.
SMOOTH = 2000.0

# Ranges of the augmentation.
MOST_DEGREES, SCALES = 15.0, (0.85, 1.15)
ELASTIC_MM, ELASTIC_NODES = 3.0, 6
AROUND_MM = 24.0  # of the middle of the brain: where the middle of a window mostly lies
ANYWHERE = 0.1  # of the windows: the neck and the air are predicted too
CUT = 0.3  # of the windows: their field of view ends inside the head
BIAS, BIAS_NODES = 0.2, 4  # of its logarithm
MENINGES, SHELL = 0.6, 5  # the same of what lies around the brain, that many voxels wide
TONES, TONE = 6, 0.08  # a contrast: that many grey values, each moved by about so much
GAIN = (0.8, 1.25)
GAMMAS = (0.6, 1.7)
MOST_NOISE = 0.04
INVERTED = 0.03  # of the windows
MOST_CUT = 24  # voxels of the grid
THICKEST = 3  # voxels of the grid
TRAINED = 0.95  # of the time; the rest is judging
RECENT = 50  # steps of a running mean
WEIGHTS = "weights.safetensors"
AIR = 0.05  # of the values from 0 to 1: what an inverted contrast leaves dark


@dataclass(frozen=True)
class BrainPlan:
    """The length and the seed of one training."""

    minutes: float = 15.0  # of processor time
    steps: int | None = None  # instead of minutes
    seed: int = 1
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class Course:
    """A training that has ended: weights, and the loss of each step."""

    weights: Tensors
    losses: tuple[float, ...]
    seconds: float


class Augmentation:
    """Windows of heads, turned, bent and lit anew: (image, share of brain)."""

    def __init__(self, grids: Sequence[tuple[Grid, Grid]], random: Generator, device: str) -> None:
        self._random, self._device = random, device
        self._grids = [torch.from_numpy(np.stack(grid)).to(device)[None] for grid in grids]
        self._boxes = [_box(mask) for _, mask in grids]

    def window(self) -> tuple[Tensor, Tensor]:
        """(1, 1, *WINDOW) and (1, *WINDOW), both 0 to 1."""
        number = int(self._random.integers(len(self._grids)))
        places = self._places(self._grids[number].shape[2:], self._boxes[number])
        both = F.grid_sample(self._grids[number], places, mode="bilinear", align_corners=False)
        image, share = both[:, :1], both[:, 1:]
        if self._random.random() < CUT:
            self._cut(image, share)
        return self._relit(image, share), share[:, 0]

    def _places(self, shape: Sequence[int], box: NDArray[np.float64]) -> Tensor:
        """The places of the voxels of a window in a volume, as grid_sample reads them."""
        random = self._random
        centre = box.mean(0) + random.uniform(-1.0, 1.0, 3) * AROUND_MM / GRID_MM
        if random.random() < ANYWHERE:
            centre = random.uniform(0.0, np.array(shape, float))
        matrix = _turned(np.radians(random.uniform(-MOST_DEGREES, MOST_DEGREES, 3)))
        matrix = matrix * random.uniform(*SCALES, 3)[None]
        if random.random() < 0.5:
            matrix[:, 0] *= -1.0
        ends = [np.linspace(-1.0, 1.0, ELASTIC_NODES) * (side - 1) / 2 for side in WINDOW]
        nodes = np.stack(np.meshgrid(*ends, indexing="ij"))
        nodes += random.normal(0.0, random.uniform(0.0, ELASTIC_MM / GRID_MM), nodes.shape)
        places = np.einsum("ij,j...->i...", matrix, nodes) + centre.reshape(3, 1, 1, 1)
        sizes = np.array(shape, float).reshape(3, 1, 1, 1)
        unit = ((2.0 * places + 1.0) / sizes - 1.0)[::-1]  # x is the last axis
        return self._smooth(unit[None]).permute(0, 2, 3, 4, 1)

    def _field(self, most: float) -> Tensor:
        """(1, 1, *WINDOW): smooth, around 0."""
        size = (1, 1, *(BIAS_NODES,) * 3)
        return self._smooth(self._random.normal(0.0, self._random.uniform(0.0, most), size))

    def _smooth(self, nodes: NDArray[np.float64]) -> Tensor:
        return F.interpolate(self._tensor(nodes), WINDOW, mode="trilinear", align_corners=True)

    def _tensor(self, values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self._device)

    def _cut(self, image: Tensor, share: Tensor) -> None:
        """The field of view ends somewhere below the brain, and at one side inside the head."""
        occupied = torch.nonzero(share[0, 0].amax((0, 1)) > 0.5)
        lowest = int(occupied[0]) if len(occupied) else 0
        image[..., : int(self._random.integers(lowest + 1))] = 0.0
        axis, width = int(self._random.integers(2, 5)), int(self._random.integers(1, MOST_CUT))
        start = 0 if self._random.random() < 0.5 else image.shape[axis] - width
        for part in (image, share):
            part.narrow(axis, start, width).zero_()

    def _relit(self, image: Tensor, share: Tensor) -> Tensor:
        """Another scanner, another contrast, meninges and vessels of another brightness."""
        random = self._random
        if random.random() < 0.4:
            image = self._thick(image)
        image = image * torch.exp(self._field(BIAS))
        if random.random() < 0.5:
            image = image * torch.exp(self._field(MENINGES) * _shell(share))
        bright = torch.quantile(image[..., ::4, ::4, ::4].flatten(), PERCENTILES[1])
        image = (image / bright.clamp(min=1e-3)).clamp(0.0, 1.0)
        if random.random() < INVERTED:
            image = torch.where(image > AIR, 1.0 + AIR - image, image)
        image = self._toned(image * float(np.exp(random.uniform(*np.log(GAIN)))))
        image = image ** float(np.exp(random.uniform(*np.log(GAMMAS))))
        if random.random() < 0.2:
            image = F.avg_pool3d(image, 3, 1, 1)
        noise = torch.from_numpy(random.standard_normal(WINDOW, np.float32)).to(self._device)
        return (image + noise * random.uniform(0.0, MOST_NOISE)).clamp(0.0, 1.0)

    def _toned(self, image: Tensor) -> Tensor:
        """Grey values moved by a line through a few points; air stays dark."""
        values = np.linspace(0.0, 1.0, TONES)
        values[1:] += self._random.normal(0.0, self._random.uniform(0.0, TONE), TONES - 1)
        tones = self._tensor(values)
        places = image.clamp(0.0, 1.0) * (TONES - 1)
        low = places.floor().clamp(max=TONES - 2)
        return torch.lerp(tones[low.long()], tones[low.long() + 1], places - low).clamp(0.0, 1.0)

    def _thick(self, image: Tensor) -> Tensor:
        """Thick slices along one axis."""
        kernel = [1, 1, 1]
        kernel[int(self._random.integers(3))] = int(self._random.integers(2, THICKEST + 1))
        slabs = F.avg_pool3d(image, kernel, ceil_mode=True)
        return F.interpolate(slabs, WINDOW, mode="trilinear", align_corners=False)


def _shell(share: Tensor) -> Tensor:
    """1 just outside of the brain, where vessels and meninges take up contrast agent; else 0."""
    near = F.avg_pool3d(share, SHELL, 1, SHELL // 2) * 4.0
    return near.clamp(max=1.0) * (1.0 - share)


def _box(mask: Grid) -> NDArray[np.float64]:
    """(2, 3): the first and the last voxel of brain along each axis."""
    where = np.argwhere(mask > 0.5)
    return np.stack([where.min(0), where.max(0)]).astype(float)


def _turned(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 3): a rotation about each axis in turn."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def mask_loss(logits: Tensor, share: Tensor) -> Tensor:
    """1 - soft Dice of one window, and the mean cross entropy of its voxels."""
    probability = torch.sigmoid(logits.float())
    common = (probability * share).sum()
    dice = (2.0 * common + SMOOTH) / (probability.sum() + share.sum() + SMOOTH)
    return 1.0 - dice + F.binary_cross_entropy_with_logits(logits.float(), share)


def train(
    grids: Sequence[tuple[Grid, Grid]], plan: BrainPlan, progress: Callable[[float, float], None]
) -> Course:
    """The weights after a plan; `progress` is told the share done and the loss of late."""
    torch.manual_seed(plan.seed)
    network = UNet().to(plan.device).train()
    optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=DECAY)
    mean = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(KEPT))
    samples = Augmentation(grids, default_rng(plan.seed), plan.device)
    is_narrow = has_fast_bfloat16(plan.device)
    losses: list[float] = []
    started = time.process_time()
    while (share := _share(plan, len(losses), time.process_time() - started)) < 1.0:
        for group in optimiser.param_groups:
            cosine = (1.0 + np.cos(np.pi * share)) / 2.0
            rise = min(1.0, (len(losses) + 1) / WARM_STEPS)
            group["lr"] = LEARNING_RATE * rise * (LEAST_RATE + (1.0 - LEAST_RATE) * cosine)
        image, brain = samples.window()
        device_type = torch.device(plan.device).type
        with torch.autocast(device_type, torch.bfloat16, enabled=is_narrow):
            loss = mask_loss(network(image), brain)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        mean.update_parameters(network)
        losses.append(float(loss.detach()))
        progress(share, float(np.mean(losses[-RECENT:])))
    kept = mean.module.state_dict()
    weights = {name: value.detach().cpu().half() for name, value in kept.items()}
    return Course(weights, tuple(losses), time.process_time() - started)


def _share(plan: BrainPlan, steps: int, seconds: float) -> float:
    return steps / plan.steps if plan.steps is not None else seconds / (60.0 * plan.minutes)


def train_all(order: TrainingOrder, report: Report) -> Table:
    """Each head left out in turn, then on all; figures of the heads that were left out.

    The order of the trainings is that of the names, so that `--folds 1` is always the same one.
    """
    heads = load_heads(order.data)
    folds = len(heads) if order.folds is None else min(order.folds, len(heads))
    report(0.0, "bias fields")
    grids = {head.name: head.on_grid() for head in heads}
    left_out = [*(head.name for head in heads[:folds]), ""]
    courses: dict[str, Course] = {}
    for number, name in enumerate(left_out):
        words = f"without {name}" if name else "on all"

        def tell(share: float, loss: float, number: int = number, words: str = words) -> None:
            done = (number + share) / len(left_out)
            report(TRAINED * done, f"{words}, loss {loss:.3f}")

        plan = BrainPlan(order.minutes / len(left_out), order.steps, order.seed, order.device)
        own = [grid for head, grid in grids.items() if head != name]
        courses[words] = train(own, plan, tell)
        path = order.out / (f"{name}.safetensors" if name else WEIGHTS)
        save_weights(courses[words].weights, path)
    _write_courses(order.out, courses)
    figures = EvaluationOrder(
        BrainUNet.name, order.data, order.out, order.out / WEIGHTS, order.out, order.device
    )
    table = judge(figures, lambda share, what: report(TRAINED + (1 - TRAINED) * share, what))
    _write_card(order, courses, table)
    return table


def _write_courses(out: Path, courses: dict[str, Course]) -> None:
    """The loss of each training, as a running mean."""
    lines = {
        words: [
            (float(step), float(np.mean(course.losses[max(0, step - RECENT) : step])))
            for step in range(1, len(course.losses) + 1)
        ]
        for words, course in courses.items()
    }
    write_lines(out / "curve.png", lines, title="brain-unet", across="step", up="1 - Dice")


def _write_card(order: TrainingOrder, courses: dict[str, Course], table: Table) -> None:
    digest = hashlib.sha256((order.out / WEIGHTS).read_bytes()).hexdigest()
    trainings = [
        f"| {words} | {len(course.losses)} | {course.seconds / 60:.1f} |"
        for words, course in courses.items()
    ]
    text = [
        f"# Model card: {BrainUNet.name} {BrainUNet.version}",
        f"Weights `{WEIGHTS}`, SHA-256 `{digest}`; seed {order.seed}, {order.device}.",
        "\n".join(["| training | steps | minutes |", "|---|---|---|", *trainings]),
        _markdown(table),
        *table.notes,
    ]
    (order.out / "card.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")


def _markdown(table: Table) -> str:
    lines = [table.columns, tuple("---" for _ in table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
