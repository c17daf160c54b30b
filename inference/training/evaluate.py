"""Evaluation of a generator: slices of thin series are left out, predicted and compared."""

import hashlib
import json
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from inference import trust
from inference.errors import Unprocessable
from inference.model import Limits, Model, Parameters, Prediction, Step, Window
from inference.models import classical
from inference.models.classical import MEDIUM, Neighbourhood, shifted
from inference.models.midslice import SHIPPED_WEIGHTS, Network
from inference.models.runtime import Runtime, has_fast_bfloat16
from inference.request import Output
from inference.runner import Runner
from inference.training.data import PassedOver, ThinSeries
from inference.training.metrics import (
    Anatomy,
    Beside,
    Confidence,
    Figures,
    Judge,
    Milliseconds,
    SliceFigures,
    Trusted,
    confidence_of,
    figures_of_cell,
    noise_hu,
)
from inference.volume import Geometry, Plane, Volume, on_line

# The list of the known series is kept in `targets.json`, so that no change of a random generator
# can move it; a series that is not in it is drawn by the rule that made the list.

COMMITTED = Path(__file__).with_name("targets.json")

SEED = 2026
TARGETS = 20  # slices a cell


@dataclass(frozen=True)
class Listed:
    """The targets of one series at one factor; `slices` and `name` say which series it is."""

    name: str  # of its folder
    slices: int  # of the thin series, or of what averaging leaves of it
    factor: int
    targets: tuple[int, ...]


def drawn_targets(name: str, slices: int, factor: int, count: int = TARGETS) -> tuple[int, ...]:
    """The rule: a permutation of the left-out slices, seeded by the name of the series."""
    last = (slices - 1) // factor * factor
    left_out = [index for index in range(last) if index % factor]
    digest = hashlib.sha256(f"{SEED}/{name}/{slices}/{factor}".encode()).digest()
    random = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    drawn = random.permutation(left_out)[:count]
    return tuple(sorted(int(index) for index in drawn))


class TargetList:
    """Targets by name, slices and factor: those of a list first, those of the rule else."""

    def __init__(self, listed: Iterable[Listed] = ()) -> None:
        self._listed = {(each.name, each.slices, each.factor): each.targets for each in listed}

    def __len__(self) -> int:
        return len(self._listed)

    def targets(self, name: str, slices: int, factor: int, count: int = TARGETS) -> tuple[int, ...]:
        """A list holds whole cells: a smaller or larger count is drawn by the rule."""
        known = self._listed.get((name, slices, factor))
        if known is not None and count == TARGETS:
            return known
        return drawn_targets(name, slices, factor, count)


def read_list(path: Path = COMMITTED) -> TargetList:
    """A list as `write_list` wrote it."""
    stored = json.loads(path.read_text())
    return TargetList(
        Listed(each["name"], each["slices"], each["factor"], tuple(each["targets"]))
        for each in stored["series"]
    )


def write_list(listed: Iterable[Listed], path: Path) -> None:
    """One line a cell, in an order that does not depend on how the series were found."""
    ordered = sorted(listed, key=lambda each: (each.name, each.slices, each.factor))
    lines = ",\n    ".join(json.dumps(asdict(each)) for each in ordered)
    head = f'  "seed": {SEED},\n  "slices_a_cell": {TARGETS},\n'
    path.write_text(f'{{\n{head}  "series": [\n    {lines}\n  ]\n}}\n')


# `sub-sampled` keeps every f-th slice. `slab` first averages f slices, as a scanner with slices
# as thick as their gap does. `left-out` leaves out one interior slice at a time, wherever it
# lies: the way to judge on a series whose slices are unevenly spaced.

Mode = Literal["sub-sampled", "slab", "left-out"]

KEPT_PLANES = 24  # read slices in memory: the spline looks back and forth over some of them


@dataclass(frozen=True)
class Target:
    """A slice to predict: its place among the thin slices, and in its gap."""

    index: int  # of the thin series; of a slab, its first slice
    gap: int  # between received slices `gap` and `gap + 1`
    t: float


