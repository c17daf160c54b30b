"""Slices as pictures, and pages that need no other file: for evaluation and demonstration."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

Grey = NDArray[np.uint8]

BASE_FOLDER = Path(__file__).parent  # of `page.html`, which every page extends
DIFFERENCE_HU = 250.0  # full colour of a difference
LESS, EQUAL, MORE = (56, 189, 248), (11, 15, 20), (251, 146, 60)  # told apart by the colour-blind
QUALITY = 88


@dataclass(frozen=True)
class DisplayWindow:
    """The HU that become black and white."""

    centre: float
    width: float

    def grey(self, hounsfield: NDArray[np.generic]) -> Grey:
        """0 to 255, linear between the ends (PS3.3 C.11.2.1.2)."""
        share = (hounsfield.astype(np.float32) - (self.centre - self.width / 2)) / self.width
        grey: Grey = np.rint(np.clip(share, 0.0, 1.0) * 255.0).astype(np.uint8)
        return grey

    def __str__(self) -> str:
        return f"window {self.centre:g} / {self.width:g} HU"


def difference(plane: NDArray[np.floating], true: NDArray[np.floating]) -> Image.Image:
    """Plane - true: dark where equal, blue where too low, orange where too high."""
    share = np.clip((plane - true) / DIFFERENCE_HU, -1.0, 1.0)[..., np.newaxis]
    middle = np.array(EQUAL, float)
    towards = np.where(share < 0, np.array(LESS, float), np.array(MORE, float))
    colours = middle + np.abs(share) * (towards - middle)
    return Image.fromarray(np.rint(colours).astype(np.uint8))


def shrunk(plane: NDArray[np.floating], side: int) -> NDArray[np.floating]:
    """No side longer than `side` pixels; each pixel is the mean of those it covers."""
    longest = max(plane.shape)
    if longest <= side:
        return plane
    rows, columns = (max(1, round(length * side / longest)) for length in plane.shape)
    picture = Image.fromarray(np.ascontiguousarray(plane, np.float32))
    return np.asarray(picture.resize((columns, rows), Image.Resampling.BOX), np.float32)


def uri(picture: Image.Image, quality: int = QUALITY) -> str:
    """The picture itself as an address: a page that needs no other file."""
    raw = io.BytesIO()
    picture.save(raw, "JPEG", quality=quality, optimize=True, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(raw.getvalue()).decode()


def page(template: Path, context: Mapping[str, object]) -> str:
    """A whole page from a template that extends `page.html`; every text in it is escaped."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, BASE_FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(context)
