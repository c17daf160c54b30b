"""The presentation state of findings: a box and a number on each slice that one lies in.

PS3.3 A.33.1: it changes no image; a viewer draws it over the slices that were received.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydicom.dataset import Dataset
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.sequence import Sequence as Items
from pydicom.tag import Tag

from inference import header as h
from inference import release
from inference.dataset import Header
from inference.header import Elements
from inference.results.findings import NumberedFinding
from inference.results.making import (
    IMAGE,
    NOBODY,
    RESEARCH_LABEL,
    RESEARCH_WORDS,
    Making,
    arguments,
    completed,
    keep_pixel_shape,
)
from inference.results.segmentation import tracking_uid

if TYPE_CHECKING:
    from highdicom.pr import GraphicObject, TextObject

PLACE = "presentation state"  # among the UIDs of a job
# Of what all results share: what a state without pixels and without a place has not.
NOT_IN_STATES = frozenset(
    {"FrameOfReferenceUID", "PositionReferenceIndicator", "ContentDate", "ContentTime"}
)
CONTRIBUTED_AT = h.tag_of("ContributionDateTime")
LAYER = "AI"
LUNG_CENTRE, LUNG_WIDTH = -600.0, 1500.0  # HU
TEXT_WIDTH, TEXT_HEIGHT = 24.0, 14.0  # pixels, of the box in which a viewer writes a number


def image_of(header: Header) -> Dataset:
    """A received slice as an object refers to it, without anything about the patient."""
    carried = h.carried(header, IMAGE, repaired=True)
    image = Dataset({Tag(tag): element for tag, element in carried.items()})
    for keyword in NOBODY:
        setattr(image, keyword, "")
    return image


def finding_state(
    headers: Sequence[Header],
    findings: Sequence[NumberedFinding],
    making: Making,
    number: int,
) -> Elements:
    """The state of all slices that are stored as that of the first finding is, whole.

    Slices that turn stored values into HU in another way cannot share a state with it.
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
    )

    shown, first = places_shown(headers, findings), headers[findings[0].middle]
    images = {place: image_of(headers[place]) for place in shown}
    layer = GraphicLayer(LAYER, order=1, description=RESEARCH_WORDS)
    annotations = [
        GraphicAnnotation(
            [image],
            layer,
            graphic_objects=[_box(of, place, making) for of in there],
            text_objects=[_number(of, place, image, making) for of in there],
        )
        for place, image in images.items()
        if (there := [of for of in findings if place in of.slices])
    ]
    made = GrayscaleSoftcopyPresentationState(
        list(images.values()),
        content_label=RESEARCH_LABEL,
        content_description=RESEARCH_WORDS,
        graphic_layers=[layer],
        graphic_annotations=annotations,
        modality_lut_transformation=ModalityLUTTransformation(
            rescale_intercept=first.number("RescaleIntercept"),
            rescale_slope=first.number("RescaleSlope"),
            rescale_type="HU",
        ),
        voi_lut_transformations=[
            SoftcopyVOILUTTransformation(window_center=LUNG_CENTRE, window_width=LUNG_WIDTH)
        ],
        presentation_lut_transformation=PresentationLUTTransformation(
            "INVERSE" if first.text("PhotometricInterpretation") == "MONOCHROME1" else "IDENTITY"
        ),
        manufacturer_model_name=release.MODEL_NAME,
        software_versions=release.RELEASE,
        device_serial_number=making.creator_uid,
        **arguments(making, PLACE),
    )
    keep_pixel_shape(made, images[shown[0]])
    correct_ambiguous_vr(made, is_little_endian=True)
    what = f"{findings[0].kind.label} marks"
    elements = completed(made, headers[0], making, what, number, NOT_IN_STATES)
    times = ("PresentationCreationDate", "PresentationCreationTime")
    return elements | h.times(times, making.at) | _equipment(elements)


def _equipment(elements: Elements) -> Elements:
    """The contributing equipment without times: DCMTK's dcmpschk knows no zone in them."""
    items = elements[h.tag_of("ContributingEquipmentSequence")].value
    assert isinstance(items, Items)  # all results share it
    timeless: list[Elements] = [
        {int(element.tag): element for element in item if element.tag != CONTRIBUTED_AT}
        for item in items
    ]
    return h.elements_of(ContributingEquipmentSequence=h.items_of(*timeless))


def places_shown(headers: Sequence[Header], findings: Sequence[NumberedFinding]) -> list[int]:
    """The slices that the state is of."""
    first = headers[findings[0].middle]
    return [place for place, of in enumerate(headers) if _are_alike(of, first)]


def _are_alike(header: Header, first: Header) -> bool:
    """One state holds one way from stored values to greys."""
    rescale = ("RescaleSlope", "RescaleIntercept")
    is_alike = all(header.number(keyword) == first.number(keyword) for keyword in rescale)
    photometric = "PhotometricInterpretation"
    return is_alike and header.text(photometric) == first.text(photometric)


def _box(finding: NumberedFinding, place: int, making: Making) -> "GraphicObject":
    from highdicom.pr import GraphicObject

    return GraphicObject(
        "POLYLINE",
        np.array(finding.box(place).outline, float),
        units="PIXEL",
        tracking_id=finding.label,
        tracking_uid=tracking_uid(finding.region, making),
    )


def _number(finding: NumberedFinding, place: int, image: Dataset, making: Making) -> "TextObject":
    """The number beside the box, on whichever side of it there is room in the image."""
    from highdicom.pr import TextObject

    box, columns = finding.box(place), float(image.Columns)
    left = float(box.right if box.right + TEXT_WIDTH <= columns else box.left - TEXT_WIDTH)
    left = max(left, 1.0)
    top = min(max(float(box.top), 1.0), max(1.0, float(image.Rows) - TEXT_HEIGHT))
    right = min(left + TEXT_WIDTH, columns)
    return TextObject(
        str(finding.number),
        "PIXEL",
        bounding_box=(left, top, right, min(top + TEXT_HEIGHT, float(image.Rows))),
        text_justification="LEFT",
        tracking_id=finding.label,
        tracking_uid=tracking_uid(finding.region, making),
    )
