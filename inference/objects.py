"""Further result objects of a job: beside the derived series, in series of their own.

highdicom makes what is particular to an object of its class; what all results share (patient and
study byte for byte, equipment, times) is put in its place here, so that no text is ever decoded
and encoded again. highdicom takes seconds to load: only functions that build an object load it.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

from pydicom.dataset import Dataset
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.tag import Tag

from inference import header as h
from inference.derived import MOST_SERIES_NUMBER, DerivedSeries, Planned
from inference.header import Elements
from inference.request import File, ObjectKind
from inference.uids import UidMaker

logger = logging.getLogger(__name__)

# Of what the instances of the derived series share, what an object of any class has too.
SHARED = h.keywords_of(
    """
    BodyPartExamined Laterality AnatomicRegionSequence RequestAttributesSequence ProtocolName
    InstitutionName InstitutionAddress InstitutionalDepartmentName TimezoneOffsetFromUTC
    SeriesDate SeriesTime InstanceCreationDate InstanceCreationTime
    InstanceCreatorUID Manufacturer ManufacturerModelName SoftwareVersions StationName
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
TIMES = ("ContentDate", "ContentTime", "PresentationCreationDate", "PresentationCreationTime")
NOBODY = h.keywords_of(
    """
    PatientID PatientName PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime
    """
)
SERIES_NUMBERS: dict[ObjectKind, int] = {"presentation state": 300, "parametric map": 600}
# What building an object of odd images may raise in highdicom: the derived series does without.
UNBUILDABLE = (AttributeError, KeyError, TypeError, ValueError)


class Arguments(TypedDict):
    """The arguments that every constructor of highdicom asks for."""

    series_instance_uid: str
    series_number: int
    sop_instance_uid: str
    instance_number: int
    manufacturer: str
    manufacturer_model_name: str
    software_versions: str
    device_serial_number: str


@dataclass(frozen=True)
class Identifiers:
    """The UIDs and the number of the only instance of an object's series."""

    series_uid: str
    instance_uid: str
    dimensions_uid: str  # of how its frames are ordered, where it has frames
    series_number: int

    def as_arguments(self) -> Arguments:
        """As highdicom takes them, with equipment that is overwritten later."""
        return {
            "series_instance_uid": self.series_uid,
            "series_number": self.series_number,
            "sop_instance_uid": self.instance_uid,
            "instance_number": 1,
            "manufacturer": "-",
            "manufacturer_model_name": "-",
            "software_versions": "-",
            "device_serial_number": "-",
        }


Build = Callable[[Identifiers], Dataset]


class ResultObjects:
    """Writes the objects of one job that are not of its derived series."""

    def __init__(self, series: DerivedSeries, slices: Sequence[Planned], maker: UidMaker) -> None:
        self._series = series
        self._slices = slices
        self._maker = maker
        self.files: list[File] = []
        self.notes: list[str] = []

    def images(self) -> Iterator[Dataset]:
        """The slices of the derived series in their order, as an object refers to them."""
        for place in range(len(self._slices)):
            elements = self._series.elements(place)
            wanted = elements.keys() & set(map(h.tag_of, IMAGE))
            image = Dataset({Tag(tag): elements[tag] for tag in wanted})
            for keyword in NOBODY:
                setattr(image, keyword, "")
            yield image

    def write(self, kind: ObjectKind, title: str, build: Build) -> None:
        """Write the only object of a kind, which a destination may do without."""
        number = int(str(self._series.shared[h.tag_of("SeriesNumber")].value))
        identifiers = Identifiers(
            self._maker.series(kind),
            self._maker.instance(kind),
            self._maker.instance(f"{kind}: dimensions"),
            min(number + SERIES_NUMBERS[kind], MOST_SERIES_NUMBER),
        )
        try:
            built = build(identifiers)
        except UNBUILDABLE as error:
            self.notes.append(f"no {kind}: it could not be made ({type(error).__name__})")
            logger.warning("object not made", extra={"kind": kind, "error": type(error).__name__})
            return
        elements = self._completed(built, title)
        name = f"{kind.replace(' ', '-')}.dcm"
        digest = h.write_file(self._series.folder / name, elements)
        sop_class = str(built.SOPClassUID)
        self.files.append(
            File(
                name=name,
                instance_uid=identifiers.instance_uid,
                sop_class_uid=sop_class,
                digest=digest,
                generated=False,
                series_uid=identifiers.series_uid,
                kind=kind,
                is_supplement=True,
            )
        )

    def _completed(self, built: Dataset, title: str) -> Elements:
        """The object with what it shares with the derived series."""
        shared, own = self._series.shared, (*h.CHARACTER_SET, *h.PATIENT_AND_STUDY)
        left_out = set(map(h.tag_of, own))
        correct_ambiguous_vr(built, is_little_endian=True)  # US or SS, OB or OW
        made = {int(element.tag): element for element in built if element.tag not in left_out}
        copied = {tag: shared[tag] for tag in map(h.tag_of, (*own, *SHARED)) if tag in shared}
        # Made again, an object has the same bytes: highdicom writes the time of day.
        times = {
            keyword: shared[h.tag_of(f"Content{keyword[-4:]}")].value
            for keyword in TIMES
            if keyword in built
        }
        processor = self._series.processor()
        del processor[h.tag_of("ContributionDateTime")]  # DCMTK's dcmpschk knows no zone in it
        equipment = h.elements_of(
            ContributingEquipmentSequence=h.items_of(processor),
            DeviceSerialNumber=shared[h.tag_of("StationName")].value,  # what tells nodes apart
        )
        description = self._series.description(title)
        return made | copied | h.elements_of(**times) | description | equipment
