"""Training and judging of the models beside the generator: by name, imported when asked for."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

# (share done, 0 to 1; what is done) -> nothing
Report = Callable[[float, str], None]


@dataclass(frozen=True)
class TrainingOrder:
    """The options of `midslice train --model NAME`."""

    data: Path
    out: Path  # a folder: weights, card, figures, curves
    minutes: float  # of processor time, for all trainings together
    steps: int | None  # of each training, instead of minutes
    seed: int
    device: str
    folds: int | None  # trainings that leave patients out; None = as many as the data have


@dataclass(frozen=True)
class EvaluationOrder:
    """The options of `midslice evaluate --model NAME`."""

    model: str
    data: Path
    out: Path
    weights: Path | None
    folds: Path | None  # a folder of weights trained without a patient or a fold
    device: str


@dataclass(frozen=True)
class Table:
    """Figures for people, the baseline above, and the same for a script."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    record: Mapping[str, object] = field(default_factory=dict)  # JSON


TRAINERS = {
    "brain-unet": "inference.training.brain:train_all",
    "haemorrhage": "inference.training.haemorrhage:train_all",
    "nodules": "inference.training.nodule:train_all",
    # Peers that the generator is judged beside; they process nothing.
    "pix2pix": "inference.training.peers:train_pix2pix",
    "pix2pix-hu": "inference.training.peers:train_pix2pix_hu",
    "through-plane": "inference.training.peers:train_through_plane",
}
JUDGES = {
    "brain": "inference.training.brain_figures:judge",
    "brain-unet": "inference.training.brain_figures:judge",
    "haemorrhage": "inference.training.haemorrhage_figures:judge",
    "nodules": "inference.training.nodule_figures:judge",
}


def trainer(model: str) -> Callable[[TrainingOrder, Report], Table]:
    return cast(Callable[[TrainingOrder, Report], Table], _imported(TRAINERS[model]))


def judge(model: str) -> Callable[[EvaluationOrder, Report], Table]:
    return cast(Callable[[EvaluationOrder, Report], Table], _imported(JUDGES[model]))


def _imported(place: str) -> object:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
