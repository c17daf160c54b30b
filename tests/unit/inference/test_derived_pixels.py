"""Pixels of the derived series: every transfer syntax, pixel format and rescale of the source."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from tests import phantoms
from tests.phantoms import Pixels, Series
from tests.unit.inference.made import derive_series, read


@pytest.mark.parametrize("syntax", phantoms.SYNTAXES)
def test_every_transfer_syntax_gives_the_same_derived_series(tmp_path: Path, syntax: str) -> None:
    native = derive_series(tmp_path / "native", Series(slices=2))
    other = derive_series(tmp_path / "other", Series(slices=2, transfer_syntax=syntax))
    assert [path.read_bytes() for path in other] == [path.read_bytes() for path in native]


@pytest.mark.parametrize(
    "pixels",
    [
        Pixels(bits=12, is_signed=False),
        Pixels(bits=12, is_signed=True, intercept=0.0),
        Pixels(bits=16, is_signed=False, padding=0),
        Pixels(bits=16, is_signed=True, padding=-2000),
        Pixels(bits=16, is_signed=True, intercept=0.0, padding=-3024),
        Pixels(bits=8, is_signed=False, slope=8.0),
        Pixels(bits=12, is_signed=False, photometric="MONOCHROME1"),
        Pixels(bits=16, is_signed=True, slope=0.5, intercept=-500.5),
    ],
)
def test_pixel_formats_are_kept_and_copies_bit_identical(tmp_path: Path, pixels: Pixels) -> None:
    made = read(derive_series(tmp_path, Series(slices=3, pixels=pixels), 3))
    assert {slice_.BitsStored for slice_ in made} == {pixels.bits}
    assert {slice_.PhotometricInterpretation for slice_ in made} == {pixels.photometric}


def test_a_rescale_of_its_own_in_each_slice_is_worked_out_in_hounsfield_units(
    tmp_path: Path,
) -> None:
    def edit(made: Dataset, index: int) -> None:
        series = Series(pixels=Pixels(slope=1.0 + index, intercept=-1024.0 - 3 * index))
        made.RescaleSlope, made.RescaleIntercept = str(1 + index), str(-1024 - 3 * index)
        made.PixelData = phantoms.raw_pixels(phantoms.stored(series, index), 16)

    made = read(derive_series(tmp_path, Series(slices=3, edit=edit)))
    assert [float(slice_.RescaleSlope) for slice_ in made] == [1.0, 1.0, 2.0, 1.0, 3.0]
    expected = (phantoms.hounsfield(Series(), 1) + phantoms.hounsfield(Series(), 2)) / 2
    found = made[3].pixel_array * 1.0 - 1024.0
    assert np.abs(found - expected).max() <= 3.0


def test_junk_above_high_bit_is_no_pixel_value(tmp_path: Path) -> None:
    plain = Series(slices=2, pixels=Pixels(bits=12, is_signed=False))

    def edit(made: Dataset, _: int) -> None:
        values = np.frombuffer(made.PixelData, "<u2") | np.uint16(0xA000)
        made.PixelData = values.tobytes()

    clean = derive_series(tmp_path / "clean", plain)
    dirty = derive_series(tmp_path / "dirty", replace(plain, edit=edit))
    assert [path.read_bytes() for path in dirty] == [path.read_bytes() for path in clean]
