"""Trained peers of the generator: each made by `midslice train --model NAME`, judged beside it.

They are what the project began with and what the literature does; they never process a patient's
images. A training that is stopped goes on from its checkpoint; processor time is counted over both.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.random import Generator, default_rng
from safetensors.torch import load_file
from torch import nn
from torch.optim import Optimizer

from inference.errors import ModelLoadError
from inference.models.classical import Neighbourhood
from inference.models.runtime import has_fast_bfloat16
from inference.training import pix2pix, through_plane
from inference.training.beside import Report, Table, TrainingOrder
from inference.training.checkpoint import (
    Checkpoint,
    Tensors,
    load_checkpoint,
    optimiser_tensors,
    part_of,
    restore_optimiser,
    save_checkpoint,
    save_weights,
)
from inference.training.data import TRAIN_PART, Patient, load_patients
from inference.volume import Plane

WEIGHTS, CHECKPOINT, FACTS = "weights.safetensors", "checkpoint.safetensors", "training.json"
SAVED_EVERY_S = 180.0  # of processor time
RECENT = 200  # steps of a running mean


class Course(Protocol):
    """A peer under training: its networks, the first of which is what is kept in the end."""

    networks: dict[str, nn.Module]
    optimisers: dict[str, Optimizer]

    def step(self, patients: Sequence[Patient], random: Generator, *, narrow: bool) -> float:
        """Learn from one batch; returns the error."""


@dataclass(frozen=True)
class PeerFacts:
    """The training that made a peer's weights."""

    name: str
    processor_minutes: float
    steps: int
    patients: tuple[str, ...]
    weights_sha256: str


@dataclass(frozen=True)
class Peer:
    """A peer with its weights, ready to interpolate."""

    facts: PeerFacts
    slice_at: Callable[[Neighbourhood, float], Plane]


@dataclass(frozen=True)
class PeerKind:
    """A peer by name: how it is trained, and how its network makes a slice."""

    name: str
    what: str
    course: Callable[[], Course]
    slice_at: Callable[[nn.Module, Neighbourhood, float], Plane]


def _by_pix2pix(network: nn.Module, near: Neighbourhood, t: float, *, pictures: bool) -> Plane:
    assert isinstance(network, pix2pix.UNet)
    a, c = (near.aligned(place, t) for place in (0, 1))
    return pix2pix.interpolated(network, a, c, t, pictures=pictures)


def _through_plane(network: nn.Module, near: Neighbourhood, t: float) -> Plane:
    assert isinstance(network, through_plane.SideNetwork)
    places = [place if place in near.planes else min(max(place, 0), 1) for place in (-1, 0, 1, 2)]
    planes = [near.aligned(place, t) for place in places]
    return through_plane.interpolated(network, planes, t, near.gap_mm, near.pixel_mm)


KINDS: Mapping[str, PeerKind] = {
    kind.name: kind
    for kind in (
        PeerKind(
            "pix2pix",
            "the published way: mean of A and C, pictures of 256 x 256 and 8 bits",
            partial(pix2pix.Pix2pix, pictures=True),
            partial(_by_pix2pix, pictures=True),
        ),
        PeerKind(
            "pix2pix-hu",
            "the same in HU, at full size",
            partial(pix2pix.Pix2pix, pictures=False),
            partial(_by_pix2pix, pictures=False),
        ),
        PeerKind(
            "through-plane",
            "super-resolution of side views, after SAINT (CVPR 2020)",
            through_plane.ThroughPlane,
            _through_plane,
        ),
    )
}


def train_peer(name: str, order: TrainingOrder, report: Report) -> Table:
    """Train until the minutes or steps of the order are spent, those of earlier runs included."""
    patients = load_patients(order.data, TRAIN_PART)
    training = _Training(KINDS[name], order, patients)
    facts = training.run(report)
    return Table(
        ("peer", "processor minutes", "steps", "patients", "weights SHA-256"),
        ((name, *_cells(facts)),),
        (KINDS[name].what,),
        asdict(facts),
    )


def _cells(facts: PeerFacts) -> tuple[str, ...]:
    minutes, digest = f"{facts.processor_minutes:.1f}", facts.weights_sha256[:16]
    return minutes, f"{facts.steps}", ", ".join(facts.patients), digest


