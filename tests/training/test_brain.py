"""Training and judging of brain extraction: windows, figures, folds, what is written."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from safetensors.torch import load_file
from torch import nn

from inference.errors import ModelLoadError
from inference.models.brain import unet
from inference.models.brain.unet import WINDOW, BrainUNet, UNet, predicted, resized, windows
from inference.training import brain as training
from inference.training import masks
from inference.training.brain import Augmentation, BrainPlan, Course, mask_loss, train
from inference.training.charts import write_lines
from inference.training.data import NoSeries
from inference.training.heads import Head, load_heads
from inference.volume import Geometry
from node import cli
from tests import mr_series
from tests.mr_series import ball
from tests.phantoms import Pixels, Series, raw_pixels

Grids = list[tuple[NDArray[np.float32], NDArray[np.float32]]]
SHAPE = (48, 56, 52)  # slices, rows, columns: a ball of a brain in a ball of a head
SPACING = (2.5, 1.4, 1.4)


def made_head(folder: Path, seed: int) -> Head:
    """A bright ball in a dim one, with noise, and the mask of the inner one."""
    brain, head = ball(SHAPE, 0.6), ball(SHAPE, 0.9)
    noise = default_rng(seed).normal(0.0, 15.0, SHAPE)
    values = np.where(brain, 600.0, np.where(head, 150.0, 0.0)) + noise
    stored = values.clip(0, 4095).astype(np.int64)

    def edit(made: Dataset, index: int) -> None:
        made.PixelData = raw_pixels(stored[index], 16)

    pixels = Pixels(bits=12, is_signed=False)
    series = Series(
        slices=SHAPE[0],
        spacing_mm=SPACING[0],
        rows=SHAPE[1],
        columns=SHAPE[2],
        pixel_mm=SPACING[1:],
        pixels=pixels,
        seed=f"head {seed}",
    )
    mr_series.write(folder / "dicom", edit, series)
    np.savez_compressed(folder / "brain.npz", brain=brain.astype(np.uint8))
    return Head(folder.name, folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("heads")
    for seed in (1, 2):
        made_head(root / f"head-{seed}", seed)
    return root


@pytest.fixture(scope="module")
def grids(data: Path) -> Grids:
    return [head.on_grid() for head in load_heads(data)]


def test_a_head_is_read_with_its_mask_in_the_order_of_its_places(data: Path) -> None:
    first, second = load_heads(data)
    assert (first.name, second.name) == ("head-1", "head-2")
    volume, mask = first.volume(), first.mask()
    assert volume.shape == mask.shape == SHAPE
    assert volume[mask].mean() == pytest.approx(600.0, abs=5.0)


def test_a_folder_without_heads_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(NoSeries, match="brain.npz"):
        load_heads(tmp_path)


def test_the_grid_is_two_millimetres_over_the_same_space(
    grids: Grids,
) -> None:
    image, share = grids[0]
    assert image.shape == share.shape == (36, 39, 60)  # right, anterior, superior
    assert 0.0 <= image.min() <= image.max() <= 1.0
    volume_mm3 = np.prod([side * mm for side, mm in zip(SHAPE, SPACING, strict=True)])
    expected = ball(SHAPE, 0.6).mean() * volume_mm3
    assert share.mean() * volume_mm3 == pytest.approx(expected, rel=0.01)


def test_a_bias_field_is_taken_out() -> None:
    head = np.where(ball((40, 40, 40), 0.9), np.float32(500.0), np.float32(0.0))
    slope = np.linspace(0.6, 1.4, 40, dtype=np.float32)[:, None, None]
    inside = ball((40, 40, 40), 0.8)
    before = (head * slope)[inside]
    after = unet.without_bias(head * slope)[inside]
    assert after.std() / after.mean() < 0.4 * before.std() / before.mean()


def test_windows_cover_a_volume_and_overlap() -> None:
    shape = (100, 96, 200)
    counted = np.zeros(shape, int)
    for window in windows(shape):
        assert counted[window].shape == WINDOW
        counted[window] += 1
    assert counted.min() >= 1
    assert counted[50, 48, 100] >= 2


def test_a_volume_smaller_than_a_window_is_predicted_whole() -> None:
    torch.manual_seed(1)
    probability = predicted(UNet().eval(), np.zeros((30, 40, 50), np.float32), "cpu")
    assert probability.shape == (30, 40, 50)
    assert np.isfinite(probability).all()


class Bright(nn.Module):
    """Takes for brain all that is bright."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x[:, 0] - 0.5) * 20.0


def test_far_from_the_brain_nothing_is_taken_for_one() -> None:
    grid = np.zeros((90, 100, 200), np.float32)
    grid[30:60, 30:70, 150:190] = 1.0
    grid[40:50, 40:50, 10:20] = 1.0  # more than a window away
    probability = predicted(Bright(), grid, "cpu")
    assert probability.shape == grid.shape
    assert probability[30:60, 30:70, 150:190].min() > 0.99
    assert probability[..., :90].max() == 0.0
    nothing = predicted(Bright(), np.zeros((30, 40, 50), np.float32), "cpu")
    assert 0.0 < nothing.max() < 0.01


