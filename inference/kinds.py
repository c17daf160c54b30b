"""Kinds of image: attributes that slices of one volume share, and words that say "no slice".

How pixels are stored parts nothing: bits, sign, rescale, photometric interpretation and transfer
syntax say how a slice was written down, not what it shows.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from inference.dataset import Header
from inference.volume import Vector

T = TypeVar("T")
Places = NDArray[np.float64]  # (slices,), mm along a normal

# Directions and spacings that differ by less than this part of a pixel, measured at the far edge
# of the image, are the same: noise of the decimal strings.
NOISE_PIXELS = 0.25
# Slices nearer than this are at one place: the place was acquired twice.
REPEATED_MM = 0.1
# Fields of view whose sides differ by less than this part show the same.
SAME_FIELD = 0.1
# Planes whose normals differ by less (cosine) are parallel.
PARALLEL = 1e-3
MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
# So many slices, each with a time of its own, are counted by it: no volume is of several times.
FEWEST_COUNTED = 3
# Parts of a complex image (PS3.3 C.8.13.3.1.1 and the letters that consoles write for them).
COMPONENTS = {
    "M": "magnitude",
    "MAGNITUDE": "magnitude",
    "P": "phase",
    "PHASE": "phase",
    "R": "real",
    "REAL": "real",
    "I": "imaginary",
    "IMAGINARY": "imaginary",
}
# The attributes of the grid that the pixels of a slice lie on.
GRID = ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient")


@dataclass(frozen=True)
class MrKind:
    """The values that tell MR images of one series and plane apart: each kind is one volume."""

    echo_ms: float | None
    echo: int | None
    inversion_ms: float | None
    b_value: float | None
    component: str  # magnitude, phase, ...
    time: int | None  # the number of a time: of a contrast agent, of a function


def mr_kinds_of(headers: Sequence[Header]) -> list[MrKind | None]:
    """The MR part of the kind of each slice. A time of its own in each of them counts slices."""
    kinds = [mr_kind_of(header) for header in headers]
    timeless = [None if kind is None else replace(kind, time=None) for kind in kinds]
    slices, times = (
        Counter(timeless),
        Counter(other for _, other in set(zip(kinds, timeless, strict=True))),
    )
    return [
        other if times[other] == slices[other] >= FEWEST_COUNTED else kind
        for kind, other in zip(kinds, timeless, strict=True)
    ]


def mr_kind_of(header: Header) -> MrKind | None:
    """The MR part of the kind; None for an image of another modality."""
    if header.text("SOPClassUID") != MR_IMAGE:
        return None
    return MrKind(
        echo_ms=header.number("EchoTime"),
        echo=header.integer("EchoNumbers"),
        inversion_ms=header.number("InversionTime"),
        b_value=header.number("DiffusionBValue"),
        component=component_of(header),
        time=header.integer("TemporalPositionIdentifier"),
    )


def component_of(header: Header) -> str:
    """The part of the complex image; a word that means the same is the same part."""
    values = (value.upper() for value in header.values("ImageType")[2:])
    return next((COMPONENTS[value] for value in values if value in COMPONENTS), "")


def parts_of_mr(kind: MrKind) -> tuple[str, ...]:
    """Words that tell a stack from the others of its series; "" where it has none."""
    parts = {
        "echo {}": kind.echo,
        "TE {:g} ms": kind.echo_ms,
        "TI {:g} ms": kind.inversion_ms,
        "b {:g}": kind.b_value,
        "{}": kind.component or None,
        "time {}": kind.time,
    }
    return tuple("" if value is None else form.format(value) for form, value in parts.items())


def words_of_mr(kind: MrKind) -> str:
    """All of them, as a person would write it."""
    return ", ".join(filter(None, parts_of_mr(kind)))


@dataclass(frozen=True)
class Kind:
    """The kind of an image; two kinds at one place are two images, neither stands for the other."""

    cut: str  # value 3 of Image Type: AXIAL, ...
    words: frozenset[str]  # of Image Type that say more: a projection
    energy: str  # value 4 of a multi-energy image
    kernel: str
    kilovolts: float | None
    mr: MrKind | None = None


def kinds_of(headers: Sequence[Header]) -> list[Kind]:
    """The kind of each slice of a series. What a slice does not say is what the others say."""
    cuts = _completed([header.value("ImageType", 2).upper() for header in headers], "")
    kernels = _completed([_kernel(header) for header in headers], "")
    kilovolts = _completed([header.number("KVP") for header in headers], None)
    of_mr = mr_kinds_of(headers)
    return [
        Kind(
            cut,
            words_of(header, *NO_SLICES),
            _energy(header),
            kernel,
            kilovolt,
            mr,
        )
        for header, cut, kernel, kilovolt, mr in zip(
            headers, cuts, kernels, kilovolts, of_mr, strict=True
        )
    ]


def _completed(values: list[T], absent: T) -> list[T]:
    known = set(values) - {absent}
    return values if len(known) != 1 else [*known] * len(values)


def _kernel(header: Header) -> str:
    return "\\".join(header.values("ConvolutionKernel")).upper()


def _energy(header: Header) -> str:
    is_multi_energy = header.text("MultienergyCTAcquisition").upper() == "YES"
    return header.value("ImageType", 3).upper() if is_multi_energy else ""


def is_same_grid(first: Header, second: Header) -> bool:
    """True for slices of the same rows, columns, spacing and directions, but for noise."""
    sides = [first.integer(keyword) for keyword in ("Rows", "Columns")]
    if sides != [second.integer(keyword) for keyword in ("Rows", "Columns")]:
        return False
    rows, columns = (side or 1 for side in sides)
    spacing, other = first.numbers("PixelSpacing"), second.numbers("PixelSpacing")
    if len(spacing) != len(other):
        return False
    noise = [abs(a - b) * max(rows, columns) for a, b in zip(spacing, other, strict=True)]
    if any(off >= NOISE_PIXELS * abs(a) for off, a in zip(noise, spacing, strict=True) if off):
        return False
    cosines, others = (h.numbers("ImageOrientationPatient") for h in (first, second))
    if len(cosines) != 6 or len(others) != 6:
        return cosines == others
    turned = np.subtract(cosines, others).reshape(2, 3)
    along_row, along_column = np.linalg.norm(turned, axis=1)
    return bool(max(along_row * columns, along_column * rows) < NOISE_PIXELS)


def shows_same_place(first: Header, second: Header) -> bool:
    """True where two slices of one kind lie in parallel planes and show as much of them."""
    if not is_parallel(first, second):
        return False
    for side, keyword in enumerate(("Rows", "Columns")):
        side_mm, other_mm = (_side_mm(header, keyword, side) for header in (first, second))
        if abs(side_mm - other_mm) > SAME_FIELD * max(side_mm, other_mm):
            return False
    return True


def is_parallel(first: Header, second: Header) -> bool:
    return abs(float(_normal(first) @ _normal(second))) > 1.0 - PARALLEL


def distance_mm(header: Header, along: Header) -> float:
    """Place of a slice along the normal of another; 0 where there is no geometry.

    One normal for all: what directions differ by as noise would move a slice far from the origin.
    """
    return _place_mm(header, _normal(along))


def distances_mm(headers: Sequence[Header]) -> Places:
    """The place of each slice along the normal of the first."""
    normal = _normal(headers[0])
    return np.array([_place_mm(header, normal) for header in headers])


def _place_mm(header: Header, normal: Vector) -> float:
    position = header.numbers("ImagePositionPatient")
    return float(np.dot(normal, position)) if len(position) == 3 else 0.0


def _normal(header: Header) -> Vector:
    cosines = header.numbers("ImageOrientationPatient")
    if len(cosines) != 6:
        return np.zeros(3)
    return np.asarray(np.cross(cosines[:3], cosines[3:]))


def _side_mm(header: Header, keyword: str, side: int) -> float:
    spacing = header.numbers("PixelSpacing")
    return (header.integer(keyword) or 0) * (spacing[side] if len(spacing) == 2 else 0.0)


# Image Type: the words by which images say that they are no plain slices, and that of results.


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
