"""Image Type: the words by which images say that they are no plain slices, and that of results."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from inference.dataset import Header


class Meaning(StrEnum):
    """The meaning that a word gives an image."""

    PROJECTION = "projection"
    RENDERING = "rendering"
    COMPUTED = "computed values"
    REFORMAT = "reformat"
    LOCALIZER = "localizer"


@dataclass(frozen=True)
class Term:
    """Words of one meaning, and the document or program that uses them so.

    Case and what stands between words are of no importance: `CT_SOM5 MIP` has the word MIP.
    """

    meaning: Meaning
    words: tuple[str, ...]
    source: str
    in_description: bool = True  # also in a description, where it means nothing else


PIXEL_CONTRAST = "PS3.3 C.8.16.1.4, Derived Pixel Contrast"
TECHNIQUE = "PS3.3 C.8.16.2.1, Volume Based Calculation Technique"
CODES = "PS3.16 CID 7203, the meanings of the codes"
SYNGO_WORKPLACE = "Siemens syngo MultiModality Workplace VE30A, conformance statement, CT annex"

TERMS = (
    Term(Meaning.PROJECTION, ("MAX_IP", "MIN_IP"), TECHNIQUE),
    Term(Meaning.PROJECTION, ("MAXIMUM", "MINIMUM"), PIXEL_CONTRAST, False),
    Term(Meaning.PROJECTION, ("MAXIMUM INTENSITY", "MINIMUM INTENSITY"), CODES),
    Term(Meaning.PROJECTION, ("PROJECTION IMAGE",), SYNGO_WORKPLACE),
    Term(Meaning.PROJECTION, ("MIP", "MIPS"), "Siemens SOMATOM images: `CT_SOM5 MIP`"),
    Term(
        Meaning.PROJECTION,
        ("MINIP", "MAXIP", "MAX INTENSITY", "MIN INTENSITY"),
        "Philips workstations (reported); InVesalius (MaxIP, MinIP)",
    ),
    Term(Meaning.PROJECTION, ("MPVR",), "GE Advantage Workstation (reported)"),
    Term(Meaning.PROJECTION, ("RAYSUM", "RAY SUM"), "Canon and TeraRecon workstations (reported)"),
    Term(
        Meaning.RENDERING,
        ("VOLUME_RENDER", "SURFACE_RENDER", "CURVED_MPR"),
        TECHNIQUE,
    ),
    Term(Meaning.RENDERING, ("VOLUME RENDERING", "SURFACE RENDERING", "CURVED"), CODES),
    Term(Meaning.RENDERING, ("3D_RENDERING",), "defined term known to dciodvfy (dicom3tools)"),
    Term(Meaning.RENDERING, ("VOLREN",), "GE, by RSNA CTP's DicomPixelAnonymizer.script"),
    Term(
        Meaning.RENDERING,
        ("VRT", "VOLUME RENDERED"),
        "Siemens syngo and others (reported)",
    ),
    Term(Meaning.RENDERING, ("VR", "SSD", "CPR"), "the same, shortened", False),
    Term(Meaning.RENDERING, ("FUSION",), "Siemens syngo.via: `MPR FUSION`", False),
    Term(
        Meaning.COMPUTED,
        ("ADDITION", "DIVISION", "MASKED", "MULTIPLICATION", "STD_DEVIATION", "SUBTRACTION"),
        PIXEL_CONTRAST,
        False,
    ),
    Term(Meaning.REFORMAT, ("RESAMPLED", "MEAN"), PIXEL_CONTRAST, False),
    Term(
        Meaning.REFORMAT,
        ("MPR",),
        f"{TECHNIQUE}; {SYNGO_WORKPLACE}; `CT_SOM5 MPR`, `MPR THICK`",
        False,
    ),
    Term(
        Meaning.REFORMAT, ("REFORMATTED", "AVERAGE"), r"GE: `SECONDARY\REFORMATTED\AVERAGE`", False
    ),
    Term(Meaning.REFORMAT, ("AIP", "AVG"), "4D CT workstations (reported)", False),
    Term(Meaning.LOCALIZER, ("LOCALIZER",), "PS3.3 C.8.2.1.1.1, value 3"),
    Term(Meaning.LOCALIZER, ("SCOUT",), "GE; dcm2niix, nii_dicom.cpp"),
    Term(Meaning.LOCALIZER, ("TOPOGRAM", "CT_SOM5 TOP"), "Siemens SOMATOM"),
    Term(
        Meaning.LOCALIZER,
        ("SCANOGRAM", "SCANOSCOPE", "SCANO"),
        "Canon, Hitachi (reported)",
    ),
    Term(Meaning.LOCALIZER, ("SURVIEW",), "Philips (reported)"),
)
NO_SLICES = (Meaning.PROJECTION, Meaning.RENDERING, Meaning.COMPUTED)

# Value 5 is the mark of the node. Value 4 is for multi-energy images and stays empty; value 3 of a
# CT image is AXIAL or LOCALIZER (PS3.3 C.8.2.1.1.1), so that what the source said there follows.
RESULT = ("DERIVED", "SECONDARY", "AXIAL", "", "AI_INTERP")
CODE_STRING = re.compile(r"[A-Z0-9_ ]{1,16}")  # PS3.5 6.2


def words_of(header: Header, *meanings: Meaning) -> frozenset[str]:
    """The words of these meanings that Image Type has."""
    return frozenset(
        word
        for value in header.values("ImageType")
        for meaning, word in _words_in(value)
        if meaning in meanings
    )


def is_described_as(header: Header, *meanings: Meaning) -> bool:
    """True where the description has a word of these meanings; "thin, for MIP" has none."""
    text = _text(header.text("SeriesDescription"))
    words = [
        _text(word)
        for term in TERMS
        if term.meaning in meanings and term.in_description
        for word in term.words
    ]
    return any(word in text and f" FOR{word}" not in text for word in words)


def image_type_of_result(headers: Iterable[Header]) -> tuple[str, ...]:
    """The Image Type of a derived series: the node's own, then what its sources say they are.

    It is the same in all instances, as viewers part a series by it.
    """
    words = dict.fromkeys(word for header in headers for word in _kept(header.values("ImageType")))
    return (*RESULT, *words)


def _kept(values: Sequence[str]) -> Iterator[str]:
    """Values that have a word of the table; of a value that is no code string the words alone."""
    for value in values:
        words = _words_in(value)
        if words and CODE_STRING.fullmatch(value.upper()):
            yield value.upper()
        else:
            yield from (word for _, word in words)


@lru_cache(maxsize=1024)
def _words_in(value: str) -> tuple[tuple[Meaning, str], ...]:
    text = _text(value)
    return tuple(
        (term.meaning, word) for term in TERMS for word in term.words if _text(word) in text
    )


def _text(value: str) -> str:
    """Letters and numbers alone, each run of them between spaces."""
    return f" {' '.join(re.findall('[A-Z]+|[0-9]+', value.upper()))} "
