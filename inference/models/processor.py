"""The network on a processor: what `Network` says, in less time.

Convolutions take along what follows them, a leaky ReLU or the sum with what passes by, which is
oneDNN's own fusion; the first one steps over pixels where the trunk parts them first. What is no
convolution is done by torch or OpenCV, whichever is the quicker on one plane.
"""

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from inference.models.network import (
    CONDITIONS,
    FLOW_LOGIT,
    PLANES,
    RESIDUAL_HU,
    SCALE_HU,
    Block,
    Network,
    Trunk,
    bias_of,
    centres,
    doubled,
    summed,
)

Planes = NDArray[np.float32]
Spans = tuple[slice, slice]
SLOPE = 0.1  # of every leaky ReLU below 0
REGISTER = 16  # outputs that one register of 512 bits sums up
PROBED_SIDE, MOST_APART = 32, 0.05  # of what a fused trunk says, as a share of its deviation


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution of one slice whose channels lie together, with what follows it.

    Where 24 outputs would leave half of a register empty, two pixels of a row are taken for one of
    48: the kernel is wider by what they lie apart, and steps over both. They come to lie where they
    belong, and are the same to the bit.
    """

    weight: Tensor  # (pixels x outputs, inputs, rows, columns)
    bias: Tensor  # (outputs,), float32
    biases: Tensor  # (pixels x outputs,), as the weight is
    stride: int
    pixels: int

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, dtype: torch.dtype, stride: int = 1) -> "Convolution":
        outputs, inputs, rows, columns = weight.shape
        pixels = 2 if outputs % REGISTER == REGISTER // 2 else 1
        wide = weight.new_zeros(pixels, outputs, inputs, rows, columns + stride * (pixels - 1))
        for pixel in range(pixels):
            wide[pixel, ..., stride * pixel : stride * pixel + columns] = weight
        weight, biases = _channels_last(wide.flatten(0, 1), dtype), bias.to(dtype).repeat(pixels)
        return cls(weight, bias, biases, stride, pixels)

    def __call__(self, x: Tensor, told: Tensor | None = None, *, is_leaky: bool = False) -> Tensor:
        """(1, outputs, rows, columns), `told` added to the bias of each output."""
        # Torch's compiler calls these; where they are missing, the probe of `fused` fails.
        following: tuple[Any, ...] = ("leaky_relu", [SLOPE], "") if is_leaky else ("none", [], "")
        y = torch.ops.mkldnn._convolution_pointwise(x, *self._given(told), *following)
        return _grouped(y, y.shape[1] // self.pixels)

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """Add the convolution of x to a tensor in its place."""
        added = torch.ops.mkldnn._convolution_pointwise_.binary
        given = self._given(None)
        added(_grouped(total, len(self.weight)), x, *given, "add", 1.0, None, [], None)

    def _given(self, told: Tensor | None) -> tuple[Any, ...]:
        biases = self.biases
        if told is not None:
            biases = (self.bias + told).to(biases.dtype).repeat(self.pixels)
        padding = (self.weight.shape[2] - self.stride) // 2  # as large as its input, or half of it
        stride = [self.stride, self.stride * self.pixels]
        return self.weight, biases, [padding, padding], stride, [1, 1], 1


def _channels_last(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype).contiguous(memory_format=torch.channels_last)


def _grouped(x: Tensor, channels: int) -> Tensor:
    """The same memory as pixels of so many channels."""
    rows = x.shape[2]
    return x.permute(0, 2, 3, 1).reshape(1, rows, -1, channels).permute(0, 3, 1, 2)


class FusedBlock:
    """A block of the trunk."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        self._first, self._last = (
            Convolution.of(layer.weight, bias_of(layer), dtype)
            for layer in (block.first, block.last)
        )

    def __call__(self, x: Tensor) -> Tensor:
        """What a block makes of x, in its place."""
        y = self._first(F.leaky_relu(x, SLOPE), is_leaky=True)
        self._last.add_to(x, y)
        return x


