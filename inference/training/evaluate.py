"""Evaluation of a generator: slices of thin series are left out, predicted and compared.

A cell is one series, one mode and one factor. Every method predicts the same targets; all gains are
over shift-corrected linear interpolation of them; whole slices, window -1024 to 2048 HU. The model
runs through the node's own runner, and its slices are judged as they would be stored.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.interpolate import CubicSpline

from inference.errors import Unprocessable
from inference.model import Limits, Model, Parameters, Prediction, Step, Window
from inference.models import classical
from inference.models.classical import MEDIUM, Neighbourhood, shifted
from inference.models.midslice import SHIPPED_WEIGHTS
from inference.models.network import load_network
from inference.models.runtime import Runtime, has_fast_bfloat16
from inference.previews import DisplayWindow, difference, uri
from inference.request import Output
from inference.runner import Runner, is_replaced, local_error
from inference.training.data import PassedOver, ThinSeries
from inference.training.leave_out import (
    LeaveOutStack,
    Mode,
    Target,
    TargetList,
    leave_out,
    replaced_series,
    unsuitable,
)
from inference.training.metrics import (
    Anatomy,
    Confidence,
    Figures,
    Milliseconds,
    SliceFigures,
    TrustedSlice,
    TruthSlice,
    confidence_of,
    figures_of_cell,
)
from inference.training.peers import Peer, PeerFacts
from inference.training.reader import ReaderFigures, Reading, nodules_for, with_nodules
from inference.training.reliability import (
    BoundCounts,
    MapBounds,
    ReliabilityBand,
    Squares,
    bound_counts,
    map_bounds,
    reliability,
    squares_of,
)
from inference.volume import Plane, on_line

LINEAR, DIS = "linear", "dis"
# Is a gain nothing but smoothing? The width is near the best one on the series it was tried on.
SMOOTHED, SMOOTHED_SIGMA = "linear, smoothed", 0.7
CLASSICAL = ("nearest", LINEAR, SMOOTHED, "cubic", "spline", DIS)
# Received slices with a smaller weight change the spline by less than 0.1 HU.
LEAST_WEIGHT = 3e-5
SHIPPED = "shipped"

TIMED_SIDE = 512
ROUNDS = 5
TIMED_SLICES = 6  # of each classical method, at least, in whole gaps

WINDOW = DisplayWindow(-300.0, 1600.0)
PICTURE_SIDE = 400  # pixels
WORST = ("least gain", "second least", "third least")  # slices of a cell that are shown
MOST_EXPECTED_HU = 200.0  # of the picture of the expected error


@dataclass(frozen=True, eq=False)
class TargetPlace:
    """The place of a slice to make: a gap of a stack, the slices around it, and t."""

    stack: LeaveOutStack
    gap: int
    near: Neighbourhood
    t: float


@dataclass(frozen=True)
class RunOptions:
    """Limits of the model's runs, and whether its slices are shown."""

    limits: Limits
    at_once: int = 1  # gaps, as the node runs them
    pictures: bool = False
    peers: tuple[Peer, ...] = ()  # trained networks to compare with


Method = Callable[[TargetPlace], Plane]


def classical_methods() -> Mapping[str, Method]:
    """By the names of CLASSICAL."""
    return {
        "nearest": lambda place: classical.nearest(place.near, place.t),
        LINEAR: lambda place: classical.linear(place.near, place.t),
        SMOOTHED: smoothed_linear,
        "cubic": lambda place: classical.cubic(place.near, place.t),
        "spline": spline,
        DIS: lambda place: classical.dis(place.near, place.t),
    }


def neighbourhood(stack: LeaveOutStack, gap: int) -> Neighbourhood:
    """The four received slices around a gap; flow is searched for as OpenCV's preset does it."""
    needs = tuple(i for i in range(gap - 1, gap + 3) if 0 <= i < len(stack.volume))
    slices = {index: stack.volume.read(index) for index in needs}
    near = Neighbourhood.of(Step(needs, gap), Window(stack.volume.geometry, slices))
    return replace(near, search=MEDIUM)


def smoothed_linear(place: TargetPlace) -> Plane:
    """The control: what a Gaussian makes of linear interpolation."""
    plane = classical.linear(place.near, place.t)
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), SMOOTHED_SIGMA), np.float32)


