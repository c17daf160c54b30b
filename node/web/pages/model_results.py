"""What a model said of a series, scores or findings, for the page of its job.

The words name scores and thresholds and never a disease: that is for a person to say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from node.web.pages import drawings
from node.web.pages.drawings import SlicePlace

MAP_WORDS = "The map over a slice shows what the network used, not where anything is."
MOST_NAMED = 20  # slices; a report names no more either


@dataclass(frozen=True)
class NamedSlice:
    """A slice of the stack, counted from 0, as a PACS names it."""

    index: int
    name: str
    score: float


@dataclass(frozen=True)
class ScoresView:
    """The scores of a stack and their thresholds."""

    label: str  # what they are of; "" where the record does not say
    series: float
    series_threshold: float
    slices: tuple[float, ...]
    slice_threshold: float
    above: int  # slices at or above their threshold
    high: tuple[NamedSlice, ...]  # those of them to look at, the highest score first
    map_words: str  # what the map over a slice shows
    chart: Markup

    @property
    def is_high(self) -> bool:
        return self.series >= self.series_threshold


@dataclass(frozen=True)
class FindingView:
    """One row of the list."""

    number: int
    index: int  # the slice in which it is largest, counted from 0
    name: str  # of that slice, as a PACS names it
    box: str
    diameter_mm: float
    axes: str
    volume_mm3: float
    site: str
    score: float


@dataclass(frozen=True)
class FindingsView:
    """The list of findings."""

    label: str  # what they are
    threshold: float | None
    cut: int  # further ones, of lower scores
    rows: tuple[FindingView, ...]


def scores_of(record: Mapping[str, Any], places: Sequence[SlicePlace]) -> ScoresView | None:
    """The scores that a job's record holds; None where it holds none."""
    facts = record.get("scores")
    if not facts:
        return None
    scores, threshold = [float(score) for score in facts["slices"]], float(facts["slice_threshold"])
    named = [NamedSlice(i, _name(i, places), score) for i, score in enumerate(scores)]
    above = [of for of in named if of.score >= threshold]
    # Of thin slices that were seen together the record names one.
    chosen = [named[index] for index in facts.get("high_slices", ())]
    high = chosen or sorted(above, key=lambda of: -of.score)
    return ScoresView(
        label=str(facts.get("label", "")),
        series=float(facts["series"]),
        series_threshold=float(facts["series_threshold"]),
        slices=tuple(scores),
        slice_threshold=threshold,
        above=len(above),
        high=tuple(high[:MOST_NAMED]),
        map_words=str(facts.get("map_words", MAP_WORDS)),
        chart=drawings.scores(scores, threshold, [of.name for of in named]),
    )


def findings_of(record: Mapping[str, Any], places: Sequence[SlicePlace]) -> FindingsView | None:
    """The findings that a job's record holds; None where no model looked for any."""
    if "findings" not in record:
        return None
    threshold = record.get("threshold")
    return FindingsView(
        label=str(record.get("finding", "")),
        threshold=None if threshold is None else float(threshold),
        cut=int(record.get("findings_cut", 0)),
        rows=tuple(_finding(entry, places) for entry in record["findings"]),
    )


def strongest(record: Mapping[str, Any]) -> int | None:
    """The slice with the highest score, or with the first finding; None where there is none."""
    if scores := record.get("scores"):
        slices = list(scores["slices"])
        return next(iter(scores.get("high_slices", ())), slices.index(max(slices)))
    return next((int(entry["slice"]) for entry in record.get("findings", ())), None)


def _finding(entry: Mapping[str, Any], places: Sequence[SlicePlace]) -> FindingView:
    left, top, right, bottom = entry["box"]
    return FindingView(
        number=int(entry["number"]),
        index=int(entry["slice"]),
        name=_name(int(entry["slice"]), places),
        box=f"columns {left + 1} to {right}, rows {top + 1} to {bottom}",
        diameter_mm=float(entry["diameter_mm"]),
        axes=f"{entry['long_axis_mm']:.1f} × {entry['short_axis_mm']:.1f} mm",
        volume_mm3=float(entry["volume_mm3"]),
        site=str(entry.get("site", "")),
        score=float(entry["score"]),
    )


def _name(index: int, places: Sequence[SlicePlace]) -> str:
    """The Instance Number of a received slice, where it came with one."""
    number = places[index].received_number if index < len(places) else None
    return f"image {number}" if number is not None else f"slice {index + 1}"
