"""How far a series may trust the network: what surveys measure, and what is made of them."""

from dataclasses import replace

import numpy as np
import pytest

from inference.model import Limits, Measured, Parameters, Step
from inference.models import gate
from inference.models.classical import plan_gaps
from inference.models.gate import Calibration
from inference.models.midslice import Midslice
from inference.runner import Runner
from inference.volume import Volume
from tests.models.made import made_geometry, made_planes, window_of

PRIOR = Calibration(weight=0.9, apart=0.2, strength=4.0, is_fitted=True)


def surveys(slices: int, factor: int = 2) -> tuple[Step, ...]:
    geometry = made_geometry(slices)
    gaps = plan_gaps(geometry, Parameters(factor=factor), reach=2)
    return gate.plan_surveys(geometry, gaps)


def measured(
    best: float, *, apart: float = 100.0, square: float = 500.0, at_mm: float = 0.0
) -> Measured:
    """A survey for which the mixture of that weight is the best."""
    return {
        "at_mm": at_mm,
        "square_dis": square,
        "square_linear": square * 1.5,
        "square_cubic": square * 1.4,
        "square_net": square - 2.0 * best * apart + apart,
        "along": best * apart,
        "apart": apart,
    }


@pytest.mark.parametrize("slices", [2, 3, 4])
def test_a_stack_of_fewer_than_five_slices_is_not_surveyed(slices: int) -> None:
    assert surveys(slices) == ()


@pytest.mark.parametrize(
    ("slices", "factor", "count"), [(5, 2, 3), (40, 2, 9), (200, 2, 16), (20, 8, 16)]
)
def test_surveys_are_a_sample_of_the_stack(slices: int, factor: int, count: int) -> None:
    found = surveys(slices, factor)
    left_out = [step.survey for step in found]
    assert len(found) == count
    assert left_out == sorted(set(left_out))
    assert left_out[0] == 1
    assert left_out[-1] == slices - 2


def test_a_survey_needs_the_slice_and_two_neighbours_on_either_side() -> None:
    assert [step.needs for step in surveys(5)] == [(0, 1, 2, 3), (0, 1, 2, 3, 4), (1, 2, 3, 4)]
    assert all(step.gap is None and step.fractions == () for step in surveys(5))


def test_only_what_is_filled_is_surveyed() -> None:
    """A series of which one end alone is wide spends nothing on the other."""
    geometry = made_geometry(30, gaps_mm=[1.0] * 20 + [5.0] * 9)
    gaps = plan_gaps(geometry, Parameters(target_spacing_mm=2.5), reach=2)
    found = gate.plan_surveys(geometry, gaps)
    assert found
    assert min(step.survey or 0 for step in found) >= 19


def test_without_surveys_the_prior_serves_alone() -> None:
    decided = gate.decided((), PRIOR)
    assert (decided.weight, decided.classical, decided.surveyed) == (0.9, "dis", 0)


@pytest.mark.parametrize("best", [-1.0, 0.0, 0.4, 1.0, 3.0])
def test_surveys_draw_the_weight_from_the_prior_to_their_own(best: float) -> None:
    few = gate.decided([measured(best)] * 3, PRIOR).weight
    many = gate.decided([measured(best)] * 400, PRIOR).weight
    aim = min(1.0, max(0.0, best))
    assert abs(many - aim) < 0.02
    assert abs(few - aim) <= abs(PRIOR.weight - aim)
    assert 0.0 <= few <= 1.0


def test_surveys_in_which_the_network_is_the_flow_blend_say_nothing() -> None:
    assert gate.decided([measured(0.0, apart=0.0)] * 16, PRIOR).weight == pytest.approx(0.9)


def test_the_best_classical_candidate_is_that_of_the_surveys() -> None:
    cubic = {**measured(0.5), "square_cubic": 10.0}
    linear = {**measured(0.5), "square_linear": 10.0}
    assert gate.decided([cubic, cubic, linear], PRIOR).classical == "cubic"
    assert gate.decided([linear, linear, cubic], PRIOR).classical == "linear"


def test_the_best_weight_is_the_one_that_leaves_the_least_error() -> None:
    """The errors that a survey measures are those of the mixture, whatever its weight."""
    random = np.random.default_rng(0)
    truth, blend = (random.normal(0.0, 50.0, (40, 40)).astype(np.float32) for _ in range(2))
    net = truth + random.normal(0.0, 20.0, truth.shape).astype(np.float32)
    classical = {"dis": blend, "linear": blend, "cubic": blend}
    found = gate.errors_of(truth, net, classical)
    for weight in (0.0, 0.3, 1.0):
        mixture = blend + np.float32(weight) * (net - blend)
        direct = float(np.square(mixture - truth).mean())
        told = found["square_dis"] - 2.0 * weight * found["along"] + weight**2 * found["apart"]
        assert told == pytest.approx(direct, rel=1e-3)
    assert found["square_net"] == pytest.approx(np.square(net - truth).mean(), rel=1e-4)


