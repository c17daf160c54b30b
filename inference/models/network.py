"""The network of the generator: what it sees, its trunk, and the slice that its answers compose."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from inference.errors import ModelLoadError

PLANES = 6  # P, A, C, N, and A and C moved along the flow
CONDITIONS = 6  # t, gap, log(gap / pixel), thickness / gap, has P, has N
FLOW_LOGIT = 2.0  # how much the flow blend is preferred before training
RESIDUAL_HU = 100.0
SCALE_HU = 30.0


class Block(nn.Module):
    """Two convolutions around which the input passes; it starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(bias_of(self.last))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(F.leaky_relu(self.first(F.leaky_relu(x, 0.1)), 0.1))
        return x + y


class Trunk(nn.Module):
    """A three-level residual U-Net at half resolution, told t and the gap by a bias a level."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        fine, middle, coarse = width, 2 * width, 4 * width
        self.told = nn.Sequential(nn.Linear(CONDITIONS, 32), nn.LeakyReLU(0.1))
        self.bias_fine = nn.Linear(32, fine)
        self.bias_coarse = nn.Linear(32, coarse)
        self.stem = nn.Conv2d(4 * (PLANES + 1), fine, 3, padding=1)
        self.enter_fine = Block(fine)
        self.down_middle = nn.Conv2d(fine, middle, 2, stride=2)
        self.enter_middle = Block(middle)
        self.down_coarse = nn.Conv2d(middle, coarse, 2, stride=2)
        self.bottom = nn.Sequential(Block(coarse), Block(coarse))
        self.up_middle = nn.ConvTranspose2d(coarse, middle, 2, stride=2)
        self.leave_middle = Block(middle)
        self.up_fine = nn.ConvTranspose2d(middle, fine, 2, stride=2)
        self.leave_fine = Block(fine)
        self.head = nn.Conv2d(fine, outputs, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(bias_of(self.head))

    def forward(self, images: Tensor, conditions: Tensor) -> Tensor:
        embedding = self.told(conditions)  # (B, 32)
        x = self.stem(halved(images))  # (B, fine, H/2, W/2)
        x = self.enter_fine(x + _row_of(self.bias_fine(embedding), x))
        y = self.enter_middle(self.down_middle(x))  # (B, middle, H/4, W/4)
        z = self.down_coarse(y)  # (B, coarse, H/8, W/8)
        z = z + _row_of(self.bias_coarse(embedding), z)
        y = self.leave_middle(y + self.up_middle(self.bottom(z)))  # (B, middle, H/4, W/4)
        x = self.leave_fine(x + self.up_fine(y))  # (B, fine, H/2, W/2)
        heads: Tensor = self.head(F.leaky_relu(x, 0.1))  # (B, outputs, H/2, W/2)
        return heads


class Network(nn.Module):
    """Planes and conditions to the slice at t in HU, and its expected absolute error in HU."""

    FLOWS, FULL = 4, 6  # half-resolution flow (A: x, y; C: x, y); mask, 3 logits, residual, scale

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.trunk = Trunk(width, self.FLOWS + 4 * self.FULL)
        self.mixed = False  # the trunk alone in bfloat16, for training on CUDA

    def forward(self, planes: Tensor, conditions: Tensor, cubic: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 6, H, W) HU, (B, 6), (B, 4) weights of P, A, C, N; H and W multiples of 8."""
        seen = self.seen(planes, conditions)
        with torch.autocast(planes.device.type, torch.bfloat16, enabled=self.mixed):
            heads = self.trunk(seen, conditions)
        return self.composed(heads.float(), planes, conditions, cubic)

    def seen(self, planes: Tensor, conditions: Tensor) -> Tensor:
        """(B, 7, H, W): what the trunk looks at, the flow blend apart from what differs from it."""
        t = conditions[:, 0, None, None, None]  # (B, 1, 1, 1)
        moved = torch.lerp(planes[:, 4:5], planes[:, 5:6], t)  # (B, 1, H, W)
        return torch.cat([(planes - moved) / 250.0, (moved + 1000.0) / 1000.0], dim=1)

    def composed(
        self, heads: Tensor, planes: Tensor, conditions: Tensor, cubic: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The slice and its scale from what the trunk says; float32 whatever the trunk is in."""
        t = conditions[:, 0, None, None, None]  # (B, 1, 1, 1)
        heads = heads.contiguous()  # what follows is faster so than with channels last
        coarse = heads[:, : self.FLOWS]
        flow = F.interpolate(
            coarse, scale_factor=2, mode="bilinear", align_corners=False
        )  # (B, 4, H, W)
        full = doubled(heads[:, self.FLOWS :])  # (B, 6, H, W)
        from_a = _moved(planes[:, 4:5], t * flow[:, :2])
        from_c = _moved(planes[:, 5:6], (1.0 - t) * flow[:, 2:])
        candidates = (
            torch.lerp(planes[:, 1:2], planes[:, 2:3], t),  # linear
            summed(torch.split(planes[:, :4], 1, dim=1), cubic[:, :, None, None]),
            torch.lerp(from_c, from_a, odds(full[:, :1], t)),
        )
        preferred = full.new_tensor([0.0, 0.0, FLOW_LOGIT])[None, :, None, None]
        weights = torch.softmax(full[:, 1:4] + preferred, dim=1)  # (B, 3, H, W)
        residual = RESIDUAL_HU * 4.0 * t * (1.0 - t) * full[:, 4:5]
        slice_hu = residual + summed(candidates, weights)
        scale_hu = SCALE_HU * torch.exp(full[:, 5:6].clamp(-6.0, 6.0))
        return slice_hu, scale_hu  # (B, 1, H, W) each


def bias_of(layer: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def halved(images: Tensor) -> Tensor:
    """(B, C, H, W) to (B, 4 C, H/2, W/2): `pixel_unshuffle` by 2, in a quarter of its time."""
    phases = [images[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    return torch.stack(phases, dim=2).flatten(1, 2)


def doubled(phases: Tensor) -> Tensor:
    """(B, 4 C, H, W) to (B, C, 2 H, 2 W): `pixel_shuffle` by 2, without its copies."""
    height, width = phases.shape[-2:]
    apart = phases.reshape(len(phases), -1, 2, 2, height, width)  # (B, C, row, column, H, W)
    rows = torch.stack([apart[:, :, :, 0], apart[:, :, :, 1]], dim=-1)  # (B, C, row, H, W, column)
    return rows.transpose(2, 3).flatten(4).flatten(2, 3)


def _row_of(bias: Tensor, like: Tensor) -> Tensor:
    """(B, C) as (B, C, 1, W): one value at a time, bfloat16 is added seven times as slowly."""
    row = bias[:, :, None, None].expand(-1, -1, 1, like.shape[-1])
    return row.contiguous(memory_format=torch.channels_last)


def odds(logit: Tensor, t: Tensor) -> Tensor:
    """The share of A: 1 - t where the logit is 0, exactly 1 at t = 0 and 0 at t = 1."""
    raised = (1.0 - t) * torch.exp(logit.clamp(-8.0, 8.0))
    return raised / (raised + t)


def _moved(plane: Tensor, flow: Tensor) -> Tensor:
    """(B, 1, H, W) sampled at every pixel plus flow (B, 2: x, y, H, W), bilinear; edges repeat."""
    height, width = plane.shape[-2:]
    x, y = (centres(side, plane) for side in (width, height))
    across = torch.add(x, flow[:, 0], alpha=2.0 / width)
    down = torch.add(y[:, None], flow[:, 1], alpha=2.0 / height)
    grid = torch.stack([across, down], dim=-1)  # (B, H, W, 2)
    return F.grid_sample(plane, grid, padding_mode="border", align_corners=False)


def centres(side: int, like: Tensor) -> Tensor:
    """(side,): the middles of pixels as `grid_sample` counts, -1 and 1 at the outer edges."""
    places = torch.arange(side, device=like.device, dtype=like.dtype)
    return (2.0 * places + 1.0) / side - 1.0


def summed(planes: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Planes (B, 1, H, W), each times its own of the weights (B, planes, ...), without copies."""
    shares = torch.split(weights, 1, dim=1)
    total: Tensor = planes[0] * shares[0]
    for plane, share in zip(planes[1:], shares[1:], strict=True):
        total = torch.addcmul(total, plane, share)
    return total


def load_network(path: Path) -> tuple[Network, str]:
    """The network with the weights of a file, and their SHA-256."""
    network = Network()
    try:
        raw = path.read_bytes()
        network.load_state_dict(load_tensors(raw))
    except OSError as error:
        raise ModelLoadError(f"{path}: the weights cannot be read: {error}") from error
    except SafetensorError as error:
        raise ModelLoadError(f"{path}: not a safetensors file: {error}") from error
    except RuntimeError as error:  # missing, unexpected or misshapen tensors
        raise ModelLoadError(f"{path}: not the weights of midslice: {error}") from error
    return network, hashlib.sha256(raw).hexdigest()
