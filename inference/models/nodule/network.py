"""The network of nodules: each slice of a crop by itself, then a memory over the slices.

Score, offset to the centre, and diameter come from the middle slice, to which the memory has come
from both ends.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inference.models.nodule.grid import Hu

SLICES, SIDE = 9, 48  # voxels of 1 mm
CHANNELS = (16, 32, 64, 64)
LAST_SIDE = SIDE // 2 ** len(CHANNELS)
MEMORY = 64
WINDOW_HU = -1000.0, 200.0
OFFSET_MM = 8.0  # an offset of 1
TYPICAL_MM = 10.0  # a diameter whose logarithm is 0

Crops = NDArray[np.float32]  # (n, 2, slices, side, side): HU from -1 to 1; 1 in the lung


class NoduleNetwork(nn.Module):
    """(B, 2, 9, 48, 48) to (B, 5): logit, offset of z, y, x, logarithm of the diameter."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 2
        for outputs in CHANNELS:
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]
            inputs = outputs
        self.slice = nn.Sequential(*layers)
        self.flat = nn.Linear(inputs * LAST_SIDE**2, MEMORY)
        self.memory = nn.LSTM(MEMORY, MEMORY, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Linear(2 * MEMORY, 5)

    def placed(self, device: str) -> "NoduleNetwork":
        """This network on a device, its convolutions channels last: twice as fast on a CPU."""
        self.to(device)
        self.slice.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # no stub
        return self

    def forward(self, crops: Tensor) -> Tensor:
        batch = len(crops)
        slices = crops.transpose(1, 2).reshape(batch * SLICES, 2, SIDE, SIDE)
        seen = self.slice(slices).flatten(1)  # (B * 9, 64 * 3 * 3)
        row = torch.relu(self.flat(seen)).view(batch, SLICES, MEMORY)
        remembered, _ = self.memory(row)  # (B, 9, 128)
        result: Tensor = self.last(self.dropout(remembered[:, SLICES // 2]))
        return result


def scaled(hu: NDArray[np.float32]) -> NDArray[np.float32]:
    """HU as the network takes them: -1 to 1."""
    low, high = WINDOW_HU
    return (np.clip(hu, low, high) - low) * np.float32(2.0 / (high - low)) - np.float32(1.0)


def crops(hu: Hu, labels: NDArray[np.uint8], voxels: NDArray[np.int64]) -> Crops:
    """The crops around (n, 3) voxels; what lies outside the grid is air."""
    reach = np.array([SLICES // 2, SIDE // 2, SIDE // 2])
    result = np.empty((len(voxels), 2, SLICES, SIDE, SIDE), np.float32)
    for number, first in enumerate(voxels - reach):
        inside = [
            np.clip(np.arange(start, start + size), 0, limit - 1)
            for start, size, limit in zip(first, (SLICES, SIDE, SIDE), hu.shape, strict=True)
        ]
        block = np.ix_(*inside)
        result[number, 0] = scaled(hu[block].astype(np.float32))
        result[number, 1] = labels[block] > 0
    return result
