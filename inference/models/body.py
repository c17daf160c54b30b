"""Which pixels of a slice belong to the body: what errors are measured over."""

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.volume import Plane

BODY_HU = -500.0


def body_of(plane: Plane) -> NDArray[np.bool_]:
    """The largest dense piece with everything it encloses: lungs and bowel gas belong to it."""
    dense = (plane > BODY_HU).astype(np.uint8)
    # Opening sheds the table and its cover.
    opened = cv2.morphologyEx(dense, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    outlines, _ = cv2.findContours(opened, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    body = np.zeros(plane.shape, np.uint8)
    if outlines:
        largest = max(outlines, key=cv2.contourArea)
        cv2.drawContours(body, [largest], -1, color=1, thickness=cv2.FILLED)
    return body.astype(bool)
