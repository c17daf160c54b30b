"""The presentation state of a derived series: words on its generated slices, for every viewer.

A Grayscale Softcopy Presentation State (PS3.3 A.33.1) says how a viewer is to show images: here
each generated slice with the words of its mark, for viewers that draw no overlay planes.
"""

from collections.abc import Mapping, Sequence

from pydicom.dataset import Dataset

from inference.objects import Identifiers

LAYER = "AI"
LABEL = "NOT_ACQUIRED"
DESCRIPTION = "Marks the slices that were not acquired"
# Of the displayed area, whatever part of the image that is: left, top, right, bottom.
CORNER = (0.0, 0.0, 0.5, 0.05)
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
    layer = GraphicLayer(LAYER, order=1, description=DESCRIPTION)
    annotations = [
        GraphicAnnotation(
            [images[place]],
            layer,
            text_objects=[
                TextObject(words[place], "DISPLAY", bounding_box=CORNER, text_justification="LEFT")
            ],
        )
        for place in shown
        if place in words
    ]
    centre, width = first.get("WindowCenter"), first.get("WindowWidth")
    window = centre is not None and width is not None
    return GrayscaleSoftcopyPresentationState(
        [images[place] for place in shown],
        content_label=LABEL,
        content_description=DESCRIPTION,
        graphic_layers=[layer],
        graphic_annotations=annotations,
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


def _are_alike(image: Dataset, first: Dataset) -> bool:
    """One state holds one way from stored values to greys."""
    return all(image.get(keyword) == first.get(keyword) for keyword in ALIKE)