@dataclass(frozen=True, eq=False)
class Cut:
    """A received stack and the targets in its gaps, ascending."""

    series: ThinSeries
    mode: Mode
    factor: int
    volume: Volume  # the received stack
    targets: tuple[Target, ...]
    truth: Callable[[Target], Plane]
    stored: Callable[[Plane, int, float], Plane]  # a predicted slice of a gap and t, as on disk

    @property
    def parameters(self) -> Parameters:
        return Parameters(factor=self.factor)

    @property
    def gap_mm(self) -> float:
        return float(np.median(self.volume.geometry.gaps_mm))

    def by_gap(self) -> Iterator[tuple[int, tuple[Target, ...]]]:
        """The targets of each gap that has some."""
        for gap in sorted({target.gap for target in self.targets}):
            yield gap, tuple(target for target in self.targets if target.gap == gap)

    def whole_gaps(self, count: int) -> tuple[tuple[int, tuple[float, ...]], ...]:
        """`count` gaps from the middle on with every place that the factor fills, to time."""
        gaps = len(self.volume) - 1
        first = max(0, (gaps - count) // 2)
        places = tuple(k / self.factor for k in range(1, self.factor))
        return tuple((gap, places) for gap in range(first, min(gaps, first + count)))


def slices_left(series: ThinSeries, factor: int, mode: Mode) -> int:
    """How many thin slices, or slabs of them, there are to choose from."""
    return len(series) - (factor - 1 if mode == "slab" else 0)


def why_not(series: ThinSeries, factor: int, mode: Mode) -> str | None:
    """Why a series cannot be cut so; None where it can."""
    if mode == "left-out":
        return None
    if slices_left(series, factor, mode) <= factor:
        return f"{len(series)} slices are too few to leave out {factor - 1} of {factor}"
    if mode == "slab" and not series.is_even:
        return "unevenly spaced slices cannot be averaged to slabs"
    shift = series.geometry.shift_pixels(0, 1)
    if mode == "slab" and max(abs(shift[0]), abs(shift[1])) > 0.01:
        return "slices of a tilted gantry cannot be averaged to slabs"
    return None


def cuts_of(
    series: ThinSeries, factor: int, mode: Mode, listed: TargetList, count: int = TARGETS
) -> tuple[Cut, ...]:
    """The stacks of one cell: one, or for `left-out` one a slice that is left out."""
    if mode == "left-out":
        whole = _Thin(series, 1)
        return tuple(_without(whole, index) for index in range(1, len(series) - 1))
    left = slices_left(series, factor, mode)
    wanted = listed.targets(series.name, left, factor, count)
    thin = _Thin(series, factor if mode == "slab" else 1)
    received = range(0, left, factor)
    targets = tuple(_target(thin.geometry, index, factor) for index in wanted)
    return (_cut(thin, mode, factor, received, targets),) if targets else ()


def _without(thin: "_Thin", index: int) -> Cut:
    places = thin.geometry.distances_mm
    received = [other for other in range(len(places)) if other != index]
    t = (places[index] - places[index - 1]) / (places[index + 1] - places[index - 1])
    target = Target(index, index - 1, float(t))
    return _cut(thin, "left-out", 2, received, (target,))


def _target(geometry: Geometry, index: int, factor: int) -> Target:
    """Its place comes from positions, not from counts."""
    gap = index // factor
    places = geometry.distances_mm
    before, after = places[gap * factor], places[(gap + 1) * factor]
    return Target(index, gap, float((places[index] - before) / (after - before)))


def _cut(
    thin: "_Thin", mode: Mode, factor: int, received: Sequence[int], targets: tuple[Target, ...]
) -> Cut:
    geometry = thin.geometry
    stack = Geometry(
        positions=geometry.positions[list(received)],
        orientation=geometry.orientation,
        pixel_spacing=geometry.pixel_spacing,
        rows=geometry.rows,
        columns=geometry.columns,
        thickness_mm=geometry.thickness_mm,
    )

    def stored(plane: Plane, gap: int, t: float) -> Plane:
        return thin.stored(plane, received[gap], received[gap + 1], t)

    return Cut(
        series=thin.series,
        mode=mode,
        factor=factor,
        volume=Volume(stack, lambda place: thin.read(received[place])),
        targets=targets,
        truth=lambda target: thin.read(target.index),
        stored=stored,
    )


class _Thin:
    """The thin slices, each the mean of `width` of them; the last ones read are kept."""

    def __init__(self, series: ThinSeries, width: int) -> None:
        self.series, self._width = series, width
        own = series.geometry
        count = len(own) - width + 1
        thickness = own.thickness_mm or series.spacing_mm
        # All slabs are moved by the same half thickness, which no method can see.
        self.geometry = Geometry(
            positions=own.positions[:count],
            orientation=own.orientation,
            pixel_spacing=own.pixel_spacing,
            rows=own.rows,
            columns=own.columns,
            thickness_mm=thickness + (width - 1) * series.spacing_mm,
        )
        self._kept: OrderedDict[int, Plane] = OrderedDict()

    def read(self, index: int) -> Plane:
        if index not in self._kept:
            parts = [self.series.read(index + k) for k in range(self._width)]
            plane = parts[0] if self._width == 1 else np.asarray(np.mean(parts, axis=0))
            plane.setflags(write=False)
            self._kept[index] = plane
        self._kept.move_to_end(index)
        while len(self._kept) > KEPT_PLANES:
            self._kept.popitem(last=False)
        return self._kept[index]

    def stored(self, plane: Plane, before: int, after: int, t: float) -> Plane:
        """What files of slabs would hold is not known: they are rounded to whole HU."""
        if self._width > 1:
            return np.asarray(np.rint(plane))
        return self.series.stored(plane, before, after, t)


LINEAR, DIS = "linear", "dis"
# Is a gain nothing but smoothing? The width is near the best one on the series it was tried on.
SMOOTHED, SMOOTHED_SIGMA = "linear, smoothed", 0.7
CLASSICAL = ("nearest", LINEAR, SMOOTHED, "cubic", "spline", DIS)
# Received slices with a smaller weight change the spline by less than 0.1 HU.
LEAST_WEIGHT = 3e-5


@dataclass(frozen=True, eq=False)
class Place:
    """Where a slice is to be made: a gap of a cut, what lies around it, and t."""

    cut: Cut
    gap: int
    near: Neighbourhood
    t: float


@dataclass(frozen=True)
class Way:
    """How the model is run, and whether its slices are shown."""

    limits: Limits
    at_once: int = 1  # gaps, as the node runs them
    pictures: bool = False


Method = Callable[[Place], Plane]


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


def neighbourhood(cut: Cut, gap: int) -> Neighbourhood:
    """The four received slices around a gap; flow is searched for as OpenCV's preset does it."""
    needs = tuple(i for i in range(gap - 1, gap + 3) if 0 <= i < len(cut.volume))
    slices = {index: cut.volume.read(index) for index in needs}
    near = Neighbourhood.of(Step(needs, gap), Window(cut.volume.geometry, slices))
    return replace(near, search=MEDIUM)


def smoothed_linear(place: Place) -> Plane:
    """The control: what a Gaussian makes of linear interpolation."""
    plane = classical.linear(place.near, place.t)
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), SMOOTHED_SIGMA), np.float32)


