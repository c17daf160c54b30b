"""A second opinion on the results of findings: their files beside those they were made from.

Like `node/second_opinion.py` it knows nothing of the product: it unpacks the frames, walks the
report, and measures each segment itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from node.mask_opinion import RESEARCH_END, SEGMENTATION, source_of_frame
from node.second_opinion import (
    EXPLICIT_LITTLE_ENDIAN,
    PATIENT_AND_STUDY,
    POSITION_MM,
    QUALIFICATIONS,
    UUID_UID,
    Slice,
)

COMPREHENSIVE, COMPREHENSIVE_3D = "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.88.34"
STATE, KEY_OBJECTS = "1.2.840.10008.5.1.4.1.1.11.1", "1.2.840.10008.5.1.4.1.1.88.59"
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
RESEARCH_WORDS = "Research only, not for diagnosis"
# Concept names and values of PS3.16 that a report is read by.
MEASUREMENTS, GROUP, COMMENT = "126010", "125007", "121106"
FINDING, SITE, LATERALITY = "121071", "363698007", "272741003"
TRACKING_UID, SEGMENT, REGION, PARAMETERS = "112040", "121191", "111030", "111002"
DIAMETER, LONG, SHORT, VOLUME = "81827009", "103339001", "103340004", "118565006"
CERTAINTY, ABSENT = "111012", "272519000"
ANATOMY = "123037004"
RIGHT, LEFT = "24028007", "7771000"
UNITS = {DIAMETER: "mm", LONG: "mm", SHORT: "mm", VOLUME: "mm3", CERTAINTY: "%"}
ROUNDING_MM = 0.06  # of sizes to 0.1 mm
# A model may measure between the pixels of its segment: by so much sizes may be apart.
MOST_PIXELS_OFF, MOST_VOLUME_RATIO = 2.5, 2.0
BOX_PIXELS = 1e-3
Faults = Iterator[str]
Planes = Mapping[str, NDArray[np.bool_]]  # by the UID of the received slice


def check(received: Sequence[Path], results: Sequence[Path]) -> list[str]:
    """Everything that is wrong with the result files of findings; nothing where they are right."""
    sources = {item.uid: item for item in map(Slice.read, received)}
    evidence = FindingEvidence(sources, [Slice.read(path) for path in results])
    faults: list[str] = []
    for judge in JUDGES:
        try:
            faults += judge(evidence)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as absent:
            faults.append(f"absent: {absent}")
    return faults


@dataclass(frozen=True, eq=False)
class Segmented:
    """A segmentation, unpacked: for each segment its planes, by the received slices they show."""

    header: Dataset

    @cached_property
    def planes(self) -> Mapping[int, Planes]:
        header = self.header
        count, size = int(header.NumberOfFrames), int(header.Rows) * int(header.Columns)
        bits = np.unpackbits(np.frombuffer(header.PixelData, np.uint8), bitorder="little")
        drawn = bits[: count * size].reshape(count, header.Rows, header.Columns).astype(bool)
        planes: dict[int, dict[str, NDArray[np.bool_]]] = {}
        for frame, plane in zip(self.frames, drawn, strict=True):
            planes.setdefault(self.segment_of(frame), {})[source_of_frame(frame)] = plane
        return planes

    @property
    def frames(self) -> Sequence[Dataset]:
        frames: Sequence[Dataset] = self.header.PerFrameFunctionalGroupsSequence
        return frames

    def segment_of(self, frame: Dataset) -> int:
        """The number of a frame's segment; of an only one all frames may say it together."""
        shared = self.header.SharedFunctionalGroupsSequence[0]
        group = frame if "SegmentIdentificationSequence" in frame else shared
        return int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)

    @property
    def tracking(self) -> list[str]:
        """Tracking UIDs by segment number, from 1."""
        return [str(segment.TrackingUID) for segment in self.header.SegmentSequence]


