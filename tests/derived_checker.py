"""A second opinion on every derived series: pydicom and numpy, and nothing of the product.

`check` returns a list of sentences; an empty list is a derived series that is right.
"""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from tests.derived_attributes import ALLOWED

# Must be the source's bytes wherever the source has them, and absent where it has not.
SHARED = """
    PatientName PatientID IssuerOfPatientID PatientBirthDate PatientSex PatientAge PatientSize
    PatientWeight PatientComments OtherPatientNames EthnicGroup PatientIdentityRemoved
    DeidentificationMethod StudyInstanceUID StudyDate StudyTime StudyID StudyDescription
    AccessionNumber ReferringPhysicianName SpecificCharacterSet
    """.split()  # noqa: SIM905
CONSTANT = """
    SeriesInstanceUID SeriesNumber SeriesDescription SeriesDate SeriesTime ContentDate ContentTime
    ImageType AcquisitionNumber FrameOfReferenceUID ImageOrientationPatient PixelSpacing Rows
    Columns StudyInstanceUID Manufacturer ManufacturerModelName StationName ContentQualification
    WindowCenter WindowWidth SpacingBetweenSlices ConvolutionKernel KVP
    """.split()  # noqa: SIM905
UUID_UID = re.compile(r"2\.25\.[1-9][0-9]{0,38}")
POSITION_MM = 1e-3
Rescale = tuple[float, float]  # slope, intercept


@dataclass(frozen=True, eq=False)
class Slice:
    """One file with what the checks need of it."""

    path: Path
    raw: dict[str, bytes]
    dataset: Dataset

    @property
    def uid(self) -> str:
        return str(self.dataset.SOPInstanceUID)

    @property
    def position(self) -> NDArray[np.float64]:
        return np.array([float(value) for value in self.dataset.ImagePositionPatient])

    @property
    def pixels(self) -> NDArray[np.int64]:
        """Stored values without what lies above High Bit."""
        values = self.dataset.pixel_array.astype(np.int64)
        bits = int(self.dataset.BitsStored)
        values &= (1 << bits) - 1
        if self.dataset.PixelRepresentation:
            values[values >= 1 << (bits - 1)] -= 1 << bits
        return values

    @cached_property
    def rescale(self) -> Rescale:
        return float(self.dataset.RescaleSlope), float(self.dataset.RescaleIntercept)

    @property
    def storable(self) -> tuple[int, int]:
        """The least and the greatest value that Bits Stored and the sign allow."""
        bits = int(self.dataset.BitsStored)
        least = -(1 << (bits - 1)) if self.dataset.PixelRepresentation else 0
        return least, least + (1 << bits) - 1

    def hounsfield(self) -> NDArray[np.float64]:
        return np.asarray(self.pixels * self.rescale[0] + self.rescale[1])


@dataclass(frozen=True, eq=False)
class Place:
    """Where a slice must lie: between two sources, or on one."""

    before: Slice
    after: Slice
    fraction: float

    @property
    def position(self) -> NDArray[np.float64]:
        step = self.after.position - self.before.position
        return np.asarray(self.before.position + self.fraction * step)


def check(
    source_files: Sequence[Path],
    derived_files: Sequence[Path],
    *,
    factor: int | None = None,
    target_spacing_mm: float | None = None,
    include_received: bool = True,
    closed_gaps: Sequence[int] = (),
) -> list[str]:
    """Everything that is wrong with a derived series made of these slices (one stack)."""
    sources = _in_order([_read(path) for path in source_files])
    derived = _in_order([_read(path) for path in derived_files])
    factors = _factors(sources, factor, target_spacing_mm)
    factors = [1 if gap in closed_gaps else many for gap, many in enumerate(factors)]
    places = list(_places(sources, factors, include_received=include_received))
    common = _common_rescale(sources)
    faults = []
    if len(places) != len(derived):
        return [f"{len(derived)} instances, expected {len(places)}"]
    for slice_, place in zip(derived, places, strict=True):
        found = itertools.chain(
            _identity(slice_, sources),
            _header(slice_, sources),
            _geometry(slice_, place, common if common and place.fraction else place.before.rescale),
            _content(slice_, place, sources),
        )
        faults += [f"{slice_.path.name}: {fault}" for fault in found]
    return faults + list(_series(derived, sources))


def _read(path: Path) -> Slice:
    untouched = pydicom.dcmread(path, stop_before_pixels=True)
    raw = {}
    for keyword in {*SHARED, *CONSTANT}:
        tag = Tag(keyword)
        if tag in untouched:
            value = untouched.get_item(tag).value
            raw[keyword] = value if isinstance(value, bytes) else str(value).encode()
    return Slice(path, raw, pydicom.dcmread(path))


def _in_order(slices: Sequence[Slice]) -> list[Slice]:
    cosines = [float(value) for value in slices[0].dataset.ImageOrientationPatient]
    normal = np.cross(cosines[:3], cosines[3:])
    return sorted(slices, key=lambda slice_: float(slice_.position @ normal))


