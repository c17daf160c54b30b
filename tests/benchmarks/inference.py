"""How long one generated slice of 512 x 512 takes on this processor, for each way to make it.

A row of the generator is a job without its files: surveys, flow, network, guards, confidence, as
many gaps at once as the machine has cores. The network's rows are the network alone, as the
product runs it and as plain torch does: eager, float32, every core in each convolution.
Where BASE in the environment names another checkout, the generator of that build is measured too,
each build in a process of its own.
Processor time is what a slice takes of one core, whatever else the machine has to do: divided by
the cores it is what a slice takes where they have nothing else to do.
"""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file

from inference import registry
from inference.model import Limits, Model, Parameters
from inference.models import classical
from inference.models.classical import MEDIUM, Neighbourhood, plan_gaps
from inference.models.midslice import SHIPPED_WEIGHTS, inputs_of
from inference.models.network import Network
from inference.models.runtime import Runtime
from inference.request import ModelSpec
from inference.runner import Runner, share_cores
from inference.volume import Geometry, Plane, Volume
from tests.benchmarks.build import Build
from tests.benchmarks.rig import SIDE, Setting
from tests.benchmarks.table import RatioBound, Row, Subject
from tests.models.made import made_geometry, made_planes, window_of

NAME = "inference"
FACTORS = (2, 4, 8)
SLICES = {2: 24, 4: 12, 8: 8}  # received: a survey is made for every fourth generated slice
LEAST_SECONDS = 0.3  # a pass is repeated until it lasts so long: linear takes a millisecond
EAGER, OURS = "network, torch eager float32", "network"
THIS, OTHER = "this build", "other build"
BASE = os.environ.get("BASE", "")
MOST_OF_BASE = 0.75
BOUNDS = tuple(
    RatioBound(NAME, f"{THIS} {factor}x", at_most=MOST_OF_BASE) for factor in FACTORS if BASE
)

Fill = Callable[[Geometry, Sequence[Plane], int], None]
Clock = Callable[[], float]


def measure(setting: Setting) -> Subject:
    """Milliseconds a generated slice; of the network alone beside plain torch."""
    passes: dict[str, Callable[[], float]] = {
        f"{name} {factor}x": partial(_per_slice, fill, factor)
        for factor in FACTORS
        for name, fill in _ways().items()
    }
    passes |= {
        f"{name} {factor}x, processor": partial(_per_slice, fill, factor, time.process_time)
        for factor in FACTORS
        for name, fill in _ways().items()
        if name != "linear"
    }
    passes |= _networks()
    for name in passes:
        if name.endswith((" 2x", OURS, EAGER)):
            passes[name]()  # once, so that nobody pays for a first time
    values = setting.measure(passes)
    rows = [Row(name, "ms", tuple(taken), _reference(name)) for name, taken in values.items()]
    rows += _builds(setting) if BASE else []
    caption = (
        f"one slice of {SIDE} x {SIDE}, surveys, flow, guards and confidence included, "
        f"{_cores()} cores, {Runtime(Network(), 'cpu').name}"
    )
    return Subject(NAME, caption, tuple(rows))


def _reference(name: str) -> str:
    return EAGER if name in (EAGER, OURS) else f"dis {name.partition(' ')[2]}"


def _builds(setting: Setting) -> list[Row]:
    """Both builds in turns, by the clock and of the processor."""
    builds = {THIS: Build(Path.cwd()), OTHER: Build(Path(BASE).resolve())}
    passes = {
        f"{name} {factor}x": partial(build.filled, factor, SLICES[factor])
        for factor in FACTORS
        for name, build in builds.items()
    }
    try:
        for once in passes.values():
            once()
        values = setting.measure(passes)
    finally:
        for build in builds.values():
            build.close()
    return [
        Row(f"{name}{words}", "ms", tuple(one[place] for one in taken), _of_base(name, words))
        for place, words in enumerate(("", ", processor"))
        for name, taken in values.items()
    ]


def _of_base(name: str, words: str) -> str:
    return f"{OTHER} {name.rpartition(' ')[2]}{words}" if name.startswith(THIS) else ""


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _ways() -> dict[str, Fill]:
    linear, midslice = (registry.load(ModelSpec(name)) for name in ("linear", "midslice"))
    return {"linear": _by_model(linear), "dis": _by_flow, "midslice": _by_model(midslice)}


def _by_model(model: Model) -> Fill:
    def fill(geometry: Geometry, planes: Sequence[Plane], factor: int) -> None:
        volume = Volume(geometry, lambda index: planes[index].copy())
        runner = Runner(model, volume, Limits(), share_cores(model, 0))
        steps = model.plan(geometry, Parameters(factor=factor))
        for _ in runner.predictions(steps, cancelled=lambda: False):
            pass

    return fill


def _by_flow(geometry: Geometry, planes: Sequence[Plane], factor: int) -> None:
    """The flow is searched once a gap, by OpenCV's own preset, on every core there is."""
    cv2.setNumThreads(_cores())
    for step in plan_gaps(geometry, Parameters(factor=factor), reach=2):
        near = Neighbourhood.of(step, window_of(geometry, planes, step))
        near = replace(near, search=MEDIUM)
        _: list[Plane] = [classical.dis(near, t) for t in step.fractions]


def _per_slice(fill: Fill, factor: int, clock: Clock = time.perf_counter) -> float:
    geometry = made_geometry(SLICES[factor], SIDE, SIDE)
    planes = made_planes(geometry)
    generated = (SLICES[factor] - 1) * (factor - 1)
    return _repeated(lambda: fill(geometry, planes, factor), clock) / generated


def _repeated(once: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Milliseconds of one call."""
    began, calls = clock(), 0
    while clock() - began < LEAST_SECONDS:
        once()
        calls += 1
    return (clock() - began) * 1000.0 / calls


def _networks() -> dict[str, Callable[[], float]]:
    network = Network().eval()
    network.load_state_dict(load_file(SHIPPED_WEIGHTS))
    runtime = Runtime(network, "cpu")
    geometry = made_geometry(4, SIDE, SIDE)
    step = plan_gaps(geometry, Parameters(factor=2), reach=2)[1]  # it has all neighbours
    near = Neighbourhood.of(step, window_of(geometry, made_planes(geometry), step))
    given = inputs_of(near, 0.5)
    arrays = tuple(np.ascontiguousarray(a)[None] for a in vars(given).values())

    def eager() -> None:
        torch.set_num_threads(_cores())
        with torch.inference_mode():
            network(*(torch.from_numpy(array) for array in arrays))

    def ours() -> None:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(_cores()) as pool:
            list(pool.map(lambda _: runtime.predict(*arrays, Limits()), range(2 * _cores())))

    return {EAGER: lambda: _repeated(eager), OURS: lambda: _repeated(ours) / (2 * _cores())}
