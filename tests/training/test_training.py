"""Training: it learns, repeats, and an interruption loses nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inference.errors import ModelLoadError
from inference.models.midslice import Midslice
from inference.models.network import Network, load_network
from inference.training.checkpoint import (
    load_checkpoint,
    save_checkpoint,
    save_weights,
)
from inference.training.data import NoSeries, Patient
from inference.training.train import Plan, Training, TrainingProgress, train
from tests.models.made import QUICK, error_of


def quick_train(data: Path, folder: Path, plan: Plan = QUICK) -> bytes:
    weights = folder / "weights.safetensors"
    trained = train(data, plan, weights=weights, checkpoint=folder / "checkpoint.safetensors")
    assert trained.steps == plan.steps
    assert trained.patients == ("body", "head")
    return weights.read_bytes()


def test_the_same_seed_trains_the_same_weights(data: Path, tmp_path: Path) -> None:
    one, same = quick_train(data, tmp_path / "a"), quick_train(data, tmp_path / "b")
    other = quick_train(data, tmp_path / "c", replace(QUICK, seed=6))
    assert one == same
    assert one != other


def test_trained_weights_are_a_model(data: Path, tmp_path: Path) -> None:
    quick_train(data, tmp_path)
    model = Midslice(tmp_path / "weights.safetensors")
    network, digest = load_network(tmp_path / "weights.safetensors")
    assert digest == model.weights_sha256
    assert network.state_dict().keys() == Network().state_dict().keys()


def test_training_learns(patients: tuple[Patient, ...]) -> None:
    plan = replace(QUICK, steps=120, batch=4, side=48, pool=40, first=40, refresh=1000)
    training = Training(patients, plan)
    untrained = error_of(training.average, patients)
    while training.share < 1.0:
        training.advance()
    assert training.progress().share == 1.0
    assert error_of(training.average, patients) < 0.95 * untrained


def test_an_interrupted_training_goes_on_where_it_was(
    patients: tuple[Patient, ...], tmp_path: Path
) -> None:
    training = Training(patients, QUICK)
    for _ in range(3):
        training.advance()
    save_checkpoint(training.checkpoint(), tmp_path / "checkpoint.safetensors")
    resumed = Training(patients, replace(QUICK, seed=99))
    resumed.restore(load_checkpoint(tmp_path / "checkpoint.safetensors"))
    before, after = training.checkpoint(), resumed.checkpoint()
    assert (after.step, after.random, after.patients) == (3, before.random, before.patients)
    assert after.seconds >= before.seconds - 1.0
    for name, tensor in before.weights.items():
        assert torch.equal(tensor, after.weights[name])
        assert torch.equal(before.average[name], after.average[name])
    assert before.optimiser.keys() == after.optimiser.keys() >= {"0.exp_avg", "0.step"}
    for name, tensor in before.optimiser.items():
        assert torch.equal(tensor, after.optimiser[name])


def test_a_second_sitting_adds_to_the_first(data: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop_at_50(progress: TrainingProgress) -> None:
        raise Stop

    weights, checkpoint = tmp_path / "w.safetensors", tmp_path / "c.safetensors"
    long = replace(QUICK, steps=52, checkpoint_seconds=0.0)
    with pytest.raises(Stop):
        train(data, long, weights=weights, checkpoint=checkpoint, progress=stop_at_50)
    assert 40 < load_checkpoint(checkpoint).step < 52
    seen: list[TrainingProgress] = []
    trained = train(data, long, weights=weights, checkpoint=checkpoint, progress=seen.append)
    assert trained.steps == 52
    assert len(seen) == 1  # step 50, and no other: it did not begin again


def test_a_finished_training_is_not_repeated(data: Path, tmp_path: Path) -> None:
    first = quick_train(data, tmp_path)
    assert quick_train(data, tmp_path) == first


def test_a_checkpoint_of_other_patients_is_refused(data: Path, tmp_path: Path) -> None:
    quick_train(data, tmp_path)
    with pytest.raises(ModelLoadError, match="trained on body, head, the data has body: remove"):
        train(
            data,
            QUICK,
            weights=tmp_path / "other.safetensors",
            checkpoint=tmp_path / "checkpoint.safetensors",
            leave_out=frozenset({"head"}),
        )


def test_a_patient_left_out_is_measured_and_never_drawn(data: Path, tmp_path: Path) -> None:
    plan = replace(QUICK, steps=2, checkpoint_seconds=0.0)  # it measures at each checkpoint
    trained = train(
        data,
        plan,
        weights=tmp_path / "w.safetensors",
        checkpoint=tmp_path / "c.safetensors",
        leave_out=frozenset({"head"}),
    )
    assert trained.patients == ("body",)
    assert trained.last.held_over_dis_db is not None
    lines = (tmp_path / "c.csv").read_text().splitlines()
    assert lines[0].split(",")[-1] == "held_over_dis_db"
    assert len(lines) == 1 + plan.steps + 1  # a line a checkpoint, and the last
    assert [int(line.split(",")[0]) for line in lines[1:3]] == [1, 2]
    assert float(lines[-1].split(",")[-1]) == pytest.approx(trained.last.held_over_dis_db, abs=1e-3)


def test_nobody_left_out_is_nobody_measured(patients: tuple[Patient, ...]) -> None:
    assert Training(patients, QUICK).measure().held_over_dis_db is None


def test_a_patient_to_leave_out_must_be_there(data: Path, tmp_path: Path) -> None:
    for leave_out, named in (({"nobody"}, "nobody"), ({"body", "head"}, "body, head")):
        with pytest.raises(NoSeries, match=f"cannot leave out {named}"):
            train(
                data,
                QUICK,
                weights=tmp_path / "w.safetensors",
                checkpoint=tmp_path / "c.safetensors",
                leave_out=frozenset(leave_out),
            )
    assert not list(tmp_path.iterdir())


def test_training_can_begin_from_weights(
    data: Path, patients: tuple[Patient, ...], tmp_path: Path
) -> None:
    quick_train(data, tmp_path)
    weights = load_network(tmp_path / "weights.safetensors")[0].state_dict()
    begun = Training(patients, replace(QUICK, start=tmp_path / "weights.safetensors"))
    assert all(torch.equal(begun.average[name], tensor) for name, tensor in weights.items())
    save_weights({"other": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelLoadError, match="not the weights of midslice"):
        Training(patients, replace(QUICK, start=tmp_path / "other.safetensors"))
