"""MR slices: which of them are of one volume, which are in scope, and what their values mean."""

from collections.abc import Sequence

import numpy as np

from inference.dataset import Header, newest
from inference.geometry import arrange
from inference.pixels import PixelFormat, PixelReader, Stored
from inference.volume import Plane, Volume


def values_of(header: Header, stored: Stored) -> Plane:
    """Stored values in the units of the scanner, which are arbitrary; padding is the least."""
    layout = PixelFormat.of(header)
    direct = layout.least + layout.most - stored if layout.is_inverted else stored
    plane = (direct * layout.slope + layout.intercept).astype(np.float32)
    padded = layout.declared(stored)
    if padded.any():
        plane[padded] = plane[~padded].min(initial=0.0)
    return plane


def open_volume(headers: Sequence[Header]) -> Volume:
    """A stack as a volume whose slices are decoded when they are asked for."""
    layout = arrange(newest(headers))
    pixels = PixelReader()

    def read(index: int) -> Plane:
        header = layout.headers[index]
        return values_of(header, pixels.stored(header))

    return Volume(layout.geometry, read)