def test_a_brain_at_the_edge_is_looked_at_with_air_behind_it() -> None:
    grid = np.zeros((80, 96, 110), np.float32)
    grid[0:70, :, :100] = 1.0  # wider than a window with its margin
    probability = predicted(Bright(), grid, "cpu")
    np.testing.assert_array_equal(probability > 0.5, grid > 0.5)


def test_resizing_keeps_means_downwards_and_places_upwards() -> None:
    volume = default_rng(0).random((8, 12, 10)).astype(np.float32)
    small = resized(volume, (4, 6, 5))
    np.testing.assert_allclose(small, volume.reshape(4, 2, 6, 2, 5, 2).mean((1, 3, 5)), rtol=1e-5)
    ramp = np.linspace(0, 1, 10, dtype=np.float32)[:, None, None] * np.ones((1, 4, 4), np.float32)
    large = resized(ramp, (20, 4, 4))
    assert (np.diff(large[:, 0, 0]) >= 0).all()


def test_a_window_is_altered_with_its_mask(
    grids: Grids,
) -> None:
    samples = Augmentation(grids, default_rng(3), "cpu")
    drawn = [samples.window() for _ in range(12)]
    contrasts = []
    for image, share in drawn:
        assert image.shape == (1, 1, *WINDOW)
        assert share.shape == (1, *WINDOW)
        assert 0.0 <= float(image.min()) <= float(image.max()) <= 1.0
        inner, outer = image[0, 0][share[0] > 0.9], image[0, 0][share[0] < 0.1]
        if len(inner) > 1000:
            contrasts.append(float(inner.mean() - outer.mean()))
    assert sum(contrast > 0.05 for contrast in contrasts) >= 0.7 * len(contrasts) > 3
    assert len({float(share.sum()) for _, share in drawn}) == 12


def test_the_loss_is_one_minus_dice_and_the_cross_entropy() -> None:
    share = torch.zeros(1, 64, 64, 64)
    share[:, :32] = 1.0
    assert float(mask_loss(share * 40.0 - 20.0, share)) == pytest.approx(0.0, abs=1e-3)
    assert float(mask_loss(20.0 - share * 40.0, share)) == pytest.approx(1.0 + 20.0, abs=0.01)
    half = torch.zeros(1, 64, 64, 64)
    half[:, :16] = 1.0
    assert float(mask_loss(half * 40.0 - 20.0, share)) == pytest.approx(1 / 3 + 5.0, abs=0.01)


def test_a_window_without_brain_teaches_too() -> None:
    """Wrong in a quarter of its voxels, it costs most of what a window can."""
    logits = torch.full((1, 32, 32, 32), -20.0)
    logits[:, :8] = 20.0
    nothing = torch.zeros(1, 32, 32, 32)
    assert float(mask_loss(logits, nothing)) > 0.75
    assert float(mask_loss(-20.0 * torch.ones_like(nothing), nothing)) < 1e-6


def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that a test has time for, in float32: at 2 x 4 x 4 voxels and less, which the lowest
    levels then have, oneDNN's gradients in bfloat16 are wrong."""
    monkeypatch.setattr(training, "WINDOW", (16, 32, 32))
    monkeypatch.setattr(training, "has_fast_bfloat16", lambda device: False)


