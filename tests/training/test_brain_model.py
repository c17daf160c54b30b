"""Brain extraction: axes, the shape of a mask, what is refused, and a real head."""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from inference import mr
from inference.dataset import Stack, read_headers
from inference.errors import ModelLoadError, Reason, Unprocessable
from inference.model import Limits, Parameters, Prediction, Step, Window
from inference.models.brain.brain import SHIPPED_WEIGHTS, Brain, box_around, sampled
from inference.models.brain.canonical import Straight, Turn, steps_mm
from inference.models.brain.extraction import extract
from inference.models.brain.linknet import LinkNet
from inference.models.brain.mask import Measures, clean, doubts, measure
from inference.models.brain.unet import BrainUNet
from inference.pixels import PixelReader
from inference.stacks import open_volume
from inference.training.masks import outside_head_cm3
from inference.volume import Geometry
from tests import mr_series
from tests.mr_series import ball
from tests.series import RECEIVED

T = TypeVar("T", bound=np.generic)

AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
SAGITTAL = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0))
CORONAL = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0))
OBLIQUE = ((0.98, 0.17, 0.1), (-0.18, 0.98, 0.09))


def geometry(
    orientation: tuple[tuple[float, ...], ...] = AXIAL,
    slices: int = 60,
    gap_mm: float = 2.0,
    pixel_mm: float = 1.0,
    side: int = 64,
) -> Geometry:
    directions = np.array(orientation)
    normal = np.cross(*directions)
    positions = np.outer(np.arange(slices) * gap_mm, normal) + np.array([-90.0, -100.0, -80.0])
    return Geometry(positions, directions, (pixel_mm, pixel_mm * 1.25), side, side + 8)


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, CORONAL, OBLIQUE], ids=str)
def test_the_turned_axes_run_to_right_anterior_superior(
    orientation: tuple[tuple[float, ...], ...],
) -> None:
    """Each voxel holds its own place in the patient: R, A and S are -x, -y and z."""
    grid = geometry(orientation, slices=5, side=6)
    indices = np.stack(np.meshgrid(range(5), range(6), range(14), indexing="ij"), -1)
    places = grid.positions[0] + indices @ steps_mm(grid)
    turn = Turn.of(grid)
    for axis, sign in enumerate((-1.0, -1.0, 1.0)):
        turned = turn.turned(sign * places[..., axis])
        steps = np.diff(turned, axis=axis)
        assert (steps > 0).all()
        assert steps.mean() == pytest.approx(turn.spacing_mm[axis], rel=0.05)


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, CORONAL, OBLIQUE], ids=str)
def test_turning_back_gives_the_stack_again(orientation: tuple[tuple[float, ...], ...]) -> None:
    volume = np.random.default_rng(1).random((5, 6, 7))
    turn = Turn.of(geometry(orientation, slices=5))
    np.testing.assert_array_equal(turn.back(turn.turned(volume)), volume)


def sheared(geometry_: Geometry, degrees: float) -> Geometry:
    """The same planes, each further down the rows than the one before."""
    aside = np.tan(np.radians(degrees)) * (geometry_.distances_mm - geometry_.distances_mm[0])
    positions = geometry_.positions + np.outer(aside, geometry_.orientation[1])
    return replace(geometry_, positions=positions)


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, CORONAL, OBLIQUE], ids=str)
def test_a_sheared_stack_is_straightened_for_the_network_and_its_mask_comes_back(
    orientation: tuple[tuple[float, ...], ...],
) -> None:
    """An upright ball: the network sees it round, the mask has it where the slices show it."""
    grid = sheared(geometry(orientation, slices=50, side=90), 20.0)
    indices = np.stack(np.meshgrid(range(50), range(90), range(98), indexing="ij"), -1)
    steps = np.stack([grid.positions[1] - grid.positions[0], *steps_mm(grid)[1:]])
    places = grid.positions[0] + indices @ steps
    middle = places[25, 45, 49]
    ball_ = np.linalg.norm(places - middle, axis=-1) < 28.0
    seen: list[NDArray[np.bool_]] = []

    def network(
        volume: NDArray[np.float32], spacing_mm: tuple[float, ...], device: str
    ) -> NDArray[np.float32]:
        seen.append(volume > 0.5)
        return volume

    extraction = extract(ball_.astype(np.float32), grid, network)
    sides = [np.ptp(np.flatnonzero(seen[0].any((*{0, 1, 2} - {axis},)))) + 1 for axis in range(3)]
    spacing = Turn.of(Straight.of(grid).geometry).spacing_mm
    np.testing.assert_allclose(np.multiply(sides, spacing), 56.0, atol=3.0)
    assert (extraction.mask & ball_).sum() / (extraction.mask | ball_).sum() > 0.97
    assert extraction.measures.volume_cm3 == pytest.approx(4 / 3 * np.pi * 2.8**3, rel=0.03)


