"""What the map of the expected error says is compared with the truth, square by square."""

import numpy as np
import pytest

from inference.training.reliability import bound_counts, map_bounds, reliability, squares_of
from inference.volume import Plane

SIDE = 64


def body() -> Plane:
    """Soft tissue with air around it."""
    plane = np.full((SIDE, SIDE), -1000.0, np.float32)
    plane[8:56, 8:56] = 40.0
    return plane


def test_squares_of_the_body_alone_are_compared() -> None:
    truth = body()
    expected = np.full(truth.shape, 30.0, np.float32)
    said, true = squares_of(expected, truth + np.float32(12.0), truth)
    assert len(said) == (48 // 4) ** 2
    assert said == pytest.approx(np.full(len(said), 30.0))
    assert true == pytest.approx(np.full(len(true), 12.0))


def test_each_band_has_what_is_said_and_what_is_true_there() -> None:
    truth = body()
    expected = np.full(truth.shape, 8.0, np.float32)
    expected[:32], off = 80.0, np.zeros_like(truth)
    off[:32] = 100.0
    off[:, :32] = 50.0
    low, high = reliability([squares_of(expected, truth + off, truth)])
    assert (low.name, low.expected_hu, low.true_hu, low.far) == ("5 to 10", 8.0, 25.0, 0.0)
    assert (high.name, high.expected_hu, high.true_hu, high.far) == ("60 to 100", 80.0, 75.0, 0.5)
    assert low.squares == high.squares == 72


def test_a_model_that_says_nothing_has_no_bands() -> None:
    assert reliability([]) == ()


def test_bounds_hold_where_the_pixels_that_they_speak_of_keep_them() -> None:
    truth = body()
    expected = np.full(truth.shape, 5.0, np.float32)  # times 3: within 15 HU
    expected[:32] = 50.0  # within 150 HU: more than 100
    off = np.full(truth.shape, 8.0, np.float32)
    off[8:12, 8:56] = 200.0
    counts = bound_counts(expected, 3.0, truth + off, truth)
    bounds = map_bounds([counts, counts])
    assert bounds is not None and bounds.holds
    assert bounds.within == (1.0, 1.0)
    assert bounds.said_within == (0.5, 0.5)
    assert (bounds.large_said, bounds.said_large) == (1.0, 0.5)


def test_bounds_are_missed_by_one_tenth_too_many_and_by_large_errors_unsaid() -> None:
    truth = body()
    expected = np.full(truth.shape, 5.0, np.float32)
    off = np.zeros_like(truth)
    off[8:14, 8:56] = 30.0  # an eighth of the body
    bounds = map_bounds([bound_counts(expected, 3.0, truth + off, truth)])
    assert bounds is not None and not bounds.holds
    assert bounds.within == (0.875, 1.0)
    assert bounds.large_said is None
    off[8:20, 8:56], expected[:12] = 200.0, 50.0  # a third of them is said
    bounds = map_bounds([bound_counts(expected, 3.0, truth + off, truth)])
    assert bounds is not None and not bounds.holds
    assert bounds.large_said == pytest.approx(1.0 / 3.0)


def test_a_model_without_a_map_has_no_bounds() -> None:
    assert map_bounds([]) is None
