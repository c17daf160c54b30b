"""Which slices a derived series has, and where they lie."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from inference.dataset import Header
from inference.geometry import Layout
from inference.model import Step
from inference.request import Output
from inference.volume import Vector

# Output slices whose distances differ by less have one spacing.
UNIFORM_SPACING_MM = 0.01
# Slice Location follows the position within this, or is taken from the position itself.
LOCATION_TOLERANCE = 0.01


@dataclass(frozen=True, eq=False)
class Planned:
    """One slice of the derived series before it has pixels."""

    uid: str
    number: int  # Instance Number
    position: Vector
    base: int  # the received slice that it copies, or whose pixel format it takes
    sources: tuple[int, ...]  # the received slices that it refers to
    gap: int | None = None  # None = a copy
    rescale: int | None = None  # the received slice whose rescale it takes, if not that of `base`
    fraction: float = 0.0

    @property
    def is_generated(self) -> bool:
        return self.gap is not None

    def rescale_of(self, layout: Layout) -> Header:
        """The received slice that says what the stored values mean."""
        return layout.headers[self.base if self.rescale is None else self.rescale]

    @property
    def name(self) -> str:
        return f"{self.number:05d}.dcm"


def plan_slices(
    layout: Layout,
    steps: Sequence[Step],
    output: Output,
    uid_of: Callable[[str], str],
    rescale: int | None = None,
) -> tuple[Planned, ...]:
    """Every slice of the derived series, in the order of positions; its place makes its UID."""
    positions = layout.geometry.positions
    made: list[tuple[float, Planned]] = []
    if output.include_received:
        for index, source in enumerate(layout.headers):
            uid = uid_of(f"copy of {source.uid}")
            made.append((index, Planned(uid, 0, positions[index], index, (index,))))
    for step in steps:
        if step.gap is None:  # a survey
            continue
        first, second = positions[step.gap], positions[step.gap + 1]
        for fraction in step.fractions:
            place = f"after {layout.headers[step.gap].uid} by {fraction!r}"
            position = first + fraction * (second - first)
            slice_ = Planned(
                uid=uid_of(place),
                number=0,
                position=position,
                base=step.gap,
                sources=step.needs,
                gap=step.gap,
                fraction=fraction,
                rescale=rescale,
            )
            made.append((step.gap + fraction, slice_))
    made.sort(key=lambda pair: pair[0])
    return _numbered([slice_ for _, slice_ in made], layout)


def _numbered(slices: Sequence[Planned], layout: Layout) -> tuple[Planned, ...]:
    """Instance Numbers 1 to N in the scanner's stacking direction: many viewers sort by it."""
    numbers = [header.integer("InstanceNumber") for header in layout.headers]
    known = [number for number in numbers if number is not None]
    descends = len(known) > 1 and known[-1] < known[0]
    count = len(slices)
    return tuple(
        replace(slice_, number=count - place if descends else place + 1)
        for place, slice_ in enumerate(slices)
    )


def uniform_spacing(distances: NDArray[np.float64]) -> float | None:
    """The one distance between neighbours, or None where there are several."""
    if len(distances) < 2:
        return None
    gaps = np.diff(distances)
    mean = float(np.ptp(distances) / (len(distances) - 1))
    return mean if float(np.abs(gaps - mean).max()) <= UNIFORM_SPACING_MM else None


def location_law(layout: Layout) -> tuple[float, float] | None:
    """(slope, offset) of Slice Location over the distance along the normal; None = omit it."""
    values = [header.number("SliceLocation") for header in layout.headers]
    if any(value is None for value in values):
        return None
    distances = layout.geometry.distances_mm
    known = np.array(values, float)
    slope, offset = np.polyfit(distances, known, 1)
    off = float(np.abs(slope * distances + offset - known).max())
    return (float(slope), float(offset)) if off <= LOCATION_TOLERANCE else (1.0, 0.0)


def record_of(slices: Sequence[Planned], layout: Layout) -> Mapping[str, object]:
    """What a page shows about the gaps: their width, what was generated and what is missing."""
    counts = [0] * len(layout.geometry.gaps_mm)
    for slice_ in slices:
        if slice_.gap is not None:
            counts[slice_.gap] += 1
    return {
        "received": len(layout.headers),
        "generated": sum(counts),
        "copied": sum(not slice_.is_generated for slice_ in slices),
        "gaps": [
            {"gap_mm": round(float(gap_mm), 4), "factor": count + 1}
            for gap_mm, count in zip(layout.geometry.gaps_mm, counts, strict=True)
        ],
        "missing": [{"gap": gap, "slices": layout.missing[gap]} for gap in sorted(layout.missing)],
        "shear_degrees": round(layout.shear_degrees, 2),
    }
