"""What training minimises, in thousands of HU."""

import torch
import torch.nn.functional as F
from torch import Tensor

# The outermost pixels of a patch saw zeros beyond its edge, as no pixel of a whole slice does.
BORDER = 4
# The square of an error counts beside the error itself: large errors are what is seen at edges,
# and the mean has less bias than the median, which L1 alone would find.
SQUARE_WEIGHT = 5.0
SCALE_WEIGHT = 0.003
# The mean error of an area counts by itself: most of an error's sign is lost in its size, and a
# body that is a few HU too dark everywhere would cost next to nothing.
AREA, AREA_WEIGHT = 22, 0.3  # side in pixels: a patch of 96 without its border is 4 by 4 areas
# A gain is a ratio of errors, so that a patch counts by how hard it is for the flow blend; the
# usual error keeps the loss in its range, the least one keeps noise in air from counting most.
USUAL_ERROR, LEAST_ERROR = 0.04, 0.015

# A mean of many samples is the least wrong and has no grain: it looks like another kernel's. In
# flat tissue a slice shall not have much less of it than linear interpolation leaves.
GRAIN_WEIGHT, LESS_GRAIN = 1.0, 0.15  # less than linear by this share of the truth's grain
FLAT_HU, FLAT_LOW_HU, FLAT_HIGH_HU = 4.0, -100.0, 200.0  # change a pixel; soft tissue
LEAST_FLAT_PIXELS = 200


def loss_of(slice_hu: Tensor, scale_hu: Tensor, truth_hu: Tensor, blend_hu: Tensor) -> Tensor:
    """Error of the slice beside that of the blend, and how badly the scale predicts it."""
    inner = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    signed = (slice_hu[inner] - truth_hu[inner]) / 1000.0
    error = signed.abs()
    hardness = (blend_hu[inner] - truth_hu[inner]).abs().mean(dim=(1, 2, 3), keepdim=True) / 1000.0
    weight = USUAL_ERROR / (LEAST_ERROR + hardness)  # (B, 1, 1, 1)
    scale = scale_hu[inner] / 1000.0
    likelihood = torch.log(2.0 * scale) + error.detach() / scale
    drift = F.avg_pool2d(signed, AREA, ceil_mode=True, count_include_pad=False).abs().mean()
    sharp = weight * (error + SQUARE_WEIGHT * error.square()) + SCALE_WEIGHT * likelihood
    return sharp.mean() + AREA_WEIGHT * drift


def grain_loss(slice_hu: Tensor, truth_hu: Tensor, straight_hu: Tensor) -> Tensor:
    """How much grain flat tissue lacks, in thousands of HU; all (B, 1, H, W)."""
    with torch.no_grad():
        flat = _flat(truth_hu)  # (B, 1, H, W)
        enough = (flat.sum(dim=(1, 2, 3)) >= LEAST_FLAT_PIXELS).float()  # (B,)
        due = _grain(straight_hu, flat) - LESS_GRAIN * _grain(truth_hu, flat)
    lacking: Tensor = F.relu(due - _grain(slice_hu, flat)) * enough
    return GRAIN_WEIGHT * lacking.mean() / 1000.0


def _flat(truth_hu: Tensor) -> Tensor:
    """1 where the truth, smoothed, is soft tissue without an edge, and not at the border."""
    smooth = _smoothed(truth_hu.clamp(-300.0, 400.0), 7)
    down = (smooth[..., 2:, 1:-1] - smooth[..., :-2, 1:-1]) / 2.0
    across = (smooth[..., 1:-1, 2:] - smooth[..., 1:-1, :-2]) / 2.0
    inner = smooth[..., 1:-1, 1:-1]
    flat = (inner > FLAT_LOW_HU) & (inner < FLAT_HIGH_HU) & (torch.hypot(down, across) < FLAT_HU)
    within = BORDER - 1  # one pixel is gone already
    kept = flat[..., within:-within, within:-within].float()
    return F.pad(kept, (BORDER, BORDER, BORDER, BORDER))


def _grain(slice_hu: Tensor, flat: Tensor) -> Tensor:
    """(B,): root mean square of what smoothing takes away from flat tissue, in HU."""
    rest = (slice_hu - _smoothed(slice_hu, 5)).square() * flat
    return (rest.sum(dim=(1, 2, 3)) / flat.sum(dim=(1, 2, 3)).clamp_min(1.0) + 1e-3).sqrt()


def _smoothed(slice_hu: Tensor, side: int) -> Tensor:
    """Two boxes: nearly a Gaussian, of 2 pixels for a side of 5, of 2.8 for 7."""
    for _ in range(2):
        slice_hu = F.avg_pool2d(slice_hu, side, 1, side // 2, count_include_pad=False)
    return slice_hu
