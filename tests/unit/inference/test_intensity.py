"""Stored values and Hounsfield units, there and back; decoders and what they cannot decode."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from inference.dataset import Header, read_header
from inference.errors import Reason, Unprocessable
from inference.pixels import PixelFormat, PixelReader, decode, generated_values
from inference.volume import moved
from tests import phantoms
from tests.phantoms import Pixels, Series
from tests.unit.inference.made import only_stack, refused


def layout(**changes: object) -> PixelFormat:
    values: dict[str, object] = {
        "bits": 16,
        "is_signed": True,
        "is_inverted": False,
        "slope": 1.0,
        "intercept": -1024.0,
        "padding": None,
    }
    return PixelFormat(**{**values, **changes})  # type: ignore[arg-type]


def pair(tmp_path: Path, pixels: Pixels) -> tuple[Header, Header, PixelReader]:
    first, second = only_stack(phantoms.write(tmp_path, Series(slices=2, pixels=pixels)))
    return first, second, PixelReader()


@given(
    bits=st.integers(8, 16),
    is_signed=st.booleans(),
    is_inverted=st.booleans(),
    slope=st.sampled_from([1.0, 0.5, 2.0, -1.0, 0.1]),
    intercept=st.sampled_from([0.0, -1024.0, -1000.5]),
)
def test_stored_values_survive_the_way_through_hounsfield_units(
    bits: int, is_signed: bool, is_inverted: bool, slope: float, intercept: float
) -> None:
    made = layout(
        bits=bits, is_signed=is_signed, is_inverted=is_inverted, slope=slope, intercept=intercept
    )
    stored = np.linspace(made.least, made.most, 64).astype(np.int32).reshape(8, 8)
    mask = made.padded(stored)
    assert (made.stored(made.hounsfield(stored))[~mask] == stored[~mask]).all()


def test_values_are_rounded_half_to_even() -> None:
    plane = np.array([[0.5, 1.5, 2.5, -0.5, -1.5]], np.float32) - 1024
    assert layout().stored(plane).tolist() == [[0.0, 2.0, 2.0, -0.0, -2.0]]


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (Pixels(bits=12, is_signed=False), (0, 4095)),
        (Pixels(bits=12, is_signed=True), (-2048, 2047)),
        (Pixels(bits=16, is_signed=True), (-32768, 32767)),
        (Pixels(bits=8, is_signed=False, slope=8.0), (0, 255)),
    ],
)
def test_the_stored_range_follows_bits_and_sign(
    tmp_path: Path, pixels: Pixels, expected: tuple[int, int]
) -> None:
    first, _, reader = pair(tmp_path, pixels)
    made = PixelFormat.of(first)
    assert (made.least, made.most) == expected
    stored = reader.stored(first)
    assert stored.min() >= expected[0]
    assert stored.max() <= expected[1]
    assert (stored == phantoms.stored(Series(slices=2, pixels=pixels), 0)).all()


def test_generated_values_stay_within_their_neighbours(tmp_path: Path) -> None:
    first, second, reader = pair(tmp_path, Pixels(bits=12, is_signed=False))
    both = np.stack([reader.stored(first), reader.stored(second)])
    for extreme in (9000.0, -9000.0):
        plane = np.full((32, 40), extreme, np.float32)
        values = generated_values(plane, first, second, reader)
        expected = both.max() if extreme > 0 else both.min()
        assert (values == expected).all()


def test_padding_is_put_back_where_either_neighbour_has_it(tmp_path: Path) -> None:
    def edit(made: Dataset, index: int) -> None:
        values = np.full((4, 4), 1000, np.int64)
        values[index] = -2000
        made.Rows = made.Columns = 4
        made.PixelData = phantoms.raw_pixels(values, 16)

    series = Series(slices=2, pixels=Pixels(padding=-2000), edit=edit)
    first, second = only_stack(phantoms.write(tmp_path, series))
    plane = np.full((4, 4), -24.0, np.float32)
    values = generated_values(plane, first, second, PixelReader())
    assert (values[:2] == -2000).all()
    assert (values[2:] == 1000).all()


def test_in_a_shear_what_is_padded_in_one_neighbour_is_taken_from_the_other(
    tmp_path: Path,
) -> None:
    """The slice saw air where one neighbour is padded off its own place: no tissue is air there."""
    y, x = np.mgrid[:64, :64]
    outside = np.hypot(y - 31.5, x - 31.5) > 24.0

    def edit(made: Dataset, index: int) -> None:
        made.Rows = made.Columns = 64
        values = np.where(outside, -2000, 1064 + index)
        made.PixelData = phantoms.raw_pixels(values.astype(np.int64), 16)

    series = Series(slices=2, pixels=Pixels(padding=-2000), edit=edit)
    first, second = only_stack(phantoms.write(tmp_path, series))
    plane = np.full((64, 64), 40.0, np.float32)
    plane[40:] = -500.0  # half of it was air: the padding of the second, eight rows further up
    offsets = ((8.0, 0.0), (-8.0, 0.0))
    upright = generated_values(plane, first, second, PixelReader())
    values = generated_values(plane, first, second, PixelReader(), offsets=offsets)
    assert ((values == -2000) == outside).all()  # padding stays where it was
    rows = np.arange(64)[:, None]
    below = ~outside & moved(outside, (8, 0)) & (rows > 40)  # hidden in the first alone
    assert (values[below] == 1065).all()
    assert (upright[below] == 1064).all()  # the least that a neighbour holds
    above = ~outside & moved(outside, (-8, 0)) & (rows < 24)  # hidden in the second alone
    assert (values[above] == 1064).all()


@pytest.mark.parametrize(("padding", "expected"), [(60, {59, 61}), (0, {1})])
def test_generated_values_never_hit_the_padding_value(
    tmp_path: Path, padding: int, expected: set[int]
) -> None:
    def edit(made: Dataset, index: int) -> None:
        values = np.array([[1 if padding == 0 else 50, 70]], np.int64)
        made.Rows, made.Columns = values.shape
        made.PixelData = phantoms.raw_pixels(values, 16)

    pixels = Pixels(is_signed=False, padding=padding)
    first, second = only_stack(phantoms.write(tmp_path, Series(slices=2, pixels=pixels, edit=edit)))
    plane = np.full((1, 2), padding - 1024.0, np.float32)
    values = generated_values(plane, first, second, PixelReader())
    assert set(values.ravel().tolist()) <= expected


def test_a_range_of_padding_values_is_padding(tmp_path: Path) -> None:
    def edit(made: Dataset, _: int) -> None:
        made.add_new(0x00280121, "SS", -1990)
        values = np.array([[-2000, -1995, -1990, -1989]], np.int64) + 0
        made.Rows, made.Columns = values.shape
        made.RescaleIntercept = "600"
        made.PixelData = phantoms.raw_pixels(values, 16)

    series = Series(slices=2, pixels=Pixels(padding=-2000), edit=edit)
    first, _ = only_stack(phantoms.write(tmp_path, series))
    stored = PixelReader().stored(first)
    assert PixelFormat.of(first).padded(stored).tolist() == [[True, True, True, False]]


def test_only_a_bounded_number_of_slices_is_kept(tmp_path: Path) -> None:
    headers = only_stack(phantoms.write(tmp_path, Series(slices=5)))
    size = 32 * 40 * 4
    reader = PixelReader(cache_bytes=2 * size)
    kept = [reader.stored(header) for header in headers]
    assert reader.stored(headers[4]) is kept[4]
    assert reader.stored(headers[0]) is not kept[0]
    with pytest.raises(ValueError, match="read-only"):
        kept[4][0, 0] = 1


def test_broken_pixels_are_held_with_the_number_of_the_image(tmp_path: Path) -> None:
    files = phantoms.write(tmp_path)
    phantoms.break_pixels(files[3])
    with pytest.raises(Unprocessable, match="image 4") as caught:
        decode(read_header(files[3]))
    assert caught.value.reason == Reason.PIXEL_DATA_ERROR
    assert caught.value.is_held


@pytest.mark.filterwarnings("ignore:End of file")
@pytest.mark.parametrize("syntax", phantoms.COMPRESSED)
def test_a_truncated_code_stream_is_a_pixel_data_error(tmp_path: Path, syntax: str) -> None:
    files = phantoms.write(tmp_path, Series(transfer_syntax=syntax))
    data = files[0].read_bytes()
    at = data.index(b"\xe0\x7f\x10\x00")
    files[0].write_bytes(data[: at + 60])
    with pytest.raises(Unprocessable) as caught:
        decode(read_header(files[0]))
    assert caught.value.reason == Reason.PIXEL_DATA_ERROR


def test_pixels_that_do_not_fit_rows_and_columns_are_an_error(tmp_path: Path) -> None:
    def edit(made: Dataset, _: int) -> None:
        made.Rows = 64

    assert refused(tmp_path, Series(edit=edit)).reason == Reason.PIXEL_DATA_ERROR


@pytest.mark.parametrize(("bits", "allocated"), [(17, 16), (0, 16), (12, 12)])
def test_an_impossible_pixel_format_is_an_error(tmp_path: Path, bits: int, allocated: int) -> None:
    def edit(made: Dataset, _: int) -> None:
        made.BitsStored, made.BitsAllocated = bits, allocated

    assert refused(tmp_path, Series(edit=edit)).reason == Reason.PIXEL_DATA_ERROR


@pytest.mark.parametrize(
    ("syntax", "word"),
    [
        ("1.2.840.10008.1.2.4.53", "no package decodes it"),
        ("1.2.840.10008.1.2.4.100", "MPEG2"),
        ("1.2.3.4", "no package decodes it"),
    ],
)
def test_a_transfer_syntax_without_decoder_is_refused_by_name(
    tmp_path: Path, syntax: str, word: str
) -> None:
    files = phantoms.write(tmp_path)
    for path in files:
        data = path.read_bytes()
        old = b"1.2.840.10008.1.2.1\0"
        at = data.index(old)
        new = syntax.encode() + b"\0" * (len(syntax) % 2)
        head = data[: at - 2] + len(new).to_bytes(2, "little") + new
        length = int.from_bytes(head[140:144], "little") + len(new) - len(old)
        path.write_bytes(
            head[:140] + length.to_bytes(4, "little") + head[144:] + data[at + len(old) :]
        )
    with pytest.raises(Unprocessable) as caught:
        decode(only_stack(files)[0])
    assert caught.value.reason == Reason.NO_DECODER
    assert word in caught.value.sentence


@pytest.mark.parametrize("syntax", phantoms.COMPRESSED[:2])
def test_a_code_stream_that_stops_early_inside_a_whole_file_is_found(
    tmp_path: Path, syntax: str
) -> None:
    (path, *_) = phantoms.write(tmp_path, Series(slices=1, transfer_syntax=syntax))
    made = phantoms.pydicom_read(path)
    phantoms.truncated_stream(made, len(made.PixelData) * 2 // 3)
    made.save_as(path)
    with pytest.raises(Unprocessable) as caught:
        decode(read_header(path))
    assert caught.value.reason == Reason.PIXEL_DATA_ERROR


def test_one_value_below_every_tissue_is_padding_and_values_that_vary_are_streaks() -> None:
    made = layout(bits=16, is_signed=False, slope=1.0, intercept=-8192.0)
    stored = np.full((40, 50), 8192, np.int32)
    stored[0] = np.arange(4000, 4050)  # streaks of metal: -4192 to -4143 HU
    stored[1] = 5000  # -3192 HU
    expected = np.zeros(stored.shape, bool)
    expected[1] = True
    assert (made.padded(stored) == expected).all()
    assert made.hounsfield(stored)[0, 0] == -4192.0
