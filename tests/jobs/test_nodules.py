"""The nodule model: working grid, lungs, candidates, sizes, scope, and findings in made chests."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from inference.errors import ModelLoadError, Reason, Unprocessable
from inference.model import Limits, Parameters, Prediction, Window
from inference.models.nodule.candidates import find_candidates, sphere_response
from inference.models.nodule.grid import Grid
from inference.models.nodule.lungs import LEFT, RIGHT, Lungs, find_lungs
from inference.models.nodule.measuring import anatomy_of, axes_of, measured
from inference.models.nodule.network import OFFSET_MM, SIDE, SLICES, NoduleNetwork, crops
from inference.models.nodule.nodule import (
    SHIPPED_WEIGHTS,
    Nodule,
    OperatingPoint,
    ScoredPlace,
    check_geometry,
    check_lungs,
    doubts_of,
    phantom_doubts,
    scored_places,
)
from inference.runner import check_findings
from inference.volume import Geometry, Volume
from tests import chest as made
from tests.chest import FREE, NODULES, PLEURAL, Hu, chest, geometry

ORIENTATIONS = [
    ([1, 0, 0], [0, 1, 0]),
    ([-1, 0, 0], [0, 1, 0]),
    ([1, 0, 0], [0, -1, 0]),
    ([0, 1, 0], [1, 0, 0]),
    ([0, -1, 0], [1, 0, 0]),
]


@pytest.fixture(scope="module")
def volume() -> Hu:
    return chest()


@pytest.fixture(scope="module")
def lungs(volume: Hu) -> Lungs:
    return find_lungs(Grid.of(geometry()).resampled(volume.__getitem__))


@pytest.fixture(scope="module")
def model() -> Nodule:
    model = Nodule()
    model.most_candidates = 30  # the made chest holds two nodules and two vessels
    return model


@pytest.fixture(scope="module")
def prediction(model: Nodule, volume: Hu) -> Prediction:
    return predicted(model, volume, geometry())


def predicted(model: Nodule, volume: Hu, stack: Geometry) -> Prediction:
    (step,) = model.plan(stack, Parameters())
    return model.run(step, Window(stack, dict(enumerate(volume))), Limits())


def turned(
    volume: Hu, stack: Geometry, orientation: tuple[list[int], list[int]]
) -> tuple[Hu, Geometry]:
    """The same chest with its rows and columns running another way."""
    along_row, along_column = (np.array(axis, float) for axis in orientation)
    if along_row[0] == 0:
        volume = volume.transpose(0, 2, 1)
    backwards = (along_column.sum() < 0, along_row.sum() < 0)
    volume = np.flip(volume, [axis + 1 for axis, is_ in enumerate(backwards) if is_])
    ends = (made.SIDE - 1) * made.PIXEL * (np.minimum(along_row, 0) + np.minimum(along_column, 0))
    positions = stack.positions - ends
    if np.cross(along_row, along_column)[2] < 0:
        volume, positions = volume[::-1], positions[::-1]
    other = replace(stack, positions=positions, orientation=np.stack([along_row, along_column]))
    return np.ascontiguousarray(volume), other


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_gives_the_same_working_grid(
    volume: Hu, orientation: tuple[list[int], list[int]]
) -> None:
    plain, own = Grid.of(geometry()), volume
    stored, other = turned(volume, geometry(), orientation)
    grid = Grid.of(other)
    assert np.abs(plain.resampled(own.__getitem__) - grid.resampled(stored.__getitem__)).max() <= 1
    assert grid.patient(np.zeros((1, 3))) == pytest.approx(plain.patient(np.zeros((1, 3))))
    labels = np.zeros(grid.shape, np.uint8)
    labels[:, :100] = 1
    back = np.stack(list(grid.on_source(labels)))
    again = turned(
        np.stack(list(plain.on_source(labels))).astype(np.float32), geometry(), orientation
    )
    assert np.array_equal(back, again[0])


def test_voxels_are_places_in_the_patient_and_back() -> None:
    grid = Grid.of(geometry())
    voxels = np.array([[1.0, 2.0, 3.0], [40.0, 50.0, 60.5]])
    assert grid.voxels(grid.patient(voxels)) == pytest.approx(voxels)
    assert grid.patient(voxels)[1] - grid.patient(voxels)[0] == pytest.approx([57.5, 48.0, 39.0])


def test_slices_that_a_gantry_sheared_come_to_lie_where_they_are_in_the_patient() -> None:
    stack = geometry()
    positions = stack.positions.copy()
    positions[:, 1] += 0.3 * positions[:, 2]
    rows = np.arange(made.SIDE) * made.PIXEL
    sheared = replace(stack, positions=positions)
    planes = [np.tile((rows + start)[:, None], made.SIDE) for start in positions[:, 1]]
    grid = Grid.of(sheared)
    hu = grid.resampled(lambda index: planes[index].astype(np.float32))
    middle = hu[:, 100, 80]
    assert np.abs(middle - (grid.origin[1] + 100.0)).max() <= 1.0


def test_both_lungs_are_found_on_their_sides_without_the_airways(lungs: Lungs) -> None:
    grid = Grid.of(geometry())
    for side, sign in ((RIGHT, -1), (LEFT, 1)):
        assert 420 < lungs.volume_ml(side) < 520
        places = grid.patient(np.argwhere(lungs.labels == side)[::50].astype(float))
        assert (places[:, 0] * sign > 0).all()
    trachea = np.rint(grid.voxels(np.array([[0.0, 10.0, 30.0]]))[0]).astype(int)
    assert lungs.labels[tuple(trachea)] == 0
    assert lungs.carina is not None
    assert grid.patient(np.array([lungs.carina]))[0] == pytest.approx([0.0, 10.0, 0.0], abs=2.0)


def test_a_nodule_at_the_pleura_lies_in_the_closed_lung(lungs: Lungs) -> None:
    for ball, side in ((FREE, RIGHT), (PLEURAL, LEFT)):
        voxel = np.rint(Grid.of(geometry()).voxels(np.array([ball.place]))[0]).astype(int)
        assert lungs.labels[tuple(voxel)] == side


def test_joined_lungs_are_parted_at_the_wall_between_them(volume: Hu) -> None:
    joined = volume.copy()
    middle = made.SIDE // 2
    joined[20:40, 25:35, middle - 12 : middle + 12] = made.LUNG_HU
    joined[20:40, 25:35, middle - 1 : middle + 1] = -500.0
    lungs = find_lungs(Grid.of(geometry()).resampled(joined.__getitem__))
    right, left = lungs.volume_ml(RIGHT), lungs.volume_ml(LEFT)
    assert right == pytest.approx(left, rel=0.1)


def test_gas_in_a_body_is_no_lung(volume: Hu) -> None:
    gas = np.where(volume < -700.0, np.float32(-1000.0), volume)
    with pytest.raises(Unprocessable, match="show lungs on 0 mm"):
        check_lungs(find_lungs(Grid.of(geometry()).resampled(gas.__getitem__)))


def balls(*parts: tuple[tuple[int, int, int], float, float]) -> NDArray[np.int16]:
    """60 mm of parenchyma with balls (centre, radius, HU) and a tube along z."""
    z, y, x = np.mgrid[:60, :60, :60]
    hu = np.full((60, 60, 60), -850.0)
    hu[np.hypot(y - 12, x - 12) < 2.5] = 40.0
    for centre, radius, density in parts:
        far = np.sqrt(sum((axis - at) ** 2 for axis, at in zip((z, y, x), centre, strict=True)))
        hu[far < radius] = density
    return hu.astype(np.int16)


def test_balls_are_candidates_before_a_vessel_is() -> None:
    hu = balls(((30, 30, 40), 3.0, 40.0), ((20, 42, 20), 6.0, -500.0))
    candidates = find_candidates(hu, np.ones(hu.shape, np.uint8), 2)
    assert {tuple(np.rint(own.voxel).astype(int)) for own in candidates} == {
        (30, 30, 40),
        (20, 42, 20),
    }
    assert all(own.response > 0.0 for own in candidates)


def test_candidates_lie_apart_in_the_lung_and_no_more_than_asked_for() -> None:
    hu = np.random.default_rng(1).normal(-850.0, 60.0, (40, 40, 40)).astype(np.int16)
    labels = np.zeros(hu.shape, np.uint8)
    labels[:, :, :30] = 1
    places = np.array([own.voxel for own in find_candidates(hu, labels, 12)])
    assert len(places) == 12
    assert places[:, 2].max() < 30.5
    far = np.linalg.norm(places[:, None] - places, axis=2) + 100.0 * np.eye(12)
    assert far.min() >= 6.0


def test_a_plane_and_a_tube_answer_less_than_a_ball() -> None:
    z, y, x = np.mgrid[-15:16, -15:16, -15:16].astype(np.float32)
    inside = np.ones(z.shape, bool)
    shapes = (np.sqrt(z**2 + y**2 + x**2), np.hypot(y, x), np.abs(x))
    ball, tube, plane = (
        sphere_response(np.where(far < 4.0, 500.0, 0.0).astype(np.float32), 2.5, inside)[15, 15, 15]
        for far in shapes
    )
    assert ball > 5.0 * tube
    assert ball > 5.0 * plane


@pytest.mark.parametrize("density", [40.0, -450.0])
@pytest.mark.parametrize("ball", NODULES, ids=["free", "pleural"])
def test_a_nodule_is_measured_on_the_source(ball: made.Ball, density: float, lungs: Lungs) -> None:
    ball = replace(ball, hu=density)
    volume, stack = chest([ball]), geometry()
    organs = list(Grid.of(stack).on_source(lungs.labels))
    size = measured(np.array(ball.place), 11.0, stack, volume, organs)
    assert (size.long_axis_mm + size.short_axis_mm) / 2.0 == pytest.approx(12.0, abs=2.0)
    assert size.volume_mm3 == pytest.approx(4.0 / 3.0 * np.pi * 6.0**3, rel=0.25)
    slices, rows, columns = (np.argwhere(size.mask) + size.first).mean(axis=0)
    centre = stack.positions[0] + np.array([columns, rows, slices]) * (
        made.PIXEL,
        made.PIXEL,
        made.GAP,
    )
    assert centre == pytest.approx(np.array(ball.place), abs=1.5)


def test_a_vessel_that_ends_in_a_nodule_is_cut_off(lungs: Lungs) -> None:
    stack, ball = geometry(), FREE
    volume = chest([ball])
    row, column = (round((at / made.PIXEL) + (made.SIDE - 1) / 2.0) for at in (ball.y, ball.x))
    volume[35:38, row, column - 7 : column + 8] = 40.0  # through the ball
    organs = list(Grid.of(stack).on_source(lungs.labels))
    size = measured(np.array(ball.place), 12.0, stack, volume, organs)
    assert size.long_axis_mm < 18.0


def test_a_place_without_any_border_is_a_ball_of_the_expected_size(lungs: Lungs) -> None:
    stack = geometry()
    organs = list(Grid.of(stack).on_source(lungs.labels))
    flat = np.full((made.SLICES, made.SIDE, made.SIDE), -850.0, np.float32)
    size = measured(np.array(FREE.place), 12.0, stack, flat, organs)
    assert size.mask.any()
    assert size.long_axis_mm == pytest.approx(12.0, abs=3.0)


def test_axes_are_those_of_the_largest_slice() -> None:
    mask = np.zeros((2, 20, 30), bool)
    mask[0, 5, 5] = True
    mask[1, 5:9, 3:23] = True
    long_axis, short_axis = axes_of(mask, (1.0, 1.0))
    assert long_axis == pytest.approx(np.hypot(19.0, 3.0) + 1.0)
    assert 4.0 <= short_axis <= 8.0
    assert axes_of(mask[:1], (0.7, 0.7)) == pytest.approx((0.7, 0.7))


def test_a_place_is_named_by_side_third_pleura_and_carina(lungs: Lungs) -> None:
    grid, labels = Grid.of(geometry()), lungs.labels.copy()
    labels[[0, -1]] = 0
    whole = Lungs(labels, lungs.carina)
    free, pleural = (
        anatomy_of(grid.voxels(np.array([ball.place]))[0], 12.0, whole) for ball in NODULES
    )
    assert (free.side, free.third, pleural.side) == ("right", "middle", "left")
    assert free.pleura_mm > 10.0
    assert not free.as_record()["juxtapleural"]
    assert pleural.as_record()["juxtapleural"]
    assert free.carina_mm == pytest.approx(np.linalg.norm([46.0, 5.0, 10.0]), abs=3.0)
    upper = anatomy_of(grid.voxels(np.array([[-51.0, 0.0, 45.0]]))[0], 4.0, whole)
    assert upper.third == "upper"
    assert (whole.is_whole, lungs.is_whole) == (True, False)


def test_nothing_is_said_of_the_height_in_a_lung_that_the_scan_cuts(lungs: Lungs) -> None:
    voxel = Grid.of(geometry()).voxels(np.array([FREE.place]))[0]
    place = anatomy_of(voxel, 12.0, lungs)
    assert (place.side, place.third) == ("right", "")
    assert "third" not in place.words


def test_a_crop_is_centred_on_its_voxel_and_repeats_the_edge() -> None:
    hu = np.full((12, 60, 60), -850, np.int16)
    hu[1, 2, 3] = 200
    seen = crops(hu, np.ones(hu.shape, np.uint8), np.array([[1, 2, 3], [6, 30, 30]]))
    assert seen.shape == (2, 2, SLICES, SIDE, SIDE)
    assert seen[0, 0, SLICES // 2, SIDE // 2, SIDE // 2] == 1.0
    assert seen[1, 0].max() == pytest.approx(-0.75)
    assert seen[:, 1].min() == 1.0


class Towards(NoduleNetwork):
    """Gives every crop the same score, and the centre 4 mm to the left."""

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        is_mirrored = bool(crops[0, 0, 0, 0, 0] > crops[0, 0, 0, 0, -1])
        offset = -5.0 / OFFSET_MM if is_mirrored else 4.0 / OFFSET_MM
        return torch.tensor([[2.0, 0.0, 0.0, offset, 0.0]]).repeat(len(crops), 1)


def test_places_of_one_nodule_are_one_and_lie_at_its_centre() -> None:
    slope = np.tile(np.arange(100, dtype=np.int16) - 900, (20, 100, 1))
    places = np.array([[10.0, 50.0, 50.0], [10.0, 53.0, 50.0], [10.0, 50.0, 70.0]])
    scored = scored_places(Towards(), slope, np.ones(slope.shape, np.uint8), places, "cpu")
    assert [own.voxel for own in scored] == [(10.0, 50.0, 54.0), (10.0, 50.0, 74.0)]
    assert scored[0] == ScoredPlace((10.0, 50.0, 54.0), pytest.approx(0.8808, abs=1e-4), 10.0)


def test_nodules_of_a_made_chest_are_findings_with_their_places(
    prediction: Prediction, model: Nodule, volume: Hu
) -> None:
    stack = geometry()
    (step,) = model.plan(stack, Parameters())
    check_findings(step, prediction, Volume(stack, volume.__getitem__))
    best = prediction.findings[:2]
    assert {finding.site for finding in best} == {"right", "left"}
    for finding in best:
        ball = FREE if finding.site == "right" else PLEURAL
        assert finding.score >= model.threshold
        assert finding.diameter_mm == pytest.approx(12.0, abs=2.5)
        assert finding.record["third"] == ""  # the scan cuts the lungs
        assert finding.record["juxtapleural"] is (ball is PLEURAL)
    json.dumps([prediction.record, *(finding.record for finding in prediction.findings)])
    assert {float(value) for plane in prediction.planes for value in np.unique(plane)} == {0, 1, 2}


def test_the_records_of_a_prediction_and_its_findings_are_json(prediction: Prediction) -> None:
    records = [prediction.record, *(finding.record for finding in prediction.findings)]
    assert json.loads(json.dumps(records)) == records


def test_small_lungs_are_a_doubt(prediction: Prediction) -> None:
    (doubt,) = prediction.record["doubts"]  # type: ignore[misc]
    assert "outside 1.5 to 9 L" in doubt


def test_scores_are_repeated_to_the_bit(model: Nodule, volume: Hu, lungs: Lungs) -> None:
    grid = Grid.of(geometry())
    hu = grid.resampled(volume.__getitem__)[:60]
    assert model.scored(hu, lungs.labels[:60]) == model.scored(hu, lungs.labels[:60])


def test_a_chest_in_another_orientation_has_the_same_findings(
    model: Nodule, volume: Hu, prediction: Prediction
) -> None:
    result = predicted(model, *turned(volume, geometry(), ([-1, 0, 0], [0, 1, 0])))
    ours, theirs = (
        [(f.site, f.diameter_mm, f.volume_mm3) for f in of.findings[:2]]
        for of in (prediction, result)
    )
    assert theirs == ours
    scores = [finding.score for finding in result.findings[:2]]
    assert scores == pytest.approx([f.score for f in prediction.findings[:2]], abs=0.02)


def test_a_lung_that_is_much_smaller_than_the_other_is_a_doubt() -> None:
    labels = np.zeros((100, 200, 200), np.uint8)
    labels[:, :, :120] = RIGHT
    labels[:, :20, 120:] = LEFT
    (doubt,) = doubts_of(Lungs(labels, None))
    assert doubt == "the left lung has 0.2 L, less than a quarter of the other"


def test_lungs_without_a_vessel_may_be_those_of_a_phantom() -> None:
    lungs = Lungs(np.full((50, 100, 100), RIGHT, np.uint8), None)
    hu = np.full((50, 100, 100), -850, np.int16)
    (doubt,) = phantom_doubts(hu, lungs)
    assert doubt.startswith("hardly a vessel is seen in the lungs (0.0% of them is soft tissue")
    hu[:, 40:50, 40:50] = 40  # 1 %
    assert phantom_doubts(hu, lungs) == ()


@pytest.mark.parametrize(
    ("stack", "reason", "sentence"),
    [
        (geometry(59), Reason.TOO_FEW_SLICES, "59 slices"),
        (geometry(62, 3.2), Reason.OUT_OF_SCOPE, "up to 3.20 mm apart"),
        (geometry(62, 1.0), Reason.OUT_OF_SCOPE, "cover 61 mm"),
        (
            replace(geometry(), orientation=np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])),
            Reason.OUT_OF_SCOPE,
            "ImagePositionPatient|tilted by 90 degrees",
        ),
    ],
)
def test_a_stack_that_is_no_thin_axial_chest_is_refused(
    stack: Geometry, reason: Reason, sentence: str
) -> None:
    with pytest.raises(Unprocessable, match=sentence) as caught:
        check_geometry(stack)
    assert caught.value.reason is reason


def test_a_body_without_lungs_is_refused_by_its_pixels(model: Nodule) -> None:
    with pytest.raises(Unprocessable, match="The pixels show lungs on 0 mm") as caught:
        predicted(model, chest((), lungs=()), geometry())
    assert caught.value.reason is Reason.OUT_OF_SCOPE


def test_the_shipped_weights_fit_the_network_and_are_those_of_the_card(model: Nodule) -> None:
    digest = hashlib.sha256(SHIPPED_WEIGHTS.read_bytes()).hexdigest()
    assert model.weights_sha256 == digest
    assert digest in SHIPPED_WEIGHTS.with_suffix(".md").read_text(encoding="utf-8")
    assert SHIPPED_WEIGHTS.stat().st_size < 1e6
    assert 0.0 < model.threshold < 1.0
    assert len(model.point.patients) == 4


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "weights.json"
    OperatingPoint(0.4, 2.0, ("one", "two")).write(path)
    yield path


def test_an_operating_point_is_read_as_it_was_written(point: Path) -> None:
    assert OperatingPoint.read(point) == OperatingPoint(0.4, 2.0, ("one", "two"))


@pytest.mark.parametrize("text", ["{}", "no JSON", '{"threshold": "high"}'])
def test_another_operating_point_is_refused(point: Path, text: str) -> None:
    point.write_text(text, encoding="utf-8")
    with pytest.raises(ModelLoadError, match="not an operating point"):
        OperatingPoint.read(point)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="cannot be read"):
        Nodule(tmp_path / "none.safetensors")
    (tmp_path / "no.safetensors").write_bytes(b"no")
    with pytest.raises(ModelLoadError, match="not a safetensors file"):
        Nodule(tmp_path / "no.safetensors")
