"""The readings of LIDC-IDRI: XML of up to four radiologists, joined to nodules by place.

A reader outlines a nodule of 3 mm or more slice by slice, along the pixels just outside it, and
marks smaller ones, and what is no nodule, with a point.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.training.data import NoSeries
from inference.volume import Geometry

SAME_SLICE_MM = 0.2  # a slice and the z that a reader's file gives it
ANY = "{*}"  # the name space differs between editions

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outline:
    """One closed line in one slice; x are columns, y rows."""

    z_mm: float
    points: tuple[tuple[int, int], ...]
    is_inside: bool  # False: a hole


@dataclass(frozen=True)
class Reading:
    """One mark of one reader; a single point is a small nodule or no nodule."""

    reader: int
    outlines: tuple[Outline, ...]
    kind: str  # nodule, nodule_under_3mm or non_nodule
    texture: float | None = None  # 1 ground glass to 5 solid


@dataclass(frozen=True)
class ReadNodule:
    """A nodule as several readers outlined it; means over them."""

    centre: tuple[float, float, float]  # LPS, mm
    sphere_mm: float  # diameter of a sphere of the same volume
    readers: int
    texture: float = 5.0  # 1 ground glass to 5 solid


def read_xml(path: Path) -> tuple[str, list[Reading]]:
    """(Series Instance UID, readings) of a file; raises NoSeries for any other XML."""
    try:
        root = ElementTree.parse(path).getroot()  # noqa: S314 - a file of the trainer's own data
    except ElementTree.ParseError as error:
        raise NoSeries(f"{path}: not XML: {error}") from error
    uid = root.findtext(f".//{ANY}SeriesInstanceUid") or ""
    sessions = root.findall(f".//{ANY}readingSession")
    if not uid or not sessions:
        raise NoSeries(f"{path}: no readings of LIDC")
    readings = [
        reading for number, session in enumerate(sessions) for reading in _of(session, number)
    ]
    return uid.strip(), readings


def _of(session: ElementTree.Element, reader: int) -> Iterator[Reading]:
    for nodule in session.findall(f"{ANY}unblindedReadNodule"):
        outlines = tuple(_outline(roi) for roi in nodule.findall(f"{ANY}roi"))
        is_outlined = any(len(outline.points) > 1 for outline in outlines)
        texture = nodule.findtext(f"{ANY}characteristics/{ANY}texture")
        yield Reading(
            reader,
            outlines,
            "nodule" if is_outlined else "nodule_under_3mm",
            float(texture) if texture else None,
        )
    for other in session.findall(f"{ANY}nonNodule"):
        yield Reading(reader, (_outline(other, "locus"),), "non_nodule")


def _outline(roi: ElementTree.Element, points: str = "edgeMap") -> Outline:
    places = tuple(
        (int(point.findtext(f"{ANY}xCoord") or 0), int(point.findtext(f"{ANY}yCoord") or 0))
        for point in roi.findall(f"{ANY}{points}")
    )
    z = float(roi.findtext(f"{ANY}imageZposition") or "nan")
    is_inside = (roi.findtext(f"{ANY}inclusion") or "TRUE").strip().upper() == "TRUE"
    return Outline(z, places, is_inside)


def nodules_of(readings: Sequence[Reading], geometry: Geometry) -> list[ReadNodule]:
    """Outlined readings joined: those whose centres lie within each other's sphere are one."""
    joined: list[list[tuple[Reading, Floats, float]]] = []
    for reading in readings:
        if reading.kind != "nodule":
            continue
        if (place := measured(reading, geometry)) is None:
            continue
        centre, volume = place
        sphere = float(np.cbrt(6.0 * volume / np.pi))
        for group in joined:
            distance = np.linalg.norm(np.mean([own for _, own, _ in group], axis=0) - centre)
            if distance <= max(sphere, *(own for *_, own in group)) / 2.0:
                group.append((reading, centre, sphere))
                break
        else:
            joined.append([(reading, centre, sphere)])
    return [_mean(group) for group in joined]


def _mean(group: Sequence[tuple[Reading, Floats, float]]) -> ReadNodule:
    x, y, z = np.mean([centre for _, centre, _ in group], axis=0).tolist()
    textures = [reading.texture for reading, *_ in group if reading.texture is not None]
    return ReadNodule(
        (x, y, z),
        float(np.mean([sphere for *_, sphere in group])),
        len({reading.reader for reading, *_ in group}),
        float(np.mean(textures)) if textures else 5.0,
    )


def measured(reading: Reading, geometry: Geometry) -> tuple[Floats, float] | None:
    """(centre in the patient, volume in mm3) of an outlined reading; None where nothing is left."""
    weights, places = [], []
    for z in sorted({outline.z_mm for outline in reading.outlines}):
        index = slice_at(geometry, z)
        mask = np.zeros((geometry.rows, geometry.columns), np.uint8)
        for outline in sorted(reading.outlines, key=lambda own: not own.is_inside):
            if outline.z_mm == z:
                _fill(mask, outline)
        rows, columns = np.nonzero(mask)
        if index is not None and rows.size:
            places.append(pixel_place(geometry, index, rows.mean(), columns.mean()))
            weights.append(float(rows.size))
    if not weights:
        return None
    row_mm, column_mm = geometry.pixel_spacing
    gap = float(np.median(geometry.gaps_mm))
    centre = np.average(places, axis=0, weights=weights)
    return centre, sum(weights) * row_mm * column_mm * gap


def _fill(mask: NDArray[np.uint8], outline: Outline) -> None:
    """Fill what lies within the outline; the outline itself lies outside the nodule."""
    points = [np.array(outline.points, np.int32)]
    own = np.asarray(cv2.fillPoly(np.zeros_like(mask), points, (1,)), np.uint8)
    if outline.is_inside:
        cv2.polylines(own, points, True, (0,))
        mask |= own
    else:
        mask[own > 0] = 0


def slice_at(geometry: Geometry, z_mm: float) -> int | None:
    """The slice at a z of a reader's file; None where a part of the series is all there is."""
    distances = np.abs(geometry.positions[:, 2] - z_mm)
    return int(np.argmin(distances)) if distances.min() <= SAME_SLICE_MM else None


def pixel_place(geometry: Geometry, index: int, row: float, column: float) -> Floats:
    """The place of a pixel in the patient."""
    along_row, along_column = geometry.orientation
    row_mm, column_mm = geometry.pixel_spacing
    return np.asarray(
        geometry.positions[index] + column * column_mm * along_row + row * row_mm * along_column
    )
