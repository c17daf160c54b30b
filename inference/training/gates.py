"""Passed or missed, row by row: what the shipped weights reach of the figures that are due.

Series that the shipped weights were trained on are judged with the weights of a fold: trained on
every other patient. Where such weights are not there, the row says how to make them, and counts as
not passed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inference.training.bounds import BOUNDS, SLACK_MM, Bound, Due
from inference.training.cuts import Mode
from inference.training.evaluate import Cell, Kind
from inference.training.speed import Speed

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
    cells: Sequence[Cell], lacking: Sequence[Kind], how: Callable[[str], str]
) -> tuple[Row, ...]:
    """Every row of every cell; those of `lacking` cells are not measured."""
    rows = [_row(bound, cell) for bound in BOUNDS for cell in cells if bound.applies(cell.kind)]
    rows += [
        Row(
            bound.title,
            kind.name,
            "",
            _said(bound, bound.due(None, kind)),
            "not measured",
            note=how(kind.series),
        )
        for bound in BOUNDS
        for kind in lacking
        if bound.applies(kind)
    ]
    order = {bound.title: place for place, bound in enumerate(BOUNDS)}
    return tuple(sorted(rows, key=lambda row: order[row.title]))


def speed_row(speed: Speed) -> Row:
    """The network alone beside plain torch, on this machine."""
    title = "speed: network against plain torch in float32"
    cell = f"{speed.ours_ms:.0f} instead of {speed.eager_ms:.0f} ms"
    verdict: Verdict = "passed" if speed.times >= speed.least else "missed"
    due = f"at least {speed.least:.2f}x"
    return Row(title, cell, f"{speed.times:.2f}x", due, verdict, speed.times - speed.least)


def _row(bound: Bound, cell: Cell) -> Row:
    due, figure = bound.due(cell, cell.kind), bound.figure(cell)
    said = _said(bound, due)
    if figure is None or (due.least is None and due.most is None):
        note = "the model or the series has nothing to measure it on"
        return Row(bound.title, cell.kind.name, "", said, "not measured", note=note)
    verdict: Verdict = "passed" if due.holds(figure) else "missed"
    return Row(
        bound.title,
        cell.kind.name,
        format(figure, bound.form),
        said,
        verdict,
        due.margin(figure),
        bound.note(cell),
    )


def _said(bound: Bound, due: Due) -> str:
    parts = [
        f"{word} {format(value, bound.form)}"
        for word, value in (("at least", due.least), ("at most", due.most), ("aim", due.aim))
        if value is not None
    ]
    return ", ".join(parts)


def summed(rows: Sequence[Row]) -> tuple[Summed, ...]:
    """One line a title, with the cell that is nearest to missing it, or misses it most."""
    found = []
    for title in dict.fromkeys(row.title for row in rows):
        here = [row for row in rows if row.title == title]
        passed = sum(row.verdict == "passed" for row in here)
        worst = min(here, key=_severity)
        verdict = "passed" if passed == len(here) else worst.verdict
        found.append(Summed(title, worst.due, worst.figure, worst.cell, passed, len(here), verdict))
    return tuple(found)


def _severity(row: Row) -> tuple[int, float]:
    """What is missed comes before what was not measured, and that before what passed."""
    order = {"missed": 0, "not measured": 1, "passed": 2}
    return order[row.verdict], row.margin or 0.0


def is_passed(rows: Sequence[Row]) -> bool:
    """Nothing judged is nothing passed."""
    return bool(rows) and all(row.verdict == "passed" for row in rows)
