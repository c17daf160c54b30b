"""The model `brain-unet`: a residual 3D U-Net that `midslice train --model brain-unet` trains.

Bias field off, 2 mm, percentiles to 0 and 1; overlapping windows of the size that it is trained on,
so that its norms see the same amount of head; the probability goes back to the grid of the source.
"""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from inference.errors import ModelLoadError
from inference.models.brain.extraction import BrainExtraction
from inference.models.brain.mask import THRESHOLD, Probability, box_of, clean

SHIPPED_WEIGHTS = Path(__file__).with_name("unet.safetensors")
GRID_MM = 2.0
WINDOW = (80, 96, 96)  # right, anterior, superior; multiples of 16
MARGIN = 3  # voxels around the brain in the second look
BASE, LEVELS = 16, 4  # inside the stem: 2 mm outside, then 4, 8, 16 and 32 mm
PERCENTILES = (0.005, 0.995)
BIAS_SHRINK, BIAS_ITERATIONS = 2, (20, 20, 20)  # of the 2 mm grid

Volume = NDArray[np.float32]
Shape = tuple[int, ...]


class ResidualLevel(nn.Module):
    """Two convolutions in sequence, and a residual sum of what came in."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(inner, outer, 3, padding=1, bias=False)
        self.first_norm = nn.InstanceNorm3d(outer, affine=True)
        self.second = nn.Conv3d(outer, outer, 3, padding=1, bias=False)
        self.second_norm = nn.InstanceNorm3d(outer, affine=True)
        self.past = nn.Conv3d(inner, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(y)) + self.past(x))  # (B, outer, D, H, W)


class UNet(nn.Module):
    """(B, 1, D, H, W), sides that are multiples of 16, to the logit of brain, same size."""

    def __init__(self, base: int = BASE, dropout: float = 0.05) -> None:
        super().__init__()
        widths = [base * 2**level for level in range(LEVELS)]
        self.stem = nn.Conv3d(1, base, 2, 2)
        self.down = nn.ModuleList(
            ResidualLevel(inner, outer)
            for inner, outer in zip([base, *widths], widths, strict=False)
        )
        pairs = list(itertools.pairwise(widths))
        self.wider = nn.ModuleList(nn.ConvTranspose3d(low, high, 2, 2) for high, low in pairs)
        self.up = nn.ModuleList(ResidualLevel(2 * high, high) for high, _ in pairs)
        self.dropout = nn.Dropout3d(dropout)
        self.last = nn.ConvTranspose3d(base, 1, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        x = self.stem(x)  # (B, base, D/2, H/2, W/2)
        for level in self.down:
            seen.append(level(F.max_pool3d(seen[-1], 2) if seen else x))
        y = self.dropout(seen.pop())  # (B, 16 * base, D/16, H/16, W/16)
        for wider, level in zip(reversed(self.wider), reversed(self.up), strict=True):
            y = level(torch.cat([seen.pop(), wider(y)], dim=1))
        logits: Tensor = self.last(y)[:, 0]  # (B, D, H, W)
        return logits


def on_grid(volume: Volume, spacing_mm: tuple[float, ...]) -> Volume:
    """A canonical volume at about 2 mm, over exactly the same space."""
    shape = tuple(
        max(1, round(size * step / GRID_MM))
        for size, step in zip(volume.shape, spacing_mm, strict=True)
    )
    return resized(volume, shape)


def resized(volume: Volume, shape: Shape) -> Volume:
    """The mean of what each new voxel covers; between voxels where new ones are smaller."""
    is_finer = all(old >= new for old, new in zip(volume.shape, shape, strict=True))
    values = torch.from_numpy(np.ascontiguousarray(volume))[None, None]
    new = (
        F.interpolate(values, shape, mode="area")
        if is_finer
        else F.interpolate(values, shape, mode="trilinear", align_corners=False)
    )
    result: Volume = new[0, 0].numpy()
    return result


def without_bias(volume: Volume) -> Volume:
    """N4 (Tustison 2010) inside Otsu's mask of the head; the volume is at 2 mm."""
    image = sitk.GetImageFromArray(volume - volume.min())
    mask = sitk.OtsuThreshold(image, 0, 1, 200)
    filter_ = sitk.N4BiasFieldCorrectionImageFilter()
    filter_.SetNumberOfThreads(1)  # sums in one order
    filter_.SetMaximumNumberOfIterations(list(BIAS_ITERATIONS))
    small, small_mask = (sitk.Shrink(part, [BIAS_SHRINK] * 3) for part in (image, mask))
    filter_.Execute(small, small_mask)
    field = sitk.GetArrayFromImage(sitk.Exp(filter_.GetLogBiasFieldAsImage(image)))
    corrected: Volume = sitk.GetArrayFromImage(image) / field
    return corrected.astype(np.float32)


