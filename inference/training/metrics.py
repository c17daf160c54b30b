"""How near a generated slice comes to the true one; all figures are of whole slices.

What is known of the truth alone (body, edges, flat tissue, lungs) is found once and serves every
method that is judged on it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.models.body import body_of
from inference.volume import Plane

Mask = NDArray[np.bool_]

LOW_HU, HIGH_HU = -1024.0, 2048.0
SOFT_LOW_HU, SOFT_HIGH_HU = -160.0, 240.0  # the window in which soft tissue is read
# Equal slices would have an infinite PSNR; half a HU is what rounding to stored values costs.
LEAST_RMS_HU = 0.5
EDGE_HU = 40.0  # a pixel
SSIM_SIGMA, SSIM_SIDE = 1.5, 11
SSIM_K1, SSIM_K2 = 0.01, 0.03
# Flat soft tissue: where the truth, smoothed, changes by less than this a pixel.
FLAT_SIGMA, FLAT_HU, FLAT_LOW_HU, FLAT_HIGH_HU = 3.0, 4.0, -100.0, 200.0
LEAST_FLAT_PIXELS = 200
NOISE_SIGMA = 2.0  # noise is what this Gaussian takes away
AIRY_HU, LEAST_LUNG_MM2 = -500.0, 500.0  # the trachea is smaller than that
EMPHYSEMA_HU = -950.0


@dataclass(frozen=True)
class SliceFigures:
    """One generated slice against the truth; None where the truth has nothing to measure it on."""

    psnr_db: float
    ssim: float
    psnr_soft_db: float
    ssim_soft: float
    body_mae_hu: float
    body_bias_hu: float
    edge_mae_hu: float | None
    gradient_ratio: float | None  # of the edges of the truth; below 1 = blurred
    noise_hu: float | None  # in flat soft tissue
    noise_ratio: float | None  # to that of the truth
    lung_pixels: int
    low_pixels: int  # of the lungs, below -950 HU
    low_pixels_true: int


class Judge:
    """The truth of one slice, against which every method's slice is measured."""

    def __init__(self, truth: Plane, pixel_mm: float = 1.0) -> None:
        self.truth = truth
        self._pixel_mm = pixel_mm
        self._whole = _Window(truth, LOW_HU, HIGH_HU)
        self._soft = _Window(truth, SOFT_LOW_HU, SOFT_HIGH_HU)

    def figures_of(self, plane: Plane) -> SliceFigures:
        error = (plane - self.truth)[self.body]
        noise = noise_hu(plane, self.flat)
        true_noise = self.noise_hu
        low, low_true = (p[self.lungs] < EMPHYSEMA_HU for p in (plane, self.truth))
        return SliceFigures(
            psnr_db=self._whole.psnr_db(plane),
            ssim=self._whole.ssim(plane),
            psnr_soft_db=self._soft.psnr_db(plane),
            ssim_soft=self._soft.ssim(plane),
            body_mae_hu=float(np.abs(error).mean()) if error.size else 0.0,
            body_bias_hu=float(error.mean(dtype=np.float64)) if error.size else 0.0,
            edge_mae_hu=_mean(np.abs(plane - self.truth)[self.edges]),
            gradient_ratio=self._gradient_ratio(plane),
            noise_hu=noise,
            noise_ratio=noise / true_noise if noise is not None and true_noise else None,
            lung_pixels=int(np.count_nonzero(self.lungs)),
            low_pixels=int(np.count_nonzero(low)),
            low_pixels_true=int(np.count_nonzero(low_true)),
        )

    def _gradient_ratio(self, plane: Plane) -> float | None:
        true = _mean(self._gradient[self.edges])
        return None if not true else float(gradient_hu(plane)[self.edges].mean()) / true

    @cached_property
    def body(self) -> Mask:
        return body_of(self.truth)

    @cached_property
    def _gradient(self) -> Plane:
        return gradient_hu(self.truth)

    @cached_property
    def edges(self) -> Mask:
        return self.body & (self._gradient > EDGE_HU)

    @cached_property
    def flat(self) -> Mask:
        return flat_tissue_of(self.truth, self.body)

    @cached_property
    def noise_hu(self) -> float | None:
        return noise_hu(self.truth, self.flat)

    @cached_property
    def lungs(self) -> Mask:
        return lungs_of(self.truth, self.body, self._pixel_mm)


def figures_of(plane: Plane, truth: Plane) -> SliceFigures:
    """One slice alone; a Judge is quicker for several."""
    return Judge(truth).figures_of(plane)


def psnr_db(plane: Plane, truth: Plane) -> float:
    """Peak signal to noise ratio in the window from -1024 to 2048 HU."""
    return _Window(truth, LOW_HU, HIGH_HU).psnr_db(plane)


def ssim(plane: Plane, truth: Plane) -> float:
    """Mean structural similarity in the window from -1024 to 2048 HU."""
    return _Window(truth, LOW_HU, HIGH_HU).ssim(plane)


