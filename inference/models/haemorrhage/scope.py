"""Scope by pixels and header: is this a head, and is there contrast in its vessels?

Headers do not suffice: a CT angiography may carry no contrast attribute and no such word in its
description, and its bright vessels look like blood.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference.descriptions import (
    kind_of_kernel,
    names_an_agent,
    word_of_contrast,
    words_of_body_parts,
)
from inference.errors import Reason, Unprocessable
from inference.model import SeriesFacts

Planes = NDArray[np.float32]  # (slices, rows, columns) HU

BONE_HU = 250.0
CONTENT_HU = (0.0, 80.0)  # brain, fluid and blood
DIRECTIONS = 72  # around the content of a slice
BONY_SHARE = 0.75  # of the directions; a ring is open at sutures, fractures and the skull base
AIR_HU, MOST_AIR = -300.0, 0.12  # inside the hull of the bone: ribs surround lungs
LEAST_HEAD_SLICES = 6
LEAST_CONTENT_MM2 = 1500.0

VESSEL_HU = (75.0, 400.0)
BLUR_MM = 0.6
THIN_MM = 1.5  # what an opening of this radius takes away is thin
DEEP_MM = 10.0  # from the skull: nearer to it, every edge looks like a vessel
MOST_PER_MILLE = 1.5  # at most 0.76 in 21 plain series, 3.35 in one angiography

AGENTS = ("ContrastBolusAgent", "ContrastBolusRoute")
DESCRIPTIONS = (
    *("StudyDescription", "SeriesDescription", "ProtocolName", "RequestedProcedureDescription"),
    *("PerformedProcedureStepDescription", "ScheduledProcedureStepDescription"),
)
ADULT_YEARS = 18.0
OPERATED = re.compile(
    r"(?<![a-z])(post[\s_-]*op\w*|postop\w*|crani(ot|ect|opl)\w*|(vp|va)?[\s_-]*shunt\w*|evd|clipping"
    r"|coiling|trepan\w*)(?![a-z])",
    re.IGNORECASE,
)


# Between the darkest and the brightest tenth of the deep brain lie 8 to 17 HU in 66 patients, fluid
# and matter; in a phantom that is filled evenly 1 to 5, its noise.
LEAST_STRUCTURE_HU, STRUCTURE_BLUR_MM = 5.0, 3.0


@dataclass(frozen=True)
class HeadPixels:
    """Findings in the pixels of a head."""

    head_slices: int  # slices in which bone surrounds soft content
    vessels_per_mille: float  # thin bright voxels of the deep region; 0 where there is none
    structure_hu: float  # from the darkest to the brightest tenth of that region, without noise

    @property
    def is_head(self) -> bool:
        return self.head_slices >= LEAST_HEAD_SLICES

    @property
    def has_contrast(self) -> bool:
        return self.vessels_per_mille > MOST_PER_MILLE

    @property
    def doubts(self) -> tuple[str, ...]:
        """A sentence where the head may be none of a patient."""
        if self.structure_hu >= LEAST_STRUCTURE_HU:
            return ()
        return (
            f"The inside of the skull is even: {self.structure_hu:.1f} HU from its darkest to its "
            f"brightest tenth, at least {LEAST_STRUCTURE_HU:g} in a brain; it may be a phantom.",
        )


def examined(planes: Planes, pixel_mm: float) -> HeadPixels:
    """Look at the pixels of a stack, slice by slice."""
    head_slices, thin, deep = 0, 0, 0
    inner = [np.zeros(0, np.float32)]
    for plane in planes:
        content = intracranial(plane, pixel_mm)
        if content is None:
            continue
        head_slices += 1
        is_deep = ndimage.distance_transform_edt(content) * pixel_mm > DEEP_MM
        thin += _thin_in(plane, is_deep, pixel_mm)
        deep += int(is_deep.sum())
        inner.append(cv2.GaussianBlur(plane, (0, 0), STRUCTURE_BLUR_MM / pixel_mm)[is_deep])
    values = np.concatenate(inner)
    dark, bright = np.quantile(values, (0.1, 0.9)) if values.size else (0.0, 0.0)
    return HeadPixels(
        head_slices, 1000.0 * thin / deep if deep else 0.0, float(bright) - float(dark)
    )


def intracranial(plane: NDArray[np.float32], pixel_mm: float) -> NDArray[np.bool_] | None:
    """(rows, columns), true where content lies behind bone in most directions; None: no head."""
    smooth = np.asarray(cv2.GaussianBlur(plane, (0, 0), 1.0 / pixel_mm), np.float32)
    bone = smooth > BONE_HU
    soft = (smooth > CONTENT_HU[0]) & (smooth < CONTENT_HU[1])
    reach = max(1, round(2.0 / pixel_mm))
    walls = ndimage.binary_dilation(bone, iterations=reach)
    labels, count = ndimage.label(soft & ~walls)
    if count == 0:
        return None
    largest = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    is_small = largest.sum() * pixel_mm**2 < LEAST_CONTENT_MM2
    if is_small or _bony_share(largest, bone) < BONY_SHARE or _air_share(smooth, bone) > MOST_AIR:
        return None
    return np.asarray(ndimage.binary_dilation(largest, iterations=reach) & ~bone)


def _bony_share(content: NDArray[np.bool_], bone: NDArray[np.bool_]) -> float:
    """Share of the directions from the centre of the content in which bone lies outside it."""
    rows, columns = np.nonzero(content)
    centre = rows.mean(), columns.mean()
    farthest: dict[bool, NDArray[np.float64]] = {}
    for is_bone, mask in ((False, content), (True, bone)):
        r, c = np.nonzero(mask)
        angle = np.arctan2(r - centre[0], c - centre[1])
        sector = ((angle + np.pi) / (2 * np.pi) * DIRECTIONS).astype(int) % DIRECTIONS
        far = np.zeros(DIRECTIONS)
        np.maximum.at(far, sector, np.hypot(r - centre[0], c - centre[1]))
        farthest[is_bone] = far
    has_content = farthest[False] > 0
    behind = (farthest[True] > 0.9 * farthest[False]) & has_content
    return float(behind.sum() / DIRECTIONS)


def _air_share(plane: NDArray[np.float32], bone: NDArray[np.bool_]) -> float:
    """Share of air inside the convex hull of the bone."""
    points = np.argwhere(bone)[:, ::-1].astype(np.int32)
    inside = np.zeros(plane.shape, np.uint8)
    cv2.fillConvexPoly(inside, cv2.convexHull(points), 1)
    return float((plane[inside > 0] < AIR_HU).mean())


def _thin_in(plane: NDArray[np.float32], is_deep: NDArray[np.bool_], pixel_mm: float) -> int:
    """Thin bright pixels of a region."""
    blurred = cv2.GaussianBlur(plane, (0, 0), BLUR_MM / pixel_mm)
    bright = ((blurred >= VESSEL_HU[0]) & (blurred <= VESSEL_HU[1])).astype(np.uint8)
    radius = max(1, round(THIN_MM / pixel_mm))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    thin = (bright - cv2.morphologyEx(bright, cv2.MORPH_OPEN, disc)).astype(bool)
    return int((thin & is_deep).sum())


def check_facts(facts: SeriesFacts) -> None:
    """Raise Unprocessable, naming the attribute, for what the header puts out of scope."""
    for sentence in (*_other_body_part(facts), *_contrast(facts), *_kernel_and_age(facts)):
        raise Unprocessable(Reason.OUT_OF_SCOPE, sentence)


def doubts_about(facts: SeriesFacts) -> tuple[str, ...]:
    """Sentences on what the descriptions say of an operation: the model has seen none."""
    return tuple(
        f"{attribute} is '{value}': heads after an operation were not measured."
        for attribute, value in facts.of(*DESCRIPTIONS)
        if OPERATED.search(value)
    )


def _other_body_part(facts: SeriesFacts) -> Iterator[str]:
    body_parts = facts.of("BodyPartExamined")
    for attribute, value in body_parts:
        if not _names_a_head(value):
            yield f"{attribute} is '{value}': only heads are scored."
    if not body_parts and not any(_names_a_head(value) for _, value in facts.of(*DESCRIPTIONS)):
        yield "BodyPartExamined is empty, and no description says that this is a head."


def _names_a_head(text: str) -> bool:
    return "head" in words_of_body_parts(text)


def _contrast(facts: SeriesFacts) -> Iterator[str]:
    with_contrast = [
        *(pair for pair in facts.of(*AGENTS) if names_an_agent(pair[1])),
        *(pair for pair in facts.of(*DESCRIPTIONS) if word_of_contrast(pair[1])),
    ]
    for attribute, value in with_contrast:
        yield f"{attribute} is '{value}': a series with contrast is not scored."


def _kernel_and_age(facts: SeriesFacts) -> Iterator[str]:
    for attribute, value in facts.of("ConvolutionKernel"):
        if kind_of_kernel(value) == "sharp":
            yield (
                f"{attribute} is '{value}': a sharp kernel is not scored; send the soft-tissue "
                "series."
            )
    years = facts.age_years
    if years is not None and years < ADULT_YEARS and not facts.accept_children:
        yield f"PatientAge is {years:.0f} years: under {ADULT_YEARS:.0f} is out of scope."


def check_pixels(pixels: HeadPixels) -> None:
    """Raise Unprocessable where the pixels show no head, or contrast in its vessels."""
    if not pixels.is_head:
        raise _out(
            f"A head is seen in {pixels.head_slices} slices; {LEAST_HEAD_SLICES} are needed."
        )
    if pixels.has_contrast:
        raise _out(
            f"The pixels show contrast in vessels: {pixels.vessels_per_mille:.2f} per mille of the "
            f"deep brain are thin and bright, at most {MOST_PER_MILLE:g} are without contrast."
        )


def _out(sentence: str) -> Unprocessable:
    return Unprocessable(Reason.OUT_OF_SCOPE, sentence)
