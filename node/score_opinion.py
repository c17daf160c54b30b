"""A second opinion on the results of scores: their files beside those they were made from.

Like `node/second_opinion.py` it knows nothing of the product: it reads the report item by item.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydicom import Dataset

from node.second_opinion import (
    EXPLICIT_LITTLE_ENDIAN,
    PATIENT_AND_STUDY,
    QUALIFICATIONS,
    UUID_UID,
    Slice,
)

COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"
KEY_OBJECTS = "1.2.840.10008.5.1.4.1.1.88.59"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
PRESENT, ABSENT = "52101004", "272519000"  # SNOMED CT
PROBABILITY, CERTAINTY, OF_INTEREST = "122157", "111012", "113000"  # PS3.16
ALGORITHM = ("111001", "111003", "111002")  # its name, version and parameters
THRESHOLD = re.compile(r"(slice|series) threshold (0?\.\d+|[01](?:\.\d+)?)")
RESEARCH_END, RESEARCH = "(AI, research)", "Research only, not for diagnosis"
DENYING = ("normal", "negative", "no haemorrhage", "no hemorrhage", "excluded")
MOST_SLICES = 20
ROUNDING = 1e-4
Faults = Iterator[str]


def check(received: Sequence[Path], results: Sequence[Path]) -> list[str]:
    """Everything that is wrong with the result files of scores; nothing where they are right.

    `received` are the files of the stack that was scored; `results` one report, and what else the
    destination took: a selection of key images, a page of pictures.
    """
    read = [Slice.read(path) for path in results]
    by_class = {
        uid: [item for item in read if item.header.SOPClassUID == uid]
        for uid in (COMPREHENSIVE_SR, KEY_OBJECTS, SECONDARY_CAPTURE)
    }
    counts = [len(items) for items in by_class.values()]
    if counts[0] != 1 or max(counts) > 1 or sum(counts) != len(read):
        return [f"{counts[0]} reports, {counts[1]} selections and {counts[2]} pages: {len(read)}"]
    sources = {item.uid: item for item in map(Slice.read, received)}
    evidence = ScoreEvidence(sources, read, *by_class.values())
    faults: list[str] = []
    for judge in (_report, _scores, _selection, _capture, _words, _identity, _uids):
        try:
            faults += judge(evidence)
        except (AttributeError, KeyError, IndexError, ValueError, TypeError) as absent:
            faults.append(f"absent: {absent}")
    return faults


@dataclass(frozen=True)
class Score:
    """A measurement group of the report."""

    image_uid: str
    value: float  # 0 to 1
    is_present: bool
    thresholds: Mapping[str, float]  # "slice" and "series"


@dataclass(frozen=True, eq=False)
class ScoreEvidence:
    """The received slices by UID, and the results; a selection and a page may be absent."""

    received: Mapping[str, Slice]
    all: Sequence[Slice]
    reports: Sequence[Slice]
    selections: Sequence[Slice]
    captures: Sequence[Slice]

    @property
    def report(self) -> Dataset:
        return self.reports[0].header

    @cached_property
    def scores(self) -> Sequence[Score]:
        """The groups of the report: the series first, then slices."""
        measurements = [item for item in self.report.ContentSequence if _name(item) == "126010"]
        return [_score_of(group) for group in measurements[0].ContentSequence]


def _score_of(group: Dataset) -> Score:
    items = list(group.ContentSequence)
    (image,) = (item for item in items if item.ValueType == "IMAGE")
    (measured,) = (item for item in items if item.ValueType == "NUM")
    number = measured.MeasuredValueSequence[0]
    unit = number.MeasurementUnitsCodeSequence[0].CodeValue
    whole = {(PROBABILITY, "1"): 1.0, (CERTAINTY, "%"): 100.0}[_name(measured), unit]
    words = {
        item.ConceptCodeSequence[0].CodeValue for item in items if item.ValueType == "CODE"
    } & {PRESENT, ABSENT}
    (word,) = words
    texts = {_name(item): item.TextValue for item in items if item.ValueType == "TEXT"}
    if not all(texts[name] for name in ALGORITHM):
        raise ValueError("a group does not name its model")
    found = {what: float(value) for what, value in THRESHOLD.findall(texts[ALGORITHM[-1]])}
    uid = str(image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
    return Score(uid, float(number.NumericValue) / whole, word == PRESENT, found)


def _name(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeValue)


def _named(document: Dataset) -> list[str]:
    """The UIDs of the images that the items of a document name, in their order."""
    return [
        str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for item in document.ContentSequence
        if item.ValueType == "IMAGE"
    ]


def _evidence(document: Dataset) -> set[str]:
    """The UIDs of the instances that a document lists beside its content."""
    return {
        str(instance.ReferencedSOPInstanceUID)
        for study in document.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }


def _report(evidence: ScoreEvidence) -> Faults:
    """The report is preliminary, says first that it is research, and denies nothing in words."""
    report = evidence.report
    flags = report.VerificationFlag, report.PreliminaryFlag
    if flags != ("UNVERIFIED", "PRELIMINARY"):
        yield f"the report is {flags[0]} and {flags[1]}"
    contained = [item for item in report.ContentSequence if item.RelationshipType == "CONTAINS"]
    if not contained[0].TextValue.startswith(RESEARCH):
        yield "the report does not say first that it is for research"
    text = contained[0].TextValue.lower()
    if any(word in text for word in DENYING):
        yield "the report says in words that there is nothing"


def _scores(evidence: ScoreEvidence) -> Faults:
    """Present and Absent are what scores and thresholds say; the highest slices come first."""
    series, *slices = evidence.scores
    if series.is_present != (series.value >= series.thresholds["series"] - ROUNDING):
        yield "the series is called present or absent against its threshold"
    if not all(score.is_present for score in slices):
        yield "a slice that is listed is called absent"
    if any(score.value < score.thresholds["slice"] - ROUNDING for score in slices):
        yield "a slice is listed whose score is below its threshold"
    values = [score.value for score in slices]
    if len(values) > MOST_SLICES or values != sorted(values, reverse=True):
        yield f"the {len(values)} slices are too many, or not in the order of their scores"
    images = [score.image_uid for score in slices]
    if len(set(images)) != len(images) or not {*images, series.image_uid} <= {*evidence.received}:
        yield "a group names an image that was not received, or one twice"
    if images and images[0] != series.image_uid:
        yield "the series does not name the slice with the highest score"
    if _evidence(evidence.report) != {*images, series.image_uid}:
        yield "the evidence of the report is not what its groups name"


def _selection(evidence: ScoreEvidence) -> Faults:
    """Key images are those of the report, and further ones only where it lists its most."""
    listed = [score.image_uid for score in evidence.scores[1:]]
    if evidence.selections and not listed:
        yield "key images are selected although no slice is at or above the threshold"
    for selection in evidence.selections:
        header, named = selection.header, _named(selection.header)
        if named[: len(listed)] != listed or (len(named) > len(listed) != MOST_SLICES):
            yield "the key images are not the slices of the report"
        if not set(named) <= evidence.received.keys() or _evidence(header) != set(named):
            yield "a key image was not received"
        if (_name(header), header.Modality) != (OF_INTEREST, "KO"):
            yield "the title of the selection"


def _capture(evidence: ScoreEvidence) -> Faults:
    """The page is a colour picture, says that words are burned in, and shows received slices."""
    for capture in evidence.captures:
        header = capture.header
        form = header.PhotometricInterpretation, header.SamplesPerPixel, header.BitsAllocated
        if form != ("RGB", 3, 8) or header.BurnedInAnnotation != "YES":
            yield "the page is no colour picture with words burned in"
        size = int(header.Rows) * int(header.Columns) * 3
        if len(header.PixelData) < size or len(set(header.PixelData)) < 2:
            yield "the page is empty"
        shown = {str(item.ReferencedSOPInstanceUID) for item in header.SourceImageSequence}
        if not shown or not shown <= evidence.received.keys():
            yield "the page shows slices that were not received"
        if list(header.ImageType)[:2] != ["DERIVED", "SECONDARY"]:
            yield "the page does not say that it is derived"


def _words(evidence: ScoreEvidence) -> Faults:
    """All of them say that they are for research and what made them."""
    for item in evidence.all:
        if not item.header.SeriesDescription.endswith(RESEARCH_END):
            yield f"{item.name}: Series Description is {item.header.SeriesDescription!r}"
        if item.header.ContentQualification not in QUALIFICATIONS:
            yield f"{item.name}: Content Qualification"
        if item.header.Manufacturer != "Midslice":
            yield f"{item.name}: the node is not named as the equipment"


def _identity(evidence: ScoreEvidence) -> Faults:
    """Same patient and study, and no place in the patient that a document has not."""
    sources = evidence.received.values()
    for item in evidence.all:
        for keyword in PATIENT_AND_STUDY:
            if item.encoded.get(keyword) not in {of.encoded.get(keyword) for of in sources}:
                yield f"{item.name}: {keyword} is not that of the received series"
        if "ImagePositionPatient" in item.header or "FrameOfReferenceUID" in item.header:
            yield f"{item.name}: claims a place in the patient"
        if item.header.file_meta.TransferSyntaxUID != EXPLICIT_LITTLE_ENDIAN:
            yield f"{item.name}: not Explicit VR Little Endian"


def _uids(evidence: ScoreEvidence) -> Faults:
    """UIDs are new, and each result is a series of its own."""
    sources = evidence.received.values()
    used = {str(source.header.SeriesInstanceUID) for source in sources} | evidence.received.keys()
    for item in evidence.all:
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
            uid = str(item.header[keyword].value)
            if uid in used or not UUID_UID.fullmatch(uid):
                yield f"{item.name}: {keyword} {uid} is no new one"
            used.add(uid)
