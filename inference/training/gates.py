"""The figures that a generator must reach, and which of them it reaches, row by row."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inference.models.runtime import has_fast_bfloat16
from inference.training.evaluate import (
    DIS,
    LINEAR,
    SHIPPED,
    CellKind,
    EvaluatedCell,
    NetworkSpeed,
)
from inference.training.leave_out import Mode

# Wider gaps are held by the node; no figure is due there.
WIDEST_GAP_MM = 12.0
THICK_CHEST_MM = 2.0  # a series of thicker slices is the product's own held-out chest, or like it
FINE_GAP_MM = 4.0  # from here on more is due: noise is less of what is left to gain
SLACK_MM = 0.05  # positions are rounded in files
TIMED_SIZE = (512, 512)
# Milliseconds a slice on two cores, by factor: with bfloat16 in hardware, and without.
MOST_MS = {2: (100.0, 130.0), 8: (60.0, 85.0)}
CANDIDATES = (LINEAR, "cubic", DIS)  # what the generator blends

Verdict = Literal["passed", "missed", "not measured"]
FOLDS = Path("var/training/folds")
# Gaps in mm that rows are due at; the factor that comes first makes one of them.
COLUMNS = {
    "chest": ((2.0, 2.5), (4.0, 5.0), (8.0, 10.0)),
    "head": ((2.5, 3.5), (4.0, 5.0), (5.5, 7.0), (8.0, 10.0)),
    "other": ((2.0, 2.5), (4.0, 5.0), (8.0, 10.0)),
}
SLAB_MM = (4.0, 5.0)
FACTORS = (2, 4, 8, 3, 5, 6, 7, 9, 10)


@dataclass(frozen=True)
class Due:
    """Between which values a figure must lie; `aim` is hoped for, not due."""

    least: float | None = None
    most: float | None = None
    aim: float | None = None

    def holds(self, figure: float) -> bool:
        return (self.least is None or figure >= self.least) and (
            self.most is None or figure <= self.most
        )

    def margin(self, figure: float) -> float:
        """The distance to the nearer limit; below 0 outside."""
        sides = [figure - self.least] if self.least is not None else []
        sides += [self.most - figure] if self.most is not None else []
        return min(sides)


@dataclass(frozen=True)
class Bound:
    """One row of what is due: a figure of a cell, and its limits there."""

    title: str
    form: str  # of the figure, as in format()
    applies: Callable[[CellKind], bool]
    figure: Callable[[EvaluatedCell], float | None]  # None = the cell has nothing to measure it on
    due: Callable[[EvaluatedCell | None, CellKind], Due]
    note: Callable[[EvaluatedCell], str] = lambda _cell: ""


def _between(low: float, high: float) -> Callable[[CellKind], bool]:
    return lambda kind: low - SLACK_MM <= kind.gap_mm <= high + SLACK_MM


def _is_judged(kind: CellKind) -> bool:
    """The general rows: every series with something due, at gaps that the node fills."""
    return kind.mode != "left-out" and kind.gap_mm <= WIDEST_GAP_MM


def _thick(kind: CellKind) -> bool:
    return kind.spacing_mm > THICK_CHEST_MM + SLACK_MM


def _over_linear(
    title: str, low: float, high: float, thick: bool, least: float, aim: float
) -> Bound:
    in_range = _between(low, high)
    return Bound(
        f"{title}, gap {low:g} to {high:g} mm: dB over linear",
        "+.2f",
        lambda kind: (
            kind.mode == "sub-sampled"
            and kind.anatomy == "chest"
            and _thick(kind) == thick
            and in_range(kind)
        ),
        lambda cell: cell.ours.over_linear_db,
        lambda _cell, _kind: Due(least=least, aim=aim),
    )


def _head(gaps: str, low: float, high: float, least: float, aim: float) -> Bound:
    in_range = _between(low, high)
    return Bound(
        f"head, gap {gaps} mm: dB over DIS",
        "+.2f",
        lambda kind: kind.mode == "sub-sampled" and kind.anatomy == "head" and in_range(kind),
        lambda cell: cell.ours.over_dis_db,
        lambda _cell, _kind: Due(least=least, aim=aim),
    )


def _everywhere(
    title: str,
    form: str,
    figure: Callable[[EvaluatedCell], float | None],
    due: Callable[[EvaluatedCell | None, CellKind], Due],
    applies: Callable[[CellKind], bool] = _is_judged,
) -> Bound:
    return Bound(title, form, applies, figure, due)


def _bias_due(cell: EvaluatedCell | None, _kind: CellKind) -> Due:
    if cell is None:
        return Due(most=2.0)
    best = max((cell.methods[name] for name in CANDIDATES), key=lambda figures: figures.psnr_db)
    return Due(most=max(2.0, abs(best.body_bias_hu) + 1.0))


def _noise_due(cell: EvaluatedCell | None, _kind: CellKind) -> Due:
    linear = cell.methods[LINEAR].noise_ratio if cell is not None else None
    return Due(least=0.55 if linear is None else max(0.55, linear - 0.20))


def _laa_due(cell: EvaluatedCell | None, _kind: CellKind) -> Due:
    linear = cell.methods[LINEAR].laa_950_off if cell is not None else None
    return Due(most=linear)


def _confidence(measure: str) -> Callable[[EvaluatedCell], float | None]:
    return lambda cell: None if cell.confidence is None else getattr(cell.confidence, measure)


def _spearman_due(_cell: EvaluatedCell | None, kind: CellKind) -> Due:
    return Due(least=0.85 if kind.factor == 2 else 0.65)


def _speed(factor: int) -> Bound:
    with_it, without = MOST_MS[factor]
    return Bound(
        f"speed at {factor}x: ms for a slice of 512 x 512, all included",
        ".0f",
        lambda kind: (
            kind.mode == "sub-sampled"
            and kind.factor == factor
            and kind.size == TIMED_SIZE
            and kind.weights == SHIPPED
        ),
        lambda cell: cell.ours.ms_per_slice,
        lambda _cell, _kind: Due(most=with_it if has_fast_bfloat16("cpu") else without),
        _how_busy,
    )


def _how_busy(cell: EvaluatedCell) -> str:
    """Times say something of the product where nothing else has run."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    cpu = cell.ours.cpu_ms_per_slice
    return f"{cpu:.0f} ms of processor time on {cores} cores; load of the machine {load:.1f}"