def test_a_stack_whose_slices_lie_behind_each_other_is_not_interpolated() -> None:
    volume = np.random.default_rng(1).random((5, 6, 14), np.float32)
    straight = Straight.of(geometry(OBLIQUE, slices=5, side=6))
    assert straight.straightened(volume) is volume
    assert straight.back(volume, 6, 14) is volume


def test_a_mask_is_its_largest_part_without_holes() -> None:
    mask = ball((40, 40, 40), 0.5)
    mask[18:22, 18:22, 18:22] = False
    mask[2:4, 2:4, 2:4] = True
    cleaned, share = clean(mask)
    np.testing.assert_array_equal(cleaned, ball((40, 40, 40), 0.5))
    assert share == pytest.approx(1.0 - 8 / mask.sum())


def test_a_hole_that_is_open_to_the_outside_stays_open() -> None:
    mask = np.ones((9, 9, 9), bool)
    mask[4, 4, :] = False
    np.testing.assert_array_equal(clean(mask)[0], mask)


def test_nothing_is_no_mask() -> None:
    cleaned, share = clean(np.zeros((4, 4, 4), bool))
    assert not cleaned.any()
    assert share == 0.0


def test_the_figures_of_a_ball_are_those_of_geometry() -> None:
    mask = ball((81, 81, 81), 0.8)  # a radius of 32 voxels
    probability = np.where(mask, np.float32(0.9), np.float32(0.2))
    head = np.where(ball((81, 81, 81), 0.9), np.float32(300.0), np.float32(5.0))
    figures = measure(mask, probability, 1.0, (2.0, 1.0, 1.0), head)
    assert figures.head_share == pytest.approx((0.8 / 0.9) ** 3, rel=0.03)
    assert figures.volume_cm3 == pytest.approx(4 / 3 * np.pi * 32**3 * 2 / 1000, rel=0.01)
    assert figures.hull_share == pytest.approx(1.0, abs=0.06)
    assert 0.8 < figures.shell_probability < 0.9
    assert figures.border_cm2 == 0.0


def test_a_brain_that_the_field_of_view_cuts_has_an_area_at_its_border() -> None:
    mask = ball((81, 81, 81), 0.8)[30:]
    figures = measure(mask, mask.astype(np.float32), 1.0, (1.0, 1.0, 1.0), mask.astype(np.float32))
    assert figures.border_cm2 == pytest.approx(np.pi * (32**2 - 10**2) / 100, rel=0.03)


def test_two_lobes_with_a_gap_between_fill_little_of_their_hull() -> None:
    mask = np.zeros((60, 60, 60), bool)
    mask[5:55, 5:55, 5:15] = mask[5:55, 5:55, 45:55] = mask[5:15, 5:55, 5:55] = True
    assert (
        measure(
            mask, mask.astype(np.float32), 1.0, (1.0, 1.0, 1.0), mask.astype(np.float32)
        ).hull_share
        < 0.7
    )


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 9), (1, 9, 9)], ids=str)
def test_a_mask_without_a_volume_fills_no_hull(shape: tuple[int, ...]) -> None:
    mask = np.zeros((12, 12, 12), bool)
    mask[tuple(slice(1, 1 + side) for side in shape)] = True
    figures = measure(mask, mask.astype(np.float32), 1.0, (1.0, 1.0, 1.0), mask.astype(np.float32))
    assert figures.hull_share == 0.0
    assert any("convex hull" in sentence for sentence in doubts(figures))