class FusedTrunk:
    """The trunk for one slice at a time."""

    def __init__(self, trunk: Trunk, dtype: torch.dtype) -> None:
        self._trunk, self._dtype = trunk, dtype
        self._stem = Convolution.of(parted_stem(trunk.stem), bias_of(trunk.stem), dtype, stride=2)
        self._down_middle, self._down_coarse = (
            Convolution.of(layer.weight, bias_of(layer), dtype, stride=2)
            for layer in (trunk.down_middle, trunk.down_coarse)
        )
        self._blocks = {
            block: FusedBlock(block, dtype) for block in trunk.modules() if isinstance(block, Block)
        }
        self._bottom = [self._blocks[block] for block in trunk.bottom if isinstance(block, Block)]
        self._ups = {
            layer: (_channels_last(layer.weight, dtype), bias_of(layer).to(dtype))
            for layer in (trunk.up_middle, trunk.up_fine)
        }
        missing = -len(trunk.head.weight) % REGISTER  # outputs that nobody reads cost less
        weight = F.pad(trunk.head.weight, (0, 0, 0, 0, 0, 0, 0, missing))
        self._head = Convolution.of(weight, F.pad(bias_of(trunk.head), (0, missing)), dtype)

    def __call__(self, images: Tensor, conditions: Tensor) -> Tensor:
        """(1, outputs or more, H/2, W/2), channels last, of (1, 7, H, W) and (1, 6) in float32."""
        trunk, blocks = self._trunk, self._blocks
        embedding = trunk.told(conditions)[0]  # (32,)
        x = self._stem(_channels_last(images, self._dtype), trunk.bias_fine(embedding))
        x = blocks[trunk.enter_fine](x)  # (1, fine, H/2, W/2)
        y = blocks[trunk.enter_middle](self._down_middle(x))  # (1, middle, H/4, W/4)
        z = self._down_coarse(y, trunk.bias_coarse(embedding))  # (1, coarse, H/8, W/8)
        for block in self._bottom:
            z = block(z)
        y.add_(F.conv_transpose2d(z, *self._ups[trunk.up_middle], stride=2))
        y = blocks[trunk.leave_middle](y)
        x.add_(F.conv_transpose2d(y, *self._ups[trunk.up_fine], stride=2))
        x = blocks[trunk.leave_fine](x)
        return self._head(F.leaky_relu_(x, SLOPE))


