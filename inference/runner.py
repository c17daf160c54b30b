"""Walks the steps of a model: few slices in memory, progress, cancel, the out-of-memory ladder."""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from inference.errors import Cancelled, PredictionError
from inference.model import Limits, Model, Prediction, Step, Window
from inference.volume import Plane, Volume

logger = logging.getLogger(__name__)

FIRST_TILE, LEAST_TILE = 256, 128


class Runner:
    """Runs one model over one volume; what the ladder has lowered stays lowered."""

    def __init__(self, model: Model, volume: Volume, limits: Limits) -> None:
        self.limits = limits
        self.lowered: list[str] = []  # what the out-of-memory ladder did, in order
        self._model = model
        self._volume = volume
        self._planes: dict[int, Plane] = {}

    @property
    def held(self) -> frozenset[int]:
        """The received slices that are in memory now."""
        return frozenset(self._planes)

    def predictions(
        self, steps: Sequence[Step], *, cancelled: Callable[[], bool]
    ) -> Iterator[tuple[Step, Prediction]]:
        """The prediction of each step, in order; raises Cancelled between two of them."""
        last_use = {index: place for place, step in enumerate(steps) for index in step.needs}
        for place, step in enumerate(steps):
            if cancelled():
                raise Cancelled
            prediction = self._run(step, self._window(step))
            for index in [index for index in self._planes if last_use[index] <= place]:
                del self._planes[index]
            check_prediction(step, prediction, self._volume)
            yield step, prediction

    def _window(self, step: Step) -> Window:
        for index in step.needs:
            if index not in self._planes:
                plane = self._volume.read(index)
                plane.setflags(write=False)
                self._planes[index] = plane
        slices = {index: self._planes[index] for index in step.needs}
        return Window(self._volume.geometry, MappingProxyType(slices))

    def _run(self, step: Step, window: Window) -> Prediction:
        while True:
            try:
                return self._model.run(step, window, self.limits)
            except (MemoryError, RuntimeError) as error:
                lower = next_rung(self.limits) if is_out_of_memory(error) else None
                if lower is None:
                    raise
                name = type(error).__name__
            # Outside the handler: the traceback would keep what filled the memory alive.
            self._lower(lower, name)

    def _lower(self, limits: Limits, error: str) -> None:
        self.limits = limits
        rung = f"{limits.device}, batch {limits.batch}, tile {limits.tile or 'none'}"
        self.lowered.append(rung)
        logger.warning("out of memory, limits lowered", extra={"error": error, "limits": rung})
        torch = sys.modules.get("torch")  # not imported here: the model may do without it
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Recognised by name: torch's own class must not be imported for it."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "out of memory" in str(error).lower()
        or "can't allocate memory" in str(error).lower()
    )


def next_rung(limits: Limits) -> Limits | None:
    """Smaller batch, then tiles, then the CPU; None below the last rung."""
    if limits.batch > 1:
        return replace(limits, batch=limits.batch // 2)
    if limits.tile is None:
        return replace(limits, tile=FIRST_TILE)
    if limits.tile > LEAST_TILE:
        return replace(limits, tile=LEAST_TILE)
    if limits.device != "cpu":
        return Limits(device="cpu", batch=1, tile=FIRST_TILE)
    return None


def check_prediction(step: Step, prediction: Prediction, volume: Volume) -> None:
    """Raise PredictionError for a prediction that is not what the step asked for."""
    if len(prediction.planes) != len(step.fractions):
        raise PredictionError(
            f"the model gave {len(prediction.planes)} slices for a gap of {len(step.fractions)}"
        )
    shape = (volume.geometry.rows, volume.geometry.columns)
    for plane in prediction.planes:
        if plane.shape != shape:
            raise PredictionError(f"the model gave a slice of {plane.shape}, not {shape}")
        if not np.isfinite(plane).all():
            raise PredictionError("the model gave values that are not finite numbers")


def check_steps(steps: Sequence[Step], slices: int) -> None:
    """Raise PredictionError for a plan that does not fit the stack."""
    seen: set[int] = set()
    for step in steps:
        if step.gap is None or not 0 <= step.gap < slices - 1 or step.gap in seen:
            raise PredictionError(f"the model planned gap {step.gap} of {slices - 1}")
        seen.add(step.gap)
        if not {step.gap, step.gap + 1} <= set(step.needs) <= set(range(slices)):
            raise PredictionError(f"the model needs slices {step.needs} for gap {step.gap}")
        inside = all(0.0 < fraction < 1.0 for fraction in step.fractions)
        if not step.fractions or not inside or sorted(set(step.fractions)) != [*step.fractions]:
            raise PredictionError(f"the model planned places {step.fractions} in a gap")
