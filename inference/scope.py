"""The scope of the node: instances that are slices, and stacks that a generator may take."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from pydicom.datadict import dictionary_description

from inference.dataset import LONGEST_UID, Header, quoted
from inference.errors import Reason, Unprocessable
from inference.kinds import MR_IMAGE as MR_IMAGE
from inference.kinds import Meaning, is_described_as, words_of
from inference.release import MANUFACTURER, MODEL_NAME
from inference.request import Output

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT
        "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT
        "1.2.840.10008.5.1.4.1.1.4.1",  # Enhanced MR
        "1.2.840.10008.5.1.4.1.1.4.3",  # Enhanced MR Color
        "1.2.840.10008.5.1.4.1.1.4.4",  # Legacy Converted Enhanced MR
        "1.2.840.10008.5.1.4.1.1.128.1",  # Legacy Converted Enhanced PET
        "1.2.840.10008.5.1.4.1.1.130",  # Enhanced PET
    }
)
PET_IMAGE = "1.2.840.10008.5.1.4.1.1.128"

# CID 7203: results that are no slices of attenuation values any more.
PROJECTION_CODES = {
    "113073": "a curved reformat",
    "113074": "a volume rendering",
    "113075": "a surface rendering",
    "113077": "an edited volume",
    "113078": "a maximum intensity projection",
    "113079": "a minimum intensity projection",
}
# PS3.3 C.8.2.1.1.1, value 4: images of a multi-energy acquisition that need not be in HU.
MULTI_ENERGY_KINDS = frozenset(
    {"VMI", "MAT_SPECIFIC", "MAT_REMOVED", "MAT_FRACTIONAL", "MAT_MODIFIED", "MAT_VALUE_BASED"}
    | {"EFF_ATOMIC_NUM", "ELECTRON_DENSITY"}
)
# An axial reformat follows the skull base or a disc; beyond this angle it is another plane.
MAX_REFORMAT_DEGREES = 30.0
PIXEL_FORMAT = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation")
# A data set that gives one of these twice, with different values, is of nobody, or lies nowhere.
IDENTIFYING = (
    *("PatientID", "PatientName", "PatientBirthDate", "IssuerOfPatientID", "AccessionNumber"),
    *("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"),
)
DECIDING = (
    *(*PIXEL_FORMAT, "HighBit", "PhotometricInterpretation", "SamplesPerPixel"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "PixelPaddingValue"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID"),
    *("ImageType", "Modality", "ConvolutionKernel", "KVP", "SpecificCharacterSet"),
)
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")


def is_derived_by_node(header: Header) -> bool:
    """True for a result of this node, whatever a PACS has done to its UIDs meanwhile."""
    return (
        header.text("SyntheticData").upper() == "YES"
        or header.value("ImageType", 4).upper().startswith("AI_")
        or _is_node(header)
        # The item's model name is that of the generator, so the manufacturer alone tells.
        or any(
            item.text("Manufacturer") == MANUFACTURER
            for item in header.items("ContributingEquipmentSequence")
        )
    )


def _is_node(header: Header) -> bool:
    return (
        header.text("Manufacturer") == MANUFACTURER
        and header.text("ManufacturerModelName") == MODEL_NAME
    )


def instance_fault(header: Header) -> Unprocessable | None:
    """The reason to leave an instance out of every stack; None for what looks like a slice."""
    no_slice = _no_mr_slice if header.text("SOPClassUID") == MR_IMAGE else _no_slice
    for judge in (unreadable, doubtful, without_uids, _of_other_class, cut_short, no_slice):
        fault = judge(header)
        if fault is not None:
            return fault
    return None


def unreadable(header: Header) -> Unprocessable | None:
    """A file that could not be read."""
    if not header.fault:
        return None
    sentence = f"A file {header.fault}; send the series again."
    return Unprocessable(Reason.PIXEL_DATA_ERROR, sentence)


def doubtful(header: Header) -> Unprocessable | None:
    """A data set that leaves open whose image it is, or where it lies and what its pixels mean."""
    doubts = [doubt for doubt in header.doubts if doubt.keyword in (*IDENTIFYING, *DECIDING)]
    if not doubts:
        return None
    keyword, why = doubts[0]
    number = quoted(header.text("InstanceNumber") or "?")
    sentence = (
        f"Image {number} says {dictionary_description(keyword)} {why}; correct it where it comes "
        "from and send the series again."
    )
    is_identity = keyword in IDENTIFYING
    return Unprocessable(
        Reason.PATIENT_MISMATCH if is_identity else Reason.PIXEL_DATA_ERROR, sentence
    )


def check_instances(
    headers: Sequence[Header], fault_of: Callable[[Header], Unprocessable | None]
) -> None:
    """Raise the first fault of the commonest reason among the instances of a stack."""
    faults = [fault for fault in map(fault_of, headers) if fault is not None]
    if faults:
        commonest = Counter(fault.reason for fault in faults).most_common(1)[0][0]
        raise next(fault for fault in faults if fault.reason == commonest)


def without_uids(header: Header) -> Unprocessable | None:
    """A refusal of an instance without the UIDs that a result refers to."""
    missing = [keyword for keyword in UIDS if not header.text(keyword)]
    if missing:
        names = ", ".join(map(dictionary_description, missing))
        sentence = f"The images lack {names}; without them no result can refer to them."
        return Unprocessable(Reason.MISSING_UIDS, sentence)
    # What breaks PS3.5 9.1 otherwise identifies too and is kept.
    for keyword in (*UIDS, "FrameOfReferenceUID"):
        uid = header.text(keyword)
        if len(uid) > LONGEST_UID or not uid.isprintable() or not uid.isascii() or "\\" in uid:
            name = dictionary_description(keyword)
            sentence = (
                f"The {name} has more than {LONGEST_UID} characters, or others than printable "
                "ASCII; no result can have it."
            )
            return Unprocessable(Reason.MISSING_UIDS, sentence)
    return None


def _of_other_class(header: Header) -> Unprocessable | None:
    sop_class = header.text("SOPClassUID")
    if sop_class in ENHANCED or (header.number("NumberOfFrames") or 1) > 1:
        sentence = "Multi-frame (enhanced) images are not supported; send them as single slices."
        return Unprocessable(Reason.ENHANCED_NOT_SUPPORTED, sentence)
    if sop_class == PET_IMAGE:
        return Unprocessable(Reason.OUT_OF_SCOPE, _of_modality(header, "CT"))
    if sop_class not in (CT_IMAGE, MR_IMAGE):
        sentence = "The object is not a CT slice (a screenshot, a report or another kind)."
        return Unprocessable(Reason.NOT_A_CT_SLICE, sentence)
    return None


def cut_short(header: Header) -> Unprocessable | None:
    """A data set that ends before it says how its pixels are stored, as after a broken transfer."""
    if all(header.integer(keyword) is not None for keyword in PIXEL_FORMAT):
        return None
    number = quoted(header.text("InstanceNumber") or "?")
    sentence = f"Image {number} ends before its pixels or does not describe them; send it again."
    return Unprocessable(Reason.PIXEL_DATA_ERROR, sentence)


def _no_slice(header: Header) -> Unprocessable | None:
    photometric = header.text("PhotometricInterpretation")
    is_secondary = header.value("ImageType", 1).upper() == "SECONDARY"
    sentence = ""
    if (header.number("SamplesPerPixel") or 1) != 1 or photometric not in (
        "MONOCHROME1",
        "MONOCHROME2",
    ):
        sentence = "The image is a colour picture or has no grey values, so it is not a CT slice."
    elif header.text("BurnedInAnnotation").upper() == "YES":
        sentence = "Text is burned into the image, so its values are not CT values."
    elif _is_localizer(header):
        sentence = "The image is a localizer."
    elif is_secondary and not header.raw("ImagePositionPatient"):
        sentence = "The image is a secondary picture (such as a dose page) without a position."
    return Unprocessable(Reason.NOT_A_CT_SLICE, sentence) if sentence else None


def _no_mr_slice(header: Header) -> Unprocessable | None:
    sentence = ""
    if (header.number("SamplesPerPixel") or 1) != 1:
        sentence = "The image is a colour picture, so it is no MR slice."
    elif header.text("BurnedInAnnotation").upper() == "YES":
        sentence = "Text is burned into the image, so its values are no MR values."
    elif not header.raw("ImagePositionPatient"):
        sentence = "The image has no position (a spectrum, a map or a screenshot)."
    elif words_of(header, Meaning.LOCALIZER) or is_described_as(header, Meaning.LOCALIZER):
        sentence = "The image is a localizer."
    return Unprocessable(Reason.NOT_AN_MR_SLICE, sentence) if sentence else None


def _is_localizer(header: Header) -> bool:
    """Named so by Image Type; a description counts for what is not an axial image by itself."""
    is_axial = header.value("ImageType", 2).upper() == "AXIAL" and not _is_oblique(header)
    return bool(words_of(header, Meaning.LOCALIZER)) or (
        not is_axial and is_described_as(header, Meaning.LOCALIZER)
    )


def patient_mismatch(headers: Sequence[Header]) -> str:
    """A sentence if instances disagree about patient or study, else nothing (PS3.3 A.1.2)."""
    tests: dict[str, Callable[[Header], str]] = {
        "Patient ID": lambda header: header.text("PatientID"),
        "Patient's Birth Date": lambda header: header.text("PatientBirthDate"),
        "Study Instance UID": lambda header: header.text("StudyInstanceUID"),
    }
    differing = [name for name, of in tests.items() if len({of(header) for header in headers}) > 1]
    if len({header.text("IssuerOfPatientID") for header in headers} - {""}) > 1:
        differing.append("Issuer of Patient ID")
    # An emergency may have neither number nor birth date; then the name alone tells two of them.
    is_named_only = not any(
        header.text("PatientID") or header.text("PatientBirthDate") for header in headers
    )
    if is_named_only and len({_words(header, "PatientName") for header in headers} - {""}) > 1:
        differing.append("Patient's Name")
    if not differing:
        return ""
    return (
        f"The images of this series do not agree in {', '.join(differing)}; "
        "they may belong to two patients or two studies. Correct them where they come from and "
        "send the whole series again."
    )


def _words(header: Header, keyword: str) -> str:
    """Text without case, component delimiters and repeated spaces: how a name may be spelt."""
    return " ".join(header.text(keyword).replace("^", " ").upper().split())


def check_patient(headers: Sequence[Header]) -> None:
    """Raise Unprocessable where the instances of a stack disagree about patient or study."""
    sentence = patient_mismatch(headers)
    if sentence:
        raise Unprocessable(Reason.PATIENT_MISMATCH, sentence)


def differences(headers: Sequence[Header]) -> list[str]:
    """Notes about patient and study attributes that may differ without being a mix-up."""
    keywords = ("PatientName", "AccessionNumber", "SpecificCharacterSet")
    return [
        f"the images differ in {keyword}"
        for keyword in keywords
        if len({header.text(keyword) for header in headers}) > 1
    ]


def oddities(headers: Sequence[Header]) -> list[str]:
    """Notes about what is missing or wrong in headers without standing in the way."""
    notes = []
    if not all(header.values("ImageType") for header in headers):
        notes.append("the images have no Image Type; only their positions were checked")
    undecodable = sorted(
        keyword
        for keyword in ("PatientName", "StudyDescription", "SeriesDescription", "InstitutionName")
        if any(header.decoded(keyword) is None for header in headers)
    )
    if undecodable:
        notes.append(f"bytes outside the declared character set in {', '.join(undecodable)}")
    return notes


def check_scope(header: Header, output: Output) -> None:
    """Raise Unprocessable for a slice that a generator must not touch."""
    if header.text("SOPClassUID") == MR_IMAGE:
        raise Unprocessable(Reason.OUT_OF_SCOPE, _of_modality(header, "CT"))
    check_subject(header, "CT")
    _check_hounsfield(header)
    _check_derived(header, output)


def check_subject(header: Header, modality: str) -> None:
    """Raise Unprocessable for another modality, a phantom, an animal or a service image."""
    species = header.text("PatientSpeciesDescription").lower()
    is_animal = bool(species) and "human" not in species and "homo sapiens" not in species
    cases: Mapping[str, bool] = {
        _of_modality(header, modality): header.text("Modality") != modality,
        "The images are quality control images (a phantom), not a patient.": (
            header.text("QualityControlImage").upper() == "YES"
        ),
        "The images are of an animal.": is_animal,
        "The images are marked as service images of the scanner.": (
            header.text("ContentQualification").upper() == "SERVICE"
        ),
    }
    for sentence, applies in cases.items():
        if applies:
            raise Unprocessable(Reason.OUT_OF_SCOPE, sentence)


def _of_modality(header: Header, wanted: str) -> str:
    own = header.text("Modality")
    if own == wanted:
        return f"The images say modality {own}, but their SOP Class is that of another one."
    return f"The images are of modality {quoted(own or '(empty)')}, not {wanted}."


def _check_hounsfield(header: Header) -> None:
    rescale_type = header.text("RescaleType").upper()
    slope, intercept = header.number("RescaleSlope"), header.number("RescaleIntercept")
    sentence = ""
    kinds = {value.upper() for value in header.values("ImageType")[3:]}
    if header.text("MultienergyCTAcquisition").upper() == "YES" or kinds & MULTI_ENERGY_KINDS:
        sentence = "The images come from a multi-energy acquisition and need not be in HU."
    elif rescale_type not in ("", "HU"):
        sentence = f"The values are in {quoted(rescale_type)}, not in Hounsfield units."
    elif header.items("ModalityLUTSequence") or not slope or intercept is None:
        sentence = "The images do not say how their values become Hounsfield units."
    if sentence:
        raise Unprocessable(Reason.NOT_HU, sentence)


def _check_derived(header: Header, output: Output) -> None:
    is_derived = header.value("ImageType").upper() == "DERIVED"
    is_reformat = is_derived or bool(words_of(header, Meaning.REFORMAT))
    computed = sorted(words_of(header, Meaning.COMPUTED))
    projections = [
        PROJECTION_CODES[code]
        for code in header.codes("DerivationCodeSequence")
        if code in PROJECTION_CODES
    ]
    tests: Mapping[str, Callable[[], bool]] = {
        "The images are already results of artificial intelligence.": (
            lambda: is_derived_by_node(header)
        ),
        f"The images are {', '.join(projections)}, not slices.": lambda: bool(projections),
        "The images are projections or renderings, not slices.": (lambda: _is_projection(header)),
        f"The images are computed from several ({', '.join(computed)}), not measured.": (
            lambda: bool(computed)
        ),
        "The images are a reformat in another plane than the axial one.": (
            lambda: is_reformat and _is_oblique(header)
        ),
        "The images are derived, and the route takes only acquired images.": (
            lambda: is_reformat and not output.accept_derived
        ),
    }
    for sentence, applies in tests.items():
        if applies():
            raise Unprocessable(Reason.DERIVED_INPUT, sentence)


def _is_projection(header: Header) -> bool:
    """Named so by Image Type; the description counts for derived images alone."""
    meanings = (Meaning.PROJECTION, Meaning.RENDERING)
    is_derived = header.value("ImageType").upper() == "DERIVED"
    return bool(words_of(header, *meanings)) or (is_derived and is_described_as(header, *meanings))


def _is_oblique(header: Header) -> bool:
    cosines = header.numbers("ImageOrientationPatient")
    if len(cosines) != 6:
        return False
    normal = np.cross(cosines[:3], cosines[3:])
    return bool(abs(normal[2]) < np.cos(np.radians(MAX_REFORMAT_DEGREES)))
