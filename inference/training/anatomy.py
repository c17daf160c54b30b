"""Which part of the body a series shows, as far as the figures due depend on it.

Headers do not say it reliably; a few slices do: lungs make a chest, a small body with much bone a
head.
"""

from typing import Literal

import numpy as np

from inference.training.metrics import Judge
from inference.training.thin import ThinSeries

Anatomy = Literal["chest", "head", "other"]

LOOKED_AT = 7  # slices, evenly spread
BONE_HU = 300.0
# Shares of the body, and the diameter of a disc as large as it.
LEAST_LUNG, LEAST_BONE, LARGEST_HEAD_MM = 0.08, 0.08, 230.0


def anatomy_of(series: ThinSeries) -> Anatomy:
    """From seven slices between the ends of the stack."""
    places = np.linspace(0, len(series) - 1, LOOKED_AT + 2)[1:-1]
    body_pixels, lungs, bone = 0, 0, 0
    for index in places.round().astype(int).tolist():
        judge = Judge(series.read(index), series.pixel_mm)
        body_pixels += int(np.count_nonzero(judge.body))
        lungs += int(np.count_nonzero(judge.lungs))
        bone += int(np.count_nonzero(judge.body & (judge.truth > BONE_HU)))
    if not body_pixels:
        return "other"
    if lungs >= LEAST_LUNG * body_pixels:
        return "chest"
    diameter_mm = 2.0 * np.sqrt(body_pixels / LOOKED_AT / np.pi) * series.pixel_mm
    is_head = bone >= LEAST_BONE * body_pixels and diameter_mm <= LARGEST_HEAD_MM
    return "head" if is_head else "other"
