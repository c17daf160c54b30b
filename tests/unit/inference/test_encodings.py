"""Every way to encode pixels gives the same result; so do slices of a single pixel."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import JPEG2000, JPEGLSLossless, JPEGLSNearLossless, RLELossless

from inference.pixels import PixelFormat, PixelReader
from inference.stacks import read_header
from tests import phantoms
from tests.phantoms import Pixels, Series
from tests.unit.inference.made import derive, derive_series, only_stack, request

FORMATS = (
    Pixels(),
    Pixels(bits=16, is_signed=False),
    Pixels(bits=12, is_signed=False),
    Pixels(bits=12, is_signed=True, intercept=0.0),
    Pixels(bits=8, is_signed=False, slope=8.0),
)


def stored(folder: Path, series: Series) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """The stored values of the slices of a made series, one above the other."""
    reader = PixelReader()
    return np.stack(
        [reader.stored(header) for header in only_stack(phantoms.write(folder, series))]
    )


@pytest.mark.parametrize("pixels", FORMATS)
@pytest.mark.parametrize("syntax", phantoms.SYNTAXES)
def test_every_lossless_transfer_syntax_holds_the_same_values(
    tmp_path: Path, syntax: str, pixels: Pixels
) -> None:
    series = Series(slices=2, pixels=pixels)
    values = np.stack([phantoms.stored(series, index) for index in range(2)])
    found = stored(tmp_path, replace(series, transfer_syntax=syntax))
    assert (found == values).all()


def lossy(files: Sequence[Path], syntax: str) -> None:
    """Encode the pixels with loss, and say nothing of it but by the transfer syntax."""
    for path in files:
        made = dcmread(path)
        how = {"jls_error": 3} if syntax == JPEGLSNearLossless else {"j2k_cr": [4]}
        made.compress(syntax, generate_instance_uid=False, **how)
        if "LossyImageCompression" in made:
            del made.LossyImageCompression
        made.save_as(path)


@pytest.mark.parametrize("syntax", [JPEGLSNearLossless, JPEG2000])
def test_a_lossy_transfer_syntax_marks_the_result_though_no_attribute_says_so(
    tmp_path: Path, syntax: str
) -> None:
    series = Series(slices=2, rows=64, columns=64)
    files = phantoms.write(tmp_path / "received", series)
    lossy(files, syntax)
    assert (PixelReader().stored(read_header(files[0])) != phantoms.stored(series, 0)).any()
    for path in derive(request(files, tmp_path / "derived")):
        assert dcmread(path).LossyImageCompression == "01"


@pytest.mark.parametrize("syntax", phantoms.SYNTAXES)
def test_a_lossless_transfer_syntax_marks_nothing(tmp_path: Path, syntax: str) -> None:
    for path in derive_series(tmp_path, Series(slices=2, transfer_syntax=syntax)):
        assert "LossyImageCompression" not in dcmread(path)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, RLELossless])
@pytest.mark.parametrize("value", [-2000, -3024])
@pytest.mark.parametrize("declared", [True, False])
def test_padding_is_air_for_the_model_and_comes_back_in_every_slice(
    tmp_path: Path, value: int, declared: bool, syntax: str
) -> None:
    def edit(made: Dataset, _: int) -> None:
        if not declared:
            del made.PixelPaddingValue

    pixels = Pixels(intercept=0.0, padding=value)
    series = Series(slices=3, pixels=pixels, edit=edit, transfer_syntax=syntax)
    header = only_stack(phantoms.write(tmp_path / "seen", series))[0]
    seen = PixelFormat.of(header).hounsfield(PixelReader().stored(header))
    outside = phantoms.stored(series, 0) == value
    assert outside.any()
    assert (seen[outside] == -1024.0).all()
    for path in derive_series(tmp_path, series):
        assert (dcmread(path).pixel_array[outside] == value).all()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 2), (2, 1)])
@pytest.mark.parametrize("model", ["linear", "midslice"])
def test_the_models_of_the_product_fill_slices_of_a_single_pixel(
    tmp_path: Path, model: str, rows: int, columns: int
) -> None:
    files = phantoms.write(tmp_path / "received", Series(slices=3, rows=rows, columns=columns))
    made = request(files, tmp_path / "derived")
    assert len(derive(replace(made, model=replace(made.model, name=model, factory=None)))) == 5
