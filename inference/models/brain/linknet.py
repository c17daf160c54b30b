"""The network of deepbet 1.0.2 (MIT): a residual LinkNet in 3D, with the names of its weights.

Two of them look at a head one after the other: the first at the whole volume, to find the box
around the brain, the second at that box.
"""

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn

CHANNELS = (16, 16, 32, 64, 128)  # of the first picture and of the four levels below it
LAST = 8  # channels before the two classes


def _normed(convolution: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(convolution, nn.InstanceNorm3d(channels), nn.ReLU())


class Block(nn.Module):
    """Two convolutions and what goes past them."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv3d(inner, outer, 3, stride, 1, bias=False),
            nn.InstanceNorm3d(outer),
            nn.ReLU(),
            nn.Conv3d(outer, outer, 3, 1, 1, bias=False),
            nn.InstanceNorm3d(outer),
        )
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv3d(inner, outer, 1, stride, bias=False), nn.InstanceNorm3d(outer)
            )

    def forward(self, x: Tensor) -> Tensor:
        past = self.downsample(x) if hasattr(self, "downsample") else x
        return torch.relu(self.double_conv(x) + past)  # (B, outer, D/stride, H/stride, W/stride)


def _down(inner: int, outer: int, stride: int) -> nn.Sequential:
    blocks = {"block1": Block(inner, outer, stride), "block2": Block(outer, outer, 1)}
    return nn.Sequential(OrderedDict(blocks))


def _up(inner: int, outer: int, stride: int) -> nn.Sequential:
    middle = inner // 4
    wider = nn.ConvTranspose3d(middle, middle, 3, stride, 1, stride - 1, bias=False)
    layers = {
        "conv1": _normed(nn.Conv3d(inner, middle, 1, bias=False), middle),
        "tp_conv": _normed(wider, middle),
        "conv2": _normed(nn.Conv3d(middle, outer, 1, bias=False), outer),
    }
    return nn.Sequential(OrderedDict(layers))


class LinkNet(nn.Module):
    """(B, 1, D, H, W), sides that are multiples of 32, to the probability of brain, same size."""

    def __init__(self) -> None:
        super().__init__()
        first = CHANNELS[0]
        self.init = _normed(nn.Conv3d(1, first, 7, 2, 3, bias=False), first)
        self.init.append(nn.MaxPool3d(3, 2, 1))
        for level, (inner, outer) in enumerate(pairwise(CHANNELS)):
            stride = 2 if level else 1
            self.add_module(f"down{level}", _down(inner, outer, stride))
            self.add_module(f"up{3 - level}", _up(outer, inner, stride))
        self.tp_conv1 = _normed(nn.ConvTranspose3d(first, LAST, 3, 2, 1, 1), LAST)
        self.conv = _normed(nn.Conv3d(LAST, LAST, 3, padding=1), LAST)
        self.tp_conv2 = nn.ConvTranspose3d(LAST, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        seen = [self.init(x)]  # (B, 16, D/4, H/4, W/4)
        for level in range(4):
            seen.append(self.get_submodule(f"down{level}")(seen[-1]))
        y = seen.pop()  # (B, 128, D/32, H/32, W/32)
        for level in range(4):
            y = self.get_submodule(f"up{level}")(y) + seen.pop()
        y = self.tp_conv2(self.conv(self.tp_conv1(y)))  # (B, 2, D, H, W)
        return torch.softmax(y, dim=1)[:, 1]  # (B, D, H, W)
