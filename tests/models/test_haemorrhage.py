"""The haemorrhage model: scope, slabs, the shipped weights, and scores on made heads."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.random import default_rng
from numpy.typing import NDArray

from inference.errors import ModelLoadError, Reason, Unprocessable
from inference.model import Limits, Parameters, Scores, SeriesFacts, Window
from inference.models.haemorrhage.haemorrhage import (
    SHIPPED_WEIGHTS,
    Haemorrhage,
    ScoreCalibration,
    SeriesScores,
    doubts_of,
    series_logit,
    smoothed,
)
from inference.models.haemorrhage.head import Square, head_mask, prepared, windowed
from inference.models.haemorrhage.scope import check_facts, check_pixels, doubts_about, examined
from inference.models.haemorrhage.stack import (
    Upright,
    check_geometry,
    slabs_of,
    upright_slabs,
)
from inference.volume import Geometry

SLICES, SIDE = 18, 176  # of 5 mm and 1 mm
Hu = NDArray[np.float32]


def geometry(
    count: int = SLICES,
    gap: float = 5.0,
    *,
    pixel: float = 1.0,
    degrees: float = 0.0,
    thickness: float | None = None,
) -> Geometry:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    orientation = np.array([[1.0, 0.0, 0.0], [0.0, cosine, sine]])
    normal = np.cross(*orientation)
    positions = np.arange(count)[:, None] * gap * normal
    return Geometry(positions, orientation, (pixel, pixel), SIDE, SIDE, thickness)


def made_head(count: int = SLICES, fluid_hu: float = 10.0) -> Hu:
    """A brain of 35 HU with ventricles in a skull of 1,000 HU, with a lump of 70 HU inside."""
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2.0
    random = default_rng(1)
    planes = []
    for index in range(count):
        size = 55.0 + 13.0 * np.sin(np.pi * (index + 1) / (count + 1))
        radius = np.hypot(y / 1.05, x)
        plane = np.where(radius < size, 35.0, np.where(radius < size + 6.0, 1000.0, -1000.0))
        plane = np.where(np.hypot(y + 8.0, abs(x) - 18.0) < 16.0, fluid_hu, plane)
        if abs(index - count // 2) < 3:
            plane = np.where(np.hypot(y - 20.0, x - 25.0) < 12.0, 70.0, plane)
        planes.append(plane + random.normal(0.0, 4.0, plane.shape))
    return np.stack(planes).astype(np.float32)


def made_chest(count: int = SLICES) -> Hu:
    """Lungs and a heart behind a wall with ribs."""
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2.0
    radius = np.hypot(y * 1.3, x)
    plane = np.where(radius < 80.0, 40.0, -1000.0)
    plane = np.where((radius > 66.0) & (radius < 72.0), 600.0, plane)
    lungs = (np.hypot((y * 1.3) / 1.2, np.abs(x) - 34.0) < 26.0) & (radius < 64.0)
    return np.repeat(np.where(lungs, -850.0, plane)[None], count, axis=0).astype(np.float32)


@pytest.fixture(scope="module")
def head() -> Hu:
    return made_head()


@pytest.fixture(scope="module")
def model() -> Haemorrhage:
    return Haemorrhage()


@pytest.fixture(scope="module")
def scores(model: Haemorrhage, head: Hu) -> SeriesScores:
    return model.scores(head, geometry())


def test_pixels_of_a_head_are_in_scope_and_those_of_a_chest_are_not(head: Hu) -> None:
    check_pixels(examined(head, 1.0))
    with pytest.raises(Unprocessable, match=r"A head is seen in 0 slices; 6 are needed") as caught:
        check_pixels(examined(made_chest(), 1.0))
    assert caught.value.reason is Reason.OUT_OF_SCOPE


def test_bright_thin_vessels_deep_in_the_brain_are_contrast(head: Hu) -> None:
    vessels = head.copy()
    vessels[:, 60:116:14, 60:116:14] = 900.0  # blurred: 75 to 400 HU
    with pytest.raises(Unprocessable, match=r"contrast in vessels: \d+\.\d\d per mille"):
        check_pixels(examined(vessels, 1.0))


def test_a_lump_of_blood_is_no_vessel(head: Hu) -> None:
    assert examined(head, 1.0).vessels_per_mille < 0.5


def facts(
    age_years: float | None = None, *, accept_children: bool = False, **values: str
) -> SeriesFacts:
    """Those of a head, unless another body part is given."""
    named = {"BodyPartExamined": "HEAD"} | values
    filled = {keyword: (value,) for keyword, value in named.items() if value}
    return SeriesFacts(filled, age_years, accept_children)


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (facts(ContrastBolusAgent="Ultravist"), "ContrastBolusAgent is 'Ultravist'"),
        (facts(ContrastBolusRoute="IV"), "ContrastBolusRoute is 'IV'"),
        (facts(ConvolutionKernel="H70h"), "ConvolutionKernel is 'H70h'"),
        (facts(ConvolutionKernel="BONEPLUS"), "ConvolutionKernel is 'BONEPLUS'"),
        (facts(7.0), "PatientAge is 7 years"),
        (facts(BodyPartExamined="CHEST"), "BodyPartExamined is 'CHEST'"),
        (facts(BodyPartExamined="", StudyDescription="CT 5 mm"), "BodyPartExamined is empty"),
        *(
            (facts(SeriesDescription=words), f"Description is '{words}'")
            for words in ("CTA head", "Angio 0.6", "C+ 5mm", "POST CONTRAST", "perfusion", "Post")
        ),
    ],
)
def test_a_header_out_of_scope_is_refused_by_its_attribute(
    facts: SeriesFacts, sentence: str
) -> None:
    with pytest.raises(Unprocessable) as caught:
        check_facts(facts)
    assert caught.value.reason is Reason.OUT_OF_SCOPE
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "facts",
    [
        facts(),
        facts(44.0, ConvolutionKernel="H31s"),
        facts(ConvolutionKernel="STANDARD"),
        facts(BodyPartExamined="HEADNECK"),
        facts(BodyPartExamined="", ProtocolName="01_CCT_Routine"),
        facts(7.0, accept_children=True),
        *(
            facts(StudyDescription=words)
            for words in ("Head without contrast", "NON-CONTRAST", "w/o contrast", "Head post op")
        ),
    ],
)
def test_a_header_of_a_plain_head_is_in_scope(facts: SeriesFacts) -> None:
    check_facts(facts)


@pytest.mark.parametrize(
    ("words", "is_doubtful"),
    [
        ("Head post op", True),
        ("CCT postoperativ", True),
        ("Schaedel nach Kraniotomie, craniotomy", True),
        ("VP-Shunt Kontrolle", True),
        ("Head without contrast", False),
        ("NCCT operator Smith", False),
    ],
)
def test_a_head_after_an_operation_is_doubtful(words: str, is_doubtful: bool) -> None:
    doubts = doubts_about(facts(StudyDescription=words))
    assert bool(doubts) is is_doubtful
    assert all(f"StudyDescription is '{words}'" in doubt for doubt in doubts)


@pytest.mark.parametrize(
    ("stack", "sentence"),
    [
        (geometry(9), "9 slices"),
        (geometry(12, 7.0), "up to 7.00 mm apart"),
        (geometry(12), "cover 55 mm"),
        (geometry(pixel=1.4), "1.40 to 1.40 mm"),
        (geometry(degrees=40.0), "tilted by 40 degrees"),
    ],
)
def test_a_stack_that_is_no_axial_head_is_refused(stack: Geometry, sentence: str) -> None:
    with pytest.raises(Unprocessable, match=sentence):
        check_geometry(stack)


def test_a_tilted_stack_is_in_scope() -> None:
    check_geometry(geometry(degrees=20.0))


@pytest.mark.parametrize(
    ("gap", "thickness", "members", "averaged"),
    [(5.0, 5.0, 1, 1), (4.0, None, 1, 1), (2.5, 2.5, 2, 2), (1.25, 1.25, 4, 4), (2.5, 5.0, 2, 1)],
)
def test_thin_slices_are_averaged_to_slabs_of_5_mm(
    gap: float, thickness: float | None, members: int, averaged: int
) -> None:
    slabs = slabs_of(geometry(81, gap, thickness=thickness))
    assert [index for slab in slabs for index in slab.members] == list(range(81))
    assert {len(slab.members) for slab in slabs[:-1]} == {members}
    assert {len(slab.averaged) for slab in slabs} == {averaged}


ORIENTATIONS = [
    ([1, 0, 0], [0, 1, 0]),
    ([-1, 0, 0], [0, 1, 0]),
    ([1, 0, 0], [0, -1, 0]),
    ([0, 1, 0], [1, 0, 0]),
    ([0, -1, 0], [1, 0, 0]),
]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_gives_the_same_upright_slabs(
    head: Hu, orientation: tuple[list[int], list[int]]
) -> None:
    own = geometry()
    other = turned_geometry(own, orientation)
    upright = Upright.of(other)
    stored = np.stack([upright.back(plane) for plane in head])
    if other.normal[2] < 0:
        stored = stored[::-1]
    again = upright_slabs(stored, slabs_of(other), upright)
    assert np.array_equal(again, upright_slabs(head, slabs_of(own), Upright.of(own)))


def turned_geometry(own: Geometry, orientation: tuple[list[int], list[int]]) -> Geometry:
    directions = np.array(orientation, float)
    positions = own.positions if np.cross(*directions)[2] > 0 else own.positions[::-1]
    return replace(own, orientation=directions, positions=positions)


def test_table_and_headrest_are_no_part_of_the_head(head: Hu) -> None:
    with_table = head.copy()
    with_table[:, -6:-3] = 200.0
    plain, tabled = (prepared(windowed(hu), 1.0) for hu in (head, with_table))
    assert np.array_equal(plain, tabled)
    assert not head_mask(windowed(with_table), 1.0)[:, -6:-3].any()


def test_a_square_reaches_over_the_border_and_its_map_comes_back_to_its_place() -> None:
    mask = np.zeros((1, 40, 60), bool)
    mask[0, 2:38, 0:20] = True
    square = Square.around(mask)
    assert square.column - square.side / 2.0 < 0.0
    coarse = np.zeros((6, 6), np.float32)
    coarse[0, :] = 1.0
    fine = square.spread(coarse, mask[0])
    assert fine[3, 10] == 1.0
    assert fine[30, 10] == 0.0
    assert fine[3, 40] == 0.0  # outside the head


def test_the_shipped_weights_fit_the_network_and_are_those_of_the_card(model: Haemorrhage) -> None:
    digest = hashlib.sha256(SHIPPED_WEIGHTS.read_bytes()).hexdigest()
    assert model.weights_sha256 == digest
    assert digest in SHIPPED_WEIGHTS.with_suffix(".md").read_text(encoding="utf-8")
    assert SHIPPED_WEIGHTS.stat().st_size < 10e6
    assert len(model.calibration.patients) == 66


def test_every_slice_has_a_score_and_the_strongest_have_a_heat_map(
    scores: SeriesScores, head: Hu
) -> None:
    assert scores.slices.shape == (SLICES,)
    assert ((scores.slices >= 0.0) & (scores.slices <= 1.0)).all()
    assert 0.0 <= scores.series <= 1.0
    assert len(scores.heat) == 3
    assert int(np.argmax(scores.slices)) in scores.heat
    for plane in scores.heat.values():
        assert plane.shape == head.shape[1:]
        assert plane.min() >= 0.0
        assert plane.max() <= 1.0
    json.dumps(scores.as_record())


def test_a_copy_in_another_orientation_has_the_same_scores(
    model: Haemorrhage, head: Hu, scores: SeriesScores
) -> None:
    other = turned_geometry(geometry(), ([-1, 0, 0], [0, 1, 0]))
    stored = np.ascontiguousarray(head[::-1, :, ::-1])
    again = model.scores(stored, other)
    assert again.slices == pytest.approx(scores.slices[::-1], abs=1e-5)
    assert again.series == pytest.approx(scores.series, abs=1e-5)


def test_metal_in_several_slices_is_a_doubt(head: Hu, scores: SeriesScores) -> None:
    metal = head.copy()
    metal[2:5, 80:84, 80:84] = 3071.0
    assert scores.doubts == ()
    assert "Metal in 3 slices" in doubts_of(metal, slabs_of(geometry()))[0]


def test_a_skull_that_is_filled_evenly_is_doubted_as_a_phantom(
    model: Haemorrhage, head: Hu
) -> None:
    assert examined(head, 1.0).doubts == ()
    phantom = made_head(fluid_hu=35.0)
    (sentence,) = model.scores(phantom, geometry()).doubts
    assert re.match(r"The inside of the skull is even: \d\.\d HU .* may be a phantom\.", sentence)


def test_a_step_gives_the_scores_with_their_thresholds_and_what_was_seen(
    model: Haemorrhage, head: Hu, scores: SeriesScores
) -> None:
    (step,) = model.plan(geometry(), Parameters())
    window = Window(geometry(), dict(enumerate(head)))
    prediction = model.run(step, window, Limits())
    made = prediction.scores
    assert made is not None
    np.testing.assert_array_equal(made.slices, scores.slices)
    assert (made.series, made.heat.keys()) == (scores.series, scores.heat.keys())
    assert made.slice_threshold == model.calibration.slices.threshold
    assert made.series_threshold == model.calibration.series.threshold
    assert prediction.record["doubts"] == []
    with pytest.raises(Unprocessable, match="BodyPartExamined is 'CHEST'"):
        model.check_scope(facts(BodyPartExamined="CHEST"), geometry())


def test_a_single_high_slab_counts_half_and_raises_its_neighbours() -> None:
    logits = np.array([0.0, 0.0, 4.0, 0.0, 0.0])
    assert smoothed(logits).tolist() == [0.0, 1.0, 2.0, 1.0, 0.0]
    assert series_logit(np.array([1.0, 5.0, 3.0, 4.0])) == 4.0


def test_slices_are_ranked_by_score_and_those_seen_together_count_once() -> None:
    made = Scores(np.array([0.1, 0.4, 0.4, 0.4, 0.9, 0.9, 0.2]), 0.5, 0.3, 0.5)
    assert made.ranked == (4, 2, 6, 0)
    assert made.high_slices == (4, 2)
    assert made.is_present  # at its threshold
    assert not replace(made, series=0.49).is_present


CALIBRATION = {
    "slices": {"slope": 1.0, "shift": 0.0, "threshold": 0.5},
    "series": {"slope": 2.0, "shift": -1.0, "threshold": 0.4},
    "patients": ["049"],
}


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "weights.json"
    path.write_text(json.dumps(CALIBRATION), encoding="utf-8")
    calibration = ScoreCalibration.read(path)
    calibration.write(path)
    assert ScoreCalibration.read(path) == calibration
    assert calibration.series.probability(np.array([0.5])) == pytest.approx([0.5])


def test_another_calibration_of_the_same_weights_makes_other_results(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    path.write_bytes(SHIPPED_WEIGHTS.read_bytes())
    path.with_suffix(".json").write_text(json.dumps(CALIBRATION), encoding="utf-8")
    own, shipped = Haemorrhage(path), Haemorrhage()
    assert own.weights_sha256 == shipped.weights_sha256
    assert own.runtime != shipped.runtime
    assert own.operating_point == "slice threshold 0.5000, series threshold 0.4000"
    assert own.trained_on.startswith("1 patients")


@pytest.mark.parametrize("facts", [{}, {**CALIBRATION, "slices": {"slope": 1.0}}])
def test_another_calibration_is_refused(tmp_path: Path, facts: Mapping[str, object]) -> None:
    path = tmp_path / "weights.json"
    path.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(ModelLoadError, match="not a calibration"):
        ScoreCalibration.read(path)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="cannot be read"):
        Haemorrhage(tmp_path / "none.safetensors")
    (tmp_path / "no.safetensors").write_bytes(b"no")
    with pytest.raises(ModelLoadError, match="not a safetensors file"):
        Haemorrhage(tmp_path / "no.safetensors")
