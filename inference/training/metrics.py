"""Metrics of generated slices beside the true ones, summed up by series, mode and factor.

What is known of the truth alone (body, edges, flat tissue, lungs) is found once and serves every
method that is judged on it. None stands where the truth has nothing to measure a figure on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from inference.models.confidence import body_of
from inference.training.data import ThinSeries
from inference.volume import Plane

Mask = NDArray[np.bool_]
Anatomy = Literal["chest", "head", "other"]

LOW_HU, HIGH_HU = -1024.0, 2048.0
SOFT_TISSUE_HU = -160.0, 240.0  # the window in which soft tissue is read
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
NOTABLE_DB = 0.3  # a slice that loses more than this has lost something that a reader sees
BOOTSTRAP_DRAWS, BOOTSTRAP_SEED = 2000, 2026
# Of an anatomy: slices looked at, evenly spread; shares of the body, and the diameter of a disc as
# large as it.
LOOKED_AT = 7
BONE_HU = 300.0
LEAST_LUNG, LEAST_BONE, LARGEST_HEAD_MM = 0.08, 0.08, 230.0


@dataclass(frozen=True)
class SliceFigures:
    """The figures of one generated slice against the truth."""

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


class TruthSlice:
    """The truth of one slice, against which every method's slice is measured."""

    def __init__(self, plane: Plane, pixel_mm: float = 1.0) -> None:
        self.plane = plane
        self._pixel_mm = pixel_mm
        self._whole = _TruthInRange(plane, LOW_HU, HIGH_HU)
        self._soft = _TruthInRange(plane, *SOFT_TISSUE_HU)

    def figures_of(self, plane: Plane) -> SliceFigures:
        error = (plane - self.plane)[self.body]
        noise = noise_hu(plane, self.flat)
        true_noise = self.noise_hu
        low, low_true = (p[self.lungs] < EMPHYSEMA_HU for p in (plane, self.plane))
        return SliceFigures(
            psnr_db=self._whole.psnr_db(plane),
            ssim=self._whole.ssim(plane),
            psnr_soft_db=self._soft.psnr_db(plane),
            ssim_soft=self._soft.ssim(plane),
            body_mae_hu=float(np.abs(error).mean()) if error.size else 0.0,
            body_bias_hu=float(error.mean(dtype=np.float64)) if error.size else 0.0,
            edge_mae_hu=_mean(np.abs(plane - self.plane)[self.edges]),
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
        return body_of(self.plane)

    @cached_property
    def _gradient(self) -> Plane:
        return gradient_hu(self.plane)

    @cached_property
    def edges(self) -> Mask:
        return self.body & (self._gradient > EDGE_HU)

    @cached_property
    def flat(self) -> Mask:
        return flat_tissue_of(self.plane, self.body)

    @cached_property
    def noise_hu(self) -> float | None:
        return noise_hu(self.plane, self.flat)

    @cached_property
    def lungs(self) -> Mask:
        return lungs_of(self.plane, self.body, self._pixel_mm)


class _TruthInRange:
    """PSNR and SSIM between two values in HU, beyond which nothing counts.

    Single precision and the means of the truth once make it five times as quick as scikit-image's
    SSIM, which differs from it by less than 0.00001.
    """

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


def spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Spearman's rank correlation; None of fewer than two values, or where all are equal."""
    if len(first) < 2 or np.ptp(first) == 0.0 or np.ptp(second) == 0.0:
        return None
    return float(stats.spearmanr(first, second).statistic)


def bootstrap(values: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of the mean, from slices drawn again with replacement (Efron, 1979).

    Differences of two methods on the same slices make it a paired one.
    """
    if len(values) < 2:
        return float(values[0]), float(values[0])
    random = np.random.default_rng(BOOTSTRAP_SEED)
    interval = stats.bootstrap(
        (values,), np.mean, n_resamples=BOOTSTRAP_DRAWS, method="percentile", rng=random
    ).confidence_interval
    return float(interval.low), float(interval.high)


def mean_of(slices: Sequence[SliceFigures], name: str) -> float | None:
    """The mean of a figure over the slices that have it."""
    values = [value for figures in slices if (value := getattr(figures, name)) is not None]
    return float(np.mean(values)) if values else None


@dataclass(frozen=True)
class TrustedSlice:
    """The error that a model expected of one slice, and the true one."""

    error_hu: float  # expected mean absolute error in the body
    true_error_hu: float
    confidence: float
    coverage: float | None  # share of the body inside the 90 % interval


@dataclass(frozen=True)
class Confidence:
    """The quality of a model's knowledge of its own error, over the slices of a cell."""

    spearman: float | None  # between the expected and the true error of its slices
    predicted_to_true: float  # mean expected error / mean true error
    coverage: float | None  # of the pixel-wise 90 % intervals in the body
    least: float  # the lowest confidence of a slice
    mean: float


@dataclass(frozen=True)
class Figures:
    """One method on one cell; means over the cell's slices unless their name says otherwise."""

    psnr_db: float
    ssim: float
    psnr_soft_db: float
    ssim_soft: float
    body_mae_hu: float
    body_mae_to_linear: float  # change as a share: -0.2 is a fifth less
    body_bias_hu: float
    edge_mae_hu: float | None
    gradient_ratio: float | None
    noise_ratio: float | None
    noise_step: float | None  # SNLI: relative change of noise to the received slices beside it
    laa_950: float | None  # share of all lung pixels of the cell below -950 HU
    laa_950_off: float | None  # from that of the truth, absolute
    over_linear_db: float
    over_linear_interval_db: tuple[float, float]  # 95 %, paired bootstrap over the slices
    worst_over_linear_db: float
    over_dis_db: float
    over_dis_interval_db: tuple[float, float]
    worst_over_dis_db: float
    below_linear: float  # share of slices
    notably_below_linear: float  # by more than 0.3 dB
    below_dis: float
    notably_below_dis: float
    ms_per_slice: float  # everything included but decoding; of the model, whole series
    cpu_ms_per_slice: float  # processor time of all cores: a busy machine changes it little


# Figures of a slice and of a cell that have one name: the cell's is the mean.
MEANS = {of.name for of in fields(SliceFigures)} & {of.name for of in fields(Figures)}


@dataclass(frozen=True)
class Milliseconds:
    """The time of one generated slice."""

    wall: float
    cpu: float  # of all cores


def figures_of_cell(
    slices: Sequence[SliceFigures],
    linear: Sequence[SliceFigures],
    dis: Sequence[SliceFigures],
    noise_beside: Sequence[float | None],
    ms: Milliseconds,
) -> Figures:
    psnr, psnr_linear, psnr_dis = (
        np.array([figures.psnr_db for figures in of_method]) for of_method in (slices, linear, dis)
    )
    over_linear, over_dis = psnr - psnr_linear, psnr - psnr_dis
    means: dict[str, Any] = {name: mean_of(slices, name) for name in MEANS}
    mae_linear = mean_of(linear, "body_mae_hu")
    laa, laa_true = _laa_950(slices)
    return Figures(
        **means,
        body_mae_to_linear=means["body_mae_hu"] / mae_linear - 1.0 if mae_linear else 0.0,
        noise_step=_noise_step(slices, noise_beside),
        laa_950=laa,
        laa_950_off=None if laa is None or laa_true is None else abs(laa - laa_true),
        over_linear_db=float(over_linear.mean()),
        over_linear_interval_db=bootstrap(over_linear),
        worst_over_linear_db=float(over_linear.min()),
        over_dis_db=float(over_dis.mean()),
        over_dis_interval_db=bootstrap(over_dis),
        worst_over_dis_db=float(over_dis.min()),
        below_linear=float((over_linear < 0.0).mean()),
        notably_below_linear=float((over_linear < -NOTABLE_DB).mean()),
        below_dis=float((over_dis < 0.0).mean()),
        notably_below_dis=float((over_dis < -NOTABLE_DB).mean()),
        ms_per_slice=ms.wall,
        cpu_ms_per_slice=ms.cpu,
    )


def _laa_950(slices: Sequence[SliceFigures]) -> tuple[float | None, float | None]:
    """Low attenuation area of the made and of the true lungs, over all slices."""
    lungs = sum(figures.lung_pixels for figures in slices)
    if not lungs:
        return None, None
    low = sum(figures.low_pixels for figures in slices)
    return low / lungs, sum(figures.low_pixels_true for figures in slices) / lungs


def _noise_step(
    slices: Sequence[SliceFigures], noise_beside: Sequence[float | None]
) -> float | None:
    """After CycleINR's slice-wise noise level inconsistency: the mean change of noise from the
    received slices beside to a generated one, as a share. A reader who scrolls sees it as flicker.
    """
    steps = [
        abs(generated.noise_hu / received_hu - 1.0)
        for generated, received_hu in zip(slices, noise_beside, strict=True)
        if generated.noise_hu is not None and received_hu
    ]
    return float(np.mean(steps)) if steps else None


def confidence_of(trusted: Sequence[TrustedSlice]) -> Confidence | None:
    """None for a model that says nothing of its error."""
    if not trusted:
        return None
    expected = np.array([trust.error_hu for trust in trusted])
    true = np.array([trust.true_error_hu for trust in trusted])
    covered = [trust.coverage for trust in trusted if trust.coverage is not None]
    return Confidence(
        spearman=spearman(expected, true),
        predicted_to_true=float(expected.mean() / max(float(true.mean()), 1e-6)),
        coverage=float(np.mean(covered)) if covered else None,
        least=min(trust.confidence for trust in trusted),
        mean=float(np.mean([trust.confidence for trust in trusted])),
    )


def anatomy_of(series: ThinSeries) -> Anatomy:
    """From a few slices, for headers do not say it reliably: lungs make a chest, a small body with
    much bone a head."""
    places = np.linspace(0, len(series) - 1, LOOKED_AT + 2)[1:-1]
    body_pixels, lungs, bone = 0, 0, 0
    for index in places.round().astype(int).tolist():
        truth = TruthSlice(series.read(index), series.geometry.pixel_mm)
        body_pixels += int(np.count_nonzero(truth.body))
        lungs += int(np.count_nonzero(truth.lungs))
        bone += int(np.count_nonzero(truth.body & (truth.plane > BONE_HU)))
    if not body_pixels:
        return "other"
    if lungs >= LEAST_LUNG * body_pixels:
        return "chest"
    diameter_mm = 2.0 * np.sqrt(body_pixels / LOOKED_AT / np.pi) * series.geometry.pixel_mm
    is_head = bone >= LEAST_BONE * body_pixels and diameter_mm <= LARGEST_HEAD_MM
    return "head" if is_head else "other"
