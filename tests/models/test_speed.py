"""How long a slice takes: no model seems quicker than it is, however many gaps run at once."""

import time

import pytest

from inference.model import Limits, Measured, Parameters, Prediction, Step, Window
from inference.models import gate
from inference.models.classical import Linear, plan_gaps
from inference.training.evaluate import RunOptions, classical_methods, slice_times
from inference.training.leave_out import TargetList, leave_out
from inference.volume import Geometry
from tests.models.made import drifting

SECONDS = 0.01  # a slice, and a survey


class Slow(Linear):
    """Takes the same time for each slice, and for each survey."""

    name = "slow"
    concurrent = True

    def plan(self, geometry: Geometry, parameters: Parameters) -> list[Step]:
        gaps = plan_gaps(geometry, parameters, reach=1)
        return [*gate.plan_surveys(geometry, gaps), *gaps]

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        time.sleep(SECONDS * max(1, len(step.fractions)))
        if step.survey is not None:
            measured: Measured = {"at_mm": 0.0}
            return Prediction(measured=measured)
        return super().run(step, slices, limits)


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_a_slice_takes_at_least_its_share_of_the_threads(factor: int, at_once: int) -> None:
    (cut,) = leave_out(drifting(25), factor, "sub-sampled", TargetList(), 8)
    methods = {"linear": classical_methods()["linear"]}
    found = slice_times(Slow(), methods, cut, RunOptions(Limits(), at_once))
    steps = Slow().plan(cut.volume.geometry, Parameters(factor=factor))
    surveys = sum(step.survey is not None for step in steps)
    slices = (len(cut.volume) - 1) * (factor - 1)
    least = SECONDS * (1.0 + surveys / slices) / at_once
    assert found["slow"].wall >= 1000.0 * least
    assert found["linear"].wall < found["slow"].wall
