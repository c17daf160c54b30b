"""Elements that all objects of a result share: patient, study, equipment, research marks, UIDs."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypedDict

from pydicom.dataset import Dataset

from inference import header as h
from inference import release
from inference.dataset import Header
from inference.header import Elements

DESCRIPTION_END = "(AI, research)"
MOST_DESCRIPTION = 64
RESEARCH_LABEL, RESEARCH_WORDS = "RESEARCH", "Research only, not for diagnosis"
WEIGHTS_DIGITS = 12  # of the SHA-256 of the weights, hexadecimal
FIRST_SERIES_NUMBER, SERIES_NUMBER_STEP, MOST_SERIES_NUMBER = 9000, 10_000, 2**31 - 1
PLACE_STEP = 1000  # as of derived series
NOBODY = h.keywords_of(
    """
    PatientID PatientName PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime
    ReferringPhysicianName
    """
)
# What highdicom reads of an image that an object refers to; the patient is nobody there.
IMAGE = h.keywords_of(
    """
    SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID Modality
    Rows Columns SamplesPerPixel PhotometricInterpretation RescaleSlope RescaleIntercept RescaleType
    WindowCenter WindowWidth PixelSpacing SliceThickness ImagePositionPatient
    ImageOrientationPatient SpacingBetweenSlices LossyImageCompression LossyImageCompressionRatio
    LossyImageCompressionMethod
    """
)


@dataclass(frozen=True)
class Algorithm:
    """The model that a result comes from, and how it was asked."""

    name: str
    version: str
    weights_sha256: str
    parameters: str = ""  # threshold and operating point, ASCII

    @property
    def full_version(self) -> str:
        return f"{self.version} {self.weights_sha256[:WEIGHTS_DIGITS]}".strip()


@dataclass(frozen=True)
class Making:
    """By whom, when and under which UIDs the results of one job are made."""

    algorithm: Algorithm
    uid_of: Callable[[str], str]  # a place in the results of the job -> its UID
    at: datetime  # in the zone of the source's times
    station_name: str
    creator_uid: str  # of the node
    frame_uid: str  # the frame of reference of the sources, or the one that stands for it
    content_qualification: str = "RESEARCH"
    label: str = ""  # ASCII: which stack of several, which revision
    place: int = 0  # among the results of one stack; raises the Series Number


@dataclass(frozen=True)
class Reference:
    """An image that a result refers to: a received slice, or a segmentation of the job."""

    sop_class_uid: str
    instance_uid: str
    series_uid: str

    @classmethod
    def of(cls, header: Header) -> "Reference":
        return cls(header.text("SOPClassUID"), header.uid, header.text("SeriesInstanceUID"))

    def as_dataset(self, first: Header) -> Dataset:
        """The instance as highdicom reads it; `first` is of its study, and the patient is nobody.

        What is left empty is copied into the result afterwards as bytes, so that no name is
        decoded.
        """
        dataset = Dataset()
        for keyword in NOBODY:
            setattr(dataset, keyword, "")
        dataset.StudyInstanceUID = first.text("StudyInstanceUID")
        dataset.SeriesInstanceUID = self.series_uid
        dataset.SOPClassUID, dataset.SOPInstanceUID = self.sop_class_uid, self.instance_uid
        dataset.Rows = dataset.Columns = 1  # how highdicom tells images from other objects
        return dataset


class Arguments(TypedDict):
    """The arguments that every constructor of highdicom asks for; `shared` overwrites most."""

    series_instance_uid: str
    series_number: int
    sop_instance_uid: str
    instance_number: int
    manufacturer: str


def arguments(making: Making, place: str) -> Arguments:
    """The only instance of a series of its own, by its place among the results of the job."""
    return {
        "series_instance_uid": making.uid_of(f"series of the {place}"),
        "series_number": 1,
        "sop_instance_uid": making.uid_of(place),
        "instance_number": 1,
        "manufacturer": release.MANUFACTURER,
    }


def completed(
    made: Dataset, first: Header, making: Making, what: str, number: int, without: frozenset[str]
) -> Elements:
    """An object of highdicom with what all results share, but for the attributes in `without`.

    Patient and study are the source's bytes, or absent; dates and times are those of the job.
    """
    left_out = {h.tag_of(keyword) for keyword in (*h.CHARACTER_SET, *h.PATIENT_AND_STUDY)}
    own = {int(tag): element for tag, element in made.items() if tag not in left_out}
    unwanted = {h.tag_of(keyword) for keyword in without}
    both = shared(first, making, what, number)
    return own | {tag: element for tag, element in both.items() if tag not in unwanted}


def shared(first: Header, making: Making, what: str, number: int) -> Elements:
    """The attributes of patient, study, series and equipment, byte for byte where they are copied.

    `number` tells the series of one job apart; `what` begins the description.
    """
    return (
        h.carried(first, (*h.CHARACTER_SET, *h.PATIENT_AND_STUDY))
        | h.elements_of(PositionReferenceIndicator="")
        | h.carried(first, [k for k in h.SERIES if k != "Modality"], repaired=True)
        | h.times(
            ("SeriesDate", "SeriesTime", "ContentDate", "ContentTime")
            + ("InstanceCreationDate", "InstanceCreationTime"),
            making.at,
        )
        | h.elements_of(
            FrameOfReferenceUID=making.frame_uid,
            SeriesNumber=str(_series_number(first, number, making.place)),
            SeriesDescription=description(first, what, making.label),
            InstanceCreatorUID=making.creator_uid,
            ContentQualification=making.content_qualification,
            Manufacturer=release.MANUFACTURER,
            ManufacturerModelName=release.MODEL_NAME,
            DeviceSerialNumber=making.creator_uid,
            SoftwareVersions=[release.RELEASE, release.build()],
            StationName=making.station_name,
            ContributingEquipmentSequence=h.items_of(*_equipment(first, making)),
        )
    )


def description(first: Header, what: str, label: str = "") -> str:
    """The kind of result and its series, as far as that is plain ASCII; the mark comes last."""
    source = first.text("SeriesDescription")
    is_plain = source.isascii() and source.isprintable() and "\\" not in source
    words = " ".join(filter(None, (what, label, f"of {source}" if source and is_plain else "")))
    return f"{words[: MOST_DESCRIPTION - len(DESCRIPTION_END) - 1].rstrip()} {DESCRIPTION_END}"


def _series_number(first: Header, number: int, place: int) -> int:
    own = FIRST_SERIES_NUMBER + max(0, first.integer("SeriesNumber") or 0)
    return min(own + SERIES_NUMBER_STEP * number + PLACE_STEP * place, MOST_SERIES_NUMBER)


def _equipment(first: Header, making: Making) -> list[Elements]:
    """The scanner, what the source names already, and the model (PS3.3 C.12.1.1.5)."""
    scanner = h.elements_of(Manufacturer="Unknown") | {
        tag: element
        for tag, element in h.carried(first, h.SCANNER, repaired=True).items()
        if element.value not in (None, b"")
    }
    earlier = [
        h.carried(
            item,
            (*h.SCANNER, "ContributionDateTime", "ContributionDescription")
            + ("PurposeOfReferenceCodeSequence",),
            repaired=True,
        )
        for item in first.items("ContributingEquipmentSequence")
        if item.raw("Manufacturer").strip() and item.items("PurposeOfReferenceCodeSequence")
    ]
    model = h.elements_of(
        Manufacturer=release.MANUFACTURER,
        ManufacturerModelName=making.algorithm.name[:64],
        SoftwareVersions=making.algorithm.full_version,
        ContributionDateTime=making.at.strftime("%Y%m%d%H%M%S.%f%z"),
        PurposeOfReferenceCodeSequence=h.code("109102"),
    )
    acquisition = h.elements_of(PurposeOfReferenceCodeSequence=h.code("109101"))
    return [scanner | acquisition, *earlier, model]


def keep_pixel_shape(state: Dataset, image: Dataset) -> Dataset:
    """Let viewers draw pixels that are no squares in their shape; highdicom says that all are."""
    down, across = image.PixelSpacing
    if down != across:
        for area in state.DisplayedAreaSelectionSequence:
            del area.PresentationPixelAspectRatio
            area.PresentationPixelSpacing = [down, across]
    return state
