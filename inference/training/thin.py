"""The thin series of a folder, on which models are judged: real slices to leave out.

Series of DICOM files are read as the node reads them, slice by slice when they are asked for; what
the node would refuse or hold is passed over with its sentence. NPZ volumes serve too.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from inference.dataset import Stack
from inference.errors import Unprocessable
from inference.geometry import Layout, examine
from inference.intensity import PixelFormat, PixelReader, generated_values
from inference.reader import read_headers, set_aside, stacks
from inference.request import Output
from inference.training.data import NPZ_NAME, upright_geometry
from inference.volume import Geometry, Plane

LEAST_SLICES = 5  # two gaps of twice the width, and a neighbour beyond them
LEAST_HU = -1024.0  # lower values of an NPZ volume are padding
# Positions may differ from even ones by this share of the spacing (decimal strings are rounded).
SPACING_TOLERANCE = 0.05
TRAIN_PART = "ct-train"  # a folder of that name holds what the shipped weights were trained on

# A predicted slice between two received ones, as it would be stored and shown.
Stored = Callable[[Plane, int, int, float], Plane]


class NothingToJudge(Exception):
    """A folder holds no series to judge a model on; the text says what was found and is needed."""


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
    def pixel_mm(self) -> float:
        return self.geometry.pixel_mm

    @property
    def is_even(self) -> bool:
        gaps = self.geometry.gaps_mm
        return bool(np.abs(gaps - gaps.mean()).max() <= SPACING_TOLERANCE * gaps.mean())


@dataclass(frozen=True)
class PassedOver:
    """A series that no model can be judged on, and why."""

    name: str
    sentence: str


def open_series(data: Path) -> tuple[list[ThinSeries], list[PassedOver]]:
    """Every series below a folder; raises NothingToJudge, naming each fault, where none serves."""
    if not data.is_dir():
        raise NothingToJudge(f"{data}: no such folder")
    pixels = PixelReader()  # one for all: what is kept of them does not grow with their number
    found: list[ThinSeries] = []
    passed: list[PassedOver] = []
    for folder in sorted({path.parent for path in data.rglob("*") if path.is_file()}):
        for item in _of_folder(folder, pixels):
            if isinstance(item, ThinSeries):
                found.append(item)
            else:
                passed.append(item)
    if not found:
        raise NothingToJudge(nothing_in(data, passed))
    return found, passed


def nothing_in(data: Path, passed: Sequence[PassedOver]) -> str:
    """One line: what is needed, and what was wrong with each series that was there."""
    needed = (
        f"{data}: no CT series to judge on; needed are thin axial slices (best 0.6 to 2.5 mm "
        f"apart, at least {LEAST_SLICES}) as DICOM files, one folder a patient, or {NPZ_NAME}"
    )
    return "; ".join([needed, *(f"{each.name}: {each.sentence}" for each in passed)])


def _of_folder(folder: Path, pixels: PixelReader) -> Iterator[ThinSeries | PassedOver]:
    trained_on = TRAIN_PART in folder.resolve().parts
    if (folder / NPZ_NAME).is_file():
        yield _from_npz(folder / NPZ_NAME, trained_on=trained_on)
        return
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    headers = [header for header in read_headers(files) if not header.fault]
    if not headers:
        return
    found = stacks(headers)
    for number, stack in enumerate(found, start=1):
        name = folder.name if len(found) == 1 else f"{folder.name}-{number}"
        yield _from_dicom(name, stack, pixels, trained_on=trained_on)
    if not found and (aside := set_aside(headers)):
        yield PassedOver(folder.name, aside[0].sentence)


def _from_dicom(
    name: str, stack: Stack, pixels: PixelReader, *, trained_on: bool
) -> ThinSeries | PassedOver:
    if len(stack) < LEAST_SLICES:
        return PassedOver(name, f"it has {len(stack)} slices; at least {LEAST_SLICES} are needed")
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


def _from_npz(path: Path, *, trained_on: bool) -> ThinSeries | PassedOver:
    name = path.parent.name
    try:
        with np.load(path, allow_pickle=False) as kept:
            hu, spacing = kept["hu"], kept["spacing_mm"].astype(float)
    except (KeyError, ValueError, OSError) as error:
        return PassedOver(name, f"{NPZ_NAME} needs hu (z, y, x) and spacing_mm (z, y, x): {error}")
    if hu.ndim != 3 or spacing.shape != (3,) or len(hu) < LEAST_SLICES or not (spacing > 0).all():
        return PassedOver(
            name,
            f"{NPZ_NAME} has hu of {hu.shape} and spacing_mm {spacing}; needed are (z, y, x), "
            f"at least {LEAST_SLICES} slices, and three numbers above 0",
        )
    return ThinSeries(
        name=name,
        trained_on=trained_on,
        geometry=upright_geometry(hu.shape, spacing.tolist()),
        read=lambda index: np.maximum(hu[index].astype(np.float32), np.float32(LEAST_HU)),
        stored=lambda plane, _before, _after, _t: np.rint(plane),
    )
