"""What training minimises: errors, drift of areas, a scale that fits, and a lack of grain;
in lung the share below each level."""

import pytest
import torch

from inference.training import losses
from inference.training.losses import BORDER, grain_loss, loss_of, lung_loss
from inference.training.train import gain_db


def test_the_loss_counts_errors_inside_the_border_alone() -> None:
    truth = torch.zeros(1, 1, 32, 32)
    scale = torch.full_like(truth, 30.0)
    at_border, inside = truth.clone(), truth.clone()
    at_border[..., : BORDER - 1, :] = 500.0
    inside[..., 16, 16] = 500.0
    perfect = float(loss_of(truth, scale, truth, truth))
    assert float(loss_of(at_border, scale, truth, truth)) == perfect
    assert float(loss_of(inside, scale, truth, truth)) > perfect


def test_the_best_scale_is_the_error() -> None:
    truth = torch.zeros(1, 1, 32, 32)
    made = torch.full_like(truth, 40.0)
    losses = [
        float(loss_of(made, torch.full_like(truth, hu), truth, truth)) for hu in (10, 40, 160)
    ]
    assert losses[1] < min(losses[0], losses[2])


def test_an_area_that_is_too_dark_costs_more_than_errors_of_both_signs() -> None:
    truth, scale = torch.zeros(1, 1, 96, 96), torch.full((1, 1, 96, 96), 30.0)
    dark, mixed = truth - 10.0, truth - 10.0
    mixed[..., ::2] = 10.0
    assert float(loss_of(dark, scale, truth, truth)) > float(loss_of(mixed, scale, truth, truth))


def test_an_error_counts_less_where_the_flow_blend_errs_more() -> None:
    truth = torch.zeros(1, 1, 32, 32)
    made, scale = truth + 40.0, truth + 30.0
    easy, hard = (
        loss_of(made, scale, truth, truth + 10.0),
        loss_of(made, scale, truth, truth + 90.0),
    )
    assert float(easy) > float(hard)


def grainy(noise_hu: float, *, of: float = 40.0, seed: int = 0) -> torch.Tensor:
    grain = noise_hu * torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(seed))
    return of + grain


def test_flat_tissue_without_grain_costs_and_with_that_of_linear_does_not() -> None:
    truth, straight = grainy(20.0), grainy(16.0, seed=1)
    costs = [float(grain_loss(grainy(hu, seed=2), truth, straight)) for hu in (0.0, 8.0, 16.0)]
    assert costs[0] > costs[1] > 0.0
    assert costs[2] == 0.0
    assert float(grain_loss(grainy(40.0, seed=2), truth, straight)) == 0.0  # never too much


@pytest.mark.parametrize("hu", [-800.0, 900.0], ids=["lung", "bone"])
def test_grain_is_asked_for_in_soft_tissue_alone(hu: float) -> None:
    truth, straight = grainy(20.0, of=hu), grainy(16.0, of=hu, seed=1)
    assert float(grain_loss(grainy(0.0, of=hu), truth, straight)) == 0.0


def test_grain_is_not_asked_for_at_edges() -> None:
    ramp = 9.0 * torch.arange(64.0) - 100.0 - 9.0 * 16.0
    truth = ramp.expand(2, 1, 64, 64)
    assert float(grain_loss(truth, truth, truth + grainy(16.0, of=0.0))) == 0.0


def test_more_grain_is_what_the_loss_for_grain_asks_of_a_smooth_slice() -> None:
    truth, straight = grainy(20.0), grainy(16.0, seed=1)
    amount = torch.tensor(5.0, requires_grad=True)
    grain_loss(40.0 + amount * (grainy(1.0, seed=2) - 40.0), truth, straight).backward()
    assert amount.grad is not None
    assert float(amount.grad) < 0.0


def of_the_border(slice_hu: torch.Tensor) -> torch.Tensor:
    beyond = torch.ones_like(slice_hu, dtype=torch.bool)
    beyond[..., BORDER:-BORDER, BORDER:-BORDER] = False
    return slice_hu[beyond]


def test_no_value_at_the_border_pays_in_any_loss() -> None:
    """Where no error counts, a value that bought grain would be free, and wild."""
    truth, straight = grainy(20.0), grainy(16.0, seed=1)
    smooth = (truth * 0.1 + 36.0).requires_grad_()
    grain_loss(smooth, truth, straight).backward()
    assert smooth.grad is not None
    assert float(smooth.grad.abs().max()) > 0.0
    assert float(of_the_border(smooth.grad).abs().max()) == 0.0
    lung = (truth - 940.0).requires_grad_()
    lung_loss(lung, truth - 930.0).backward()
    assert lung.grad is not None
    assert float(lung.grad.abs().max()) > 0.0
    assert float(of_the_border(lung.grad).abs().max()) == 0.0


def test_the_gain_that_training_tells_leaves_the_border_out() -> None:
    truth = torch.zeros(1, 1, 32, 32)
    at_border = truth.clone()
    at_border[..., : BORDER - 1, :] = 500.0
    assert gain_db(at_border, truth + 10.0, truth) == gain_db(truth, truth + 10.0, truth)


def test_lung_that_is_too_even_costs_as_lung_that_is_too_dark_does() -> None:
    truth = grainy(40.0, of=-900.0)
    even, dark = truth * 0.2 - 720.0, truth - 15.0
    assert float(lung_loss(truth, truth)) == 0.0
    assert float(lung_loss(even, truth)) > 0.0
    assert float(lung_loss(dark, truth)) > 0.0
    # The same values at other places: the shares alone count, errors are the other loss's.
    assert float(lung_loss(truth.flip(-1), truth)) < 0.2 * float(lung_loss(even, truth))


def test_the_skin_of_a_body_in_air_is_no_lung() -> None:
    """Smoothed it is as dense, a few pixels wide; with it the loss drew bodies darker."""
    row = torch.full((96,), -1000.0)
    for first in (12, 36, 60, 84):  # folds of it: more of the ring than the loss needs of lung
        row[first : first + 12] = 40.0
    skin = row.expand(1, 1, 96, 96).contiguous()
    smooth = losses._smoothed(losses.inner(skin), 5)
    ring = (smooth > losses.LUNG_LOW_HU) & (smooth < losses.LUNG_HIGH_HU)
    assert int(ring.sum()) > losses.LEAST_LUNG_PIXELS
    assert float(lung_loss(skin - 30.0, skin)) == 0.0


@pytest.mark.parametrize("hu", [40.0, -995.0], ids=["soft tissue", "air around the body"])
def test_shares_count_in_lung_alone(hu: float) -> None:
    truth = grainy(10.0, of=hu)
    assert float(lung_loss(truth * 0.2 + 0.8 * hu, truth)) == 0.0
