"""The run of a model over a stack: walks its steps, checks what it predicts, and judges slices by
the model's own trust.

Few slices are in memory at a time; where memory does not suffice, the out-of-memory ladder lowers
the limits. A model that says nothing of its slices is taken at its word; nothing is judged then.
"""

import itertools
import json
import logging
import math
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from inference.drafts import KeptDrafts
from inference.errors import (
    Cancelled,
    PredictionError,
    Reason,
    Unprocessable,
    is_out_of_memory,
)
from inference.geometry import GAP_TOLERANCE_MM, Layout, is_undersampled
from inference.model import (
    SITES,
    Finding,
    Limits,
    Measured,
    Model,
    Prediction,
    Step,
    Trust,
    Window,
)
from inference.pixels import PixelReader
from inference.request import Output, Progress, Request
from inference.volume import Geometry, Plane, Volume

if TYPE_CHECKING:
    from inference.results.derived import Planned

Report = Callable[[Progress], None]
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


@dataclass
class JobRecord:
    """The record that a job leaves with its derived series: facts, notes, seconds."""

    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 3)

    def as_json(self) -> Mapping[str, object]:
        return {**self.facts, "seconds": dict(self.seconds), "notes": list(self.notes)}


@dataclass(frozen=True, eq=False)
class Run:
    """One run of the pipeline: the request, and what its phases share."""

    request: Request
    record: JobRecord
    report: Report
    cancelled: Callable[[], bool]
    pixels: PixelReader = field(default_factory=PixelReader)
    drafts: KeptDrafts | None = None  # made while the series arrived, or by other workers

    def reporting(self, step: str, total: int) -> Callable[[int], None]:
        """Takes the count of what is done; raises Cancelled where the job is to stop."""

        def report(done: int) -> None:
            if self.cancelled():
                raise Cancelled
            self.report(Progress(step, done, total))

        return report


def check_prediction(step: Step, prediction: Prediction, volume: Volume) -> None:
    """Raise PredictionError for a prediction that is not what the step asked for."""
    wanted = len(step.fractions)
    if len(prediction.planes) != wanted:
        raise PredictionError(
            f"the model gave {len(prediction.planes)} slices for a gap of {wanted}"
        )
    trusts = prediction.trust, prediction.classical_trust
    for beside in (prediction.scale_hu, prediction.classical, prediction.weights, *trusts):
        if len(beside) not in (0, wanted):
            raise PredictionError(f"the model says {len(beside)} things of {wanted} slices")
    for plane in (*prediction.planes, *prediction.scale_hu, *prediction.classical):
        _check_plane(plane, (volume.geometry.rows, volume.geometry.columns))
    for trust in itertools.chain(*trusts):
        _check_trust(trust)


