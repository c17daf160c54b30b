"""The run of a model over a stack: walks its steps, and judges slices by the model's own trust.

Few slices are in memory at a time; where memory does not suffice, the out-of-memory ladder lowers
the limits. A model that says nothing of its slices is taken at its word; nothing is judged then.
"""

import logging
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from inference.derived import Planned
from inference.errors import Cancelled, Reason, Unprocessable
from inference.geometry import GAP_TOLERANCE_MM, Layout, is_undersampled
from inference.model import (
    Limits,
    Measured,
    Model,
    Prediction,
    Step,
    Trust,
    Window,
    check_measured,
    check_prediction,
    check_record,
)
from inference.request import Output
from inference.volume import Geometry, Plane, Volume

logger = logging.getLogger(__name__)

FIRST_TILE, LEAST_TILE = 256, 128
MOST_AT_ONCE = 8  # steps; each holds its window and what its model needs for one slice
LEAST_ERROR_HU = 0.1
CLASSICAL_WORDS = {
    "linear": "linear interpolation",
    "cubic": "cubic interpolation",
    "dis": "optical flow",
}
# The words for a slice, by the least confidence of each: pages, lists and REST use these alone.
WORDS = ((0.8, "sure"), (0.5, "fair"), (0.0, "unsure"))
# Instead of the better two where over half of the gap was never seen, however small the error.
LARGE_ANATOMY = "large_anatomy_only"


class Runner:
    """Runs one model over one volume; what the ladder has lowered stays lowered.

    `at_once` steps run side by side, each in a thread, where the model allows it: flow of one gap
    is searched while the network fills another. Results come in the order of the steps.
    """

    def __init__(
        self,
        model: Model,
        volume: Volume,
        limits: Limits,
        at_once: int = 1,
        check: Callable[[Step, Prediction, Volume], None] = check_prediction,
    ) -> None:
        self.limits = limits
        self.lowered: list[str] = []  # what the out-of-memory ladder did, in order
        self._model = model
        self._volume = volume
        self._at_once = at_once
        self._check = check  # of each prediction but those of surveys
        self._planes: dict[int, Plane] = {}

    @property
    def held(self) -> frozenset[int]:
        """The received slices that are in memory for steps to come."""
        return frozenset(self._planes)

    def predictions(
        self, steps: Sequence[Step], *, cancelled: Callable[[], bool]
    ) -> Iterator[tuple[Step, Prediction]]:
        """The prediction of each gap or mask, in order, after all surveys; may raise Cancelled."""
        surveys = [step for step in steps if step.survey is not None]
        gaps = [step for step in steps if step.survey is None]
        surveyed = tuple(
            prediction.measured for _, prediction in self._walk(surveys, (), cancelled)
        )
        for measured in surveyed:
            check_measured(measured)
        for step, prediction in self._walk(gaps, surveyed, cancelled):
            self._check(step, prediction, self._volume)
            check_record(prediction)
            yield step, prediction

    def _walk(
        self,
        steps: Sequence[Step],
        surveyed: tuple[Measured, ...],
        cancelled: Callable[[], bool],
    ) -> Iterator[tuple[Step, Prediction]]:
        last_use = {index: place for place, step in enumerate(steps) for index in step.needs}
        waiting: deque[_Begun] = deque()
        with ThreadPoolExecutor(max(1, self._at_once)) as pool:
            for place, step in enumerate(steps):
                if cancelled():
                    raise Cancelled
                window, future = self._window(step, surveyed), None
                if self._at_once > 1:
                    future = pool.submit(self._model.run, step, window, self.limits)
                waiting.append(_Begun(step, window, future))
                for index in [index for index in self._planes if last_use[index] <= place]:
                    del self._planes[index]
                while len(waiting) >= self._at_once:
                    yield self._end(waiting)
            while waiting:
                if cancelled():
                    raise Cancelled
                yield self._end(waiting)

    def _window(self, step: Step, surveyed: tuple[Measured, ...]) -> Window:
        for index in step.needs:
            if index not in self._planes:
                plane = self._volume.read(index)
                plane.setflags(write=False)
                self._planes[index] = plane
        slices = {index: self._planes[index] for index in step.needs}
        return Window(self._volume.geometry, MappingProxyType(slices), surveyed)

    def _end(self, waiting: "deque[_Begun]") -> tuple[Step, Prediction]:
        """The prediction of the step that was begun first."""
        begun = waiting.popleft()
        if begun.future is None:
            return begun.step, self._run(begun.step, begun.window)
        try:
            return begun.step, begun.future.result()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler: the traceback would keep what filled the memory alive.
        wait([other.future for other in waiting if other.future is not None])
        if self._at_once > 1:
            self._at_once = 1
            self._note("one step at a time", "several steps at once")
        return begun.step, self._run(begun.step, begun.window)

    def _run(self, step: Step, window: Window) -> Prediction:
        while True:
            try:
                return self._model.run(step, window, self.limits)
            except (MemoryError, RuntimeError) as error:
                lower = next_rung(self.limits) if is_out_of_memory(error) else None
                if lower is None:
                    raise
                name = type(error).__name__
            self.limits = lower
            self._note(f"{lower.device}, batch {lower.batch}, tile {lower.tile or 'none'}", name)

    def _note(self, rung: str, error: str) -> None:
        self.lowered.append(rung)
        logger.warning("out of memory, limits lowered", extra={"error": error, "limits": rung})
        torch = sys.modules.get("torch")  # not imported here: the model may do without it
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(frozen=True, eq=False)
class _Begun:
    """A step under way; without a future it runs when its turn comes."""

    step: Step
    window: Window
    future: Future[Prediction] | None