BOUNDS: tuple[Bound, ...] = (
    _over_linear("chest of slices over 2 mm", 4.0, 5.0, True, 2.0, 2.4),
    _over_linear("chest of slices over 2 mm", 8.0, 10.0, True, 2.2, 2.6),
    _over_linear("chest of slices to 2 mm", 2.0, 2.5, False, 1.2, 1.6),
    _over_linear("chest of slices to 2 mm", 4.0, 5.0, False, 1.6, 2.1),
    _over_linear("chest of slices to 2 mm", 8.0, 10.0, False, 1.4, 1.9),
    _head("3", 2.5, 3.5, 0.3, 0.6),
    _head("4.5 and 6", 4.0, 7.0, 0.3, 0.6),
    _head("9", 8.0, 10.0, 0.2, 0.4),
    Bound(
        "slabs of 4 to 5 mm: dB over linear",
        "+.2f",
        lambda kind: kind.mode == "slab" and _between(4.0, 5.0)(kind),
        lambda cell: cell.ours.over_linear_db,
        lambda _cell, _kind: Due(least=1.5),
    ),
    Bound(
        "head, each slice left out: dB over DIS",
        "+.2f",
        lambda kind: kind.mode == "left-out" and kind.anatomy == "head",
        lambda cell: cell.ours.over_dis_db,
        lambda _cell, _kind: Due(least=-0.1),
    ),
    _everywhere(
        "chest: dB over DIS",
        "+.2f",
        lambda cell: cell.ours.over_dis_db,
        lambda _cell, kind: Due(least=0.4 if kind.gap_mm >= FINE_GAP_MM - SLACK_MM else 0.3),
        lambda kind: _is_judged(kind) and kind.anatomy == "chest",
    ),
    _everywhere(
        "body MAE against linear",
        "+.1%",
        lambda cell: cell.ours.body_mae_to_linear,
        lambda _cell, kind: Due(most=-0.18 if kind.gap_mm >= FINE_GAP_MM - SLACK_MM else -0.13),
    ),
    _everywhere(
        "share of slices below linear",
        ".0%",
        lambda cell: cell.ours.below_linear,
        lambda _cell, _kind: Due(most=0.01),
    ),
    _everywhere(
        "worst slice: dB over linear",
        "+.2f",
        lambda cell: cell.ours.worst_over_linear_db,
        lambda _cell, _kind: Due(least=-0.3),
    ),
    _everywhere(
        "share of slices more than 0.3 dB below DIS",
        ".0%",
        lambda cell: cell.ours.notably_below_dis,
        lambda _cell, _kind: Due(most=0.10),
    ),
    _everywhere(
        "bias in the body, HU (2, or the best candidate's + 1)",
        ".1f",
        lambda cell: abs(cell.ours.body_bias_hu),
        _bias_due,
    ),
    _everywhere(
        "noise ratio in flat tissue (0.55, linear's - 0.20)",
        ".2f",
        lambda cell: cell.ours.noise_ratio,
        _noise_due,
    ),
    _everywhere(
        "LAA-950 off the truth (at most linear's)",
        ".2%",
        lambda cell: cell.ours.laa_950_off,
        _laa_due,
        lambda kind: _is_judged(kind) and kind.anatomy == "chest",
    ),
    _everywhere("confidence: Spearman", ".2f", _confidence("spearman"), _spearman_due),
    _everywhere(
        "confidence: predicted / true error",
        ".2f",
        _confidence("predicted_to_true"),
        lambda _cell, _kind: Due(least=0.8, most=1.25),
    ),
    _everywhere(
        "confidence: coverage of 90 % intervals",
        ".1%",
        _confidence("coverage"),
        lambda _cell, _kind: Due(least=0.85, most=0.95),
    ),
    _speed(2),
    _speed(8),
)