def spline(place: TargetPlace) -> Plane:
    """The natural cubic spline through every received slice, each in the frame of the made one."""
    geometry = place.stack.volume.geometry
    weights = spline_weights(tuple(geometry.distances_mm.tolist()), place.gap, place.t)
    at_c = geometry.shift_pixels(place.gap, place.gap + 1)
    total = np.zeros((geometry.rows, geometry.columns), np.float32)
    for index in np.flatnonzero(np.abs(weights) > LEAST_WEIGHT).tolist():
        offset = on_line(at_c, geometry.shift_pixels(place.gap, index), place.t)
        total += weights[index] * shifted(place.stack.volume.read(index), offset)
    return total


@lru_cache(maxsize=512)
def spline_weights(places: tuple[float, ...], gap: int, t: float) -> NDArray[np.float32]:
    """(n,): the share of each of n values in the natural cubic spline at `t` of a gap."""
    spline = CubicSpline(places, np.eye(len(places)), bc_type="natural")
    return np.asarray(spline(places[gap] + t * (places[gap + 1] - places[gap])), np.float32)


def predictions(
    model: Model, stack: LeaveOutStack, options: RunOptions, places: Mapping[int, tuple[float, ...]]
) -> Iterator[tuple[int, Prediction]]:
    """Predict places in gaps with the node's runner, in the order of the gaps.

    The model plans for the whole stack; the gaps without a target are left out of its plan, which
    changes nothing, because it keeps no state between two gaps.
    """
    steps = []
    for step in model.plan(stack.volume.geometry, Parameters(factor=stack.factor)):
        if step.gap is None:
            steps.append(step)
        elif step.gap in places:
            steps.append(replace(step, fractions=places[step.gap]))
    runner = Runner(model, stack.volume, options.limits, options.at_once)
    for step, prediction in runner.predictions(steps, cancelled=lambda: False):
        if step.gap is not None:
            yield step.gap, prediction


# Plain torch is eager, float32, every core in each convolution. What is compared is measured in
# the same run and in turns, so that a busy machine is busy for both.


@dataclass(frozen=True)
class NetworkSpeed:
    """Milliseconds of the network alone for one slice of 512 x 512; medians."""

    eager_ms: float
    ours_ms: float

    @property
    def times(self) -> float:
        return self.eager_ms / self.ours_ms

    @property
    def least(self) -> float:
        """The gain that is due: more where the processor multiplies bfloat16 in hardware."""
        return 2.0 if has_fast_bfloat16("cpu") else 1.25


def network_speed(
    weights: Path | None = None, *, rounds: int = ROUNDS, side: int = TIMED_SIDE
) -> NetworkSpeed:
    """The product's way fills the cores with slices, one a core."""
    network = load_network(weights or SHIPPED_WEIGHTS)[0].eval()
    runtime = Runtime(network, "cpu")
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
    plain, product = (float(np.median(times)) / slices for times in zip(*taken, strict=True))
    return NetworkSpeed(plain, product)


def _milliseconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return 1000.0 * (time.perf_counter() - started)


