"""The map of the expected error: how far each place of a generated slice may be off, in HU.

A Parametric Map (PS3.3 A.75) with one frame a generated slice, of a quarter of its resolution: what
is expected is the mean over squares of 4 x 4 pixels, and holds inside the body alone.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from inference.objects import Identifiers

REDUCTION = 4
# Beyond it an expectation says "far off" and no more (see the reliability table of the model card).
MOST_HU = 250.0
STEP_HU = 0.1  # of a stored value
WINDOW_HU = (60.0, 120.0)  # centre, width
LABEL, TITLE = "EXPECTED_ERROR", "Expected absolute error of a generated slice"
HOUNSFIELD = Code("[hnsf'U]", "UCUM", "Hounsfield unit")

Expected = NDArray[np.float32]
StoredMap = NDArray[np.uint16]  # (rows / 4, columns / 4), tenths of a HU


def reduced(expected_hu: Expected) -> StoredMap:
    """The means of squares of pixels; those at the edge of an odd size repeat its last ones."""
    rows, columns = (-side % REDUCTION for side in expected_hu.shape)
    whole = np.pad(expected_hu, ((0, rows), (0, columns)), mode="edge")
    high, wide = (side // REDUCTION for side in whole.shape)
    means = whole.reshape(high, REDUCTION, wide, REDUCTION).mean(axis=(1, 3))
    stored: StoredMap = np.rint(np.clip(means, 0.0, MOST_HU) / STEP_HU).astype(np.uint16)
    return stored


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
        lut_label=LABEL,
        lut_explanation=TITLE,
        unit=HOUNSFIELD,
        value_range=(0, round(MOST_HU / STEP_HU)),
        slope=STEP_HU,
        intercept=0.0,
    )
    made = ParametricMap(
        sources,
        np.stack([maps[place] for place in places]),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[value],
        voi_lut_transformations=[VOILUTTransformation(window_center=centre, window_width=width)],
        content_label=LABEL,
        content_description=TITLE,
        pixel_measures=PixelMeasuresSequence(
            pixel_spacing=[side * REDUCTION for side in spacing],
            slice_thickness=float(first.SliceThickness),
        ),
        plane_orientation=PlaneOrientationSequence("PATIENT", orientation),
        plane_positions=positions,
        **identifiers.as_arguments(),
    )
    # Made again, it has the same bytes: highdicom draws this UID at random.
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = identifiers.dimensions_uid
    return made