# Series that the shipped weights were trained on are judged with the weights of a fold: trained
# on every other patient. Where such weights are not there, the row says how to make them, and
# counts as not passed.


@dataclass(frozen=True)
class Row:
    """One figure of one cell against what is due."""

    title: str
    cell: str
    figure: str
    due: str
    verdict: Verdict
    margin: float | None = None  # above 0 inside
    note: str = ""


@dataclass(frozen=True)
class Summed:
    """All rows of one title: passed where each of its cells is."""

    title: str
    due: str
    worst: str
    where: str
    passed: int
    cells: int
    verdict: Verdict


def fold_of(folds: Path, series: str) -> Path:
    """The weights that were trained without a series."""
    return folds / f"{series}.safetensors"


def how_to_measure(series: str, data: Path, folds: Path) -> str:
    return (
        f"run: midslice train {data} --leave-out {series} --weights {fold_of(folds, series)} "
        f"--checkpoint {folds / f'checkpoint-{series}.safetensors'}"
    )


def factors_due(spacing_mm: float, anatomy: str) -> tuple[tuple[Mode, int], ...]:
    """The cells of a series that rows are due in: one a column, and a slab."""
    wanted: list[tuple[Mode, int]] = []
    for low, high in COLUMNS[anatomy]:
        factor = _factor(spacing_mm, low, high)
        if factor is not None:
            wanted.append(("sub-sampled", factor))
    slab = _factor(spacing_mm, *SLAB_MM)
    if slab is not None:
        wanted.append(("slab", slab))
    return tuple(wanted)


def _factor(spacing_mm: float, low: float, high: float) -> int | None:
    low, high = low - SLACK_MM, high + SLACK_MM
    return next((factor for factor in FACTORS if low <= factor * spacing_mm <= high), None)


def rows_of(
    cells: Sequence[EvaluatedCell], lacking: Sequence[CellKind], how: Callable[[str], str]
) -> tuple[Row, ...]:
    """Every row of every cell; those of `lacking` cells are not measured."""
    rows = [_row(bound, cell) for bound in BOUNDS for cell in cells if bound.applies(cell.kind)]
    rows += [
        Row(
            bound.title,
            kind.name,
            "",
            _words(bound, bound.due(None, kind)),
            "not measured",
            note=how(kind.series),
        )
        for bound in BOUNDS
        for kind in lacking
        if bound.applies(kind)
    ]
    order = {bound.title: place for place, bound in enumerate(BOUNDS)}
    return tuple(sorted(rows, key=lambda row: order[row.title]))


def speed_row(speed: NetworkSpeed) -> Row:
    """The network alone beside plain torch, on this machine."""
    title = "speed: network against plain torch in float32"
    cell = f"{speed.ours_ms:.0f} instead of {speed.eager_ms:.0f} ms"
    verdict: Verdict = "passed" if speed.times >= speed.least else "missed"
    due = f"at least {speed.least:.2f}x"
    return Row(title, cell, f"{speed.times:.2f}x", due, verdict, speed.times - speed.least)


def _row(bound: Bound, cell: EvaluatedCell) -> Row:
    due, figure = bound.due(cell, cell.kind), bound.figure(cell)
    words = _words(bound, due)
    if figure is None or (due.least is None and due.most is None):
        note = "the model or the series has nothing to measure it on"
        return Row(bound.title, cell.kind.name, "", words, "not measured", note=note)
    verdict: Verdict = "passed" if due.holds(figure) else "missed"
    return Row(
        bound.title,
        cell.kind.name,
        format(figure, bound.form),
        words,
        verdict,
        due.margin(figure),
        bound.note(cell),
    )


def _words(bound: Bound, due: Due) -> str:
    parts = [
        f"{word} {format(value, bound.form)}"
        for word, value in (("at least", due.least), ("at most", due.most), ("aim", due.aim))
        if value is not None
    ]
    return ", ".join(parts)


def summed(rows: Sequence[Row]) -> tuple[Summed, ...]:
    """One line a title, with the cell that is nearest to missing it, or misses it most."""
    lines = []
    for title in dict.fromkeys(row.title for row in rows):
        here = [row for row in rows if row.title == title]
        passed = sum(row.verdict == "passed" for row in here)
        worst = min(here, key=_severity)
        verdict = "passed" if passed == len(here) else worst.verdict
        lines.append(Summed(title, worst.due, worst.figure, worst.cell, passed, len(here), verdict))
    return tuple(lines)


def _severity(row: Row) -> tuple[int, float]:
    """Missed comes before not measured, and that before passed."""
    order = {"missed": 0, "not measured": 1, "passed": 2}
    return order[row.verdict], row.margin or 0.0


def is_passed(rows: Sequence[Row]) -> bool:
    """Nothing judged is nothing passed."""
    return bool(rows) and all(row.verdict == "passed" for row in rows)
