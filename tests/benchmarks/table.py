"""What was measured, as a table and as JSON: medians, spread, ratios to a reference, bounds."""

import math
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from rich.table import Table

T = TypeVar("T")
Told = Callable[[str, int, int], None]  # row, measured so far, of all
Document: TypeAlias = dict[str, dict[str, dict[str, float | str | None]]]


@dataclass(frozen=True)
class Row:
    """A peer or this product; one value a repetition, in the order of the repetitions."""

    name: str
    unit: str
    values: tuple[float, ...]
    reference: str = ""  # the row of the same table that it is compared with; "" = with none

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True)
class Subject:
    """One table."""

    name: str
    caption: str  # what exactly was measured
    rows: tuple[Row, ...]

    def row(self, name: str) -> Row:
        """The row of that name."""
        for row in self.rows:
            if row.name == name:
                return row
        known = ", ".join(row.name for row in self.rows)
        raise KeyError(f"{self.name} has no row {name!r}; it has {known}")


@dataclass(frozen=True)
class Bound:
    """What every single repetition of a row must stay below: a promise, not an average."""

    subject: str
    row: str
    below: float

    def fault(self, subject: Subject) -> str:
        """A sentence where it is missed, else nothing."""
        row = subject.row(self.row)
        worst = max(row.values)
        if worst < self.below:
            return ""
        return (
            f"{self.subject}, {self.row}: {number(worst)} {row.unit}, "
            f"allowed is less than {self.below:g} {row.unit}"
        )


@dataclass(frozen=True)
class RatioBound:
    """What the ratio of a row to another must keep, as the median over the repetitions."""

    subject: str
    row: str
    at_least: float = -math.inf
    at_most: float = math.inf
    to: str = ""  # the other row; "" = the row's own reference

    def fault(self, subject: Subject) -> str:
        """A sentence where it is missed, or cannot be known; else nothing."""
        row = subject.row(self.row)
        reference = subject.row(self.to or row.reference)
        measured = _ratio(row, reference)
        name = f"{self.subject}, {self.row}"
        if measured is None:
            return f"{name}: no ratio to {reference.name}, which was 0"
        if self.at_least <= measured <= self.at_most:
            return ""
        is_less = measured < self.at_least
        wanted = f"at least {self.at_least:g}" if is_less else f"at most {self.at_most:g}"
        return f"{name}: {measured:.3g} x {reference.name}, allowed is {wanted}"


def interleaved(
    rows: Mapping[str, Callable[[], T]],
    repetitions: int,
    order: random.Random,
    told: Told = lambda *_: None,
) -> dict[str, list[T]]:
    """Measure every row once a repetition, each time in another order.

    What the machine does beside it then falls on all rows alike, and no row always comes after
    the same other one.
    """
    measured: dict[str, list[T]] = {name: [] for name in rows}
    total = repetitions * len(rows)
    for repetition in range(repetitions):
        names = list(rows)
        order.shuffle(names)
        for place, name in enumerate(names):
            told(name, repetition * len(rows) + place, total)
            measured[name].append(rows[name]())
    return measured


def ratio(row: Row, subject: Subject) -> float | None:
    """How often the reference: the median of the ratios within each repetition.

    None where there is no reference, or where it was 0.
    """
    return _ratio(row, subject.row(row.reference)) if row.reference else None


def _ratio(row: Row, reference: Row) -> float | None:
    pairs = list(zip(row.values, reference.values, strict=True))
    if any(of == 0 for _, of in pairs):
        return None
    return statistics.median(value / of for value, of in pairs)


def document(subjects: Iterable[Subject]) -> Document:
    """Every subject as `benchmark.json` has it."""
    return {
        subject.name: {
            row.name: {
                "median": row.median,
                "unit": row.unit,
                "ratio": ratio(row, subject),
                "least": min(row.values),
                "most": max(row.values),
            }
            for row in subject.rows
        }
        for subject in subjects
    }


def missed(bounds: Iterable[Bound | RatioBound], subjects: Sequence[Subject]) -> list[str]:
    """A sentence for each bound that a measured subject does not keep."""
    measured = {subject.name: subject for subject in subjects}
    faults = (bound.fault(measured[bound.subject]) for bound in bounds if bound.subject in measured)
    return [fault for fault in faults if fault]


def number(value: float) -> str:
    """Three figures at most: no repetition agrees with another in more."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def rendered(subject: Subject) -> Table:
    """For a terminal."""
    table = Table(title=subject.name, caption=subject.caption, title_justify="left")
    table.caption_justify = "left"
    table.add_column("")
    for heading in ("median", "least", "most"):
        table.add_column(heading, justify="right")
    table.add_column("unit")
    table.add_column("ratio", justify="right")
    table.add_column("to")
    for row in subject.rows:
        times = ratio(row, subject)
        table.add_row(
            row.name,
            number(row.median),
            number(min(row.values)),
            number(max(row.values)),
            row.unit,
            "" if times is None else number(times),
            "" if times is None else row.reference,
        )
    return table
