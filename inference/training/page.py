"""The evaluation as one HTML page that needs nothing but itself: pictures are inside it."""

import base64
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from inference.training import report
from inference.training.evaluate import Cell
from inference.training.gates import summed
from inference.training.study import Study

TEMPLATE = "evaluation.html"
CHART_WIDTH, CHART_HEIGHT = 640, 120  # of the drawing, in its own units
LEAST_DB, MOST_DB = -1.0, 5.0  # what the chart shows of gains


@dataclass(frozen=True)
class Dot:
    """One target in the chart of a cell: its place there, and whether it lies below linear."""

    x: float
    y: float
    is_below: bool
    title: str


@dataclass(frozen=True)
class Shown:
    """One cell, as the page shows it."""

    cell: Cell
    rows: list[tuple[str, ...]]
    dots: tuple[Dot, ...]


def page_of(study: Study) -> str:
    """The whole page; every text in it is escaped."""
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined)
    environment.filters["data"] = _data
    return environment.get_template(TEMPLATE).render(
        study=study,
        report={
            "LEGEND": report.LEGEND,
            "COLUMNS": report.COLUMNS,
            "GATE_COLUMNS": report.GATE_COLUMNS,
            "MISSED_COLUMNS": report.MISSED_COLUMNS,
            "CONFIDENCE_COLUMNS": report.CONFIDENCE_COLUMNS,
        },
        shown=[Shown(cell, _rows(cell), _dots(cell)) for cell in study.cells],
        confidence=report.confidence_rows(study.cells),
        gates=summed(study.rows),
        missed=report.missed_rows(study.rows),
        not_measured=report.not_measured(study.rows),
        width=CHART_WIDTH,
        height=CHART_HEIGHT,
        zero=_height(0.0),
    )


def _rows(cell: Cell) -> list[tuple[str, ...]]:
    """Without the series and the cell, which stand above the table."""
    return [row[2:] for row in report.rows_of([cell])]


def _dots(cell: Cell) -> tuple[Dot, ...]:
    """The gain of each target, in the order of the slices."""
    step = CHART_WIDTH / max(1, len(cell.gains_db))
    return tuple(
        Dot((place + 0.5) * step, _height(gain), gain < 0.0, f"slice {target}: {gain:+.2f} dB")
        for place, (target, gain) in enumerate(zip(cell.targets, cell.gains_db, strict=True))
    )


def _height(gain_db: float) -> float:
    share = (min(max(gain_db, LEAST_DB), MOST_DB) - LEAST_DB) / (MOST_DB - LEAST_DB)
    return round(CHART_HEIGHT * (1.0 - share), 1)


def _data(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