def check_record(prediction: Prediction) -> None:
    """Raise PredictionError for a record that is no JSON: the page of the job is drawn from it."""
    for record in (prediction.record, *(finding.record for finding in prediction.findings)):
        try:
            json.dumps(record, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise PredictionError(f"the model's record is no JSON: {error}") from error


def check_mask(step: Step, prediction: Prediction, volume: Volume) -> None:
    """Raise PredictionError for a mask that is not 0 or 1 for each pixel that was asked for."""
    if len(prediction.planes) != len(step.needs):
        raise PredictionError(
            f"the model gave a mask of {len(prediction.planes)} slices for {len(step.needs)}"
        )
    for plane in prediction.planes:
        _check_plane(plane, (volume.geometry.rows, volume.geometry.columns))
        if not np.isin(plane, (0.0, 1.0)).all():
            raise PredictionError("the model gave a mask with other values than 0 and 1")


def check_findings(step: Step, prediction: Prediction, volume: Volume) -> None:
    """Raise PredictionError for organs or findings that cannot lie in the stack as they are."""
    geometry = volume.geometry
    if len(prediction.planes) not in (0, len(step.needs)):
        raise PredictionError(
            f"the model gave organs in {len(prediction.planes)} slices for {len(step.needs)}"
        )
    for plane in prediction.planes:
        _check_plane(plane, (geometry.rows, geometry.columns))
        if plane.min(initial=0.0) < 0 or not np.equal(plane, np.rint(plane)).all():
            raise PredictionError("the model gave organs that are no whole numbers from 0")
    for finding in prediction.findings:
        _check_finding(finding, (len(geometry), geometry.rows, geometry.columns))
    scores = [finding.score for finding in prediction.findings]
    if scores != sorted(scores, reverse=True):
        raise PredictionError("the model gave findings that are not in the order of their scores")


def check_scores(step: Step, prediction: Prediction, volume: Volume) -> None:
    """Raise PredictionError for anything but a score of 0 to 1 for each slice and the series."""
    scores = prediction.scores
    if scores is None:
        raise PredictionError("the model gave no scores")
    geometry = volume.geometry
    if scores.slices.shape != (len(geometry),):
        raise PredictionError(
            f"the model gave scores of {len(scores.slices)} slices for {len(geometry)}"
        )
    series = scores.series, scores.slice_threshold, scores.series_threshold
    if not all(0.0 <= score <= 1.0 for score in (*series, *scores.slices.tolist())):
        raise PredictionError("the model gave scores that are not between 0 and 1")
    for index, plane in scores.heat.items():
        if not 0 <= index < len(geometry):
            raise PredictionError(f"the model gave a map of slice {index} of {len(geometry)}")
        _check_plane(plane, (geometry.rows, geometry.columns))
        if plane.min() < 0.0 or plane.max() > 1.0:
            raise PredictionError("the model gave a map that is not between 0 and 1")


def _check_finding(finding: Finding, shape: tuple[int, int, int]) -> None:
    sizes = finding.short_axis_mm, finding.long_axis_mm, finding.volume_mm3
    if not 0.0 <= finding.score <= 1.0:
        raise PredictionError(f"the model gave a finding a score of {finding.score}")
    if not all(math.isfinite(size) and size > 0 for size in sizes) or sizes[0] > sizes[1]:
        raise PredictionError(f"the model measured a finding as {sizes}, which cannot be")
    mask = finding.mask
    if mask.dtype != np.bool_ or mask.ndim != 3 or not mask.any():
        raise PredictionError("the model gave a finding without a mask")
    ends = zip(finding.first, mask.shape, shape, strict=True)
    if not all(first >= 0 and first + length <= most for first, length, most in ends):
        raise PredictionError("the model gave a finding outside the stack")
    if finding.site not in SITES:
        raise PredictionError(f"the model gave a finding at the site {finding.site!r}")


def _check_plane(plane: Plane, shape: tuple[int, int]) -> None:
    if plane.shape != shape:
        raise PredictionError(f"the model gave a slice of {plane.shape}, not {shape}")
    if not np.isfinite(plane).all():
        raise PredictionError("the model gave values that are not finite numbers")


def _check_trust(trust: Trust) -> None:
    is_known = all(map(math.isfinite, (trust.error_hu, trust.confidence, trust.interval)))
    if not (
        is_known and 0.0 <= trust.confidence <= 1.0 and min(trust.error_hu, trust.interval) >= 0
    ):
        raise PredictionError(f"the model expects what cannot be: {trust}")


def check_measured(measured: Measured) -> None:
    """Raise PredictionError for a survey that measured nothing, or no finite number."""
    if not measured or not all(math.isfinite(value) for value in measured.values()):
        raise PredictionError("a survey of the model measured no finite numbers")


def check_steps(steps: Sequence[Step], slices: int) -> None:
    """Raise PredictionError for a plan that does not fit the stack."""
    surveys = list(itertools.takewhile(lambda step: step.survey is not None, steps))
    for step in surveys:
        _check_survey(step, slices)
    seen: set[int] = set()
    for step in steps[len(surveys) :]:
        if step.survey is not None:
            raise PredictionError("the model planned a survey after a gap")
        if step.gap is None or not 0 <= step.gap < slices - 1 or step.gap in seen:
            raise PredictionError(f"the model planned gap {step.gap} of {slices - 1}")
        seen.add(step.gap)
        _check_gap(step, step.gap, slices)


def _check_survey(step: Step, slices: int) -> None:
    left_out = step.survey or 0
    if not 0 < left_out < slices - 1 or step.gap is not None or step.fractions:
        raise PredictionError(f"the model planned a survey of slice {step.survey} of {slices}")
    if not {left_out - 1, left_out, left_out + 1} <= set(step.needs) <= set(range(slices)):
        raise PredictionError(f"the model needs slices {step.needs} to survey {left_out}")


def _check_gap(step: Step, gap: int, slices: int) -> None:
    if not {gap, gap + 1} <= set(step.needs) <= set(range(slices)):
        raise PredictionError(f"the model needs slices {step.needs} for gap {gap}")
    inside = all(0.0 < fraction < 1.0 for fraction in step.fractions)
    if not step.fractions or not inside or sorted(set(step.fractions)) != [*step.fractions]:
        raise PredictionError(f"the model planned places {step.fractions} in a gap")


def check_whole(steps: Sequence[Step], slices: int) -> None:
    """Raise PredictionError for a plan that is not for every slice once."""
    needed = [index for step in steps for index in step.needs]
    is_other = any(step.gap is not None or step.survey is not None for step in steps)
    if is_other or sorted(needed) != list(range(slices)):
        raise PredictionError(f"the model planned to look at other slices than the {slices}")


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
        run: Callable[[Step, Window, Limits], Prediction] | None = None,
    ) -> None:
        self.limits = limits
        self.lowered: list[str] = []  # what the out-of-memory ladder did, in order
        self._run_step = run or model.run
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
        with _pool(self._at_once) as pool:
            for place, step in enumerate(steps):
                if cancelled():
                    raise Cancelled
                window, future = self._window(step, surveyed), None
                if self._at_once > 1:
                    future = pool.submit(self._run_step, step, window, self.limits)
                waiting.append(_Begun(step, window, future))
                for index in [index for index in self._planes if last_use[index] <= place]:
                    del self._planes[index]
                # One more than run at once waits already when the next of them has ended.
                while len(waiting) > (self._at_once if self._at_once > 1 else 0):
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
        except Exception as error:
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
                return self._run_step(step, window, self.limits)
            except Exception as error:
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


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that begin with nothing further when the block is left."""
    pool = ThreadPoolExecutor(max(1, threads))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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

    def chosen(self, slice_: "Planned", number: int, prediction: Prediction) -> Chosen:
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
        slice_: "Planned",
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
