"""How long a slice takes: each method of an evaluation, and the network beside plain torch.

Plain torch is eager, float32, every core in each convolution. What is compared is measured in the
same run and in turns, so that a busy machine is busy for both.
"""

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from inference.model import Limits, Model
from inference.models.midslice import SHIPPED_WEIGHTS, Network
from inference.models.runtime import Runtime, has_fast_bfloat16
from inference.training.cuts import Cut
from inference.training.methods import Method, Place, Way, neighbourhood, predictions
from inference.training.summary import Milliseconds

SIDE = 512
ROUNDS = 5
TIMED_SLICES = 6  # of each classical method, at least, in whole gaps


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


def slice_times(
    model: Model, methods: Mapping[str, Method], cut: Cut, way: Way
) -> Mapping[str, Milliseconds]:
    """Per generated slice: of some whole gaps, for the model of the whole series with its surveys.

    Slices are decoded beforehand, for what that takes hangs on their transfer syntax.
    """
    spent = {}
    gaps = cut.whole_gaps(-(-TIMED_SLICES // (cut.factor - 1)))
    for name, method in methods.items():
        began = _now()
        for gap, places in gaps:
            near = neighbourhood(cut, gap)  # anew: no method profits from another's flow
            for t in places:
                method(Place(cut, gap, near, t))
        spent[name] = (_now() - began) / sum(len(places) for _, places in gaps)
    everything = dict(cut.whole_gaps(len(cut.volume) - 1))
    for index in range(len(cut.volume)):
        cut.volume.read(index)
    began = _now()
    for _ in predictions(model, cut, way, everything):
        pass
    spent[model.name] = (_now() - began) / sum(map(len, everything.values()))
    return {name: Milliseconds(float(wall), float(cpu)) for name, (wall, cpu) in spent.items()}


def _now() -> NDArray[np.float64]:
    """(2,): milliseconds by the clock, and of the processor."""
    return 1000.0 * np.array([time.perf_counter(), time.process_time()])
