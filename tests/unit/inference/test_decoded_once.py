"""Each received slice is decoded once in a whole job, however long its series is."""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from inference import pixels
from inference.errors import Unprocessable
from inference.pixels import BYTES_IN_MEMORY, PixelReader, decode, digests
from inference.request import Derived, OutOfResources, Request
from tests import phantoms
from tests.phantoms import Pixels, Series
from tests.unit.inference.made import derive, only_stack, request, unchecked

SIDE, SLICES = 32, 12
FEW = 3 * BYTES_IN_MEMORY * SIDE * SIDE  # room for three decoded slices
LONG = Series(slices=SLICES, rows=SIDE, columns=SIDE)


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How often each file went through a decoder; three slices of LONG have room in memory."""
    counts: Counter[Path] = Counter()
    real = pixels.pixel_array

    def counting(dataset: Dataset, **options: object) -> object:
        counts[Path(str(dataset.filename))] += 1
        return real(dataset, **options)

    monkeypatch.setattr(pixels, "pixel_array", counting)
    monkeypatch.setattr(pixels, "CACHE_BYTES", FEW)
    return counts


def revised(files: Sequence[Path], folder: Path) -> list[Path]:
    """The same instances once more, with another word in their headers."""
    folder.mkdir()
    made = []
    for file in files:
        dataset = dcmread(file)
        dataset.StationName = "OTHER"
        dataset.save_as(folder / file.name)
        made.append(folder / file.name)
    return made


def with_previews(made: Request) -> Request:
    return replace(made, previews=True)


@pytest.mark.parametrize("syntax", phantoms.COMPRESSED)
def test_each_compressed_slice_is_decoded_once_in_a_whole_job(
    tmp_path: Path, syntax: str, decodings: Counter[Path]
) -> None:
    files = phantoms.write(tmp_path / "received", replace(LONG, transfer_syntax=syntax))
    files += revised(files[4:6], tmp_path / "revised")
    made = request(files, tmp_path / "derived", model="Halfway", edit=with_previews)
    outcome = unchecked(made)
    assert isinstance(outcome, Derived), outcome
    received = {file: count for file, count in decodings.items() if file in files}
    assert received == dict.fromkeys(files, 1)


def test_slices_that_leave_memory_come_back_the_same(tmp_path: Path) -> None:
    native = phantoms.write(tmp_path / "native", LONG)
    files = phantoms.write(tmp_path / "jls", replace(LONG, transfer_syntax=JPEGLSLossless))
    derived = [
        [dcmread(file).PixelData for file in derive(request(these, tmp_path / name))]
        for these, name in ((native, "from-native"), (files, "from-compressed"))
    ]
    assert derived[0] == derived[1]


@pytest.mark.parametrize(
    "form", [Pixels(), Pixels(bits=16, is_signed=False), Pixels(bits=8, is_signed=False, slope=8)]
)
def test_the_scratch_file_holds_values_of_every_format(tmp_path: Path, form: Pixels) -> None:
    series = replace(LONG, pixels=form, transfer_syntax=RLELossless)
    headers = only_stack(phantoms.write(tmp_path / "received", series))
    reader = PixelReader(0, scratch_of(tmp_path))
    for header in (*headers, *reversed(headers)):
        assert np.array_equal(reader.stored(header), decode(header))


def scratch_of(folder: Path) -> Path:
    scratch = folder / "scratch"
    scratch.mkdir()
    return scratch


def test_the_scratch_file_has_no_name_and_no_more_than_the_room_that_is_planned(
    tmp_path: Path,
) -> None:
    headers = only_stack(
        phantoms.write(tmp_path / "received", replace(LONG, transfer_syntax=RLELossless))
    )
    scratch = scratch_of(tmp_path)
    reader = PixelReader(FEW, scratch)
    for header in (*headers, *headers):
        reader.stored(header)
    assert not list(scratch.iterdir())
    assert reader._scratch is not None
    room = reader.scratch_bytes(headers)
    assert 0 < reader._scratch.nbytes <= room == 2 * SIDE * SIDE * SLICES


@pytest.mark.parametrize(
    ("syntax", "cache_bytes"), [(ExplicitVRLittleEndian, FEW), (RLELossless, SLICES * FEW)]
)
def test_what_is_uncompressed_or_has_room_in_memory_takes_none_on_disk(
    tmp_path: Path, syntax: str, cache_bytes: int
) -> None:
    headers = only_stack(
        phantoms.write(tmp_path / "received", replace(LONG, transfer_syntax=syntax))
    )
    reader = PixelReader(cache_bytes, scratch_of(tmp_path))
    for header in headers:
        reader.stored(header)
    assert reader._scratch is not None
    assert reader._scratch.nbytes == reader.scratch_bytes(headers) == 0


@pytest.mark.usefixtures("decodings")
@pytest.mark.parametrize(("syntax", "fits"), [(ExplicitVRLittleEndian, True), (RLELossless, False)])
def test_decoded_slices_count_in_the_room_that_a_job_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str, fits: bool
) -> None:
    files = phantoms.write(tmp_path / "received", replace(LONG, transfer_syntax=syntax))
    result = 2 * SIDE * SIDE * (2 * SLICES - 1)
    usage = shutil.disk_usage(tmp_path)._replace(free=result + result // 8)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    outcome = unchecked(replace(request(files, tmp_path / "derived"), reserve_bytes=0))
    assert isinstance(outcome, Derived if fits else OutOfResources), outcome


@pytest.mark.filterwarnings("ignore:End of file")
def test_however_many_threads_decode_the_same_slice_is_named(tmp_path: Path) -> None:
    files = phantoms.write(tmp_path / "received", replace(LONG, transfer_syntax=RLELossless))
    headers = only_stack(files)
    for file in (files[9], files[3]):
        phantoms.break_pixels(file)
    named = set()
    for threads in (1, 1, 4, 4):
        with pytest.raises(Unprocessable) as caught:
            digests(headers, PixelReader(), threads=threads, progress=lambda _: None)
        named.add(caught.value.sentence)
    assert len(named) == 1
