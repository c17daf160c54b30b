"""Reads a derived series from disk again and compares it with its sources before it may leave."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference import header as h
from inference.dataset import Header, read_header
from inference.errors import Unprocessable
from inference.geometry import EQUAL_GAPS, Layout, in_gaps
from inference.kinds import image_type_of_result
from inference.pixels import PixelFormat, PixelReader, Stored, is_lossy
from inference.request import PREVIEWS, File
from inference.results.derived import NOT_ACQUIRED, Planned, description_in, overlay, read_overlays

# A position is a decimal string: this is what one may be off by.
POSITION_MM = 1e-4
# One presentation state holds one way from stored values to greys.
FORMAT = ("RescaleSlope", "RescaleIntercept", "PhotometricInterpretation")
RESCALE_TOLERANCE = 1e-9
# Every value that must be the same on all instances, or viewers split the series.
CONSTANT = h.keywords_of(
    """
    SeriesInstanceUID SeriesNumber SeriesDescription SeriesDate SeriesTime ContentDate ContentTime
    ImageType AcquisitionNumber FrameOfReferenceUID ImageOrientationPatient PixelSpacing Rows
    Columns PhotometricInterpretation Manufacturer ManufacturerModelName StationName
    SpacingBetweenSlices WindowCenter WindowWidth SpecificCharacterSet
    """
)


@dataclass(frozen=True, eq=False)
class Expected:
    """The derived series as it was planned."""

    folder: Path
    series_uid: str
    layout: Layout
    slices: Sequence[Planned]  # in the order of positions
    received: frozenset[str]  # every UID that came from a peer in this job
    frame_uid: str
    beside: Sequence[Header] = ()  # the other received slices of the series
    overlay: bool = True  # generated slices are marked in one
    objects: Sequence[File] = ()  # further results, in series of their own


def verify(
    expected: Expected, pixels: PixelReader, *, progress: Callable[[int], None]
) -> tuple[str, ...]:
    """Everything that is wrong with the files of a derived series; nothing where it is right."""
    faults: list[str] = []
    headers: list[Header] = []
    written = PixelReader(cache_bytes=0)
    for place, slice_ in enumerate(expected.slices):
        header = read_header(expected.folder / slice_.name)
        if header.fault:
            faults.append(f"{slice_.name}: {header.fault}")
            continue
        headers.append(header)
        slice_faults = list(_faults_of(header, slice_, expected))
        try:
            slice_faults += _pixel_faults(header, slice_, expected, pixels, written)
        except Unprocessable as error:
            slice_faults.append(error.sentence)
        faults += [f"{slice_.name}: {fault}" for fault in slice_faults]
        progress(place + 1)
    for file in expected.objects:
        faults += [f"{file.name}: {fault}" for fault in _object_faults(file, expected)]
    names = {path.name for path in expected.folder.iterdir()} - {PREVIEWS}
    planned = {slice_.name for slice_ in expected.slices}
    if names != planned | {file.name for file in expected.objects}:
        faults.append("the folder holds other files than planned")
    return (*faults, *_series_faults(headers, expected))


def _object_faults(file: File, expected: Expected) -> Iterator[str]:
    """A further object is of the same patient and study, and refers to the result alone."""
    header = read_header(expected.folder / file.name)
    if header.fault:
        yield header.fault
        return
    wanted = {
        "SOPInstanceUID": file.instance_uid,
        "SeriesInstanceUID": file.series_uid,
        "SOPClassUID": file.sop_class_uid,
    }
    for keyword, value in wanted.items():
        if header.text(keyword) != value:
            yield f"{keyword} is not {value}"
    own = {file.instance_uid, file.series_uid}
    if own & (expected.received | {expected.series_uid, *(s.uid for s in expected.slices)}):
        yield "a UID of another object was used again"
    if h.encoded(h.carried(header, h.PATIENT_AND_STUDY)) != h.encoded(
        h.carried(expected.layout.headers[0], h.PATIENT_AND_STUDY)
    ):
        yield "a patient or study attribute is not that of the source"
    referenced = {
        instance.text("ReferencedSOPInstanceUID")
        for series in header.items("ReferencedSeriesSequence")
        for keyword in ("ReferencedImageSequence", "ReferencedInstanceSequence")
        for instance in series.items(keyword)
    }
    generated = {slice_.uid for slice_ in expected.slices if slice_.is_generated}
    if not referenced or not referenced <= {slice_.uid for slice_ in expected.slices}:
        yield "it refers to other images than those of the derived series"
    if not generated <= referenced and not _has_many_formats(expected):
        yield "it leaves out a generated slice"


def _has_many_formats(expected: Expected) -> bool:
    """True where generated slices are stored in several ways; one state holds one of them."""
    generated = (slice_ for slice_ in expected.slices if slice_.is_generated)
    forms = (slice_.format_of(expected.layout) for slice_ in generated)
    return len({tuple(map(form.raw, FORMAT)) for form in forms}) > 1


def _faults_of(header: Header, slice_: Planned, expected: Expected) -> Iterator[str]:
    layout = expected.layout
    base = layout.headers[slice_.base]
    wanted = {
        "SOPInstanceUID": slice_.uid,
        "SeriesInstanceUID": expected.series_uid,
        "InstanceNumber": str(slice_.number),
        "SyntheticData": "YES" if slice_.is_generated else "NO",
        "FrameOfReferenceUID": expected.frame_uid,
        "SOPClassUID": base.text("SOPClassUID"),
    }
    for keyword, value in wanted.items():
        if header.text(keyword) != value:
            yield f"{keyword} is not {value}"
    if header.values("ImageType") != image_type_of_result(layout.headers):
        yield "ImageType is not that of a derived series"
    if slice_.uid in expected.received or expected.series_uid in expected.received:
        yield "a UID of the source was used again"
    position = np.array(header.numbers("ImagePositionPatient"))
    if position.shape != (3,) or np.abs(position - slice_.position).max() > POSITION_MM:
        yield "the position is not where the slice was planned"
    if any(is_lossy(source) for source in layout.headers) and not is_lossy(header):
        yield "the mark of lossy compression was lost"
    if h.encoded(h.carried(header, h.PATIENT_AND_STUDY)) != h.encoded(
        h.carried(layout.headers[0], h.PATIENT_AND_STUDY)
    ):
        yield "a patient or study attribute is not that of the source"
    yield from _reference_faults(header, slice_, layout)
    yield from _overlay_faults(header, marked=slice_.is_generated and expected.overlay)


def _reference_faults(header: Header, slice_: Planned, layout: Layout) -> Iterator[str]:
    wanted = {layout.headers[index].uid for index in slice_.sources}
    sources = [
        item.text("ReferencedSOPInstanceUID") for item in header.items("SourceImageSequence")
    ]
    referenced = [
        instance.text("ReferencedSOPInstanceUID")
        for series in header.items("ReferencedSeriesSequence")
        for instance in series.items("ReferencedInstanceSequence")
    ]
    if set(sources) != wanted or len(sources) != len(wanted):
        yield "the source images are not those it was made from"
    if sorted(referenced) != sorted(sources):
        yield "the referenced series do not list exactly the source images"


def _overlay_faults(header: Header, *, marked: bool) -> Iterator[str]:
    """A generated slice has the words that it names drawn in its overlay; a copy has no overlay."""
    written = read_overlays(header.path)
    if not marked:
        if written:
            yield "an overlay plane where none belongs"
        return
    words = description_in(written)
    size = header.integer("Rows") or 0, header.integer("Columns") or 0
    is_whole = h.encoded(written) == h.encoded(overlay(words, *size))
    if not is_whole or not words.startswith(NOT_ACQUIRED):
        yield "no overlay plane says that the slice was not acquired"


def _pixel_faults(
    header: Header,
    slice_: Planned,
    expected: Expected,
    pixels: PixelReader,
    written: PixelReader,
) -> Iterator[str]:
    stored = written.stored(header)
    first = expected.layout.headers[slice_.base]
    layout = PixelFormat.of(header)
    source = PixelFormat.of(slice_.format_of(expected.layout))
    if not _same_format(layout, source):
        yield "the pixel format or rescale is not that of the source"
        return
    if not slice_.is_generated:
        if not np.array_equal(stored, pixels.stored(first)):
            yield "a copied slice differs from its source"
        return
    second = expected.layout.headers[slice_.base + 1]
    yield from _generated_faults(stored, layout, (first, second), pixels)


def _same_format(one: PixelFormat, other: PixelFormat) -> bool:
    """Equal, but for digits of the rescale that a decimal string has no room for."""
    rescale = (one.slope - other.slope, one.intercept - other.intercept)
    near = max(map(abs, rescale)) <= RESCALE_TOLERANCE
    return near and replace(one, slope=other.slope, intercept=other.intercept) == other


def _generated_faults(
    stored: Stored, own: PixelFormat, neighbours: tuple[Header, Header], pixels: PixelReader
) -> Iterator[str]:
    """Generated values lie within those of the two neighbours; padding is where they have it."""
    formats = [PixelFormat.of(header) for header in neighbours]
    planes = [pixels.stored(header) for header in neighbours]
    outside = [layout.padded(plane) for layout, plane in zip(formats, planes, strict=True)]
    anywhere = outside[0] | outside[1]
    inside = [
        layout.hounsfield(plane)[~mask]
        for layout, plane, mask in zip(formats, planes, outside, strict=True)
    ]
    values = own.hounsfield(stored)[~anywhere]
    known = np.concatenate(inside)
    # One stored value: where the neighbours are rescaled differently, values are rounded twice.
    slack = abs(formats[0].slope) + abs(formats[1].slope)
    slack = 0.0 if own == formats[0] == formats[1] and own.padding is None else slack
    if values.size and (values.min() < known.min() - slack or values.max() > known.max() + slack):
        yield "generated values lie outside those of the neighbours"
    # What is below every tissue elsewhere is a streak of metal; its range was judged above.
    lost = anywhere & ~(own.declared(stored) | own.impossible(stored))
    if lost.any() or (own.declared(stored) & ~anywhere).any():
        yield "padding is not where the neighbours have it"


def _series_faults(headers: Sequence[Header], expected: Expected) -> Iterator[str]:
    if len({header.uid for header in headers}) != len(expected.slices):
        yield "instances are missing or share a UID"
    yield from _varying(headers, expected)
    numbers = sorted(header.integer("InstanceNumber") or 0 for header in headers)
    if numbers != list(range(1, len(headers) + 1)):
        yield "instance numbers are not 1 to the number of instances"
    positions = [header.numbers("ImagePositionPatient") for header in headers]
    if any(len(position) != 3 for position in positions):
        return
    distances = np.array(positions) @ expected.layout.geometry.normal
    if len(headers) == len(expected.slices) and _on_real_slice(distances, expected):
        yield "a generated slice lies where a received one of the series lies"
    if len(distances) > 1 and np.diff(distances).min() <= 0.0:
        yield "slices are not in order along the normal"
    declared = headers[0].number("SpacingBetweenSlices") if headers else None
    if declared is not None and np.abs(np.diff(distances) - declared).max() > 2e-2:
        yield "slices are not apart by the spacing that they declare"


def _varying(headers: Sequence[Header], expected: Expected) -> Iterator[str]:
    photometric = {h.text("PhotometricInterpretation") for h in expected.layout.headers}
    own = {"PhotometricInterpretation"} if len(photometric) > 1 else set()  # of each copy
    for keyword in CONSTANT:
        if keyword not in own and len({header.raw(keyword) for header in headers}) > 1:
            yield f"{keyword} varies within the series"


def _on_real_slice(distances: NDArray[np.float64], expected: Expected) -> bool:
    """True where a generated slice is nearer to a received one than gaps differ that are equal.

    Measured on what was written, whatever was looked at before the job ran.
    """
    layout = expected.layout
    others = [header.numbers("ImagePositionPatient") for header in in_gaps(layout, expected.beside)]
    positions = np.array([*layout.geometry.positions, *others])
    places = positions @ layout.geometry.normal
    return any(
        slice_.gap is not None
        and np.abs(places - at).min() < EQUAL_GAPS / 2 * layout.geometry.gaps_mm[slice_.gap]
        for slice_, at in zip(expected.slices, distances, strict=False)
    )
