"""The files of a training: weights, checkpoints, and what is refused as such."""

import pickle
from pathlib import Path

import pytest
import torch

from inference.errors import ModelLoadError
from inference.models.network import Network, load_network
from inference.training.checkpoint import load_checkpoint, save_weights
from inference.training.train import rate


def test_weights_come_back_as_they_were_saved(tmp_path: Path) -> None:
    tensors = Network().state_dict()
    digest = save_weights(tensors, tmp_path / "deep" / "w.safetensors")
    loaded, same = load_network(tmp_path / "deep" / "w.safetensors")
    assert same == digest
    assert all(torch.equal(loaded.state_dict()[name], kept) for name, kept in tensors.items())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["w.safetensors"]


def test_what_is_no_weights_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ModelLoadError, match="w.safetensors: not a safetensors file"):
        load_network(tmp_path / "w.safetensors")
    with pytest.raises(ModelLoadError, match="none.safetensors: the weights cannot be read"):
        load_network(tmp_path / "none.safetensors")


@pytest.mark.parametrize("content", [b"", b"rubbish", pickle.dumps({"step": 1})])
def test_a_broken_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(content)
    with pytest.raises(ModelLoadError, match="not a checkpoint of this training"):
        load_checkpoint(tmp_path / "checkpoint.safetensors")


def test_the_learning_rate_rises_shortly_and_ends_near_nothing() -> None:
    assert rate(0.0, 0) < 0.02
    assert rate(0.01, 500) > 0.99
    assert rate(0.5, 500) == pytest.approx(0.505)
    assert rate(1.0, 500) == pytest.approx(0.01)
