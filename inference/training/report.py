"""The report of an evaluation: rows, tables, and one HTML page that needs nothing but itself."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from inference.errors import Unprocessable
from inference.model import Limits, Model
from inference.models.midslice import Midslice
from inference.previews import page
from inference.runner import share_cores
from inference.training.data import (
    TRAIN_PART,
    NoSeries,
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
    RunOptions,
    evaluate,
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
from inference.training.metrics import Confidence, Figures, anatomy_of
from inference.training.peers import load_peers
from inference.training.reader import ReaderFigures
from inference.training.reliability import LARGE_HU, WITHIN_HU, MapBounds, ReliabilityBand

T = TypeVar("T")

VALIDATE_PART = "ct-validate"
KNOWN = ", trained on it"  # no proof of anything, and every table says so
# Judged for its own row, never trained on: a head with a tilted gantry and unequal gaps.
TILTED_HEAD = Path("edge-cases") / "ge-head-tilt-irregular"
TEMPLATE = Path(__file__).with_name("evaluation.html")
CHART_WIDTH, CHART_HEIGHT = 640, 120  # of the drawing, in its own units
LEAST_DB, MOST_DB = -1.0, 5.0  # what the chart shows of gains

LEGEND = (
    "PSNR and SSIM in -1024..2048 HU, soft in -160..240; MAE and bias in HU, in the body, on "
    "its edges; gradient, noise: of edges and flat tissue, over the truth's; SNLI: change of noise "
    "to the slices beside; LAA: share of lung below -950 HU, in brackets how far from the truth's; "
    "below: share of slices, in brackets by more than 0.3 dB; ms: of a slice, surveys included, "
    "in brackets the processor time of all cores"
)

READER_LEGEND = (
    "vessels: bright ridges in the lung (Hessian, 1 to 2 mm), share of the truth's kept, and share "
    "of its own that the truth has not, to a pixel; nodules: simulated, solid, centred in the "
    "slice that was left out, share found by one detector, in brackets by diameter 4, 6, 8, 10 mm; "
    "contrast: of these, over the truth's; sharpness: gradient of edges, over the truth's; noise "
    "power: by octave from fine to coarse, over the truth's"
)

# Loads the model that is judged: its own weights for None, else those of a file.
Load = Callable[[Path | None], Model]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


# The columns of a table: the head of each, and the text below it.
FIGURES: Mapping[str, Callable[[Figures], str]] = {
    "PSNR dB": lambda it: f"{it.psnr_db:.2f}",
    "over linear [worst]": lambda it: f"{it.over_linear_db:+.2f} [{it.worst_over_linear_db:+.2f}]",
    "95 %": lambda it: "{:+.2f} {:+.2f}".format(*it.over_linear_interval_db),
    "over DIS [worst]": lambda it: f"{it.over_dis_db:+.2f} [{it.worst_over_dis_db:+.2f}]",
    "SSIM": lambda it: f"{it.ssim:.4f}",
    "soft dB SSIM": lambda it: f"{it.psnr_soft_db:.2f} {it.ssim_soft:.3f}",
    "body MAE": lambda it: f"{it.body_mae_hu:.1f}",
    "edge MAE": lambda it: _number(it.edge_mae_hu, ".1f"),
    "gradient": lambda it: _number(it.gradient_ratio, ".2f"),
    "noise": lambda it: _number(it.noise_ratio, ".2f"),
    "SNLI": lambda it: _number(it.noise_step, ".2f"),
    "bias": lambda it: f"{it.body_bias_hu:+.1f}",
    "LAA (off)": lambda it: f"{_number(it.laa_950, '.1%')} ({_number(it.laa_950_off, '.1%')})",
    "below linear": lambda it: f"{it.below_linear:.0%} ({it.notably_below_linear:.0%})",
    "below DIS": lambda it: f"{it.below_dis:.0%} ({it.notably_below_dis:.0%})",
    "ms (CPU)": lambda it: f"{it.ms_per_slice:.0f} ({it.cpu_ms_per_slice:.0f})",
}
CONFIDENCE: Mapping[str, Callable[[Confidence], str]] = {
    "Spearman": lambda it: _number(it.spearman, ".2f"),
    "predicted / true": lambda it: f"{it.predicted_to_true:.2f}",
    "90 % covers": lambda it: _number(it.coverage, ".1%"),
    "least": lambda it: f"{it.least:.2f}",
    "mean": lambda it: f"{it.mean:.2f}",
}
OVERVIEW: Mapping[str, Callable[[EvaluatedCell], str]] = {
    "cell": lambda it: it.kind.name,
    "weights": lambda it: it.kind.weights,
    "DIS over linear": lambda it: f"{it.methods[DIS].over_linear_db:+.2f}",
    "over linear [worst]": lambda it: FIGURES["over linear [worst]"](it.ours),
    "95 %": lambda it: FIGURES["95 %"](it.ours),
    "over DIS [worst]": lambda it: FIGURES["over DIS [worst]"](it.ours),
    "body MAE": lambda it: f"{it.ours.body_mae_to_linear:+.0%}",
    "bias": lambda it: FIGURES["bias"](it.ours),
    "noise (linear)": lambda it: _beside_linear(it, "noise_ratio", ".2f"),
    "LAA off (linear)": lambda it: (
        # A sinus is no lung.
        _beside_linear(it, "laa_950_off", ".2%") if it.kind.anatomy == "chest" else ""
    ),
    "Spearman": lambda it: _number(getattr(it.confidence, "spearman", None), ".2f"),
    "predicted / true": lambda it: _number(
        getattr(it.confidence, "predicted_to_true", None), ".2f"
    ),
    "90 % covers": lambda it: _number(getattr(it.confidence, "coverage", None), ".0%"),
}
SUMMED: Mapping[str, Callable[[Summed], str]] = {
    "figure": lambda it: it.title,
    "due": lambda it: it.due,
    "worst": lambda it: it.worst,
    "in": lambda it: it.where,
    "passed": lambda it: f"{it.passed}/{it.cells}",
    "verdict": lambda it: it.verdict,
}
RELIABILITY: Mapping[str, Callable[[ReliabilityBand], str]] = {
    "expected, HU": lambda it: it.name,
    "squares": lambda it: f"{it.squares}",
    "mean expected": lambda it: f"{it.expected_hu:.1f}",
    "mean true": lambda it: f"{it.true_hu:.1f}",
    "60 HU and more": lambda it: f"{it.far:.0%}",
}
READER: Mapping[str, Callable[[ReaderFigures], str]] = {
    "vessels kept": lambda it: _number(it.vessels_kept, ".0%"),
    "invented": lambda it: _number(it.vessels_invented, ".1%"),
    "nodules found": lambda it: (
        f"{_number(it.nodules_found, '.0%')} "
        f"({', '.join(format(of.found, '.0%') for of in it.nodules)})"
    ),
    "contrast": lambda it: _number(it.nodule_contrast, ".2f"),
    "sharpness": lambda it: _number(it.edge_sharpness, ".2f"),
    "noise power": lambda it: " ".join(_number(power, ".2f") for power in it.noise_power),
    "LAA off": lambda it: _number(it.laa_950_off, ".2%"),
}
# Which way is better, for the comparison with linear: up, down, or near to 1.
READER_COMPARED: Mapping[str, Callable[[ReaderFigures], float | None]] = {
    "vessels kept": lambda it: it.vessels_kept,
    "invented": lambda it: None if it.vessels_invented is None else -it.vessels_invented,
    "nodules found": lambda it: it.nodules_found,
    "contrast": lambda it: it.nodule_contrast,
    "sharpness": lambda it: it.edge_sharpness,
    "noise power": lambda it: _off(it.noise_power),
    "LAA off": lambda it: None if it.laa_950_off is None else -it.laa_950_off,
}
MAP_BOUNDS: Mapping[str, Callable[[MapBounds], str]] = {
    **{
        f"said within {limit:g} HU: are": (
            lambda it, at=at: (  # type: ignore[misc]  # a default binds the place
                f"{_number(it.within[at], '.1%')} (of {it.said_within[at]:.0%})"
            )
        )
        for at, limit in enumerate(WITHIN_HU)
    },
    f"errors over {LARGE_HU:g} HU: said so": lambda it: (
        f"{_number(it.large_said, '.1%')} (by {it.said_large:.0%})"
    ),
    "verdict": lambda it: "holds" if it.holds else "missed",
}
COLUMNS = ("series", "cell", "method", *FIGURES)
BOUNDS_COLUMNS = ("cell", *MAP_BOUNDS)
READER_COLUMNS = ("cell", "gap / thickness", "method", *READER)
PEER_COLUMNS = ("peer", "processor minutes", "steps", "trained on")
CONFIDENCE_COLUMNS = ("cell", *CONFIDENCE)
RELIABILITY_COLUMNS = ("cell", *RELIABILITY)
OVERVIEW_COLUMNS, GATE_COLUMNS = tuple(OVERVIEW), tuple(SUMMED)
MISSED_COLUMNS = ("missed", "in", "figure", "due", "note")


def _row(columns: Mapping[str, Callable[[T], str]], it: T) -> tuple[str, ...]:
    return tuple(text(it) for text in columns.values())


def _beside_linear(cell: EvaluatedCell, figure: str, form: str) -> str:
    ours, linear = (getattr(it, figure) for it in (cell.ours, cell.methods[LINEAR]))
    return f"{_number(ours, form)} ({_number(linear, form)})"


def table_rows(cells: Sequence[EvaluatedCell]) -> list[tuple[str, ...]]:
    """One row a cell and method, in the order of COLUMNS."""
    return [
        (cell.kind.series, _cell_name(cell), method, *_row(FIGURES, it))
        for cell in cells
        for method, it in cell.methods.items()
    ]


def _cell_name(cell: EvaluatedCell) -> str:
    kind = cell.kind
    if kind.mode == "left-out":
        return f"left out, {kind.gap_mm:g} mm"
    return f"{kind.factor}x{' slab' * (kind.mode == 'slab')}, {kind.gap_mm:g} mm"


def confidence_rows(cells: Sequence[EvaluatedCell]) -> list[tuple[str, ...]]:
    """One row a cell of a model that says how sure it is."""
    return [(cell.kind.name, *_row(CONFIDENCE, it)) for cell in cells if (it := cell.confidence)]


def reliability_rows(cells: Sequence[EvaluatedCell]) -> list[tuple[str, ...]]:
    """Expected and true error of squares of the map: one row a cell and band."""
    return [
        (cell.kind.name, *_row(RELIABILITY, band)) for cell in cells for band in cell.reliability
    ]


def _off(powers: Sequence[float | None]) -> float | None:
    """The distance from the truth's noise, as the mean of octaves; less is better."""
    known = [abs(power - 1.0) for power in powers if power is not None]
    return -sum(known) / len(known) if known else None