def spline(place: Place) -> Plane:
    """The natural cubic spline through every received slice, each in the frame of the made one."""
    geometry = place.cut.volume.geometry
    weights = _weights(tuple(geometry.distances_mm.tolist()), place.gap, place.t)
    at_c = geometry.shift_pixels(place.gap, place.gap + 1)
    total = np.zeros((geometry.rows, geometry.columns), np.float32)
    for index in np.flatnonzero(np.abs(weights) > LEAST_WEIGHT).tolist():
        offset = on_line(at_c, geometry.shift_pixels(place.gap, index), place.t)
        total += weights[index] * shifted(place.cut.volume.read(index), offset)
    return total


@lru_cache(maxsize=512)
def _weights(places: tuple[float, ...], gap: int, t: float) -> NDArray[np.float32]:
    return spline_weights(np.array(places), gap, t)


def spline_weights(places: NDArray[np.float64], gap: int, t: float) -> NDArray[np.float32]:
    """(n,): how much of each of n values the natural cubic spline takes at `t` of a gap.

    Second derivatives m solve h0 m0 + 2 (h0 + h1) m1 + h1 m2 = 6 (slope1 - slope0) at each inner
    place and are 0 at the ends (de Boor, A Practical Guide to Splines, chapter IV).
    """
    count, gaps = len(places), np.diff(places)
    values = np.eye(count)
    slopes = np.diff(values, axis=0) / gaps[:, None]
    left, right = np.eye(count), np.zeros((count, count))
    for i in range(1, count - 1):
        left[i, i - 1 : i + 2] = gaps[i - 1], 2.0 * (gaps[i - 1] + gaps[i]), gaps[i]
        right[i] = 6.0 * (slopes[i] - slopes[i - 1])
    bends = np.linalg.solve(left, right)
    u, h = 1.0 - t, gaps[gap]
    weights = u * values[gap] + t * values[gap + 1]
    weights = weights + h * h / 6.0 * ((u**3 - u) * bends[gap] + (t**3 - t) * bends[gap + 1])
    return np.asarray(weights, np.float32)