def test_the_error_of_the_mixture_is_told_beside_the_networks() -> None:
    assert gate.mixed_error((), 0.3, 0.0) == 1.0
    assert gate.mixed_error([measured(0.5)], 1.0, 0.0) == pytest.approx(1.0)
    assert gate.mixed_error([measured(0.5)], 0.5, 0.0) < 1.0
    # as good as the network
    assert gate.mixed_error([measured(0.5)], 0.0, 0.0) == pytest.approx(1.0)


def along_z(worse_from_mm: float) -> list[Measured]:
    """A network that serves the series but for its upper part, where flow alone is better."""
    places = [10.0 * place for place in range(16)]
    return [measured(-0.5 if z >= worse_from_mm else 1.0, at_mm=z) for z in places]


def test_where_the_network_fails_in_a_part_of_a_series_it_is_not_asked_there() -> None:
    surveyed = along_z(120.0)
    series = gate.decided(surveyed, PRIOR)
    low, edge, high = (gate.at_height(surveyed, series, z).weight for z in (20.0, 112.0, 145.0))
    assert high < 0.1 < edge < 0.9 < low
    assert low > series.weight > high
    assert gate.at_height((), series, 20.0) == series


def test_a_series_alike_everywhere_has_one_weight() -> None:
    surveyed = [measured(0.6, at_mm=10.0 * place) for place in range(16)]
    series = gate.decided(surveyed, PRIOR)
    weights = [gate.at_height(surveyed, series, z).weight for z in (-20.0, 0.0, 75.0, 200.0)]
    assert weights == pytest.approx([series.weight] * 4, abs=0.08)


def test_a_candidate_is_expected_to_be_as_wrong_as_the_surveys_near_it_found() -> None:
    surveyed = along_z(120.0)
    low, high = (gate.classical_error(surveyed, "dis", z) for z in (10.0, 150.0))
    assert high < 1.0 < low
    assert gate.classical_error((), "dis", 10.0) == 1.0


def test_a_series_that_misleads_the_network_gets_the_flow_blend() -> None:
    """Where the network makes slices worse than flow alone, its weight falls below the prior's."""
    spoiled = [
        {**measured(-0.5, at_mm=float(i)), "expected_hu": 10.0, "true_hu": 10.0, "width": 2.0}
        for i in range(16)
    ]
    assert gate.decided(spoiled, PRIOR).weight < 0.1


def test_a_survey_compares_with_the_slice_that_was_left_out_and_never_sees_it() -> None:
    geometry = made_geometry(5, 64, 64)
    planes = made_planes(geometry)
    model = Midslice()
    step = Step(needs=(0, 1, 2, 3, 4), survey=2)
    told = model.run(step, window_of(geometry, planes, step), Limits()).measured
    changed = [plane.copy() for plane in planes]
    changed[2] = changed[2] + 500.0
    other = model.run(step, window_of(geometry, changed, step), Limits()).measured
    assert other["apart"] == pytest.approx(
        told["apart"], rel=1e-6
    )  # what was predicted is the same
    assert other["square_net"] > 100.0 * told["square_net"]  # what it is compared with is not


def test_a_survey_at_an_end_has_one_neighbour_less() -> None:
    geometry = made_geometry(5, 64, 64)
    planes = made_planes(geometry)
    for step in surveys(5):
        told = Midslice().run(step, window_of(geometry, planes, step), Limits()).measured
        assert all(np.isfinite(value) for value in told.values())
        assert told["at_mm"] == geometry.distances_mm[step.survey or 0]


def test_a_job_surveys_before_it_fills_and_every_gap_is_told() -> None:
    geometry = made_geometry(6, 64, 64)
    planes = made_planes(geometry)
    model = Midslice()
    steps = model.plan(geometry, Parameters(factor=2))
    runner = Runner(model, Volume(geometry, lambda index: planes[index].copy()), Limits())
    records = [found.record for _, found in runner.predictions(steps, cancelled=lambda: False)]
    assert len(records) == 5
    assert records[0]["surveyed"] == 3
    assert all(record == records[0] for record in records)


def test_each_slice_says_the_weight_that_it_was_mixed_with() -> None:
    geometry = made_geometry(8, 64, 64, gaps_mm=20.0)
    planes = made_planes(geometry)
    model = Midslice()
    step = next(s for s in model.plan(geometry, Parameters(factor=2)) if s.gap == 6)
    window = replace(window_of(geometry, planes, step), surveyed=tuple(surveys_along_z()))
    (weight,) = model.run(step, window, Limits()).weights
    series = gate.decided(window.surveyed, model.calibration)
    assert weight == gate.at_height(window.surveyed, series, 130.0).weight < series.weight


def surveys_along_z() -> list[Measured]:
    told = {"expected_hu": 10.0, "true_hu": 10.0, "width": 2.0}
    return [{**each, **told} for each in along_z(120.0)]
