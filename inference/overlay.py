"""The mark of a generated slice that travels in the image: words in an overlay plane, in a corner.

An overlay (PS3.3 C.9.2) lies beside the pixels: viewers draw it over them, and no value changes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.tag import Tag

from inference.header import Elements, raw

GROUP, LAST_GROUP = 0x6000, 0x60FF
DESCRIPTION = GROUP << 16 | 0x0022
NOT_ACQUIRED = "AI, not acquired"
SHORTEST = "AI"  # where a slice has no room for more
# Pillow's own bitmap font has 11 rows a line: as many twice over on a slice of 512 x 512 pixels.
PIXELS_A_SCALE = 256
# The mark stays in its corner, if that leaves room for its longest word.
CORNER = 0.45

Bits = NDArray[np.bool_]


def words_of(error_hu: float | None) -> str:
    """The words of the mark, with the expected error of the slice where it is known."""
    return NOT_ACQUIRED + ("" if error_hu is None else f", +/- {error_hu:.0f} HU")


def overlay(words: str, rows: int, columns: int) -> Elements:
    """The overlay plane of a slice of that size; nothing where not even the shortest word fits."""
    plane = drawn(words, rows, columns)
    if plane is None:
        return {}
    packed = np.packbits(plane, bitorder="little").tobytes()
    data = packed + b"\0" * (len(packed) % 2)
    # The dictionary has these keywords for no group in particular.
    values: Sequence[tuple[int, str, object]] = (
        (0x0010, "US", rows),
        (0x0011, "US", columns),
        (0x0022, "LO", words),
        (0x0040, "CS", "G"),
        (0x0050, "SS", [1, 1]),
        (0x0100, "US", 1),
        (0x0102, "US", 0),
        (0x1500, "LO", NOT_ACQUIRED),
    )
    tags = {element: GROUP << 16 | element for element, _, _ in values}
    elements: Elements = {
        tags[element]: DataElement(Tag(tags[element]), vr, value) for element, vr, value in values
    }
    return elements | {GROUP << 16 | 0x3000: raw(GROUP << 16 | 0x3000, "OW", data)}


def read_overlays(path: Path) -> Elements:
    """The elements of all overlay planes of a file."""
    dataset = dcmread(path, stop_before_pixels=True)
    tags = (tag for tag in dataset.keys() if GROUP <= tag.group <= LAST_GROUP)  # noqa: SIM118
    return {int(tag): dataset.get_item(tag) for tag in tags}


def description_in(overlays: Elements) -> str:
    """The words that an overlay has by its own account; those of any where there is none."""
    element = overlays.get(DESCRIPTION)
    value = NOT_ACQUIRED.encode() if element is None else element.value
    return value.decode("latin-1").strip() if isinstance(value, bytes) else ""


def drawn(words: str, rows: int, columns: int) -> Bits | None:
    """The words in the upper left corner of a plane; None where there is no room for any."""
    scale = max(1, round(min(rows, columns) / PIXELS_A_SCALE))
    for text, share in ((words, CORNER), (words, 1.0), (SHORTEST, 1.0)):
        letters = _letters(_wrapped(text, int(columns * share) // scale))
        high, wide = (scale * side for side in letters.shape)
        if high <= rows and wide <= columns * share:
            plane = np.zeros((rows, columns), bool)
            plane[:high, :wide] = letters.repeat(scale, axis=0).repeat(scale, axis=1)
            return plane
    return None


def _wrapped(text: str, width: int) -> str:
    """The text in lines of at most so many pixels, or of one word where it is longer."""
    font = ImageFont.load_default_imagefont()
    lines = [""]
    # "+/-", the number and its unit are one word.
    for word in text.replace("+/- ", "+/-\xa0").replace(" HU", "\xa0HU").split(" "):
        longer = f"{lines[-1]} {word}".strip(" ")
        if lines[-1] and font.getbbox(longer)[2] > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines).replace("\xa0", " ")


def _letters(text: str) -> Bits:
    """The text as pixels, a bitmap of its size."""
    font = ImageFont.load_default_imagefont()
    size = ImageDraw.Draw(Image.new("1", (1, 1))).multiline_textbbox((0, 0), text, font, spacing=0)
    picture = Image.new("1", (int(size[2]), int(size[3])))
    ImageDraw.Draw(picture).multiline_text((0, 0), text, 1, font, spacing=0)
    return np.asarray(picture, bool)