def predictions(
    model: Model, cut: Cut, way: Way, asked: Mapping[int, tuple[float, ...]]
) -> Iterator[tuple[int, Prediction]]:
    """What the node's runner makes of the asked places in gaps, in the order of the gaps.

    The model plans for the whole stack; the gaps without a target are left out of its plan, which
    changes nothing, because it keeps no state between two gaps.
    """
    kept = []
    for step in model.plan(cut.volume.geometry, cut.parameters):
        if step.gap is None:
            kept.append(step)
        elif step.gap in asked:
            kept.append(replace(step, fractions=asked[step.gap]))
    runner = Runner(model, cut.volume, way.limits, way.at_once)
    for step, prediction in runner.predictions(kept, cancelled=lambda: False):
        if step.gap is not None:
            yield step.gap, prediction


# Plain torch is eager, float32, every core in each convolution. What is compared is measured in
# the same run and in turns, so that a busy machine is busy for both.

TIMED_SIDE = 512
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


def network_speed(
    weights: Path | None = None, *, rounds: int = ROUNDS, side: int = TIMED_SIDE
) -> Speed:
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


LOW_HU, HIGH_HU = -1100.0, 500.0
ERROR_HU = 250.0  # where the colour of an error ends
PICTURE_SIDE = 400  # pixels
QUALITY = 85
# Too low, no difference, too high: blue, black, orange, as OpenCV orders the channels.
TOO_LOW = np.array([248.0, 189.0, 56.0], np.float32)
TOO_HIGH = np.array([60.0, 146.0, 251.0], np.float32)


@dataclass(frozen=True)
class Picture:
    """One JPEG with what it shows."""

    title: str
    note: str
    jpeg: bytes


@dataclass(frozen=True)
class Panel:
    """The pictures of one target."""

    target: int
    gain_db: float  # of the model over linear
    what: str  # which of the cell's targets this is
    pictures: tuple[Picture, ...]


def panel_of(
    truth: Plane, planes: Mapping[str, Plane], psnr_db: Mapping[str, float]
) -> tuple[Picture, ...]:
    """The truth and every plane, each with its signed error."""
    found = [Picture("truth", "the slice that was left out", _shown(truth))]
    for name, plane in planes.items():
        error = float(np.sqrt(np.square(plane - truth).mean(dtype=np.float64)))
        note = f"{psnr_db[name]:.2f} dB, RMS error {error:.0f} HU"
        found.append(Picture(name, note, _shown(plane)))
        colours = "blue too low, orange too high"
        found.append(Picture(f"{name} - truth", colours, _difference(plane - truth)))
    return tuple(found)