@dataclass(frozen=True, eq=False)
class FindingEvidence:
    """The received slices by UID, and what was made of them."""

    received: Mapping[str, Slice]
    results: Sequence[Slice]

    def of_class(self, *sop_classes: str) -> list[Slice]:
        return [item for item in self.results if item.header.SOPClassUID in sop_classes]

    @cached_property
    def report(self) -> Dataset:
        (report,) = self.of_class(COMPREHENSIVE, COMPREHENSIVE_3D)
        return report.header

    @cached_property
    def groups(self) -> list[Dataset]:
        """The measurement groups of the report."""
        return [of for item in named(self.report, MEASUREMENTS) for of in named(item, GROUP)]

    @property
    def is_negative(self) -> bool:
        """True for a report that says that nothing reached the threshold."""
        return any(ABSENT in _values(group) for group in self.groups)

    @cached_property
    def findings(self) -> Segmented | None:
        """The segmentation whose segments the report is about; None without a finding."""
        tracked = {_tracking(group) for group in self.groups}
        return next((of for of in self.segmented if tracked & set(of.tracking)), None)

    @cached_property
    def organs(self) -> Segmented | None:
        """The other segmentation."""
        return next((of for of in self.segmented if of is not self.findings), None)

    @cached_property
    def segmented(self) -> list[Segmented]:
        return [Segmented(item.header) for item in self.of_class(SEGMENTATION)]

    @cached_property
    def order(self) -> list[str]:
        """The UIDs of the received slices along their normal."""
        first = next(iter(self.received.values()))
        cosines = np.array(first.header.ImageOrientationPatient, float)
        normal = np.cross(cosines[:3], cosines[3:])
        return sorted(self.received, key=lambda uid: float(self.received[uid].position @ normal))


def named(item: Dataset, code: str) -> list[Dataset]:
    """The content items right below one that have this concept name."""
    below = item.get("ContentSequence", [])
    return [of for of in below if of.ConceptNameCodeSequence[0].CodeValue == code]


def _tracking(group: Dataset) -> str:
    (uid,) = named(group, TRACKING_UID)
    return str(uid.UID)


def _values(group: Dataset) -> set[str]:
    return {
        str(of.ConceptCodeSequence[0].CodeValue)
        for of in group.ContentSequence
        if of.ValueType == "CODE"
    }


def number_of(group: Dataset, code: str) -> float:
    """The only number of a group with this name, in the unit that belongs to it."""
    (item,) = named(group, code)
    (measured,) = item.MeasuredValueSequence
    unit = measured.MeasurementUnitsCodeSequence[0].CodeValue
    if unit != UNITS[code]:
        raise ValueError(f"{code} is in {unit}")
    return float(measured.NumericValue)


def _kinds(evidence: FindingEvidence) -> Faults:
    """One report; what lies beside it is there at most once, and only with findings."""
    counts = {
        "reports": len(evidence.of_class(COMPREHENSIVE, COMPREHENSIVE_3D)),
        "presentation states": len(evidence.of_class(STATE)),
        "key objects": len(evidence.of_class(KEY_OBJECTS)),
        "captures": len(evidence.of_class(CAPTURE)),
    }
    if counts["reports"] != 1 or max(counts.values()) > 1 or len(evidence.segmented) > 2:
        yield f"not one of each: {counts}, {len(evidence.segmented)} segmentations"
        return
    if sum(counts.values()) + len(evidence.segmented) != len(evidence.results):
        yield "there are files of other kinds"
    if not evidence.is_negative and evidence.findings is None:
        yield "the report is about findings that no segmentation shows"
    segments = [of for seg in evidence.segmented for of in seg.header.SegmentSequence]
    categories = {of.SegmentedPropertyCategoryCodeSequence[0].CodeValue for of in segments}
    if evidence.is_negative and (sum(counts.values()) > 1 or categories - {ANATOMY}):
        yield "the report says that nothing was found, and other files show findings"


