"""How fast the product runs its network beside plain torch: eager, float32, every core in each
convolution. Both in the same run and in turns, so that a busy machine is busy for both."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from inference.model import Limits
from inference.models.midslice import SHIPPED_WEIGHTS, Network
from inference.models.runtime import Runtime, has_fast_bfloat16

SIDE = 512
ROUNDS = 5


@dataclass(frozen=True)
class Speed:
    """Milliseconds of the network alone for one slice of 512 x 512; medians."""

    eager_ms: float
    ours_ms: float

    @property
    def times(self) -> float:
        return self.eager_ms / self.ours_ms

    @property
    def least(self) -> float:
        """What is due: more where the processor multiplies bfloat16 in hardware."""
        return 2.0 if has_fast_bfloat16("cpu") else 1.25


def network_speed(weights: Path | None = None, *, rounds: int = ROUNDS, side: int = SIDE) -> Speed:
    """The product's way fills the cores with slices, one a core."""
    network = Network().eval()
    network.load_state_dict(load_file(weights or SHIPPED_WEIGHTS))
    runtime = Runtime(network, network.trunk, "cpu")
    planes = np.random.default_rng(0).normal(0.0, 200.0, (1, 6, side, side)).astype(np.float32)
    conditions = np.array([[0.5, 0.5, 1.0, 1.0, 1.0, 1.0]], np.float32)
    cubic = np.array([[-0.0625, 0.5625, 0.5625, -0.0625]], np.float32)
    given = planes, conditions, cubic
    tensors = tuple(torch.from_numpy(array) for array in given)
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    slices = 2 * cores

    def eager() -> None:
        torch.set_num_threads(cores)
        with torch.inference_mode():
            for _ in range(slices):
                network(*tensors)

    def ours() -> None:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(lambda _: runtime.predict(*given, Limits()), range(slices)))

    try:
        taken = [(_milliseconds(eager), _milliseconds(ours)) for _ in range(rounds + 1)][1:]
    finally:
        torch.set_num_threads(threads)
    plain, product = (float(np.median(each)) / slices for each in zip(*taken, strict=True))
    return Speed(plain, product)


def _milliseconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return 1000.0 * (time.perf_counter() - started)