def reader_rows(cells: Sequence[EvaluatedCell]) -> list[tuple[str, ...]]:
    """One row a cell of a chest and method, in the order of READER_COLUMNS."""
    return [
        (cell.kind.name, _number(cell.gap_to_thickness, ".1f"), method, *_row(READER, it))
        for cell in cells
        for method, it in cell.reader.items()
    ]


def worse_than_linear(cell: EvaluatedCell) -> tuple[str, ...]:
    """The figures of what a reader looks at in which the model is worse than linear."""
    if not cell.reader:
        return ()
    ours, linear = cell.reader[cell.model], cell.reader[LINEAR]
    worse = []
    for name, figure in READER_COMPARED.items():
        own, other = figure(ours), figure(linear)
        if own is not None and other is not None and own < other:
            worse.append(name)
    return tuple(worse)


def worse_sentences(cells: Sequence[EvaluatedCell]) -> list[str]:
    """One sentence a cell of a chest."""
    return [
        f"{cell.kind.name}: {cell.model} worse than linear in: "
        f"{', '.join(worse_than_linear(cell)) or 'nothing'}"
        for cell in cells
        if cell.reader
    ]


def peer_rows(cells: Sequence[EvaluatedCell]) -> list[tuple[str, ...]]:
    """How each trained peer came about."""
    facts = dict.fromkeys(peer for cell in cells for peer in cell.peers)
    return [
        (it.name, f"{it.processor_minutes:.1f}", f"{it.steps}", ", ".join(it.patients))
        for it in facts
    ]


