"""Which left-out slices are predicted: the same ones on every machine and for every model.

The list of the known series is kept in `targets.json`, so that no change of a random generator can
move it; a series that is not in it is drawn by the rule that made the list.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

COMMITTED = Path(__file__).with_name("targets.json")

SEED = 2026
TARGETS = 20  # slices a cell


@dataclass(frozen=True)
class Listed:
    """The targets of one series at one factor; `slices` and `name` say which series it is."""

    name: str  # of its folder
    slices: int  # of the thin series, or of what averaging leaves of it
    factor: int
    targets: tuple[int, ...]


def drawn_targets(name: str, slices: int, factor: int, count: int = TARGETS) -> tuple[int, ...]:
    """The rule: a permutation of the left-out slices, seeded by the name of the series."""
    last = (slices - 1) // factor * factor
    left_out = [index for index in range(last) if index % factor]
    digest = hashlib.sha256(f"{SEED}/{name}/{slices}/{factor}".encode()).digest()
    random = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    drawn = random.permutation(left_out)[:count]
    return tuple(sorted(int(index) for index in drawn))


class TargetList:
    """Targets by name, slices and factor: those of a list first, those of the rule else."""

    def __init__(self, listed: Iterable[Listed] = ()) -> None:
        self._listed = {(each.name, each.slices, each.factor): each.targets for each in listed}

    def __len__(self) -> int:
        return len(self._listed)

    def targets(self, name: str, slices: int, factor: int, count: int = TARGETS) -> tuple[int, ...]:
        """A list holds whole cells: a smaller or larger count is drawn by the rule."""
        known = self._listed.get((name, slices, factor))
        if known is not None and count == TARGETS:
            return known
        return drawn_targets(name, slices, factor, count)


def read_list(path: Path = COMMITTED) -> TargetList:
    """A list as `write_list` wrote it."""
    stored = json.loads(path.read_text())
    return TargetList(
        Listed(each["name"], each["slices"], each["factor"], tuple(each["targets"]))
        for each in stored["series"]
    )


def write_list(listed: Iterable[Listed], path: Path) -> None:
    """One line a cell, in an order that does not depend on how the series were found."""
    ordered = sorted(listed, key=lambda each: (each.name, each.slices, each.factor))
    lines = ",\n    ".join(json.dumps(asdict(each)) for each in ordered)
    head = f'  "seed": {SEED},\n  "slices_a_cell": {TARGETS},\n'
    path.write_text(f'{{\n{head}  "series": [\n    {lines}\n  ]\n}}\n')
