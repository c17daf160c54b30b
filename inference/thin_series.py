"""Thin series: whether a received series of thinner slices shows what would be generated."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from inference.dataset import Header, Stack
from inference.errors import Reason, Unprocessable
from inference.geometry import (
    COSINE_TOLERANCE,
    EQUAL_GAPS,
    Layout,
    frame_of_reference,
    measure,
    second_of_day,
)

# Of each side of the thick stack, the thin one covers at least this part.
COVERED = 0.9
# Kernels of GE that make images of one kind; any other pair of names is one kind only if equal.
NAMED_FAMILIES: Mapping[str, str] = {
    "SOFT": "GE soft",
    "STND": "GE soft",
    "STANDARD": "GE soft",
    "BONE": "GE bone",
    "BONEPLUS": "GE bone",
    "EDGE": "GE bone",
    "LUNG": "GE lung",
}
# Siemens: letters for what is imaged and how, then the sharpness: B30f, H40s, Br40d, Bl57.
SIEMENS = re.compile(r"([A-Z][A-Z]?)(\d\d)[A-Z]?")
SIEMENS_SHARP = 50
# Canon: FC and a number whose tens name the use: 0 and 1 body, 2 head, 3 bone, 5 lung, 8 detail.
CANON = re.compile(r"FC(\d\d)(?:-\w+)?")
# Reconstructions of one acquisition may give its start to within this.
ONE_START_SECONDS = 2.0


def acquired_thin(stack: Stack, others: Sequence[Stack]) -> Unprocessable | None:
    """The verdict where a received stack with smaller gaps covers the same place already.

    `others` are stacks of other received series. A real slice is always better than a made one;
    but where it is not sure that both show the same, the stack is processed.
    """
    mine = measure(stack)
    for other in others:
        theirs = measure(other)
        if mine is not None and theirs is not None and _is_thin_twin(mine, theirs):
            return Unprocessable(
                Reason.ACQUIRED_THIN_SERIES_EXISTS,
                f"The study holds a received series of the same range with slices "
                f"{theirs.gap_mm:.2f} mm apart (here: {mine.gap_mm:.2f} mm); use that one.",
            )
    return None


def kernel_family(header: Header) -> str:
    """The kind of image that a kernel makes: soft or sharp, as each maker names it.

    Only the first value counts: later ones are the strength of an iterative reconstruction.
    """
    name = header.value("ConvolutionKernel").upper()
    short = name.replace(" ", "").removeprefix("HD")
    if short in NAMED_FAMILIES:
        return NAMED_FAMILIES[short]
    if canon := CANON.fullmatch(name):
        tens = int(canon[1]) // 10
        return f"FC {max(1, tens)}"
    if siemens := SIEMENS.fullmatch(name):
        kind = "sharp" if int(siemens[2]) >= SIEMENS_SHARP else "soft"
        return f"{siemens[1]} {kind}"
    return name


def _is_thin_twin(mine: Layout, theirs: Layout) -> bool:
    thick, thin = mine.headers[0], theirs.headers[0]
    if thick.text("StudyInstanceUID") != thin.text("StudyInstanceUID"):
        return False
    frames = {frame_of_reference(layout.headers) for layout in (mine, theirs)}
    if len(frames) > 1 or "" in frames:  # where none is named, nothing says that places agree
        return False
    if kernel_family(thick) != kernel_family(thin) or not _same_acquisition(mine, theirs):
        return False
    if theirs.gap_mm > (1.0 - EQUAL_GAPS) * mine.gap_mm:
        return False
    if abs(mine.geometry.normal @ theirs.geometry.normal) < 1.0 - COSINE_TOLERANCE:
        return False
    return _covers(mine, theirs)


def _same_acquisition(mine: Layout, theirs: Layout) -> bool:
    """False where the two say that they are of two acquisitions, or of two contrast phases."""
    numbers = [_said(layout, "AcquisitionNumber") for layout in (mine, theirs)]
    agents = [_said(layout, "ContrastBolusAgent") for layout in (mine, theirs)]
    if all(numbers) and not numbers[0] & numbers[1]:
        return False
    if _at_other_times(mine, theirs):
        return False
    if all(agents):
        return bool(agents[0] & agents[1])
    # One names an agent and the other none: before and after it, unless the acquisition is one.
    return not any(agents) or all(numbers)


def _at_other_times(mine: Layout, theirs: Layout) -> bool:
    """True where one acquisition began only after the other had ended.

    Some scanners number each of them 1, and name the same agent before and after a delay.
    """
    spans = []
    for layout in (mine, theirs):
        known = [
            second
            for header in layout.headers
            if (second := second_of_day(header.text("AcquisitionTime"))) is not None
        ]
        if not known:
            return False
        spans.append((min(known), max(known)))
    return max(first for first, _ in spans) - min(last for _, last in spans) > ONE_START_SECONDS


def _said(layout: Layout, keyword: str) -> set[str]:
    return {header.text(keyword).upper() for header in layout.headers} - {""}


def _covers(mine: Layout, theirs: Layout) -> bool:
    """True where the thin stack shows most of what the thick one shows, in depth and in plane."""
    own, other = _box(mine, mine), _box(theirs, mine)
    shared = np.minimum(own[1], other[1]) - np.maximum(own[0], other[0])
    return bool((shared > COVERED * (own[1] - own[0])).all())


def _box(layout: Layout, frame: Layout) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The least and the greatest (row, column, normal) of a stack in the directions of another."""
    geometry = layout.geometry
    height = geometry.rows * geometry.pixel_spacing[0]
    width = geometry.columns * geometry.pixel_spacing[1]
    row, column = geometry.orientation
    corners = [
        position + across * width * row + down * height * column
        for position in geometry.positions[[0, -1]]
        for across in (0, 1)
        for down in (0, 1)
    ]
    axes = np.vstack([frame.geometry.orientation, frame.geometry.normal])
    places = np.array(corners) @ axes.T
    return places.min(axis=0), places.max(axis=0)
