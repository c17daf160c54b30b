"""What is trained on: series of DICOM files and NPZ volumes below any folder, patient by patient.

Every evenly spaced thin stack serves. Stacks of one patient (by Patient ID, in whatever folders)
are trained on together or left out together.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.dataset import Stack
from inference.errors import Unprocessable
from inference.models.guards import LEAST_HU
from inference.reader import open_volume, read_headers, stacks
from inference.volume import Geometry, Plane

logger = logging.getLogger(__name__)

NPZ_NAME = "volume.npz"  # `hu` (z, y, x) and `spacing_mm` (z, y, x)
LEAST_SLICES = 8  # a folder with fewer gives no gap with its neighbours and a truth between
# Positions may differ from even ones by this share of the spacing (decimal strings are rounded).
SPACING_TOLERANCE = 0.05


class NoTrainingData(Exception):
    """A folder holds nothing to train on or to evaluate; the text says what is looked for."""


@dataclass(frozen=True, eq=False)
class Patient:
    """One evenly spaced thin stack of a patient, whole in memory."""

    name: str  # of its folder, numbered where that holds several
    hu: NDArray[np.int16]  # (slices, rows, columns), at least LEAST_HU
    geometry: Geometry
    person: str = field(default="", repr=False)  # the same for all stacks of one patient

    def __len__(self) -> int:
        return len(self.hu)

    def plane(self, index: int) -> Plane:
        return np.asarray(self.hu[index], np.float32)

    @property
    def spacing_mm(self) -> float:
        return float(np.mean(self.geometry.gaps_mm))

    @property
    def pixel_mm(self) -> float:
        return self.geometry.pixel_mm

    @property
    def extent_mm(self) -> float:
        """The smaller side of the field of view: heads fill less than bodies do."""
        high, wide = self.geometry.pixel_spacing
        return float(min(self.geometry.rows * high, self.geometry.columns * wide))


def load_patients(data: Path, part: str) -> tuple[Patient, ...]:
    """Every stack below a folder, or below its `part` (ct-train, ...) where it has one."""
    root = data / part if (data / part).is_dir() else data
    folders = sorted({path.parent for path in root.rglob("*") if path.is_file()})
    found = [(folder, patient) for folder in folders for patient in load_folder(folder)]
    if not found:
        raise NoTrainingData(
            f"{root}: no evenly spaced CT series of at least {LEAST_SLICES} slices, "
            f"and no {NPZ_NAME}"
        )
    names = Counter(patient.name for _, patient in found)
    return tuple(
        replace(patient, name="-".join((*folder.relative_to(root).parts[:-1], patient.name)))
        if names[patient.name] > 1
        else patient
        for folder, patient in found
    )


def divided(
    patients: Sequence[Patient], leave_out: frozenset[str]
) -> tuple[tuple[Patient, ...], tuple[Patient, ...]]:
    """Who is trained on, and who is left out: with a stack, all stacks of the same patient."""
    unknown = leave_out - {patient.name for patient in patients}
    left = {patient.person or patient.name for patient in patients if patient.name in leave_out}
    kept = tuple(patient for patient in patients if (patient.person or patient.name) not in left)
    if unknown or not kept:
        known = ", ".join(patient.name for patient in patients)
        raise NoTrainingData(
            f"cannot leave out {', '.join(sorted(unknown or leave_out))}: there are {known}, "
            "and somebody has to stay"
        )
    return kept, tuple(each for each in patients if (each.person or each.name) in left)


def load_folder(folder: Path) -> list[Patient]:
    """The stacks of one folder, but for those that are too short or not evenly spaced."""
    npz = folder / NPZ_NAME
    found = [_from_npz(npz)] if npz.exists() else _from_dicom(folder)
    return [patient for patient in found if len(patient) >= LEAST_SLICES and _is_even(patient)]


def _is_even(patient: Patient) -> bool:
    gaps = patient.geometry.gaps_mm
    return bool(np.abs(gaps - gaps.mean()).max() <= SPACING_TOLERANCE * gaps.mean())


def _from_npz(path: Path) -> Patient:
    with np.load(path, allow_pickle=False) as stored:
        hu, spacing = stored["hu"], stored["spacing_mm"]
    geometry, least = upright_geometry(hu.shape, spacing), np.int16(LEAST_HU)
    return Patient(path.parent.name, np.maximum(hu, least), geometry, str(path.parent))


def upright_geometry(shape: Sequence[int], spacing_mm: Sequence[float]) -> Geometry:
    """Axial slices straight above each other; both arguments are z, y, x."""
    positions = np.zeros((shape[0], 3))
    positions[:, 2] = np.arange(shape[0]) * float(spacing_mm[0])
    return Geometry(
        positions=positions,
        orientation=np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        pixel_spacing=(float(spacing_mm[1]), float(spacing_mm[2])),
        rows=shape[1],
        columns=shape[2],
    )


def _from_dicom(folder: Path) -> list[Patient]:
    """The stacks of a folder, read as the node reads them."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    found = [
        stack
        for stack in stacks(header for header in read_headers(files) if not header.fault)
        if len(stack) >= LEAST_SLICES
    ]
    patients = []
    for number, stack in enumerate(found, start=1):
        name = folder.name if len(found) == 1 else f"{folder.name}-{number}"
        try:
            patients.append(_read(name, folder, stack))
        except Unprocessable as refused:
            logger.warning("series passed over", extra={"reason": refused.reason})
    return patients


def _read(name: str, folder: Path, stack: Stack) -> Patient:
    volume = open_volume(stack)
    planes = (volume.read(index) for index in range(len(volume)))
    hu = np.stack([np.clip(np.rint(plane), LEAST_HU, 32767).astype(np.int16) for plane in planes])
    header = stack.headers[0]
    number = header.text("PatientID")
    person = f"{header.text('IssuerOfPatientID')}/{number}" if number else str(folder)
    return Patient(name, hu, volume.geometry, person)
