"""A second opinion on a derived series: its files beside those it was made from.

It reads them with pydicom and imagecodecs and knows nothing of the product, so that a mistake of
the product is not made twice. The demo, the self-test and the tests judge by it. One table,
`CHECKS`, says what must be true.
"""

import copy
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.charset import python_encoding
from pydicom.dataset import FileDataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels.utils import pixel_array
from pydicom.uid import RLELossless

Hounsfield = NDArray[np.float64]  # (rows, columns)
Samples = NDArray[np.integer]  # (rows, columns), with whatever bits and sign
Rescale = tuple[float, float]  # slope, intercept
Faults = Iterator[str]

POSITION_MM = 1e-4  # a decimal string of 16 characters is far more exact
SAME_PLACE_MM = 0.01
NEVER_PADDING_HU = (-950.0, 3000.0)  # tissue: what is declared in there outlines nothing
SPACING_MM = 0.02  # how far the distances of a series may be from the one that it declares
COSINES = 1e-4
RATIO_TOLERANCE = 0.01  # of gap to target spacing: 5.02 mm at 2.5 mm are two slices, not three
MOST_FACTOR = 10
MOST_CHARACTERS = 64  # of a Long String
MOST_FAULTS = 3  # of a check are shown

QUALIFICATIONS = ("RESEARCH", "PRODUCT", "SERVICE")
UUID_UID = re.compile(r"2\.25\.[1-9][0-9]{0,38}")
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
IMPLICIT_LITTLE_ENDIAN, EXPLICIT_BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
# PS3.10 7.1: preamble, "DICM" and the group length element come before the rest of group 0002.
META_AT, META_GROUP, GROUP_LENGTH = 144, b"\x02\0", b"\x02\0\0\0UL\x04\0"
FIRST_ITEM = b"\xfe\xff\x00\xe0"  # of encapsulated pixels (PS3.5 A.4)
JPEG, JPEG_2000, JPEG_LS_FRAME = b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\xff\xf7"
START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
LOSSY = {f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81, 91, 203)}
SPATIAL_RESAMPLING = "113085"  # PS3.16 CID 7203
OVERLAY_DESCRIPTION, OVERLAY_DATA = (0x6000, 0x0022), (0x6000, 0x3000)
# Rows, Columns, Description, Type, Origin, Bits Allocated, Bit Position, Label and Data of one.
ALLOWED_OVERLAY = frozenset(
    0x60000000 + number for number in (0x10, 0x11, 0x22, 0x40, 0x50, 0x100, 0x102, 0x1500, 0x3000)
)
NOT_ACQUIRED = "AI, not acquired"
ACQUISITION, PROCESSING, SYNTHESIZING = "109101", "109102", "109100"  # PS3.16 CID 7005

# Must be a source's bytes wherever the sources have them, and absent where they have not.
PATIENT_AND_STUDY = """
    PatientName PatientID IssuerOfPatientID PatientBirthDate PatientSex PatientAge PatientSize
    PatientWeight PatientComments OtherPatientNames EthnicGroup PatientIdentityRemoved
    DeidentificationMethod StudyInstanceUID StudyDate StudyTime StudyID StudyDescription
    AccessionNumber ReferringPhysicianName SpecificCharacterSet
    """.split()  # noqa: SIM905
# Must be the same on all instances, or viewers split the series.
CONSTANT = """
    SeriesInstanceUID SeriesNumber SeriesDescription SeriesDate SeriesTime ContentDate ContentTime
    ImageType AcquisitionNumber FrameOfReferenceUID ImageOrientationPatient PixelSpacing Rows
    Columns StudyInstanceUID Manufacturer ManufacturerModelName StationName ContentQualification
    WindowCenter WindowWidth SpacingBetweenSlices ConvolutionKernel KVP
    """.split()  # noqa: SIM905
CONSTANT_AS_RECEIVED = ("SliceThickness", "RescaleSlope", "RescaleIntercept")
PIXEL_FORMAT = """
    Rows Columns BitsAllocated BitsStored PixelRepresentation PhotometricInterpretation
    """.split()  # noqa: SIM905
