"""Pages for people as secondary captures: pictures and words in the pixels, for any viewer."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from inference import header as h
from inference.dataset import Header
from inference.header import Elements
from inference.pixels import is_lossy
from inference.results.making import RESEARCH_WORDS, Making, arguments, completed

Rgb = NDArray[np.uint8]  # (rows, columns, 3)
Colour = tuple[int, int, int]

SC_IMAGE = "1.2.840.10008.5.1.4.1.1.7"
PAPER, INK, FAINT, MARK = (12, 16, 22), (236, 240, 244), (150, 160, 172), (251, 146, 60)
TITLE, BODY, SMALL = 22, 15, 12  # heights of letters in pixels
LINE = 1.35  # of the height of a letter
MARGIN = 16
# Of what all results share: what a picture without a place in the patient has not.
NOT_IN_CAPTURES = frozenset({"FrameOfReferenceUID", "PositionReferenceIndicator"})
LOSSY = ("LossyImageCompressionRatio", "LossyImageCompressionMethod")
PIXEL_DATA = 0x7FE00010


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font: the same on every machine, for ASCII."""
    return ImageFont.load_default(size)


class Page:
    """A dark page that is drawn on from its upper left; every page says that it is research."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._image = Image.new("RGB", (width, height), PAPER)
        self._draw = ImageDraw.Draw(self._image)
        self.width, self.height = width, height
        self.text(MARGIN, MARGIN, title, TITLE)
        self.text(MARGIN, MARGIN + round(TITLE * LINE), RESEARCH_WORDS.upper(), BODY, MARK)
        self.top = MARGIN + round((TITLE + BODY) * LINE) + MARGIN // 2  # of what is free

    def text(self, x: int, y: int, words: str, size: int = BODY, colour: Colour = INK) -> int:
        """Words on one line; the place where the next line begins."""
        self._draw.text((x, y), words, fill=colour, font=font(size))
        return y + round(size * LINE)

    def length(self, words: str, size: int = BODY) -> int:
        """Words on one line, in pixels."""
        return round(self._draw.textlength(words, font=font(size)))

    def paragraph(
        self, x: int, y: int, words: str, width: int, size: int = BODY, colour: Colour = INK
    ) -> int:
        """Words on as many lines as they need; the place where the next line begins."""
        line = ""
        for word in words.split():
            longer = f"{line} {word}".strip()
            if line and self.length(longer, size) > width:
                y, line = self.text(x, y, line, size, colour), word
            else:
                line = longer
        return self.text(x, y, line, size, colour) if line else y

    def picture(self, x: int, y: int, picture: Rgb, width: int, height: int) -> None:
        """A picture scaled into a box, in the middle of it."""
        rows, columns = picture.shape[:2]
        scale = min(width / columns, height / rows)
        size = max(1, round(columns * scale)), max(1, round(rows * scale))
        scaled = Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR)
        self._image.paste(scaled, (x + (width - size[0]) // 2, y + (height - size[1]) // 2))

    def box(self, x: int, y: int, width: int, height: int, colour: Colour) -> None:
        """A filled rectangle; nothing where a side is 0."""
        if min(width, height) > 0:
            self._draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)

    def line(self, first: tuple[int, int], last: tuple[int, int], colour: Colour = FAINT) -> None:
        self._draw.line((first, last), fill=colour)

    def outline(self, corner: tuple[int, int], opposite: tuple[int, int], colour: Colour) -> None:
        """An empty rectangle."""
        self._draw.rectangle((*corner, *opposite), outline=colour, width=2)

    @property
    def pixels(self) -> Rgb:
        return np.asarray(self._image, np.uint8)


def grey(plane: NDArray[np.floating], centre: float, width: float) -> Rgb:
    """(rows, columns, 3) of a slice, in a window of its values."""
    share = (plane - (centre - width / 2.0)) / width
    levels: Rgb = np.rint(np.clip(share, 0.0, 1.0) * 255.0).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=2)


def heated(picture: Rgb, heat: NDArray[np.floating], most: float = 0.6) -> Rgb:
    """A picture with a map of 0 to 1 laid over it, in the orange that the colour-blind see too."""
    share = np.clip(heat, 0.0, 1.0)[..., None] * most
    mixed: Rgb = np.rint(picture * (1.0 - share) + np.array(MARK) * share).astype(np.uint8)
    return mixed


def capture(
    headers: Sequence[Header],
    page: Page,
    making: Making,
    *,
    what: str,
    number: int,
    place: str = "capture",
    first: Header | None = None,
) -> Elements:
    """The whole data set; `headers` are the slices that are drawn on the page.

    All results have patient and study of the `first` slice of the stack, however others spell them.
    """
    from highdicom.sc import SCImage  # takes seconds

    first = first or headers[0]
    made = SCImage(
        pixel_array=page.pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),  # overwritten: a page has none
        study_instance_uid=first.text("StudyInstanceUID"),
        **arguments(making, place),
    )
    references = [
        h.elements_of(
            ReferencedSOPClassUID=header.text("SOPClassUID"), ReferencedSOPInstanceUID=header.uid
        )
        for header in headers
    ]
    source = [
        item | h.elements_of(PurposeOfReferenceCodeSequence=h.code("121322")) for item in references
    ]
    own = completed(made, first, making, what, number, NOT_IN_CAPTURES) | h.elements_of(
        ImageType=["DERIVED", "SECONDARY"],
        PatientOrientation="",
        ConversionType="WSD",
        BurnedInAnnotation="YES",
        DerivationDescription=f"Page made of slices by a model: {RESEARCH_WORDS}",
        SourceImageSequence=h.items_of(*source),
        ReferencedSeriesSequence=h.items_of(
            h.elements_of(
                SeriesInstanceUID=first.text("SeriesInstanceUID"),
                ReferencedInstanceSequence=h.items_of(*references),
            )
        ),
    )
    for keyword in ("DateOfSecondaryCapture", "TimeOfSecondaryCapture"):
        del own[h.tag_of(keyword)]  # of the clock: made again, it has the same bytes
    for header in [header for header in headers if is_lossy(header)][:1]:
        own |= h.carried(header, LOSSY, repaired=True) | h.elements_of(LossyImageCompression="01")
    return own | {PIXEL_DATA: h.raw(PIXEL_DATA, "OB", _even(made.PixelData))}


def _even(data: bytes) -> bytes:
    return data + b"\0" * (len(data) % 2)
