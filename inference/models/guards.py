"""What a generated slice must keep to, whatever the network said: guards without weights.

In this order: the network's low frequencies stay near those of the best classical candidate; the
gate; what clipping hid of metal comes back; no value outside what A and C hold nearby. Padding and
stored values follow where the slice is written. Nothing is ever added at random.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.models.classical import Neighbourhood, envelope
from inference.volume import Plane

# What the network sees. Metal above it is added again by linear interpolation of the excess.
LEAST_HU, MOST_HU = -1024.0, 3071.0
# The low frequencies are the mean over some 20 pixels around; the network is drawn to the
# candidate's by this much at most, for on heads the network's own are often the better.
SMOOTH_PIXELS = 20.0
SMOOTH_REDUCTION = 4  # they are found on a picture this much smaller
MOST_CORRECTION_HU = 2.0

LINEAR, CUBIC, DIS = "linear", "cubic", "dis"
CLASSICAL = (LINEAR, CUBIC, DIS)


@dataclass(frozen=True)
class Gate:
    """How far a series may trust the network, and which classical candidate is its best."""

    weight: float  # 0: the flow blend, 1: the network
    classical: str
    surveyed: int  # received slices that were left out and predicted; 0 = prior knowledge alone


def candidates(
    planes: NDArray[np.float32], cubic: NDArray[np.float32], t: float
) -> Mapping[str, Plane]:
    """The classical candidates at `t` from P, A, C, N and both warps, (6, rows, columns)."""
    near, far = np.float32(1.0 - t), np.float32(t)
    curved = cubic[0] * planes[0]
    for place in (1, 2, 3):
        curved += cubic[place] * planes[place]
    return {
        LINEAR: near * planes[1] + far * planes[2],
        CUBIC: curved,
        DIS: near * planes[4] + far * planes[5],
    }


def with_low_frequencies_of(candidate: Plane, plane: Plane) -> Plane:
    """The plane, moved by at most 2 HU so that its smooth part nears that of the candidate."""
    return plane - np.clip(_smooth(plane - candidate), -MOST_CORRECTION_HU, MOST_CORRECTION_HU)


def _smooth(plane: Plane) -> Plane:
    rows, columns = plane.shape
    small = (max(1, columns // SMOOTH_REDUCTION), max(1, rows // SMOOTH_REDUCTION))
    reduced = cv2.resize(plane, small, interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(
        reduced, (0, 0), SMOOTH_PIXELS / SMOOTH_REDUCTION, borderType=cv2.BORDER_REPLICATE
    )
    whole = cv2.resize(blurred, (columns, rows), interpolation=cv2.INTER_LINEAR)
    return np.asarray(whole, np.float32)


def gated(flow_blend: Plane, plane: Plane, weight: float) -> Plane:
    """The share of the network that the series has earned, the rest from the flow blend."""
    return plane if weight == 1.0 else flow_blend + np.float32(weight) * (plane - flow_blend)


def bounded(near: Neighbourhood, t: float, plane: Plane) -> Plane:
    """The plane with what clipping hid of metal, kept inside what A and C hold nearby."""
    for place, share in ((0, 1.0 - t), (1, t)):
        received = near.planes[place]
        if received.max() > MOST_HU or received.min() < LEAST_HU:
            plane = plane + np.float32(share) * _excess(near.aligned(place, t))
    return np.clip(plane, *envelope(near, t))


def _excess(plane: Plane) -> Plane:
    return plane - np.clip(plane, LEAST_HU, MOST_HU)