class _Training:
    """A course under way, with what is kept of it on disk."""

    def __init__(self, kind: PeerKind, order: TrainingOrder, patients: Sequence[Patient]) -> None:
        torch.manual_seed(order.seed)
        self._kind, self._order, self._patients = kind, order, patients
        self._course, self._random = kind.course(), default_rng(order.seed)
        self._step, self._earlier_s, self._started = 0, 0.0, time.process_time()
        self._losses: list[float] = []
        if (order.out / CHECKPOINT).is_file():
            self._restore(load_checkpoint(order.out / CHECKPOINT))

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(patient.name for patient in self._patients)

    @property
    def _seconds(self) -> float:
        return self._earlier_s + time.process_time() - self._started

    @property
    def _share(self) -> float:
        order = self._order
        if order.steps is not None:
            return self._step / order.steps
        return self._seconds / (60.0 * order.minutes) if order.minutes else 1.0

    def run(self, report: Report) -> PeerFacts:
        saved, narrow = self._seconds, has_fast_bfloat16("cpu")
        while self._share < 1.0:
            # Dropout is drawn by the step, so that a stopped training goes on as it would have.
            torch.manual_seed(self._order.seed + self._step)
            loss = self._course.step(self._patients, self._random, narrow=narrow)
            self._losses = [*self._losses[1 - RECENT :], loss]
            self._step += 1
            report(min(self._share, 1.0), f"step {self._step}, L1 {np.mean(self._losses):.4g}")
            if self._seconds - saved > SAVED_EVERY_S:
                self._save()
                saved = self._seconds
        return self._save()

    def _save(self) -> PeerFacts:
        course, out = self._course, self._order.out
        (name, kept), *others = course.networks.items()
        rest = {f"network.{k}.{n}": v for k, net in others for n, v in net.state_dict().items()}
        rest |= {
            f"optimiser.{k}.{n}": v
            for k, optimiser in course.optimisers.items()
            if k != name
            for n, v in optimiser_tensors(optimiser).items()
        }
        checkpoint = Checkpoint(
            step=self._step,
            seconds=self._seconds,
            weights=kept.state_dict(),
            average={},
            optimiser=optimiser_tensors(course.optimisers[name]),
            random=self._random.bit_generator.state,
            patients=self._names,
            adversary=rest,
        )
        save_checkpoint(checkpoint, out / CHECKPOINT)
        digest = save_weights(checkpoint.weights, out / WEIGHTS)
        minutes = round(self._seconds / 60.0, 1)
        facts = PeerFacts(self._kind.name, minutes, self._step, self._names, digest)
        (out / FACTS).write_text(json.dumps(asdict(facts), indent=1) + "\n", encoding="utf-8")
        return facts

    def _restore(self, kept: Checkpoint) -> None:
        if kept.patients != self._names:
            raise ModelLoadError(
                f"{self._order.out / CHECKPOINT}: it was trained on {', '.join(kept.patients)}; "
                f"there are {', '.join(self._names)}"
            )
        course = self._course
        (name, network), *others = course.networks.items()
        try:
            network.load_state_dict(kept.weights)
            restore_optimiser(course.optimisers[name], kept.optimiser)
            for other, net in others:
                net.load_state_dict(part_of(kept.adversary, f"network.{other}"))
                tensors: Tensors = part_of(kept.adversary, f"optimiser.{other}")
                restore_optimiser(course.optimisers[other], tensors)
        except (RuntimeError, ValueError) as error:
            raise ModelLoadError(f"{self._order.out / CHECKPOINT}: {error}") from error
        self._random.bit_generator.state = dict(kept.random)
        self._step, self._earlier_s = kept.step, kept.seconds


train_pix2pix = partial(train_peer, "pix2pix")
train_pix2pix_hu = partial(train_peer, "pix2pix-hu")
train_through_plane = partial(train_peer, "through-plane")


def load_peers(folder: Path) -> tuple[Peer, ...]:
    """The peers that were trained into folders of their names."""
    return tuple(
        _loaded(kind, folder / name)
        for name, kind in KINDS.items()
        if (folder / name / FACTS).is_file()
    )


def _loaded(kind: PeerKind, folder: Path) -> Peer:
    (network, *_) = kind.course().networks.values()
    try:
        written = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        facts = PeerFacts(**{**written, "patients": tuple(written["patients"])})
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelLoadError(f"{folder}: no trained {kind.name}: {error}") from error
    return Peer(facts, partial(kind.slice_at, network.eval()))
