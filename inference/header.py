"""Derived headers: elements copied by information entity, our own beside them, and nothing else."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from io import BytesIO
from pathlib import Path

from blake3 import blake3
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomIO
from pydicom.filewriter import write_data_element
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import format_number_as_ds, validate_value

from inference.dataset import BINARY, LONGEST_UID, Element, Header, raw_elements, sequence_items
from inference.release import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

# Copied text keeps its bytes: no character set is ever decoded and encoded again.

EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
MAX_SEQUENCE_DEPTH = 8
ITEM_TAG = b"\xfe\xff\x00\xe0"

Elements = dict[int, Element]

# dcm name, PS3.16 CID 7203, 7005, 7202, 7210
CODES = {
    "113085": "Spatial resampling",
    "109100": "Synthesizing Equipment",
    "109101": "Acquisition Equipment",
    "109102": "Processing Equipment",
    "121322": "Source image for image processing operation",
    "121323": "Source series for image processing operation",
}
TEXT_LENGTHS = {"SH": 16, "LO": 64, "PN": 324, "ST": 1024, "LT": 10240}


def keywords_of(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# PS3.3 C.7.1.1 and C.7.1.3 (trial subject), with the marks of de-identification.
PATIENT = keywords_of(
    """
    PatientName PatientID IssuerOfPatientID TypeOfPatientID IssuerOfPatientIDQualifiersSequence
    PatientBirthDate PatientBirthTime PatientBirthDateInAlternativeCalendar
    PatientDeathDateInAlternativeCalendar PatientAlternativeCalendar PatientSex OtherPatientIDs
    OtherPatientIDsSequence OtherPatientNames EthnicGroup EthnicGroupCodeSequence
    PatientComments QualityControlSubject SourcePatientGroupIdentificationSequence
    GroupOfPatientsIdentificationSequence PatientSpeciesDescription PatientSpeciesCodeSequence
    ResponsiblePerson ResponsiblePersonRole ResponsibleOrganization ReferencedPatientSequence
    PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence
    ClinicalTrialSponsorName ClinicalTrialProtocolID ClinicalTrialProtocolName
    IssuerOfClinicalTrialProtocolID OtherClinicalTrialProtocolIDsSequence ClinicalTrialSiteID
    ClinicalTrialSiteName IssuerOfClinicalTrialSiteID ClinicalTrialSubjectID
    IssuerOfClinicalTrialSubjectID ClinicalTrialSubjectReadingID
    IssuerOfClinicalTrialSubjectReadingID ClinicalTrialProtocolEthicsCommitteeName
    ClinicalTrialProtocolEthicsCommitteeApprovalNumber
    """
)
# PS3.3 C.7.2.1, C.7.2.2, C.7.2.3
STUDY = keywords_of(
    """
    StudyInstanceUID StudyDate StudyTime StudyID StudyDescription AccessionNumber
    IssuerOfAccessionNumberSequence ReferringPhysicianName
    ReferringPhysicianIdentificationSequence ConsultingPhysicianName
    ConsultingPhysicianIdentificationSequence PhysiciansOfRecord
    PhysiciansOfRecordIdentificationSequence NameOfPhysiciansReadingStudy
    PhysiciansReadingStudyIdentificationSequence RequestingService RequestingServiceCodeSequence
    ReferencedStudySequence ProcedureCodeSequence ReasonForPerformedProcedureCodeSequence
    AdmittingDiagnosesDescription AdmittingDiagnosesCodeSequence PatientAge PatientSize
    PatientSizeCodeSequence PatientWeight PatientBodyMassIndex MeasuredAPDimension
    MeasuredLateralDimension MedicalAlerts Allergies SmokingStatus PregnancyStatus
    LastMenstrualDate PatientState Occupation AdditionalPatientHistory AdmissionID
    IssuerOfAdmissionIDSequence ReasonForVisit ReasonForVisitCodeSequence ServiceEpisodeID
    IssuerOfServiceEpisodeIDSequence ServiceEpisodeDescription PatientSexNeutered
    ClinicalTrialTimePointID ClinicalTrialTimePointDescription
    ClinicalTrialTimePointTypeCodeSequence LongitudinalTemporalOffsetFromEvent
    LongitudinalTemporalEventType ConsentForClinicalTrialUseSequence
    """
)
CHARACTER_SET = ("SpecificCharacterSet",)
PATIENT_AND_STUDY = (*PATIENT, *STUDY)
# The same place, order and body part; the equipment that made the images is the node.
SERIES = keywords_of(
    """
    Modality Laterality BodyPartExamined ProtocolName PatientPosition AnatomicalOrientationType
    RequestAttributesSequence AnatomicRegionSequence TimezoneOffsetFromUTC
    LongitudinalTemporalInformationModified InstitutionName InstitutionAddress
    InstitutionalDepartmentName FrameOfReferenceUID PositionReferenceIndicator
    """
)
# Copied where the whole stack has one value (PS3.3 C.8.2.1).
UNIFORM = keywords_of(
    """
    KVP ConvolutionKernel FilterType DataCollectionDiameter ReconstructionDiameter
    GantryDetectorTilt TableHeight RotationDirection AcquisitionNumber
    """
)
# Copied from the nearest received slice: the data really come from that acquisition.
ACQUISITION = keywords_of(
    """
    AcquisitionDate AcquisitionTime AcquisitionDateTime AcquisitionUID IrradiationEventUID
    ContrastBolusAgent ContrastBolusAgentSequence ContrastBolusRoute
    ContrastBolusAdministrationRouteSequence ContrastBolusVolume ContrastBolusStartTime
    ContrastBolusStopTime ContrastBolusTotalDose ContrastFlowRate ContrastFlowDuration
    ContrastBolusIngredient ContrastBolusIngredientConcentration
    """
)
# The pixel format, of the slice whose stored values are used (PS3.3 C.7.6.3, C.7.5.1.1.2).
PIXELS = keywords_of(
    """
    PhotometricInterpretation Rows Columns BitsAllocated BitsStored PixelRepresentation
    PixelPaddingValue PixelPaddingRangeLimit RescaleIntercept RescaleSlope
    BurnedInAnnotation RecognizableVisualFeatures QualityControlImage LossyImageCompression
    LossyImageCompressionRatio LossyImageCompressionMethod
    """
)
# How a contributing equipment is named (PS3.3 C.12.1).
SCANNER = keywords_of(
    """
    Manufacturer InstitutionName InstitutionAddress StationName InstitutionalDepartmentName
    ManufacturerModelName DeviceSerialNumber SoftwareVersions
    """
)
# The window of the first slice, for all (PS3.3 C.11.2).
WINDOW = ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTFunction")


def carried(source: Header, keywords: Iterable[str], *, repaired: bool = False) -> Elements:
    """The attributes that the source has, value bytes unchanged.

    `repaired`: what the standard forbids is dropped, or written again where it is a number. Patient
    and study attributes are never repaired: all instances of a study share them as they are.
    """
    elements: Elements = {}
    for keyword in keywords:
        tag = tag_of(keyword)
        element = source.elements.get(tag)
        if element is None:
            continue
        if repaired and not is_valid(source, keyword):
            vr, numbers = dictionary_VR(tag), source.numbers(keyword)
            if vr == "DS" and numbers:
                elements[tag] = new(keyword, [ds(number) for number in numbers])
            continue
        copied = _copied(element, source, 0)
        if copied is not None:
            elements[tag] = copied
    return elements


def _copied(element: Element, source: Header, depth: int) -> Element | None:
    tag = Tag(element.tag)
    vr = _vr(tag, element, source)
    if vr == "SQ":
        if depth >= MAX_SEQUENCE_DEPTH:
            return None
        items = [_copied_item(item, source, depth) for item in sequence_items(element)]
        return DataElement(tag, "SQ", Items(items))
    value = element.value if isinstance(element.value, bytes) else b""
    little = not isinstance(element, RawDataElement) or element.is_little_endian
    if not little and vr in ("US", "SS", "UL", "SL", "FL", "FD", "AT", "OW"):
        size = 2 if vr in ("AT", "OW") else {"H": 2, "h": 2, "d": 8}.get(BINARY[vr], 4)
        value = b"".join(value[at : at + size][::-1] for at in range(0, len(value), size))
    if len(value) % 2:
        value += b"\0" if vr in ("UI", "OB", "UN") else b" "
    return raw(tag, vr, value)


def _copied_item(item: Dataset, source: Header, depth: int) -> Dataset:
    copied = Dataset()
    for tag, element in raw_elements(item).items():
        element_copy = _copied(element, source, depth + 1) if tag & 0xFFFF else None
        if element_copy is not None:
            copied[Tag(tag)] = element_copy
    return copied


def _vr(tag: BaseTag, element: Element, source: Header) -> str:
    """The dictionary's value representation, whatever a PACS has made of it (UN, LO for SH)."""
    try:
        vr = dictionary_VR(tag)
    except KeyError:
        return element.VR or "UN"
    if vr == "US or SS":
        return "SS" if source.is_signed else "US"
    return vr if len(vr) == 2 else (element.VR or "UN")