def test_one_seed_gives_one_set_of_weights(
    grids: Grids,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_windows(monkeypatch)
    plans = (BrainPlan(steps=4, seed=5), BrainPlan(steps=4, seed=5), BrainPlan(steps=1, seed=6))
    courses = [train(grids, plan, lambda *_: None) for plan in plans]
    first, again, other = (course.weights for course in courses)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert len(courses[0].losses) == 4


class OneWindow:
    """The same window again and again."""

    def __init__(self, *_: object) -> None:
        share = torch.from_numpy(ball((16, 32, 32), 0.7).astype(np.float32))[None]
        self._window = share[None] * 0.6 + 0.1, share

    def window(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._window


def test_the_loss_of_one_window_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    small_windows(monkeypatch)
    monkeypatch.setattr(training, "Augmentation", OneWindow)
    losses = train([], BrainPlan(steps=15), lambda *_: None).losses
    assert losses[-1] < 0.9 * losses[0]


def test_training_leaves_each_head_out_and_writes_all_that_it_says(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small_windows(monkeypatch)
    trained_on: list[int] = []
    whole = training.train

    def counted(grids: Grids, plan: BrainPlan, progress: Callable[[float, float], None]) -> Course:
        trained_on.append(len(grids))
        return whole(grids, plan, progress)

    monkeypatch.setattr(training, "train", counted)
    options = ["--model", "brain-unet", "--steps", "2", "--device", "cpu", "--out", str(tmp_path)]
    assert cli.run(["train", str(data), *options]) == 0
    assert trained_on == [1, 1, 2]
    names = {"head-1.safetensors", "head-2.safetensors", "weights.safetensors", "card.md"}
    names |= {"curve.png", "curve.csv", "pr.png", "pr.csv", "evaluation.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert set(load_file(tmp_path / "weights.safetensors")) == set(UNet().state_dict())
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(record["means"]) == ["threshold and erosion", "brain", "brain-unet"]
    assert len(record["heads"]) == 6
    assert not any(head["seen"] for head in record["heads"])
    assert "| threshold and erosion | mean | 2 |" in (tmp_path / "card.md").read_text()
    said = capsys.readouterr().out
    assert "threshold and erosion" in said
    assert "silver standard" in said


def test_a_model_that_cannot_be_trained_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", "--model", "brain", str(tmp_path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--model brain: cannot be trained; known: midslice, brain-unet" in said


def test_figures_of_two_masks_are_those_of_geometry() -> None:
    reference = np.zeros((40, 40, 40), bool)
    reference[10:30, 10:30, 10:30] = True
    mask = np.roll(reference, 2, axis=0)
    figures = masks.compared(mask, reference, (1.5, 1.0, 1.0))
    assert figures.dice == pytest.approx(0.9)
    assert figures.iou == pytest.approx(0.9 / 1.1)
    assert figures.surface_95_mm == pytest.approx(3.0)
    assert figures.volume_off == 0.0
    assert masks.compared(reference, reference, (1.0, 1.0, 1.0)).surface_95_mm == 0.0


def test_the_baseline_finds_the_bright_ball(data: Path) -> None:
    head = load_heads(data)[0]
    figures = masks.compared(masks.thresholded(head.volume(), SPACING), head.mask(), SPACING)
    assert figures.dice > 0.9


def test_what_lies_in_the_air_around_the_head_is_measured(data: Path) -> None:
    head = load_heads(data)[0]
    volume, brain = head.volume(), head.mask()
    assert masks.outside_head_cm3(brain, volume, SPACING) == pytest.approx(0.0, abs=0.05)
    corner = np.zeros(SHAPE, bool)
    corner[:4, :10, :10] = True  # far from the ball
    expected_cm3 = 4 * 10 * 10 * np.prod(SPACING) / 1000.0
    found_cm3 = masks.outside_head_cm3(brain | corner, volume, SPACING)
    assert found_cm3 == pytest.approx(expected_cm3, rel=0.1)


def test_points_of_the_patient_are_counted_inside_and_nearby() -> None:
    positions = np.array([[0.0, 0.0, 2.0 * index] for index in range(20)])
    grid = Geometry(positions, np.eye(3)[:2], (1.0, 1.0), 20, 20)
    mask = np.zeros((20, 20, 20), bool)
    mask[5:10, 5:10, 5:10] = True  # z 10 to 18, x and y 5 to 9
    points = np.array([[7.0, 7.0, 14.0], [7.0, 7.0, 20.0], [10.0, 7.0, 14.0], [0.0, 0.0, 0.0]])
    assert masks.inside(points, mask, grid) == 0.25
    assert masks.inside(points, mask, grid, within_mm=1.0) == 0.5
    assert masks.inside(points, mask, grid, within_mm=2.0) == 0.75


def test_an_interval_holds_the_mean_and_narrows_to_a_point() -> None:
    low, high = masks.interval([0.9, 0.95, 0.92, 0.97])
    assert low < 0.935 < high
    assert masks.interval([0.9, 0.9]) == pytest.approx((0.9, 0.9))


def test_recall_falls_and_precision_rises_with_the_threshold() -> None:
    reference = ball((20, 20, 20), 0.7)
    axes = np.meshgrid(*[np.linspace(-1, 1, 20) ** 2] * 3, indexing="ij")
    probability = (1.0 - np.sqrt(sum(axes))).clip(0, 1).astype(np.float32)
    points = masks.precision_and_recall(probability, reference)
    recalls, precisions = zip(*points, strict=True)
    assert list(recalls) == sorted(recalls, reverse=True)
    assert precisions[0] < precisions[8]


def test_a_chart_is_a_picture_beside_its_numbers(tmp_path: Path) -> None:
    lines = {"one": [(0.0, 1.0), (1.0, 2.0)], "two": [(0.0, 3.0)]}
    write_lines(tmp_path / "c.png", lines, title="t", across="x", up="y")
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.size == (720, 480)
    rows = (tmp_path / "c.csv").read_text().split()
    assert rows == ["line,x,y", "one,0,1", "one,1,2", "two,0,3"]


def test_weights_of_another_network_are_no_weights_of_the_u_net(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="cannot be read"):
        BrainUNet(tmp_path / "none.safetensors")
    (tmp_path / "no.safetensors").write_bytes(b"no")
    with pytest.raises(ModelLoadError, match="not a safetensors file"):
        BrainUNet(tmp_path / "no.safetensors")
