"""pix2pix as a slice interpolator: what the project began with, as a peer to be judged beside.

Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017: a U-Net
generator, a PatchGAN that sees its input too, an adversarial loss plus 100 times L1, Adam, batches
of one. The input is the mean of the two received slices, so that what moved between them is lost
before the network sees it; other places than the middle are made by repeating the step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor, nn

from inference.training.data import Patient
from inference.volume import Plane

SIDE = 256  # of what is trained on, and of the published way's pictures
RESIZED = 286  # from which a random window of SIDE is cut, as published
LOW_HU, HIGH_HU = -1024.0, 2048.0
LEAST_GAP_MM, MOST_GAP_MM = 2.0, 12.0
WIDTHS = (64, 128, 256, 512, 512, 512, 512, 512)
DROPPED = 3  # of the innermost ups, with dropout
L1_WEIGHT = 100.0
LEARNING_RATE, BETAS = 2e-4, (0.5, 0.999)
DEVIATION = 0.02  # of the first weights, as published
HALVINGS = 3  # of a gap, to come near to a place that is not its middle
TOLERANCE = 0.02  # of a gap


class Level(nn.Module):
    """One level of the U-Net around all below it; beside what it makes it hands on its input."""

    def __init__(self, outer: int, inner: int, below: nn.Module | None, *, dropped: bool) -> None:
        super().__init__()
        down: list[nn.Module] = [nn.LeakyReLU(0.2), nn.Conv2d(outer, inner, 4, 2, 1)]
        if below is not None:
            down.append(_norm(inner))
        up = nn.ConvTranspose2d(inner if below is None else 2 * inner, outer, 4, 2, 1)
        self.down, self.below = nn.Sequential(*down), below
        self.up = nn.Sequential(nn.ReLU(), up, _norm(outer))
        self.dropped = dropped

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(x)  # (B, inner, H/2, W/2)
        if self.below is not None:
            y = self.below(y)  # (B, 2 * inner, H/2, W/2)
        y = self.up(y)  # (B, outer, H, W)
        return torch.cat([x, F.dropout(y, 0.5, self.training) if self.dropped else y], dim=1)


class UNet(nn.Module):
    """(B, 1, H, W) from -1 to 1 to the same; H and W multiples of 256."""

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        level: nn.Module | None = None
        for depth in range(len(widths) - 1, 0, -1):
            innermost = len(widths) - 1 - depth
            dropped = 0 < innermost <= DROPPED
            level = Level(widths[depth - 1], widths[depth], level, dropped=dropped)
        self.first = nn.Conv2d(1, widths[0], 4, 2, 1)
        self.inner = level
        self.last = nn.ConvTranspose2d(2 * widths[0], 1, 4, 2, 1)
        self.apply(_start)

    def forward(self, x: Tensor) -> Tensor:
        assert self.inner is not None
        y: Tensor = torch.tanh(self.last(F.relu(self.inner(self.first(x)))))
        return y


class PatchGan(nn.Module):
    """One opinion a patch of 70 x 70 pixels, of an input and an output together."""

    def __init__(self, width: int = WIDTHS[0]) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(2, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for times, stride in ((2, 2), (4, 2), (8, 1)):
            before = width * times // 2
            layers += [nn.Conv2d(before, width * times, 4, stride, 1), _norm(width * times)]
            layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, 1, 1))
        self.apply(_start)

    def forward(self, given: Tensor, output: Tensor) -> Tensor:
        opinions: Tensor = self.layers(torch.cat([given, output], dim=1))
        return opinions


def _norm(width: int) -> nn.Module:
    """Of the picture itself, in use as in training: batches are of one."""
    return nn.BatchNorm2d(width, track_running_stats=False)


def _start(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, 0.0, DEVIATION)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, DEVIATION)


@dataclass(frozen=True)
class Coding:
    """HU as the network sees them: as published in pictures of 256 x 256 and 8 bits, or as they
    are."""

    pictures: bool

    def coded(self, plane: Plane) -> NDArray[np.float32]:
        share = (np.clip(plane, LOW_HU, HIGH_HU) - LOW_HU) / (HIGH_HU - LOW_HU)
        if self.pictures:
            small = cv2.resize(share, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            share = np.rint(255.0 * small) / 255.0
        return np.asarray(2.0 * share - 1.0, np.float32)

    def decoded(self, values: NDArray[np.float32], like: Plane) -> Plane:
        share = np.clip((values + 1.0) / 2.0, 0.0, 1.0)
        if self.pictures:
            share = np.rint(255.0 * share).astype(np.float32) / np.float32(255.0)
            share = cv2.resize(share, like.shape[::-1], interpolation=cv2.INTER_CUBIC)
        return np.asarray(LOW_HU + share * (HIGH_HU - LOW_HU), np.float32)


@dataclass(eq=False)
class Pix2pix:
    """Generator and judge under training, on triplets of slices of several patients."""

    pictures: bool
    widths: tuple[int, ...] = WIDTHS
    generator: UNet = field(init=False)
    judge: PatchGan = field(init=False)

    def __post_init__(self) -> None:
        self.generator, self.judge = UNet(self.widths), PatchGan(self.widths[0])
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            "generator": torch.optim.Adam(self.generator.parameters(), LEARNING_RATE, BETAS),
            "judge": torch.optim.Adam(self.judge.parameters(), LEARNING_RATE, BETAS),
        }
        self.networks: dict[str, nn.Module] = {"generator": self.generator, "judge": self.judge}

    def step(self, patients: Sequence[Patient], random: Generator, *, narrow: bool) -> float:
        """One triplet; returns the L1 distance in units of half the range of HU."""
        given, truth = self._pair(patients, random)
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            made = self.generator(given)
        made = made.float()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            real, fake = self.judge(given, truth), self.judge(given, made.detach())
        self._descend("judge", 0.5 * (_bce(real.float(), 1.0) + _bce(fake.float(), 0.0)))
        self.judge.requires_grad_(requires_grad=False)
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            opinion = self.judge(given, made)
        distance = F.l1_loss(made, truth)
        self._descend("generator", _bce(opinion.float(), 1.0) + L1_WEIGHT * distance)
        self.judge.requires_grad_(requires_grad=True)
        return float(distance.detach())

    def _descend(self, name: str, loss: Tensor) -> None:
        self.optimisers[name].zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.optimisers[name].step()

    def _pair(self, patients: Sequence[Patient], random: Generator) -> tuple[Tensor, Tensor]:
        """(1, 1, SIDE, SIDE) twice: the mean of two slices, and the one in their middle."""
        patient = patients[int(random.integers(len(patients)))]
        steps = [
            step
            for step in range(1, (len(patient) - 1) // 2 + 1)
            if LEAST_GAP_MM <= 2 * step * patient.spacing_mm <= MOST_GAP_MM
        ]
        step = int(random.choice(steps or [1]))
        middle = int(random.integers(step, len(patient) - step))
        a, b, c = (patient.plane(middle + shift) for shift in (-step, 0, step))
        coding = Coding(self.pictures)
        both = np.stack([_merged(coding.coded(a), coding.coded(c)), coding.coded(b)])
        window = _window(both, random, resized=RESIZED if self.pictures else None)
        given, truth = torch.from_numpy(window)[:, None, None]
        return given, truth


def _bce(opinions: Tensor, wanted: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(opinions, torch.full_like(opinions, wanted))


def _merged(a: NDArray[np.float32], c: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(0.5 * (a + c), np.float32)


def _window(
    both: NDArray[np.float32], random: Generator, *, resized: int | None
) -> NDArray[np.float32]:
    """(2, SIDE, SIDE): a random window, mirrored in half of the cases."""
    least = resized or SIDE
    if resized is not None or min(both.shape[1:]) < SIDE:
        size = (least, least)
        both = np.stack([cv2.resize(p, size, interpolation=cv2.INTER_LINEAR) for p in both])
    row, column = (int(random.integers(side - SIDE + 1)) for side in both.shape[1:])
    both = both[:, row : row + SIDE, column : column + SIDE]
    return np.ascontiguousarray(both[:, :, ::-1] if random.random() < 0.5 else both)


def interpolated(generator: UNet, a: Plane, c: Plane, t: float, *, pictures: bool) -> Plane:
    """The slice at t: the middle, and the middle of that and a neighbour, until it is near."""
    coding = Coding(pictures)
    low, high, near_a, near_c = 0.0, 1.0, coding.coded(a), coding.coded(c)
    for _ in range(HALVINGS):
        middle, made = 0.5 * (low + high), _middle(generator, near_a, near_c)
        if abs(middle - t) <= TOLERANCE:
            break
        if t < middle:
            high, near_c = middle, made
        else:
            low, near_a = middle, made
    return coding.decoded(made, a)


def _middle(generator: UNet, a: NDArray[np.float32], c: NDArray[np.float32]) -> NDArray[np.float32]:
    merged = _merged(a, c)
    rows, columns = (-side % SIDE for side in merged.shape)
    padded = np.pad(merged, ((0, rows), (0, columns)), mode="edge")
    with torch.inference_mode():
        made = generator(torch.from_numpy(padded)[None, None])[0, 0]
    return np.asarray(made[: merged.shape[0], : merged.shape[1]].numpy(), np.float32)