def is_valid(source: Header, keyword: str) -> bool:
    """True for a value of the right form and length (PS3.5 6.2)."""
    vr = dictionary_VR(tag_of(keyword))
    if vr == "SQ" or vr[:2] in BINARY:
        return True
    if vr in TEXT_LENGTHS:
        text = source.decoded(keyword)
        return text is not None and all(
            len(value.strip()) <= TEXT_LENGTHS[vr] for value in text.split("\\")
        )
    if vr == "UI":  # what breaks PS3.5 9.1 identifies as well, and is to be kept as it came
        text = source.text(keyword)
        return len(text) <= LONGEST_UID and text.isascii() and text.isprintable()
    try:
        for value in source.values(keyword):
            validate_value(vr, value, 2)  # 2: raise
    except (ValueError, TypeError):
        return False
    return True


def raw(tag: int, vr: str, value: bytes) -> RawDataElement:
    """An element whose bytes are written as they are."""
    return RawDataElement(Tag(tag), vr, len(value), value, 0, False, True)


def new(keyword: str, value: object) -> Element:
    """An element of our own: ASCII, so that it is right in every character set."""
    tag = Tag(tag_of(keyword))
    if dictionary_VR(tag) == "UI" and isinstance(value, str):  # of a source: kept as it came
        return raw(tag, "UI", value.encode("ascii") + b"\0" * (len(value) % 2))
    return DataElement(tag, dictionary_VR(tag), value)


