"""The generator: what holds exactly whatever its weights, and what its shipped weights bring."""

import dataclasses
import hashlib
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from inference.errors import ModelLoadError
from inference.model import Limits, Parameters, Step
from inference.models import classical
from inference.models import network as network_module
from inference.models.classical import Neighbourhood
from inference.models.gate import LEAST_HU
from inference.models.midslice import (
    SHIPPED_WEIGHTS,
    Midslice,
    inputs_of,
    planes_of,
)
from inference.models.network import Network
from inference.models.runtime import HALO, MARGIN
from inference.stacks import open_volume, read_headers, stacks_of
from inference.volume import Geometry, Plane, Volume
from node import demo
from tests.models.made import made_geometry, made_plane, made_planes, window_of

REAL_CT = Path(demo.__file__).parent / "data"
UNTRAINED = (classical.nearest, classical.linear, classical.cubic, classical.dis)


@pytest.fixture(scope="module")
def midslice() -> Midslice:
    return Midslice()


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> Midslice:
    """The same network with weights that nobody trained: guards must hold for it as well."""
    torch.manual_seed(3)
    network = Network()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    path = tmp_path_factory.mktemp("weights") / "wild.safetensors"
    save_file(network.state_dict(), path)
    return Midslice(path)


def near_of(geometry: Geometry, planes: list[Plane], step: Step) -> Neighbourhood:
    return Neighbourhood.of(step, window_of(geometry, planes, step))


def gap_of(midslice: Midslice, geometry: Geometry, gap: int, factor: int = 2) -> Step:
    steps = midslice.plan(geometry, Parameters(factor=factor))
    return next(step for step in steps if step.gap == gap)


def test_the_shipped_weights_are_named_by_their_digest(midslice: Midslice) -> None:
    digest = hashlib.sha256(SHIPPED_WEIGHTS.read_bytes()).hexdigest()
    assert midslice.weights_sha256 == digest


def test_the_model_card_names_the_shipped_weights() -> None:
    digest = hashlib.sha256(SHIPPED_WEIGHTS.read_bytes()).hexdigest()
    assert digest in SHIPPED_WEIGHTS.with_suffix(".md").read_text()


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="nothing.safetensors: the weights cannot be read"):
        Midslice(tmp_path / "nothing.safetensors")


def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.safetensors"
    path.write_bytes(b"not weights at all")
    with pytest.raises(ModelLoadError, match="not a safetensors file"):
        Midslice(path)


def test_the_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"layer.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(ModelLoadError, match="not the weights of midslice"):
        Midslice(path)


@pytest.mark.parametrize(("t", "place"), [(0.0, 0), (1.0, 1)], ids=["A", "C"])
def test_the_end_points_are_the_received_slices(wild: Midslice, t: float, place: int) -> None:
    geometry = made_geometry(4, 72, 80)
    planes = made_planes(geometry)
    near = near_of(geometry, planes, gap_of(wild, geometry, 1))
    ends = Step(needs=(0, 1, 2, 3), gap=1, fractions=(t,))
    (plane,) = wild.run(ends, window_of(geometry, planes, ends), Limits()).planes
    assert np.array_equal(np.rint(plane), np.rint(near.planes[place]))


def test_pixels_are_parted_and_joined_as_torch_does() -> None:
    planes = torch.arange(2 * 3 * 8 * 12, dtype=torch.float32).reshape(2, 3, 8, 12)
    parted = network_module.halved(planes)
    assert torch.equal(parted, torch.pixel_unshuffle(planes, 2))
    assert torch.equal(network_module.doubled(parted), planes)


def test_the_untrained_network_is_close_to_the_flow_blend() -> None:
    geometry = made_geometry(4)
    planes = made_planes(geometry)
    step = Step(needs=(0, 1, 2, 3), gap=1, fractions=(0.5,))
    near = near_of(geometry, planes, step)
    given = inputs_of(near, 0.5)
    with torch.inference_mode():
        made, _ = Network()(
            torch.from_numpy(given.planes)[None],
            torch.from_numpy(given.conditions)[None],
            torch.from_numpy(given.cubic.copy())[None],
        )
    flow = classical.dis(near, 0.5)
    far = np.abs(classical.linear(near, 0.5) - flow).mean()
    assert np.abs(made[0, 0].numpy() - flow).mean() < 0.3 * far


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_z_reversed_gives_the_same_slices_in_reverse(midslice: Midslice, factor: int) -> None:
    geometry = made_geometry(5, 80, 72, gaps_mm=[3.0, 5.0, 5.0, 4.0])
    planes = made_planes(geometry)
    back = made_geometry(5, 80, 72, gaps_mm=[4.0, 5.0, 5.0, 3.0])
    here, there = gap_of(midslice, geometry, 1, factor), gap_of(midslice, back, 2, factor)
    forth = midslice.run(here, window_of(geometry, planes, here), Limits()).planes
    reverse = midslice.run(there, window_of(back, planes[::-1], there), Limits()).planes
    for one, other in zip(forth, reverse[::-1], strict=True):
        assert np.abs(one - other).max() < 0.01  # HU


