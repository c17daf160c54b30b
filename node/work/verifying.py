"""Whether the result of a self-test is what its made series must give."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from node.work import phantom

# How far off a generated slice may be on average over the body, in HU: two neighbours are 10 apart.
MOST_HU = 15.0
MOST_MM = 0.01


class Wrong(Exception):
    """A step of the self-test did not find what it must; the text says what."""


def check(paths: Sequence[Path], factor: int) -> str:
    """A sentence about the result; Wrong where it is not right."""
    slices = sorted((_read(path) for path in paths), key=_place)
    due = (phantom.SLICES - 1) * factor + 1
    if len(slices) != due:
        raise Wrong(f"The derived series has {len(slices)} slices; {due} are due.")
    others = {str(one.get("PatientID", "")) for one in slices} - {phantom.PATIENT_ID}
    if others:
        raise Wrong("The derived series names another patient than the made one.")
    step = phantom.SPACING_MM / factor
    for number, one in enumerate(slices):
        if abs(_place(one) - number * step) > MOST_MM:
            raise Wrong(f"Slice {number + 1} lies at {_place(one):g} mm, due is {number * step:g}.")
    worst = max(_off(one) for one in slices)
    if not worst <= MOST_HU:
        raise Wrong(f"A slice is {worst:.0f} HU off on average; {MOST_HU:g} HU are allowed.")
    return f"{len(slices)} slices, {step:g} mm apart, at most {worst:.1f} HU off."


def _read(path: Path) -> Dataset:
    try:
        return dcmread(path)
    except (OSError, InvalidDicomError) as error:
        raise Wrong(f"A file of the derived series cannot be read: {error}") from error


def _place(one: Dataset) -> float:
    return float(one.ImagePositionPatient[2])


def _off(one: Dataset) -> float:
    """How far the body is from what lies at this place, on average, in HU."""
    stored = one.pixel_array.astype(np.float64)
    found = stored * float(one.RescaleSlope) + float(one.RescaleIntercept)
    due = phantom.hounsfield(_place(one))
    if found.shape != due.shape:
        raise Wrong(f"A slice has {found.shape} pixels; {due.shape} are due.")
    body = due > phantom.AIR_HU / 2
    return float(np.abs(found - due)[body].mean())
