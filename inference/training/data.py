"""Patients for training and evaluation: series of DICOM files and NPZ volumes of any folder."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.errors import Unprocessable
from inference.models.midslice import LEAST_HU
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
    """One evenly spaced thin stack, whole in memory; a patient is never split between sets."""

    name: str  # of its folder
    hu: NDArray[np.int16]  # (slices, rows, columns), at least LEAST_HU
    geometry: Geometry

    def __len__(self) -> int:
        return len(self.hu)

    def plane(self, index: int) -> Plane:
        return np.asarray(self.hu[index], np.float32)

    @property
    def spacing_mm(self) -> float:
        return float(np.mean(self.geometry.gaps_mm))

    @property
    def pixel_mm(self) -> float:
        return float(np.sqrt(self.geometry.pixel_spacing[0] * self.geometry.pixel_spacing[1]))

    @property
    def extent_mm(self) -> float:
        """The smaller side of the field of view: heads fill less than bodies do."""
        high, wide = self.geometry.pixel_spacing
        return float(min(self.geometry.rows * high, self.geometry.columns * wide))


def load_patients(
    data: Path, part: str, leave_out: frozenset[str] = frozenset()
) -> tuple[Patient, ...]:
    """Every patient below a folder, or below its `part` (ct-train, ...) where it has one."""
    root = data / part if (data / part).is_dir() else data
    folders = sorted({path.parent for path in root.rglob("*") if path.is_file()})
    patients = tuple(
        patient
        for folder in folders
        if folder.name not in leave_out and (patient := load_patient(folder)) is not None
    )
    if not patients:
        raise NoTrainingData(
            f"{root}: no evenly spaced CT series of at least {LEAST_SLICES} slices, "
            f"and no {NPZ_NAME}"
        )
    return patients


def load_patient(folder: Path) -> Patient | None:
    """The patient of one folder; None where it is too short or not evenly spaced."""
    npz = folder / NPZ_NAME
    patient = _from_npz(npz) if npz.exists() else _from_dicom(folder)
    if patient is None or len(patient) < LEAST_SLICES:
        return None
    gaps = patient.geometry.gaps_mm
    uneven = np.abs(gaps - gaps.mean()).max() > SPACING_TOLERANCE * gaps.mean()
    return None if uneven else patient


def _from_npz(path: Path) -> Patient:
    with np.load(path, allow_pickle=False) as stored:
        hu, spacing = stored["hu"], stored["spacing_mm"]
    positions = np.zeros((len(hu), 3))
    positions[:, 2] = np.arange(len(hu)) * float(spacing[0])
    geometry = Geometry(
        positions=positions,
        orientation=np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        pixel_spacing=(float(spacing[1]), float(spacing[2])),
        rows=hu.shape[1],
        columns=hu.shape[2],
    )
    return Patient(path.parent.name, np.maximum(hu, np.int16(LEAST_HU)), geometry)


def _from_dicom(folder: Path) -> Patient | None:
    """The largest stack of a folder, read as the node reads it."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    found = stacks(header for header in read_headers(files) if not header.fault)
    if not found or len(found[0]) < LEAST_SLICES:
        return None
    try:
        volume = open_volume(found[0])
        planes = [volume.read(index) for index in range(len(volume))]
    except Unprocessable as refused:
        logger.warning("series passed over", extra={"reason": refused.reason})
        return None
    hu = np.stack([np.clip(np.rint(plane), LEAST_HU, 32767).astype(np.int16) for plane in planes])
    return Patient(folder.name, hu, volume.geometry)