@pytest.mark.parametrize("shear_mm", [0.0, 1.1])
def test_no_value_lies_outside_what_the_neighbours_hold_nearby(
    wild: Midslice, shear_mm: float
) -> None:
    geometry = made_geometry(4, 96, 96, shear_mm=shear_mm)
    planes = made_planes(geometry)
    step = gap_of(wild, geometry, 1, 4)
    near = near_of(geometry, planes, step)
    made = wild.run(step, window_of(geometry, planes, step), Limits()).planes
    clipped = 0
    for t, plane in zip(step.fractions, made, strict=True):
        low, high = classical.envelope(near, t)
        assert ((low <= plane) & (plane <= high)).all()
        clipped += int(((plane == low) | (plane == high)).sum())
    assert clipped > 0  # the wild network did try


def test_the_envelope_holds_what_lies_within_its_radius() -> None:
    geometry = made_geometry(2, 40, 40)
    planes = [np.zeros((40, 40), np.float32) for _ in range(2)]
    planes[0][20, 20] = 900.0
    step = Step(needs=(0, 1), gap=0, fractions=(0.5,))
    low, high = classical.envelope(near_of(geometry, planes, step), 0.5)
    assert high[24, 16] == 900.0
    assert high[25, 20] == 0.0
    assert (low == 0.0).all()


def test_metal_above_what_the_network_sees_is_kept(midslice: Midslice) -> None:
    geometry = made_geometry(4)
    planes = [made_plane(geometry, 0.0) for _ in range(4)]
    for plane in planes:
        plane[28:36, 28:36] = 9000.0
    step = gap_of(midslice, geometry, 1)
    (made,) = midslice.run(step, window_of(geometry, planes, step), Limits()).planes
    assert made[30:34, 30:34].min() > 8500.0


def test_the_network_never_sees_what_it_was_not_trained_on() -> None:
    geometry = made_geometry(4)
    planes = [plane * 10.0 for plane in made_planes(geometry)]
    step = Step(needs=(0, 1, 2, 3), gap=1, fractions=(0.5,))
    seen = planes_of(near_of(geometry, planes, step), 0.5)
    assert seen.shape == (6, 64, 64)
    assert seen.min() == -1024.0
    assert seen.max() == 3071.0


def test_a_missing_neighbour_is_told_and_replaced_by_its_nearest() -> None:
    geometry = made_geometry(3)
    planes = made_planes(geometry)
    step = Step(needs=(0, 1, 2), gap=0, fractions=(0.25,))
    near = near_of(geometry, planes, step)
    given = inputs_of(near, 0.25)
    assert given.conditions[4:].tolist() == [0.0, 1.0]
    assert np.array_equal(given.planes[0], given.planes[1])
    assert given.cubic[0] == 0.0


def test_a_tile_sees_more_than_the_network_reaches() -> None:
    """Where a pixel's input changes, the output changes nowhere beyond the halo."""
    torch.manual_seed(1)
    network = Network()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    planes = torch.zeros(1, 6, 320, 320)
    poked = planes.clone()
    poked[..., 160, 160] = 500.0
    conditions, cubic = torch.full((1, 6), 0.5), torch.tensor([[0.0, 0.5, 0.5, 0.0]])
    with torch.inference_mode():
        reached = (network(poked, conditions, cubic)[1] != network(planes, conditions, cubic)[1])[
            0, 0
        ].nonzero()
    assert (reached - 160).abs().max() < HALO
    assert (reached - 160).abs().max() > MARGIN  # the poke did go somewhere


