"""The figures that a generator must reach, and which of them it reaches, row by row."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inference.models.runtime import has_fast_bfloat16
from inference.training.evaluate import DIS, LINEAR, SHIPPED, CellKind, EvaluatedCell, NetworkSpeed
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
        return self.margin(figure) >= 0.0

    def margin(self, figure: float) -> float:
        """The distance to the nearer limit; below 0 outside."""
        sides = [figure - self.least] if self.least is not None else []
        sides += [self.most - figure] if self.most is not None else []
        return min(sides)


def _is_between(kind: CellKind, low: float, high: float) -> bool:
    return low - SLACK_MM <= kind.gap_mm <= high + SLACK_MM


def _is_judged(kind: CellKind) -> bool:
    """The general rows: every series with something due, at gaps that the node fills."""
    return kind.mode != "left-out" and kind.gap_mm <= WIDEST_GAP_MM


def _is_judged_chest(kind: CellKind) -> bool:
    return _is_judged(kind) and kind.anatomy == "chest"


def _is_fine(kind: CellKind) -> bool:
    return kind.gap_mm < FINE_GAP_MM - SLACK_MM


def _is_thick(kind: CellKind) -> bool:
    return kind.spacing_mm > THICK_CHEST_MM + SLACK_MM


@dataclass(frozen=True)
class Bound:
    """One row of what is due: a figure of a cell, and its limits there."""

    title: str
    form: str  # of the figure, as in format()
    figure: Callable[[EvaluatedCell], float | None]  # None = the cell has nothing to measure it on
    due: Due | Callable[[EvaluatedCell | None, CellKind], Due]
    applies: Callable[[CellKind], bool] = _is_judged
    note: Callable[[EvaluatedCell], str] = lambda _cell: ""

    def due_of(self, cell: EvaluatedCell | None, kind: CellKind) -> Due:
        return self.due if isinstance(self.due, Due) else self.due(cell, kind)


def _ours(measure: str) -> Callable[[EvaluatedCell], float | None]:
    return lambda cell: getattr(cell.ours, measure)


def _chest(low: float, high: float, *, thick: bool, due: Due) -> Bound:
    slices = "over 2 mm" if thick else "to 2 mm"
    return Bound(
        f"chest of slices {slices}, gap {low:g} to {high:g} mm: dB over linear",
        "+.2f",
        _ours("over_linear_db"),
        due,
        lambda kind: (
            (kind.mode, kind.anatomy) == ("sub-sampled", "chest")
            and _is_thick(kind) == thick
            and _is_between(kind, low, high)
        ),
    )


def _head(gaps: str, low: float, high: float, due: Due) -> Bound:
    return Bound(
        f"head, gap {gaps} mm: dB over DIS",
        "+.2f",
        _ours("over_dis_db"),
        due,
        lambda kind: (
            (kind.mode, kind.anatomy) == ("sub-sampled", "head") and _is_between(kind, low, high)
        ),
    )


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


def _speed(factor: int) -> Bound:
    with_it, without = MOST_MS[factor]
    return Bound(
        f"speed at {factor}x: ms for a slice of 512 x 512, all included",
        ".0f",
        _ours("ms_per_slice"),
        lambda _cell, _kind: Due(most=with_it if has_fast_bfloat16("cpu") else without),
        lambda kind: (
            (kind.mode, kind.factor, kind.size, kind.weights)
            == ("sub-sampled", factor, TIMED_SIZE, SHIPPED)
        ),
        _how_busy,
    )


def _how_busy(cell: EvaluatedCell) -> str:
    """Times say something of the product where nothing else has run."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    cpu = cell.ours.cpu_ms_per_slice
    return f"{cpu:.0f} ms of processor time on {cores} cores; load of the machine {load:.1f}"


