"""The losses that training minimises, in thousands of HU, and the adversarial judge."""

from functools import cache
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from inference.training.checkpoint import Tensors, optimiser_tensors, part_of, restore_optimiser

Patch = TypeVar("Patch", Tensor, NDArray[np.float32])

# The outermost pixels of a patch saw zeros beyond its edge, as no pixel of a whole slice does.
BORDER = 4
# The square of an error counts beside the error itself: large errors are what is seen at edges,
# and the mean has less bias than the median, which L1 alone would find.
SQUARE_WEIGHT = 5.0
SCALE_WEIGHT = 0.003
# The mean error of an area counts by itself: most of an error's sign is lost in its size, and a
# body that is a few HU too dark everywhere would cost next to nothing.
AREA, AREA_WEIGHT = 22, 0.6  # side in pixels: a patch of 96 without its border is 4 by 4 areas
# A gain is a ratio of errors, so that a patch counts by how hard it is for the flow blend; the
# usual error keeps the loss in its range, the least one keeps noise in air from counting most.
USUAL_ERROR, LEAST_ERROR = 0.04, 0.015

# A mean of many samples is the least wrong and has no grain: it looks like another kernel's. In
# flat tissue a slice shall not have much less of it than linear interpolation leaves.
GRAIN_WEIGHT, LESS_GRAIN = 0.5, 0.15  # less than linear by this share of the truth's grain
FLAT_HU, FLAT_LOW_HU, FLAT_HIGH_HU = 4.0, -100.0, 200.0  # change a pixel; soft tissue
LEAST_FLAT_PIXELS = 200
GRAIN_SIDE = 5  # of the boxes that take grain away, in pixels
GRAIN_REACH = GRAIN_SIDE - 1  # there are two of them

# A mean of many samples is too even in lung as well: too little of it lies below the levels by
# which emphysema is measured (LAA-950). The share below each level shall be the truth's.
LUNG_WEIGHT, LUNG_LEVELS_HU, LEVEL_HU = 0.06, (-960.0, -940.0, -920.0, -900.0, -870.0), 10.0
LUNG_LOW_HU, LUNG_HIGH_HU, LEAST_LUNG_PIXELS = -970.0, -600.0, 600
# Skin against air is as dense as lung in a ring a few pixels wide: what lies in lung has lung
# around it. With the ring in the mask the loss drew bodies darker.
LUNG_SIDE, LUNG_SHARE = 9, 0.9

WIDTHS = (64, 128, 256)
LEARNING_RATE = 5e-4
BETAS = (0.5, 0.9)
SOFT_CENTRE_HU, SOFT_HALF_HU = 40.0, 200.0  # soft tissue, seen beside the whole range
# Grain of 10 to 20 HU has to be seen: spectral norms let nothing small grow within the judge.
WHOLE_UNIT_HU, SOFT_UNIT_HU = 250.0, 25.0
VIEWS = 2  # of each slice
LEAST_PULL = 1e-12


def inner(patch: Patch) -> Patch:
    """(B, 1, H, W) without its border."""
    return patch[..., BORDER:-BORDER, BORDER:-BORDER]


def loss_of(slice_hu: Tensor, scale_hu: Tensor, truth_hu: Tensor, blend_hu: Tensor) -> Tensor:
    """Error of the slice beside that of the blend, and how badly the scale predicts it."""
    slice_hu, truth_hu, blend_hu = inner(slice_hu), inner(truth_hu), inner(blend_hu)
    signed = (slice_hu - truth_hu) / 1000.0
    error = signed.abs()
    hardness = (blend_hu - truth_hu).abs().mean(dim=(1, 2, 3), keepdim=True) / 1000.0
    weight = USUAL_ERROR / (LEAST_ERROR + hardness)  # (B, 1, 1, 1)
    scale = inner(scale_hu) / 1000.0
    likelihood = torch.log(2.0 * scale) + error.detach() / scale
    drift = F.avg_pool2d(signed, AREA, ceil_mode=True, count_include_pad=False).abs().mean()
    sharp = weight * (error + SQUARE_WEIGHT * error.square()) + SCALE_WEIGHT * likelihood
    return sharp.mean() + AREA_WEIGHT * drift


