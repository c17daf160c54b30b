"""Slices as pictures: greys of a window, the colours of a difference, one address a picture."""

import base64
import io

import numpy as np
from PIL import Image

from inference.previews import EQUAL, LESS, MORE, DisplayWindow, difference, shrunk, uri


def test_a_window_runs_from_black_to_white() -> None:
    grey = DisplayWindow(50.0, 100.0).grey(np.array([-1000.0, 0.0, 50.0, 100.0, 3000.0]))
    assert grey.tolist() == [0, 0, 128, 255, 255]
    assert str(DisplayWindow(-500.0, 1500.0)) == "window -500 / 1500 HU"


def test_a_difference_says_its_sign_in_colour() -> None:
    plane, true = np.zeros((4, 8)), np.zeros((4, 8))
    plane[2, 1], plane[2, 3] = 5000.0, -5000.0
    picture = difference(plane, true)
    assert [picture.getpixel((x, 2)) for x in (1, 3, 5)] == [MORE, LESS, EQUAL]


def test_a_plane_is_shrunk_to_means_and_never_enlarged() -> None:
    plane = np.arange(32.0).reshape(4, 8)
    assert shrunk(plane, 8) is plane
    assert shrunk(plane, 4).tolist() == plane.reshape(2, 2, 4, 2).mean(axis=(1, 3)).tolist()


def test_a_picture_is_an_address_of_its_own() -> None:
    address = uri(Image.new("L", (5, 3), 77))
    head, data = address.split(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert picture.size == (5, 3)
