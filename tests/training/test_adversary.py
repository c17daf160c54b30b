"""The adversary: its judge learns, pulls the generator as hard as it is told, and is kept."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inference.training.checkpoint import load_checkpoint, save_checkpoint
from inference.training.data import Patient, load_patients
from inference.training.losses import Adversary, balanced
from inference.training.samples import CROP
from inference.training.train import Training
from tests.models.made import QUICK, error_of, made_hu, write_npz

SIDE = 32
CONDITIONS = torch.tensor([[0.5, 0.5, 0.0, 1.0, 1.0, 1.0]]).repeat(4, 1)


def noise(channels: int) -> torch.Tensor:
    return 60.0 * torch.randn(4, channels, SIDE, SIDE)


@pytest.fixture(scope="module")
def learned() -> tuple[Adversary, list[float]]:
    """An adversary whose judge has seen noisy truth beside smooth slices, and its losses."""
    torch.manual_seed(0)
    adversary = Adversary("cpu")
    smooth = torch.zeros(4, 1, SIDE, SIDE)
    return adversary, [adversary.learn(smooth, noise(1), noise(6), CONDITIONS) for _ in range(40)]


def test_the_judge_learns_to_tell_smooth_slices_from_noisy_ones(
    learned: tuple[Adversary, list[float]],
) -> None:
    adversary, losses = learned
    assert losses[0] == pytest.approx(2.0, abs=0.3)  # it guesses
    assert losses[-1] < 0.5 * losses[0]
    planes, smooth = noise(6), torch.zeros(4, 1, SIDE, SIDE)
    objections = [float(adversary.objection(b, planes, CONDITIONS)) for b in (smooth, noise(1))]
    assert objections[0] > objections[1]


def test_an_objection_pulls_in_proportion_to_the_loss() -> None:
    made = torch.tensor([1.0, 2.0], requires_grad=True)
    loss, objection = made.square().sum(), 1000.0 * made.sum()  # gradients (2, 4), (1000, 1000)
    balanced(loss, objection, made, 0.5).backward()
    assert made.grad is not None
    pull = made.grad - torch.tensor([2.0, 4.0])
    assert float(pull.norm()) == pytest.approx(0.5 * float(torch.tensor([2.0, 4.0]).norm()))


def test_the_generator_of_an_adversary_is_pushed_towards_grain(
    learned: tuple[Adversary, list[float]],
) -> None:
    amount = torch.zeros(1, requires_grad=True)
    learned[0].objection((0.5 + amount) * noise(1), noise(6), CONDITIONS).backward()
    assert amount.grad is not None
    assert float(amount.grad) < 0.0  # more of it, fewer objections


@pytest.fixture
def noisy(tmp_path: Path) -> tuple[Patient, ...]:
    write_npz(tmp_path / "noisy", made_hu(12, CROP, noise_hu=80.0), (1.0, 1.5, 1.5))
    return load_patients(tmp_path, "ct-train")


NOISY = replace(
    QUICK, steps=200, batch=4, side=SIDE, pool=20, first=20, refresh=1000, adversarial=0.2
)


def test_training_with_an_adversary_still_learns(noisy: tuple[Patient, ...]) -> None:
    training = Training(noisy, NOISY)
    untrained = error_of(training.average, noisy)
    for _ in range(40):
        training.advance()
    assert error_of(training.average, noisy) < untrained


def test_the_judge_learns_what_a_generator_that_stands_still_makes_and_is_kept(
    noisy: tuple[Patient, ...], tmp_path: Path
) -> None:
    plan = replace(NOISY, learning_rate=1e-6)
    training = Training(noisy, plan)
    sums = [0.0]
    for step in range(1, 61):
        training.advance()
        sums.append(step * training.progress().adversary_loss)  # of the mean so far
    assert sums[60] - sums[40] < sums[20] - sums[0]
    save_checkpoint(training.checkpoint(), tmp_path / "c.safetensors")
    resumed = Training(noisy, plan)
    resumed.restore(load_checkpoint(tmp_path / "c.safetensors"))
    before, after = training.checkpoint().adversary, resumed.checkpoint().adversary
    assert before.keys() == after.keys()
    assert any(name.startswith("optimiser.") for name in before)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_an_adversary_changes_the_weights_and_the_lack_of_one_keeps_no_state(
    patients: tuple[Patient, ...],
) -> None:
    without, beside = (Training(patients, replace(QUICK, adversarial=a)) for a in (0.0, 0.2))
    for _ in range(4):
        without.advance()
        beside.advance()
    assert not without.checkpoint().adversary
    assert not torch.equal(
        without.average["trunk.head.weight"], beside.average["trunk.head.weight"]
    )