def bounds_rows(cells: Sequence[EvaluatedCell]) -> list[tuple[str, ...]]:
    """One row a cell of a model with a map of the expected error."""
    return [(cell.kind.title, *_row(MAP_BOUNDS, it)) for cell in cells if (it := cell.bounds)]


def gate_rows(summed: Sequence[Summed]) -> list[tuple[str, ...]]:
    """One row a figure, over all its cells."""
    return [_row(SUMMED, it) for it in summed]


def missed_rows(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """One row a cell that missed a figure."""
    return [
        (row.title, row.cell, row.figure, row.due, row.note)
        for row in rows
        if row.verdict == "missed"
    ]


def not_measured(rows: Sequence[Row]) -> list[str]:
    """One sentence for each way to measure what was not."""
    figures = Counter(row.note for row in rows if row.verdict == "not measured")
    return [f"not measured ({count} figures): {note}" for note, count in figures.items()]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def card(cells: Sequence[EvaluatedCell], rows: Sequence[Row]) -> str:
    """The tables of a model card, as Markdown: every cell in a row, every figure that is due, and
    all methods on the cells of the shipped weights."""
    shipped = [cell for cell in cells if cell.kind.weights.startswith(SHIPPED)]
    parts = [markdown(OVERVIEW_COLUMNS, [_row(OVERVIEW, cell) for cell in cells])]
    if rows:
        parts.append(markdown(GATE_COLUMNS, gate_rows(summed(rows))))
    if missed := missed_rows(rows):
        parts.append(markdown(MISSED_COLUMNS, missed))
    parts += [f"{sentence}\n" for sentence in not_measured(rows)]
    if reliable := reliability_rows(cells):
        parts.append(markdown(RELIABILITY_COLUMNS, reliable))
    if bounded := bounds_rows(cells):
        parts.append(markdown(BOUNDS_COLUMNS, bounded))
    parts += [markdown(COLUMNS, table_rows(shipped)), f"{LEGEND}.\n"]
    if read := reader_rows(shipped):
        parts += [markdown(READER_COLUMNS, read), f"{READER_LEGEND}.\n"]
        parts += [f"{sentence}.\n" for sentence in worse_sentences(shipped)]
    if peers := peer_rows(shipped):
        parts.append(markdown(PEER_COLUMNS, peers))
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
    peers: Path | None = None  # a folder of trained networks to compare with


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
    progress: Report = lambda *_: None,
) -> Study:
    """Raises NoSeries, with every reason, where no series of the folder serves."""
    loaded = cache(load)
    peers = load_peers(request.peers) if request.peers is not None else ()
    model = loaded(None)
    series, passed = series_of(request)
    requests, lacking = _requests(request, series, loaded, passed)
    cells, unsuitable = evaluate(
        requests,
        listed,
        request.targets,
        RunOptions(limits or Limits(), share_cores(model, 0), request.pictures, peers),
        progress,
    )
    passed += unsuitable
    if not cells and not lacking:
        raise NoSeries(nothing_in(request.data, passed))

    rows: tuple[Row, ...] = ()
    if request.gates:
        rows = rows_of(
            cells, lacking, lambda name: how_to_measure(name, request.data, request.folds)
        )
        if model.name == Midslice.name:
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
        is_known = thin.trained_on and study.weights is None
        label = f"trained without {thin.name}" if folded else SHIPPED + KNOWN * is_known
        try:
            anatomy = anatomy_of(thin)
        except Unprocessable as refused:
            passed.append(PassedOver(thin.name, refused.sentence))
            continue
        kinds = [
            CellKind.of(thin, mode, factor, anatomy, label)
            for mode, factor in _cells(study, thin, anatomy, folded=folded)
        ]
        if folded and not fold.is_file():
            lacking += kinds
        else:
            model = partial(load, fold if folded else None)
            requests += [CellRequest(thin, kind, model) for kind in kinds]
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
            # Without the series and the cell, which stand above the table.
            "sections": [
                (cell, [row[2:] for row in table_rows([cell])], _dots(cell)) for cell in study.cells
            ],
            "confidence": confidence_rows(study.cells),
            "RELIABILITY_COLUMNS": RELIABILITY_COLUMNS,
            "reliability": reliability_rows(study.cells),
            "BOUNDS_COLUMNS": BOUNDS_COLUMNS,
            "bounds": bounds_rows(study.cells),
            "READER_COLUMNS": READER_COLUMNS,
            "READER_LEGEND": READER_LEGEND,
            "reader": reader_rows(study.cells),
            "worse": worse_sentences(study.cells),
            "PEER_COLUMNS": PEER_COLUMNS,
            "peers": peer_rows(study.cells),
            "gates": summed(study.rows),
            "missed": missed_rows(study.rows),
            "not_measured": not_measured(study.rows),
            "width": CHART_WIDTH,
            "height": CHART_HEIGHT,
            "zero": _height(0.0),
        },
    )


def _dots(cell: EvaluatedCell) -> list[tuple[float, float, bool, str]]:
    """A dot of the chart for each target: x, y, below linear or not, title."""
    step = CHART_WIDTH / max(1, len(cell.gains_db))
    return [
        ((place + 0.5) * step, _height(gain), gain < 0.0, f"slice {target}: {gain:+.2f} dB")
        for place, (target, gain) in enumerate(zip(cell.targets, cell.gains_db, strict=True))
    ]


def _height(gain_db: float) -> float:
    share = (min(max(gain_db, LEAST_DB), MOST_DB) - LEAST_DB) / (MOST_DB - LEAST_DB)
    return round(CHART_HEIGHT * (1.0 - share), 1)
