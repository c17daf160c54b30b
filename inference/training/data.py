"""Training data: series of DICOM files and NPZ volumes below any folder, patient by patient."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.dataset import Header, Stack
from inference.errors import InferenceError, Unprocessable
from inference.geometry import Layout, examine
from inference.models.gate import LEAST_HU
from inference.pixels import PixelFormat, PixelReader, generated_values
from inference.request import Output
from inference.stacks import open_volume, read_headers, set_aside, stacks_of
from inference.volume import Geometry, Plane

# Every evenly spaced thin stack serves. Stacks of one patient (by Patient ID, in whatever folders)
# are trained on together or left out together.

logger = logging.getLogger(__name__)

# `hu` (z, y, x), where less than LEAST_HU is padding, and `spacing_mm` (z, y, x).
NPZ_NAME = "volume.npz"
LEAST_SLICES = 8  # a folder with fewer gives no gap with its neighbours and a truth between
# Positions may differ from even ones by this share of the spacing (decimal strings are rounded).
SPACING_TOLERANCE = 0.05

LEAST_THIN_SLICES = 5  # two gaps of twice the width, and a neighbour beyond them
TRAIN_PART = "ct-train"  # a folder of that name holds what the shipped weights were trained on
# A predicted slice between two received ones, as it would be stored and shown.
Stored = Callable[[Plane, int, int, float], Plane]


class NoSeries(InferenceError):
    """A folder holds nothing to train or to judge on; the text says what is there and needed."""


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

    def thin(self) -> "ThinSeries":
        """The same slices, to leave some out."""
        return ThinSeries(
            self.name, True, self.geometry, self.plane, lambda plane, *_: np.rint(plane)
        )

    @property
    def extent_mm(self) -> float:
        """The smaller side of the field of view: heads fill less than bodies do."""
        high, wide = self.geometry.pixel_spacing
        return float(min(self.geometry.rows * high, self.geometry.columns * wide))


def load_patients(data: Path, part: str) -> tuple[Patient, ...]:
    """Every stack below a folder, or below its `part` (ct-train, ...) where it has one."""
    root = data / part if (data / part).is_dir() else data
    folders = sorted({path.parent for path in root.rglob("*") if path.is_file()})
    patients_by_folder = [
        (folder, patient) for folder in folders for patient in load_folder(folder)
    ]
    if not patients_by_folder:
        raise NoSeries(
            f"{root}: no evenly spaced CT series of at least {LEAST_SLICES} slices, "
            f"and no {NPZ_NAME}"
        )
    names = Counter(patient.name for _, patient in patients_by_folder)
    return tuple(
        replace(patient, name="-".join((*folder.relative_to(root).parts[:-1], patient.name)))
        if names[patient.name] > 1
        else patient
        for folder, patient in patients_by_folder
    )


def divided(
    patients: Sequence[Patient], leave_out: frozenset[str]
) -> tuple[tuple[Patient, ...], tuple[Patient, ...]]:
    """(trained on, left out): with a stack, all stacks of the same patient are left out."""
    unknown = leave_out - {patient.name for patient in patients}
    left = {patient.person or patient.name for patient in patients if patient.name in leave_out}
    kept = tuple(patient for patient in patients if (patient.person or patient.name) not in left)
    if unknown or not kept:
        known = ", ".join(patient.name for patient in patients)
        raise NoSeries(
            f"cannot leave out {', '.join(sorted(unknown or leave_out))}: there are {known}, "
            "and somebody has to stay"
        )
    return kept, tuple(patient for patient in patients if (patient.person or patient.name) in left)


def load_folder(folder: Path) -> list[Patient]:
    """The stacks of one folder, but for those that are too short or not evenly spaced."""
    npz = folder / NPZ_NAME
    patients = [_from_npz(npz)] if npz.exists() else _from_dicom(folder)
    return [p for p in patients if len(p) >= LEAST_SLICES and _is_even(p.geometry)]


def _is_even(geometry: Geometry) -> bool:
    gaps = geometry.gaps_mm
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
    stacks = [s for s in stacks_of(_headers_of(folder)) if len(s) >= LEAST_SLICES]
    patients = []
    for name, stack in _named(folder, stacks):
        try:
            patients.append(_read(name, folder, stack))
        except Unprocessable as refused:
            logger.warning("series passed over", extra={"reason": refused.reason})
    return patients


def _headers_of(folder: Path) -> list[Header]:
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    return [header for header in read_headers(files) if not header.fault]


def _named(folder: Path, stacks: Sequence[Stack]) -> Iterator[tuple[str, Stack]]:
    """Stacks by the name of their folder, numbered where it holds several."""
    for number, stack in enumerate(stacks, start=1):
        yield (folder.name if len(stacks) == 1 else f"{folder.name}-{number}"), stack


def _read(name: str, folder: Path, stack: Stack) -> Patient:
    volume = open_volume(stack)
    planes = (volume.read(index) for index in range(len(volume)))
    hu = np.stack([np.clip(np.rint(plane), LEAST_HU, 32767).astype(np.int16) for plane in planes])
    header = stack.headers[0]
    number = header.text("PatientID")
    person = f"{header.text('IssuerOfPatientID')}/{number}" if number else str(folder)
    return Patient(name, hu, volume.geometry, person)


# Series of DICOM files are read as the node reads them, slice by slice when they are asked for;
# what the node would refuse or hold is passed over with its sentence. NPZ volumes serve too.


@dataclass(frozen=True, eq=False)
class ThinSeries:
    """One stack of received slices; of DICOM files nothing is in memory before it is read."""

    name: str  # of its folder
    trained_on: bool  # by the shipped weights
    geometry: Geometry
    read: Callable[[int], Plane]  # HU, padding replaced by air
    stored: Stored

    def __len__(self) -> int:
        return len(self.geometry)

    @property
    def spacing_mm(self) -> float:
        return float(np.median(self.geometry.gaps_mm))

    @property
    def is_even(self) -> bool:
        return _is_even(self.geometry)


@dataclass(frozen=True)
class PassedOver:
    """A series that no model can be judged on, and why."""

    name: str
    sentence: str


def open_series(data: Path) -> tuple[list[ThinSeries], list[PassedOver]]:
    """Every series below a folder; raises NoSeries, naming each fault, where none serves."""
    if not data.is_dir():
        raise NoSeries(f"{data}: no such folder")
    pixels = PixelReader()  # one for all: what is kept of them does not grow with their number
    series: list[ThinSeries] = []
    passed: list[PassedOver] = []
    for folder in sorted({path.parent for path in data.rglob("*") if path.is_file()}):
        for item in _of_folder(folder, pixels):
            if isinstance(item, ThinSeries):
                series.append(item)
            else:
                passed.append(item)
    if not series:
        raise NoSeries(nothing_in(data, passed))
    return series, passed


def nothing_in(data: Path, passed: Sequence[PassedOver]) -> str:
    """One line: what is needed, and what was wrong with each series that was there."""
    needed = (
        f"{data}: no CT series to judge on; needed are thin axial slices (best 0.6 to 2.5 mm "
        f"apart, at least {LEAST_THIN_SLICES}) as DICOM files, one folder a patient, or {NPZ_NAME}"
    )
    return "; ".join([needed, *(f"{fault.name}: {fault.sentence}" for fault in passed)])


def _of_folder(folder: Path, pixels: PixelReader) -> Iterator[ThinSeries | PassedOver]:
    trained_on = TRAIN_PART in folder.resolve().parts
    if (folder / NPZ_NAME).is_file():
        yield _thin_from_npz(folder / NPZ_NAME, trained_on=trained_on)
        return
    headers = _headers_of(folder)
    stacks = stacks_of(headers)
    for name, stack in _named(folder, stacks):
        yield _thin_from_dicom(name, stack, pixels, trained_on=trained_on)
    if not stacks and (aside := set_aside(headers)):
        yield PassedOver(folder.name, aside[0].sentence)


def _thin_from_dicom(
    name: str, stack: Stack, pixels: PixelReader, *, trained_on: bool
) -> ThinSeries | PassedOver:
    if len(stack) < LEAST_THIN_SLICES:
        return PassedOver(
            name, f"it has {len(stack)} slices; at least {LEAST_THIN_SLICES} are needed"
        )
    try:
        layout = examine(stack, Output())
    except Unprocessable as refused:
        return PassedOver(name, f"the node would not process it ({refused})")
    headers = layout.headers
    return ThinSeries(
        name=name,
        trained_on=trained_on,
        geometry=layout.geometry,
        read=lambda index: pixels.hounsfield(headers[index]),
        stored=partial(_stored, layout, pixels),
    )


def _stored(
    layout: Layout, pixels: PixelReader, plane: Plane, before: int, after: int, t: float
) -> Plane:
    headers, offsets = layout.headers, layout.geometry.offsets(before, after, t)
    values = generated_values(plane, headers[before], headers[after], pixels, offsets=offsets)
    return PixelFormat.of(headers[before]).hounsfield(values)


def _thin_from_npz(path: Path, *, trained_on: bool) -> ThinSeries | PassedOver:
    name = path.parent.name
    try:
        with np.load(path, allow_pickle=False) as kept:
            hu, spacing = kept["hu"], kept["spacing_mm"].astype(float)
    except (KeyError, ValueError, OSError) as error:
        return PassedOver(name, f"{NPZ_NAME} needs hu (z, y, x) and spacing_mm (z, y, x): {error}")
    if (
        hu.ndim != 3
        or spacing.shape != (3,)
        or len(hu) < LEAST_THIN_SLICES
        or not (spacing > 0).all()
    ):
        return PassedOver(
            name,
            f"{NPZ_NAME} has hu of {hu.shape} and spacing_mm {spacing}; needed are (z, y, x), "
            f"at least {LEAST_THIN_SLICES} slices, and three numbers above 0",
        )
    return ThinSeries(
        name=name,
        trained_on=trained_on,
        geometry=upright_geometry(hu.shape, spacing.tolist()),
        read=lambda index: np.maximum(hu[index].astype(np.float32), np.float32(LEAST_HU)),
        stored=lambda plane, _before, _after, _t: np.rint(plane),
    )
