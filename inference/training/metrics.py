"""How near a generated slice comes to the true one; all figures are of whole slices."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.volume import Plane

LOW_HU, HIGH_HU = -1024.0, 2048.0
RANGE_HU = HIGH_HU - LOW_HU
# Equal slices would have an infinite PSNR; half a HU is what rounding to stored values costs.
LEAST_RMS_HU = 0.5
BODY_HU = -500.0
SSIM_SIGMA, SSIM_SIDE = 1.5, 11
SSIM_K1, SSIM_K2 = 0.01, 0.03


@dataclass(frozen=True)
class SliceFigures:
    """One generated slice against the truth."""

    psnr_db: float
    ssim: float
    body_mae_hu: float
    body_bias_hu: float


def figures_of(plane: Plane, truth: Plane) -> SliceFigures:
    shown, true = (np.clip(p, LOW_HU, HIGH_HU) for p in (plane, truth))
    body = body_of(truth)
    error = (plane - truth)[body]
    return SliceFigures(
        psnr_db=psnr_db(shown, true),
        ssim=ssim(shown, true),
        body_mae_hu=float(np.abs(error).mean()) if error.size else 0.0,
        body_bias_hu=float(error.mean()) if error.size else 0.0,
    )


def psnr_db(shown: Plane, true: Plane) -> float:
    square = float(np.square(shown.astype(np.float64) - true).mean())
    return float(10.0 * np.log10(RANGE_HU**2 / max(square, LEAST_RMS_HU**2)))


def ssim(shown: Plane, true: Plane) -> float:
    """Mean structural similarity (Wang et al., 2004), Gaussian window of 11 pixels."""
    x, y = shown.astype(np.float64), true.astype(np.float64)
    mean_x, mean_y = _smooth(x), _smooth(y)
    var_x, var_y = _smooth(x * x) - mean_x**2, _smooth(y * y) - mean_y**2
    both = _smooth(x * y) - mean_x * mean_y
    c1, c2 = (SSIM_K1 * RANGE_HU) ** 2, (SSIM_K2 * RANGE_HU) ** 2
    top = (2.0 * mean_x * mean_y + c1) * (2.0 * both + c2)
    return float((top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


def _smooth(image: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(cv2.GaussianBlur(image, (SSIM_SIDE, SSIM_SIDE), SSIM_SIGMA))


def body_of(truth: Plane) -> NDArray[np.bool_]:
    """The largest dense piece with everything it encloses: lungs and bowel gas belong to it."""
    dense = (truth > BODY_HU).astype(np.uint8)
    # Opening sheds the table and its cover.
    opened = cv2.morphologyEx(dense, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    outlines, _ = cv2.findContours(opened, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    body = np.zeros(truth.shape, np.uint8)
    if outlines:
        largest = max(outlines, key=cv2.contourArea)
        cv2.drawContours(body, [largest], -1, color=1, thickness=cv2.FILLED)
    return body.astype(bool)