# Everything that a derived CT header may hold, written down apart from the product's list.
ALLOWED = frozenset(
    [*PATIENT_AND_STUDY, *CONSTANT, *CONSTANT_AS_RECEIVED, *PIXEL_FORMAT]
    + """
    InstanceCreationDate InstanceCreationTime InstanceCreatorUID SOPClassUID SOPInstanceUID
    SyntheticData AcquisitionDate AcquisitionDateTime AcquisitionTime
    IssuerOfAccessionNumberSequence Modality InstitutionName InstitutionAddress
    ReferringPhysicianIdentificationSequence TimezoneOffsetFromUTC ProcedureCodeSequence
    InstitutionalDepartmentName PhysiciansOfRecord PhysiciansOfRecordIdentificationSequence
    NameOfPhysiciansReadingStudy PhysiciansReadingStudyIdentificationSequence
    ConsultingPhysicianName ConsultingPhysicianIdentificationSequence AdmittingDiagnosesDescription
    AdmittingDiagnosesCodeSequence ReferencedStudySequence ReferencedPatientSequence
    ReferencedSeriesSequence AnatomicRegionSequence RelatedSeriesSequence DerivationDescription
    SourceImageSequence AcquisitionUID IrradiationEventUID DerivationCodeSequence TypeOfPatientID
    IssuerOfPatientIDQualifiersSequence PatientBirthTime PatientAlternativeCalendar
    PatientBirthDateInAlternativeCalendar OtherPatientIDs OtherPatientIDsSequence
    PatientSizeCodeSequence PatientBodyMassIndex MedicalAlerts Allergies EthnicGroupCodeSequence
    Occupation SmokingStatus AdditionalPatientHistory PregnancyStatus LastMenstrualDate
    PatientSexNeutered ResponsiblePerson ResponsiblePersonRole ResponsibleOrganization
    QualityControlSubject PatientSpeciesDescription PatientSpeciesCodeSequence
    DeidentificationMethodCodeSequence ClinicalTrialSponsorName ClinicalTrialProtocolID
    ClinicalTrialProtocolName ClinicalTrialSiteID ClinicalTrialSiteName ClinicalTrialSubjectID
    ClinicalTrialSubjectReadingID ClinicalTrialTimePointID ClinicalTrialTimePointDescription
    ClinicalTrialProtocolEthicsCommitteeName ClinicalTrialProtocolEthicsCommitteeApprovalNumber
    ConsentForClinicalTrialUseSequence LongitudinalTemporalOffsetFromEvent
    LongitudinalTemporalEventType LongitudinalTemporalInformationModified ContrastBolusAgent
    ContrastBolusAgentSequence ContrastBolusAdministrationRouteSequence BodyPartExamined
    DataCollectionDiameter SoftwareVersions ProtocolName ContrastBolusRoute ContrastBolusVolume
    ContrastBolusStartTime ContrastBolusStopTime ContrastBolusTotalDose ContrastFlowRate
    ContrastFlowDuration ContrastBolusIngredient ContrastBolusIngredientConcentration
    ReconstructionDiameter GantryDetectorTilt TableHeight RotationDirection FilterType
    PatientPosition ContributingEquipmentSequence InstanceNumber ImagePositionPatient Laterality
    PositionReferenceIndicator SliceLocation ImageComments SamplesPerPixel HighBit PixelPaddingValue
    PixelPaddingRangeLimit QualityControlImage BurnedInAnnotation RecognizableVisualFeatures
    RescaleType WindowCenterWidthExplanation VOILUTFunction LossyImageCompression
    LossyImageCompressionRatio LossyImageCompressionMethod RequestAttributesSequence
    RequestingService RequestingServiceCodeSequence ReasonForPerformedProcedureCodeSequence
    ReasonForVisit ReasonForVisitCodeSequence AdmissionID IssuerOfAdmissionIDSequence
    ServiceEpisodeID IssuerOfServiceEpisodeIDSequence ServiceEpisodeDescription PatientState
    AnatomicalOrientationType PixelData
    """.split()  # noqa: SIM905  (a page of quoted words is harder to read)
)


def parsed(path: Path) -> Dataset:
    """The instance in a Part 10 file; elements of group 0002 in its data set mean nothing."""
    content = path.read_bytes()
    start = META_AT + int.from_bytes(content[META_AT - 4 : META_AT], "little")
    if content[132:140] != GROUP_LENGTH or content[start : start + 2] != META_GROUP:
        return dcmread(path)
    meta = dcmread(BytesIO(content[:start])).file_meta
    is_implicit = meta.TransferSyntaxUID == IMPLICIT_LITTLE_ENDIAN
    header = FileDataset(
        path, read_dataset(BytesIO(content[start:]), is_implicit, True), file_meta=meta
    )
    for tag in [tag for tag in header.keys() if tag.group == 2]:  # noqa: SIM118
        del header[tag]
    return header


