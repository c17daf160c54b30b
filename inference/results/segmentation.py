"""Masks as a DICOM Segmentation: binary, a segment each, frames at the positions of the source."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian

from inference import header as h
from inference import release
from inference.dataset import Header
from inference.header import Elements
from inference.model import CodeTriple, Segment
from inference.results.making import RESEARCH_LABEL, RESEARCH_WORDS, Making, shared

PIXEL_DATA = 0x7FE00010
# What the writer takes from its sources; the results have it as the true sources have it, or not.
COPIED = frozenset(map(tag_for_keyword, (*h.CHARACTER_SET, *h.PATIENT_AND_STUDY)))
Mask = NDArray[np.bool_]
if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription


@dataclass(frozen=True, eq=False)
class Region:
    """A segment and where it lies: a block of pixels with the place of its corner.

    `tracking` names the one thing that it shows, in all results of a job.
    """

    segment: Segment
    mask: Mask  # (slices, rows, columns), not empty
    tracking: str
    first: tuple[int, int, int] = (0, 0, 0)  # slice, row and column of its corner

    @property
    def slices(self) -> frozenset[int]:
        """The slices of the stack in which it lies."""
        return frozenset((self.first[0] + np.flatnonzero(self.mask.any(axis=(1, 2)))).tolist())

    def draw(self, planes: NDArray[np.uint8], shown: Sequence[int], value: int) -> None:
        """Set a value where it lies in planes (slices, rows, columns), those that are shown."""
        _, row, column = self.first
        rows, columns = self.mask.shape[1:]
        for number, place in enumerate(shown):
            if 0 <= place - self.first[0] < len(self.mask):
                part = planes[number, row : row + rows, column : column + columns]
                part[self.mask[place - self.first[0]]] = value


def region_of(segment: Segment, mask: Mask) -> Region:
    """The only one of its kind."""
    return Region(segment, mask, f"{segment.label} 1")


def tracking_uid(region: Region, making: Making) -> str:
    """The Tracking UID of what a region shows, the same in every result of the job."""
    return making.uid_of(f"tracking of {region.tracking}")


def segmentation(
    headers: Sequence[Header],
    regions: Sequence[Region],
    making: Making,
    title: str,
    number: int = 0,
) -> Elements:
    """The whole data set; `headers` are all slices of the stack. Empty frames are left out.

    The writer sees positions, orientation and UIDs of the source alone; patient and study are
    copied afterwards as bytes, so that no name is decoded.
    """
    from highdicom.seg import Segmentation, SegmentationTypeValues  # takes seconds to load

    shown = sorted(frozenset().union(*(region.slices for region in regions)))
    sources = [_plane_of(headers[place], headers[0], making.frame_uid) for place in shown]
    first, second = (np.array(header.numbers("ImagePositionPatient")) for header in headers[:2])
    for plane in sources:
        plane.SliceThickness = plane.SliceThickness or h.ds(float(np.linalg.norm(second - first)))
    made = Segmentation(
        source_images=sources,
        pixel_array=_drawn(regions, shown, headers[0]),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _described(region, making, place) for place, region in enumerate(regions, start=1)
        ],
        series_instance_uid=making.uid_of(f"series of the segmentation {title}"),
        series_number=1,
        sop_instance_uid=making.uid_of(f"segmentation {title}"),
        instance_number=1,
        manufacturer=release.MANUFACTURER,
        manufacturer_model_name=release.MODEL_NAME,
        software_versions=release.RELEASE,
        device_serial_number=making.creator_uid,
        content_label=RESEARCH_LABEL,
        content_description=RESEARCH_WORDS,
        omit_empty_frames=True,
        specific_character_set=None,
    )
    own: Elements = {int(tag): element for tag, element in made.items() if tag not in COPIED}
    own[PIXEL_DATA] = h.raw(PIXEL_DATA, "OB", made.PixelData)
    series = shared(headers[0], making, f"{title} mask", number)
    references = _references([headers[place] for place in shown])
    return own | series | _still(made, making, title) | references


def _drawn(regions: Sequence[Region], shown: Sequence[int], first: Header) -> NDArray[np.uint8]:
    """(slices, rows, columns) of segment numbers; where segments overlap, a plane for each."""
    shape = len(shown), first.integer("Rows") or 0, first.integer("Columns") or 0
    numbers = np.zeros(shape, np.uint8)
    for number, region in enumerate(regions, start=1):
        region.draw(numbers, shown, number)
    pixels = sum(int(np.count_nonzero(region.mask)) for region in regions)
    if np.count_nonzero(numbers) == pixels:
        return numbers
    planes = np.zeros((len(regions), *shape), np.uint8)
    for plane, region in zip(planes, regions, strict=True):
        region.draw(plane, shown, 1)
    return np.moveaxis(planes, 0, -1)


def _references(headers: Sequence[Header]) -> Elements:
    """The slices that have a frame, and no others."""
    instances = [
        h.elements_of(
            ReferencedSOPClassUID=header.text("SOPClassUID"), ReferencedSOPInstanceUID=header.uid
        )
        for header in headers
    ]
    return h.elements_of(
        ReferencedSeriesSequence=h.items_of(
            h.elements_of(
                SeriesInstanceUID=headers[0].text("SeriesInstanceUID"),
                ReferencedInstanceSequence=h.items_of(*instances),
            )
        )
    )


def _still(made: Dataset, making: Making, title: str) -> Elements:
    """Elements that the writer takes from the clock or from chance, from the job instead."""
    organisation = making.uid_of(f"dimension organisation of the segmentation {title}")
    indices = made.DimensionIndexSequence
    for item in indices:
        item.DimensionOrganizationUID = organisation
    return h.elements_of(
        DimensionIndexSequence=indices,
        DimensionOrganizationSequence=h.items_of(
            h.elements_of(DimensionOrganizationUID=organisation)
        ),
    )


def _described(region: Region, making: Making, number: int) -> "SegmentDescription":
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription

    algorithm, segment = making.algorithm, region.segment
    identification = AlgorithmIdentificationSequence(
        name=algorithm.name,
        version=algorithm.full_version,
        family=codes.DCM.ArtificialIntelligence,
        source=release.MANUFACTURER,
    )
    if algorithm.parameters:
        identification[0].AlgorithmParameters = algorithm.parameters
    description = SegmentDescription(
        segment_number=number,
        segment_label=segment.label,
        segmented_property_category=Code(*segment.category),
        segmented_property_type=Code(*segment.kind),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=identification,
        tracking_uid=tracking_uid(region, making),
        tracking_id=region.tracking,
        anatomic_regions=[Code(*segment.region)] if segment.region else None,
    )
    if segment.modifier:
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = _code_items(segment.modifier)
    if segment.region and segment.region_modifier:
        place = description.AnatomicRegionSequence[0]
        place.AnatomicRegionModifierSequence = _code_items(segment.region_modifier)
    return description


def _code_items(triple: CodeTriple) -> Items:
    value, scheme, meaning = triple
    return h.items_of(
        h.elements_of(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)
    )


def _plane_of(header: Header, first: Header, frame_uid: str) -> Dataset:
    """The place and the names of a slice, without anything about the patient.

    Direction and spacing of the first slice stand for all: they differ by noise alone.
    """
    plane = Dataset()
    plane.file_meta = FileMetaDataset()
    plane.file_meta.TransferSyntaxUID = UID(ExplicitVRLittleEndian)
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex"):
        setattr(plane, keyword, "")
    for keyword in ("AccessionNumber", "StudyID", "StudyDate", "StudyTime"):
        setattr(plane, keyword, "")
    plane.ReferringPhysicianName = ""
    plane.FrameOfReferenceUID = frame_uid
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(plane, keyword, header.text(keyword))
    plane.Modality = header.text("Modality")
    plane.ImagePositionPatient = [h.ds(n) for n in header.numbers("ImagePositionPatient")]
    for keyword in ("ImageOrientationPatient", "PixelSpacing"):
        setattr(plane, keyword, [h.ds(number) for number in first.numbers(keyword)])
    thickness = header.number("SliceThickness")
    plane.SliceThickness = h.ds(thickness) if thickness else None
    if spacing := header.number("SpacingBetweenSlices"):
        plane.SpacingBetweenSlices = h.ds(abs(spacing))
    plane.Rows, plane.Columns = header.integer("Rows"), header.integer("Columns")
    return plane
