"""What a generated slice keeps to, whatever a network says."""

import numpy as np
import pytest

from inference.model import Step
from inference.models import classical, gate
from inference.models.classical import Neighbourhood
from inference.models.midslice import inputs_of
from inference.volume import Plane
from tests.models.made import made_geometry, made_plane, made_planes, window_of

UNTRAINED = (classical.linear, classical.cubic, classical.dis)
STEP = Step(needs=(0, 1, 2, 3), gap=1, fractions=(0.5,))


def near_of(planes: list[Plane]) -> Neighbourhood:
    geometry = made_geometry(len(planes), *planes[0].shape)
    return Neighbourhood.of(STEP, window_of(geometry, planes, STEP))


def test_a_network_that_is_darker_on_the_whole_is_drawn_to_the_candidate_by_two_hu_at_most() -> (
    None
):
    candidate = made_plane(made_geometry(2, 128, 128), 0.0)
    assert np.allclose(
        gate.with_low_frequencies_of(candidate, candidate - 1.5), candidate, atol=1e-3
    )
    drawn = gate.with_low_frequencies_of(candidate, candidate - 9.0)
    assert np.allclose(drawn, candidate - 7.0, atol=1e-3)


def test_detail_that_only_the_network_has_survives_the_low_frequency_guard() -> None:
    candidate = np.zeros((128, 128), np.float32)
    plane = candidate.copy()
    plane[60:64, 60:64] = 300.0
    kept = gate.with_low_frequencies_of(candidate, plane)
    assert np.abs(kept - plane).max() <= gate.MOST_CORRECTION_HU
    assert kept[62, 62] > 297.0


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (33, 47), (130, 65)], ids=str)
def test_the_low_frequency_guard_takes_slices_of_any_size(shape: tuple[int, int]) -> None:
    plane = np.full(shape, 5.0, np.float32)
    drawn = gate.with_low_frequencies_of(np.zeros(shape, np.float32), plane)
    assert drawn.shape == shape
    assert np.allclose(drawn, 3.0)


def test_a_closed_gate_gives_the_flow_blend_and_an_open_one_the_network() -> None:
    blend, net = np.zeros((4, 4), np.float32), np.full((4, 4), 10.0, np.float32)
    assert np.array_equal(gate.gated(blend, net, 0.0), blend)
    assert np.array_equal(gate.gated(blend, net, 1.0), net)
    assert np.allclose(gate.gated(blend, net, 0.25), 2.5)


def test_the_classical_candidates_are_those_of_their_own_functions() -> None:
    geometry = made_geometry(4)
    planes = [plane + 300.0 for plane in made_planes(geometry)]  # nothing is clipped
    near = Neighbourhood.of(STEP, window_of(geometry, planes, STEP))
    given = inputs_of(near, 0.25)
    methods = {method.__name__: method for method in UNTRAINED}
    assert set(methods) == set(gate.CLASSICAL)
    for name, method in methods.items():
        found = gate.candidate(name, given.planes, given.cubic, 0.25)
        assert np.allclose(found, method(near, 0.25), atol=1e-2)


def test_metal_that_the_network_does_not_see_is_interpolated_linearly() -> None:
    planes = [np.full((32, 32), 4000.0 + 1000.0 * index, np.float32) for index in range(4)]
    seen = np.full((32, 32), gate.MOST_HU, np.float32)
    bounded = gate.bounded(near_of(planes), 0.25, seen)
    assert np.allclose(bounded, 0.75 * 5000.0 + 0.25 * 6000.0, atol=1e-2)


def test_values_below_what_the_network_sees_come_back_too() -> None:
    planes = [np.full((32, 32), -2000.0, np.float32) for _ in range(4)]
    seen = np.full((32, 32), gate.LEAST_HU, np.float32)
    assert np.allclose(gate.bounded(near_of(planes), 0.5, seen), -2000.0)


def test_the_envelope_is_that_of_values_which_are_not_clipped() -> None:
    planes = [np.zeros((32, 32), np.float32) for _ in range(4)]
    planes[1][10:20, 10:20] = 8000.0
    wild = np.full((32, 32), 9999.0, np.float32)
    bounded = gate.bounded(near_of(planes), 0.5, wild)
    assert bounded[15, 15] == 8000.0
    assert bounded[30, 30] == 0.0