def samples_of(header: Dataset) -> Samples:
    """The samples of an image as they lie there: native, or by what its code stream says it is.

    imagecodecs decodes, not the plug-ins of pydicom, and the transfer syntax is not believed.
    """
    data, bits = header.PixelData, int(header.BitsAllocated)
    if data.startswith(FIRST_ITEM) and len(data) != header.Rows * header.Columns * bits // 8:
        stream = get_frame(data, 0, number_of_frames=1)
        return _decoded(stream, header).reshape(header.Rows, header.Columns)
    order = ">" if header.file_meta.TransferSyntaxUID == EXPLICIT_BIG_ENDIAN else "<"
    samples = np.frombuffer(data, f"{order}u{bits // 8}", header.Rows * header.Columns)
    return samples.reshape(header.Rows, header.Columns)


def _decoded(stream: bytes, header: Dataset) -> Samples:
    import imagecodecs  # here: who judges no pixels loads no decoder

    if stream.startswith(JPEG_2000):
        return np.asarray(imagecodecs.jpeg2k_decode(stream))
    if stream.startswith(JPEG) and JPEG_LS_FRAME not in stream[: stream.index(START_OF_SCAN)]:
        return np.asarray(imagecodecs.jpeg8_decode(stream))
    if stream.startswith(JPEG):
        before, marker, _ = stream.rpartition(END_OF_IMAGE)
        coded = before if marker else stream.rstrip(b"\0")
        try:
            return np.asarray(imagecodecs.jpegls_decode(coded + END_OF_IMAGE))
        except imagecodecs.JpeglsError:  # a zero byte before the end marker
            return np.asarray(imagecodecs.jpegls_decode(coded.rstrip(b"\0") + END_OF_IMAGE))
    as_rle = copy.copy(header)
    as_rle.file_meta = copy.copy(header.file_meta)
    as_rle.file_meta.TransferSyntaxUID = RLELossless
    return pixel_array(as_rle, raw=True)  # by Python alone, in pydicom itself


