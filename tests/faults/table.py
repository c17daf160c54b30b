"""The table of a run of the fault tests: what was done to the node, and what came of it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

HEADINGS = ("fault", "times", "lost", "duplicated", "hung", "longest time to serve again")
PROPERTY = "fault"  # of a test's report, which goes from a worker process to the one that prints


@dataclass
class Fault:
    """One kind of fault: how often, and the instances, series and waits that went wrong."""

    name: str
    times: int = 0
    lost: int = 0
    duplicated: int = 0
    hung: int = 0
    seconds: float = 0.0  # the longest until the node served again


def collected(properties: Iterable[tuple[str, Any]]) -> list[Fault]:
    """One row for each fault, in the order in which they are first met."""
    rows: dict[str, Fault] = {}
    for name, values in properties:
        if name != PROPERTY:
            continue
        fault = Fault(**values)
        row = rows.setdefault(fault.name, Fault(fault.name))
        row.times += fault.times
        row.lost += fault.lost
        row.duplicated += fault.duplicated
        row.hung += fault.hung
        row.seconds = max(row.seconds, fault.seconds)
    return sorted(rows.values(), key=lambda row: row.name)


def markdown(faults: Iterable[Fault]) -> str:
    """The table as the documents show it, and its sum."""
    rows = list(faults)
    total = Fault(
        "**all**",
        *(sum(getattr(row, name) for row in rows) for name in ("times", "lost")),
        *(sum(getattr(row, name) for row in rows) for name in ("duplicated", "hung")),
        max((row.seconds for row in rows), default=0.0),
    )
    lines = [f"| {' | '.join(HEADINGS)} |", "|---|" + "---:|" * (len(HEADINGS) - 1)]
    return "\n".join([*lines, *map(_line, [*rows, total])])


def _line(row: Fault) -> str:
    seconds = f"{row.seconds:.1f} s" if row.seconds else ""
    cells = (row.name, row.times, row.lost, row.duplicated, row.hung, seconds)
    return f"| {' | '.join(map(str, cells))} |"