def _factors(sources: Sequence[Slice], factor: int | None, target: float | None) -> list[int]:
    if factor is not None:
        return [factor] * (len(sources) - 1)
    assert target is not None
    cosines = [float(value) for value in sources[0].dataset.ImageOrientationPatient]
    normal = np.cross(cosines[:3], cosines[3:])
    gaps = [float((b.position - a.position) @ normal) for a, b in itertools.pairwise(sources)]
    return [max(1, min(10, math.ceil(gap / target - 0.01))) for gap in gaps]


def _places(
    sources: Sequence[Slice], factors: Sequence[int], *, include_received: bool
) -> Iterator[Place]:
    for index, source in enumerate(sources):
        if include_received:
            yield Place(source, source, 0.0)
        if index < len(factors):
            for step in range(1, factors[index]):
                yield Place(source, sources[index + 1], step / factors[index])


def _identity(slice_: Slice, sources: Sequence[Slice]) -> Iterator[str]:
    made = slice_.dataset
    taken = {source.uid for source in sources}
    taken |= {str(source.dataset.SeriesInstanceUID) for source in sources}
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        value = str(made[keyword].value)
        if value in taken:
            yield f"{keyword} is one of the source"
        if not UUID_UID.fullmatch(value):
            yield f"{keyword} {value} is not of the form 2.25.UUID"
    if made.file_meta.MediaStorageSOPInstanceUID != made.SOPInstanceUID:
        yield "the file meta information names another instance"
    if made.SOPClassUID != sources[0].dataset.SOPClassUID:
        yield "SOP Class UID differs"
    if made.FrameOfReferenceUID not in {source.dataset.FrameOfReferenceUID for source in sources}:
        yield "Frame of Reference UID is not the source's"
    yield from _shared(slice_, sources)


def _shared(slice_: Slice, sources: Sequence[Slice]) -> Iterator[str]:
    for keyword in SHARED:
        known = {source.raw.get(keyword, b"(absent)").rstrip(b" \0") for source in sources}
        if slice_.raw.get(keyword, b"(absent)").rstrip(b" \0") not in known:
            yield f"{keyword} is not the source's"


def _header(slice_: Slice, sources: Sequence[Slice]) -> Iterator[str]:
    made = slice_.dataset
    for element in made:
        if element.tag.is_private or element.keyword not in ALLOWED:
            yield f"{element.tag} {element.keyword} must not be there"
    yield from _marks(made, sources)


def _marks(made: Dataset, sources: Sequence[Slice]) -> Iterator[str]:
    if list(made.ImageType) != ["DERIVED", "SECONDARY", "AXIAL", "", "AI_INTERP"]:
        yield f"Image Type is {made.ImageType}"
    if made.Modality != "CT" or made.ContentQualification not in ("RESEARCH", "PRODUCT", "SERVICE"):
        yield "Modality or Content Qualification"
    if made.Manufacturer != "Midslice" or made.Manufacturer == sources[0].dataset.get(
        "Manufacturer"
    ):
        yield "the node is not named as the equipment"
    if "NOT ACQUIRED" not in made.SeriesDescription or len(made.SeriesDescription) > 64:
        yield "Series Description does not say that slices were not acquired"
    if made.file_meta.TransferSyntaxUID != "1.2.840.10008.1.2.1":
        yield "not Explicit VR Little Endian"
    if any(_is_lossy(source) for source in sources) and made.get("LossyImageCompression") != "01":
        yield "the mark of lossy compression is gone"


def _is_lossy(source: Slice) -> bool:
    syntax = str(source.dataset.file_meta.TransferSyntaxUID)
    lossy = {f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81, 91, 203)}
    return source.dataset.get("LossyImageCompression") == "01" or syntax in lossy


def _geometry(slice_: Slice, place: Place, rescale: Rescale) -> Iterator[str]:
    if np.abs(slice_.position - place.position).max() > POSITION_MM:
        yield f"lies at {slice_.position}, not at {place.position}"
    made, source = slice_.dataset, place.before.dataset
    for keyword in ("ImageOrientationPatient", "PixelSpacing"):
        values = np.array([float(value) for value in made[keyword].value])
        known = np.array([float(value) for value in source[keyword].value])
        if np.abs(values - known).max() > 1e-4:
            yield f"{keyword} differs"
    if made.HighBit != made.BitsStored - 1:
        yield "High Bit"
    yield from _pixel_format(made, source, rescale)


def _common_rescale(sources: Sequence[Slice]) -> Rescale | None:
    """(slope, intercept) of all generated slices: the finest that can store every value."""
    if len({source.rescale for source in sources}) == 1:
        return None
    ends = [(plane.min(), plane.max()) for plane in map(Slice.hounsfield, sources)]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    finest = min(abs(source.rescale[0]) for source in sources)
    for source in sources:
        room = sorted(value * source.rescale[0] + source.rescale[1] for value in source.storable)
        if abs(source.rescale[0]) == finest and room[0] <= low and high <= room[1]:
            return source.rescale
    return None


