"""From the figures of single slices to those of a cell: one series, one mode, one factor."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inference.training.metrics import SliceFigures, bootstrap, mean_of, spearman

NOTABLE_DB = 0.3  # a slice that loses more than this has lost something that a reader sees


@dataclass(frozen=True)
class Trusted:
    """What a model expected of one slice, and what came of it."""

    error_hu: float  # expected mean absolute error in the body
    true_error_hu: float
    confidence: float
    coverage: float | None  # share of the body inside the 90 % interval


@dataclass(frozen=True)
class Confidence:
    """How well a model knew its own error, over the slices of a cell."""

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


@dataclass(frozen=True)
class Milliseconds:
    """What one generated slice takes."""

    wall: float
    cpu: float  # of all cores


@dataclass(frozen=True)
class Beside:
    """What is known of a target without any method: noise of the received slices beside it."""

    noise_hu: float | None


def figures_of_cell(
    slices: Sequence[SliceFigures],
    linear: Sequence[SliceFigures],
    dis: Sequence[SliceFigures],
    beside: Sequence[Beside],
    ms: Milliseconds,
) -> Figures:
    psnr = np.array([each.psnr_db for each in slices])
    over_linear = psnr - [each.psnr_db for each in linear]
    over_dis = psnr - [each.psnr_db for each in dis]
    mae = float(np.mean([each.body_mae_hu for each in slices]))
    mae_linear = float(np.mean([each.body_mae_hu for each in linear]))
    laa, laa_true = _laa_950(slices)
    return Figures(
        psnr_db=float(psnr.mean()),
        ssim=float(np.mean([each.ssim for each in slices])),
        psnr_soft_db=float(np.mean([each.psnr_soft_db for each in slices])),
        ssim_soft=float(np.mean([each.ssim_soft for each in slices])),
        body_mae_hu=mae,
        body_mae_to_linear=mae / mae_linear - 1.0 if mae_linear else 0.0,
        body_bias_hu=float(np.mean([each.body_bias_hu for each in slices])),
        edge_mae_hu=mean_of(slices, lambda each: each.edge_mae_hu),
        gradient_ratio=mean_of(slices, lambda each: each.gradient_ratio),
        noise_ratio=mean_of(slices, lambda each: each.noise_ratio),
        noise_step=_noise_step(slices, beside),
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
    lungs = sum(each.lung_pixels for each in slices)
    if not lungs:
        return None, None
    low, true = (sum(each.low_pixels for each in slices), sum(e.low_pixels_true for e in slices))
    return low / lungs, true / lungs


def _noise_step(slices: Sequence[SliceFigures], beside: Sequence[Beside]) -> float | None:
    """After CycleINR's slice-wise noise level inconsistency: how much noise changes from a received
    slice to the made one next to it, as a share. A reader who scrolls sees it as flicker."""
    found = [
        abs(made.noise_hu / received.noise_hu - 1.0)
        for made, received in zip(slices, beside, strict=True)
        if made.noise_hu is not None and received.noise_hu
    ]
    return float(np.mean(found)) if found else None


def confidence_of(trusted: Sequence[Trusted]) -> Confidence | None:
    """None for a model that says nothing of its error."""
    if not trusted:
        return None
    expected = np.array([each.error_hu for each in trusted])
    true = np.array([each.true_error_hu for each in trusted])
    covered = [each.coverage for each in trusted if each.coverage is not None]
    return Confidence(
        spearman=spearman(expected, true) if len(trusted) > 1 else None,
        predicted_to_true=float(expected.mean() / max(float(true.mean()), 1e-6)),
        coverage=float(np.mean(covered)) if covered else None,
        least=min(each.confidence for each in trusted),
        mean=float(np.mean([each.confidence for each in trusted])),
    )
