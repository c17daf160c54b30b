"""How training goes: running means, gains in dB, and what the average makes of unseen gaps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.random import default_rng
from numpy.typing import NDArray
from torch.func import functional_call

from inference.checkpoint import Tensors
from inference.models.midslice import Network
from inference.training.data import Patient
from inference.training.losses import inner
from inference.training.samples import Sample, unaltered

HELD_SEED = 20  # of the gaps that are measured: the same in every training
HELD_GAPS = 12  # a patient
LEAST_ERROR = 1.0  # HU squared: flat air, where everything is perfect, counts next to nothing
REMEMBERED = 300  # values of a running mean


@dataclass(frozen=True)
class Progress:
    """Where training stands; gains in dB, of the last some hundred steps on training patches."""

    share: float  # done, 0 to 1
    step: int
    seconds: float  # of processor time
    loss: float
    gain_over_dis_db: float
    gain_over_linear_db: float
    held_over_dis_db: float | None = None  # of the average, on the patients that were left out
    adversary_loss: float = 0.0  # 2 where it guesses


class Mean:
    """An exponential moving mean."""

    def __init__(self) -> None:
        self.value, self._count = 0.0, 0

    def add(self, value: float) -> None:
        self._count += 1
        self.value += (value - self.value) / min(self._count, REMEMBERED)


def gain_db(
    ours: NDArray[np.float32], other: NDArray[np.float32], truth: NDArray[np.float32]
) -> float:
    """Mean gain in PSNR over (B, 1, rows, columns), but for the border, where no error counts."""
    axes = (1, 2, 3)
    error_ours = np.square(inner(ours - truth)).mean(axis=axes) + LEAST_ERROR
    error_other = np.square(inner(other - truth)).mean(axis=axes) + LEAST_ERROR
    return float(10.0 * np.log10(error_other / error_ours).mean())


class Held:
    """Gaps of patients that are not trained on, measured now and then."""

    def __init__(self, patients: Sequence[Patient]) -> None:
        random = default_rng(HELD_SEED)
        self._samples: list[Sample] = [
            sample
            for patient in patients
            for _ in range(HELD_GAPS)
            for sample in unaltered(patient, random)
        ]

    def gain_over_dis_db(self, network: Network, average: Tensors, device: str) -> float | None:
        """Of the network with these weights; None where nobody was left out."""
        gains = [self._gain_db(network, average, device, sample) for sample in self._samples]
        return float(np.mean(gains)) if gains else None

    def _gain_db(self, network: Network, average: Tensors, device: str, sample: Sample) -> float:
        planes = sample.planes[None].astype(np.float32)  # (1, 7, side, side)
        t = sample.conditions[0]
        given = tuple(
            torch.from_numpy(array).to(device)
            for array in (planes[:, :6], sample.conditions[None], sample.cubic[None].copy())
        )
        with torch.inference_mode():
            made, _ = functional_call(network, dict(average), given)
        dis = (1.0 - t) * planes[:, 4:5] + t * planes[:, 5:6]
        return gain_db(made.cpu().numpy(), dis, planes[:, 6:])


class Course:
    """The learning curve as CSV, one line a measurement; a resumed training goes on writing it."""

    HEADER = "step,minutes,loss,over_dis_db,over_linear_db,held_over_dis_db\n"

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, now: Progress) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        held = "" if now.held_over_dis_db is None else f"{now.held_over_dis_db:.4f}"
        with self._path.open("a", encoding="ascii") as file:
            if file.tell() == 0:
                file.write(self.HEADER)
            file.write(
                f"{now.step},{now.seconds / 60.0:.2f},{now.loss:.6f},{now.gain_over_dis_db:.4f},"
                f"{now.gain_over_linear_db:.4f},{held}\n"
            )
