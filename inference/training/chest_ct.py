"""Chest CT with the marks of readers, for training and judging of the nodule model.

Beside the slices lie `nodules.csv` and `marks.csv`, or the XML files of LIDC-IDRI as published.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.stacks import read_headers
from inference.training.data import NoSeries, Patient, load_folder
from inference.training.lidc import (
    Reading,
    ReadNodule,
    nodules_of,
    pixel_place,
    read_xml,
    slice_at,
)

FEWEST_READERS = 2  # with fewer a nodule is neither found nor missed
POINT_MM = 5.0  # around a mark that is a point, nothing is counted
NODULES, MARKS = "nodules.csv", "marks.csv"
POINTS = ("nodule_under_3mm", "non_nodule")

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ChestPatient:
    """One scan and what readers marked in it."""

    scan: Patient
    nodules: tuple[ReadNodule, ...]
    points: tuple[tuple[float, float, float], ...]  # LPS, mm: small nodules, and no nodules

    @property
    def name(self) -> str:
        return self.scan.name

    @property
    def person(self) -> str:
        """The same for all scans of one patient."""
        return self.scan.person or self.scan.name

    @property
    def counted(self) -> tuple[ReadNodule, ...]:
        return tuple(own for own in self.nodules if own.readers >= FEWEST_READERS)

    @property
    def ignored(self) -> Floats:
        """(n, 4): place and radius of what is neither found nor missed."""
        single = [own for own in self.nodules if own.readers < FEWEST_READERS]
        rows = [(*own.centre, own.sphere_mm / 2.0) for own in single]
        rows += [(*point, POINT_MM) for point in self.points]
        return np.array(rows, float).reshape(-1, 4)


def load_chests(data: Path) -> tuple[ChestPatient, ...]:
    """The scans of a folder that readers have marked, in order of their names."""
    patients = list(_by_tables(data) if (data / NODULES).is_file() else _by_xml(data))
    if not patients:
        raise NoSeries(f"{data}: no chest CT with {NODULES} and {MARKS}, or with XML of LIDC")
    return tuple(sorted(patients, key=lambda patient: patient.name))


def _by_tables(data: Path) -> Iterator[ChestPatient]:
    nodules, marks = _rows(data / NODULES), _rows(data / MARKS)
    for folder in dict.fromkeys(row["folder"] for row in (*nodules, *marks)):
        place = data / folder if (data / folder).is_dir() else data.parent / folder
        scan = _scan(place)
        own = [_nodule(row) for row in nodules if row["folder"] == folder]
        points = [_place(row) for row in marks if row["folder"] == folder and row["kind"] in POINTS]
        yield ChestPatient(scan, tuple(own), tuple(points))


def _rows(path: Path) -> list[Mapping[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise NoSeries(f"{path}: no such table") from error


def _scan(folder: Path) -> Patient:
    if not folder.is_dir():
        raise NoSeries(f"{folder}: no such folder of slices")
    scans = load_folder(folder)
    if not scans:
        raise NoSeries(f"{folder}: no evenly spaced CT series")
    return max(scans, key=len)


def _nodule(row: Mapping[str, str]) -> ReadNodule:
    return ReadNodule(
        _place(row),
        float(row["equivalent_sphere_mm"]),
        int(row["readers"]),
        float(row["texture"]),
    )


def _place(row: Mapping[str, str]) -> tuple[float, float, float]:
    return float(row["x_mm"]), float(row["y_mm"]), float(row["z_mm"])


def _by_xml(data: Path) -> Iterator[ChestPatient]:
    """Every folder of slices whose series a file of readings names."""
    read = dict(read_xml(path) for path in sorted(data.rglob("*.xml")))
    folders = sorted({path.parent for path in data.rglob("*") if path.suffix.lower() != ".xml"})
    for folder in folders:
        files = [p for p in sorted(folder.iterdir()) if p.is_file() and p.suffix != ".xml"]
        uids = [header.text("SeriesInstanceUID") for header in read_headers(files[:1])]
        if uids and uids[0] in read:
            scan = _scan(folder)
            yield ChestPatient(scan, *_marked(scan, read[uids[0]]))


def _marked(
    scan: Patient, readings: Sequence[Reading]
) -> tuple[tuple[ReadNodule, ...], tuple[tuple[float, float, float], ...]]:
    points = []
    for reading in readings:
        outline = reading.outlines[0]
        column, row = outline.points[0]
        index = slice_at(scan.geometry, outline.z_mm)
        if reading.kind in POINTS and index is not None:
            x, y, z = pixel_place(scan.geometry, index, row, column).tolist()
            points.append((x, y, z))
    return tuple(nodules_of(readings, scan.geometry)), tuple(points)