def _pixel_format(made: Dataset, source: Dataset, rescale: Rescale) -> Iterator[str]:
    keywords = "Rows Columns BitsAllocated BitsStored PixelRepresentation PhotometricInterpretation"
    for keyword in keywords.split():
        if made[keyword].value != source[keyword].value:
            yield f"{keyword} differs"
    for keyword, value in zip(("RescaleSlope", "RescaleIntercept"), rescale, strict=True):
        if abs(float(made[keyword].value) - value) > 1e-9:
            yield f"{keyword} differs"


def _content(slice_: Slice, place: Place, sources: Sequence[Slice]) -> Iterator[str]:
    made = slice_.dataset
    named = [str(item.ReferencedSOPInstanceUID) for item in made.SourceImageSequence]
    listed = [
        str(instance.ReferencedSOPInstanceUID)
        for series in made.ReferencedSeriesSequence
        for instance in series.ReferencedInstanceSequence
    ]
    related = {str(item.SeriesInstanceUID) for item in made.RelatedSeriesSequence}
    if sorted(named) != sorted(listed) or not set(named) <= {source.uid for source in sources}:
        yield "references are not exactly the sources"
    if related != {str(sources[0].dataset.SeriesInstanceUID)}:
        yield "Related Series Sequence"
    if not {place.before.uid, place.after.uid} <= set(named):
        yield "a slice that it was made from is not named"
    purposes = [
        str(item.PurposeOfReferenceCodeSequence[0].CodeValue)
        for item in made.ContributingEquipmentSequence
    ]
    preserved = {str(item.SpatialLocationsPreserved) for item in made.SourceImageSequence}
    if place.fraction == 0.0:
        wanted = ("NO", {"YES"}, ["109101", "109102"], "copied unchanged")
    else:
        wanted = ("YES", {"NO"}, ["109101", "109100"], "not acquired")
    said = (made.SyntheticData, preserved, [purposes[0], purposes[-1]])
    if said != wanted[:3] or wanted[3] not in made.DerivationDescription:
        yield f"says {said} {made.DerivationDescription!r} of a slice at {place.fraction}"
    yield from _copied(slice_, place) if place.fraction == 0.0 else _generated(slice_, place)


def _copied(slice_: Slice, place: Place) -> Iterator[str]:
    if not np.array_equal(slice_.pixels, place.before.pixels):
        yield "the copied slice differs from its source"
    if "DerivationCodeSequence" in slice_.dataset:
        yield "a copy says that it was resampled"


def _generated(slice_: Slice, place: Place) -> Iterator[str]:
    if slice_.dataset.DerivationCodeSequence[0].CodeValue != "113085":
        yield "Derivation Code is not spatial resampling"
    values, before, after = (item.hounsfield() for item in (slice_, place.before, place.after))
    slope = float(slice_.dataset.RescaleSlope)
    slack = 0.0 if place.before.rescale == place.after.rescale else abs(slope)
    low, high = min(before.min(), after.min()), max(before.max(), after.max())
    if values.min() < low - slack or values.max() > high + slack:
        yield "generated values lie outside those of the two neighbours"
    declared = place.before.dataset.get("PixelPaddingValue")
    if declared is None:
        return
    bits, signed = place.before.dataset.BitsStored, place.before.dataset.PixelRepresentation
    padding = int(declared) & ((1 << bits) - 1)
    padding = padding - (1 << bits) if signed and padding >= 1 << (bits - 1) else padding
    either = (place.before.pixels == padding) | (place.after.pixels == padding)
    if not np.array_equal(slice_.pixels == padding, either):
        yield "padding is not where a neighbour has it"


def _series(derived: Sequence[Slice], sources: Sequence[Slice]) -> Iterator[str]:
    if len({slice_.uid for slice_ in derived}) != len(derived):
        yield "two instances share a UID"
    for keyword in CONSTANT:
        if len({slice_.raw.get(keyword) for slice_ in derived}) > 1:
            yield f"{keyword} varies within the series"
    numbers = [int(slice_.dataset.InstanceNumber) for slice_ in derived]
    known = [source.dataset.get("InstanceNumber") for source in sources]
    descends = None not in (known[0], known[-1]) and known[-1] < known[0]
    if numbers != sorted(range(1, len(derived) + 1), reverse=bool(descends)):
        yield "Instance Numbers do not run in the scanner's direction"
    yield from _spacing(derived)


def _spacing(derived: Sequence[Slice]) -> Iterator[str]:
    cosines = [float(value) for value in derived[0].dataset.ImageOrientationPatient]
    normal = np.cross(cosines[:3], cosines[3:])
    gaps = np.diff([slice_.position @ normal for slice_ in derived])
    declared = derived[0].dataset.get("SpacingBetweenSlices")
    if declared is not None and np.abs(gaps - float(declared)).max() > 0.02:
        yield "Spacing Between Slices is not the distance of the slices"
    if declared is None and len(gaps) and np.ptp(gaps) < POSITION_MM:
        yield "a regular series does not say its Spacing Between Slices"
