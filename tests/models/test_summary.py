"""From slices to a cell: means, shares and worst values worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from inference.training.evaluate import Panel, chosen
from inference.training.metrics import (
    Figures,
    Milliseconds,
    SliceFigures,
    TrustedSlice,
    confidence_of,
    figures_of_cell,
)

LINEAR = SliceFigures(
    psnr_db=36.0,
    ssim=0.9,
    psnr_soft_db=24.0,
    ssim_soft=0.8,
    body_mae_hu=40.0,
    body_bias_hu=-2.0,
    edge_mae_hu=80.0,
    gradient_ratio=0.8,
    noise_hu=15.0,
    noise_ratio=0.75,
    lung_pixels=1000,
    low_pixels=10,
    low_pixels_true=30,
)
DIS = replace(LINEAR, psnr_db=37.0)


def cell(ours: list[SliceFigures], noise_beside: float | None = 20.0) -> Figures:
    count = len(ours)
    beside = [noise_beside] * count
    return figures_of_cell(ours, [LINEAR] * count, [DIS] * count, beside, Milliseconds(50.0, 90.0))


def with_psnr(*values: float) -> list[SliceFigures]:
    return [replace(LINEAR, psnr_db=value) for value in values]


def test_gains_and_shares_are_over_the_same_slices() -> None:
    found = cell(with_psnr(38.0, 36.8, 35.9, 35.5))
    assert found.over_linear_db == pytest.approx((2.0 + 0.8 - 0.1 - 0.5) / 4)
    assert found.worst_over_linear_db == pytest.approx(-0.5)
    assert found.over_dis_db == pytest.approx(found.over_linear_db - 1.0)
    assert found.below_linear == 0.5
    assert found.notably_below_linear == 0.25
    assert found.below_dis == 0.75
    assert found.notably_below_dis == 0.5
    assert (found.ms_per_slice, found.cpu_ms_per_slice) == (50.0, 90.0)


def test_the_interval_holds_the_mean_and_is_narrow_where_slices_agree() -> None:
    alike = cell(with_psnr(*[38.0] * 20))
    assert alike.over_linear_interval_db == (2.0, 2.0)
    apart = cell(with_psnr(*[37.0] * 10, *[39.0] * 10))
    low, high = apart.over_linear_interval_db
    assert 1.4 < low < 2.0 < high < 2.6


def test_the_error_is_told_as_a_share_of_linears() -> None:
    ours = [replace(LINEAR, body_mae_hu=20.0), replace(LINEAR, body_mae_hu=40.0)]
    assert cell(ours).body_mae_to_linear == pytest.approx(-0.25)


def test_laa_950_is_of_all_lungs_of_the_cell_together() -> None:
    """A slice with little lung counts little: 10 + 0 of 1500 pixels, truly 30 + 30."""
    small = replace(LINEAR, lung_pixels=500, low_pixels=0)
    found = cell([LINEAR, small])
    assert found.laa_950 == pytest.approx(10 / 1500)
    assert found.laa_950_off == pytest.approx(50 / 1500)


def test_without_lungs_there_is_no_laa_950() -> None:
    found = cell([replace(LINEAR, lung_pixels=0, low_pixels=0, low_pixels_true=0)])
    assert (found.laa_950, found.laa_950_off) == (None, None)


def test_noise_steps_from_a_received_slice_to_the_made_one() -> None:
    """From 20 to 15 HU and from 20 to 25 HU: a quarter each, in whichever direction."""
    assert cell([LINEAR, replace(LINEAR, noise_hu=25.0)]).noise_step == pytest.approx(0.25)
    assert cell([replace(LINEAR, noise_hu=20.0)]).noise_step == pytest.approx(0.0)
    assert cell([LINEAR], noise_beside=None).noise_step is None


def test_a_slice_without_a_measure_does_not_count_for_it() -> None:
    bare = replace(LINEAR, edge_mae_hu=None, gradient_ratio=None, noise_hu=None, noise_ratio=None)
    found = cell([LINEAR, bare])
    assert (found.edge_mae_hu, found.gradient_ratio, found.noise_ratio) == (80.0, 0.8, 0.75)
    alone = cell([bare])
    assert (alone.edge_mae_hu, alone.noise_ratio, alone.noise_step) == (None, None, None)


def test_confidence_compares_what_was_expected_with_what_came() -> None:
    expected, true = (10.0, 20.0, 30.0, 40.0), (11.0, 35.0, 30.0, 44.0)
    found = confidence_of(
        [TrustedSlice(e, t, 1.0 / e, 0.9 + e / 1000) for e, t in zip(expected, true, strict=True)]
    )
    assert found is not None
    assert found.spearman == pytest.approx(0.8)  # two neighbours changed places: 1 - 6 * 2 / 60
    assert found.predicted_to_true == pytest.approx(100.0 / 120.0)
    assert found.coverage == pytest.approx(0.925)
    assert (found.least, found.mean) == (1 / 40, pytest.approx(np.mean([1 / e for e in expected])))
    assert confidence_of([]) is None


def test_the_three_worst_slices_are_shown_and_the_usual_one_where_it_is_another() -> None:
    def shown(*gains_db: float) -> list[tuple[str, float]]:
        panels = [Panel(place, gain, "", ()) for place, gain in enumerate(gains_db)]
        return [(panel.what, panel.gain_db) for panel in chosen(panels)]

    worst = [("least gain", -1.0), ("second least", 0.5), ("third least", 1.0)]
    assert shown(2.0, 0.5, -1.0, 1.0) == worst
    assert shown(2.0, 0.5, 4.0, -1.0, 3.0, 1.0, 5.0) == [*worst, ("median gain", 2.0)]
    assert shown(0.5) == [("least gain", 0.5)]
    assert shown() == []
