"""A mask as a DICOM Segmentation: binary, one segment, frames at the positions of the source."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian

from inference import header as h
from inference import release
from inference.dataset import Header
from inference.header import Elements
from inference.model import Segment
from inference.results import RESEARCH_LABEL, RESEARCH_WORDS, Making, shared
from inference.scope import MANUFACTURER, MODEL_NAME

PIXEL_DATA = 0x7FE00010
# What the writer takes from its sources; the results have it as the true sources have it, or not.
COPIED = frozenset(map(tag_for_keyword, (*h.CHARACTER_SET, *h.PATIENT_AND_STUDY)))
Mask = NDArray[np.bool_]
if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription


def segmentation(
    headers: Sequence[Header], mask: Mask, segment: Segment, making: Making, number: int = 0
) -> Elements:
    """The whole data set; `headers` are the slices of the mask, in its order. Empty frames are out.

    The writer sees positions, orientation and UIDs of the source alone; patient and study are
    copied afterwards as bytes, so that no name is decoded.
    """
    from highdicom.seg import Segmentation, SegmentationTypeValues  # takes seconds to load

    sources = [_plane_of(header, headers[0], making.frame_uid) for header in headers]
    first, second = (np.array(header.numbers("ImagePositionPatient")) for header in headers[:2])
    for plane in sources:
        plane.SliceThickness = plane.SliceThickness or h.ds(float(np.linalg.norm(second - first)))
    made = Segmentation(
        source_images=sources,
        pixel_array=mask,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[_described(segment, making)],
        series_instance_uid=making.uid_of(f"series of the segmentation {segment.label}"),
        series_number=1,
        sop_instance_uid=making.uid_of(f"segmentation {segment.label}"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=release.RELEASE,
        device_serial_number=making.creator_uid,
        content_label=RESEARCH_LABEL,
        content_description=RESEARCH_WORDS,
        omit_empty_frames=True,
        specific_character_set=None,
    )
    own: Elements = {int(tag): element for tag, element in made.items() if tag not in COPIED}
    own[PIXEL_DATA] = h.raw(PIXEL_DATA, "OB", made.PixelData)
    shown = [header for header, plane in zip(headers, mask, strict=True) if plane.any()]
    series = shared(headers[0], making, f"{segment.label} mask", number)
    return own | series | _still(made, making) | _references(shown)


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


def _still(made: Dataset, making: Making) -> Elements:
    """What depends on the clock or on chance in the writer, from the job instead."""
    organisation = making.uid_of("dimension organisation of the segmentation")
    indices = made.DimensionIndexSequence
    for item in indices:
        item.DimensionOrganizationUID = organisation
    return h.elements_of(
        DimensionIndexSequence=indices,
        DimensionOrganizationSequence=h.items_of(
            h.elements_of(DimensionOrganizationUID=organisation)
        ),
    )


def _described(segment: Segment, making: Making) -> "SegmentDescription":
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription

    algorithm = making.algorithm
    identification = AlgorithmIdentificationSequence(
        name=algorithm.name,
        version=algorithm.full_version,
        family=codes.DCM.ArtificialIntelligence,
        source=MANUFACTURER,
    )
    if algorithm.parameters:
        identification[0].AlgorithmParameters = algorithm.parameters
    return SegmentDescription(
        segment_number=1,
        segment_label=segment.label,
        segmented_property_category=Code(*segment.category),
        segmented_property_type=Code(*segment.kind),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=identification,
        tracking_uid=making.uid_of(f"tracking of {segment.label}"),
        tracking_id=f"{segment.label} 1",
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
