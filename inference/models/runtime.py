"""Runs a generator's network: its inside in bfloat16 where that is fast, on tiles where it must.

Everything around the inside (what it sees, flow, warps, weights, sums) stays in float32: at
1000 HU, thousands of HU have steps of 4 to 8 HU in bfloat16. The inside's steps reach the slice
only through the decisions that it makes.
"""

import copy
import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inference.model import Limits
from inference.models import processor
from inference.models.network import Network

Planes = NDArray[np.float32]

# Replicated around a slice: the zeros beside it in convolutions are then no nearer to its pixels
# than in training, where losses leave out the outermost 4 pixels of a patch.
# Where a part of a slice ends in air it needs none: zeros are air to the network.
MARGIN = 8
AROUND = (MARGIN, MARGIN, MARGIN, MARGIN)
MULTIPLE = 8  # three halvings
HALO = 96  # pixels a tile sees around what it keeps; beyond the network's reach
# Whole slices up to this side; a larger one would take gigabytes for what its halo can tell.
WHOLE_SIDE = 1024

# Of <malloc.h>, and bytes: larger pieces go back at once, as does what is free above that.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT, MOST_KEPT = 32 << 20, 256 << 20

Spans = tuple[slice, slice]
Margins = tuple[int, int, int, int]  # above, below, on the left and on the right, multiples of 8


def has_fast_bfloat16(device: str) -> bool:
    """True where bfloat16 is multiplied in hardware: avx512_bf16 or AMX, CUDA since Ampere."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


class Runtime:
    """One network, ready to run on any device; it keeps nothing of what it has seen.

    Threads may share it: a network at rest is only read, and on CUDA each has its own stream, so
    that one's copies overlap with another's convolutions.
    """

    def __init__(self, network: Network, device: str, precision: str = "") -> None:
        fast = "bfloat16" if has_fast_bfloat16(device) else "float32"
        self.precision = precision or fast
        _keep_freed_memory()
        self._network = network
        self._dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        self._trunk = copy.deepcopy(network.trunk).eval().requires_grad_(requires_grad=False)
        self._fused = processor.fused(self._trunk, self._dtype)
        self._on: dict[torch.device, nn.Module] = {}
        self._lock = threading.Lock()
        self._thread = threading.local()
        self._trunk_on(torch.device(device))

    @property
    def name(self) -> str:
        """All that a result depends on beside the weights."""
        return f"torch {self.precision}" + (", fused" if self._fused is not None else "")

    def predict(
        self,
        planes: Planes,
        conditions: Planes,
        cubic: Planes,
        limits: Limits,
        margins: Margins = AROUND,
    ) -> tuple[Planes, Planes]:
        """(B, rows, columns) twice: slices in HU and their scales, for (B, 6, rows, columns)."""
        device = torch.device(limits.device)
        padded = torch.from_numpy(_replicated(planes, margins))
        if device.type == "cuda":  # only from page-locked memory does a copy overlap with what runs
            padded = padded.pin_memory()
        results = np.empty((2, len(planes), *planes.shape[2:]), np.float32)
        with torch.inference_mode(), self._stream(device):
            told, weights = (
                torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in (conditions, cubic)
            )
            for seen, *spans in tiles(padded.shape[2:], limits.tile):
                rows, columns = map(_without_margin, *spans, planes.shape[2:], margins[::2])
                tile = padded[..., seen[0], seen[1]].to(device, non_blocking=True)
                kept, place = zip(rows, columns, strict=True)
                for index, part in enumerate(self._run(tile, told, weights, kept)):
                    results[index][..., place[0], place[1]] = part.cpu().numpy()
        return results[0], results[1]

    def _run(
        self, planes: Tensor, conditions: Tensor, cubic: Tensor, kept: Spans
    ) -> tuple[Tensor, Tensor]:
        """(B, rows, columns) twice, of what is kept."""
        if self._fused is not None and planes.device.type == "cpu":
            return processor.predicted(self._fused, (planes, conditions, cubic), kept)
        seen = self._network.seen(planes, conditions)
        heads = self._trunk_on(planes.device)(seen.to(self._dtype), conditions.to(self._dtype))
        parts = self._network.composed(heads.float(), planes, conditions, cubic)
        slices, scales = (part[:, 0, kept[0], kept[1]] for part in parts)
        return slices, scales

    def _trunk_on(self, device: torch.device) -> nn.Module:
        """The inside on a device; the out-of-memory ladder ends on the processor."""
        with self._lock:
            if device not in self._on:
                own = copy.deepcopy(self._trunk).to(device=device, dtype=self._dtype)
                self._on[device] = with_channels_last(own)
            return self._on[device]

    def _stream(self, device: torch.device) -> AbstractContextManager[object]:
        if device.type != "cuda":
            return nullcontext()
        if not hasattr(self._thread, "stream"):
            # Torch leaves its constructor untyped.
            self._thread.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._thread.stream)


def _keep_freed_memory() -> None:
    """Have the C library keep what a slice frees for the next one.

    By default it gives pieces of megabytes back at once, and takes them anew page by page: up to a
    tenth of the time. Where there is another C library it stays as it is.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, MOST_KEPT)


def with_channels_last(network: nn.Module) -> nn.Module:
    """The network itself, its weights laid out so that the channels of a pixel lie together.

    Convolutions of so few channels run half as fast again that way; their values stay the same.
    """
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def tiles(shape: Sequence[int], tile: int | None) -> Iterator[tuple[Spans, Spans, Spans]]:
    """For each tile: what the network sees, what is kept of that, and where it belongs."""
    side = tile or (max(shape) if max(shape) <= WHOLE_SIDE + 2 * MARGIN + MULTIPLE else WHOLE_SIDE)
    side = max(MULTIPLE, side - side % MULTIPLE)
    for top in range(0, shape[0], side):
        for left in range(0, shape[1], side):
            rows, columns = _span(top, side, shape[0]), _span(left, side, shape[1])
            yield (rows[0], columns[0]), (rows[1], columns[1]), (rows[2], columns[2])


def _span(start: int, side: int, size: int) -> tuple[slice, slice, slice]:
    end = min(size, start + side)
    first = max(0, start - HALO)
    return (
        slice(first, min(size, end + HALO)),
        slice(start - first, end - first),
        slice(start, end),
    )


def _without_margin(kept: slice, place: slice, size: int, margin: int) -> tuple[slice, slice]:
    """What is kept of a tile, and its place in a slice of that size, without the margin around."""
    first = max(place.start, margin)
    last = max(first, min(place.stop, margin + size))
    within = kept.start - place.start
    return slice(first + within, last + within), slice(first - margin, last - margin)


def _replicated(planes: Planes, margins: Margins) -> Planes:
    """The planes with margins of repeated edges, and sides that can be halved three times."""
    (rows, columns), (top, bottom, left, right) = planes.shape[2:], margins
    bottom += -(top + rows + bottom) % MULTIPLE
    right += -(left + columns + right) % MULTIPLE
    sides = top + rows + bottom, left + columns + right
    if sides == (rows, columns):
        return planes
    whole = np.empty((*planes.shape[:2], *sides), np.float32)
    around = top, bottom, left, right, cv2.BORDER_REPLICATE
    for index in np.ndindex(planes.shape[:2]):
        cv2.copyMakeBorder(planes[index], *around, dst=whole[index])
    return whole
