"""The share of the body that received slices have seen between them, gap by gap.

A slice shows what lies within its thickness. Where a gap is over twice as wide, more than half of
it was never seen: vessels and nodules vanish between the slices, however smooth the result looks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inference.errors import Reason, Unprocessable
from inference.geometry import Layout
from inference.model import Step
from inference.request import Output

UNDERSAMPLED_RATIO = 2.0  # gap over slice thickness
# Positions are decimal strings: a gap of 12.0 mm may read 12.004.
GAP_TOLERANCE_MM = 0.01
UNKNOWN_THICKNESS = (
    "the slices do not say their thickness: how much between them was never seen is unknown"
)


def thickness_mm(layout: Layout, gap: int) -> float | None:
    """The mean thickness of the two slices beside a gap; of the series where they say none."""
    pair = layout.headers[gap : gap + 2]
    known = [mm for header in pair if (mm := header.number("SliceThickness") or 0.0) > 0.0]
    return sum(known) / len(known) if known else layout.geometry.thickness_mm


def is_undersampled(layout: Layout, gap: int) -> bool:
    """True where the gap, measured across the slices, is over twice as wide as they are thick."""
    thickness = thickness_mm(layout, gap)
    if thickness is None:
        return False
    return bool(layout.geometry.gaps_mm[gap] > UNDERSAMPLED_RATIO * thickness + GAP_TOLERANCE_MM)


@dataclass(frozen=True)
class UndersampledGap:
    """A gap of which more than half was never seen."""

    gap_mm: float
    thickness_mm: float

    @property
    def unseen(self) -> float:
        """The share of the gap that no slice shows."""
        return 1.0 - self.thickness_mm / self.gap_mm

    def __str__(self) -> str:
        return f"gaps of {self.gap_mm:.4g} mm between slices {self.thickness_mm:.4g} mm thick"


@dataclass(frozen=True)
class Sampling:
    """The gaps that a job fills, and those of them that are undersampled."""

    filled: int
    undersampled: tuple[UndersampledGap, ...]
    is_known: bool  # False: of some gap no slice says its thickness

    @classmethod
    def of(cls, steps: Sequence[Step], layout: Layout) -> "Sampling":
        gaps = [step.gap for step in steps if step.gap is not None]
        thickness = {gap: thickness_mm(layout, gap) for gap in gaps}
        undersampled = [
            UndersampledGap(float(layout.geometry.gaps_mm[gap]), thickness[gap] or 0.0)
            for gap in gaps
            if is_undersampled(layout, gap)
        ]
        return cls(len(gaps), tuple(undersampled), None not in thickness.values())

    @property
    def facts(self) -> Mapping[str, object]:
        """For the record: how many gaps, and the worst of them; nothing where all is well."""
        if not self.undersampled:
            return {}
        worst = self._worst
        return {
            "undersampled": {
                "gaps": len(self.undersampled),
                "filled": self.filled,
                "gap_mm": round(worst.gap_mm, 4),
                "thickness_mm": round(worst.thickness_mm, 4),
                "unseen": round(worst.unseen, 3),
            }
        }

    @property
    def notes(self) -> Sequence[str]:
        """For people: what was never seen, and what the result may be used for."""
        unknown = () if self.is_known else (UNKNOWN_THICKNESS,)
        if not self.undersampled:
            return unknown
        worst = self._worst
        counted = f"{len(self.undersampled)} of {self.filled} filled gaps"
        return (
            f"undersampled: in {counted} over half of the body was never seen (up to "
            f"{worst.unseen:.0%}: {worst}); vessels and nodules may be missing there, so the "
            "result is for large anatomy only",
            *unknown,
        )

    def check(self, output: Output) -> None:
        """Raise Unprocessable, held, where the route wants no undersampled series."""
        if not self.undersampled or output.undersampled == "process":
            return
        worst = self._worst
        count = len(self.undersampled)
        raise Unprocessable(
            Reason.UNDERSAMPLED,
            f"{count} of the {self.filled} gaps to fill {'is' if count == 1 else 'are'} over twice "
            f"as wide as the slices are thick ({worst}): up to {worst.unseen:.0%} of the body "
            "between was never seen, and vessels and nodules may lie there. Send thicker or closer "
            'slices, or set undersampled = "process" in the route and process the series again: '
            "the result is for large anatomy only.",
        )

    @property
    def _worst(self) -> UndersampledGap:
        return max(self.undersampled, key=lambda gap: gap.unseen)
