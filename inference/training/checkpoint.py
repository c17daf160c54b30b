"""Weights and training checkpoints on disk: written whole or not at all, without pickle."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.optim import Optimizer

from inference.errors import ModelLoadError

Tensors = Mapping[str, Tensor]

PARTS = ("weights", "average", "optimiser", "adversary")
REST = "training"  # the key of what is no tensor, as JSON, in the file's metadata


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Everything that training needs to go on as if it had not been interrupted."""

    step: int
    seconds: float  # of processor time spent so far
    weights: Tensors
    average: Tensors  # exponential moving average of the weights
    optimiser: Tensors  # named by the number of the parameter and what is kept of it
    random: Mapping[str, Any]  # state of the numpy generator
    patients: tuple[str, ...]  # trained on; a checkpoint never goes on with others
    adversary: Tensors = field(default_factory=dict)  # empty where training has none


def save_weights(weights: Tensors, path: Path) -> str:
    """Write weights as safetensors; returns their SHA-256."""
    raw = save_tensors({name: tensor.contiguous().cpu() for name, tensor in weights.items()})
    _write(path, raw)
    return hashlib.sha256(raw).hexdigest()


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    tensors = {
        f"{part}.{name}": tensor.detach().contiguous().cpu()
        for part in PARTS
        for name, tensor in getattr(checkpoint, part).items()
    }
    rest = {name: getattr(checkpoint, name) for name in ("step", "seconds", "random", "patients")}
    _write(path, save_tensors(tensors, metadata={REST: json.dumps(rest)}))


def load_checkpoint(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            rest = json.loads((file.metadata() or {})[REST])
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        return Checkpoint(
            step=rest["step"],
            seconds=rest["seconds"],
            random=rest["random"],
            patients=tuple(rest["patients"]),
            **{part: part_of(tensors, part) for part in PARTS},
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"{path}: not a checkpoint of this training: {error}") from error


def optimiser_tensors(optimiser: Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser, each tensor named by the number of its parameter."""
    return {
        f"{number}.{name}": value
        for number, kept in optimiser.state_dict()["state"].items()
        for name, value in kept.items()
    }


def restore_optimiser(optimiser: Optimizer, kept: Tensors) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in kept.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def part_of(tensors: Tensors, part: str) -> Tensors:
    """The tensors named `part.` and something, by the rest of their names."""
    prefix = f"{part}."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _write(path: Path, raw: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
