"""The contract between the node and every model: arrays in, arrays out, and its checks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inference.request import Parameters as Parameters  # part of this contract
from inference.request import Produces as Produces
from inference.volume import Geometry, Plane

CodeTriple = tuple[str, str, str]  # value, coding scheme, meaning
SITES = ("right", "left", "")  # of a finding


@dataclass(frozen=True)
class Segment:
    """The thing that a mask shows, in words and codes (PS3.16 CID 7150 and 7151)."""

    label: str
    category: CodeTriple
    kind: CodeTriple
    modifier: CodeTriple | None = None  # of `kind`: one side of a pair
    region: CodeTriple | None = None  # the part of the body that it lies in
    region_modifier: CodeTriple | None = None  # the side of that part


@dataclass(frozen=True)
class Scored:
    """The thing that scores are of, in words and codes, and what kind of number a score is."""

    label: str  # ASCII: Haemorrhage
    finding: CodeTriple
    site: CodeTriple  # where it lies
    map_words: str = "The heat map shows what the network used, not where anything is."
    is_slice_calibrated: bool = False  # then the score of a slice is called a probability
    is_series_calibrated: bool = False


@dataclass(frozen=True)
class Step:
    """One piece of a model's work: a gap and the places to fill in it, a survey, or a mask.

    `fractions` are the places of the generated slices between `slices[gap]` and the next one,
    each in (0, 1), ascending; they come from positions, not from counts. A survey leaves a
    received slice out and compares what the model makes of its neighbours with it; surveys come
    before every gap, and each gap is told what all of them measured. A mask is asked for the
    slices that it needs, and has neither.
    """

    needs: tuple[int, ...]  # indices of received slices, ascending
    gap: int | None = None  # the gap between received slices `gap` and `gap + 1`
    fractions: tuple[float, ...] = ()
    survey: int | None = None  # the received slice that is left out


# What a survey step measured; the keys are the model's own.
Measured = Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Draft:
    """What a model makes of a gap before anything is known of the rest of its stack."""

    planes: tuple[Plane, ...]  # the model's own

    @property
    def nbytes(self) -> int:
        return sum(plane.nbytes for plane in self.planes)


@dataclass(frozen=True, eq=False)
class Window:
    """The received slices that a step needs, read-only, with the geometry of the whole stack."""

    geometry: Geometry
    slices: Mapping[int, Plane]  # slice index -> (rows, columns) float32, HU or an MR scanner's
    surveyed: tuple[Measured, ...] = ()  # for a gap: what every survey of the stack measured
    draft: Draft | None = None  # for a gap: what the model has made of these very slices before


@dataclass(frozen=True)
class SeriesFacts:
    """The words of the headers of a stack, for a model that states its scope."""

    values: Mapping[str, tuple[str, ...]]  # keyword -> each different value once, none empty
    age_years: float | None = None
    accept_children: bool = False  # the route's word

    def of(self, *keywords: str) -> tuple[tuple[str, str], ...]:
        """Pairs of keyword and value, for each value of these attributes."""
        return tuple((name, value) for name in keywords for value in self.values.get(name, ()))


@dataclass(frozen=True)
class Limits:
    """Limits of a step; the out-of-memory ladder lowers them and the step runs again."""

    device: str = "cpu"  # a torch device
    batch: int = 4  # slices predicted at once
    tile: int | None = None  # side of a square tile in pixels; None = whole slices


@dataclass(frozen=True)
class Trust:
    """The nearness to the truth that a model expects of one generated slice."""

    error_hu: float  # expected mean absolute error in the body
    confidence: float  # 0 to 1; falls as that error rises
    interval: float  # times `scale_hu`: what 90 % of the errors in the body stay below


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of a stack: probabilities of what the model looks for, 0 to 1, and their thresholds.

    At or above a threshold a score says "present"; below it nothing is denied.
    """

    slices: NDArray[np.float64]  # (slices,), of the source, in its order
    series: float
    slice_threshold: float
    series_threshold: float
    heat: Mapping[int, Plane] = field(default_factory=dict)  # slice -> (rows, columns) 0 to 1

    @property
    def is_present(self) -> bool:
        """True where the series is at or above its threshold."""
        return self.series >= self.series_threshold

    @property
    def ranked(self) -> tuple[int, ...]:
        """Slices, the highest score first.

        Neighbours with one score, as thin slices that were seen together, are one: their middle.
        """
        starts = np.flatnonzero(np.diff(self.slices, prepend=np.nan)).tolist()
        ends = [*starts[1:], len(self.slices)]
        middles = [(first + end - 1) // 2 for first, end in zip(starts, ends, strict=True)]
        return tuple(sorted(middles, key=lambda index: (-self.slices[index], index)))

    @property
    def high_slices(self) -> tuple[int, ...]:
        """Those of them that are at or above their threshold."""
        return tuple(i for i in self.ranked if self.slices[i] >= self.slice_threshold)


@dataclass(frozen=True, eq=False)
class Finding:
    """One thing that a model found, on the grid of the source.

    `first` is the slice, row and column of the corner of `mask`, a block of pixels; sizes are in
    patient space. `site` is "right" or "left", or "" where the side is not known; `record` is JSON
    for the page of the job, `where` in it ASCII words for the map of the findings.
    """

    score: float  # 0 to 1
    first: tuple[int, int, int]
    mask: NDArray[np.bool_]  # (slices, rows, columns), true where the finding lies; not empty
    long_axis_mm: float  # the longest diameter in a slice
    short_axis_mm: float  # at right angles to it, in the same slice
    volume_mm3: float
    site: str = ""
    record: Mapping[str, object] = field(default_factory=dict)

    @property
    def diameter_mm(self) -> float:
        """The mean of long and short axis, to 0.1 mm."""
        return round((self.long_axis_mm + self.short_axis_mm) / 2.0, 1)


@dataclass(frozen=True, eq=False)
class Prediction:
    """The result of one step: HU for `slices`, 0/1 for `mask`, `scores`, or `findings`.

    A model of findings gives in `planes` the organs that it looked in: 0, or n for the n-th of its
    `segments`. All that stands below `findings` a model gives for every fraction, or not at all.
    """

    planes: tuple[Plane, ...] = ()  # one per fraction of the step (or per needed slice of a mask)
    scores: Scores | None = None
    findings: tuple[Finding, ...] = ()  # the highest score first
    scale_hu: tuple[NDArray[np.float32], ...] = ()  # expected absolute error of each pixel
    trust: tuple[Trust, ...] = ()
    classical: tuple[Plane, ...] = ()  # the best interpolation without training, for poor trust
    classical_name: str = ""  # linear, cubic or dis
    weights: tuple[float, ...] = ()  # the share of each slice that is the network's, 0 to 1
    classical_trust: tuple[Trust, ...] = ()  # what is expected of `classical`, where that is known
    measured: Measured = field(default_factory=dict)  # of a survey
    record: Mapping[str, object] = field(default_factory=dict)  # JSON: how the gap was filled


class Model(Protocol):
    """A plug-in. It keeps no state between steps but its weights, and never modifies its input.

    A process loads it once and uses it for job after job, until its files change. Its constructor
    takes no argument, or `weights: pathlib.Path` and `device: str` where the configuration names
    weights. Two attributes may be left out: `runtime`, a text that changes with whatever else
    changes its results (precision, calibration), and `concurrent`, true where `run` may be called
    by several threads at once. A model of slices may have `draft(step, slices, limits)`, the Draft
    of a gap, with which `run` gives the same to the bit in less time: it is made while a series
    still arrives, from the needed slices and their places alone. A model of masks has a `segment`
    too, and may have `operating_point`, its threshold in ASCII words; `doubts` in the record of
    its prediction are sentences, and a job with one is held. A model of findings has `finding`,
    the Segment that says of which kind they are, `threshold`, the score from which on it calls
    something a finding, and `segments`, the organs that it looks in; it may have
    `operating_point` and `doubts` too. A model of scores has `scored`, what they are of, and
    `operating_point`. Both may have `trained_on`, ASCII words for a report ("66 patients of
    ..."), and `check_scope(facts: SeriesFacts, geometry: Geometry)`, which raises Unprocessable
    OUT_OF_SCOPE with a sentence that names the attribute and its value; what its pixels put out
    of scope `run` raises in the same way. `doubts_about(facts)` gives sentences on what the
    headers leave doubtful; a job with one is held.
    """

    name: str
    version: str
    weights_sha256: str  # "" for a model without weights
    produces: Produces

    def plan(self, geometry: Geometry, parameters: Parameters) -> Sequence[Step]:
        """Surveys, then gaps; raises Unprocessable where the model cannot serve the stack."""
        ...

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        """The prediction of one step; deterministic on one device."""
        ...
