"""Reads what was made of a mask from disk again and compares it with the source and the mask.

Is the mask itself plausible? Its model says so, for a brain `inference/models/brain/mask.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from inference import header as h
from inference.dataset import Header, read_header
from inference.errors import Unprocessable
from inference.model import Segment
from inference.pixels import PixelFormat, PixelReader, is_lossy
from inference.results.making import DESCRIPTION_END, Making
from inference.results.segmentation import Region, region_of, tracking_uid
from inference.results.stripped import background_of

# A position is a decimal string: this is what one may be off by.
POSITION_MM = 1e-4
# A decimal string of over 16 characters is cut when it is copied: by less than this of its value.
PLACE = {"ImagePositionPatient": POSITION_MM, "ImageOrientationPatient": 1e-6, "PixelSpacing": 1e-6}
SHAPE = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation")


@dataclass(frozen=True, eq=False)
class ExpectedMask:
    """The results as they were planned."""

    folder: Path
    segmentation: str  # its file
    slices: Sequence[str]  # the files of the extracted series, in the order of the headers
    headers: Sequence[Header]  # of the source
    segment: Segment  # of the mask
    mask: NDArray[np.bool_]  # (slices, rows, columns)
    making: Making
    numbers: Sequence[int] = ()  # Instance Numbers of the extracted series


def verify(expected: ExpectedMask, pixels: PixelReader) -> tuple[str, ...]:
    """Everything that is wrong with the files; nothing where they are right."""
    path, making = expected.folder / expected.segmentation, expected.making
    regions = [region_of(expected.segment, expected.mask)]
    faults = [
        f"{expected.segmentation}: {fault}"
        for fault in segmentation_faults(path, expected.headers, regions, making)
    ]
    stored = [pixels.stored(header) for header in expected.headers]
    background = background_of(stored, PixelFormat.of(expected.headers[0]))
    for place, name in enumerate(expected.slices):
        header = read_header(expected.folder / name)
        wanted = np.where(expected.mask[place], stored[place], background)
        faults += [f"{name}: {fault}" for fault in _slice_faults(expected, header, place, wanted)]
    names = {path.name for path in expected.folder.glob("*.dcm")}
    if names != {expected.segmentation, *expected.slices}:
        faults.append("the folder holds other files than planned")
    return tuple(faults)


def common_faults(
    header: Header, headers: Sequence[Header], making: Making, *, has_frame: bool = True
) -> Iterator[str]:
    """What is wrong with the attributes that every result has; `headers` are of the source.

    Documents, states and pages have no frame of reference.
    """
    first = headers[0]
    known = {source.uid for source in headers} | {first.text("SeriesInstanceUID")}
    if {header.uid, header.text("SeriesInstanceUID")} & known:
        yield "a UID of the source was used again"
    if header.text("FrameOfReferenceUID") != (making.frame_uid if has_frame else ""):
        yield "the frame of reference is not that of the source"
    if not header.text("SeriesDescription").endswith(DESCRIPTION_END):
        yield "the description has no mark of research"
    if header.text("ContentQualification") != making.content_qualification:
        yield "ContentQualification is not what was asked for"
    copied = (h.encoded(h.carried(of, h.PATIENT_AND_STUDY)) for of in (header, first))
    if len(set(copied)) > 1:
        yield "a patient or study attribute is not that of the source"


def _slice_faults(
    expected: ExpectedMask, header: Header, place: int, wanted: NDArray[np.int32]
) -> Iterator[str]:
    if header.fault:
        yield header.fault
        return
    source = expected.headers[place]
    yield from common_faults(header, expected.headers, expected.making)
    for keyword in (*PLACE, *SHAPE):
        values, wanted_values = header.numbers(keyword), source.numbers(keyword)
        most = PLACE.get(keyword, 0.0)
        if len(values) != len(wanted_values) or not np.allclose(
            values, wanted_values, rtol=0.0, atol=most
        ):
            yield f"{keyword} is not that of the source"
    if header.text("SyntheticData") != "NO" or header.value("ImageType") != "DERIVED":
        yield "it does not say that it is derived and not synthetic"
    references = [
        item.text("ReferencedSOPInstanceUID") for item in header.items("SourceImageSequence")
    ]
    if references != [source.uid]:
        yield "the source image is not the one that it was made from"
    if is_lossy(source) and not is_lossy(header):
        yield "the mark of lossy compression was lost"
    yield from _value_faults(header, wanted)


def _value_faults(header: Header, wanted: NDArray[np.int32]) -> list[str]:
    try:
        values = PixelReader(cache_bytes=0).stored(header)
    except Unprocessable as error:
        return [error.sentence]
    return [] if np.array_equal(values, wanted) else ["its values are not those that were planned"]


def segmentation_faults(
    path: Path, headers: Sequence[Header], regions: Sequence[Region], making: Making
) -> Iterator[str]:
    """What is wrong with a segmentation of these regions; `headers` are all slices of the stack."""
    header = read_header(path)
    if header.fault:
        yield header.fault
        return
    yield from common_faults(header, headers, making)
    dataset = dcmread(path)
    wanted = [(number, place) for number, of in enumerate(regions, 1) for place in of.slices]
    shared = dataset.SharedFunctionalGroupsSequence[0]
    place_of = {header.uid: place for place, header in enumerate(headers)}
    frames = [
        (_segment_of(frame, shared), _place_of(frame, headers, place_of))
        for frame in dataset.PerFrameFunctionalGroupsSequence
    ]
    if sorted(frames) != sorted(wanted):
        yield "its frames are not the slices that have some of the mask"
        return
    planes = np.asarray(dataset.pixel_array).reshape(len(frames), dataset.Rows, dataset.Columns)
    for (number, place), plane in zip(frames, planes, strict=True):
        drawn = np.zeros((1, *plane.shape), np.uint8)
        regions[number - 1].draw(drawn, [place], 1)
        if not np.array_equal(plane, drawn[0]):
            yield "its frames are not the mask"
            break
    shown = {headers[place].uid for _, place in wanted}
    (series,) = header.items("ReferencedSeriesSequence")
    instances = series.items("ReferencedInstanceSequence")
    if {item.text("ReferencedSOPInstanceUID") for item in instances} != shown:
        yield "the referenced series does not list exactly the slices of its frames"
    segments = dataset.SegmentSequence
    named = [(of.SegmentNumber, str(of.SegmentLabel), str(of.TrackingUID)) for of in segments]
    if named != [
        (number, of.segment.label, tracking_uid(of, making)) for number, of in enumerate(regions, 1)
    ]:
        yield "its segments are not those that were planned"


def _segment_of(frame: Dataset, shared: Dataset) -> int:
    """The number of the segment of a frame; of an only one all frames say it together."""
    group = frame if "SegmentIdentificationSequence" in frame else shared
    return int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)


def _place_of(frame: Dataset, headers: Sequence[Header], place_of: Mapping[str, int]) -> int:
    """The slice of the source at whose position a frame lies and that it names; -1 for none."""
    position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
    sources = frame.DerivationImageSequence[0].SourceImageSequence
    named = [item.ReferencedSOPInstanceUID for item in sources]
    place = place_of.get(named[0], -1) if len(named) == 1 else -1
    if place < 0:
        return -1
    off = np.abs(np.subtract(headers[place].numbers("ImagePositionPatient"), position)).max()
    return place if off <= POSITION_MM else -1
