"""Head CT for training and judging: pictures in the brain window, with labels slice by slice."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inference.models.haemorrhage.head import LEVEL_HU, WIDTH_HU, Pictures, prepared
from inference.training.data import NoSeries

TYPES = ("intraventricular", "intraparenchymal", "subarachnoid", "epidural", "subdural")
NOMINAL_MM = 0.86  # pixel size of the training pictures; the true ones were not published
BLOOD_HU, DEEP_PIXELS = (60.0, 90.0), 14  # of the detector without learning

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HeadPatient:
    """One patient: pictures from the base to the vertex, and their labels."""

    name: str
    fold: int
    age_years: float
    pictures: Pictures  # (slices, side, side), the head alone
    bleeds: Flags  # (slices,)
    types: Mapping[str, Flags]  # (slices,) each


def load_heads(data: Path) -> tuple[HeadPatient, ...]:
    """The patients of a folder with `patients.csv`, `labels.csv` and the pictures they name."""
    try:
        patients = _rows(data / "patients.csv")
        rows: dict[str, list[Mapping[str, str]]] = {}
        for row in _rows(data / "labels.csv"):
            rows.setdefault(row["patient"], []).append(row)
    except FileNotFoundError as error:
        raise NoSeries(f"{data}: no patients.csv and labels.csv of head CT") from error
    return tuple(_head(data, facts, rows[facts["patient"]]) for facts in patients)


def _rows(path: Path) -> list[Mapping[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _head(data: Path, facts: Mapping[str, str], rows: Sequence[Mapping[str, str]]) -> HeadPatient:
    ordered = sorted(rows, key=lambda row: int(row["index"]))
    strip = np.asarray(Image.open(data / ordered[0]["file"]).convert("L"))
    pictures = strip.reshape(-1, strip.shape[1], strip.shape[1])
    indices = [int(row["index"]) for row in ordered]

    def flags(column: str) -> Flags:
        return np.array([row[column] == "1" for row in ordered])

    return HeadPatient(
        name=facts["patient"],
        fold=int(facts["fold"]),
        age_years=float(facts["age_years"]),
        pictures=prepared(pictures, NOMINAL_MM)[indices],
        bleeds=flags("haemorrhage"),
        types={name: flags(name) for name in TYPES},
    )


def blood_share(pictures: Pictures) -> Floats:
    """(slices,): share of blood-like pixels far from bone, a detector without learning."""
    low, high = ((hu - LEVEL_HU + WIDTH_HU / 2.0) * 255.0 / WIDTH_HU for hu in BLOOD_HU)
    shares = []
    for picture in pictures:
        soft = ((picture > 0) & (picture < 240)).astype(np.uint8)
        deep = cv2.distanceTransform(soft, cv2.DIST_L2, 3) > DEEP_PIXELS
        smooth = cv2.GaussianBlur(picture, (0, 0), 2.0)
        blood = (smooth > low) & (smooth < high) & deep
        shares.append((blood.sum() + 1.0) / (picture.size + 1.0))
    return np.array(shares)
