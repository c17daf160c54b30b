"""Training data and figures of the nodule model, and both commands on two made chests."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from inference.models.nodule.grid import Grid
from inference.models.nodule.lungs import find_lungs
from inference.models.nodule.network import OFFSET_MM, SIDE, SLICES, TYPICAL_MM
from inference.training import nodule as training
from inference.training import nodule_cases, nodule_figures
from inference.training.beside import EvaluationOrder
from inference.training.chest_ct import load_chests
from inference.training.data import NoSeries
from inference.training.froc import (
    RATES,
    Detections,
    among_first,
    competition,
    found,
    froc,
    precision_recall,
    threshold_at,
)
from inference.training.lidc import Outline, Reading, measured, nodules_of, read_xml
from inference.training.nodule_cases import ChestCase, Truth
from inference.training.simulated import Body, Lung, simulate
from node import cli
from tests import chest as made
from tests.chest import NODULES, Ball, chest, geometry

XML = """<?xml version="1.0"?>
<LidcReadMessage xmlns="http://www.nih.gov">
 <ResponseHeader><SeriesInstanceUid>1.2.3 </SeriesInstanceUid></ResponseHeader>
 <readingSession>
  <unblindedReadNodule><noduleID>1</noduleID>
   <characteristics><texture>4</texture></characteristics>
   <roi><imageZposition>-61.0</imageZposition><inclusion>TRUE</inclusion>{square}</roi>
   <roi><imageZposition>-59.0</imageZposition><inclusion>TRUE</inclusion>{square}</roi>
  </unblindedReadNodule>
  <unblindedReadNodule><noduleID>2</noduleID>
   <roi><imageZposition>-59.0</imageZposition><inclusion>TRUE</inclusion>
    <edgeMap><xCoord>40</xCoord><yCoord>50</yCoord></edgeMap></roi>
  </unblindedReadNodule>
  <nonNodule><imageZposition>-59.0</imageZposition>
   <locus><xCoord>7</xCoord><yCoord>9</yCoord></locus></nonNodule>
 </readingSession>
 <readingSession>
  <unblindedReadNodule><noduleID>5</noduleID>
   <roi><imageZposition>-61.0</imageZposition><inclusion>TRUE</inclusion>{square}</roi>
  </unblindedReadNodule>
 </readingSession>
