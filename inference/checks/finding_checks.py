"""Reads the results of findings from disk again and compares them with what was planned."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from inference.checks.mask_checks import common_faults, segmentation_faults
from inference.dataset import Header, read_header
from inference.model import Segment
from inference.request import File
from inference.results.finding_marks import places_shown
from inference.results.finding_report import ABSENT, measured
from inference.results.findings import SIDES, NumberedFinding
from inference.results.making import RESEARCH_WORDS, Making
from inference.results.segmentation import Region, tracking_uid

Role = Literal["report", "organs", "findings", "marks", "key objects", "capture"]
ALWAYS: frozenset[Role] = frozenset({"report"})
WITH_FINDINGS: frozenset[Role] = frozenset({"findings", "marks", "key objects", "capture"})
COMPREHENSIVE, COMPREHENSIVE_3D = "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.88.34"
# Concept names of TID 1500 and 1411 (PS3.16).
COMMENT, MEASUREMENTS, GROUP, FINDING = "121106", "126010", "125007", "121071"
SITE, LATERALITY = "363698007", "272741003"
TRACKING_UID, SEGMENT, REGION = "112040", "121191", "111030"
GRAPHIC_PIXELS = 1e-3  # coordinates are floats of 32 bits


@dataclass(frozen=True, eq=False)
class ExpectedFindings:
    """The results as they were planned."""

    folder: Path
    files: Mapping[Role, File]
    headers: Sequence[Header]  # of the source
    making: Making
    kind: Segment
    findings: Sequence[NumberedFinding]
    organs: Sequence[Region]
    page: NDArray[np.uint8] | None  # (rows, columns, 3)
    is_3d: bool


def verify(expected: ExpectedFindings) -> tuple[str, ...]:
    """Everything that is wrong with the files; nothing where they are right."""
    faults = [
        f"{file.name}: {fault}"
        for role, file in expected.files.items()
        for fault in JUDGES[role](expected, expected.folder / file.name)
    ]
    names = {path.name for path in expected.folder.glob("*.dcm")}
    if names != {file.name for file in expected.files.values()}:
        faults.append("the folder holds other files than planned")
    wanted = ALWAYS if not expected.findings else ALWAYS | WITH_FINDINGS
    if expected.files.keys() - {"organs"} != wanted:
        faults.append("the results are not those of a list of findings of this length")
    return tuple(faults)


def _organ_faults(expected: ExpectedFindings, path: Path) -> Iterator[str]:
    return segmentation_faults(path, expected.headers, expected.organs, expected.making)


def _finding_faults(expected: ExpectedFindings, path: Path) -> Iterator[str]:
    regions = [of.region for of in expected.findings]
    return segmentation_faults(path, expected.headers, regions, expected.making)


def _read(expected: ExpectedFindings, path: Path) -> tuple[Dataset | None, list[str]]:
    """The data set of a document, a state or a page, and what all of these may have wrong."""
    header = read_header(path)
    if header.fault:
        return None, [header.fault]
    faults = common_faults(header, expected.headers, expected.making, has_frame=False)
    return dcmread(path), list(faults)


def _report_faults(expected: ExpectedFindings, path: Path) -> Iterator[str]:
    report, faults = _read(expected, path)
    yield from faults
    if report is None:
        return
    if report.SOPClassUID != (COMPREHENSIVE_3D if expected.is_3d else COMPREHENSIVE):
        yield "it is no report of the class that was asked for"
    if (report.VerificationFlag, report.PreliminaryFlag) != ("UNVERIFIED", "PRELIMINARY"):
        yield "it does not say that nobody has verified it"
    words = [str(item.TextValue) for item in _named(report, COMMENT)]
    if not words or not words[0].startswith(RESEARCH_WORDS):
        yield "its first words are not those of research"
    groups = [of for item in _named(report, MEASUREMENTS) for of in _named(item, GROUP)]
    if not expected.findings:
        yield from _absence_faults(expected, groups)
        return
    if len(groups) != len(expected.findings):
        yield f"it has {len(groups)} groups for {len(expected.findings)} findings"
        return
    for group, finding in zip(groups, expected.findings, strict=True):
        yield from _group_faults(expected, group, finding)


def _absence_faults(expected: ExpectedFindings, groups: Sequence[Dataset]) -> Iterator[str]:
    """Without findings there is one group, which says that the kind is absent."""
    evaluations = [_codes(group, expected.kind.kind[0]) for group in groups]
    if evaluations != [[ABSENT.value]] or _codes(groups[0], FINDING) != [expected.kind.kind[0]]:
        yield "it does not say once that nothing reached the threshold"


def _group_faults(
    expected: ExpectedFindings, group: Dataset, finding: NumberedFinding
) -> Iterator[str]:
    name = finding.label
    uids = [str(item.UID) for item in _named(group, TRACKING_UID)]
    if uids != [tracking_uid(finding.region, expected.making)]:
        yield f"{name} has another tracking UID than its segment"
    if _codes(group, FINDING) != [expected.kind.kind[0]]:
        yield f"{name} is a finding of another kind"
    sides = [of for site in _named(group, SITE) for of in _codes(site, LATERALITY)]
    side = SIDES.get(finding.finding.site)
    if expected.kind.region is not None and sides != ([side[0]] if side else []):
        yield f"{name} is on another side than was found"
    for code, value in measured(finding):
        numbers = [
            float(item.MeasuredValueSequence[0].NumericValue) for item in _named(group, code)
        ]
        if numbers != [value]:
            yield f"{name} has another value of {code} than was measured"
    yield from _region_faults(expected, group, finding)


def _region_faults(
    expected: ExpectedFindings, group: Dataset, finding: NumberedFinding
) -> Iterator[str]:
    """A group is on its segment, or on its outline in the slice where it is largest."""
    if expected.is_3d:
        segments = [item.ReferencedSOPSequence[0] for item in _named(group, SEGMENT)]
        shown = [(str(of.ReferencedSOPInstanceUID), _number(of)) for of in segments]
        if shown != [(expected.files["findings"].instance_uid, finding.number)]:
            yield f"{finding.label} does not refer to its segment"
        return
    regions = [
        (str(item.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID), item)
        for item in _named(group, REGION)
    ]
    outline = np.array(finding.outline()).ravel()
    middle = expected.headers[finding.middle].uid
    if [uid for uid, _ in regions] != [middle] or not _are_near(regions[0][1].GraphicData, outline):
        yield f"{finding.label} does not have its outline in the slice where it is largest"


def _mark_faults(expected: ExpectedFindings, path: Path) -> Iterator[str]:
    state, faults = _read(expected, path)
    yield from faults
    if state is None:
        return
    places = places_shown(expected.headers, expected.findings)
    (series,) = state.ReferencedSeriesSequence
    shown = [str(item.ReferencedSOPInstanceUID) for item in series.ReferencedImageSequence]
    if shown != [expected.headers[place].uid for place in places]:
        yield "it is not of the slices of the stack"
    wanted = {
        (expected.headers[place].uid, tracking_uid(of.region, expected.making)): (
            np.array(of.box(place).outline).ravel(),
            str(of.number),
        )
        for of in expected.findings
        for place in of.slices
        if place in places
    }
    drawn = dict(_drawn(state))
    if drawn.keys() != wanted.keys():
        yield "its boxes are not on the slices of the findings"
        return
    if any(words != wanted[key][1] for key, (_, words) in drawn.items()):
        yield "a box has another number than its finding"
    if not all(_are_near(corners, wanted[key][0]) for key, (corners, _) in drawn.items()):
        yield "a box does not lie around its finding"


def _drawn(state: Dataset) -> Iterator[tuple[tuple[str, str], tuple[Sequence[float], str]]]:
    """(image, tracking UID) -> the corners of the box and the words beside it."""
    for annotation in state.get("GraphicAnnotationSequence", []):
        (image,) = annotation.ReferencedImageSequence
        objects = zip(annotation.GraphicObjectSequence, annotation.TextObjectSequence, strict=True)
        for box, text in objects:
            uid = str(box.TrackingUID) if box.TrackingUID == text.TrackingUID else ""
            yield (
                (str(image.ReferencedSOPInstanceUID), uid),
                (box.GraphicData, str(text.UnformattedTextValue)),
            )


def _key_object_faults(expected: ExpectedFindings, path: Path) -> Iterator[str]:
    document, faults = _read(expected, path)
    yield from faults
    if document is None:
        return
    chosen = [
        str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for item in document.ContentSequence
        if "ReferencedSOPSequence" in item
    ]
    middles = dict.fromkeys(expected.headers[of.middle].uid for of in expected.findings)
    if chosen != list(middles):
        yield "its key images are not the slices in which the findings are largest"


def _capture_faults(expected: ExpectedFindings, path: Path) -> Iterator[str]:
    picture, faults = _read(expected, path)
    yield from faults
    if picture is None:
        return
    if picture.BurnedInAnnotation != "YES":
        yield "it does not say that there are words in its pixels"
    if expected.page is None or not np.array_equal(picture.pixel_array, expected.page):
        yield "its pixels are not those of the page"


JUDGES: Mapping[Role, Callable[[ExpectedFindings, Path], Iterator[str]]] = {
    "report": _report_faults,
    "organs": _organ_faults,
    "findings": _finding_faults,
    "marks": _mark_faults,
    "key objects": _key_object_faults,
    "capture": _capture_faults,
}


def _named(item: Dataset, code: str) -> list[Dataset]:
    """The content items right below one that have this concept name."""
    below: Sequence[Dataset] = item.get("ContentSequence", [])
    return [of for of in below if of.ConceptNameCodeSequence[0].CodeValue == code]


def _codes(item: Dataset, name: str) -> list[str]:
    """The coded values of content items with this concept name."""
    return [str(of.ConceptCodeSequence[0].CodeValue) for of in _named(item, name)]


def _number(reference: Dataset) -> int:
    """The only segment that a reference names; 0 for several."""
    number = reference.ReferencedSegmentNumber
    return int(number) if isinstance(number, int) else 0


def _are_near(values: Sequence[float], wanted: NDArray[np.float64]) -> bool:
    return len(values) == len(wanted) and bool(
        np.allclose(values, wanted, rtol=0.0, atol=GRAPHIC_PIXELS)
    )