@dataclass(frozen=True, eq=False)
class Slice:
    """One instance: its header as pydicom reads it, and the bytes of some attributes."""

    header: Dataset
    encoded: dict[str, bytes]

    @classmethod
    def read(cls, path: Path) -> "Slice":
        """The instance in a Part 10 file."""
        header = parsed(path)
        encoded = {}
        for keyword in {*PATIENT_AND_STUDY, *CONSTANT, *CONSTANT_AS_RECEIVED} & set(header.dir()):
            value = header.get_item(keyword).value
            value = value if isinstance(value, bytes) else str(value).encode()
            encoded[keyword] = value.rstrip(b" \0")
        return cls(header, encoded)

    @property
    def name(self) -> str:
        return Path(str(self.header.filename)).name

    @property
    def uid(self) -> str:
        return str(self.header.SOPInstanceUID)

    @cached_property
    def position(self) -> NDArray[np.float64]:
        return np.array(self.header.ImagePositionPatient, float)

    @cached_property
    def rescale(self) -> Rescale:
        return float(self.header.RescaleSlope), float(self.header.RescaleIntercept)

    @property
    def storable(self) -> tuple[int, int]:
        """The least and the greatest value that Bits Stored and the sign allow."""
        bits = int(self.header.BitsStored)
        least = -(1 << (bits - 1)) if self.header.PixelRepresentation else 0
        return least, least + (1 << bits) - 1

    @property
    def pixels(self) -> NDArray[np.int64]:
        """Stored values without what lies above High Bit."""
        return self.as_stored(samples_of(self.header).astype(np.int64))

    @property
    def padding(self) -> int | None:
        """The stored value outside the field of view, where a possible one is declared."""
        declared = self.header.get("PixelPaddingValue")
        if declared is None:
            return None
        value = int(self.as_stored(np.array([int(declared)]))[0])
        slope, intercept = self.rescale
        least, most = NEVER_PADDING_HU
        return None if least < value * slope + intercept < most else value

    def is_padded(self) -> NDArray[np.bool_]:
        """True outside the field of view, where its value is declared."""
        return np.asarray(self.pixels == (np.nan if self.padding is None else self.padding))

    def as_stored(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Values in the bits and with the sign of this instance."""
        bits = int(self.header.BitsStored)
        values = values & ((1 << bits) - 1)
        if self.header.PixelRepresentation:
            values[values >= 1 << (bits - 1)] -= 1 << bits
        return values

    def hounsfield(self) -> Hounsfield:
        slope, intercept = self.rescale
        return np.asarray(self.pixels * slope + intercept)

    def is_lossy(self) -> bool:
        """It was compressed lossily at some time: marked so, or encoded so now."""
        syntax = str(self.header.file_meta.TransferSyntaxUID)
        return self.header.get("LossyImageCompression") == "01" or syntax in LOSSY


@dataclass(frozen=True, eq=False)
class ImageSeries:
    """The slices of one series in ascending order along their common normal."""

    slices: tuple[Slice, ...]
    heights_mm: NDArray[np.float64]  # (slices,): along the normal

    @classmethod
    def read(cls, paths: Sequence[Path]) -> "ImageSeries":
        """The series in Part 10 files, whatever their names and their order."""
        return cls.of([Slice.read(path) for path in paths])

    @classmethod
    def of(cls, slices: Sequence[Slice]) -> "ImageSeries":
        if not slices:
            raise ValueError("a series without slices")
        cosines = np.array(slices[0].header.ImageOrientationPatient, float)
        normal = np.cross(cosines[:3], cosines[3:])
        heights = np.array([slice_.position @ normal for slice_ in slices])
        order = np.argsort(heights, kind="stable")
        return cls(tuple(slices[index] for index in order), heights[order])

    def __len__(self) -> int:
        return len(self.slices)

    @property
    def headers(self) -> Iterator[Dataset]:
        return (slice_.header for slice_ in self.slices)

    @property
    def series_uid(self) -> str:
        """Of the first slice."""
        return str(self.slices[0].header.SeriesInstanceUID)

    @cached_property
    def gap_mm(self) -> float:
        """The usual distance between neighbours; 0 for a single slice."""
        return float(np.median(np.diff(self.heights_mm))) if len(self) > 1 else 0.0

    @cached_property
    def pixel_spacing_mm(self) -> tuple[float, float]:
        """Between rows, between columns."""
        rows, columns = self.slices[0].header.PixelSpacing
        return float(rows), float(columns)

    def volume(self) -> NDArray[np.int16]:
        """(slices, rows, columns) HU, rounded: enough for a picture, half the memory."""
        first = self.slices[0].header
        whole = np.empty((len(self), first.Rows, first.Columns), np.int16)
        for index, slice_ in enumerate(self.slices):
            whole[index] = np.clip(np.rint(slice_.hounsfield()), -32768, 32767)
        return whole

    def at(self, height_mm: float) -> int | None:
        """The index of the slice at that height, where there is one."""
        nearest = int(np.argmin(np.abs(self.heights_mm - height_mm)))
        return nearest if abs(self.heights_mm[nearest] - height_mm) < SAME_PLACE_MM else None


@dataclass(frozen=True, eq=False)
class ExpectedSlice:
    """A slice that must be there: between two received ones, or a copy of one."""

    before: Slice
    after: Slice
    fraction: float

    @property
    def is_generated(self) -> bool:
        return self.fraction > 0.0

    @property
    def position(self) -> NDArray[np.float64]:
        step = self.after.position - self.before.position
        return np.asarray(self.before.position + self.fraction * step)


REFORMAT_WORDS = frozenset({"MPR", "REFORMATTED", "AVERAGE", "MEAN"})


def _words_of_type(header: Dataset) -> frozenset[str]:
    return frozenset(re.findall("[A-Z]+", str(header.get("ImageType", "")).upper()))


@dataclass(frozen=True, eq=False)
class Evidence:
    """The received and the derived series, and the slices that the derived one must have."""

    received: ImageSeries
    derived: ImageSeries
    expected: tuple[ExpectedSlice, ...]

    def pairs(self) -> Iterator[tuple[Slice, ExpectedSlice]]:
        """Each derived slice with the one that is expected there."""
        return zip(self.derived.slices, self.expected, strict=True)

    @cached_property
    def has_one_format(self) -> bool:
        """True where all received slices are stored in the same way."""
        return len({_format(slice_) for slice_ in self.received.slices}) == 1

    @cached_property
    def generated_formats(self) -> frozenset[tuple[object, ...]]:
        """The ways in which generated slices are stored."""
        return frozenset(
            _format(slice_) for slice_, expected in self.pairs() if expected.is_generated
        )

    @cached_property
    def words_of_source(self) -> frozenset[str]:
        """Words of Image Type by which received slices say that they were reformatted."""
        words = frozenset[str]().union(*map(_words_of_type, self.received.headers))
        return words & REFORMAT_WORDS

    def facts(self) -> dict[str, object]:
        """The values that the sentences of `CHECKS` name."""
        received, derived = self.received, self.derived
        generated = [slice_.is_generated for slice_ in self.expected].count(True)
        return {
            "derived": len(derived),
            "generated": generated,
            "copied": len(derived) - generated,
            "marked": [OVERLAY_DATA in header for header in derived.headers].count(True),
            "gap_mm": derived.gap_mm,
            "length_mm": float(np.ptp(derived.heights_mm)),
            "description": derived.slices[0].header.get("SeriesDescription", ""),
            "scanner": received.slices[0].header.get("ManufacturerModelName", ""),
            "model": ", ".join(sorted(models(derived))) or "none",
        }


@dataclass(frozen=True)
class Check:
    """One row of the table: what must be true, whether it is, and the figures."""

    name: str
    ok: bool
    detail: str


class AskedFor(TypedDict, total=False):
    """The derived series that was asked for."""

    factor: int | None  # of every gap: slices out per slice in
    target_spacing_mm: float | None  # instead of a factor
    include_received: bool  # True where nothing is said
    closed_gaps: Sequence[int]  # these get no slices


def check(
    received: Sequence[Path], derived: Sequence[Path], **asked: Unpack[AskedFor]
) -> list[str]:
    """Everything that is wrong with the files of a derived series; nothing where it is right.

    `received` are the files of the stack that it was made of.
    """
    if not derived:
        return ["a series without slices"]
    evidence = _evidence(ImageSeries.read(received), ImageSeries.read(derived), asked)
    return [fault for _, _, faults in _judged(evidence) for fault in faults]


def verify(received: ImageSeries, derived: ImageSeries, **asked: Unpack[AskedFor]) -> list[Check]:
    """Every check as a row, in the order in which a person would ask."""
    evidence = _evidence(received, derived, asked)
    rows = []
    for name, sentence, faults in _judged(evidence):
        more = f" and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
        shown = "; ".join(faults[:MOST_FAULTS]) + more
        rows.append(Check(name, not faults, shown or sentence.format(**evidence.facts())))
    return rows


def models(derived: ImageSeries) -> set[str]:
    """Name and version of each model that generated slices of a series."""
    return {
        f"{item.get('ManufacturerModelName', '')} {_version(item)}".strip()
        for header in derived.headers
        for item in header.get("ContributingEquipmentSequence", ())
        if _purpose(item) == SYNTHESIZING
    }


def _judged(evidence: Evidence) -> Iterator[tuple[str, str, list[str]]]:
    """(check, what is true, what is wrong instead) as far as the number of slices allows."""
    for name, sentence, faults_of in CHECKS:
        faults = []
        try:
            faults = list(faults_of(evidence))
        except (AttributeError, KeyError, IndexError) as absent:
            faults = [f"absent: {absent}"]
        yield name, sentence, faults
        if len(evidence.derived) != len(evidence.expected):
            return


def _evidence(received: ImageSeries, derived: ImageSeries, asked: AskedFor) -> Evidence:
    gaps = np.diff(received.heights_mm)
    factor, target_mm = asked.get("factor"), asked.get("target_spacing_mm")
    if factor is not None:
        factors = [factor] * len(gaps)
    else:
        assert target_mm is not None
        ratios = [math.ceil(gap / target_mm - RATIO_TOLERANCE) for gap in gaps]
        factors = [max(1, min(MOST_FACTOR, ratio)) for ratio in ratios]
    for gap in asked.get("closed_gaps", ()):
        factors[gap] = 1
    expected: list[ExpectedSlice] = []
    for index, slice_ in enumerate(received.slices):
        if asked.get("include_received", True):
            expected.append(ExpectedSlice(slice_, slice_, 0.0))
        for step in range(1, factors[index] if index < len(factors) else 1):
            after = received.slices[index + 1]
            expected.append(ExpectedSlice(slice_, after, step / factors[index]))
    return Evidence(received, derived, tuple(expected))


def each_slice(
    faults_of: Callable[[Slice, ExpectedSlice, Evidence], Faults],
) -> Callable[[Evidence], Faults]:
    """Make a check of all slices from a check of one; a fault begins with the name of the file."""

    def faults_of_all(evidence: Evidence) -> Faults:
        for slice_, expected in evidence.pairs():
            for fault in faults_of(slice_, expected, evidence):
                yield f"{slice_.name}: {fault}"

    return faults_of_all


def _count(evidence: Evidence) -> Faults:
    if len(evidence.derived) != len(evidence.expected):
        yield f"{len(evidence.derived)} slices, expected {len(evidence.expected)}"


def _position(evidence: Evidence) -> Faults:
    yield from _position_of_slice(evidence)
    gaps = np.diff(evidence.derived.heights_mm)
    is_regular = len(gaps) > 0 and np.ptp(gaps) < POSITION_MM
    declared = evidence.derived.slices[0].header.get("SpacingBetweenSlices")
    if declared is None:
        if is_regular:
            yield "a regular series does not say its Spacing Between Slices"
        return
    allowed_mm = POSITION_MM if is_regular else SPACING_MM
    if np.abs(gaps - float(declared)).max(initial=0.0) > allowed_mm:
        yield f"Spacing Between Slices says {declared} mm"


@each_slice
def _position_of_slice(slice_: Slice, expected: ExpectedSlice, evidence: Evidence) -> Faults:
    if np.abs(slice_.position - expected.position).max() > POSITION_MM:
        yield f"lies at {slice_.position}, not at {expected.position}"
    for keyword in ("ImageOrientationPatient", "PixelSpacing"):
        own, *received = (
            np.array(item.header[keyword].value, float)
            for item in (slice_, *evidence.received.slices)
        )
        # One of them, for all: they may differ by noise.
        if min(np.abs(own - numbers).max() for numbers in received) > COSINES:
            yield f"{keyword} differs"


@each_slice
def _copies(slice_: Slice, expected: ExpectedSlice, _: Evidence) -> Faults:
    if expected.is_generated:
        return
    if not np.array_equal(slice_.pixels, expected.before.pixels):
        yield "the copied slice differs from the received one"
    if "DerivationCodeSequence" in slice_.header:
        yield "a copy says that it was resampled"


@each_slice
def _pixel_format(slice_: Slice, expected: ExpectedSlice, evidence: Evidence) -> Faults:
    derived = slice_.header
    # Where the received ones differ, generated slices have one format for all, if there is one.
    is_free = expected.is_generated and not evidence.has_one_format
    if not is_free or len(evidence.generated_formats) > 1:
        yield from _format_faults(slice_, expected.before)
    if derived.HighBit != derived.BitsStored - 1:
        yield "High Bit is not Bits Stored - 1"
    if derived.file_meta.TransferSyntaxUID != EXPLICIT_LITTLE_ENDIAN:
        yield "not Explicit VR Little Endian"
    if any(map(Slice.is_lossy, evidence.received.slices)) and not slice_.is_lossy():
        yield "the mark of lossy compression is gone"


def _format(slice_: Slice) -> tuple[object, ...]:
    values = (slice_.header[keyword].value for keyword in PIXEL_FORMAT)
    return (*values, *slice_.rescale, slice_.padding)


def _format_faults(slice_: Slice, received: Slice) -> Faults:
    for keyword in PIXEL_FORMAT:
        if slice_.header[keyword].value != received.header[keyword].value:
            yield f"{keyword} differs"
    names = ("RescaleSlope", "RescaleIntercept")
    for keyword, value, own in zip(names, received.rescale, slice_.rescale, strict=True):
        if abs(own - value) > 1e-9:
            yield f"{keyword} differs"


@each_slice
def _generated_values(slice_: Slice, expected: ExpectedSlice, _: Evidence) -> Faults:
    if not expected.is_generated:
        return
    outside = [item.is_padded() for item in (slice_, expected.before, expected.after)]
    either = outside[1] | outside[2]
    values, before, after = (
        item.hounsfield() for item in (slice_, expected.before, expected.after)
    )
    # Where the neighbours are rescaled differently, values are rounded twice.
    is_rounded_once = slice_.rescale == expected.before.rescale == expected.after.rescale
    slack = 0.0 if is_rounded_once else abs(slice_.rescale[0])
    known = np.concatenate([before[~outside[1]], after[~outside[2]]])
    inner = values[~either]
    low, high = (known.min(), known.max()) if known.size else (-np.inf, np.inf)
    if inner.size and (inner.min() < low - slack or inner.max() > high + slack):
        yield "generated values lie outside those of the two neighbours"
    if not np.array_equal(outside[0], either):
        yield "padding is not where a neighbour has it"


@each_slice
def _synthetic(slice_: Slice, expected: ExpectedSlice, _: Evidence) -> Faults:
    stated, true = slice_.header.SyntheticData, "YES" if expected.is_generated else "NO"
    if stated != true:
        yield f"Synthetic Data is {stated}, not {true}"


@each_slice
def _overlay(slice_: Slice, expected: ExpectedSlice, _: Evidence) -> Faults:
    header = slice_.header
    is_marked = OVERLAY_DATA in header
    if not expected.is_generated:
        if is_marked:
            yield "a copy has an overlay plane"
        return
    if not is_marked:  # the route may ask for none
        return
    if header[OVERLAY_DESCRIPTION].value[: len(NOT_ACQUIRED)] != NOT_ACQUIRED:
        yield f"the overlay says {header[OVERLAY_DESCRIPTION].value!r}"
    size = header[0x6000, 0x0010].value, header[0x6000, 0x0011].value
    if size != (header.Rows, header.Columns):
        yield f"the overlay is of another size than the slice: {size}"
    elif not header.overlay_array(0x6000).any():
        yield "the overlay is empty"


@each_slice
def _description(slice_: Slice, expected: ExpectedSlice, evidence: Evidence) -> Faults:
    header = slice_.header
    is_own = list(header.ImageType)[:5] == ["DERIVED", "SECONDARY", "AXIAL", "", "AI_INTERP"]
    if not is_own or evidence.words_of_source - _words_of_type(header):
        yield f"Image Type is {header.ImageType}"
    if header.SOPClassUID != evidence.received.slices[0].header.SOPClassUID:
        yield "SOP Class UID differs"
    if header.Modality != "CT" or header.ContentQualification not in QUALIFICATIONS:
        yield "Modality or Content Qualification"
    description = header.SeriesDescription
    generated = [slice_.is_generated for slice_ in evidence.expected].count(True)
    counted = f"{generated} of {len(evidence.expected)} NOT ACQUIRED"
    if counted not in description or len(description) > MOST_CHARACTERS:
        yield f"Series Description is {description!r}"
    words = "not acquired" if expected.is_generated else "copied unchanged"
    if words not in header.DerivationDescription:
        yield f"Derivation Description does not say {words!r}"
    if expected.is_generated and header.DerivationCodeSequence[0].CodeValue != SPATIAL_RESAMPLING:
        yield "Derivation Code is not spatial resampling"


def _fresh(evidence: Evidence) -> Faults:
    uids = {slice_.uid for slice_ in evidence.derived.slices}
    if len(uids) != len(evidence.derived):
        yield "two slices have the same SOP Instance UID"
    yield from _fresh_slice(evidence)


@each_slice
def _fresh_slice(slice_: Slice, _: ExpectedSlice, evidence: Evidence) -> Faults:
    header, received = slice_.header, evidence.received
    used = {received.series_uid, *(source.uid for source in received.slices)}
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        uid = str(header[keyword].value)
        if uid in used:
            yield f"{keyword} is one of the received series"
        if not UUID_UID.fullmatch(uid):
            yield f"{keyword} {uid} is not of the form 2.25.UUID"
    if header.file_meta.MediaStorageSOPInstanceUID != header.SOPInstanceUID:
        yield "the file meta information names another instance"


def _one_stack(evidence: Evidence) -> Faults:
    received, derived = evidence.received.slices, evidence.derived.slices
    same = [keyword for keyword in CONSTANT_AS_RECEIVED if not _varies(keyword, received)]
    for keyword in (*CONSTANT, *same):
        if _varies(keyword, derived):
            yield f"{keyword} varies within the series"
    numbers = [int(header.InstanceNumber) for header in evidence.derived.headers]
    first, last = (slice_.header.get("InstanceNumber") for slice_ in (received[0], received[-1]))
    descends = first is not None and last is not None and last < first
    if numbers != sorted(range(1, len(derived) + 1), reverse=bool(descends)):
        yield "Instance Numbers are not 1 to N in the direction of the received ones"


def _varies(keyword: str, slices: Sequence[Slice]) -> bool:
    return len({slice_.encoded.get(keyword) for slice_ in slices}) > 1


@each_slice
def _patient(slice_: Slice, _: ExpectedSlice, evidence: Evidence) -> Faults:
    for keyword in PATIENT_AND_STUDY:
        known = {source.encoded.get(keyword) for source in evidence.received.slices}
        if slice_.encoded.get(keyword) not in known:
            yield f"{keyword} is not that of the received series"


def _frame_of_reference(evidence: Evidence) -> Faults:
    received = {header.get("FrameOfReferenceUID") for header in evidence.received.headers} - {None}
    derived = {str(header.FrameOfReferenceUID) for header in evidence.derived.headers}
    if received and not derived <= received:
        yield "a Frame of Reference UID that the scanner did not send"
    if len(derived) != 1:
        yield f"{len(derived)} Frame of Reference UIDs in one series"


@each_slice
def _references(slice_: Slice, expected: ExpectedSlice, evidence: Evidence) -> Faults:
    header = slice_.header
    sources = [str(item.ReferencedSOPInstanceUID) for item in header.SourceImageSequence]
    listed = [
        str(instance.ReferencedSOPInstanceUID)
        for series in header.ReferencedSeriesSequence
        for instance in series.ReferencedInstanceSequence
    ]
    related = {str(item.SeriesInstanceUID) for item in header.RelatedSeriesSequence}
    preserved = {str(item.SpatialLocationsPreserved) for item in header.SourceImageSequence}
    neighbours = {expected.before.uid, expected.after.uid}
    if not neighbours <= set(sources):
        yield "a slice that it was made from is not named"
    if not expected.is_generated and set(sources) != neighbours:
        yield "a copy names more than its source"
    if not set(sources) <= {source.uid for source in evidence.received.slices}:
        yield "an instance is named that was never sent"
    if sorted(sources) != sorted(listed):
        yield "Referenced Series Sequence does not list exactly the source images"
    if related != {evidence.received.series_uid}:
        yield "Related Series Sequence does not name the received series"
    if preserved != {"NO" if expected.is_generated else "YES"}:
        yield f"Spatial Locations Preserved is {sorted(preserved)}"


def _equipment(evidence: Evidence) -> Faults:
    yield from _equipment_of_slice(evidence)
    generated = any(slice_.is_generated for slice_ in evidence.expected)
    if len(models(evidence.derived)) != int(generated):
        yield f"{len(models(evidence.derived))} models are named"


@each_slice
def _equipment_of_slice(slice_: Slice, expected: ExpectedSlice, _: Evidence) -> Faults:
    header, scanner = slice_.header, expected.before.header
    if header.Manufacturer != "Midslice" or header.Manufacturer == scanner.get("Manufacturer"):
        yield "the node is not named as the equipment"
    model = scanner.get("ManufacturerModelName", "")
    if model and header.get("ManufacturerModelName") == model:
        yield "the scanner is named as the equipment"
    contributors = header.ContributingEquipmentSequence
    purposes = ACQUISITION, SYNTHESIZING if expected.is_generated else PROCESSING
    if (_purpose(contributors[0]), _purpose(contributors[-1])) != purposes:
        yield "scanner and model are not the first and the last contributing equipment"
    acquisition = contributors[0].get("ManufacturerModelName", "")
    if acquisition != model and (acquisition or _is_readable(scanner)):
        yield f"the acquisition equipment is given as {acquisition!r}"


def _is_readable(header: Dataset) -> bool:
    """Its character sets exist; the text of any other one cannot be carried over."""
    declared = header.get("SpecificCharacterSet") or ""
    names = [declared] if isinstance(declared, str) else declared
    return all(name in python_encoding for name in names)


def _purpose(item: Dataset) -> str:
    return str(item.PurposeOfReferenceCodeSequence[0].CodeValue)


def _version(item: Dataset) -> str:
    versions = item.get("SoftwareVersions", "")
    return versions if isinstance(versions, str) else str(versions[0])


@each_slice
def _allowed(slice_: Slice, _: ExpectedSlice, __: Evidence) -> Faults:
    for element in slice_.header:
        known = element.keyword in ALLOWED or element.tag in ALLOWED_OVERLAY
        if element.tag.is_private or not known:
            yield f"{element.tag} {element.keyword} must not be there"


# (check, what is true where it holds, what finds its faults)
CHECKS: Sequence[tuple[str, str, Callable[[Evidence], Faults]]] = (
    (
        "No slice is missing, none too many",
        "{copied} received + {generated} generated = {derived}",
        _count,
    ),
    ("Every slice lies at its place", "every {gap_mm:g} mm over {length_mm:g} mm", _position),
    ("Received slices are unchanged", "all {copied} bit-identical to the scanner's", _copies),
    ("Pixels are stored as the scanner's", "the same bits, the same rescale", _pixel_format),
    ("Generated values are between", "none outside its two neighbours", _generated_values),
    ("Generated slices are marked as synthetic", "YES on {generated}, NO on {copied}", _synthetic),
    ("Generated slices carry their mark", "in the overlay plane of {marked}", _overlay),
    ("The series says what it is", "{description}", _description),
    ("UIDs are new", "{derived} new SOP Instance UIDs, one new Series UID", _fresh),
    ("One stack for the viewer", "Instance Numbers 1 to {derived}, one description", _one_stack),
    ("Same patient, same study", "patient, study, accession number: unchanged", _patient),
    ("Same frame of reference", "the scanner's: cross-reference lines work", _frame_of_reference),
    (
        "Sources are named",
        "each generated slice names its neighbours, each copy its source",
        _references,
    ),
    ("Scanner and model are named", "scanner {scanner}; model {model}", _equipment),
    (
        "Nothing is claimed that was not done",
        "no dose, no exposure, no private attribute",
        _allowed,
    ),
)