GOOD = Measures(1500.0, 0.5, 0.999, 0.98, 0.91, 0.5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"volume_cm3": 699.0}, "699 cm3"),
        ({"volume_cm3": 2201.0}, "2201 cm3"),
        ({"border_cm2": 5.1}, "the brain is cut"),
        ({"largest_share": 0.94}, "94%"),
        ({"shell_probability": 0.74}, "unsure of its surface"),
        ({"hull_share": 0.84}, "not the shape of a brain"),
        ({"head_share": 0.76}, "76% of all that is no air"),
    ],
    ids=str,
)
def test_each_figure_outside_its_range_is_one_doubt(change: dict[str, float], said: str) -> None:
    assert not doubts(GOOD)
    (sentence,) = doubts(replace(GOOD, **change))
    assert said in sentence


@pytest.mark.parametrize(
    ("change", "reason", "said"),
    [
        ({"slices": 39}, Reason.TOO_FEW_SLICES, "39 slices"),
        ({"gap_mm": 3.1}, Reason.OUT_OF_SCOPE, "3.10 mm apart"),
        ({"pixel_mm": 1.3}, Reason.OUT_OF_SCOPE, "1.62 mm wide"),
        ({"gap_mm": 1.0}, Reason.OUT_OF_SCOPE, "cover 59 mm"),
    ],
    ids=str,
)
def test_a_stack_that_shows_no_whole_brain_is_refused(
    change: dict[str, float], reason: Reason, said: str
) -> None:
    with pytest.raises(Unprocessable) as refused:
        Brain().plan(geometry(**change), Parameters())
    assert refused.value.reason is reason
    assert said in refused.value.sentence


def test_one_step_needs_the_whole_stack(brain: Brain) -> None:
    (step,) = brain.plan(geometry(), Parameters())
    assert step == Step(needs=tuple(range(60)))


def test_the_networks_are_those_whose_weights_were_published() -> None:
    tensors = load_file(SHIPPED_WEIGHTS)
    for part in ("box.", "brain."):
        state = {name.removeprefix(part) for name in tensors if name.startswith(part)}
        assert state == set(LinkNet().state_dict())
    assert sum(tensor.numel() for tensor in tensors.values()) == 2 * 2_126_258


def test_a_network_gives_a_probability_for_every_voxel() -> None:
    with torch.inference_mode():
        probability = LinkNet().eval()(torch.rand(1, 1, 32, 64, 32))
    assert probability.shape == (1, 32, 64, 32)
    assert 0.0 <= float(probability.min()) <= float(probability.max()) <= 1.0


def test_weights_that_are_no_such_network_are_named(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    for content, said in ((None, "cannot be read"), (b"no", "not a safetensors file")):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ModelLoadError, match=said):
            Brain(path)
    save_file({"box.x": torch.zeros(1)}, path)
    with pytest.raises(ModelLoadError, match="not the weights of brain"):
        Brain(path)


def test_sampling_takes_the_nearest_voxel() -> None:
    line = np.arange(6, dtype=np.float32)[:, None, None]
    assert sampled(line, (3, 1, 1)).ravel().tolist() == [1.0, 3.0, 5.0]
    assert sampled(line, (12, 1, 1)).ravel().tolist() == sorted([*range(6)] * 2)


def test_the_box_has_a_margin_and_stays_inside() -> None:
    small = np.zeros((10, 10, 10), bool)
    small[2:7, 0:5, 5:10] = True
    assert box_around(small, (100, 100, 100)) == (
        slice(15, 75),
        slice(0, 55),
        slice(45, 100),
    )


def test_where_nothing_is_found_the_stack_is_refused() -> None:
    with pytest.raises(Unprocessable) as refused:
        box_around(np.zeros((8, 8, 8), bool), (20, 20, 20))
    assert refused.value.reason is Reason.OUT_OF_SCOPE


# The real head, once for all tests below: it takes the two networks some seconds.


@pytest.fixture(scope="module")
def brain() -> Brain:
    return Brain()


@pytest.fixture(scope="module")
def head() -> tuple[NDArray[np.float32], Geometry]:
    headers = tuple(read_headers(sorted(mr_series.HEAD.glob("*.dcm"))))
    volume = mr.open_volume(mr.examine(Stack("head", headers)), PixelReader())
    return np.stack([volume.read(index) for index in range(len(volume))]), volume.geometry


@pytest.fixture(scope="module")
def prediction(brain: Brain, head: tuple[NDArray[np.float32], Geometry]) -> Prediction:
    return run(brain, *head)


