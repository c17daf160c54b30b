"""Which gaps of a stack are filled, and where: the planning that every slice generator shares."""

import math
from collections.abc import Sequence

from inference.errors import Reason, Unprocessable
from inference.model import Parameters, Step
from inference.volume import Geometry

LEAST_FACTOR, MOST_FACTOR = 2, 10
# A gap of 5.02 mm at a target of 2.5 mm is two slices, not three: the ratio may exceed a whole
# number by this much before another slice is made.
RATIO_TOLERANCE = 0.01
# Two slices nearer than this are the same place twice, not a gap.
LEAST_GAP_MM = 1e-3


def gap_factors(geometry: Geometry, parameters: Parameters) -> tuple[int, ...]:
    """For each gap of the stack the slices out per slice in; 1 = nothing is generated there."""
    factor, target = parameters.factor, parameters.target_spacing_mm
    if (factor is None) == (target is None):
        raise ValueError("exactly one of factor and target_spacing_mm must be given")
    if factor is not None:
        if not LEAST_FACTOR <= factor <= MOST_FACTOR:
            raise ValueError(f"factor = {factor}: allowed is {LEAST_FACTOR} to {MOST_FACTOR}")
        return tuple(factor if gap > LEAST_GAP_MM else 1 for gap in geometry.gaps_mm)
    assert target is not None
    if not (math.isfinite(target) and target > 0.0):
        raise ValueError(f"target_spacing_mm = {target}: allowed is a number above 0")
    return tuple(_factor_for(float(gap), target) for gap in geometry.gaps_mm)


def _factor_for(gap_mm: float, target_mm: float) -> int:
    return max(1, min(MOST_FACTOR, math.ceil(gap_mm / target_mm - RATIO_TOLERANCE)))


def plan_gaps(geometry: Geometry, parameters: Parameters, *, reach: int) -> Sequence[Step]:
    """One step per gap to fill, needing `reach` received slices on either side of it."""
    if len(geometry) < 2:
        raise Unprocessable(
            Reason.TOO_FEW_SLICES,
            f"The stack has {len(geometry)} slice; at least 2 are needed to fill a gap.",
        )
    steps = []
    for gap, factor in enumerate(gap_factors(geometry, parameters)):
        if factor > 1:
            needs = range(max(0, gap + 1 - reach), min(len(geometry), gap + 1 + reach))
            fractions = tuple(k / factor for k in range(1, factor))
            steps.append(Step(needs=tuple(needs), gap=gap, fractions=fractions))
    if not steps:
        raise Unprocessable(
            Reason.NOTHING_TO_DO,
            f"The slices lie {float(geometry.gaps_mm.max()):.2f} mm apart at most, which is "
            "already as close as asked for.",
        )
    return tuple(steps)
