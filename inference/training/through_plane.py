"""Super-resolution through the plane, as a peer to be judged beside.

After SAINT (Peng, Lin, Liao, Chellappa, Zhou, "SAINT: Spatially Aware Interpolation NeTwork for
Medical Slice Synthesis", CVPR 2020): a network sees the stack from the side, as planes of z and one
in-plane axis; it finds features of the received rows of such a plane, and makes the row at any
place between two of them with a filter that it derives from that place and the gap. Both views,
sagittal and coronal, are averaged. It is smaller than published (144,000 parameters), and without
the second network of the paper, which fuses the views on axial slices.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor, nn

from inference.models.confidence import body_of
from inference.models.runtime import has_fast_bfloat16
from inference.training.data import Patient
from inference.volume import Plane

WIDTH, BLOCKS = 32, 6
ROWS = 4  # received slices around a place: P, A, C, N
UNIT_HU, MIDDLE_HU = 500.0, -300.0
BATCH, LENGTH = 32, 64  # planes, and pixels along each
LEARNING_RATE, BETAS = 1e-3, (0.9, 0.99)
LEAST_GAP_MM, MOST_GAP_MM = 2.0, 12.0
FACTORS = range(2, 11)
PLANES_AT_ONCE = 64


class SideNetwork(nn.Module):
    """(B, ROWS, W) HU, (B, 3) places to (B, W) HU: the row at t between the two middle rows."""

    def __init__(self, width: int = WIDTH, blocks: int = BLOCKS) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.joined = nn.Conv2d(width * (blocks + 1), width, 1)
        self.filters = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, width * ROWS * 3))

    def forward(self, rows: Tensor, places: Tensor) -> Tensor:
        x = self.first(((rows - MIDDLE_HU) / UNIT_HU)[:, None])  # (B, width, ROWS, W)
        seen = [x]
        for block in self.blocks:
            seen.append(block(seen[-1]))
        features = self.joined(torch.cat(seen, dim=1)) + x  # (B, width, ROWS, W)
        around = F.pad(features, (1, 1))
        patches = torch.stack([around[..., k : k + rows.shape[-1]] for k in range(3)], dim=3)
        filters = self.filters(places).reshape(len(rows), -1)  # (B, width * ROWS * 3)
        change = torch.einsum("bk,bkw->bw", filters, patches.flatten(1, 3)).float()  # (B, W)
        t = places[:, :1]
        return torch.lerp(rows[:, 1], rows[:, 2], t) + UNIT_HU * change * t * (1.0 - t)


class _Block(nn.Module):
    """Two convolutions around which the input passes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(F.relu(self.first(x)))
        return x + 0.1 * y


def places_of(t: float, gap_mm: float, pixel_mm: float) -> NDArray[np.float32]:
    """(3,): what the filter of a row is derived from."""
    return np.array([t, gap_mm / 10.0, np.log(gap_mm / pixel_mm) / 2.0], np.float32)


@dataclass(eq=False)
class ThroughPlane:
    """The network under training, on side views of several patients."""

    network: SideNetwork = field(default_factory=SideNetwork)

    def __post_init__(self) -> None:
        adam = torch.optim.Adam(self.network.parameters(), LEARNING_RATE, BETAS)
        self.optimisers: dict[str, torch.optim.Optimizer] = {"network": adam}
        self.networks: dict[str, nn.Module] = {"network": self.network}

    def step(self, patients: Sequence[Patient], random: Generator, *, narrow: bool) -> float:
        """One batch of one patient; returns the mean absolute error in HU."""
        rows, places, truth = self._batch(patients, random)
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            made = self.network(rows, places)
        loss = F.l1_loss(made.float(), truth)
        optimiser = self.optimisers["network"]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        optimiser.step()
        return float(loss.detach())

    def _batch(
        self, patients: Sequence[Patient], random: Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(BATCH, ROWS, LENGTH), (BATCH, 3), (BATCH, LENGTH): parts of side views."""
        patient = patients[int(random.integers(len(patients)))]
        factors = [
            factor
            for factor in FACTORS
            if LEAST_GAP_MM <= factor * patient.spacing_mm <= MOST_GAP_MM
            and len(patient) > 3 * factor
        ]
        factor = int(random.choice(factors or [2]))
        gap_mm, deep = factor * patient.spacing_mm, len(patient)
        sides = patient.hu.shape[1:]
        views = []
        for _ in range(BATCH):
            axis = int(random.integers(2))  # the one that is looked along
            first = int(random.integers(deep - 3 * factor))
            offset = int(random.integers(1, factor))
            fixed = int(random.integers(sides[axis] // 16, sides[axis] - sides[axis] // 16))
            start = int(random.integers(max(1, sides[1 - axis] - LENGTH)))
            along = slice(start, start + LENGTH)
            view = patient.hu[:, fixed, along] if axis == 0 else patient.hu[:, along, fixed]
            indices = [first + k * factor for k in range(ROWS)] + [first + factor + offset]
            lines = view[indices].astype(np.float32)
            if random.random() < 0.5:
                lines = np.concatenate([lines[ROWS - 1 :: -1], lines[ROWS:]])
                offset = factor - offset
            views.append((lines, places_of(offset / factor, gap_mm, patient.geometry.pixel_mm)))
        lines = np.stack([lines for lines, _ in views])
        places = torch.from_numpy(np.stack([place for _, place in views]))
        return torch.from_numpy(lines[:, :ROWS]), places, torch.from_numpy(lines[:, ROWS])


def interpolated(
    network: SideNetwork, planes: Sequence[Plane], t: float, gap_mm: float, pixel_mm: float
) -> Plane:
    """The slice at t between the middle two of P, A, C, N, from both sides; linear around the
    patient."""
    made = np.asarray(planes[1] + np.float32(t) * (planes[2] - planes[1]), np.float32)
    inside = np.argwhere(body_of(planes[1]) | body_of(planes[2]))
    if not len(inside):
        return made
    (top, left), (bottom, right) = inside.min(0), inside.max(0) + 1
    part = slice(top, bottom), slice(left, right)
    stack = torch.from_numpy(np.stack([plane[part] for plane in planes]).astype(np.float32))
    place = torch.from_numpy(places_of(t, gap_mm, pixel_mm))
    narrow = has_fast_bfloat16("cpu")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        coronal = _from_side(network, stack.permute(1, 0, 2), place)  # (H, W)
        sagittal = _from_side(network, stack.permute(2, 0, 1), place).T
    made[part] = (0.5 * (coronal + sagittal)).float().numpy()
    return made


def _from_side(network: SideNetwork, views: Tensor, place: Tensor) -> Tensor:
    """(planes, ROWS, length) to (planes, length), some planes at a time."""
    parts = [
        network(part.contiguous(), place.expand(len(part), -1))
        for part in torch.split(views, PLANES_AT_ONCE)
    ]
    return torch.cat(parts)
