"""Reads a derived series from disk again and compares it with its sources before it may leave."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference import header as h
from inference.dataset import Header, read_header, read_whole
from inference.errors import Unprocessable
from inference.geometry import EQUAL_GAPS, Layout, in_gaps
from inference.kinds import image_type_of_result
from inference.pixels import PixelFormat, PixelReader, Stored, ends_of, is_lossy, native_values
from inference.request import PREVIEWS, File
from inference.results.derived import NOT_ACQUIRED, Planned, description_in, overlay, overlays_of

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
    check = SeriesCheck(expected, pixels)
    for place in range(len(expected.slices)):
        check.look_at(place)
        progress(place + 1)
    return check.faults(expected.objects)


@dataclass(frozen=True)
class _Facts:
    """All that the check of a whole series asks of one file."""

    uid: str
    number: int
    position: tuple[float, ...]
    spacing: float | None
    constant: tuple[bytes, ...]  # of each of CONSTANT


class SeriesCheck:
    """Reads each file of a derived series again, as soon as it is written, and judges them all."""

    def __init__(self, expected: Expected, pixels: PixelReader) -> None:
        self._expected = expected
        self._pixels = pixels
        self._faults: dict[int, list[str]] = {}
        self._facts: dict[int, _Facts] = {}
        self._source = _SourceFacts.of(expected.layout)

    def look_at(self, place: int) -> None:
        """Read the file of one slice; threads may look at several."""
        slice_ = self._expected.slices[place]
        header = read_whole(self._expected.folder / slice_.name)
        if header.fault:
            self._faults[place] = [f"{slice_.name}: {header.fault}"]
            return
        faults = list(_faults_of(header, slice_, self._expected, self._source))
        try:
            faults += _pixel_faults(header, slice_, self._expected, self._pixels)
        except Unprocessable as error:
            faults.append(error.sentence)
        self._faults[place] = [f"{slice_.name}: {fault}" for fault in faults]
        self._facts[place] = _Facts(
            uid=header.uid,
            number=header.integer("InstanceNumber") or 0,
            position=header.numbers("ImagePositionPatient"),
            spacing=header.number("SpacingBetweenSlices"),
            constant=tuple(map(header.raw, CONSTANT)),
        )

    def faults(self, objects: Sequence[File]) -> tuple[str, ...]:
        """Everything that is wrong, now that all is written, with the further objects."""
        expected = self._expected
        places = range(len(expected.slices))
        faults = [fault for place in places for fault in self._faults.get(place, ["not read"])]
        for file in objects:
            faults += [f"{file.name}: {fault}" for fault in _object_faults(file, expected)]
        names = {path.name for path in expected.folder.iterdir()} - {PREVIEWS}
        planned = {slice_.name for slice_ in expected.slices}
        if names != planned | {file.name for file in objects}:
            faults.append("the folder holds other files than planned")
        in_order = [self._facts[place] for place in places if place in self._facts]
        return (*faults, *_series_faults(in_order, expected))


@dataclass(frozen=True, eq=False)
class _SourceFacts:
    """The facts of the received slices that every file is compared with."""

    image_type: tuple[str, ...]
    is_lossy: bool
    patient_and_study: bytes

    @classmethod
    def of(cls, layout: Layout) -> "_SourceFacts":
        return cls(
            image_type=image_type_of_result(layout.headers),
            is_lossy=any(map(is_lossy, layout.headers)),
            patient_and_study=_patient_and_study(layout.headers[0]),
        )


def _patient_and_study(header: Header) -> bytes:
    return h.encoded(h.carried(header, h.PATIENT_AND_STUDY))


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
    if _patient_and_study(header) != _patient_and_study(expected.layout.headers[0]):
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


def _faults_of(
    header: Header, slice_: Planned, expected: Expected, source: _SourceFacts
) -> Iterator[str]:
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
    if header.values("ImageType") != source.image_type:
        yield "ImageType is not that of a derived series"
    if slice_.uid in expected.received or expected.series_uid in expected.received:
        yield "a UID of the source was used again"
    position = np.array(header.numbers("ImagePositionPatient"))
    if position.shape != (3,) or np.abs(position - slice_.position).max() > POSITION_MM:
        yield "the position is not where the slice was planned"
    if source.is_lossy and not is_lossy(header):
        yield "the mark of lossy compression was lost"
    if _patient_and_study(header) != source.patient_and_study:
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
    written = overlays_of(header)
    if not marked:
        if written:
            yield "an overlay plane where none belongs"
        return
    words = description_in(written)
    size = header.integer("Rows") or 0, header.integer("Columns") or 0
    is_whole = h.encoded(written) == h.encoded(overlay(words, *size).elements)
    if not is_whole or not words.startswith(NOT_ACQUIRED):
        yield "no overlay plane says that the slice was not acquired"


def _pixel_faults(
    header: Header,
    slice_: Planned,
    expected: Expected,
    pixels: PixelReader,
) -> Iterator[str]:
    if header.transfer_syntax != h.EXPLICIT_LITTLE_ENDIAN:
        yield "the pixels are not encoded as they were written"
        return
    stored = native_values(header, header.raw("PixelData"))
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
    slices = [pixels.decoded(header) for header in neighbours]
    anywhere = slices[0].padded | slices[1].padded
    known = [slice_.ends_hu for slice_ in slices if slice_.ends_hu is not None]
    declared, impossible = own.declared(stored), own.impossible(stored)
    padded = own.padded(stored) if impossible.any() else declared
    ends = ends_of(own.hounsfield_around(stored, padded), anywhere)
    # One stored value: where the neighbours are rescaled differently, values are rounded twice.
    slack = abs(formats[0].slope) + abs(formats[1].slope)
    slack = 0.0 if own == formats[0] == formats[1] and own.padding is None else slack
    if ends is not None and not (
        min(low for low, _ in known) - slack <= ends[0]
        and ends[1] <= max(high for _, high in known) + slack
    ):
        yield "generated values lie outside those of the neighbours"
    # What is below every tissue elsewhere is a streak of metal; its range was judged above.
    lost = anywhere & ~(declared | impossible)
    if lost.any() or (declared & ~anywhere).any():
        yield "padding is not where the neighbours have it"


def _series_faults(files: Sequence[_Facts], expected: Expected) -> Iterator[str]:
    if len({file.uid for file in files}) != len(expected.slices):
        yield "instances are missing or share a UID"
    yield from _varying(files, expected)
    if sorted(file.number for file in files) != list(range(1, len(files) + 1)):
        yield "instance numbers are not 1 to the number of instances"
    if any(len(file.position) != 3 for file in files):
        return
    distances = np.array([file.position for file in files]) @ expected.layout.geometry.normal
    if len(files) == len(expected.slices) and _on_real_slice(distances, expected):
        yield "a generated slice lies where a received one of the series lies"
    if len(distances) > 1 and np.diff(distances).min() <= 0.0:
        yield "slices are not in order along the normal"
    declared = files[0].spacing if files else None
    if declared is not None and np.abs(np.diff(distances) - declared).max() > 2e-2:
        yield "slices are not apart by the spacing that they declare"


def _varying(files: Sequence[_Facts], expected: Expected) -> Iterator[str]:
    photometric = {h.text("PhotometricInterpretation") for h in expected.layout.headers}
    own = {"PhotometricInterpretation"} if len(photometric) > 1 else set()  # of each copy
    for at, keyword in enumerate(CONSTANT):
        if keyword not in own and len({file.constant[at] for file in files}) > 1:
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
