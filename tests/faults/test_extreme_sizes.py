"""Slices as large and series as long as there are: bounded memory, and the right result."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from inference.geometry import measure, verdict
from inference.request import Output
from inference.stacks import read_headers, stacks_of
from tests import phantoms
from tests.phantoms import Series
from tests.unit.inference.made import derive, request


def test_slices_of_4096_by_4096_pixels_are_processed(tmp_path: Path) -> None:
    def large(made: Dataset, index: int) -> None:
        values = np.full((4096, 4096), 1000 + 10 * index, "<i2")
        made.Rows, made.Columns = values.shape
        made.PixelData = values.tobytes()

    series = Series(slices=2, edit=large)
    files = phantoms.write(tmp_path / "received", series)
    made = request(files, tmp_path / "derived")
    slices = [dcmread(path) for path in derive(made)]
    assert [(slice_.Rows, slice_.Columns) for slice_ in slices] == [(4096, 4096)] * 3
    assert set(np.unique(slices[1].pixel_array).tolist()) <= {1000, 1005, 1010}


LONG_SERIES = """
import resource, sys
from pathlib import Path
from inference.request import Derived
from tests.unit.inference.made import request, unchecked
from dataclasses import replace
made = request(sorted(Path(sys.argv[1]).glob("*.dcm")), Path(sys.argv[2]))
outcome = unchecked(replace(made, model=replace(made.model, name="linear", factory=None)))
assert isinstance(outcome, Derived), outcome
print(len(outcome.files), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def long_series(folder: Path, slices: int, side: int = 256) -> None:
    """Copies of one slice, with another UID and position each: quick to write."""

    def edit(made: Dataset, _: int) -> None:
        made.SOPInstanceUID = "1.2.3.99999999"
        made.ImagePositionPatient = ["0", "0", "99999999"]
        del made.InstanceNumber

    (first,) = phantoms.write(folder, Series(slices=1, rows=side, columns=side, edit=edit))
    data = first.read_bytes()
    first.unlink()
    for index in range(slices):
        place = str(10_000_000 + index).encode()
        (folder / f"{index:05}.dcm").write_bytes(data.replace(b"99999999", place))


@pytest.mark.long
def test_a_long_series_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    used = {}
    for slices in (700, 2000):
        folder = tmp_path / str(slices)
        long_series(folder, slices)
        command = [sys.executable, "-c", LONG_SERIES, str(folder), str(tmp_path / f"d{slices}")]
        (tmp_path / f"d{slices}").mkdir()
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, done.stderr
        instances, used[slices] = map(int, done.stdout.split())
        assert instances == 2 * slices - 1
    # The headers of 1,300 slices take some 90 MB; their pixels, all kept, would take 340 MB more.
    assert used[2000] - used[700] < 250


@pytest.mark.long
def test_a_series_of_two_thousand_slices_is_derived_right(tmp_path: Path) -> None:
    long_series(tmp_path / "received", 2000, side=8)
    files = sorted((tmp_path / "received").iterdir())
    assert len(derive(request(files, tmp_path / "derived"))) == 3999


def test_a_series_of_two_thousand_slices_is_one_stack(tmp_path: Path) -> None:
    def edit(made: Dataset, _: int) -> None:
        made.SOPInstanceUID = "1.2.3.99999999"
        made.ImagePositionPatient = ["0", "0", "99999999"]

    (first,) = phantoms.write(tmp_path, Series(slices=1, rows=1, columns=2, edit=edit))
    data, paths = first.read_bytes(), []
    for index in range(2000):
        paths.append(tmp_path / f"{index}.dcm")
        paths[-1].write_bytes(data.replace(b"99999999", str(10_000_000 + index).encode()))
    (stack,) = stacks_of(read_headers(paths))
    assert len(stack) == 2000
    layout = measure(stack)
    assert layout is not None
    assert layout.gap_mm == 1.0
    assert verdict(stack, Output()) is None