def share_cores(model: Model, threads: int) -> int:
    """The number of steps to run at once; the threads inside each share the other cores.

    Threads that each fill a gap wait for nobody. Those that share one convolution wait for the
    slowest of them, which on a busy machine is one that does not run.
    """
    cores = threads or len(os.sched_getaffinity(0))
    at_once = min(cores, MOST_AT_ONCE) if getattr(model, "concurrent", False) else 1
    torch, cv2 = sys.modules.get("torch"), sys.modules.get("cv2")  # as far as the model uses them
    if torch is not None:
        torch.set_num_threads(max(1, cores // at_once))
    if cv2 is not None:
        cv2.setNumThreads(max(1, cores // at_once))
    return at_once


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


def word_of(trust: Trust | None, *, undersampled: bool) -> str:
    """The word for a slice; empty where its model says nothing of it."""
    words = (word for least, word in WORDS if trust is not None and trust.confidence >= least)
    word = next(words, "")
    return LARGE_ANATOMY if undersampled and word != "unsure" else word


def is_replaced(prediction: Prediction, number: int, output: Output) -> bool:
    """True where the model is so little sure of a slice that the classical one is written."""
    has_both = bool(prediction.trust) and bool(prediction.classical)
    return has_both and prediction.trust[number].confidence < output.classical_below


@dataclass(frozen=True, eq=False)
class Chosen:
    """The slice that is written, and what its derivation says of it; "" = nothing."""

    plane: Plane
    note: str
    error_hu: float | None = None  # that is expected of it
    expected_hu: Plane | None = None  # the same of each pixel


@dataclass
class SliceJudge:
    """Judges every generated slice of one job, in the order in which they are made."""

    output: Output
    layout: Layout
    entries: list[dict[str, object]] = field(default_factory=list)
    gate: Mapping[str, object] = field(default_factory=dict)
    doubtful: list[Trust] = field(default_factory=list)

    def chosen(self, slice_: Planned, number: int, prediction: Prediction) -> Chosen:
        """The prediction's slice of that number, or the classical one, for a planned slice."""
        self.gate = prediction.record
        is_coarse = is_undersampled(self.layout, slice_.base)
        coarse = ["undersampled gap, for large anatomy only"] if is_coarse else []
        if not prediction.trust:
            self._enter(slice_, None)
            return Chosen(prediction.planes[number], "; ".join(coarse))
        trust = prediction.trust[number]
        if trust.confidence < self.output.hold_below:
            self.doubtful.append(trust)
        expected = f"expected error {trust.error_hu:.0f} HU, confidence {trust.confidence:.2f}"
        if not is_replaced(prediction, number, self.output):
            self._enter(slice_, trust, prediction.weights[number : number + 1])
            note, local = "; ".join([*coarse, expected]), local_error(prediction, number, trust)
            return Chosen(prediction.planes[number], note, trust.error_hu, local)
        words = CLASSICAL_WORDS.get(prediction.classical_name, prediction.classical_name)
        note = f"{expected}, below {self.output.classical_below:g}: {words} instead of the network"
        if prediction.classical_trust:
            trust = prediction.classical_trust[number]
            note += f", expected error {trust.error_hu:.0f} HU"
        self._enter(slice_, trust, how=prediction.classical_name)
        note, local = "; ".join([*coarse, note]), local_error(prediction, number, trust)
        return Chosen(prediction.classical[number], note, trust.error_hu, local)

    def _enter(
        self,
        slice_: Planned,
        trust: Trust | None,
        weights: Sequence[float] = (),
        how: str = "network",
    ) -> None:
        """Note a slice by its Instance Number and place; nothing where there is nothing to say."""
        word = word_of(trust, undersampled=is_undersampled(self.layout, slice_.base))
        if not word:
            return
        at_mm = self.layout.geometry.place_mm(slice_.position)
        entry: dict[str, object] = {"number": slice_.number, "at_mm": at_mm, "word": word}
        if trust is not None:
            entry["error_hu"] = round(trust.error_hu, 1)
            entry["confidence"] = round(trust.confidence, 3)
            entry["how"] = how
        if weights:
            entry["network_weight"] = round(weights[0], 3)
        self.entries.append(entry)

    @property
    def facts(self) -> Mapping[str, object]:
        """For the record: how the slices were made, and slice by slice how sure the model is."""
        facts: dict[str, object] = {}
        if self.gate:
            facts["gate"] = dict(self.gate)
        if self.entries:
            counts = Counter(str(entry["word"]) for entry in self.entries)
            words = [*(word for _, word in WORDS), LARGE_ANATOMY]
            facts["confidence"] = list(self.entries)
            facts["confidence_counts"] = {word: counts[word] for word in words}
        return facts

    @property
    def notes(self) -> Sequence[str]:
        """For people: what is unusual."""
        replaced = sum(entry.get("how", "network") != "network" for entry in self.entries)
        notes = []
        if self.gate.get("surveyed") == 0:
            notes.append(
                "too few slices to test the network on this series; only its calibration from "
                "training was used"
            )
        if replaced:
            words = _counted(replaced, "slice was", "slices were")
            notes.append(f"{words} interpolated without the network")
        return notes

    def check(self) -> None:
        """Raise Unprocessable, held, where a slice is below what the route accepts."""
        if not self.doubtful:
            return
        worst = min(self.doubtful, key=lambda trust: trust.confidence)
        raise Unprocessable(
            Reason.LOW_CONFIDENCE,
            f"The model is not sure enough of {len(self.doubtful)} of {len(self.entries)} slices "
            f"(confidence down to {worst.confidence:.2f}, an error of {worst.error_hu:.0f} HU; "
            f"the route asks for {self.output.hold_below:g}). Send thinner slices, or lower "
            "hold_below in the route and process the series again.",
        )


def local_error(prediction: Prediction, number: int, trust: Trust) -> Plane | None:
    """The expected error of each pixel of a slice, where its mean is that of `trust`."""
    if not prediction.scale_hu:
        return None
    times = trust.error_hu / max(prediction.trust[number].error_hu, LEAST_ERROR_HU)
    return prediction.scale_hu[number] * np.float32(times)


def check_gaps(steps: Sequence[Step], geometry: Geometry, output: Output) -> None:
    """Raise Unprocessable, held, where a gap is wider than the route lets be filled."""
    wide = [
        float(geometry.gaps_mm[step.gap])
        for step in steps
        if step.gap is not None
        and geometry.gaps_mm[step.gap] > output.most_gap_mm + GAP_TOLERANCE_MM
    ]
    if wide:
        raise Unprocessable(
            Reason.LOW_CONFIDENCE,
            f"{_counted(len(wide), 'gap is', 'gaps are')} wider than {output.most_gap_mm:g} mm "
            f"(up to {max(wide):.1f} mm): what lies between cannot be known. Send thinner slices, "
            "or raise most_gap_mm in the route and process the series again.",
        )


def _counted(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"
