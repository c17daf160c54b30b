"""How sure the generator says that it is, and what that rests on."""

from dataclasses import replace

import numpy as np
import pytest

from inference.model import Limits, Measured, Parameters, Step
from inference.models import confidence
from inference.models.classical import Neighbourhood
from inference.models.confidence import Expectation, PlaceInGap
from inference.models.gate import Calibration
from inference.models.midslice import Midslice
from inference.runner import Runner
from inference.volume import Plane, Volume
from tests.models.made import made_geometry, made_plane, made_planes, window_of

FITTED = Calibration(factor=1.0, power=1.0, place=0.0, doubled=1.0, interval=2.0, is_fitted=True)


def surveyed(at_mm: float, true_over_expected: float, *, width: float = 2.0) -> Measured:
    return {
        "at_mm": at_mm,
        "expected_hu": 20.0,
        "true_hu": 20.0 * true_over_expected,
        "width": width,
    }


def body_plane() -> Plane:
    return made_plane(made_geometry(2, 128, 128), 0.0)


@pytest.mark.parametrize(
    ("error_hu", "expected"), [(0.0, 1.0), (60.0, 0.5), (20.0, 0.9), (180.0, 0.1)]
)
def test_confidence_falls_with_the_error_from_one_by_half_at_sixty_hu(
    error_hu: float, expected: float
) -> None:
    assert confidence.confidence_of(error_hu) == pytest.approx(expected, abs=1e-6)


def test_without_surveys_the_network_and_training_alone_are_believed() -> None:
    assert Expectation.of((), FITTED).error_hu(20.0, 0.0) == 20.0
    assert Expectation.of((), FITTED).interval == 2.0


def test_surveys_that_were_worse_than_expected_raise_the_expectation() -> None:
    worse = Expectation.of([surveyed(5.0 * i, 2.0) for i in range(16)], FITTED)
    better = Expectation.of([surveyed(5.0 * i, 0.5) for i in range(16)], FITTED)
    assert 30.0 < worse.error_hu(20.0, 40.0) <= 40.0
    assert 10.0 <= better.error_hu(20.0, 40.0) < 14.0


def test_one_survey_counts_less_than_many() -> None:
    one = Expectation.of([surveyed(0.0, 2.0)], FITTED).error_hu(20.0, 500.0)
    many = Expectation.of([surveyed(0.0, 2.0)] * 16, FITTED).error_hu(20.0, 500.0)
    assert 20.0 < one < many < 40.0


def test_a_survey_speaks_for_its_neighbourhood() -> None:
    """Errors rose at one end of the stack: slices there are expected to be worse."""
    uneven = [surveyed(10.0 * i, 2.0 if i >= 8 else 1.0) for i in range(16)]
    expectation = Expectation.of(uneven, FITTED)
    assert expectation.error_hu(20.0, 145.0) > 1.3 * expectation.error_hu(20.0, 5.0)


def test_an_error_at_twice_the_gap_is_brought_to_the_gap_by_what_training_found() -> None:
    halved = Calibration(doubled=0.5, interval=2.0, is_fitted=True)
    measures = [surveyed(5.0 * i, 1.0) for i in range(16)]
    here = Expectation.of(measures, halved).error_hu(20.0, 40.0)
    assert here < Expectation.of(measures, FITTED).error_hu(20.0, 40.0) == pytest.approx(20.0)


def test_surveys_with_wider_errors_widen_the_interval() -> None:
    wide = Expectation.of([surveyed(0.0, 1.0, width=4.0)] * 16, FITTED).interval
    assert 3.0 < wide < 4.0


def test_a_mixture_that_is_worse_than_the_network_is_expected_to_be() -> None:
    plane, scale = body_plane(), np.full(body_plane().shape, 20.0, np.float32)
    alone, mixed = (
        confidence.trusted(Expectation.of((), FITTED), plane, scale, PlaceInGap(0.5), 0.0, times)[0]
        for times in (1.0, 1.2)
    )
    assert mixed.error_hu == pytest.approx(1.2 * alone.error_hu)
    assert mixed.confidence < alone.confidence
    assert confidence.multiplied(alone, 1.2) == mixed


def test_a_middle_place_is_expected_to_be_worse_than_one_beside_a_received_slice() -> None:
    law = Calibration(place=0.2)
    scale = np.full((8, 8), 30.0, np.float32)
    body = np.ones((8, 8), np.float32)
    beside, middle = (confidence.own_hu(scale, body, PlaceInGap(t), law) for t in (0.1, 0.5))
    assert beside < middle == pytest.approx(30.0)


def test_slices_as_thick_as_their_gap_are_expected_to_be_nearer_the_truth() -> None:
    law = Calibration(overlap=-0.3)
    thin, thick = (confidence.law_hu(30.0, PlaceInGap(0.5, overlap), law) for overlap in (0.1, 1.0))
    assert thick < thin < 30.0


def test_thick_slices_are_nearer_the_truth_beside_a_received_one_than_thin_slices_are() -> None:
    law = Calibration(place=0.4, shared=0.3)

    def beside_over_middle(overlap: float) -> float:
        beside, middle = (confidence.law_hu(30.0, PlaceInGap(t, overlap), law) for t in (0.25, 0.5))
        return beside / middle

    assert beside_over_middle(0.0) == pytest.approx(0.75**0.4)
    assert beside_over_middle(1.0) == pytest.approx(0.75**0.7)