def normalised(volume: Volume) -> Volume:
    """Percentiles to 0 and 1, clipped."""
    low, high = (float(np.quantile(volume, share)) for share in PERCENTILES)
    return ((volume - low) / max(high - low, 1e-6)).clip(0.0, 1.0).astype(np.float32)


def prepared(volume: Volume, spacing_mm: tuple[float, ...]) -> Volume:
    """A canonical volume as the network takes it."""
    return normalised(without_bias(on_grid(volume, spacing_mm)))


def windows(shape: Shape) -> list[tuple[slice, ...]]:
    """Windows that cover a volume at least as large, by half of each over the next."""
    starts = []
    for size, side in zip(shape, WINDOW, strict=True):
        count = 1 + -(-(size - side) // (side // 2))
        starts.append(np.linspace(0, size - side, count).round().astype(int).tolist())
    return [
        tuple(slice(start, start + side) for start, side in zip(corner, WINDOW, strict=True))
        for corner in itertools.product(*starts)
    ]


def _weight() -> Tensor:
    """Of each voxel of a window: the middle knows more of what is around."""
    sides = [torch.exp(-(torch.linspace(-2.0, 2.0, side) ** 2) / 2) for side in WINDOW]
    return torch.einsum("i,j,k->ijk", *sides)


def predicted(network: nn.Module, grid: Volume, device: str) -> Probability:
    """The probability of brain for each voxel of the 2 mm grid.

    A first look at everything says where the brain is, a second one at windows around it is as
    those of the training. Both count there; elsewhere is no brain, but muscles of a neck.
    """
    first = looked_at(network, grid, device)
    part, _ = clean(first > THRESHOLD)
    if not part.any():
        return first
    sides = [_around(*pair) for pair in zip(box_of(part), WINDOW, strict=True)]
    room = max(side.stop - side.start for side in sides)  # windows may reach over the edge
    box = tuple(slice(side.start + room, side.stop + room) for side in sides)
    padded, seen = np.pad(grid, room), np.pad(first, room)
    probability = np.zeros_like(padded)
    probability[box] = (looked_at(network, padded[box], device) + seen[box]) / 2
    inside: Probability = probability[room:-room, room:-room, room:-room]
    return inside


def _around(side: slice, least: int) -> slice:
    """A side of a box with a margin, its middle kept, not shorter than a window."""
    size = max(least, side.stop - side.start + 2 * MARGIN)
    start = (side.start + side.stop - size) // 2
    return slice(start, start + size)


def looked_at(network: nn.Module, grid: Volume, device: str) -> Probability:
    """The probability of brain by overlapping windows."""
    spare = [max(0, side - size) for size, side in zip(grid.shape, WINDOW, strict=True)]
    padded = torch.from_numpy(np.pad(grid, [(n // 2, n - n // 2) for n in spare]))
    total, weights, weight = torch.zeros(padded.shape), torch.zeros(padded.shape), _weight()
    with torch.inference_mode():
        for window in windows(tuple(padded.shape)):
            logits = network(padded[window][None, None].to(device))[0].float().cpu()
            total[window] += weight * torch.sigmoid(logits)
            weights[window] += weight
    own = tuple(slice(n // 2, n // 2 + size) for n, size in zip(spare, grid.shape, strict=True))
    probability: Probability = (total / weights)[own].numpy()
    return probability


class BrainUNet(BrainExtraction):
    """The model `brain-unet`, version and weights; keeps nothing between two stacks."""

    name = "brain-unet"
    version = "1.0.0"

    def __init__(self, weights: Path | None = None, device: str = "cpu") -> None:
        path = weights or SHIPPED_WEIGHTS
        self._network = UNet()
        try:
            raw = path.read_bytes()
            self._network.load_state_dict(load_tensors(raw))
        except OSError as error:
            raise ModelLoadError(f"{path}: the weights cannot be read: {error}") from error
        except SafetensorError as error:
            raise ModelLoadError(f"{path}: not a safetensors file: {error}") from error
        except RuntimeError as error:  # missing, unexpected or misshapen tensors
            raise ModelLoadError(f"{path}: not the weights of brain-unet: {error}") from error
        self._network.eval().requires_grad_(requires_grad=False).to(device)
        self.weights_sha256 = hashlib.sha256(raw).hexdigest()

    def probability(
        self, volume: Volume, spacing_mm: tuple[float, ...], device: str
    ) -> Probability:
        """The probability of brain on the grid of the volume."""
        grid = predicted(self._network.to(device), prepared(volume, spacing_mm), device)
        return resized(grid, volume.shape)
