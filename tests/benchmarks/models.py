"""How long a series takes with each model that makes no slices, and how much memory.

A row is a whole job in a process of its own: reading, model, result objects, their check. The
model is loaded before, as in a worker. The published programs for brain extraction get the volume
of the same head in memory and give a mask; the row "mask alone" is what compares with them.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from inference import mr, registry
from inference.dataset import Stack, read_headers
from inference.models.brain.canonical import steps_mm
from inference.pixels import PixelReader
from tests.benchmarks import job, references
from tests.benchmarks.job import Measured
from tests.benchmarks.references import REFERENCES
from tests.benchmarks.rig import Setting
from tests.benchmarks.table import Bound, Row, Subject

NAME = "models"
DATA = Path(os.environ.get("DATA", "../shared/data"))
REPETITIONS = 3


@dataclass(frozen=True)
class Case:
    """A real series for a model, and what its job may take."""

    series: str  # a folder of DATA
    seconds: float
    megabytes: float = 3000.0


# Long series of their kind: 256 sagittal slices of a head, 33 of a head CT, 200 of a chest.
CASES = {
    "brain": Case("mr-brain/pycortex-s1/dicom", 15.0, 2000.0),
    "brain-unet": Case("mr-brain/pycortex-s1/dicom", 15.0, 2000.0),
    "haemorrhage": Case("ct-haemorrhage/dicom/091", 10.0),
    "nodules": Case("ct-train/lidc-0314", 60.0),
}
EXTRACTIONS = ("brain", "brain-unet")  # beside the published programs
HEAD = CASES["brain"].series


def judged() -> dict[str, Case]:
    """The registered models that make no slices and whose series is there."""
    names = [entry.name for entry in registry.REGISTERED if entry.produces != "slices"]
    return {name: CASES[name] for name in names if (DATA / CASES[name].series).is_dir()}


BOUNDS = tuple(
    bound
    for name, case in judged().items()
    for bound in (
        Bound(NAME, name, below=case.seconds),
        Bound(NAME, f"{name}, memory", below=case.megabytes),
    )
)


def measure(setting: Setting) -> Subject:
    """Seconds a series and the most memory, the published programs in the same run."""
    cases = judged()
    assert cases, f"{DATA}: no series there; DATA names the folder"
    rows: dict[str, Callable[[], Measured]] = {
        name: partial(_job, name, DATA / case.series, setting.folder / "job")
        for name, case in cases.items()
    }
    setting.folder.mkdir(parents=True)
    others, missing = _references(setting.folder) if "brain" in cases else ({}, [])
    repetitions = min(setting.repetitions, REPETITIONS)
    values = replace(setting, repetitions=repetitions).measure(others | rows)
    counts = [f"{name}: {_count(DATA / case.series)} slices" for name, case in cases.items()]
    caption = f"a whole job with a loaded model; {', '.join([*counts, *missing])}"
    return Subject(NAME, caption, tuple(rows_of(values, list(others))))


def _references(folder: Path) -> tuple[dict[str, Callable[[], Measured]], list[str]]:
    """The programs that could be installed, and why another could not."""
    volume = folder / "head.npz"
    _write_volume(DATA / HEAD, volume)
    rows: dict[str, Callable[[], Measured]] = {}
    missing: list[str] = []
    for reference in REFERENCES:
        place = folder / reference.name
        if said := references.installed(reference, place):
            missing.append(f"{reference.name} could not be installed ({said})")
            continue
        command = ["-m", "tests.benchmarks.references", reference.name, str(volume)]
        rows[reference.name] = partial(job.run, command, place)
    return rows, missing


def _write_volume(series: Path, path: Path) -> None:
    """The volume of a head, columns first, and where it lies, to the right, anterior, superior."""
    layout = mr.examine(Stack("head", tuple(read_headers(sorted(series.glob("*.dcm"))))))
    volume, geometry = mr.open_volume(layout, PixelReader()), layout.geometry
    affine = np.eye(4)
    affine[:3, :3] = steps_mm(geometry)[::-1].T
    affine[:3, 3] = geometry.positions[0]
    affine[:2] *= -1.0
    slices = np.stack([volume.read(index) for index in range(len(volume))])
    np.savez(path, volume=slices.transpose(2, 1, 0), affine=affine)


def _job(name: str, series: Path, folder: Path) -> Measured:
    return job.apart(name, series, folder)


def rows_of(values: Mapping[str, Sequence[Measured]], others: Sequence[str]) -> list[Row]:
    """A row for each model and figure, the models of the brain beside the published programs."""
    reference = others[0] if others else ""

    def row(name: str, figure: str, words: str, unit: str = "s") -> Row:
        of = f"{reference}{words}" if name in (*others, *EXTRACTIONS) and reference else ""
        return Row(f"{name}{words}", unit, tuple(one[figure] for one in values[name]), of)

    rows = [row(name, "seconds", "") for name in values]
    rows += [row(name, "processor", ", processor") for name in values]
    for name in EXTRACTIONS:
        if name in values:
            taken = tuple(one["predicting"] for one in values[name])
            rows.append(Row(f"{name}, mask alone", "s", taken, reference))
    return rows + [row(name, "megabytes", ", memory", "MB") for name in values]


def _count(series: Path) -> int:
    return len(list(series.glob("*.dcm")))