def parted_stem(stem: nn.Conv2d) -> Tensor:
    """(fine, 7, 6, 6): the weights that see as much of the pixels themselves, at a stride of 2."""
    fine, inputs = stem.weight.shape[:2]
    phases = stem.weight.reshape(fine, inputs // 4, 2, 2, 3, 3)  # row and column within a square
    return phases.permute(0, 1, 4, 2, 5, 3).reshape(fine, inputs // 4, 6, 6)


def fused(trunk: Trunk, dtype: torch.dtype) -> FusedTrunk | None:
    """The trunk with fused layers; None where this torch or processor has no such layers."""
    images = torch.randn(
        1, PLANES + 1, PROBED_SIDE, PROBED_SIDE, generator=torch.Generator().manual_seed(1)
    )
    conditions = torch.full((1, CONDITIONS), 0.5)
    with torch.inference_mode():
        plain = trunk(images, conditions)
        try:
            quick = FusedTrunk(trunk, dtype)
            apart = quick(images, conditions)[:, : plain.shape[1]].float() - plain
        except (AttributeError, RuntimeError):  # no such operation, or none of that kind
            return None
    return quick if apart.std() <= MOST_APART * plain.std() else None


def predicted(
    trunk: FusedTrunk, given: tuple[Tensor, Tensor, Tensor], kept: Spans
) -> tuple[Tensor, Tensor]:
    """(B, rows, columns) twice, for planes, conditions and cubic weights, slice by slice."""
    pairs = []
    for number in range(len(given[0])):
        planes, conditions, cubic = (tensor[number : number + 1] for tensor in given)
        heads = trunk(seen(planes, float(conditions[0, 0])), conditions)
        pairs.append(composed(heads, planes, conditions, cubic, kept))
    slices, scales = zip(*pairs, strict=True)
    return torch.stack(slices), torch.stack(scales)


def seen(planes: Tensor, t: float) -> Tensor:
    """`Network.seen` of one slice."""
    images = planes.new_empty(1, PLANES + 1, *planes.shape[2:])
    flow_blend = torch.lerp(planes[:, 4:5], planes[:, 5:6], t, out=images[:, PLANES:])
    torch.sub(planes, flow_blend, out=images[:, :PLANES]).div_(250.0)
    flow_blend.add_(1000.0).div_(1000.0)
    return images


def composed(
    heads: Tensor, planes: Tensor, conditions: Tensor, cubic: Tensor, kept: Spans
) -> tuple[Tensor, Tensor]:
    """`Network.composed` of one slice, for the pixels in `kept`, which begin at even ones.

    (rows, columns) twice, of (1, outputs, H/2, W/2), (1, 6, H, W), (1, 6) and (1, 4).
    """
    t = float(conditions[0, 0])
    rows, columns = kept
    answers = planar(heads)[: Network.FLOWS + 4 * Network.FULL]  # (outputs, H/2, W/2)
    around = (slice(None), *(slice(span.start // 2, (span.stop + 1) // 2) for span in kept))
    full = doubled(torch.from_numpy(answers[Network.FLOWS :][around])[None])
    full = full[..., : rows.stop - rows.start, : columns.stop - columns.start]
    from_a = _moved(planes[:, 4:5], t * answers[:2], kept)
    from_c = _moved(planes[:, 5:6], (1.0 - t) * answers[2:4], kept)
    received = planes[:, :4, rows, columns]
    candidates = (
        torch.lerp(received[:, 1:2], received[:, 2:3], t),
        summed(torch.split(received, 1, dim=1), cubic[:, :, None, None]),
        torch.lerp(from_c, from_a, _share_of_a(full[:, :1], t)),
    )
    full[:, 3].add_(FLOW_LOGIT)
    weights = torch.softmax(full[:, 1:4], dim=1)
    residual = full[:, 4:5].mul_(RESIDUAL_HU * 4.0 * t * (1.0 - t))
    slice_hu = residual.add_(summed(candidates, weights))
    scale_hu = full[:, 5:6].clamp_(-6.0, 6.0).exp_().mul_(SCALE_HU)
    return slice_hu[0, 0], scale_hu[0, 0]


def planar(heads: Tensor) -> Planes:
    """(outputs, rows, columns) of (1, outputs, rows, columns) whose channels lie together."""
    _, outputs, rows, columns = heads.shape
    pixels = heads.float().permute(0, 2, 3, 1).reshape(rows * columns, outputs)
    return np.asarray(cv2.transpose(pixels.numpy()), np.float32).reshape(outputs, rows, columns)


def _share_of_a(logit: Tensor, t: float) -> Tensor:
    """What `network.odds` is, by one function; in the place of the logit."""
    if t in (0.0, 1.0):
        return logit.fill_(1.0 - t)
    return logit.clamp_(-8.0, 8.0).add_(math.log((1.0 - t) / t)).sigmoid_()


def _moved(plane: Tensor, flow: Planes, kept: Spans) -> Tensor:
    """(1, 1, rows, columns): a plane sampled at every pixel plus flow, (2, H/2, W/2) of x and y."""
    sides = (plane.shape[3], plane.shape[2])
    rows, columns = kept
    grid = plane.new_empty(2, rows.stop - rows.start, columns.stop - columns.start)
    base = centres(sides[0], plane)[columns], centres(sides[1], plane)[rows, None]
    for axis, half in enumerate(flow * (2.0 / np.array(sides, np.float32))[:, None, None]):
        whole = torch.from_numpy(cv2.resize(half, sides, interpolation=cv2.INTER_LINEAR)[kept])
        torch.add(whole, base[axis], out=grid[axis])
    # x and y lie apart: so they are read faster.
    places = grid.permute(1, 2, 0)[None]
    return F.grid_sample(plane, places, padding_mode="border", align_corners=False)
