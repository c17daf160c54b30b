"""Training and judging of the haemorrhage model: figures, folds, calibration, what is written."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from numpy.typing import NDArray
from safetensors.torch import load_file

from inference.errors import ModelLoadError
from inference.models.haemorrhage.haemorrhage import Haemorrhage, Scale
from inference.models.haemorrhage.network import ScoreNetwork
from inference.training import haemorrhage as training
from inference.training import haemorrhage_figures, scores
from inference.training.beside import TrainingOrder
from inference.training.data import NoSeries
from inference.training.haemorrhage import Cache, HeadPlan, conclude, fit, regressed
from inference.training.haemorrhage_figures import Cohort, calibrated
from inference.training.head_ct import HeadPatient, blood_share, load_heads
from inference.training.scores import Scored, fitted_scale
from tests.head_pictures import made_patient, write_data


@pytest.fixture(scope="module")
def heads() -> tuple[HeadPatient, ...]:
    """Two folds, each with a patient who bleeds and two who do not."""
    return tuple(made_patient(number, bleeds=number in (2, 3)) for number in range(6))


@pytest.fixture(scope="module")
def network() -> ScoreNetwork:
    torch.manual_seed(1)
    return ScoreNetwork().eval()


PLAN = HeadPlan(versions=2, steps=2)


@pytest.fixture(scope="module")
def cache(heads: Sequence[HeadPatient], network: ScoreNetwork) -> Cache:
    return Cache(heads, network, PLAN, lambda _share: None)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "DRAWS", 20)


def scored(
    probability: Sequence[float], truth: Sequence[int], patient: Sequence[int] = ()
) -> Scored:
    values, flags = np.array(probability, float), np.array(truth, bool)
    numbers = np.array(patient or range(len(values)))
    high = values >= 0.5
    return Scored(numbers, flags, values, values, values, values, high, high)


def test_the_area_under_the_curve_counts_pairs_and_half_of_ties() -> None:
    assert scores.auc(scored([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])) == 0.75
    assert scores.auc(scored([0.5, 0.5], [0, 1])) == 0.5


def test_average_precision_is_the_area_under_its_steps() -> None:
    assert scores.average_precision(scored([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])) == pytest.approx(
        (1.0 + 2.0 / 3.0) / 2.0
    )
    assert scores.average_precision(scored([0.5] * 4, [1, 0, 0, 0])) == 0.25


def test_sensitivity_is_what_lies_above_the_negatives() -> None:
    probability = [*np.linspace(0.0, 0.5, 11), 0.44, 0.46]
    assert scores.sensitivity_at(scored(probability, [0] * 11 + [1, 1]), 0.9) == 0.5


def test_scores_that_are_off_by_a_fifth_have_that_calibration_error() -> None:
    own = scored([0.3] * 10, [1] * 5 + [0] * 5)
    assert scores.calibration_error(own) == pytest.approx(0.2)
    assert scores.reliability(own) == [(pytest.approx(0.3), 0.5)]


def test_a_patient_is_positive_with_one_positive_slice() -> None:
    own = Scored(
        np.array([4, 4, 7]),
        np.array([False, True, False]),
        np.array([-2.0, 3.0, -4.0]),
        np.array([1.0, 1.0, -1.0]),
        np.array([0.2, 0.9, 0.1]),
        np.array([0.6, 0.6, 0.3]),
        np.array([False, True, False]),
        np.array([True, True, False]),
    ).patients
    assert own.truth.tolist() == [True, False]
    assert own.probability.tolist() == [0.6, 0.3]
    assert own.logit.tolist() == [1.0, -1.0]
    assert own.present.tolist() == [True, False]


def test_draws_take_patients_whole_and_both_kinds() -> None:
    own = scored([0.1, 0.2, 0.8, 0.3], [0, 0, 1, 0], [1, 1, 2, 3])
    for draw in scores.drawn(own, 1):
        assert len(np.unique(draw.patient)) == 3
        assert draw.truth.any()
        assert (~draw.truth).any()
        assert (draw.probability == 0.1).sum() == (draw.probability == 0.2).sum()


def test_a_gain_over_oneself_is_nothing() -> None:
    own = scored([0.1, 0.2, 0.8, 0.3], [0, 0, 1, 1])
    gain = scores.gains(own, own, [scores.SLICE_AUC])[scores.SLICE_AUC]
    assert (gain.value, gain.low, gain.high) == (0.0, 0.0, 0.0)


def test_a_fitted_scale_gives_the_share_that_is_positive() -> None:
    random = default_rng(1)
    logits = random.normal(0.0, 3.0, 20_000)
    truth = random.random(20_000) < 1.0 / (1.0 + np.exp(-(0.5 * logits - 1.0)))
    scale = fitted_scale(logits, truth, 0.9)
    assert (scale.slope, scale.shift) == pytest.approx((0.5, -1.0), abs=0.05)
    assert (scale.probability(logits[~truth]) < scale.threshold).mean() == pytest.approx(0.9, 1e-3)


def test_nothing_of_a_fold_enters_its_own_scale(heads: Sequence[HeadPatient]) -> None:
    cohort = Cohort.of(heads)
    logits = default_rng(2).normal(0.0, 1.0, len(cohort.truth)) + 2.0 * cohort.truth
    own = cohort.folds == 0
    truth = cohort.truth.copy()
    truth[own] = np.roll(truth[own], 3)  # another patient of the fold bleeds
    other = replace(cohort, truth=truth)
    before, after = calibrated(cohort, logits), calibrated(other, logits)
    assert np.array_equal(before.probability[own], after.probability[own])
    assert np.array_equal(before.present[own], after.present[own])
    assert not np.array_equal(before.probability[~own], after.probability[~own])


def test_other_folds_of_one_kind_give_no_scale(heads: Sequence[HeadPatient]) -> None:
    cohort = Cohort.of([replace(head, fold=int(head.bleeds.any())) for head in heads])
    with pytest.raises(NoSeries, match="other folds"):
        calibrated(cohort, default_rng(1).normal(0.0, 1.0, len(cohort.truth)))


def test_patients_of_one_kind_are_not_judged(heads: Sequence[HeadPatient]) -> None:
    with pytest.raises(NoSeries, match="with haemorrhage and patients without"):
        Cohort.of(heads[:2])


def test_the_detector_without_learning_sees_the_spot(heads: Sequence[HeadPatient]) -> None:
    share = blood_share(heads[2].pictures)
    assert share[1] > 2.0 * share[0]


def test_a_regression_learns_what_it_trains_on() -> None:
    features = default_rng(3).normal(0.0, 1.0, (200, 5)).astype(np.float32)
    truth = features[:, 0] > 0.0
    train = np.arange(200) < 150
    logits = regressed(features, truth, train)
    assert ((logits > 0.0) == truth)[~train].mean() > 0.9


def test_one_seed_gives_the_same_weights_and_the_first_blocks_stay(
    network: ScoreNetwork, cache: Cache
) -> None:
    train = cache.folds == 0
    first, second = (fit(network, cache, train, PLAN, lambda _share: None) for _ in range(2))
    own, again = first.state_dict(), second.state_dict()
    assert all(torch.equal(own[name], again[name]) for name in own)
    start = network.state_dict()
    changed = {n for n in own if not torch.equal(own[n], start[n].half().to(own[n].dtype))}
    assert "score.weight" in changed
    assert "blocks.5.expand.convolution.weight" in changed
    assert not [name for name in changed if name.startswith(("stem.", "blocks.4."))]
    assert not [name for name in changed if "running" in name]


def test_a_training_writes_weights_scores_curves_and_a_card(
    heads: Sequence[HeadPatient], network: ScoreNetwork, cache: Cache, tmp_path: Path
) -> None:
    order = TrainingOrder(tmp_path, tmp_path / "out", 60.0, 2, 1, "cpu", None)
    networks: dict[int | None, ScoreNetwork] = {
        fold: fit(network, cache, np.ones(len(cache.folds), bool), PLAN, lambda _share: None)
        for fold in (0, 1, None)
    }
    table = conclude(order, heads, cache, network, networks, lambda _share, _what: None)
    written = {path.name for path in order.out.iterdir()}
    assert {"haemorrhage.safetensors", "haemorrhage.json", "fold0.safetensors"} <= written
    assert {"pr.png", "pr.csv", "reliability.png", "evaluation.json", "card.md"} <= written
    methods = [row[0] for row in table.rows[:3]]
    assert methods == ["blood by threshold", "frozen ImageNet features", "haemorrhage"]
    record = json.loads((order.out / "evaluation.json").read_text(encoding="utf-8"))
    assert record["patients"] == 6
    assert load_file(order.out / "fold0.safetensors")["score.weight"].dtype == torch.float16
    # The scores from the cache are those that the model gives from the pictures.
    model = Haemorrhage(order.out / "fold0.safetensors")
    assert model.calibration.patients == ("p1", "p3", "p5")
    logits, _ = model.seen(heads[2].pictures)
    with (order.out / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["patient"] == "p2"]
    listed = [float(row["haemorrhage, slice"]) for row in rows]
    assert model.calibration.slices.probability(logits) == pytest.approx(listed, abs=5e-3)


def test_few_steps_need_few_versions_and_few_minutes_shorten_the_training() -> None:
    def order(minutes: float, steps: int | None) -> TrainingOrder:
        return TrainingOrder(Path(), Path(), minutes, steps, 1, "cpu", None)

    assert HeadPlan.of(order(60.0, 3)).versions == 3
    assert HeadPlan.of(order(60.0, None)) == HeadPlan()
    assert HeadPlan.of(order(5.0, None)).epochs == HeadPlan().epochs / 4.0


def test_training_begins_with_the_weights_of_imagenet() -> None:
    network, again = training.imagenet_network(1), training.imagenet_network(1)
    assert torch.equal(network.score.weight, again.score.weight)
    assert float(network.stem.norm.running_var.mean()) != 1.0


def test_training_names_the_extra_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "IMAGENET", ("no_such_package", "models", "x.pth"))
    with pytest.raises(ModelLoadError, match=r"pip install 'midslice\[train\]'"):
        training.imagenet_network(1)


def test_a_folder_without_labels_is_no_training_set(tmp_path: Path) -> None:
    with pytest.raises(NoSeries, match=r"no patients\.csv"):
        load_heads(tmp_path)


def test_a_data_set_is_read_and_judged_with_the_shipped_weights(tmp_path: Path) -> None:
    write_data(tmp_path)
    order = haemorrhage_figures.EvaluationOrder(
        "haemorrhage", tmp_path, tmp_path / "out", None, None, "cpu"
    )
    table = haemorrhage_figures.judge(order, lambda _share, _what: None)
    blood, own = table.rows[:2]
    assert (blood[0], own[0]) == ("blood by threshold", "haemorrhage")
    assert own[2:4] == ("4 (2 bleed)", "12 (2)")
    assert blood[4].startswith("1.000")
    (head, *_) = load_heads(tmp_path)
    assert head.pictures.shape == (3, 192, 192)
    assert head.bleeds.tolist() == [False, True, False]


def test_a_scale_turns_logits_into_shares() -> None:
    values: NDArray[np.float64] = Scale(2.0, 1.0, 0.5).probability(np.array([-0.5, 0.0]))
    assert values == pytest.approx([0.5, 0.731], abs=1e-3)
