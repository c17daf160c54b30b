"""What training minimises, in thousands of HU."""

import torch
from torch import Tensor

# The outermost pixels of a patch saw zeros beyond its edge, as no pixel of a whole slice does.
BORDER = 4
# The square of an error counts beside the error itself: large errors are what is seen at edges,
# and the mean has less bias than the median, which L1 alone would find.
SQUARE_WEIGHT = 5.0
SCALE_WEIGHT = 0.003
# A gain is a ratio of errors, so that a patch counts by how hard it is for the flow blend; the
# usual error keeps the loss in its range, the least one keeps noise in air from counting most.
USUAL_ERROR, LEAST_ERROR = 0.04, 0.015


def loss_of(slice_hu: Tensor, scale_hu: Tensor, truth_hu: Tensor, blend_hu: Tensor) -> Tensor:
    """Error of the slice beside that of the blend, and how badly the scale predicts it."""
    inner = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    error = (slice_hu[inner] - truth_hu[inner]).abs() / 1000.0
    hardness = (blend_hu[inner] - truth_hu[inner]).abs().mean(dim=(1, 2, 3), keepdim=True) / 1000.0
    weight = USUAL_ERROR / (LEAST_ERROR + hardness)  # (B, 1, 1, 1)
    scale = scale_hu[inner] / 1000.0
    likelihood = torch.log(2.0 * scale) + error.detach() / scale
    return (weight * (error + SQUARE_WEIGHT * error.square()) + SCALE_WEIGHT * likelihood).mean()
