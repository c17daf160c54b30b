"""Small pictures of a target for the page: the truth, and what was made of it with its errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.volume import Plane

LOW_HU, HIGH_HU = -1100.0, 500.0
ERROR_HU = 250.0  # where the colour of an error ends
SIDE = 400  # pixels
QUALITY = 85
# Too low, no difference, too high: blue, black, orange, as OpenCV orders the channels.
TOO_LOW = np.array([248.0, 189.0, 56.0], np.float32)
TOO_HIGH = np.array([60.0, 146.0, 251.0], np.float32)


@dataclass(frozen=True)
class Picture:
    """One JPEG with what it shows."""

    title: str
    note: str
    jpeg: bytes


@dataclass(frozen=True)
class Panel:
    """The pictures of one target."""

    target: int
    gain_db: float  # of the model over linear
    what: str  # which of the cell's targets this is
    pictures: tuple[Picture, ...]


def panel_of(
    truth: Plane, planes: Mapping[str, Plane], psnr_db: Mapping[str, float]
) -> tuple[Picture, ...]:
    """The truth and every plane, each with its signed error."""
    found = [Picture("truth", "the slice that was left out", _shown(truth))]
    for name, plane in planes.items():
        error = float(np.sqrt(np.square(plane - truth).mean(dtype=np.float64)))
        note = f"{psnr_db[name]:.2f} dB, RMS error {error:.0f} HU"
        found.append(Picture(name, note, _shown(plane)))
        colours = "blue too low, orange too high"
        found.append(Picture(f"{name} - truth", colours, _difference(plane - truth)))
    return tuple(found)


def chosen(panels: Sequence[Panel]) -> tuple[Panel, ...]:
    """The usual and the worst of a cell, by the gain over linear."""
    if not panels:
        return ()
    ordered = sorted(panels, key=lambda panel: panel.gain_db)
    usual, worst = ordered[len(ordered) // 2], ordered[0]
    named = [(usual, "median gain"), (worst, "least gain")]
    return tuple(
        Panel(panel.target, panel.gain_db, what, panel.pictures)
        for panel, what in (named if usual is not worst else named[1:])
    )


def _shown(plane: Plane) -> bytes:
    scaled = (plane - LOW_HU) * (255.0 / (HIGH_HU - LOW_HU))
    return _jpeg(np.asarray(np.clip(scaled, 0.0, 255.0), np.uint8))


def _difference(error: Plane) -> bytes:
    share = np.clip(error / ERROR_HU, -1.0, 1.0)[..., None]
    colours = np.where(share < 0.0, -share * TOO_LOW, share * TOO_HIGH)
    return _jpeg(np.asarray(colours, np.uint8))


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    scale = SIDE / max(image.shape[:2])
    if scale < 1.0:
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return encoded.tobytes()