def test_the_scale_comes_with_each_slice_and_is_larger_where_neighbours_disagree(
    midslice: Midslice,
) -> None:
    geometry = made_geometry(4, 96, 96)
    planes = made_planes(geometry)
    step = gap_of(midslice, geometry, 1, 3)
    prediction = midslice.run(step, window_of(geometry, planes, step), Limits())
    assert len(prediction.scale_hu) == 2
    edge = np.abs(planes[1] - planes[2]) > 300.0
    for scale in prediction.scale_hu:
        assert scale.shape == (96, 96)
        assert (scale > 0.0).all()
        assert scale[edge].mean() > 2.0 * scale[~edge].mean()


def opened(folder: Path) -> Volume:
    (stack,) = stacks_of(read_headers(sorted(folder.glob("*.dcm"))))
    return open_volume(stack)


def test_the_shipped_weights_beat_every_untrained_method_on_a_real_chest(
    midslice: Midslice,
) -> None:
    """The demonstration's chest was never trained on; the slices between were acquired as well."""
    received, acquired = opened(REAL_CT / "received"), opened(REAL_CT / "acquired")
    planes = [received.read(index) for index in range(len(received))]
    gains: dict[str, list[float]] = defaultdict(list)
    for gap in (4, 11, 18):
        step = gap_of(midslice, received.geometry, gap)
        near = near_of(received.geometry, planes, step)
        middle = received.geometry.distances_mm[gap : gap + 2].mean()
        truth = acquired.read(int(np.abs(acquired.geometry.distances_mm - middle).argmin()))
        window = window_of(received.geometry, planes, step)
        (made,) = midslice.run(step, window, Limits()).planes
        linear = float(np.square(classical.linear(near, 0.5) - truth).mean())
        for name, plane in {
            "midslice": made,
            **{method.__name__: method(near, 0.5) for method in UNTRAINED},
        }.items():
            error = float(np.square(plane - truth).mean())
            gains[name].append(10.0 * np.log10(linear / error))
    means = {name: float(np.mean(found)) for name, found in gains.items()}
    assert means["midslice"] == max(means.values())
    assert means["midslice"] > 1.2  # dB over linear


def test_cubic_follows_a_parabola_on_unequal_gaps() -> None:
    distances = {-1: -3.0, 0: 0.0, 1: 5.0, 2: 7.0}
    values = np.array([distances[place] ** 2 for place in sorted(distances)])
    for t in (0.0, 0.2, 0.5, 0.9, 1.0):
        weights = classical.cubic_weights(distances, t)
        assert weights.sum() == pytest.approx(1.0, abs=1e-6)
        assert weights @ values == pytest.approx((5.0 * t) ** 2, abs=1e-4)


def test_cubic_is_linear_between_two_slices_alone() -> None:
    weights = classical.cubic_weights({0: 0.0, 1: 4.0}, 0.3)
    assert weights == pytest.approx([0.0, 0.7, 0.3, 0.0], abs=1e-6)


def test_cubic_at_an_end_of_the_stack_needs_no_missing_slice() -> None:
    weights = classical.cubic_weights({0: 0.0, 1: 4.0, 2: 8.0}, 0.5)
    assert weights[0] == 0.0
    line = weights @ np.array([99.0, 0.0, 4.0, 8.0])
    assert line == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize("before", [0.0, 0.3, 1.2])
def test_a_neighbour_that_almost_touches_does_not_bend_the_curve(before: float) -> None:
    """The slope between two slices 0.3 mm apart is noise, which a gap of 5 mm would magnify."""
    near = classical.cubic_weights({-1: -before, 0: 0.0, 1: 5.0, 2: 10.0}, 0.5)
    missing = classical.cubic_weights({0: 0.0, 1: 5.0, 2: 10.0}, 0.5)
    assert np.array_equal(near, missing)


def test_flow_finds_a_drift_and_its_blend_puts_the_body_half_way() -> None:
    geometry = made_geometry(2, 96, 96, gaps_mm=40.0)  # a drift of four pixels
    planes = made_planes(geometry, noise_hu=0.0)
    step = Step(needs=(0, 1), gap=0, fractions=(0.5,))
    near = near_of(geometry, planes, step)
    truth = made_plane(geometry, 20.0)
    blended = np.abs(classical.dis(near, 0.5) - truth).mean()
    assert blended < 0.4 * np.abs(classical.linear(near, 0.5) - truth).mean()


def test_nearest_takes_the_nearer_slice() -> None:
    geometry = made_geometry(2)
    planes = made_planes(geometry)
    near = near_of(geometry, planes, Step(needs=(0, 1), gap=0, fractions=(0.5,)))
    assert np.array_equal(classical.nearest(near, 0.4), planes[0])
    assert np.array_equal(classical.nearest(near, 0.5), planes[1])