def elements_of(**values: object) -> Elements:
    """Elements of our own, by keyword."""
    return {tag_of(keyword): new(keyword, value) for keyword, value in values.items()}


def items_of(*items: Elements) -> Items:
    """A sequence of items."""
    return Items([Dataset({Tag(tag): item[tag] for tag in item}) for item in items])


def code(value: str) -> Items:
    """A code of PS3.16 as the only item of a sequence."""
    return items_of(
        elements_of(CodeValue=value, CodingSchemeDesignator="DCM", CodeMeaning=CODES[value])
    )


def ds(number: float) -> str:
    """A decimal string of at most 16 characters (PS3.5 6.2), as exact as they allow."""
    if number == 0.0:
        return "0"
    text: str = format_number_as_ds(float(number))
    return text


def encoded(elements: Elements) -> bytes:
    """The elements as they are written: explicit VR little endian, in the order of their tags."""
    stream = BytesIO()
    file = DicomIO(stream)
    file.is_implicit_VR, file.is_little_endian = False, True
    for tag in sorted(elements):
        write_data_element(file, elements[tag], "iso8859")
    return stream.getvalue()


@dataclass(frozen=True, eq=False)
class Part:
    """Elements of a header, encoded once however many headers they are part of."""

    elements: Elements

    @cached_property
    def encoded(self) -> Mapping[int, bytes]:
        """Each of them as it is written, by its tag."""
        return {tag: encoded({tag: element}) for tag, element in self.elements.items()}


def sequence(keyword: str, items: Iterable[bytes]) -> Element:
    """A sequence of items that are encoded already."""
    value = b"".join(ITEM_TAG + len(item).to_bytes(4, "little") + item for item in items)
    return raw(tag_of(keyword), "SQ", value)


def write_file(path: Path, elements: Elements) -> str:
    """Write a Part 10 file, bring it to the disk, and return its digest."""
    return write_parts(path, [Part(elements)])


def write_parts(
    path: Path, parts: Iterable[Part], bring_to_disk: Callable[[int], None] | None = None
) -> str:
    """The same for a header in parts, of which the last one with an element counts.

    Where somebody else brings it to the disk, he is handed a descriptor of his own.
    """
    elements: Elements = {}
    data: dict[int, bytes] = {}
    for part in parts:
        elements |= part.elements
        data |= part.encoded
    meta = encoded(
        elements_of(
            FileMetaInformationVersion=b"\x00\x01",
            MediaStorageSOPClassUID=text_of(elements, "SOPClassUID"),
            MediaStorageSOPInstanceUID=text_of(elements, "SOPInstanceUID"),
            TransferSyntaxUID=EXPLICIT_LITTLE_ENDIAN,
            ImplementationClassUID=IMPLEMENTATION_CLASS_UID,
            ImplementationVersionName=IMPLEMENTATION_VERSION_NAME,
        )
    )
    length = encoded(elements_of(FileMetaInformationGroupLength=len(meta)))
    with path.open("wb") as file:
        file.writelines([b"\0" * 128 + b"DICM", length, meta, *(data[tag] for tag in sorted(data))])
        file.flush()
        if bring_to_disk is None:
            os.fsync(file.fileno())
        else:
            bring_to_disk(os.dup(file.fileno()))
    return file_digest(path)


def file_digest(path: Path) -> str:
    """The BLAKE3 digest of a file: in less than a third of the time of SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, blake3).hexdigest()  # type: ignore[arg-type]


def text_of(elements: Elements, keyword: str) -> str:
    """The only value of an element that is ASCII."""
    value = elements[tag_of(keyword)].value
    return value.decode("ascii").strip("\0 ") if isinstance(value, bytes) else str(value)


def times(keywords: Sequence[str], at: datetime) -> Elements:
    """Dates and times, by keyword, in the zone of `at`."""
    forms = {keyword: "%Y%m%d" if keyword.endswith("Date") else "%H%M%S.%f" for keyword in keywords}
    return elements_of(**{keyword: at.strftime(form) for keyword, form in forms.items()})


def tag_of(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return tag
