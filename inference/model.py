"""The contract between the node and every model: arrays in, arrays out, and its checks."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inference.errors import PredictionError
from inference.request import Parameters as Parameters  # part of this contract
from inference.request import Produces as Produces
from inference.volume import Geometry, Plane, Volume

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
class Window:
    """The received slices that a step needs, read-only, with the geometry of the whole stack."""

    geometry: Geometry
    slices: Mapping[int, Plane]  # slice index -> (rows, columns) float32, HU or an MR scanner's
    surveyed: tuple[Measured, ...] = ()  # for a gap: what every survey of the stack measured


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
    by several threads at once. A model of masks has a `segment` too, and may have
    `operating_point`, its threshold in ASCII words; `doubts` in the record of its prediction are
    sentences, and a job with one is held. A model of findings has `finding`, the Segment that says
    of which kind they are, `threshold`, the score from which on it calls something a finding, and
    `segments`, the organs that it looks in; it may have `operating_point` and `doubts` too. A model
    of scores has `scored`, what they are of, and `operating_point`. Both may have `trained_on`,
    ASCII words for a report ("66 patients of ..."), and `check_scope(facts: SeriesFacts, geometry:
    Geometry)`, which raises Unprocessable OUT_OF_SCOPE with a sentence that names the attribute and
    its value; what its pixels put out of scope `run` raises in the same way. `doubts_about(facts)`
    gives sentences on what the headers leave doubtful; a job with one is held.
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


def check_prediction(step: Step, prediction: Prediction, volume: Volume) -> None:
    """Raise PredictionError for a prediction that is not what the step asked for."""
    wanted = len(step.fractions)
    if len(prediction.planes) != wanted:
        raise PredictionError(
            f"the model gave {len(prediction.planes)} slices for a gap of {wanted}"
        )
    trusts = prediction.trust, prediction.classical_trust
    for beside in (prediction.scale_hu, prediction.classical, prediction.weights, *trusts):
        if len(beside) not in (0, wanted):
            raise PredictionError(f"the model says {len(beside)} things of {wanted} slices")
    for plane in (*prediction.planes, *prediction.scale_hu, *prediction.classical):
        _check_plane(plane, (volume.geometry.rows, volume.geometry.columns))
    for trust in itertools.chain(*trusts):
        _check_trust(trust)


def check_record(prediction: Prediction) -> None:
    """Raise PredictionError for a record that is no JSON: the page of the job is drawn from it."""
    for record in (prediction.record, *(finding.record for finding in prediction.findings)):
        try:
            json.dumps(record, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise PredictionError(f"the model's record is no JSON: {error}") from error


def check_mask(step: Step, prediction: Prediction, volume: Volume) -> None:
    """Raise PredictionError for a mask that is not 0 or 1 for each pixel that was asked for."""
    if len(prediction.planes) != len(step.needs):
        raise PredictionError(
            f"the model gave a mask of {len(prediction.planes)} slices for {len(step.needs)}"
        )
    for plane in prediction.planes:
        _check_plane(plane, (volume.geometry.rows, volume.geometry.columns))
        if not np.isin(plane, (0.0, 1.0)).all():
            raise PredictionError("the model gave a mask with other values than 0 and 1")


def check_findings(step: Step, prediction: Prediction, volume: Volume) -> None:
    """Raise PredictionError for organs or findings that cannot lie in the stack as they are."""
    geometry = volume.geometry
    if len(prediction.planes) not in (0, len(step.needs)):
        raise PredictionError(
            f"the model gave organs in {len(prediction.planes)} slices for {len(step.needs)}"
        )
    for plane in prediction.planes:
        _check_plane(plane, (geometry.rows, geometry.columns))
        if plane.min(initial=0.0) < 0 or not np.equal(plane, np.rint(plane)).all():
            raise PredictionError("the model gave organs that are no whole numbers from 0")
    for finding in prediction.findings:
        _check_finding(finding, (len(geometry), geometry.rows, geometry.columns))
    scores = [finding.score for finding in prediction.findings]
    if scores != sorted(scores, reverse=True):
        raise PredictionError("the model gave findings that are not in the order of their scores")


def check_scores(step: Step, prediction: Prediction, volume: Volume) -> None:
    """Raise PredictionError for anything but a score of 0 to 1 for each slice and the series."""
    scores = prediction.scores
    if scores is None:
        raise PredictionError("the model gave no scores")
    geometry = volume.geometry
    if scores.slices.shape != (len(geometry),):
        raise PredictionError(
            f"the model gave scores of {len(scores.slices)} slices for {len(geometry)}"
        )
    series = scores.series, scores.slice_threshold, scores.series_threshold
    if not all(0.0 <= score <= 1.0 for score in (*series, *scores.slices.tolist())):
        raise PredictionError("the model gave scores that are not between 0 and 1")
    for index, plane in scores.heat.items():
        if not 0 <= index < len(geometry):
            raise PredictionError(f"the model gave a map of slice {index} of {len(geometry)}")
        _check_plane(plane, (geometry.rows, geometry.columns))
        if plane.min() < 0.0 or plane.max() > 1.0:
            raise PredictionError("the model gave a map that is not between 0 and 1")


def _check_finding(finding: Finding, shape: tuple[int, int, int]) -> None:
    sizes = finding.short_axis_mm, finding.long_axis_mm, finding.volume_mm3
    if not 0.0 <= finding.score <= 1.0:
        raise PredictionError(f"the model gave a finding a score of {finding.score}")
    if not all(math.isfinite(size) and size > 0 for size in sizes) or sizes[0] > sizes[1]:
        raise PredictionError(f"the model measured a finding as {sizes}, which cannot be")
    mask = finding.mask
    if mask.dtype != np.bool_ or mask.ndim != 3 or not mask.any():
        raise PredictionError("the model gave a finding without a mask")
    ends = zip(finding.first, mask.shape, shape, strict=True)
    if not all(first >= 0 and first + length <= most for first, length, most in ends):
        raise PredictionError("the model gave a finding outside the stack")
    if finding.site not in SITES:
        raise PredictionError(f"the model gave a finding at the site {finding.site!r}")


def _check_plane(plane: Plane, shape: tuple[int, int]) -> None:
    if plane.shape != shape:
        raise PredictionError(f"the model gave a slice of {plane.shape}, not {shape}")
    if not np.isfinite(plane).all():
        raise PredictionError("the model gave values that are not finite numbers")


def _check_trust(trust: Trust) -> None:
    is_known = all(map(math.isfinite, (trust.error_hu, trust.confidence, trust.interval)))
    if not (
        is_known and 0.0 <= trust.confidence <= 1.0 and min(trust.error_hu, trust.interval) >= 0
    ):
        raise PredictionError(f"the model expects what cannot be: {trust}")


def check_measured(measured: Measured) -> None:
    """Raise PredictionError for a survey that measured nothing, or no finite number."""
    if not measured or not all(math.isfinite(value) for value in measured.values()):
        raise PredictionError("a survey of the model measured no finite numbers")


def check_steps(steps: Sequence[Step], slices: int) -> None:
    """Raise PredictionError for a plan that does not fit the stack."""
    surveys = list(itertools.takewhile(lambda step: step.survey is not None, steps))
    for step in surveys:
        _check_survey(step, slices)
    seen: set[int] = set()
    for step in steps[len(surveys) :]:
        if step.survey is not None:
            raise PredictionError("the model planned a survey after a gap")
        if step.gap is None or not 0 <= step.gap < slices - 1 or step.gap in seen:
            raise PredictionError(f"the model planned gap {step.gap} of {slices - 1}")
        seen.add(step.gap)
        _check_gap(step, step.gap, slices)


def _check_survey(step: Step, slices: int) -> None:
    left_out = step.survey or 0
    if not 0 < left_out < slices - 1 or step.gap is not None or step.fractions:
        raise PredictionError(f"the model planned a survey of slice {step.survey} of {slices}")
    if not {left_out - 1, left_out, left_out + 1} <= set(step.needs) <= set(range(slices)):
        raise PredictionError(f"the model needs slices {step.needs} to survey {left_out}")


def _check_gap(step: Step, gap: int, slices: int) -> None:
    if not {gap, gap + 1} <= set(step.needs) <= set(range(slices)):
        raise PredictionError(f"the model needs slices {step.needs} for gap {gap}")
    inside = all(0.0 < fraction < 1.0 for fraction in step.fractions)
    if not step.fractions or not inside or sorted(set(step.fractions)) != [*step.fractions]:
        raise PredictionError(f"the model planned places {step.fractions} in a gap")


def check_whole(steps: Sequence[Step], slices: int) -> None:
    """Raise PredictionError for a plan that is not for every slice once."""
    needed = [index for step in steps for index in step.needs]
    is_other = any(step.gap is not None or step.survey is not None for step in steps)
    if is_other or sorted(needed) != list(range(slices)):
        raise PredictionError(f"the model planned to look at other slices than the {slices}")
