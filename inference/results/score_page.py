"""One page of scores: the highest slices, what the network used in them, and all scores along z."""

from collections.abc import Callable

import numpy as np

from inference.results.captures import BODY, FAINT, INK, MARGIN, MARK, SMALL, Page, grey, heated
from inference.results.making import Making
from inference.results.score_reports import DENIES_NOTHING, ScoredStack
from inference.volume import Geometry, Plane

MOST_SLICES = 3
PICTURE, CHART = 300, 150  # sides in pixels
WIDTH = MARGIN + MOST_SLICES * (PICTURE + MARGIN)
HEIGHT = 1050
BRAIN_WINDOW = (40.0, 80.0)  # centre and width, HU
BAR, HIGH_BAR = (86, 98, 112), MARK
SIDES = (("R", "L"), ("A", "P"), ("F", "H"))  # of the axes x, y, z of the patient

Read = Callable[[int], Plane]  # slice index -> HU


def shown_slices(stack: ScoredStack) -> tuple[int, ...]:
    """The slices that are drawn: those with a map, else the highest; the highest first."""
    scores = stack.scores
    with_map = sorted(scores.heat, key=lambda index: (-scores.slices[index], index))
    return tuple(with_map or scores.ranked)[:MOST_SLICES]


def score_page(stack: ScoredStack, geometry: Geometry, read: Read, making: Making) -> Page:
    """The whole page; `read` gives the slices in HU."""
    page = Page(WIDTH, HEIGHT, f"{stack.scored.label} scores")
    y = _summary(page, stack)
    for column, index in enumerate(shown_slices(stack)):
        _slice(page, MARGIN + column * (PICTURE + MARGIN), y, stack, geometry, index, read(index))
    y += round(1.4 * BODY) + 2 * (PICTURE + MARGIN // 2) + MARGIN
    y = _chart(page, y, stack, geometry)
    algorithm, width = making.algorithm, WIDTH - 2 * MARGIN
    trained = f", trained on {stack.trained_on}" if stack.trained_on else ""
    words = f"{algorithm.name} {algorithm.full_version}{trained}. {DENIES_NOTHING}"
    if stack.scores.heat:
        y = page.paragraph(MARGIN, y, stack.scored.map_words, width, BODY, MARK) + MARGIN // 2
    page.paragraph(MARGIN, y, words, width, SMALL, FAINT)
    return page


def _summary(page: Page, stack: ScoredStack) -> int:
    scores = stack.scores
    is_high = "at or above" if scores.is_present else "below"
    page.text(
        MARGIN,
        page.top,
        f"Series: score {scores.series:.2f}, {is_high} its threshold of "
        f"{scores.series_threshold:.2f}",
        BODY,
        MARK if scores.is_present else INK,
    )
    high = len(scores.high_slices)
    return page.text(
        MARGIN,
        page.top + round(1.4 * BODY),
        f"Slices: {high} of {len(scores.slices)} at or above their threshold of "
        f"{scores.slice_threshold:.2f}; the {len(shown_slices(stack))} highest are shown",
    ) + round(0.4 * BODY)


def _slice(
    page: Page, x: int, y: int, stack: ScoredStack, geometry: Geometry, index: int, plane: Plane
) -> None:
    """The plain slice, and below it the same with its map."""
    at_mm = geometry.place_mm(geometry.positions[index])
    caption = f"{stack.name_of(index)}, {'xyz'[geometry.axis]} = {at_mm:g} mm: "
    y = page.text(x, y, f"{caption}{stack.scores.slices[index]:.2f}", SMALL)
    plain = grey(plane, *BRAIN_WINDOW)
    heat = stack.scores.heat.get(index)
    pictures = [plain] if heat is None else [plain, heated(plain, heat)]
    for picture in pictures:
        page.picture(x, y, picture, PICTURE, PICTURE)
        left, right = _sides(geometry)
        page.text(x + 4, y + PICTURE // 2, left, SMALL)
        page.text(x + PICTURE - 14, y + PICTURE // 2, right, SMALL)
        y += PICTURE + MARGIN // 2


def _sides(geometry: Geometry) -> tuple[str, str]:
    """The letters of the patient's sides at the left and the right edge of a slice."""
    along_row = geometry.orientation[0]
    axis = int(np.argmax(np.abs(along_row)))
    first, last = SIDES[axis]
    return (first, last) if along_row[axis] > 0 else (last, first)


def _chart(page: Page, y: int, stack: ScoredStack, geometry: Geometry) -> int:
    """A bar for each slice, in the order of its place; the place where the text below begins."""
    scores, width = stack.scores, WIDTH - 2 * MARGIN
    y = page.text(MARGIN, y, "Scores of all slices, 0 to 1, by their place", SMALL, FAINT)
    bottom = y + CHART
    step = width / len(scores.slices)
    for index, score in enumerate(scores.slices.tolist()):
        left, right = round(index * step), round((index + 1) * step) - 1
        height = round(CHART * score)
        is_high = score >= scores.slice_threshold
        page.box(
            *(MARGIN + left, bottom - height, max(1, right - left), height),
            HIGH_BAR if is_high else BAR,
        )
    threshold = bottom - round(CHART * scores.slice_threshold)
    page.line((MARGIN, threshold), (MARGIN + width, threshold), MARK)
    words = f"threshold {scores.slice_threshold:.2f}"
    page.text(MARGIN + 2, threshold - round(1.4 * SMALL), words, SMALL, MARK)
    page.line((MARGIN, bottom), (MARGIN + width, bottom))
    ends = [geometry.place_mm(geometry.positions[index]) for index in (0, -1)]
    axis = "xyz"[geometry.axis]
    page.text(MARGIN, bottom + 3, f"{axis} = {ends[0]:g} mm", SMALL, FAINT)
    last = f"{axis} = {ends[1]:g} mm"
    page.text(MARGIN + width - page.length(last, SMALL), bottom + 3, last, SMALL, FAINT)
    return bottom + MARGIN + round(1.4 * SMALL)
