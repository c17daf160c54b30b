"""Pictures of slices and reformats, as a viewer would draw them."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from node.demo.series import Hounsfield, Series

Grey = NDArray[np.uint8]

DIFFERENCE_HU = 250.0  # full colour of a difference
LESS, EQUAL, MORE = (56, 189, 248), (11, 15, 20), (251, 146, 60)  # told apart by the colour-blind
PAPER, INK, QUIET = (13, 17, 23), (236, 239, 244), (148, 160, 178)


@dataclass(frozen=True)
class Window:
    """Which HU become black and white."""

    centre: float
    width: float

    def grey(self, hounsfield: NDArray[np.generic]) -> Grey:
        """0 to 255, linear between the ends (PS3.3 C.11.2.1.2)."""
        share = (hounsfield.astype(np.float32) - (self.centre - self.width / 2)) / self.width
        grey: Grey = np.rint(np.clip(share, 0.0, 1.0) * 255.0).astype(np.uint8)
        return grey


@dataclass(frozen=True)
class Cut:
    """A plane across the slices: where it lies, and which part of it is shown (pixels)."""

    name: str
    along: Literal["rows", "columns"]  # what runs from left to right
    at: int
    first: int
    last: int
    window: Window


LUNG = Window(-500.0, 1500.0)
MEDIASTINUM = Window(60.0, 700.0)
# Chosen for the demonstration series: through aorta and spine, and through the lung vessels.
SAGITTAL = Cut("Sagittal", "rows", 256, 88, 446, MEDIASTINUM)
CORONAL = Cut("Coronal", "columns", 294, 12, 500, LUNG)
AXIAL_BOX = (0, 82, 512, 462)  # left, top, right, bottom: the patient, without the table below


def reformat(series: Series, volume: NDArray[np.int16], cut: Cut, width: int) -> Image.Image:
    """A cut, `width` pixels wide; each slice is as thick as its gap, nothing is smoothed between.

    The patient's head is up. It reaches from the middle of the first slice to that of the last, so
    that cuts of the received and of the derived series show exactly the same place.
    """
    between_rows, between_columns = series.pixel_spacing_mm
    if cut.along == "rows":
        plane, spacing = volume[::-1, cut.first : cut.last, cut.at], between_rows
    else:
        plane, spacing = volume[::-1, cut.at, cut.first : cut.last], between_columns
    per_mm = width / ((cut.last - cut.first) * spacing)
    height = round(float(np.ptp(series.heights_mm)) * per_mm)
    wide = Image.fromarray(cut.window.grey(plane)).resize(
        (width, len(series)), Image.Resampling.BICUBIC
    )
    half = 0.5
    inner = (0, half, width, len(series) - half)
    return wide.resize((width, height), Image.Resampling.NEAREST, box=inner)


def axial(plane: NDArray[np.generic], window: Window) -> Image.Image:
    """One slice, cropped to the patient."""
    return Image.fromarray(window.grey(plane)).crop(AXIAL_BOX)


def difference(plane: Hounsfield, true: Hounsfield) -> Image.Image:
    """Plane - true: dark where equal, blue where too low, orange where too high."""
    share = np.clip((plane - true) / DIFFERENCE_HU, -1.0, 1.0)[..., np.newaxis]
    middle = np.array(EQUAL, float)
    towards = np.where(share < 0, np.array(LESS, float), np.array(MORE, float))
    colours = middle + np.abs(share) * (towards - middle)
    return Image.fromarray(np.rint(colours).astype(np.uint8)).crop(AXIAL_BOX)


def uri(picture: Image.Image, quality: int = 88) -> str:
    """The picture itself as an address: a page that needs no other file."""
    raw = io.BytesIO()
    picture.save(raw, "JPEG", quality=quality, optimize=True, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(raw.getvalue()).decode()


def before_after(received: Series, derived: Series, width: int = 1200) -> Image.Image:
    """Received and derived side by side, in two cuts: one picture that needs no words."""
    gutter, bar, foot = 14, 50, 34
    each = (width - 3 * gutter) // 2
    volumes = ((received, received.volume()), (derived, derived.volume()))
    rows = [[reformat(s, v, cut, each) for s, v in volumes] for cut in (SAGITTAL, CORONAL)]
    heights = [row[0].height for row in rows]
    sheet = Image.new("RGB", (width, bar + sum(heights) + gutter + foot), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = bar
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            left = gutter + column * (each + gutter)
            sheet.paste(picture, (left, top))
        top += height + gutter
    titles = (
        f"Received: {len(received)} slices, {received.gap_mm:g} mm apart",
        f"Derived: {len(derived)} slices, {derived.gap_mm:g} mm apart",
    )
    for column, title in enumerate(titles):
        left = gutter + column * (each + gutter)
        draw.text((left, bar / 2), title, INK, ImageFont.load_default(22), anchor="lm")
    credit = "LIDC-IDRI-0001, The Cancer Imaging Archive, CC BY 3.0. Not for diagnosis."
    place = (gutter, sheet.height - foot / 2)
    draw.text(place, credit, QUIET, ImageFont.load_default(15), anchor="lm")
    return sheet


def save_small(picture: Image.Image, path: Path) -> None:
    """As a PNG of 128 colours: grey needs no more, and a page loads at once."""
    few = picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=128)
    few.save(path, "PNG", optimize=True)