def run(brain: Brain, volume: NDArray[np.float32], grid: Geometry) -> Prediction:
    volume.setflags(write=False)
    (step,) = brain.plan(grid, Parameters())
    window = Window(grid, dict(enumerate(volume)))
    return brain.run(step, window, Limits())


def test_the_brain_of_a_real_head_is_found(
    prediction: Prediction, head: tuple[NDArray[np.float32], Geometry]
) -> None:
    """Volume and place as at the full resolution of the source: 1,792 cm3."""
    mask = np.stack(prediction.planes)
    assert mask.shape == head[0].shape
    assert set(np.unique(mask)) == {0.0, 1.0}
    figures = prediction.record["brain"]
    assert isinstance(figures, dict)
    assert figures["volume_cm3"] == pytest.approx(1792, rel=0.02)
    assert prediction.record["doubts"] == []
    assert (head[0][mask > 0] > 4).mean() > 0.98  # no air


def resliced(
    volume: NDArray[np.float32], grid: Geometry, axis: int
) -> tuple[NDArray[np.float32], Geometry]:
    """The same voxels in the same places, with rows or columns as slices, the last one first."""
    steps, other, last = steps_mm(grid), 3 - axis, volume.shape[axis] - 1
    lengths = np.linalg.norm(steps, axis=1)
    copy = Geometry(
        positions=grid.positions[0] + np.outer(last - np.arange(last + 1), steps[axis]),
        orientation=np.stack([steps[other] / lengths[other], steps[0] / lengths[0]]),
        pixel_spacing=(float(lengths[0]), float(lengths[other])),
        rows=volume.shape[0],
        columns=volume.shape[other],
    )
    return turned_as(volume, axis), copy


def turned_as(volume: NDArray[T], axis: int) -> NDArray[T]:
    return np.ascontiguousarray(np.flip(volume, axis).transpose(axis, 0, 3 - axis))


@pytest.mark.parametrize("axis", [1, 2], ids=["coronal", "sagittal"])
def test_a_copy_of_the_head_in_another_plane_has_the_same_brain(
    brain: Brain,
    prediction: Prediction,
    head: tuple[NDArray[np.float32], Geometry],
    axis: int,
) -> None:
    mask = extract(*resliced(*head, axis), brain.probability).mask
    np.testing.assert_array_equal(mask, turned_as(np.stack(prediction.planes) > 0, axis))


@pytest.fixture(scope="module")
def by_unet(head: tuple[NDArray[np.float32], Geometry]) -> Prediction:
    return run(BrainUNet(), *head)


def test_the_trained_network_finds_the_same_brain(
    prediction: Prediction, by_unet: Prediction, head: tuple[NDArray[np.float32], Geometry]
) -> None:
    """The head is one of those that it was trained on."""
    masks = [np.stack(one.planes) > 0 for one in (by_unet, prediction)]
    assert 2.0 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum()) > 0.92
    assert by_unet.record["doubts"] == []


@pytest.mark.parametrize("axis", [1, 2], ids=["coronal", "sagittal"])
def test_the_trained_network_knows_no_plane(
    by_unet: Prediction, head: tuple[NDArray[np.float32], Geometry], axis: int
) -> None:
    mask = extract(*resliced(*head, axis), BrainUNet().probability).mask
    np.testing.assert_array_equal(mask, turned_as(np.stack(by_unet.planes) > 0, axis))


def test_no_voxel_of_a_mask_lies_outside_of_the_head(
    prediction: Prediction, by_unet: Prediction, head: tuple[NDArray[np.float32], Geometry]
) -> None:
    volume, grid = head
    spacing = tuple(float(step) for step in np.linalg.norm(steps_mm(grid), axis=1))
    for made in (prediction, by_unet):
        assert outside_head_cm3(np.stack(made.planes) > 0, volume, spacing) < 0.5


def test_a_chest_has_no_brain(brain: Brain) -> None:
    """The network finds one in anything; what it finds there has not the shape of one."""
    headers = tuple(read_headers(sorted(RECEIVED.glob("*.dcm"))))
    chest = open_volume(Stack("chest", headers))
    volume = np.stack([chest.read(index) for index in range(len(chest))])
    try:
        result = extract(volume, chest.geometry, brain.probability)
    except Unprocessable as refused:
        assert refused.reason is Reason.OUT_OF_SCOPE
    else:
        assert doubts(result.measures)