def test_the_overlap_is_that_of_thickness_and_gap_and_one_at_most() -> None:
    geometry = made_geometry(4, 8, 8, gaps_mm=5.0)  # 2.5 mm thick
    step = Step((0, 1, 2, 3), 1, (0.5,))
    planes = made_planes(geometry)
    near = Neighbourhood.of(step, window_of(geometry, planes, step))
    assert PlaceInGap.of(near, 0.5, 20.0).overlap == pytest.approx(0.5)
    assert PlaceInGap.of(replace(near, thickness_mm=9.0), 0.5, 20.0).overlap == 1.0
    assert PlaceInGap.of(replace(near, thickness_mm=None), 0.5, 20.0) == PlaceInGap(0.5)


@pytest.mark.parametrize("noise_hu", [10.0, 40.0, 120.0])
def test_the_noise_of_received_slices_is_found_beside_edges(noise_hu: float) -> None:
    geometry = made_geometry(4, 256, 256, gaps_mm=5.0)
    step = Step((0, 1, 2, 3), 1, (0.5,))
    planes = made_planes(geometry, noise_hu=noise_hu)
    near = Neighbourhood.of(step, window_of(geometry, planes, step))
    assert confidence.noise_of(near) == pytest.approx(noise_hu, rel=0.15)


def test_noisy_slices_are_expected_to_be_farther_from_the_truth() -> None:
    law = Calibration(noise=0.3)
    usual, noisy = (confidence.law_hu(30.0, PlaceInGap(0.5, 0.5, hu), law) for hu in (20.0, 80.0))
    assert usual == pytest.approx(30.0)
    assert noisy == pytest.approx(30.0 * 4.0**0.3)


def test_the_scale_of_a_slice_has_the_expected_error_as_its_mean_over_the_body() -> None:
    plane = body_plane()
    scale = np.where(plane > -500.0, 10.0, 2.0).astype(np.float32)
    trust, scaled = confidence.trusted(
        Expectation.of([surveyed(0.0, 2.0)] * 16, FITTED), plane, scale, PlaceInGap(0.5), 0.0
    )
    body = confidence.body_mask(plane)
    assert confidence.mean_over(scaled, body) == pytest.approx(trust.error_hu, rel=1e-4)
    assert trust.confidence == confidence.confidence_of(trust.error_hu)


def test_a_slice_without_a_body_has_an_expected_error_too() -> None:
    air = np.full((64, 64), -1000.0, np.float32)
    trust, scaled = confidence.trusted(
        Expectation.of((), FITTED), air, air * 0.0 + 3.0, PlaceInGap(0.5), 0.0
    )
    assert trust.error_hu == pytest.approx(3.0)
    assert np.isfinite(scaled).all()


def test_what_is_compared_is_the_body_alone() -> None:
    truth = body_plane()
    plane = truth.copy()
    plane[:4, :4] += 500.0  # in air, far from the body
    found = confidence.compared(plane, truth, np.ones_like(plane), PlaceInGap(0.5), FITTED)
    assert found["true_hu"] == confidence.LEAST_HU
    plane[60:68, 60:68] += 500.0
    assert (
        confidence.compared(plane, truth, np.ones_like(plane), PlaceInGap(0.5), FITTED)["true_hu"]
        > 1.0
    )


def test_a_little_more_than_ninety_percent_of_the_errors_lie_within_the_measured_width() -> None:
    random = np.random.default_rng(1)
    truth = np.full((256, 256), 40.0, np.float32)
    error = random.laplace(0.0, 25.0, truth.shape).astype(np.float32)
    found = confidence.compared(
        truth + error, truth, np.full_like(truth, 7.0), PlaceInGap(0.5), FITTED
    )
    inside = np.abs(error) <= found["width"] * np.abs(error).mean()
    assert 0.9 < inside.mean() < 0.93


def trust_of(noise_hu: float) -> list[float]:
    geometry = made_geometry(7, 96, 96)
    planes = made_planes(geometry, noise_hu=noise_hu)
    model = Midslice()
    steps = model.plan(geometry, Parameters(factor=2))
    runner = Runner(model, Volume(geometry, lambda index: planes[index].copy()), Limits())
    found = [p for _, p in runner.predictions(steps, cancelled=lambda: False)]
    return [trust.error_hu for prediction in found for trust in prediction.trust]


def test_the_shipped_model_expects_more_error_where_slices_are_noisier() -> None:
    calm, noisy = trust_of(5.0), trust_of(60.0)
    assert len(calm) == len(noisy) == 6
    assert min(noisy) > 2.0 * max(calm)


def test_the_expected_error_of_a_made_stack_is_near_the_true_one() -> None:
    """Noise cannot be known: of a slice with white noise its own noise is what is left over."""
    noise = 40.0
    expected = float(np.mean(trust_of(noise)))
    least = noise * np.sqrt(2.0 / np.pi)  # mean absolute value of normal noise
    assert 0.7 * least < expected < 1.8 * least