BOUNDS: tuple[Bound, ...] = (
    _chest(4.0, 5.0, thick=True, due=Due(least=2.0, aim=2.4)),
    _chest(8.0, 10.0, thick=True, due=Due(least=2.2, aim=2.6)),
    _chest(2.0, 2.5, thick=False, due=Due(least=1.2, aim=1.6)),
    _chest(4.0, 5.0, thick=False, due=Due(least=1.6, aim=2.1)),
    _chest(8.0, 10.0, thick=False, due=Due(least=1.4, aim=1.9)),
    _head("3", 2.5, 3.5, Due(least=0.3, aim=0.6)),
    _head("4.5 and 6", 4.0, 7.0, Due(least=0.3, aim=0.6)),
    _head("9", 8.0, 10.0, Due(least=0.2, aim=0.4)),
    Bound(
        "slabs of 4 to 5 mm: dB over linear",
        "+.2f",
        _ours("over_linear_db"),
        Due(least=1.5),
        lambda kind: kind.mode == "slab" and _is_between(kind, 4.0, 5.0),
    ),
    Bound(
        "head, each slice left out: dB over DIS",
        "+.2f",
        _ours("over_dis_db"),
        Due(least=-0.1),
        lambda kind: kind.mode == "left-out" and kind.anatomy == "head",
    ),
    Bound(
        "chest: dB over DIS",
        "+.2f",
        _ours("over_dis_db"),
        lambda _cell, kind: Due(least=0.3 if _is_fine(kind) else 0.4),
        _is_judged_chest,
    ),
    Bound(
        "body MAE against linear",
        "+.1%",
        _ours("body_mae_to_linear"),
        lambda _cell, kind: Due(most=-0.13 if _is_fine(kind) else -0.18),
    ),
    Bound("share of slices below linear", ".0%", _ours("below_linear"), Due(most=0.01)),
    Bound("worst slice: dB over linear", "+.2f", _ours("worst_over_linear_db"), Due(least=-0.3)),
    Bound(
        "share of slices more than 0.3 dB below DIS",
        ".0%",
        _ours("notably_below_dis"),
        Due(most=0.10),
    ),
    Bound(
        "bias in the body, HU (2, or the best candidate's + 1)",
        ".1f",
        lambda cell: abs(cell.ours.body_bias_hu),
        _bias_due,
    ),
    Bound(
        "noise ratio in flat tissue (0.55, linear's - 0.20)",
        ".2f",
        _ours("noise_ratio"),
        _noise_due,
    ),
    Bound(
        "LAA-950 off the truth (at most linear's)",
        ".2%",
        _ours("laa_950_off"),
        _laa_due,
        _is_judged_chest,
    ),
    Bound(
        "confidence: Spearman",
        ".2f",
        _confidence("spearman"),
        lambda _cell, kind: Due(least=0.85 if kind.factor == 2 else 0.65),
    ),
    Bound(
        "confidence: predicted / true error",
        ".2f",
        _confidence("predicted_to_true"),
        Due(least=0.8, most=1.25),
    ),
    Bound(
        "confidence: coverage of 90 % intervals",
        ".1%",
        _confidence("coverage"),
        Due(least=0.85, most=0.95),
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
    rows: list[Row] = []
    for bound in BOUNDS:
        rows += [_row(bound, cell) for cell in cells if bound.applies(cell.kind)]
        for kind in filter(bound.applies, lacking):
            due = _words(bound, bound.due_of(None, kind))
            rows.append(_not_measured(bound, kind, due, how(kind.series)))
    return tuple(rows)


def _not_measured(bound: Bound, kind: CellKind, due: str, note: str) -> Row:
    return Row(bound.title, kind.name, "", due, "not measured", note=note)


def speed_row(speed: NetworkSpeed) -> Row:
    """The network alone beside plain torch, on this machine."""
    title = "speed: network against plain torch in float32"
    cell = f"{speed.ours_ms:.0f} instead of {speed.eager_ms:.0f} ms"
    verdict: Verdict = "passed" if speed.times >= speed.least else "missed"
    due = f"at least {speed.least:.2f}x"
    return Row(title, cell, f"{speed.times:.2f}x", due, verdict, speed.times - speed.least)


def _row(bound: Bound, cell: EvaluatedCell) -> Row:
    due, figure = bound.due_of(cell, cell.kind), bound.figure(cell)
    words = _words(bound, due)
    if figure is None or (due.least is None and due.most is None):
        note = "the model or the series has nothing to measure it on"
        return _not_measured(bound, cell.kind, words, note)
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