</LidcReadMessage>
"""


def square(low: int, high: int) -> str:
    """An outline around the pixels from `low` + 1 to `high` - 1."""
    corners = ((low, low), (high, low), (high, high), (low, high))
    return "".join(
        f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in corners
    )


@pytest.fixture
def readings(tmp_path: Path) -> list[Reading]:
    path = tmp_path / "readings.xml"
    path.write_text(XML.format(square=square(10, 16)), encoding="utf-8")
    uid, readings = read_xml(path)
    assert uid == "1.2.3"
    return readings


def test_the_xml_of_readers_is_nodules_small_ones_and_none(readings: list[Reading]) -> None:
    kinds = [(own.reader, own.kind, own.texture) for own in readings]
    assert kinds == [
        (0, "nodule", 4.0),
        (0, "nodule_under_3mm", None),
        (0, "non_nodule", None),
        (1, "nodule", None),
    ]
    assert readings[2].outlines[0].points == ((7, 9),)


def test_readings_at_one_place_are_one_nodule(readings: list[Reading]) -> None:
    (nodule,) = nodules_of(readings, geometry())
    assert nodule.readers == 2
    assert nodule.texture == 4.0
    start = -(made.SIDE - 1) / 2.0 * made.PIXEL
    middle = start + 13 * made.PIXEL
    assert nodule.centre == pytest.approx((middle, middle, -60.5))
    volumes = 25 * made.PIXEL**2 * made.GAP * np.array([2.0, 1.0])
    assert nodule.sphere_mm == pytest.approx(np.mean(np.cbrt(6.0 * volumes / np.pi)))


def test_a_hole_is_no_part_of_a_nodule_and_missing_slices_are_left_out() -> None:
    whole = ((10, 10), (20, 10), (20, 20), (10, 20))
    hole = ((13, 13), (16, 13), (16, 16), (13, 16))
    outlines = (Outline(-61.0, whole, True), Outline(-61.0, hole, False))
    place = measured(Reading(0, outlines, "nodule"), geometry())
    assert place is not None
    assert place[1] == pytest.approx((81 - 16) * made.PIXEL**2 * made.GAP)
    assert measured(Reading(0, (Outline(900.0, whole, True),), "nodule"), geometry()) is None


def test_other_xml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.xml"
    path.write_text("<a/>", encoding="utf-8")
    with pytest.raises(NoSeries, match="no readings"):
        read_xml(path)
    path.write_text("<a", encoding="utf-8")
    with pytest.raises(NoSeries, match="not XML"):
        read_xml(path)


@pytest.mark.parametrize("spiculated", [False, True])
def test_a_body_has_the_size_that_was_asked_for(spiculated: bool) -> None:
    body = Body.drawn(6.0, default_rng(3), spiculated=spiculated)
    places = np.stack(np.meshgrid(*[np.arange(-20, 21, 0.5)] * 3, indexing="ij"), axis=-1)
    share = body.inside(places)
    volume = float(share.sum()) * 0.125
    assert volume == pytest.approx(4.0 / 3.0 * np.pi * 6.0**3, rel=0.35)
    assert share.max() > 0.99
    assert body.inside(places, 0.5).sum() < share.sum()


@pytest.fixture(scope="module")
def lung() -> Lung:
    grid = Grid.of(geometry())
    hu = grid.resampled(chest(()).__getitem__)
    labels = find_lungs(hu).labels
    return Lung.of(grid, np.zeros(3), hu, labels, np.array([[60.0, 110.0, 150.0, 20.0]]))


def test_simulated_nodules_lie_apart_in_the_lung_where_nothing_is_marked(lung: Lung) -> None:
    planes = chest(()).astype(np.int16)
    changed, bodies = simulate(planes, geometry(), lung, 12, default_rng(2))
    again, same = simulate(planes, geometry(), lung, 12, default_rng(2))
    assert np.array_equal(changed, again)
    assert bodies == same
    assert len(bodies) >= 4
    assert (changed >= planes).all()
    centres = np.array([own.centre for own in bodies])
    voxels = lung.grid.voxels(centres)
    assert (lung.depth[tuple(np.rint(voxels).astype(int).T)] > 0).all()
    assert (np.linalg.norm(voxels - lung.kept_free[0, :3], axis=1) > 20.0).all()
    for own in bodies:
        index = int(np.argmin(np.abs(geometry().positions[:, 2] - own.centre[2])))
        column, row = (round(at / made.PIXEL + (made.SIDE - 1) / 2.0) for at in own.centre[:2])
        assert changed[index, row, column] > planes[index, row, column] + 50


def case_of(truths: tuple[Truth, ...], **changes: object) -> ChestCase:
    """A scan of 40 mm of parenchyma with what is true of it."""
    hu = np.full((40, 90, 90), -850, np.int16)
    own = ChestCase(
        patient="one",
        is_real=True,
        grid=Grid.of(geometry()),
        corner=(0, 0, 0),
        hu=hu,
        labels=np.ones(hu.shape, np.uint8),
        truths=truths,
        ignored=np.zeros((0, 4)),
        places=np.zeros((0, 3)),
        responses=np.zeros(0),
    )
    return replace(own, **changes)  # type: ignore[arg-type]


TRUTHS = (Truth((20.0, 40.0, 40.0), 10.0, "real"), Truth((20.0, 60.0, 60.0), 6.0, "real"))


def test_a_hit_lies_within_the_radius_and_the_nearest_nodule_is_hit() -> None:
    case = case_of(TRUTHS, ignored=np.array([[20.0, 20.0, 20.0, 5.0]]))
    voxels = np.array([[20.0, 44.9, 40], [20, 45.1, 40], [20, 60, 62.9], [20, 24, 20]])
    assert case.hit(voxels).tolist() == [0, -1, 1, -1]
    assert case.is_ignored(voxels).tolist() == [False, False, False, True]


def detections() -> list[Detections]:
    """Two scans: nodules at the scores 0.9 and never, and 0.5; wrong at 0.8, 0.6 and 0.4."""
    voxels = np.array([[20.0, 40, 40], [20, 41, 40], [5, 5, 5], [20, 20, 20], [30, 5, 5]])
    case = case_of(TRUTHS, ignored=np.array([[20.0, 20.0, 20.0, 5.0]]))
    one = Detections.of(case, voxels, np.array([0.9, 0.85, 0.8, 0.7, 0.6]))
    other = case_of((Truth((9.0, 9.0, 9.0), 6.0, "real"),), patient="two")
    two = Detections.of(other, np.array([[9.0, 9, 9], [1, 40, 40]]), np.array([0.5, 0.4]))
    return [one, two]


def test_hits_count_once_and_what_readers_leave_open_does_not_count() -> None:
    one, two = detections()
    assert one.best.tolist() == [0.9, -np.inf]
    assert one.false.tolist() == [0.8, 0.6]
    assert one.order.tolist() == [0, -1]
    assert two.false.tolist() == [0.4]
    assert among_first([one, two], 1) == (2, 3)


def test_recall_at_a_rate_is_counted_by_hand() -> None:
    scans = detections()
    assert threshold_at(scans, 0.25) == 0.8
    assert threshold_at(scans, 0.5) == 0.6
    assert threshold_at(scans, 1.0) == 0.4
    assert threshold_at(scans, 2.0) == -np.inf
    recalls = [found(scans, threshold_at(scans, rate)) for rate in RATES]
    assert recalls == [(1, 3), (1, 3), (1, 3), (2, 3), (2, 3), (2, 3), (2, 3)]
    expected = (3 * 1 / 3 + 4 * 2 / 3) / 7
    assert competition(lambda rate: found(scans, threshold_at(scans, rate))[0] / 3) == (
        pytest.approx(expected)
    )
    assert froc(scans)[0] == (0.0, pytest.approx(1 / 3))
    assert froc(scans)[2] == (1.0, pytest.approx(2 / 3))
    assert precision_recall(scans) == [(1 / 3, 1.0), (2 / 3, 0.5)]


def test_parts_are_counted_by_themselves() -> None:
    one, _ = detections()
    assert one.of_truths([False, True]).best.tolist() == [-np.inf]


def test_a_crop_for_training_shows_the_nodule_where_its_target_says() -> None:
    z, y, x = np.mgrid[:40, :90, :90]
    far = np.sqrt((z - 20.0) ** 2 + (y - 40.0) ** 2 + (x - 45.0) ** 2)
    truth = Truth((20.0, 40.0, 45.0), 12.0, "real")
    hu = np.where(far < 6.0, 40, -850).astype(np.int16)
    case = case_of((truth,), hu=hu, places=np.array([[5.0, 5.0, 5.0]]), responses=np.ones(1))
    batches = training.Batches([case], default_rng(4))
    for _ in range(20):
        crop, target = batches.seen(batches.real[0])
        assert target[0] == 1.0
        bright = np.argwhere(crop[0] > -0.2)
        centre = bright.mean(axis=0) - (SLICES // 2, SIDE // 2, SIDE // 2)
        assert centre[1:] == pytest.approx(target[2:4] * OFFSET_MM, abs=1.0)
        if abs(target[1]) * OFFSET_MM < 1.0:
            wide = float(np.exp(target[4])) * TYPICAL_MM
            assert np.ptp(bright[:, 1]) + 1 == pytest.approx(wide, abs=2.5)
    _, nothing = batches.seen(batches.negatives[0])
    assert not nothing.any()


def test_the_loss_counts_offset_and_diameter_where_there_is_a_nodule_only() -> None:
    target = torch.tensor([[1.0, 0.5, 0.0, 0.0, 0.2], [0.0, 0.0, 0.0, 0.0, 0.0]])
    right = torch.tensor([[4.0, 0.5, 0.0, 0.0, 0.2], [-4.0, 3.0, 3.0, 3.0, 3.0]])
    off = right.clone()
    off[0, 1] = -0.5
    assert training.loss_of(right, target) < 0.2
    assert training.loss_of(off, target) > training.loss_of(right, target) + 0.5


def test_one_seed_gives_the_same_weights_and_another_does_not() -> None:
    small = Truth((20.0, 60.0, 60.0), 6.0, "solid")
    own = case_of(TRUTHS, places=np.array([[5.0, 5.0, 5.0], [30.0, 9.0, 9.0]]))
    copy = case_of((small,), is_real=False)
    weights = [
        training.fit([own, copy], training.NodulePlan(3, seed), lambda _share, _loss: None)
        .last.weight.flatten()
        .tolist()
        for seed in (1, 1, 2)
    ]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def write_data(folder: Path) -> None:
    """Two chests as volumes, with tables of what readers marked."""
    shifted = [Ball(ball.x, ball.y - 12.0, ball.z, 5.0) for ball in NODULES]
    nodules, marks = [], []
    for name, balls in (("one", NODULES), ("two", shifted)):
        hu = chest(balls)
        place = folder / name
        place.mkdir(parents=True)
        spacing = np.array([made.GAP, made.PIXEL, made.PIXEL])
        np.savez(place / "volume.npz", hu=hu.astype(np.int16), spacing_mm=spacing)
        start = geometry().positions[0]
        for number, ball in enumerate(balls, start=1):
            x, y, z = np.array(ball.place) - start
            row = {"patient": name, "folder": name, "x_mm": x, "y_mm": y, "z_mm": z}
            nodules.append(
                row
                | {"nodule": number, "readers": 4, "equivalent_sphere_mm": 2.0 * ball.radius}
                | {"texture": 5.0}
            )
        marks.append(
            {"folder": name, "kind": "non_nodule", "x_mm": 40.0, "y_mm": 80.0, "z_mm": 90.0}
        )
    for table, rows in (("nodules.csv", nodules), ("marks.csv", marks)):
        with (folder / table).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


def test_a_training_is_judged_again_from_its_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nodule_cases, "COPIES", 1)
    monkeypatch.setattr(nodule_cases, "BODIES", 8)
    monkeypatch.setattr(nodule_cases, "MOST_CANDIDATES", 24)
    monkeypatch.setattr(nodule_figures, "MOST", 24)
    monkeypatch.setattr(nodule_figures, "DRAWS", 20)
    data, out = tmp_path / "data", tmp_path / "out"
    write_data(data)
    command = ["train", str(data), "--model", "nodules", "--steps", "2", "--device", "cpu"]
    assert cli.run([*command, "--out", str(out)]) == 0
    assert "Candidates of stage 1" in capsys.readouterr().out
    first = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert first["first_candidates"][nodule_figures.REAL]["10"] == [4, 4]
    for name in ("nodule", "without-one", "without-two"):
        assert (out / f"{name}.safetensors").is_file()
        assert (out / f"{name}.json").is_file()
    for picture in ("froc", "pr", "curve"):
        assert (out / f"{picture}.png").is_file()
        assert (out / f"{picture}.csv").is_file()
    order = EvaluationOrder("nodules", data, tmp_path / "again", None, out, "cpu")
    again = nodule_figures.judge(order, lambda _share, _what: None)
    assert json.loads(json.dumps(again.record)) == first
    stage = next(row for row in again.rows if row[0].startswith("bright"))
    assert f"| {' | '.join(stage)} |" in (out / "card.md").read_text(encoding="utf-8")


def test_one_patient_is_no_training_set(tmp_path: Path) -> None:
    with pytest.raises(NoSeries, match="no chest CT"):
        load_chests(tmp_path)
    (tmp_path / "nodules.csv").write_text("folder\n", encoding="utf-8")
    with pytest.raises(NoSeries, match="no such table"):
        load_chests(tmp_path)
