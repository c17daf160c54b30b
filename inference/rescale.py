"""Received slices that turn stored values into HU each in its own way: how generated ones do it."""

from collections.abc import Sequence

import numpy as np

from inference.dataset import Header
from inference.intensity import PixelFormat, PixelReader


def common_rescale(headers: Sequence[Header], pixels: PixelReader) -> int | None:
    """The slice whose rescale every generated slice takes; None where each takes its neighbour's.

    One rescale is chosen where it can store every value of the stack: the finest slope, so that
    no value moves by more than half of it (derived-objects 2). Copies keep their own.
    """
    formats = [PixelFormat.of(header) for header in headers]
    if len({(layout.slope, layout.intercept) for layout in formats}) == 1:
        return None
    ranges = [
        _held(layout, pixels, header) for layout, header in zip(formats, headers, strict=True)
    ]
    low, high = min(least for least, _ in ranges), max(most for _, most in ranges)
    finest = min(abs(layout.slope) for layout in formats)
    for index, layout in enumerate(formats):
        least, most = _in_hu(layout, layout.least, layout.most)
        if abs(layout.slope) == finest and least <= low and high <= most:
            return index
    return None


def _held(layout: PixelFormat, pixels: PixelReader, header: Header) -> tuple[float, float]:
    """The least and the greatest value of a slice in HU, undeclared padding included."""
    stored = pixels.stored(header)
    values = stored[~layout.declared(stored)]
    if not values.size:
        return np.inf, -np.inf
    ends = values.min(), values.max()
    if layout.is_inverted:
        ends = layout.least + layout.most - ends[1], layout.least + layout.most - ends[0]
    return _in_hu(layout, *map(int, ends))


def _in_hu(layout: PixelFormat, one: int, other: int) -> tuple[float, float]:
    ends = sorted(value * layout.slope + layout.intercept for value in (one, other))
    return ends[0], ends[1]
