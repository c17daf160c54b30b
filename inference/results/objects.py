"""Further result objects of a job: presentation state (GSPS), map of the expected error.

They lie beside the derived series, in series of their own.

highdicom makes what is particular to an object of its class; what all results share (patient and
study byte for byte, equipment, times) is put in its place here, so that no text is ever decoded
and encoded again. highdicom takes seconds to load: only functions that build an object load it.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

import numpy as np
from pydicom.dataset import Dataset
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.sr.coding import Code
from pydicom.tag import Tag

from inference import header as h
from inference.header import Elements
from inference.request import File, ObjectKind
from inference.results.derived import MOST_SERIES_NUMBER, DerivedSeries, Planned
from inference.results.making import IMAGE, keep_pixel_shape
from inference.uids import UidMaker
from inference.volume import MOST_ERROR_HU, REDUCTION, STEP_HU, StoredMap

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
TIMES = ("ContentDate", "ContentTime", "PresentationCreationDate", "PresentationCreationTime")
NOBODY = h.keywords_of(
    """
    PatientID PatientName PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime
    """
)
SERIES_NUMBERS: dict[ObjectKind, int] = {"presentation state": 300, "parametric map": 600}
# What building an object of odd images may raise in highdicom: the derived series does without.
UNBUILDABLE = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)


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

    @cached_property
    def images(self) -> Sequence[Dataset]:
        """The slices of the derived series in their order, as an object refers to them."""
        return [self._image(place) for place in range(len(self._slices))]

    def prepare(self) -> None:
        """Make ready what needs no prediction, so that nobody waits for it after the last one."""
        assert self.images

    def _image(self, place: int) -> Dataset:
        elements = self._series.elements(place)
        wanted = elements.keys() & set(map(h.tag_of, IMAGE))
        image = Dataset({Tag(tag): elements[tag] for tag in wanted})
        for keyword in NOBODY:
            setattr(image, keyword, "")
        return image

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
            elements = self._completed(built, title)
        except UNBUILDABLE as error:
            self.notes.append(f"no {kind}: it could not be made ({type(error).__name__})")
            logger.warning("object not made", extra={"kind": kind, "error": type(error).__name__})
            return
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
        own_elements = {
            int(element.tag): element for element in built if element.tag not in left_out
        }
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
        return own_elements | copied | h.elements_of(**times) | description | equipment


# A Grayscale Softcopy Presentation State (PS3.3 A.33.1) says how a viewer is to show images: here
# each generated slice with the words of its mark, for viewers that draw no overlay planes.

LAYER = "AI"
STATE_LABEL = "NOT_ACQUIRED"
STATE_DESCRIPTION = "Marks the slices that were not acquired"
# Of the displayed area, whatever part of the image that is: left, top, right, bottom.
STATE_AREA = (0.0, 0.0, 0.5, 0.05)
ALIKE = ("RescaleSlope", "RescaleIntercept", "PhotometricInterpretation")


def presentation_state(
    images: Sequence[Dataset], words: Mapping[int, str], identifiers: Identifiers
) -> Dataset:
    """The state of all images that are stored as the first generated one is.

    `words` are those of the generated slices, by their places among the images.
    """
    from highdicom.content import (  # takes seconds
        ModalityLUTTransformation,
        PresentationLUTTransformation,
    )
    from highdicom.pr import (
        GraphicAnnotation,
        GraphicLayer,
        GrayscaleSoftcopyPresentationState,
        SoftcopyVOILUTTransformation,
        TextObject,
    )

    first = images[min(words)]
    shown = [place for place, image in enumerate(images) if _are_alike(image, first)]
    layer = GraphicLayer(LAYER, order=1, description=STATE_DESCRIPTION)
    marked = [place for place in shown if place in words]
    text = TextObject(
        words[marked[0]], "DISPLAY", bounding_box=STATE_AREA, text_justification="LEFT"
    )
    annotation = GraphicAnnotation([first], layer, text_objects=[text])
    centre, width = first.get("WindowCenter"), first.get("WindowWidth")
    window = centre is not None and width is not None
    state = GrayscaleSoftcopyPresentationState(
        [images[place] for place in shown],
        content_label=STATE_LABEL,
        content_description=STATE_DESCRIPTION,
        graphic_layers=[layer],
        graphic_annotations=[annotation],
        modality_lut_transformation=ModalityLUTTransformation(
            rescale_intercept=first.RescaleIntercept,
            rescale_slope=first.RescaleSlope,
            rescale_type="HU",
        ),
        voi_lut_transformations=(
            [SoftcopyVOILUTTransformation(window_center=centre, window_width=width)]
            if window
            else None
        ),
        presentation_lut_transformation=PresentationLUTTransformation(
            "INVERSE" if first.PhotometricInterpretation == "MONOCHROME1" else "IDENTITY"
        ),
        **identifiers.as_arguments(),
    )
    others = [_as_annotated(annotation, images[place], words[place]) for place in marked[1:]]
    state.GraphicAnnotationSequence.extend(others)
    return keep_pixel_shape(state, first)


def _as_annotated(annotation: Dataset, image: Dataset, words: str) -> Dataset:
    """The same annotation of another image: highdicom looks through whole tables for each."""
    own = copy.deepcopy(annotation)
    own.TextObjectSequence[0].UnformattedTextValue = words
    own.ReferencedImageSequence[0].ReferencedSOPClassUID = image.SOPClassUID
    own.ReferencedImageSequence[0].ReferencedSOPInstanceUID = image.SOPInstanceUID
    return own


def _are_alike(image: Dataset, first: Dataset) -> bool:
    """One state holds one way from stored values to greys."""
    return all(image.get(keyword) == first.get(keyword) for keyword in ALIKE)


# A Parametric Map (PS3.3 A.75) with one frame a generated slice, of a quarter of its resolution:
# what is expected is the mean over squares of 4 x 4 pixels, and holds inside the body alone.

WINDOW_HU = (60.0, 120.0)  # centre, width
MAP_LABEL, MAP_TITLE = "EXPECTED_ERROR", "Expected absolute error of a generated slice"
HOUNSFIELD = Code("[hnsf'U]", "UCUM", "Hounsfield unit")


def error_map(
    images: Sequence[Dataset], maps: Mapping[int, StoredMap], identifiers: Identifiers
) -> Dataset:
    """The map of the generated slices, by their places among the images."""
    from highdicom import (  # takes seconds
        PixelMeasuresSequence,
        PlaneOrientationSequence,
        PlanePositionSequence,
        VOILUTTransformation,
    )
    from highdicom.pm import ParametricMap, RealWorldValueMapping

    centre, width = (hu / STEP_HU for hu in WINDOW_HU)
    places = sorted(maps)
    sources = [images[place] for place in places]
    first = sources[0]
    orientation = [float(cosine) for cosine in first.ImageOrientationPatient]
    spacing = [float(side) for side in first.PixelSpacing]
    across, down = np.array(orientation[:3]), np.array(orientation[3:])
    # The middle of the first square lies 1.5 pixels from that of the first pixel, both ways.
    offset = (REDUCTION - 1) / 2 * (across * spacing[1] + down * spacing[0])
    positions = [
        PlanePositionSequence(
            "PATIENT", [float(x) for x in np.array(image.ImagePositionPatient, float) + offset]
        )
        for image in sources
    ]
    value = RealWorldValueMapping(
        lut_label=MAP_LABEL,
        lut_explanation=MAP_TITLE,
        unit=HOUNSFIELD,
        value_range=(0, round(MOST_ERROR_HU / STEP_HU)),
        slope=STEP_HU,
        intercept=0.0,
    )
    error_frames = ParametricMap(
        sources,
        np.stack([maps[place] for place in places]),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[value],
        voi_lut_transformations=[VOILUTTransformation(window_center=centre, window_width=width)],
        content_label=MAP_LABEL,
        content_description=MAP_TITLE,
        pixel_measures=PixelMeasuresSequence(
            pixel_spacing=[side * REDUCTION for side in spacing],
            slice_thickness=float(first.SliceThickness),
        ),
        plane_orientation=PlaneOrientationSequence("PATIENT", orientation),
        plane_positions=positions,
        **identifiers.as_arguments(),
    )
    # Made again, it has the same bytes: highdicom draws this UID at random.
    for item in (
        *error_frames.DimensionOrganizationSequence,
        *error_frames.DimensionIndexSequence,
    ):
        item.DimensionOrganizationUID = identifiers.dimensions_uid
    return error_frames
