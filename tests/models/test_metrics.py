"""The measures of an evaluation mean what they say: each against a value worked out by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.training import metrics
from inference.training.metrics import SliceFigures, TruthSlice
from inference.volume import Plane
from tests.models.made import made_geometry, made_plane


def figures_of(plane: Plane, truth: Plane) -> SliceFigures:
    return TruthSlice(truth).figures_of(plane)


def flat(value: float, side: int = 32) -> Plane:
    return np.full((side, side), value, np.float32)


def noise(side: int, sigma: float, seed: int = 0) -> Plane:
    random = np.random.default_rng(seed)
    return np.float32(sigma) * random.standard_normal((side, side), dtype=np.float32)


def tissue_with_noise(sigma: float, seed: int = 0) -> Plane:
    """Soft tissue in air, so that it has a body, with noise everywhere."""
    plane = flat(-1000.0, 128)
    plane[16:112, 16:112] = 40.0
    return plane + noise(128, sigma, seed)


# --- PSNR and SSIM ----------------------------------------------------------------------------


def test_psnr_is_of_the_window_of_3072_hu() -> None:
    assert figures_of(flat(30.72), flat(0.0)).psnr_db == pytest.approx(40.0, abs=1e-3)


def test_psnr_of_soft_tissue_is_of_its_window_of_400_hu() -> None:
    found = figures_of(flat(44.0), flat(40.0))
    assert found.psnr_soft_db == pytest.approx(40.0, abs=1e-3)


def test_equal_slices_have_the_psnr_of_rounding_not_an_infinite_one() -> None:
    assert figures_of(flat(7.0), flat(7.0)).psnr_db == pytest.approx(20.0 * np.log10(3072.0 / 0.5))


def test_what_lies_outside_the_window_counts_nothing() -> None:
    true = flat(2048.0)
    true[:16] = -1024.0
    beyond = np.where(true > 0.0, np.float32(3000.0), np.float32(-2000.0))
    assert figures_of(beyond, true).psnr_db == pytest.approx(75.77, abs=0.01)


def test_ssim_of_two_flat_slices_is_its_luminance_term_alone() -> None:
    """Equation 6 of Wang et al.: (2 x y + c1) / (x^2 + y^2 + c1) with values from 0 to L."""
    x, y, c1 = 1124.0, 1224.0, (0.01 * 3072.0) ** 2
    expected = (2.0 * x * y + c1) / (x * x + y * y + c1)
    assert figures_of(flat(100.0), flat(200.0)).ssim == pytest.approx(expected, abs=2e-5)


def test_ssim_of_opposite_structures_is_that_of_its_structure_term() -> None:
    """Where one slice is the other mirrored about its mean, the covariance is minus the variance;
    in a chessboard every window has the same ones."""
    y, x = np.mgrid[:64, :64]
    board = np.where((x + y) % 2, np.float32(300.0), np.float32(-300.0))
    c2, variance = (0.03 * 3072.0) ** 2, 300.0**2
    expected = (c2 - 2.0 * variance) / (c2 + 2.0 * variance)
    assert figures_of(board, -board).ssim == pytest.approx(expected, abs=2e-3)


def test_ssim_is_one_for_the_same_slice_and_falls_with_noise() -> None:
    true = made_plane(made_geometry(2, 96, 96), 0.0, noise_hu=15.0)
    assert figures_of(true, true).ssim == pytest.approx(1.0, abs=1e-6)
    slight, strong = (figures_of(true + noise(96, s), true).ssim for s in (20.0, 200.0))
    assert strong < 0.5 < slight < 1.0


# --- the body and its edges -------------------------------------------------------------------


def test_bias_and_error_are_of_the_body_alone() -> None:
    true = made_plane(made_geometry(2, 96, 96), 0.0)
    made = true.copy()
    made[TruthSlice(true).body] += 3.0
    made[:4] += 500.0
    found = figures_of(made, true)
    assert found.body_bias_hu == pytest.approx(3.0, abs=1e-4)
    assert found.body_mae_hu == pytest.approx(3.0, abs=1e-4)


def test_errors_of_both_signs_cancel_in_the_bias_and_not_in_the_error() -> None:
    true = flat(-1000.0, 64)
    true[8:56, 8:56] = 40.0
    made = true.copy()
    made[8:56, 8:32] += 10.0
    made[8:56, 32:56] -= 10.0
    found = figures_of(made, true)
    assert found.body_bias_hu == pytest.approx(0.0, abs=1e-4)
    assert found.body_mae_hu == pytest.approx(10.0, abs=1e-4)


def test_a_slice_of_air_alone_has_no_body_and_no_error_in_it() -> None:
    air = flat(-1000.0, 40)
    found = figures_of(air + 5.0, air)
    assert not TruthSlice(air).body.any()
    assert (found.body_mae_hu, found.body_bias_hu) == (0.0, 0.0)
    assert (found.edge_mae_hu, found.gradient_ratio, found.noise_ratio) == (None, None, None)


def test_the_gradient_of_a_ramp_is_its_slope() -> None:
    ramp = np.tile(np.arange(32, dtype=np.float32) * 50.0, (32, 1))
    assert metrics.gradient_hu(ramp)[4:-4, 4:-4] == pytest.approx(50.0)


def test_edges_are_where_the_truth_changes_by_more_than_40_hu_a_pixel() -> None:
    gentle, steep = (
        np.tile(np.clip(np.arange(64, dtype=np.float32) * slope, 0, 400), (64, 1))
        for slope in (39.0, 41.0)
    )
    assert not TruthSlice(gentle).edges[8:-8, 2:9].any()
    assert TruthSlice(steep).edges[8:-8, 2:9].all()


def test_a_slice_with_half_the_contrast_has_half_the_gradient() -> None:
    true = made_plane(made_geometry(2, 96, 96), 0.0)
    found = figures_of(np.asarray(0.5 * true), true)
    assert found.gradient_ratio == pytest.approx(0.5, abs=1e-5)
    edges = TruthSlice(true).edges
    assert found.edge_mae_hu == pytest.approx(float(np.abs(0.5 * true[edges]).mean()), rel=1e-5)


# --- noise ------------------------------------------------------------------------------------


def test_the_noise_ratio_of_half_the_noise_is_a_half() -> None:
    field = tissue_with_noise(12.0) - tissue_with_noise(0.0)
    found = figures_of(tissue_with_noise(0.0) + 0.5 * field, tissue_with_noise(12.0))
    assert found.noise_ratio == pytest.approx(0.5, abs=0.02)


def test_linear_interpolation_of_white_noise_has_0_71_of_it() -> None:
    """The mean of two independent noises has 1 / sqrt(2) of each."""
    mean = (tissue_with_noise(12.0, seed=1) + tissue_with_noise(12.0, seed=2)) / 2.0
    found = figures_of(mean, tissue_with_noise(12.0))
    assert found.noise_ratio == pytest.approx(2.0**-0.5, abs=0.03)


def test_noise_is_measured_away_from_edges() -> None:
    true = tissue_with_noise(5.0)
    true[40:60, 40:60] += 500.0  # bone
    assert TruthSlice(true).noise_hu == pytest.approx(4.9, abs=0.3)  # the high-pass takes 2 % away
    assert not TruthSlice(true).flat[36:64, 38:42].any()


def test_without_flat_tissue_there_is_no_noise_ratio() -> None:
    true = flat(-1000.0, 64)
    true[20:30, 20:30] = 40.0
    assert figures_of(true, true).noise_ratio is None


# --- lungs ------------------------------------------------------------------------------------


def chest() -> Plane:
    """A body with one lung of 40 x 30 pixels and a trachea of 6 x 6, in air and at 1 mm."""
    plane = flat(-1000.0, 128)
    plane[14:114, 14:114] = 40.0
    plane[40:80, 30:60] = -850.0
    plane[50:56, 90:96] = -1000.0
    return plane


def test_the_lungs_are_air_in_the_body_without_the_trachea_and_the_room() -> None:
    lungs = TruthSlice(chest(), pixel_mm=1.0).lungs
    assert lungs[60, 45]
    assert not lungs[52, 92]
    assert not lungs[2, 2]
    assert lungs.sum() == pytest.approx(40 * 30, rel=0.12)


def test_laa_950_counts_the_lung_below_950_hu() -> None:
    true = chest()
    true[40:60, 30:60] = -980.0  # the upper half is emphysema
    made = true.copy()
    made[40:50, 30:60] = -900.0  # of which half is lost
    found = TruthSlice(true, 1.0).figures_of(made)
    assert found.low_pixels_true == pytest.approx(600, abs=4)  # its corners are round
    assert found.low_pixels == pytest.approx(300, abs=4)
    assert found.lung_pixels >= 1100


# --- ranks and intervals ----------------------------------------------------------------------


def series(*values: float) -> NDArray[np.float64]:
    return np.array(values, np.float64)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (series(1, 2, 3, 4), series(10, 200, 3000, 9e9), 1.0),
        (series(1, 2, 3, 4), series(4, 3, 2, 1), -1.0),
        # Ranks differ by 1, 1, 2, 0, 2: 1 - 6 * 10 / (5 * 24).
        (series(1, 2, 3, 4, 5), series(2, 1, 5, 4, 3), 0.5),
        # The equal ones share rank 2: 8 / sqrt(8 x 10).
        (series(7, 7, 7, 8, 9), series(1, 2, 3, 4, 5), 0.8**0.5),
    ],
)
def test_spearman_is_the_correlation_of_ranks(
    one: NDArray[np.float64], other: NDArray[np.float64], expected: float
) -> None:
    assert metrics.spearman(one, other) == pytest.approx(expected)


def test_equal_values_have_no_ranks_to_correlate() -> None:
    assert metrics.spearman(series(1, 1, 1), series(1, 2, 3)) is None


def test_the_bootstrap_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(3).normal(2.0, 0.5, 400)
    low, high = metrics.bootstrap(values)
    standard_error = 0.5 / np.sqrt(400)
    assert low == pytest.approx(values.mean() - 1.96 * standard_error, abs=0.012)
    assert high == pytest.approx(values.mean() + 1.96 * standard_error, abs=0.012)
    assert metrics.bootstrap(values) == (low, high)


def test_a_mean_is_of_the_slices_that_have_the_measure() -> None:
    true = tissue_with_noise(12.0)
    air = flat(-1000.0, 128)
    slices = [figures_of(true, true), figures_of(air, air)]
    assert metrics.mean_of(slices, "noise_ratio") == pytest.approx(1.0)
    assert metrics.mean_of(slices[1:], "noise_ratio") is None
