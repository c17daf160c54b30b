"""One evaluation from a folder to its verdicts: which series, which cells, which weights."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

from inference.errors import Unprocessable
from inference.model import Limits, Model
from inference.models.midslice import Midslice
from inference.runner import share_cores
from inference.training.anatomy import anatomy_of
from inference.training.cuts import Mode, slices_left
from inference.training.evaluate import (
    SHIPPED,
    Asked,
    Cell,
    Kind,
    Report,
    evaluate,
    kind_of,
)
from inference.training.gates import (
    FOLDS,
    Row,
    factors_due,
    fold_of,
    how_to_measure,
    rows_of,
    speed_row,
)
from inference.training.speed import network_speed
from inference.training.targets import TARGETS, Listed, TargetList, drawn_targets
from inference.training.thin import (
    TRAIN_PART,
    NothingToJudge,
    PassedOver,
    ThinSeries,
    nothing_in,
    open_series,
)

VALIDATE_PART = "ct-validate"
KNOWN = ", trained on it"  # no proof of anything, and every table says so
# Judged for its own row, never trained on: a head with a tilted gantry and unequal gaps.
TILTED_HEAD = Path("edge-cases") / "ge-head-tilt-irregular"


@dataclass(frozen=True)
class Wanted:
    """What to evaluate."""

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
    """What came of it."""

    model: str
    version: str
    weights_sha256: str
    wanted: Wanted
    cells: tuple[Cell, ...]
    passed_over: tuple[PassedOver, ...]
    rows: tuple[Row, ...]  # of the gates; empty where they were not asked for

    def as_json(self) -> dict[str, object]:
        """Plain values alone, for json.dumps."""
        return {
            "model": self.model,
            "version": self.version,
            "weights_sha256": self.weights_sha256,
            "cells": [cell.as_json() for cell in self.cells],
            "passed_over": [asdict(each) for each in self.passed_over],
            "gates": [asdict(row) for row in self.rows],
        }


# Loads the model that is judged: its own weights for None, else those of a file.
Load = Callable[[Path | None], Model]


def run(
    wanted: Wanted,
    load: Load,
    listed: TargetList,
    *,
    limits: Limits | None = None,
    progress: Report = lambda _: None,
) -> Study:
    """Raises NothingToJudge, with every reason, where no series of the folder serves."""
    loaded = cache(load)
    model = loaded(None)
    series, passed = series_of(wanted)
    asked, lacking = _asked(wanted, series, loaded, passed)
    cells, unsuitable = evaluate(
        asked,
        listed,
        targets=wanted.targets,
        limits=limits or Limits(),
        at_once=share_cores(model, 0),
        pictures=wanted.pictures,
        progress=progress,
    )
    passed += unsuitable
    if not cells and not lacking:
        raise NothingToJudge(nothing_in(wanted.data, passed))

    def how(name: str) -> str:
        return how_to_measure(name, wanted.data, wanted.folds)

    rows = rows_of(cells, lacking, how) if wanted.gates else ()
    if wanted.gates and model.name == Midslice.name:
        rows += (speed_row(network_speed(wanted.weights)),)
    return Study(
        model=model.name,
        version=model.version,
        weights_sha256=model.weights_sha256,
        wanted=wanted,
        cells=tuple(cells),
        passed_over=tuple(passed),
        rows=rows,
    )


def series_of(wanted: Wanted) -> tuple[list[ThinSeries], list[PassedOver]]:
    """The series below the folder; of a data set in parts those that are held out, and for the
    gates also those trained on and the tilted head."""
    root = wanted.data
    if not (root / VALIDATE_PART).is_dir():
        return open_series(root)
    parts = [root / VALIDATE_PART]
    if wanted.gates:
        further = (root / TRAIN_PART, root / TILTED_HEAD)
        parts += [part for part in further if part.is_dir()]
    found, passed = [], []
    for part in parts:
        series, faults = open_series(part)
        found += series
        passed += faults
    return found, passed


def _asked(
    wanted: Wanted, series: Sequence[ThinSeries], load: Load, passed: list[PassedOver]
) -> tuple[list[Asked], list[Kind]]:
    """The cells to evaluate, and those that lack the weights of a fold."""
    asked, lacking = [], []
    for one in series:
        fold = fold_of(wanted.folds, one.name)
        folded = wanted.gates and one.trained_on
        weights = fold if folded else None
        is_known = one.trained_on and wanted.weights is None
        label = f"trained without {one.name}" if folded else SHIPPED + KNOWN * is_known
        try:
            anatomy = anatomy_of(one)
        except Unprocessable as refused:
            passed.append(PassedOver(one.name, refused.sentence))
            continue
        first = Asked(one, anatomy, "sub-sampled", 2, partial(load, weights), label)
        cells = [
            replace(first, mode=mode, factor=factor)
            for mode, factor in _cells(wanted, one, anatomy, folded=folded)
        ]
        if folded and not fold.is_file():
            lacking += [kind_of(each) for each in cells]
        else:
            asked += cells
    return asked, lacking


def _cells(
    wanted: Wanted, series: ThinSeries, anatomy: str, *, folded: bool
) -> tuple[tuple[Mode, int], ...]:
    """An uneven series is judged slice by slice; an even one at factors, those asked for first."""
    if not series.is_even:
        return (("left-out", 2),)
    modes: tuple[Mode, ...] = ("sub-sampled", "slab") if wanted.slab else ("sub-sampled",)
    cells = [] if folded else [(mode, factor) for mode in modes for factor in wanted.factors]
    if wanted.gates:
        cells += factors_due(series.spacing_mm, anatomy)
    return tuple(dict.fromkeys(cells))


def list_of(wanted: Wanted) -> list[Listed]:
    """The targets of every series and factor of a folder, drawn by the rule, to be kept."""
    series, _ = series_of(replace(wanted, gates=True))
    found: dict[tuple[str, int, int], Listed] = {}
    for one in series:
        if not one.is_even:
            continue
        for factor in range(2, 11):
            for mode in ("sub-sampled", "slab"):
                slices = slices_left(one, factor, mode)
                drawn = drawn_targets(one.name, slices, factor) if slices > factor else ()
                if drawn:
                    key = (one.name, slices, factor)
                    found[key] = Listed(one.name, slices, factor, drawn)
    return list(found.values())