def test_linear_is_the_weighted_mean_of_the_two_neighbours() -> None:
    geometry = made_geometry(4)
    planes = made_planes(geometry)
    model = classical.Linear()
    step = model.plan(geometry, Parameters(factor=4))[1]
    made = model.run(step, window_of(geometry, planes, step), Limits()).planes
    assert step.needs == (1, 2)
    for t, plane in zip((0.25, 0.5, 0.75), made, strict=True):
        assert np.allclose(plane, (1.0 - t) * planes[1] + t * planes[2], atol=1e-3)


@pytest.mark.parametrize("threads", [2, 4])
def test_flow_does_not_depend_on_the_number_of_threads(threads: int) -> None:
    geometry = made_geometry(2, 200, 200, gaps_mm=20.0)
    planes = made_planes(geometry, noise_hu=30.0)
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        alone = classical.flow_between(planes[0], planes[1])
        cv2.setNumThreads(threads)
        together = classical.flow_between(planes[0], planes[1])
    finally:
        cv2.setNumThreads(before)
    assert all(np.array_equal(*pair) for pair in zip(alone, together, strict=True))


@pytest.mark.parametrize(("beside_mm", "is_shown"), [(5.0, True), (10.0, True), (15.0, False)])
def test_received_slices_far_from_the_gap_are_not_shown_to_the_network(
    beside_mm: float, is_shown: bool
) -> None:
    """It was trained with P and N up to two gaps away; the cubic candidate knows their places."""
    geometry = made_geometry(4, gaps_mm=[beside_mm, 5.0, beside_mm])
    planes = made_planes(geometry)
    given = inputs_of(near_of(geometry, planes, Step((0, 1, 2, 3), 1, (0.25,))), 0.25)
    assert given.conditions[4:].tolist() == [float(is_shown)] * 2
    assert np.array_equal(given.planes[0], np.maximum(planes[0], LEAST_HU)) is is_shown
    assert np.array_equal(given.planes[3], np.maximum(planes[3], LEAST_HU)) is is_shown
    assert given.cubic[0] != 0.0


def test_slices_of_unknown_thickness_are_taken_to_fill_half_of_their_gap() -> None:
    geometry = made_geometry(4, gaps_mm=5.0)  # 2.5 mm thick
    step = Step((0, 1, 2, 3), 1, (0.5,))
    near = near_of(geometry, made_planes(geometry), step)
    unknown = dataclasses.replace(near, thickness_mm=None)
    assert inputs_of(near, 0.5).conditions.tolist() == inputs_of(unknown, 0.5).conditions.tolist()


@pytest.mark.parametrize("noise_hu", [0.0, 30.0])
def test_the_quick_search_finds_what_the_thorough_one_finds(noise_hu: float) -> None:
    """A slice and the same moved by a few pixels: both searches bring it back about as well."""
    plane = made_planes(made_geometry(1, 256, 256), noise_hu=noise_hu)[0]
    rows, columns = np.mgrid[:256, :256].astype(np.float32)
    bend = np.stack([3.0 * np.sin(rows / 40.0), 2.0 * np.cos(columns / 50.0)], axis=-1)
    moved = classical.sample(plane, bend.astype(np.float32))
    errors = {}
    for search in (classical.MEDIUM, classical.QUICK):
        _, back = classical.flow_between(plane, moved, search)
        again = classical.sample(plane, back)
        errors[search] = float(np.abs(again - moved)[16:-16, 16:-16].mean())
    unmoved = float(np.abs(plane - moved)[16:-16, 16:-16].mean())
    assert errors[classical.QUICK] < 1.1 * errors[classical.MEDIUM] < 0.6 * unmoved


@pytest.mark.parametrize("offset", [(3.0, -2.0), (0.0, 5.0)])
def test_a_shift_of_whole_pixels_moves_values_without_changing_them(
    offset: tuple[float, float],
) -> None:
    plane = made_planes(made_geometry(2, 40, 50))[0]
    moved = classical.shifted(plane, offset)
    rows, columns = int(offset[0]), int(offset[1])
    assert np.allclose(
        moved[8:-8, 8:-8], np.roll(plane, (-rows, -columns), (0, 1))[8:-8, 8:-8], atol=1e-3
    )
