"""What a slice costs in series of 60, 600 and 3,000: it must not cost more in a longer one.

A row is a whole job in a process of its own that has loaded its model. Up to a fixed size a worker
keeps decoded slices; what it takes beside these may grow with headers and annotations alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from inference.pixels import BYTES_IN_MEMORY, CACHE_BYTES
from tests import phantoms
from tests.benchmarks import job
from tests.benchmarks.job import Measured
from tests.benchmarks.rig import Setting
from tests.benchmarks.table import Bound, RatioBound, Row, Subject

NAME = "long series"
MODEL, FACTOR = "midslice", 2
COUNTS = {128: (60, 600, 3000), 512: (60, 600)}  # by the side of a slice
REPETITIONS, QUICK_REPETITIONS = 2, 1  # a long series takes a minute
MOST_OF_SHORT = 1.15
GROWTH = "memory, growth beside the window"
MOST_GROWTH_MB = 120.0  # over 2,940 slices: 40 kB each, a twelfth of what a slice is
MOST_MB = 1300.0  # of a worker, whatever the series
MEGABYTE = 1e6


def _name(side: int, count: int) -> str:
    return f"{count} slices of {side} x {side}"


BOUNDS = (
    *(
        RatioBound(NAME, _name(side, count), at_most=MOST_OF_SHORT)
        for side, counts in COUNTS.items()
        for count in counts[1:]
    ),
    Bound(NAME, GROWTH, MOST_GROWTH_MB),
    *(Bound(NAME, f"{_name(512, count)}, memory", MOST_MB) for count in COUNTS[512]),
)


def measure(setting: Setting) -> Subject:
    """Milliseconds a slice of the result, and the most memory of the process."""
    passes: dict[str, Callable[[], Measured]] = {}
    for side, count in ((side, count) for side, these in COUNTS.items() for count in these):
        asked = phantoms.Series(
            slices=count, rows=side, columns=side, spacing_mm=1.0, thickness_mm=1, seed=f"{side}"
        )
        files = phantoms.write(setting.folder / f"{side}-{count}", asked)
        out = setting.folder / "derived"
        passes[_name(side, count)] = partial(_job, files[0].parent, out)
    repetitions = QUICK_REPETITIONS if setting.is_quick else REPETITIONS
    values = replace(setting, repetitions=repetitions).measure(passes)
    rows = [row for side, these in COUNTS.items() for row in _rows(values, side, these)]
    side, these = next(iter(COUNTS.items()))
    most, least = (_beside_window(values, side, count) for count in (these[-1], these[0]))
    growth = tuple(long - short for long, short in zip(most, least, strict=True))
    caption = (
        f"a slice of the result of a job with {MODEL} at {FACTOR}x; {GROWTH}: from {these[0]} to "
        f"{these[-1]} slices of {side} x {side}, without the decoded slices that are kept in "
        f"memory, up to {CACHE_BYTES >> 20} MB"
    )
    return Subject(NAME, caption, (*rows, Row(GROWTH, "MB", growth)))


def _job(received: Path, folder: Path) -> Measured:
    return job.apart(MODEL, received, folder, FACTOR)


def _rows(values: Mapping[str, list[Measured]], side: int, counts: tuple[int, ...]) -> list[Row]:
    rows = []
    for words, figure in (("", "seconds"), (", processor", "processor")):
        for count in counts:
            name, derived = _name(side, count), FACTOR * (count - 1) + 1
            taken = tuple(one[figure] * 1000.0 / derived for one in values[name])
            rows.append(Row(name + words, "ms", taken, _name(side, counts[0]) + words))
    for count in counts:
        memory = tuple(one["megabytes"] for one in values[_name(side, count)])
        rows.append(Row(f"{_name(side, count)}, memory", "MB", memory))
    return rows


def _beside_window(values: Mapping[str, list[Measured]], side: int, count: int) -> list[float]:
    window = min(CACHE_BYTES, BYTES_IN_MEMORY * side * side * count) / MEGABYTE
    return [one["megabytes"] - window for one in values[_name(side, count)]]
