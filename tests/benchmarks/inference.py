"""How long one generated slice of 512 x 512 takes on this processor, for each way to make it."""

import os
import time
from collections.abc import Callable
from functools import partial

import cv2
import torch

from inference import registry
from inference.model import Limits, Model, Parameters, Step, Window
from inference.models import classical
from inference.models.classical import Neighbourhood
from inference.models.gaps import plan_gaps
from inference.request import ModelSpec
from inference.volume import Plane
from tests.benchmarks.rig import SIDE, Setting
from tests.benchmarks.table import Row, Subject
from tests.models.stacks import made_geometry, made_planes, window_of

NAME = "inference"
FACTORS = (2, 4)
LEAST_SECONDS = 0.3  # a pass is repeated until it lasts so long: linear takes a millisecond

Fill = Callable[[Step, Window], None]


def measure(setting: Setting) -> Subject:
    """Milliseconds a generated slice; the reference is OpenCV's DIS flow without a network."""
    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    cv2.setNumThreads(cores)
    passes = {
        f"{name} {factor}x": partial(_per_slice, fill, factor)
        for factor in FACTORS
        for name, fill in _ways().items()
    }
    for fill in _ways().values():
        _per_slice(fill, FACTORS[0])
    values = setting.measure(passes)
    rows = [
        Row(name, "ms", tuple(taken), f"dis {name.split()[-1]}") for name, taken in values.items()
    ]
    caption = f"one slice of {SIDE} x {SIDE} in the middle of 4, {cores} threads, CPU"
    return Subject(NAME, caption, tuple(rows))


def _ways() -> dict[str, Fill]:
    linear, midslice = (registry.load(ModelSpec(name)) for name in ("linear", "midslice"))
    return {"linear": _by_model(linear), "dis": _by_flow, "midslice": _by_model(midslice)}


def _by_model(model: Model) -> Fill:
    def fill(step: Step, window: Window) -> None:
        model.run(step, window, Limits())

    return fill


def _by_flow(step: Step, window: Window) -> None:
    near = Neighbourhood.of(step, window)  # the flow is searched once a gap, whatever the factor
    _: list[Plane] = [classical.dis(near, t) for t in step.fractions]


def _per_slice(fill: Fill, factor: int) -> float:
    geometry = made_geometry(4, SIDE, SIDE)
    step = plan_gaps(geometry, Parameters(factor=factor), reach=2)[1]  # it has all neighbours
    window = window_of(geometry, made_planes(geometry), step)
    began, passes = time.perf_counter(), 0
    while time.perf_counter() - began < LEAST_SECONDS:
        fill(step, window)
        passes += 1
    return (time.perf_counter() - began) * 1000.0 / (passes * len(step.fractions))
