"""From HU to what the network sees: the brain window, the head alone, square and small."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

LEVEL_HU, WIDTH_HU = 40.0, 120.0  # -20..100 HU: the window in which the training pictures were made
DARK = 20  # -10 HU; fat and air are darker, so are the artefacts of the JPEG training pictures
SOLID_MM = 6.0  # what is thinner than twice this (table, headrest, tubes) is no part of a head
MARGIN = 1.04  # side of the square over the longest side of the head
SIDE = 192  # of the network's pictures, in pixels

Pictures = NDArray[np.uint8]  # (slices, rows, columns)


def windowed(hu: NDArray[np.float32]) -> Pictures:
    """HU in the brain window, 0 to 255."""
    low = LEVEL_HU - WIDTH_HU / 2.0
    levels = np.clip((hu - low) * (255.0 / WIDTH_HU) + 0.5, 0.0, 255.0)
    return np.asarray(levels, np.uint8)


def head_mask(pictures: Pictures, pixel_mm: float) -> NDArray[np.bool_]:
    """True inside the head: the largest solid body of the stack, slice by slice without holes.

    Table, headrest and hands are left out because they tell the scanner's set-up, and with it the
    patient's group: the pixels outside the head alone reach an AUC of 0.69 in the training set.
    """
    radius = max(1, round(SOLID_MM / pixel_mm))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    full = [ndimage.binary_fill_holes(picture > DARK).astype(np.uint8) for picture in pictures]
    solid = np.stack([cv2.morphologyEx(slice_, cv2.MORPH_OPEN, kernel) for slice_ in full])
    labels, count = ndimage.label(solid)
    if count == 0:
        return np.zeros(pictures.shape, dtype=bool)
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return np.asarray(labels == largest)


@dataclass(frozen=True)
class Square:
    """The square around the head, in pixels of the source; it may reach over its border."""

    row: float  # of its centre
    column: float
    side: float

    @classmethod
    def around(cls, mask: NDArray[np.bool_]) -> "Square":
        """The one that holds the head in every slice; the whole picture where there is none."""
        shadow = np.asarray(mask.any(axis=0))  # (rows, columns)
        if not shadow.any():
            rows, columns = shadow.shape
            return cls((rows - 1) / 2.0, (columns - 1) / 2.0, float(max(shadow.shape)))
        (top, bottom), (left, right) = (
            np.flatnonzero(np.any(shadow, axis=axis))[[0, -1]] for axis in (1, 0)
        )
        side = MARGIN * max(bottom - top + 1, right - left + 1)
        return cls((top + bottom) / 2.0, (left + right) / 2.0, float(side))

    def spread(self, coarse: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """A coarse map of this square, over the (rows, columns) of a mask and inside it."""
        rows, columns = mask.shape
        scale = coarse.shape[0] / self.side  # of coarse pixels over pixels of the source
        top, left = (centre - self.side / 2.0 for centre in (self.row, self.column))
        last = coarse.shape[0] - 1
        places = (
            ((np.arange(count) + 0.5 - first) * scale - 0.5).clip(0, last).astype(np.float32)
            for count, first in ((rows, top), (columns, left))
        )
        map_rows, map_columns = np.meshgrid(*places, indexing="ij")
        fine = cv2.remap(coarse, map_columns, map_rows, cv2.INTER_LINEAR)
        return np.where(mask, fine, 0.0).astype(np.float32)


def cropped(pictures: Pictures, square: Square, side: int = SIDE) -> Pictures:
    """(slices, side, side): the square, averaged over areas where it shrinks."""
    half = square.side / 2.0
    top, left = round(square.row - half), round(square.column - half)
    size = round(square.side)
    pad = max(0, -top, -left, top + size - pictures.shape[1], left + size - pictures.shape[2])
    padded = np.pad(pictures, ((0, 0), (pad, pad), (pad, pad)))
    window = padded[:, top + pad : top + pad + size, left + pad : left + pad + size]
    how = cv2.INTER_AREA if size >= side else cv2.INTER_LINEAR
    small = [cv2.resize(slice_, (side, side), interpolation=how) for slice_ in window]
    return np.asarray(np.stack(small), np.uint8)


def prepared(pictures: Pictures, pixel_mm: float, side: int = SIDE) -> Pictures:
    """(slices, side, side): the head alone, in its square."""
    mask = head_mask(pictures, pixel_mm)
    return cropped(np.where(mask, pictures, 0).astype(np.uint8), Square.around(mask), side)


def triples(pictures: Pictures) -> Pictures:
    """(slices, 3, side, side): each slice between its neighbours; the ends stand twice."""
    places = np.arange(len(pictures))
    beside = np.clip(places[:, None] + np.array([-1, 0, 1]), 0, len(pictures) - 1)
    return np.asarray(pictures[beside], np.uint8)