def _report(evidence: FindingEvidence) -> Faults:
    """The report is of nobody's verification and research first; it denies nothing."""
    report, groups = evidence.report, evidence.groups
    if (report.VerificationFlag, report.PreliminaryFlag) != ("UNVERIFIED", "PRELIMINARY"):
        yield "the report does not say that nobody has verified it"
    words = [str(item.TextValue) for item in named(report, COMMENT)]
    if not words or not words[0].startswith(RESEARCH_WORDS):
        yield "the first words of the report are not those of research"
    if not groups or (evidence.is_negative and len(groups) != 1):
        yield f"the report has {len(groups)} groups"
    for group in groups:
        if not named(group, FINDING) or not named(group, PARAMETERS):
            yield "a group says neither what it is about nor at which threshold"
    tracked = [_tracking(group) for group in groups]
    if len(set(tracked)) != len(tracked):
        yield "two groups are about the same finding"
    if evidence.findings is not None and tracked != evidence.findings.tracking:
        yield "groups and segments are not about the same findings, in the same order"


def _references(evidence: FindingEvidence) -> Faults:
    """Each group is on its segment, or on an outline in a received slice."""
    seg = evidence.findings
    if seg is None:
        return
    for number, group in enumerate(evidence.groups, start=1):
        if report_is_3d(evidence.report):
            (item,) = named(group, SEGMENT)
            (reference,) = item.ReferencedSOPSequence
            shown = str(reference.ReferencedSOPInstanceUID), int(reference.ReferencedSegmentNumber)
            if shown != (str(seg.header.SOPInstanceUID), number):
                yield f"group {number} is on another segment"
            continue
        (region,) = named(group, REGION)
        (image,) = region.ContentSequence
        uid = str(image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        corners = np.reshape(region.GraphicData, (-1, 2))
        plane = seg.planes[number].get(uid)
        if plane is None or not np.array_equal(corners[0], corners[-1]):
            yield f"group {number} has no closed outline on a slice of its finding"
        elif not _is_in(corners, _box(plane)):
            yield f"the outline of group {number} reaches beyond its finding"


def report_is_3d(report: Dataset) -> bool:
    return str(report.SOPClassUID) == COMPREHENSIVE_3D


def _is_in(corners: NDArray[np.float64], box: list[float]) -> bool:
    least, most = corners.min(axis=0), corners.max(axis=0)
    return bool(
        (least >= np.array(box[:2]) - 0.5).all() and (most <= np.array(box[2:]) + 0.5).all()
    )


def _box(plane: NDArray[np.bool_]) -> list[float]:
    """Left, top, right and bottom edge of a mask, in pixels."""
    rows, columns = np.nonzero(plane)
    edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return [float(edge) for edge in edges]


def _sizes(evidence: FindingEvidence) -> Faults:
    """Sizes are those of the segments, as far as pixels can say; the scores are in their order."""
    seg = evidence.findings
    if seg is None:
        return
    first = next(iter(evidence.received.values())).header
    spacing = [float(side) for side in first.PixelSpacing]
    gap = _gap_mm(evidence)
    scores = [number_of(group, CERTAINTY) for group in evidence.groups]
    if scores != sorted(scores, reverse=True) or not all(0 <= score <= 100 for score in scores):
        yield f"the scores are {scores}"
    for number, group in enumerate(evidence.groups, start=1):
        diameter, long, short, volume = (
            number_of(group, code) for code in (DIAMETER, LONG, SHORT, VOLUME)
        )
        if abs(diameter - (long + short) / 2.0) > ROUNDING_MM + 0.05 or short > long:
            yield f"finding {number}: {diameter} mm is not the mean of {long} and {short} mm"
        planes = seg.planes[number].values()
        longest = max(_longest_mm(plane, spacing) for plane in planes)
        if abs(long - longest) > MOST_PIXELS_OFF * max(spacing):
            yield f"finding {number}: is {longest:.1f} mm long, not {long} mm"
        voxels = sum(int(plane.sum()) for plane in planes) * spacing[0] * spacing[1] * gap
        if not voxels / MOST_VOLUME_RATIO <= volume <= voxels * MOST_VOLUME_RATIO:
            yield f"finding {number}: has {voxels:.0f} mm3, not {volume} mm3"


def _gap_mm(evidence: FindingEvidence) -> float:
    positions = np.array([evidence.received[uid].position for uid in evidence.order])
    first = next(iter(evidence.received.values())).header
    cosines = np.array(first.ImageOrientationPatient, float)
    return float(np.median(np.diff(positions @ np.cross(cosines[:3], cosines[3:]))))


def _longest_mm(plane: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    """The longest way between two pixels of a mask, and half of a pixel at either end."""
    edge = plane & ~_inner(plane)
    points = np.argwhere(edge) * np.array(spacing)
    ways = np.linalg.norm(points[:, None] - points[None], axis=2)
    return float(ways.max()) + float(np.mean(spacing))


def _inner(plane: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(plane, 1)
    beside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(plane & beside)


def _frames(evidence: FindingEvidence) -> Faults:
    """Each frame lies where the received slice lies that it names, and shows something."""
    for seg in evidence.segmented:
        for frame in seg.frames:
            yield from _place(evidence, seg, frame)
        if (seg.header.SegmentationType, seg.header.ContentLabel) != ("BINARY", "RESEARCH"):
            yield "a segmentation is not binary or not marked as research"
        if sum(map(len, seg.planes.values())) != len(seg.frames):
            yield "two frames of a segment are of one slice"
        if sorted(seg.planes) != list(range(1, len(seg.header.SegmentSequence) + 1)):
            yield "a segment has no frame"
        if not all(plane.any() for planes in seg.planes.values() for plane in planes.values()):
            yield "a frame is empty"


def _place(evidence: FindingEvidence, seg: Segmented, frame: Dataset) -> Faults:
    source = evidence.received.get(source_of_frame(frame))
    if source is None:
        yield "a frame is of a slice that was not received"
        return
    position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
    if np.abs(position - source.position).max() > POSITION_MM:
        yield f"a frame lies at {position}, not at {source.position}"
    if (seg.header.Rows, seg.header.Columns) != (source.header.Rows, source.header.Columns):
        yield "the frames are of another size than the received slices"


def _sides(evidence: FindingEvidence) -> Faults:
    """The right of two organs lies to the right, and a finding on the side that the report says."""
    organs, seg = evidence.organs, evidence.findings
    if organs is None:
        return
    sides = {}
    for number, segment in enumerate(organs.header.SegmentSequence, start=1):
        (kind,) = segment.SegmentedPropertyTypeCodeSequence
        for modifier in kind.get("SegmentedPropertyTypeModifierCodeSequence", []):
            sides[str(modifier.CodeValue)] = number
    if {RIGHT, LEFT} - sides.keys():
        return
    x = {side: _mean_x(evidence, organs.planes[number]) for side, number in sides.items()}
    if x[RIGHT] >= x[LEFT]:  # +x is to the left of the patient
        yield "what is called right lies left of what is called left"
    for number, group in enumerate(evidence.groups if seg is not None else [], start=1):
        assert seg is not None
        said = {
            str(laterality.ConceptCodeSequence[0].CodeValue)
            for site in named(group, SITE)
            for laterality in named(site, LATERALITY)
        }
        pixels = {
            side: _common(seg.planes[number], organs.planes[organ]) for side, organ in sides.items()
        }
        if any(pixels.get(side, 0) < max(pixels.values()) for side in said):
            yield f"finding {number} lies on the other side than the report says"


def _common(planes: Planes, others: Planes) -> int:
    """The number of pixels that two segments share."""
    return sum(int((plane & others[uid]).sum()) for uid, plane in planes.items() if uid in others)


def _mean_x(evidence: FindingEvidence, planes: Planes) -> float:
    """The mean place of a segment from the patient's right to left, in mm."""
    total, count = 0.0, 0
    for uid, plane in planes.items():
        source = evidence.received[uid]
        cosines = np.array(source.header.ImageOrientationPatient, float)
        down, across = (float(side) for side in source.header.PixelSpacing)
        rows, columns = np.nonzero(plane)
        x = source.position[0] + cosines[0] * across * columns + cosines[3] * down * rows
        total, count = total + float(x.sum()), count + len(rows)
    return total / count


def _marks(evidence: FindingEvidence) -> Faults:
    """The state has a box around each segment, on each slice of it, with its number."""
    seg, states = evidence.findings, evidence.of_class(STATE)
    if seg is None or not states:
        return
    ((series,),) = [state.header.ReferencedSeriesSequence for state in states]
    shown = {str(item.ReferencedSOPInstanceUID) for item in series.ReferencedImageSequence}
    if not shown <= evidence.received.keys():
        yield "the presentation state is of slices that were not received"
    wanted = {
        (uid, str(number)): _box(plane)
        for number, planes in seg.planes.items()
        for uid, plane in planes.items()
        if uid in shown
    }
    drawn = {}
    for annotation in states[0].header.GraphicAnnotationSequence:
        (image,) = annotation.ReferencedImageSequence
        objects = zip(annotation.GraphicObjectSequence, annotation.TextObjectSequence, strict=True)
        for box, text in objects:
            number = str(text.UnformattedTextValue)
            if str(box.TrackingUID) != seg.tracking[int(number) - 1]:
                yield f"the box {number} has the tracking UID of another finding"
            corners = np.reshape(box.GraphicData, (-1, 2))
            edges = [*corners.min(axis=0), *corners.max(axis=0)]
            drawn[str(image.ReferencedSOPInstanceUID), number] = [float(edge) for edge in edges]
    if drawn.keys() != wanted.keys():
        yield "the boxes are not on the slices of the findings"
    elif not all(np.allclose(drawn[key], wanted[key], atol=BOX_PIXELS) for key in wanted):
        yield "a box does not lie around its finding"


def _key_images(evidence: FindingEvidence) -> Faults:
    """Each key image shows a finding, and each finding has one."""
    seg, documents = evidence.findings, evidence.of_class(KEY_OBJECTS)
    if seg is None or not documents:
        return
    chosen = {
        str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for item in documents[0].header.ContentSequence
        if "ReferencedSOPSequence" in item
    }
    if not all(chosen & planes.keys() for planes in seg.planes.values()):
        yield "a finding has no key image"
    if not all(any(uid in planes for planes in seg.planes.values()) for uid in chosen):
        yield "a key image shows no finding"


def _words(evidence: FindingEvidence) -> Faults:
    """All of them say that they are for research and what made them."""
    for item in evidence.results:
        header = item.header
        if not header.SeriesDescription.endswith(RESEARCH_END):
            yield f"{item.name}: Series Description is {header.SeriesDescription!r}"
        if header.ContentQualification not in QUALIFICATIONS:
            yield f"{item.name}: Content Qualification"
        if header.Manufacturer != "Midslice":
            yield f"{item.name}: the node is not named as the equipment"
        if not header.ContributingEquipmentSequence[-1].SoftwareVersions:
            yield f"{item.name}: does not name the model that made it"
    for item in evidence.of_class(CAPTURE):
        if item.header.BurnedInAnnotation != "YES":
            yield f"{item.name}: does not say that there are words in its pixels"


def _identity(evidence: FindingEvidence) -> Faults:
    """Same patient, study and frame of reference."""
    sources = evidence.received.values()
    frames = {source.header.get("FrameOfReferenceUID") for source in sources} - {None}
    for item in evidence.results:
        for keyword in PATIENT_AND_STUDY:
            if item.encoded.get(keyword) not in {of.encoded.get(keyword) for of in sources}:
                yield f"{item.name}: {keyword} is not that of the received series"
        frame = item.header.get("FrameOfReferenceUID")
        if frames and frame not in (None, *frames):
            yield f"{item.name}: a Frame of Reference UID that the scanner did not send"
        if item.header.file_meta.TransferSyntaxUID != EXPLICIT_LITTLE_ENDIAN:
            yield f"{item.name}: not Explicit VR Little Endian"


def _uids(evidence: FindingEvidence) -> Faults:
    """UIDs are new, and each result is a series of its own."""
    sources = evidence.received.values()
    used = {str(source.header.SeriesInstanceUID) for source in sources} | evidence.received.keys()
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        uids = [str(item.header[keyword].value) for item in evidence.results]
        if len(set(uids)) != len(uids):
            yield f"two results have the same {keyword}"
        for uid in uids:
            if uid in used or not UUID_UID.fullmatch(uid):
                yield f"{keyword} {uid} is no new one"


JUDGES: Sequence[Callable[[FindingEvidence], Faults]] = (
    *(_kinds, _report, _references, _sizes, _frames, _sides, _marks, _key_images),
    *(_words, _identity, _uids),
)
