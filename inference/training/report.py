"""The report of an evaluation: rows, tables, and one HTML page that needs nothing but itself."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

from inference.errors import Unprocessable
from inference.model import Limits, Model
from inference.models.midslice import Midslice
from inference.pictures import page
from inference.runner import share_cores
from inference.training.data import (
    TRAIN_PART,
    NothingToJudge,
    PassedOver,
    ThinSeries,
    nothing_in,
    open_series,
)
from inference.training.evaluate import (
    DIS,
    LINEAR,
    SHIPPED,
    CellKind,
    CellRequest,
    EvaluatedCell,
    Report,
    evaluate,
    kind_of,
    network_speed,
)
from inference.training.gates import (
    FOLDS,
    Row,
    Summed,
    factors_due,
    fold_of,
    how_to_measure,
    rows_of,
    speed_row,
    summed,
)
from inference.training.leave_out import (
    TARGETS,
    Mode,
    SeriesTargets,
    TargetList,
    drawn_targets,
    slices_left,
)
from inference.training.metrics import Figures, anatomy_of

VALIDATE_PART = "ct-validate"
KNOWN = ", trained on it"  # no proof of anything, and every table says so
# Judged for its own row, never trained on: a head with a tilted gantry and unequal gaps.
TILTED_HEAD = Path("edge-cases") / "ge-head-tilt-irregular"
TEMPLATE = Path(__file__).with_name("evaluation.html")
CHART_WIDTH, CHART_HEIGHT = 640, 120  # of the drawing, in its own units
LEAST_DB, MOST_DB = -1.0, 5.0  # what the chart shows of gains

COLUMNS = (
    "series",
    "cell",
    "method",
    "PSNR dB",
    "over linear [worst]",
    "95 %",
    "over DIS [worst]",
    "SSIM",
    "soft dB SSIM",
    "body MAE",
    "edge MAE",
    "gradient",
    "noise",
    "SNLI",
    "bias",
    "LAA (off)",
    "below linear",
    "below DIS",
    "ms (CPU)",
)
OVERVIEW_COLUMNS = (
    "cell",
    "weights",
    "DIS over linear",
    "over linear [worst]",
    "95 %",
    "over DIS [worst]",
    "body MAE",
    "bias",
    "noise (linear)",
    "LAA off (linear)",
    "Spearman",
    "predicted / true",
    "90 % covers",
)
CONFIDENCE_COLUMNS = ("cell", "Spearman", "predicted / true", "90 % covers", "least", "mean")
GATE_COLUMNS = ("figure", "due", "worst", "in", "passed", "verdict")
MISSED_COLUMNS = ("missed", "in", "figure", "due", "note")
LEGEND = (
    "PSNR and SSIM in -1024..2048 HU, soft in -160..240; MAE and bias in HU, in the body, on "
    "its edges; gradient, noise: of edges and flat tissue, over the truth's; SNLI: change of noise "
    "to the slices beside; LAA: share of lung below -950 HU, in brackets how far from the truth's; "
    "below: share of slices, in brackets by more than 0.3 dB; ms: of a slice, surveys included, "
    "in brackets the processor time of all cores"
)

# Loads the model that is judged: its own weights for None, else those of a file.
Load = Callable[[Path | None], Model]


def table_rows(cells: Sequence[EvaluatedCell]) -> list[tuple[str, ...]]:
    """One row a cell and method, in the order of COLUMNS."""
    return [_row(cell, method, it) for cell in cells for method, it in cell.methods.items()]


def _row(cell: EvaluatedCell, method: str, it: Figures) -> tuple[str, ...]:
    low, high = it.over_linear_interval_db
    return (
        cell.kind.series,
        _cell_name(cell),
        method,
        f"{it.psnr_db:.2f}",
        f"{it.over_linear_db:+.2f} [{it.worst_over_linear_db:+.2f}]",
        f"{low:+.2f} {high:+.2f}",
        f"{it.over_dis_db:+.2f} [{it.worst_over_dis_db:+.2f}]",
        f"{it.ssim:.4f}",
        f"{it.psnr_soft_db:.2f} {it.ssim_soft:.3f}",
        f"{it.body_mae_hu:.1f}",
        _number(it.edge_mae_hu, ".1f"),
        _number(it.gradient_ratio, ".2f"),
        _number(it.noise_ratio, ".2f"),
        _number(it.noise_step, ".2f"),
        f"{it.body_bias_hu:+.1f}",
        f"{_number(it.laa_950, '.1%')} ({_number(it.laa_950_off, '.1%')})",
        f"{it.below_linear:.0%} ({it.notably_below_linear:.0%})",
        f"{it.below_dis:.0%} ({it.notably_below_dis:.0%})",
        f"{it.ms_per_slice:.0f} ({it.cpu_ms_per_slice:.0f})",
    )


def _cell_name(cell: EvaluatedCell) -> str:
    kind = cell.kind
    if kind.mode == "left-out":
        return f"left out, {kind.gap_mm:g} mm"
    return f"{kind.factor}x{' slab' * (kind.mode == 'slab')}, {kind.gap_mm:g} mm"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def overview_rows(cells: Sequence[EvaluatedCell]) -> list[tuple[str, ...]]:
    """One row a cell, of the model alone beside linear and DIS."""
    return [_overview(cell) for cell in cells]


def _overview(cell: EvaluatedCell) -> tuple[str, ...]:
    it, linear, sure = cell.ours, cell.methods[LINEAR], cell.confidence
    low, high = it.over_linear_interval_db
    laa = f"{_number(it.laa_950_off, '.2%')} ({_number(linear.laa_950_off, '.2%')})"
    return (
        cell.kind.name,
        cell.kind.weights,
        f"{cell.methods[DIS].over_linear_db:+.2f}",
        f"{it.over_linear_db:+.2f} [{it.worst_over_linear_db:+.2f}]",
        f"{low:+.2f} {high:+.2f}",
        f"{it.over_dis_db:+.2f} [{it.worst_over_dis_db:+.2f}]",
        f"{it.body_mae_to_linear:+.0%}",
        f"{it.body_bias_hu:+.1f}",
        f"{_number(it.noise_ratio, '.2f')} ({_number(linear.noise_ratio, '.2f')})",
        laa if cell.kind.anatomy == "chest" else "",  # a sinus is no lung
        _number(sure.spearman if sure else None, ".2f"),
        _number(sure.predicted_to_true if sure else None, ".2f"),
        _number(sure.coverage if sure else None, ".0%"),
    )


def confidence_rows(cells: Sequence[EvaluatedCell]) -> list[tuple[str, ...]]:
    """One row a cell of a model that says how sure it is."""
    return [
        (
            cell.kind.name,
            _number(it.spearman, ".2f"),
            f"{it.predicted_to_true:.2f}",
            _number(it.coverage, ".1%"),
            f"{it.least:.2f}",
            f"{it.mean:.2f}",
        )
        for cell in cells
        if (it := cell.confidence) is not None
    ]


def gate_rows(summed: Sequence[Summed]) -> list[tuple[str, ...]]:
    """One row a figure, over all its cells."""
    return [
        (it.title, it.due, it.worst, it.where, f"{it.passed}/{it.cells}", it.verdict)
        for it in summed
    ]


def missed_rows(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """One row a cell that missed a figure."""
    return [
        (row.title, row.cell, row.figure, row.due, row.note)
        for row in rows
        if row.verdict == "missed"
    ]


def not_measured(rows: Sequence[Row]) -> list[str]:
    """One sentence for each way to measure what was not."""
    count: dict[str, int] = {}
    for row in rows:
        if row.verdict == "not measured":
            count[row.note] = count.get(row.note, 0) + 1
    return [f"not measured ({times} figures): {note}" for note, times in count.items()]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def card(cells: Sequence[EvaluatedCell], rows: Sequence[Row]) -> str:
    """The tables of a model card, as Markdown: every cell in a row, every figure that is due, and
    all methods on the cells of the shipped weights."""
    shipped = [cell for cell in cells if cell.kind.weights.startswith(SHIPPED)]
    parts = [markdown(OVERVIEW_COLUMNS, overview_rows(cells))]
    if rows:
        parts.append(markdown(GATE_COLUMNS, gate_rows(summed(rows))))
    if missed := missed_rows(rows):
        parts.append(markdown(MISSED_COLUMNS, missed))
    parts += [f"{sentence}\n" for sentence in not_measured(rows)]
    parts += [markdown(COLUMNS, table_rows(shipped)), f"{LEGEND}.\n"]
    return "\n".join(parts)


@dataclass(frozen=True)
class StudyRequest:
    """The series, factors and weights to evaluate."""

    data: Path
    factors: tuple[int, ...] = (2, 4)
    slab: bool = False  # also with slices averaged to slabs
    gates: bool = False  # also every cell that a figure is due in
    targets: int = TARGETS
    weights: Path | None = None  # other ones than the model's own
    folds: Path = FOLDS
    pictures: bool = False


@dataclass(frozen=True)
class Study:
    """The cells of an evaluation, and how they stand against the figures that are due."""

    model: str
    version: str
    weights_sha256: str
    request: StudyRequest
    cells: tuple[EvaluatedCell, ...]
    passed_over: tuple[PassedOver, ...]
    rows: tuple[Row, ...]  # of the gates; empty where they were not asked for

    def as_json(self) -> dict[str, object]:
        """Plain values alone, for json.dumps."""
        return {
            "model": self.model,
            "version": self.version,
            "weights_sha256": self.weights_sha256,
            "cells": [cell.as_json() for cell in self.cells],
            "passed_over": [asdict(passed) for passed in self.passed_over],
            "gates": [asdict(row) for row in self.rows],
        }


def run(
    request: StudyRequest,
    load: Load,
    listed: TargetList,
    *,
    limits: Limits | None = None,
    progress: Report = lambda _: None,
) -> Study:
    """Raises NothingToJudge, with every reason, where no series of the folder serves."""
    loaded = cache(load)
    model = loaded(None)
    series, passed = series_of(request)
    requests, lacking = _requests(request, series, loaded, passed)
    cells, unsuitable = evaluate(
        requests,
        listed,
        targets=request.targets,
        limits=limits or Limits(),
        at_once=share_cores(model, 0),
        pictures=request.pictures,
        progress=progress,
    )
    passed += unsuitable
    if not cells and not lacking:
        raise NothingToJudge(nothing_in(request.data, passed))

    def how(name: str) -> str:
        return how_to_measure(name, request.data, request.folds)

    rows = rows_of(cells, lacking, how) if request.gates else ()
    if request.gates and model.name == Midslice.name:
        rows += (speed_row(network_speed(request.weights)),)
    return Study(
        model=model.name,
        version=model.version,
        weights_sha256=model.weights_sha256,
        request=request,
        cells=tuple(cells),
        passed_over=tuple(passed),
        rows=rows,
    )


def series_of(request: StudyRequest) -> tuple[list[ThinSeries], list[PassedOver]]:
    """The series below the folder; of a data set in parts those that are held out, and for the
    gates also those trained on and the tilted head."""
    root = request.data
    if not (root / VALIDATE_PART).is_dir():
        return open_series(root)
    parts = [root / VALIDATE_PART]
    if request.gates:
        further = (root / TRAIN_PART, root / TILTED_HEAD)
        parts += [part for part in further if part.is_dir()]
    series, passed = [], []
    for part in parts:
        opened, faults = open_series(part)
        series += opened
        passed += faults
    return series, passed


def _requests(
    study: StudyRequest, series: Sequence[ThinSeries], load: Load, passed: list[PassedOver]
) -> tuple[list[CellRequest], list[CellKind]]:
    """The cells to evaluate, and those that lack the weights of a fold."""
    requests: list[CellRequest] = []
    lacking: list[CellKind] = []
    for thin in series:
        fold = fold_of(study.folds, thin.name)
        folded = study.gates and thin.trained_on
        weights = fold if folded else None
        is_known = thin.trained_on and study.weights is None
        label = f"trained without {thin.name}" if folded else SHIPPED + KNOWN * is_known
        try:
            anatomy = anatomy_of(thin)
        except Unprocessable as refused:
            passed.append(PassedOver(thin.name, refused.sentence))
            continue
        cells = [
            CellRequest(thin, anatomy, mode, factor, partial(load, weights), label)
            for mode, factor in _cells(study, thin, anatomy, folded=folded)
        ]
        if folded and not fold.is_file():
            lacking += map(kind_of, cells)
        else:
            requests += cells
    return requests, lacking


def _cells(
    study: StudyRequest, series: ThinSeries, anatomy: str, *, folded: bool
) -> tuple[tuple[Mode, int], ...]:
    """An uneven series is judged slice by slice; an even one at factors, those asked for first."""
    if not series.is_even:
        return (("left-out", 2),)
    modes: tuple[Mode, ...] = ("sub-sampled", "slab") if study.slab else ("sub-sampled",)
    cells = [] if folded else [(mode, factor) for mode in modes for factor in study.factors]
    if study.gates:
        cells += factors_due(series.spacing_mm, anatomy)
    return tuple(dict.fromkeys(cells))


def list_of(request: StudyRequest) -> list[SeriesTargets]:
    """The targets of every series and factor of a folder, drawn by the rule, to be kept."""
    series, _ = series_of(replace(request, gates=True))
    drawn = {
        (thin.name, slices, factor): drawn_targets(thin.name, slices, factor)
        for thin in series
        if thin.is_even
        for factor in range(2, 11)
        for slices in {slices_left(thin, factor, mode) for mode in ("sub-sampled", "slab")}
        if slices > factor
    }
    return [SeriesTargets(*key, targets) for key, targets in drawn.items() if targets]


@dataclass(frozen=True)
class Dot:
    """One target in the chart of a cell: its place there, and whether it lies below linear."""

    x: float
    y: float
    is_below: bool
    title: str


@dataclass(frozen=True)
class CellSection:
    """One cell, as the page shows it."""

    cell: EvaluatedCell
    rows: list[tuple[str, ...]]
    dots: tuple[Dot, ...]


def page_of(study: Study) -> str:
    """The whole page; every text in it is escaped."""
    return page(
        TEMPLATE,
        {
            "study": study,
            "LEGEND": LEGEND,
            "COLUMNS": COLUMNS,
            "GATE_COLUMNS": GATE_COLUMNS,
            "MISSED_COLUMNS": MISSED_COLUMNS,
            "CONFIDENCE_COLUMNS": CONFIDENCE_COLUMNS,
            "sections": [CellSection(cell, _rows(cell), _dots(cell)) for cell in study.cells],
            "confidence": confidence_rows(study.cells),
            "gates": summed(study.rows),
            "missed": missed_rows(study.rows),
            "not_measured": not_measured(study.rows),
            "width": CHART_WIDTH,
            "height": CHART_HEIGHT,
            "zero": _height(0.0),
        },
    )


def _rows(cell: EvaluatedCell) -> list[tuple[str, ...]]:
    """Without the series and the cell, which stand above the table."""
    return [row[2:] for row in table_rows([cell])]


def _dots(cell: EvaluatedCell) -> tuple[Dot, ...]:
    """The gain of each target, in the order of the slices."""
    step = CHART_WIDTH / max(1, len(cell.gains_db))
    return tuple(
        Dot((place + 0.5) * step, _height(gain), gain < 0.0, f"slice {target}: {gain:+.2f} dB")
        for place, (target, gain) in enumerate(zip(cell.targets, cell.gains_db, strict=True))
    )


def _height(gain_db: float) -> float:
    share = (min(max(gain_db, LEAST_DB), MOST_DB) - LEAST_DB) / (MOST_DB - LEAST_DB)
    return round(CHART_HEIGHT * (1.0 - share), 1)
