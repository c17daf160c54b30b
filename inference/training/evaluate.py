"""How good a generator is on thin series whose slices are left out and predicted again.

A cell is one series, one mode and one factor. Every method predicts the same targets; all gains are
over shift-corrected linear interpolation of them; whole slices, window -1024 to 2048 HU. The model
runs through the node's own runner, and its slices are judged as they would be stored.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from inference import trust
from inference.errors import Unprocessable
from inference.model import Limits, Model, Prediction
from inference.request import Output
from inference.training.anatomy import Anatomy
from inference.training.cuts import Cut, Mode, Target, cuts_of, why_not
from inference.training.methods import (
    DIS,
    LINEAR,
    Place,
    Way,
    classical_methods,
    neighbourhood,
    predictions,
)
from inference.training.metrics import Judge, SliceFigures, noise_hu
from inference.training.pictures import Panel, chosen, panel_of
from inference.training.speed import slice_times
from inference.training.summary import (
    Beside,
    Confidence,
    Figures,
    Trusted,
    confidence_of,
    figures_of_cell,
)
from inference.training.targets import TARGETS, TargetList
from inference.training.thin import PassedOver, ThinSeries
from inference.volume import Plane

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
class Progress:
    """Slices predicted so far, of all."""

    done: int
    total: int
    what: str


Report = Callable[[Progress], None]


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
            progress(Progress(before + count, total, what))

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
