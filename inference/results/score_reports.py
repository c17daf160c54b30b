"""Scores as a structured report, and as a selection of the slices to look at first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom.sr.codedict import codes

from inference.dataset import Header
from inference.header import Elements
from inference.model import Scored, Scores
from inference.results import reports
from inference.results.key_objects import key_objects
from inference.results.making import Making, Reference

if TYPE_CHECKING:
    from highdicom.sr import Measurement, MeasurementsAndQualitativeEvaluations

MOST_SLICE_GROUPS = 20
DIGITS = 4  # of a score
REPORT_NUMBER, SELECTION_NUMBER, CAPTURE_NUMBER = 0, 1, 2  # raise the Series Number
SERIES_OF_REPORT = "series of the report"
DENIES_NOTHING = "A score is no diagnosis, and one below its threshold denies nothing."


@dataclass(frozen=True, eq=False)
class ScoredStack:
    """The scores of a stack, what they are of, and the slices in the order of the scores."""

    headers: Sequence[Header]
    scores: Scores
    scored: Scored
    trained_on: str = ""  # ASCII

    @property
    def listed(self) -> tuple[int, ...]:
        """The slices that the report names one by one."""
        return self.scores.high_slices[:MOST_SLICE_GROUPS]

    def name_of(self, index: int) -> str:
        """A slice as a PACS names it: by Instance Number, else by its place in the stack."""
        number = self.headers[index].integer("InstanceNumber")
        return f"image {index + 1} of the stack" if number is None else f"image {number}"


def score_report(stack: ScoredStack, making: Making) -> Elements:
    """The report: a group of the series, and one of each slice at or above the threshold."""
    scores = stack.scores
    best = Reference.of(stack.headers[scores.ranked[0]])
    groups = [_group(stack, making, "series", best, scores.series, is_series=True)]
    groups += [
        _group(
            stack,
            making,
            stack.name_of(index),
            Reference.of(stack.headers[index]),
            float(scores.slices[index]),
        )
        for index in stack.listed
    ]
    evidence = [best, *(Reference.of(stack.headers[index]) for index in stack.listed)]
    return reports.report(
        stack.headers[0],
        groups,
        evidence,
        text_of_report(stack, making),
        making,
        what=f"{stack.scored.label} scores",
        number=REPORT_NUMBER,
    )


def text_of_report(stack: ScoredStack, making: Making) -> str:
    """What made the scores, and what they say and do not say."""
    scores, algorithm = stack.scores, making.algorithm
    high, listed = len(scores.high_slices), len(stack.listed)
    trained = f", trained on {stack.trained_on}" if stack.trained_on else ""
    omitted = f", the highest {listed} of them are listed" if listed < high else ""
    return (
        f"Scores of {stack.scored.label.lower()} by the model {algorithm.name} "
        f"{algorithm.full_version}{trained}. The score of the series is {scores.series:.3f}, its "
        f"threshold {scores.series_threshold:.3f}. {high} of {len(scores.slices)} slices are at or "
        f"above the threshold of slices, {scores.slice_threshold:.3f}{omitted}. "
        f"{_kind_of_number('series', is_calibrated=stack.scored.is_series_calibrated)} "
        f"{_kind_of_number('slice', is_calibrated=stack.scored.is_slice_calibrated)} "
        f"{DENIES_NOTHING}"
    )


def _kind_of_number(of: str, *, is_calibrated: bool) -> str:
    if is_calibrated:
        return f"The probability of a {of} is calibrated for patients like those of the training."
    return f"The certainty of the {of} is an output of the model and no probability."


def _group(
    stack: ScoredStack,
    making: Making,
    name: str,
    image: Reference,
    score: float,
    *,
    is_series: bool = False,
) -> "MeasurementsAndQualitativeEvaluations":
    """One score with its finding (TID 1501)."""
    from highdicom.sr import (
        FindingSite,
        MeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
        TrackingIdentifier,
    )

    scored, scores = stack.scored, stack.scores
    finding = reports.coded(scored.finding)
    is_present = scores.is_present if is_series else True
    is_calibrated = scored.is_series_calibrated if is_series else scored.is_slice_calibrated
    where = "series" if is_series else image.instance_uid
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=making.uid_of(f"tracking of the score of {where}"),
            identifier=f"{scored.label}, {name}",
        ),
        finding_type=finding,
        algorithm_id=reports.algorithm(making),
        finding_sites=[FindingSite(anatomic_location=reports.coded(scored.site))],
        measurements=[_measured(score, is_calibrated=is_calibrated)],
        qualitative_evaluations=[
            QualitativeEvaluation(finding, codes.SCT.Present if is_present else codes.SCT.Absent)
        ],
        source_images=[reports.source_image(image)],
    )


def _measured(score: float, *, is_calibrated: bool) -> "Measurement":
    """A probability where the score is one; else how certain the model is, in per cent."""
    from highdicom.sr import Measurement

    if is_calibrated:
        unit = codes.UCUM.NoUnits
        return Measurement(codes.DCM.Probability, round(score, DIGITS), unit)
    percent = round(100.0 * score, DIGITS - 2)
    return Measurement(codes.DCM.CertaintyOfFinding, percent, codes.UCUM.Percent)


def score_selection(stack: ScoredStack, making: Making) -> Elements | None:
    """The slices at or above their threshold, the highest first; nothing where there is none."""
    high = stack.scores.high_slices
    if not high:
        return None
    return key_objects(
        [stack.headers[index] for index in high],
        f"Slices whose score of {stack.scored.label.lower()} by the model "
        f"{making.algorithm.name} {making.algorithm.full_version} is at or above "
        f"{stack.scores.slice_threshold:.3f}, the highest first. {DENIES_NOTHING}",
        making,
        what=f"{stack.scored.label} key images",
        number=SELECTION_NUMBER,
        first=stack.headers[0],
    )