def grain_loss(slice_hu: Tensor, truth_hu: Tensor, straight_hu: Tensor) -> Tensor:
    """The grain that flat tissue lacks, in thousands of HU; all (B, 1, H, W)."""
    with torch.no_grad():
        flat = _flat(truth_hu)  # (B, 1, H, W)
        enough = (flat.sum(dim=(1, 2, 3)) >= LEAST_FLAT_PIXELS).float()  # (B,)
        due = _grain(straight_hu, flat) - LESS_GRAIN * _grain(truth_hu, flat)
    lacking: Tensor = F.relu(due - _grain(slice_hu, flat)) * enough
    return GRAIN_WEIGHT * lacking.mean() / 1000.0


def lung_loss(slice_hu: Tensor, truth_hu: Tensor) -> Tensor:
    """The distance of the shares of lung below some levels from the truth's; both (B, 1, H, W)."""
    slice_hu, truth_hu = inner(slice_hu), inner(truth_hu)
    with torch.no_grad():
        lung = _lung(truth_hu)  # (B, 1, H, W)
        pixels = lung.sum(dim=(1, 2, 3))  # (B,)
        enough = (pixels >= LEAST_LUNG_PIXELS).float()
    levels = slice_hu.new_tensor(LUNG_LEVELS_HU)[None, :, None, None]
    below = torch.sigmoid((levels - slice_hu) / LEVEL_HU)  # (B, levels, H, W)
    due = torch.sigmoid((levels - truth_hu) / LEVEL_HU)
    off = ((below - due) * lung).sum(dim=(2, 3)) / pixels.clamp_min(1.0)[:, None]  # (B, levels)
    return LUNG_WEIGHT * (off.abs().mean(dim=1) * enough).mean()


def _lung(truth_hu: Tensor) -> Tensor:
    """1 where the truth, smoothed, is as dense as lung, and so is nearly all around."""
    smooth = _smoothed(truth_hu, 5)
    dense = ((smooth > LUNG_LOW_HU) & (smooth < LUNG_HIGH_HU)).float()
    return dense * (_smoothed(dense, LUNG_SIDE) > LUNG_SHARE)


def _flat(truth_hu: Tensor) -> Tensor:
    """1 where the truth, smoothed, is soft tissue without an edge, and grain is all of the inside.

    Grain at a pixel is told by the pixels that smoothing reaches: were one of them at the border,
    where no error counts, a network would put all the grain there.
    """
    smooth = _smoothed(truth_hu.clamp(-300.0, 400.0), 7)
    down = (smooth[..., 2:, 1:-1] - smooth[..., :-2, 1:-1]) / 2.0
    across = (smooth[..., 1:-1, 2:] - smooth[..., 1:-1, :-2]) / 2.0
    middle = smooth[..., 1:-1, 1:-1]
    flat = (middle > FLAT_LOW_HU) & (middle < FLAT_HIGH_HU) & (torch.hypot(down, across) < FLAT_HU)
    margin = BORDER + GRAIN_REACH
    kept = flat[..., margin - 1 : 1 - margin, margin - 1 : 1 - margin]  # one pixel is gone already
    return F.pad(kept.float(), (margin, margin, margin, margin))


def _grain(slice_hu: Tensor, flat: Tensor) -> Tensor:
    """(B,): root mean square of what smoothing takes away from flat tissue, in HU."""
    rest = (slice_hu - _smoothed(slice_hu, GRAIN_SIDE)).square() * flat
    return (rest.sum(dim=(1, 2, 3)) / flat.sum(dim=(1, 2, 3)).clamp_min(1.0) + 1e-3).sqrt()


def _smoothed(slice_hu: Tensor, side: int) -> Tensor:
    """Two boxes: nearly a Gaussian, of 2 pixels for a side of 5, of 2.8 for 7."""
    down, across = (_two_boxes(count, side, slice_hu.device) for count in slice_hu.shape[-2:])
    return down @ slice_hu @ across.mT


