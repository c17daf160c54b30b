"""The model `brain`: the pretrained networks of deepbet 1.0.2, weights unchanged.

Preprocessing follows theirs to the voxel: nearest sampling to 128 and to 256 voxels a side,
percentiles of the small volume, and a box with a margin of a tenth.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from inference.errors import ModelLoadError
from inference.models.brain.extraction import BrainExtraction, no_brain
from inference.models.brain.linknet import LinkNet
from inference.models.brain.mask import THRESHOLD, Mask, Probability, clean

SHIPPED_WEIGHTS = Path(__file__).with_name("brain.safetensors")
BOX_SIDE, BRAIN_SIDE = 128, 256  # voxels
PERCENTILES = (0.005, 0.995)
HALF = np.float32(0.5)  # places are rounded as they were where the networks were trained
BOX_MARGIN = 0.1  # of its size, to either side
OCCUPIED = 0.02  # of the voxels of a plane: it belongs to the box
MEAN, DEVIATION = 0.449, 0.226  # of what the networks were trained with

Volume = NDArray[np.float32]
Box = tuple[slice, ...]


def sampled(volume: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The nearest voxel of each new one, of volumes that cover the same space."""
    axes = map(_nearest, volume.shape, shape)
    return volume[np.ix_(*axes)]


def _nearest(old: int, new: int) -> NDArray[np.intp]:
    places = (np.arange(new, dtype=np.float32) + HALF) * np.float32(old / new)
    return np.minimum(places.astype(np.intp), old - 1)


def scaled(volume: Volume, low: float, high: float) -> torch.Tensor:
    """(D, H, W) between two percentiles, then as the networks know it: (1, 1, D, H, W)."""
    values = torch.from_numpy((volume - low) / max(high - low, 1e-6)).clamp(0.0, 1.0)
    values = (values - values.mean()) / values.std().clamp(min=1e-6)
    return (DEVIATION * values + MEAN)[None, None]


def box_around(small: Mask, shape: tuple[int, ...]) -> Box:
    """The box of a mask of the whole volume, in the voxels of the volume, with a margin."""
    sides = []
    for axis, size in enumerate(shape):
        others = tuple(other for other in range(3) if other != axis)
        planes = np.flatnonzero(small.mean(others) > OCCUPIED)
        if not planes.size:
            raise no_brain()
        first, end, scale = int(planes[0]), int(planes[-1]) + 1, size / small.shape[axis]
        centre = np.rint((first + end) / 2 * scale)
        width = np.rint((end - first) * scale * (1 + 2 * BOX_MARGIN))
        start, stop = int(centre - width / 2), int(centre + width / 2)
        sides.append(slice(max(0, start), min(size, stop)))
    return tuple(sides)


class Brain(BrainExtraction):
    """The model `brain`, version and weights; keeps nothing between two stacks."""

    name = "brain"
    version = "1.0.0"

    def __init__(self, weights: Path | None = None, device: str = "cpu") -> None:
        path = weights or SHIPPED_WEIGHTS
        self._box, self._brain = LinkNet(), LinkNet()
        try:
            raw = path.read_bytes()
            tensors = load_tensors(raw)
            for part, network in (("box.", self._box), ("brain.", self._brain)):
                own = {name: value for name, value in tensors.items() if name.startswith(part)}
                state = {name.removeprefix(part): value for name, value in own.items()}
                network.load_state_dict(state)
                network.eval().requires_grad_(requires_grad=False).to(device)
        except OSError as error:
            raise ModelLoadError(f"{path}: the weights cannot be read: {error}") from error
        except SafetensorError as error:
            raise ModelLoadError(f"{path}: not a safetensors file: {error}") from error
        except RuntimeError as error:  # missing, unexpected or misshapen tensors
            raise ModelLoadError(f"{path}: not the weights of brain: {error}") from error
        self.weights_sha256 = hashlib.sha256(raw).hexdigest()

    def probability(
        self, volume: Volume, spacing_mm: tuple[float, ...], device: str
    ) -> Probability:
        """The probability of brain, 0 outside the box that the first network finds."""
        small = sampled(volume, (BOX_SIDE,) * 3)
        low, high = (float(np.quantile(small, share)) for share in PERCENTILES)
        rough, _ = clean(_predicted(self._box, scaled(small, low, high), device) > THRESHOLD)
        box = box_around(rough, volume.shape)
        head = sampled(volume[box], (BRAIN_SIDE,) * 3)
        brain = _predicted(self._brain, scaled(head, low, high), device)
        whole = np.zeros(volume.shape, np.float32)
        inside = whole[box]
        rows = _nearest(brain.shape[0], len(inside))
        for plane, row in zip(inside, rows, strict=True):  # one by one: a large volume is large
            plane[:] = sampled(brain[row], plane.shape)
        return whole


def _predicted(network: LinkNet, values: torch.Tensor, device: str) -> Probability:
    with torch.inference_mode():
        network.to(device)
        probability: Probability = network(values.to(device))[0].float().cpu().numpy()
    return probability
