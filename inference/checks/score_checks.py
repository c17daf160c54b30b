"""Reads what was made of scores from disk again and compares it with the source and the scores."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from inference.checks.mask_checks import common_faults
from inference.dataset import Header, read_header
from inference.results.making import RESEARCH_WORDS, Making
from inference.results.score_reports import ScoredStack

UNVERIFIED = ("UNVERIFIED", "PRELIMINARY", "COMPLETE")
ROUNDING = 1e-4  # of a score in a report


@dataclass(frozen=True, eq=False)
class ExpectedScores:
    """The results as they were planned."""

    folder: Path
    stack: ScoredStack
    making: Making
    report: str  # its file
    page: NDArray[np.uint8]  # (rows, columns, 3)
    capture: str
    shown: Sequence[Header]  # the slices on the page
    selection: str = ""  # its file; "" where no slice is at or above the threshold


def verify(expected: ExpectedScores) -> tuple[str, ...]:
    """Everything that is wrong with the files; nothing where they are right."""
    faults: list[str] = []
    judges = {expected.report: _report_faults, expected.capture: _capture_faults}
    if expected.selection:
        judges[expected.selection] = _selection_faults
    for name, judge in judges.items():
        path = expected.folder / name
        header = read_header(path)
        if header.fault:
            faults.append(f"{name}: {header.fault}")
            continue
        common = common_faults(header, expected.stack.headers, expected.making, has_frame=False)
        faults += [f"{name}: {fault}" for fault in (*common, *judge(expected, dcmread(path)))]
    if {path.name for path in expected.folder.glob("*.dcm")} != judges.keys():
        faults.append("the folder holds other files than planned")
    return tuple(faults)


def _report_faults(expected: ExpectedScores, report: Dataset) -> Iterator[str]:
    stack, scores = expected.stack, expected.stack.scores
    flags = report.VerificationFlag, report.PreliminaryFlag, report.CompletionFlag
    if flags != UNVERIFIED:
        yield f"its flags are {', '.join(flags)}"
    contained = [item for item in report.ContentSequence if item.RelationshipType == "CONTAINS"]
    words, measurements = contained
    if not words.TextValue.startswith(RESEARCH_WORDS):
        yield "its first text does not say that it is for research"
    groups = list(measurements.ContentSequence)
    wanted = [(stack.headers[scores.ranked[0]].uid, scores.series, scores.is_present)]
    wanted += [(stack.headers[i].uid, float(scores.slices[i]), True) for i in stack.listed]
    if len(groups) != len(wanted):
        yield f"it has {len(groups)} groups for {len(wanted)} scores"
        return
    for number, (group, (uid, score, is_present)) in enumerate(zip(groups, wanted, strict=True)):
        yield from (
            f"group {number}: {fault}"
            for fault in _group_faults(expected, group, uid, score, is_present=is_present)
        )
    if set(_evidence(report)) != {uid for uid, _, _ in wanted}:
        yield "its evidence is not what its groups refer to"


def _group_faults(
    expected: ExpectedScores, group: Dataset, uid: str, score: float, *, is_present: bool
) -> Iterator[str]:
    finding = Code(*expected.stack.scored.finding)
    value = codes.SCT.Present if is_present else codes.SCT.Absent
    items = list(group.ContentSequence)
    images = [item for item in items if item.ValueType == "IMAGE"]
    if [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in images] != [uid]:
        yield "its image is another one"
    said = [item for item in items if item.ValueType == "CODE" and _name(item) == finding.value]
    if [item.ConceptCodeSequence[0].CodeValue for item in said] != [value.value]:
        yield "it does not say whether the finding is present as its score does"
    (measured,) = (item for item in items if item.ValueType == "NUM")
    number = measured.MeasuredValueSequence[0]
    is_percent = number.MeasurementUnitsCodeSequence[0].CodeValue == codes.UCUM.Percent.value
    name = codes.DCM.CertaintyOfFinding if is_percent else codes.DCM.Probability
    if _name(measured) != name.value:
        yield "its score is called something else"
    if abs(float(number.NumericValue) / (100.0 if is_percent else 1.0) - score) > ROUNDING:
        yield "its score is not the one of the model"
    texts = [item.TextValue for item in items if item.ValueType == "TEXT"]
    algorithm = expected.making.algorithm
    if not {algorithm.name, algorithm.full_version, algorithm.parameters} - {""} <= set(texts):
        yield "it does not name the model, its version and its thresholds"


def _name(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeValue)


def _evidence(document: Dataset) -> list[str]:
    """The UIDs of the instances that a document names as what it is about."""
    return [
        str(instance.ReferencedSOPInstanceUID)
        for study in document.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    ]


def _selection_faults(expected: ExpectedScores, selection: Dataset) -> Iterator[str]:
    stack = expected.stack
    wanted = [stack.headers[index].uid for index in stack.scores.high_slices]
    items = list(selection.ContentSequence)
    named = [
        str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for item in items
        if item.ValueType == "IMAGE"
    ]
    if named != wanted or sorted(_evidence(selection)) != sorted(wanted):
        yield "it does not select exactly the slices at or above their threshold"
    texts = [item.TextValue for item in items if item.ValueType == "TEXT"]
    if not any(text.startswith(RESEARCH_WORDS) for text in texts):
        yield "its text does not say that it is for research"


def _capture_faults(expected: ExpectedScores, capture: Dataset) -> Iterator[str]:
    if capture.BurnedInAnnotation != "YES" or capture.Modality != "OT":
        yield "it does not say that words are burned in"
    if not np.array_equal(capture.pixel_array, expected.page):
        yield "its pixels are not the page that was drawn"
    sources = [str(item.ReferencedSOPInstanceUID) for item in capture.SourceImageSequence]
    if sources != [header.uid for header in expected.shown]:
        yield "its sources are not the slices that it shows"