def slice_times(
    model: Model, methods: Mapping[str, Method], stack: LeaveOutStack, options: RunOptions
) -> Mapping[str, Milliseconds]:
    """Per generated slice: of some whole gaps, for the model of the whole series with its surveys.

    Slices are decoded beforehand, for what that takes hangs on their transfer syntax.
    """
    spent = {}
    gaps = stack.whole_gaps(-(-TIMED_SLICES // (stack.factor - 1)))
    for name, method in methods.items():
        began = _now()
        for gap, places in gaps:
            near = neighbourhood(stack, gap)  # anew: no method profits from another's flow
            for t in places:
                method(TargetPlace(stack, gap, near, t))
        spent[name] = (_now() - began) / sum(len(places) for _, places in gaps)
    everything = dict(stack.whole_gaps(len(stack.volume) - 1))
    for index in range(len(stack.volume)):
        stack.volume.read(index)
    began = _now()
    for _ in predictions(model, stack, options, everything):
        pass
    spent[model.name] = (_now() - began) / sum(map(len, everything.values()))
    return {name: Milliseconds(float(wall), float(cpu)) for name, (wall, cpu) in spent.items()}


def _now() -> NDArray[np.float64]:
    """(2,): milliseconds by the clock, and of the processor."""
    return 1000.0 * np.array([time.perf_counter(), time.process_time()])


@dataclass(frozen=True)
class Picture:
    """One picture as an address, with a title and a note."""

    title: str
    note: str
    uri: str


@dataclass(frozen=True)
class Panel:
    """The pictures of one target."""

    target: int
    gain_db: float  # of the model over linear
    what: str  # which of the cell's targets this is
    pictures: tuple[Picture, ...]


def panel_of(
    before: Plane,
    truth: Plane,
    planes: Mapping[str, Plane],
    psnr_db: Mapping[str, float],
    expected_hu: Plane | None,
) -> tuple[Picture, ...]:
    """The received slice before, the truth and every plane; of the first its true and expected
    errors too."""
    pictures = [
        Picture("A", "the received slice before", _shown(before)),
        Picture("truth", "the slice that was left out", _shown(truth)),
    ]
    for number, (name, plane) in enumerate(planes.items()):
        error = float(np.sqrt(np.square(plane - truth).mean(dtype=np.float64)))
        note = f"{psnr_db[name]:.2f} dB, RMS error {error:.0f} HU"
        pictures.append(Picture(name, note, _shown(plane)))
        if number == 0:
            colours = "blue too low, orange too high"
            pictures.append(Picture(f"{name} - truth", colours, _small(difference(plane, truth))))
            pictures += _expected_picture(expected_hu)
    return tuple(pictures)


def _expected_picture(expected_hu: Plane | None) -> list[Picture]:
    """The map of the expected error in grey; nothing of a model without one."""
    if expected_hu is None:
        return []
    grey = np.clip(expected_hu * (255.0 / MOST_EXPECTED_HU), 0.0, 255.0).astype(np.uint8)
    note = f"black 0, white {MOST_EXPECTED_HU:g} HU and more"
    return [Picture("expected error", note, _small(Image.fromarray(grey)))]


def chosen(panels: Sequence[Panel]) -> tuple[Panel, ...]:
    """The worst of a cell and the usual one, by the gain over linear."""
    ordered = sorted(panels, key=lambda panel: panel.gain_db)
    shown = [replace(panel, what=what) for panel, what in zip(ordered, WORST, strict=False)]
    middle = len(ordered) // 2
    usual = ordered[middle : middle + 1] if middle >= len(WORST) else []
    return (*shown, *(replace(panel, what="median gain") for panel in usual))


def _shown(plane: Plane) -> str:
    return _small(Image.fromarray(WINDOW.grey(plane)))


def _small(picture: Image.Image) -> str:
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BOX)
    return uri(picture)


@dataclass(frozen=True)
class CellKind:
    """All of a cell that the figures due to it depend on."""

    series: str
    mode: Mode
    factor: int
    gap_mm: float
    spacing_mm: float
    anatomy: Anatomy
    size: tuple[int, int]
    weights: str  # SHIPPED, or which others

    @classmethod
    def of(
        cls, series: ThinSeries, mode: Mode, factor: int, anatomy: Anatomy, weights: str
    ) -> "CellKind":
        spacing, size = series.spacing_mm, (series.geometry.rows, series.geometry.columns)
        gap, spacing = round(spacing * factor, 2), round(spacing, 3)
        return cls(series.name, mode, factor, gap, spacing, anatomy, size, weights)

    @property
    def name(self) -> str:
        if self.mode == "left-out":
            return f"{self.series}, each slice left out"
        return f"{self.series} {self.factor}x, {self.gap_mm:g} mm{' slab' * (self.mode == 'slab')}"

    @property
    def title(self) -> str:
        """The name, with the weights where they are not simply those of the product."""
        return self.name if self.weights == SHIPPED else f"{self.name} ({self.weights})"


@dataclass(frozen=True, eq=False)
class CellRequest:
    """A cell to evaluate, with the model that is judged on it."""

    series: ThinSeries
    kind: CellKind
    model: Callable[[], Model]


@dataclass(frozen=True)
class EvaluatedCell:
    """The figures of every method on one cell."""

    kind: CellKind
    targets: tuple[int, ...]  # thin slices
    model: str  # the name of its method
    weights_sha256: str
    methods: Mapping[str, Figures]
    confidence: Confidence | None
    reliability: tuple[ReliabilityBand, ...]  # of the map of the expected error
    gains_db: tuple[float, ...]  # of the model over linear, one a target
    gap_to_thickness: float | None = None
    bounds: MapBounds | None = None  # of the map of the expected error
    reader: Mapping[str, ReaderFigures] = field(default_factory=dict)  # by method; of chests
    peers: tuple[PeerFacts, ...] = ()  # how the trained ones of the methods came about
    panels: tuple[Panel, ...] = field(default=(), repr=False)

    @property
    def ours(self) -> Figures:
        return self.methods[self.model]

    def as_json(self) -> dict[str, object]:
        """Plain values alone; pictures are for the page."""
        values = {key: asdict(self)[key] for key in asdict(self) if key not in ("panels", "kind")}
        return {**asdict(self.kind), **values}


Report = Callable[[int, int, str], None]  # slices predicted so far, of all, and the cell


def evaluate(
    requests: Sequence[CellRequest],
    listed: TargetList,
    targets: int,
    options: RunOptions,
    progress: Report,
) -> tuple[list[EvaluatedCell], list[PassedOver]]:
    """The cells that were asked for, and those that a series is unsuitable for, with the reason."""
    cells: list[EvaluatedCell] = []
    passed: list[PassedOver] = []
    waiting = deque(_stacks(request, listed, targets, passed) for request in requests)
    total = sum(len(stack.targets) for stacks in waiting for stack in stacks)
    done = 0
    for request in requests:
        stacks = waiting.popleft()  # with the slices that it keeps
        name = request.kind.name

        def report(count: int, before: int = done, name: str = name) -> None:
            progress(before + count, total, name)

        try:
            if stacks:
                cells.append(_CellEvaluation(request, stacks, options, report).run())
        except Unprocessable as refused:
            passed.append(PassedOver(name, refused.sentence))
        done += sum(len(stack.targets) for stack in stacks)
    return cells, passed


def _stacks(
    request: CellRequest, listed: TargetList, targets: int, passed: list[PassedOver]
) -> tuple[LeaveOutStack, ...]:
    series, factor, mode = request.series, request.kind.factor, request.kind.mode
    reason = unsuitable(series, factor, mode)
    if reason is not None:
        passed.append(PassedOver(f"{series.name} {factor}x {mode}", reason))
        return ()
    return leave_out(series, factor, mode, listed, targets)


def _peers_for(request: CellRequest, peers: Sequence[Peer]) -> dict[str, Peer]:
    """Those that have not seen the patient, where slices lie evenly as in their training."""
    if request.kind.mode == "left-out":
        return {}
    return {
        peer.facts.name: peer for peer in peers if request.series.name not in peer.facts.patients
    }


def _method_of(peer: Peer) -> Method:
    return lambda place: peer.slice_at(place.near, place.t)


class _CellEvaluation:
    """One cell under way: every method on every target."""

    def __init__(
        self,
        request: CellRequest,
        stacks: Sequence[LeaveOutStack],
        options: RunOptions,
        report: Callable[[int], None],
    ) -> None:
        self._model = request.model()
        self._stacks, self._options, self._report = stacks, options, report
        self._kind = request.kind
        self._methods = {
            name: method
            for name, method in classical_methods().items()
            if name != self._model.name or name in (LINEAR, DIS)
        }
        self._peers = _peers_for(request, options.peers)
        self._methods |= {name: _method_of(peer) for name, peer in self._peers.items()}
        names = [*self._methods, self._model.name]
        self._figures: dict[str, list[SliceFigures]] = {name: [] for name in names}
        self._noise_beside: list[float | None] = []
        self._trusted: list[TrustedSlice] = []
        self._squares: list[tuple[Squares, Squares]] = []
        self._bounds: list[BoundCounts] = []
        self._panels: list[Panel] = []
        self._done = 0
        self._request = request
        self._reading: Reading | None = None
        if self._kind.anatomy == "chest" and self._kind.mode != "left-out":
            self._nodules = nodules_for(stacks[0])
            self._reading = Reading(names, stacks[0].series.geometry.pixel_mm, self._nodules)

    def run(self) -> EvaluatedCell:
        """Every target of every stack, then the time that it takes."""
        for stack in self._stacks:
            self._judge(stack)
        if self._reading is not None:
            self._judge_nodules(self._reading)
        milliseconds = slice_times(self._model, self._methods, self._stacks[0], self._options)
        linear, dis = self._figures[LINEAR], self._figures[DIS]
        ours = self._figures[self._model.name]
        figures = {
            name: figures_of_cell(slices, linear, dis, self._noise_beside, milliseconds[name])
            for name, slices in self._figures.items()
        }
        geometry = self._stacks[0].volume.geometry
        return EvaluatedCell(
            kind=self._kind,
            targets=tuple(target.index for stack in self._stacks for target in stack.targets),
            model=self._model.name,
            weights_sha256=self._model.weights_sha256,
            methods=figures,
            confidence=confidence_of(self._trusted),
            reliability=reliability(self._squares),
            bounds=map_bounds(self._bounds),
            gains_db=tuple(a.psnr_db - b.psnr_db for a, b in zip(ours, linear, strict=True)),
            gap_to_thickness=(
                self._kind.gap_mm / geometry.thickness_mm if geometry.thickness_mm else None
            ),
            reader=self._reader_figures(figures),
            peers=tuple(peer.facts for peer in self._peers.values()),
            panels=chosen(self._panels),
        )

    def _reader_figures(self, figures: Mapping[str, Figures]) -> Mapping[str, ReaderFigures]:
        if self._reading is None:
            return {}
        return {
            name: self._reading.figures_of(name, it.gradient_ratio, it.laa_950_off)
            for name, it in figures.items()
        }

    def _judge(self, stack: LeaveOutStack) -> None:
        for target, planes, prediction, number in self._predicted(stack):
            self._measure(stack, target, planes, prediction, number)
            self._done += 1
            self._report(self._done)

    def _judge_nodules(self, reading: Reading) -> None:
        """The same targets in the same series, had the patient nodules there."""
        (stack,) = self._stacks
        nodules = [nodule for drawn in self._nodules.values() for nodule in drawn]
        if not nodules:
            return
        changed = replaced_series(stack, with_nodules(stack.series, nodules))
        for target, planes, _, _ in self._predicted(changed):
            reading.add_with_nodules(target.index, changed.truth(target), planes)

    def _predicted(
        self, stack: LeaveOutStack
    ) -> Iterator[tuple[Target, dict[str, Plane], Prediction, int]]:
        """Each target with the slice of every method."""
        places = {gap: tuple(target.t for target in targets) for gap, targets in stack.by_gap()}
        predicted = predictions(self._model, stack, self._options, places)
        for (gap, targets), (predicted_gap, prediction) in zip(
            stack.by_gap(), predicted, strict=True
        ):
            assert gap == predicted_gap
            near = neighbourhood(stack, gap)
            # As the node judges where nothing else is configured: of a slice that its model is
            # not sure of, it writes the best candidate without training.
            for number, target in enumerate(targets):
                place = TargetPlace(stack, gap, near, target.t)
                planes = {name: method(place) for name, method in self._methods.items()}
                is_classical = is_replaced(prediction, number, Output())
                written = (prediction.classical if is_classical else prediction.planes)[number]
                planes[self._model.name] = stack.stored(written, gap, target.t)
                yield target, planes, prediction, number

    def _measure(
        self,
        stack: LeaveOutStack,
        target: Target,
        planes: Mapping[str, Plane],
        prediction: Prediction,
        number: int,
    ) -> None:
        truth = TruthSlice(stack.truth(target), stack.series.geometry.pixel_mm)
        measured = {name: truth.figures_of(plane) for name, plane in planes.items()}
        for name, figures in measured.items():
            self._figures[name].append(figures)
        if self._reading is not None:
            self._reading.add(target.index, truth, planes)
        self._noise_beside.append(_noise_beside(stack, target))
        ours, figures = planes[self._model.name], measured[self._model.name]
        if prediction.trust:
            self._trusted.append(_trusted(prediction, number, ours, truth, figures.body_mae_hu))
            expected = _expected(prediction, number)
            if expected is not None:
                self._squares.append(squares_of(expected, ours, truth.plane))
                interval = prediction.trust[number].interval
                self._bounds.append(bound_counts(expected, interval, ours, truth.plane))
        if self._options.pictures:
            names = (self._model.name, *self._peers, LINEAR, DIS)
            shown = {name: planes[name] for name in names if name in planes}
            psnr = {name: measured[name].psnr_db for name in shown}
            before = stack.volume.read(target.gap)
            expected = _expected(prediction, number) if prediction.trust else None
            pictures = panel_of(before, truth.plane, shown, psnr, expected)
            gain = psnr[self._model.name] - psnr[LINEAR]
            self._panels.append(Panel(target.index, gain, "", pictures))


def _expected(prediction: Prediction, number: int) -> Plane | None:
    """The expected error of each pixel of the slice that is written."""
    is_classical = is_replaced(prediction, number, Output()) and prediction.classical_trust
    trusts = prediction.classical_trust if is_classical else prediction.trust
    return local_error(prediction, number, trusts[number])


def _noise_beside(stack: LeaveOutStack, target: Target) -> float | None:
    """Mean noise of the two received slices around a target, each in its own flat tissue."""
    received = (stack.volume.read(place) for place in (target.gap, target.gap + 1))
    noises = [TruthSlice(plane, stack.series.geometry.pixel_mm).noise_hu for plane in received]
    measured = [noise for noise in noises if noise is not None]
    return float(np.mean(measured)) if measured else None


def _trusted(
    prediction: Prediction, number: int, plane: Plane, truth: TruthSlice, true_error_hu: float
) -> TrustedSlice:
    trust = prediction.trust[number]
    coverage = None
    if prediction.scale_hu and truth.body.any():
        inside = np.abs(plane - truth.plane) <= trust.interval * prediction.scale_hu[number]
        coverage = float(inside[truth.body].mean())
    return TrustedSlice(trust.error_hu, true_error_hu, trust.confidence, coverage)