def chosen(panels: Sequence[Panel]) -> tuple[Panel, ...]:
    """The usual and the worst of a cell, by the gain over linear."""
    if not panels:
        return ()
    ordered = sorted(panels, key=lambda panel: panel.gain_db)
    usual, worst = ordered[len(ordered) // 2], ordered[0]
    named = [(usual, "median gain"), (worst, "least gain")]
    return tuple(
        Panel(panel.target, panel.gain_db, what, panel.pictures)
        for panel, what in (named if usual is not worst else named[1:])
    )


def _shown(plane: Plane) -> bytes:
    scaled = (plane - LOW_HU) * (255.0 / (HIGH_HU - LOW_HU))
    return _jpeg(np.asarray(np.clip(scaled, 0.0, 255.0), np.uint8))


def _difference(error: Plane) -> bytes:
    share = np.clip(error / ERROR_HU, -1.0, 1.0)[..., None]
    colours = np.where(share < 0.0, -share * TOO_LOW, share * TOO_HIGH)
    return _jpeg(np.asarray(colours, np.uint8))


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    scale = PICTURE_SIDE / max(image.shape[:2])
    if scale < 1.0:
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return encoded.tobytes()


# A cell is one series, one mode and one factor. Every method predicts the same targets; all gains
# are over shift-corrected linear interpolation of them; whole slices, window -1024 to 2048 HU.
# The model runs through the node's own runner, and its slices are judged as they would be stored.

SHIPPED = "shipped"


@dataclass(frozen=True, eq=False)
class Asked:
    """A cell to evaluate, with the model that is judged on it."""

    series: ThinSeries
    anatomy: Anatomy
    mode: Mode
    factor: int
    model: Callable[[], Model]
    weights: str = SHIPPED  # or which others


@dataclass(frozen=True)
class Kind:
    """What the figures due to a cell depend on."""

    series: str
    mode: Mode
    factor: int
    gap_mm: float
    spacing_mm: float
    anatomy: Anatomy
    size: tuple[int, int]
    weights: str

    @property
    def name(self) -> str:
        if self.mode == "left-out":
            return f"{self.series}, each slice left out"
        return f"{self.series} {self.factor}x, {self.gap_mm:g} mm{' slab' * (self.mode == 'slab')}"

    @property
    def title(self) -> str:
        """The name, with the weights where they are not simply those of the product."""
        return self.name if self.weights == SHIPPED else f"{self.name} ({self.weights})"


@dataclass(frozen=True)
class Cell:
    """What was found on one cell."""

    kind: Kind
    targets: tuple[int, ...]  # thin slices
    model: str  # the name of its method
    weights_sha256: str
    methods: Mapping[str, Figures]
    confidence: Confidence | None
    gains_db: tuple[float, ...]  # of the model over linear, one a target
    panels: tuple[Panel, ...] = field(default=(), repr=False)

    @property
    def ours(self) -> Figures:
        return self.methods[self.model]

    def as_json(self) -> dict[str, object]:
        """Plain values alone; pictures are for the page."""
        values = {key: asdict(self)[key] for key in asdict(self) if key not in ("panels", "kind")}
        return {**asdict(self.kind), **values}


@dataclass(frozen=True)
class EvaluationProgress:
    """Slices predicted so far, of all."""

    done: int
    total: int
    what: str


Report = Callable[[EvaluationProgress], None]


def evaluate(
    asked: Sequence[Asked],
    listed: TargetList,
    *,
    targets: int = TARGETS,
    limits: Limits | None = None,
    at_once: int = 1,
    pictures: bool = False,
    progress: Report = lambda _: None,
) -> tuple[list[Cell], list[PassedOver]]:
    """The cells that were asked for, and those that a series is unsuitable for, with the reason."""
    cells: list[Cell] = []
    passed: list[PassedOver] = []
    way = Way(limits or Limits(), at_once, pictures)
    cuts = deque(_cuts(each, listed, targets, passed) for each in asked)
    total = sum(len(cut.targets) for found in cuts for cut in found)
    done = 0
    for each in asked:
        found = cuts.popleft()  # with the slices that it keeps
        kind = kind_of(each)

        def report(count: int, before: int = done, what: str = kind.name) -> None:
            progress(EvaluationProgress(before + count, total, what))

        try:
            if found:
                cells.append(_Judging(each, kind, found, way, report).judge())
        except Unprocessable as refused:
            passed.append(PassedOver(kind.name, refused.sentence))
        done += sum(len(cut.targets) for cut in found)
    return cells, passed


def _cuts(
    asked: Asked, listed: TargetList, targets: int, passed: list[PassedOver]
) -> tuple[Cut, ...]:
    reason = why_not(asked.series, asked.factor, asked.mode)
    if reason is not None:
        passed.append(PassedOver(f"{asked.series.name} {asked.factor}x {asked.mode}", reason))
        return ()
    return cuts_of(asked.series, asked.factor, asked.mode, listed, targets)


def kind_of(asked: Asked) -> Kind:
    series = asked.series
    factor = 2 if asked.mode == "left-out" else asked.factor
    return Kind(
        series=series.name,
        mode=asked.mode,
        factor=factor,
        gap_mm=round(series.spacing_mm * factor, 2),
        spacing_mm=round(series.spacing_mm, 3),
        anatomy=asked.anatomy,
        size=(series.geometry.rows, series.geometry.columns),
        weights=asked.weights,
    )


class _Judging:
    """One cell under way: every method on every target."""

    def __init__(
        self,
        asked: Asked,
        kind: Kind,
        cuts: Sequence[Cut],
        way: Way,
        report: Callable[[int], None],
    ) -> None:
        self._model = asked.model()
        self._cuts, self._way, self._report = cuts, way, report
        self._kind = kind
        self._methods = {
            name: method
            for name, method in classical_methods().items()
            if name != self._model.name or name in (LINEAR, DIS)
        }
        names = [*self._methods, self._model.name]
        self._found: dict[str, list[SliceFigures]] = {name: [] for name in names}
        self._beside: list[Beside] = []
        self._trusted: list[Trusted] = []
        self._panels: list[Panel] = []
        self._done = 0

    def judge(self) -> Cell:
        """Every target of every stack, then the time that it takes."""
        for cut in self._cuts:
            self._predict(cut)
        milliseconds = slice_times(self._model, self._methods, self._cuts[0], self._way)
        linear, dis = self._found[LINEAR], self._found[DIS]
        ours = self._found[self._model.name]
        return Cell(
            kind=self._kind,
            targets=tuple(target.index for cut in self._cuts for target in cut.targets),
            model=self._model.name,
            weights_sha256=self._model.weights_sha256,
            methods={
                name: figures_of_cell(found, linear, dis, self._beside, milliseconds[name])
                for name, found in self._found.items()
            },
            confidence=confidence_of(self._trusted),
            gains_db=tuple(a.psnr_db - b.psnr_db for a, b in zip(ours, linear, strict=True)),
            panels=chosen(self._panels),
        )

    def _predict(self, cut: Cut) -> None:
        asked = {gap: tuple(target.t for target in targets) for gap, targets in cut.by_gap()}
        made = predictions(self._model, cut, self._way, asked)
        for (gap, targets), (made_gap, prediction) in zip(cut.by_gap(), made, strict=True):
            assert gap == made_gap
            near = neighbourhood(cut, gap)
            for number, target in enumerate(targets):
                place = Place(cut, gap, near, target.t)
                planes = {name: method(place) for name, method in self._methods.items()}
                delivered = _delivered(cut, gap, prediction, number)
                planes[self._model.name] = cut.stored(delivered, gap, target.t)
                self._measure(cut, target, planes, prediction, number)
                self._done += 1
                self._report(self._done)

    def _measure(
        self,
        cut: Cut,
        target: Target,
        planes: Mapping[str, Plane],
        prediction: Prediction,
        number: int,
    ) -> None:
        judge = Judge(cut.truth(target), cut.series.pixel_mm)
        measured = {name: judge.figures_of(plane) for name, plane in planes.items()}
        for name, figures in measured.items():
            self._found[name].append(figures)
        self._beside.append(Beside(_noise_beside(cut, target)))
        ours = planes[self._model.name]
        if prediction.trust:
            own = measured[self._model.name]
            self._trusted.append(_trusted(prediction, number, ours, judge, own.body_mae_hu))
        if self._way.pictures:
            shown = {name: planes[name] for name in (LINEAR, DIS, self._model.name)}
            psnr = {name: measured[name].psnr_db for name in shown}
            pictures = panel_of(judge.truth, shown, psnr)
            gain = psnr[self._model.name] - psnr[LINEAR]
            self._panels.append(Panel(target.index, gain, "", pictures))


def _delivered(cut: Cut, gap: int, prediction: Prediction, number: int) -> Plane:
    """What the node writes where nothing else is configured: of a slice that its model is not sure
    of, the best candidate without training."""
    geometry = cut.volume.geometry
    judge = trust.Judge(Output(), geometry)
    return judge.chosen(geometry.positions[gap], number, prediction).plane


def _noise_beside(cut: Cut, target: Target) -> float | None:
    """Mean noise of the two received slices around a target, each in its own flat tissue."""
    found = []
    for place in (target.gap, target.gap + 1):
        judge = Judge(cut.volume.read(place), cut.series.pixel_mm)
        found.append(noise_hu(judge.truth, judge.flat))
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known else None


def _trusted(
    prediction: Prediction, number: int, plane: Plane, judge: Judge, true_error_hu: float
) -> Trusted:
    said = prediction.trust[number]
    coverage = None
    if prediction.scale_hu and judge.body.any():
        inside = np.abs(plane - judge.truth) <= said.interval * prediction.scale_hu[number]
        coverage = float(inside[judge.body].mean())
    return Trusted(said.error_hu, true_error_hu, said.confidence, coverage)