class _Window:
    """PSNR and SSIM between two values in HU, beyond which nothing counts."""

    def __init__(self, truth: Plane, low: float, high: float) -> None:
        self._low, self._high = low, high
        self._true = self._shown(truth)

    def _shown(self, plane: Plane) -> Plane:
        """Clipped, and around 0: single precision then serves for the squares of SSIM."""
        middle = np.float32((self._low + self._high) / 2.0)
        return np.asarray(np.clip(plane, self._low, self._high) - middle, np.float32)

    def psnr_db(self, plane: Plane) -> float:
        square = float(np.square(self._shown(plane) - self._true).mean(dtype=np.float64))
        peak = self._high - self._low
        return float(10.0 * np.log10(peak**2 / max(square, LEAST_RMS_HU**2)))

    @cached_property
    def _mean_and_variance(self) -> tuple[Plane, Plane]:
        mean = _smooth(self._true)
        return mean, _smooth(self._true * self._true) - mean * mean

    def ssim(self, plane: Plane) -> float:
        """Wang et al. (2004), equation 13, with a Gaussian window of 11 pixels."""
        x, middle = self._shown(plane), np.float32((self._low + self._high) / 2.0)
        mean_y, var_y = self._mean_and_variance
        mean_x = _smooth(x)
        var_x = _smooth(x * x) - mean_x * mean_x
        both = _smooth(x * self._true) - mean_x * mean_y
        c1, c2 = ((k * (self._high - self._low)) ** 2 for k in (SSIM_K1, SSIM_K2))
        # Means count from the low end of the window, variances from anywhere.
        above = middle - np.float32(self._low)
        mean_x, mean_y = mean_x + above, mean_y + above
        alike = (2.0 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        return float((alike * (2.0 * both + c2) / (var_x + var_y + c2)).mean(dtype=np.float64))


def _smooth(image: Plane) -> Plane:
    return np.asarray(cv2.GaussianBlur(image, (SSIM_SIDE, SSIM_SIDE), SSIM_SIGMA), np.float32)


def _blurred(plane: Plane, sigma: float) -> Plane:
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), sigma), np.float32)


def _mean(values: Plane) -> float | None:
    return float(values.mean()) if values.size else None


def gradient_hu(plane: Plane) -> Plane:
    """Length of the gradient in HU a pixel, by central differences."""
    across = cv2.Sobel(plane, cv2.CV_32F, 1, 0, ksize=1, scale=0.5)
    down = cv2.Sobel(plane, cv2.CV_32F, 0, 1, ksize=1, scale=0.5)
    return np.asarray(cv2.magnitude(across, down), np.float32)


def flat_tissue_of(plane: Plane, body: Mask) -> Mask:
    """Soft tissue without edges, where what is left of a high-pass is noise."""
    # Clipped first, so that bone and lung reach no further than their own surroundings.
    smooth = _blurred(np.clip(plane, -300.0, 400.0), FLAT_SIGMA)
    tissue = (smooth > FLAT_LOW_HU) & (smooth < FLAT_HIGH_HU)
    return np.asarray(body & tissue & (gradient_hu(smooth) < FLAT_HU))


def noise_hu(plane: Plane, flat: Mask) -> float | None:
    """Standard deviation of the high-pass in flat tissue; None where there is too little of it."""
    if np.count_nonzero(flat) < LEAST_FLAT_PIXELS:
        return None
    rest = plane - _blurred(plane, NOISE_SIGMA)
    return float(rest[flat].std(dtype=np.float64))


def lungs_of(truth: Plane, body: Mask, pixel_mm: float) -> Mask:
    """Air that the body encloses, in pieces larger than a trachea."""
    airy = (body & (_blurred(truth, 1.5) < AIRY_HU)).astype(np.uint8)
    _, pieces, measured, _ = cv2.connectedComponentsWithStats(airy)
    large = measured[:, cv2.CC_STAT_AREA] * pixel_mm**2 >= LEAST_LUNG_MM2
    large[0] = False  # the background
    return np.asarray(large[pieces])


def spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """Spearman's rank correlation; equal values share their mean rank. None where it has none."""
    first, second = _ranks(one), _ranks(other)
    first, second = first - first.mean(), second - second.mean()
    size = float(np.sqrt((first @ first) * (second @ second)))
    return None if size == 0.0 else float(first @ second) / size


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2.0)[places], np.float64)


def bootstrap(
    values: NDArray[np.float64], *, draws: int = 2000, seed: int = 2026
) -> tuple[float, float]:
    """The 95 % interval of the mean, from slices drawn again with replacement (Efron, 1979).

    Differences of two methods on the same slices make it a paired one.
    """
    random = np.random.default_rng(seed)
    drawn = random.integers(0, len(values), (draws, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


Measure = Callable[[SliceFigures], float | None]


def mean_of(slices: Sequence[SliceFigures], measure: Measure) -> float | None:
    """The mean over the slices that have it."""
    found = [value for each in slices if (value := measure(each)) is not None]
    return float(np.mean(found)) if found else None