@cache
def _two_boxes(count: int, side: int, device: torch.device) -> Tensor:
    """(count, count): a weighted mean of each pixel's neighbours as a matrix, edges with fewer.

    For one channel a product of matrices is six times as fast as pooling.
    """
    place = torch.arange(count, device=device)
    weights = (side - (place[:, None] - place).abs()).clamp_min(0).float()
    return weights / weights.sum(dim=1, keepdim=True)


# The option of `midslice train`, after pix2pix: it can bring back the grain that the most probable
# slice lacks, at a cost in error. The judge sees the slice with its neighbours A and C and t.


class PatchJudge(nn.Module):
    """One opinion a patch of some 40 pixels: above 0 where B looks received, below where made."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        seen = 3 * VIEWS + 1
        for width in widths:
            layers += [
                spectral_norm(nn.Conv2d(seen, width, 4, stride=2, padding=1)),
                nn.LeakyReLU(0.2),
            ]
            seen = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(seen, 1, 3, padding=1))

    def forward(self, a: Tensor, c: Tensor, b: Tensor, t: Tensor) -> Tensor:
        """(B, 1, H, W) HU three times, (B,); returns (B, 1, H/8, W/8)."""
        seen = torch.cat([_views(a), _views(c), _views(b)], dim=1)
        place = t[:, None, None, None].expand(-1, 1, *b.shape[2:])
        opinions: Tensor = self.layers(torch.cat([seen, place], dim=1))
        return opinions


def balanced(loss: Tensor, objection: Tensor, slice_hu: Tensor, share: float) -> Tensor:
    """Both together, so that at the slice the objection pulls `share` times as hard as the loss.

    The two have no common unit, and what the judge says grows as it learns.
    """
    (of_loss,) = torch.autograd.grad(loss, slice_hu, retain_graph=True)
    (of_objection,) = torch.autograd.grad(objection, slice_hu, retain_graph=True)
    weight = share * of_loss.norm() / of_objection.norm().clamp_min(LEAST_PULL)
    both: Tensor = loss + weight * objection
    return both


def _views(slice_hu: Tensor) -> Tensor:
    """(B, 2, H, W): the whole range, and soft tissue alone."""
    soft = (slice_hu - SOFT_CENTRE_HU).clamp(-SOFT_HALF_HU, SOFT_HALF_HU)
    return torch.cat([slice_hu / WHOLE_UNIT_HU, soft / SOFT_UNIT_HU], dim=1)


class Adversary:
    """The judge under training, and what it costs the generator to be found out."""

    def __init__(self, device: str) -> None:
        self._judge = PatchJudge().to(device)
        self._optimiser = torch.optim.AdamW(self._judge.parameters(), lr=LEARNING_RATE, betas=BETAS)

    def objection(self, slice_hu: Tensor, planes: Tensor, conditions: Tensor) -> Tensor:
        """The judge's objection to slices: lower, the more received they look."""
        self._judge.requires_grad_(requires_grad=False)
        opinions = self._judge(planes[:, 1:2], planes[:, 2:3], slice_hu, conditions[:, 0])
        self._judge.requires_grad_(requires_grad=True)
        return -torch.mean(opinions)

    def learn(self, slice_hu: Tensor, truth: Tensor, planes: Tensor, conditions: Tensor) -> float:
        """One step of the judge on the same patches; returns its hinge loss, 2 where it guesses."""
        a, c, t = planes[:, 1:2], planes[:, 2:3], conditions[:, 0]
        real, fake = self._judge(a, c, truth, t), self._judge(a, c, slice_hu.detach(), t)
        loss = F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean()
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._optimiser.step()
        return float(loss.detach())

    def state(self) -> dict[str, Tensor]:
        parts = (
            ("network", self._judge.state_dict()),
            ("optimiser", optimiser_tensors(self._optimiser)),
        )
        return {f"{part}.{name}": kept for part, tensors in parts for name, kept in tensors.items()}

    def restore(self, state: Tensors) -> None:
        """Go on from what a checkpoint kept; nothing kept is a judge that begins."""
        if state:
            self._judge.load_state_dict(part_of(state, "network"))
            restore_optimiser(self._optimiser, part_of(state, "optimiser"))
