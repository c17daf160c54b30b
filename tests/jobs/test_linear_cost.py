"""A slice costs the same in a long series: what is done is counted, not timed."""

import platform
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pytest
from pydicom.uid import RLELossless

from inference import pixels, registry
from inference.model import Parameters
from inference.pipeline import process
from inference.request import Derived, ModelSpec
from inference.results import derived
from tests import phantoms
from tests.models.made import made_geometry
from tests.phantoms import Series
from tests.unit.inference.made import request

SIDE = 16
COUNTS = (20, 40, 80)
MOST_MORE = 1.002  # of the second doubling: a few calls depend on which thread is first
FEW_PARTS = 8  # of headers that are kept encoded; fewer than in any of these series


def calls_of_a_job(folder: Path, slices: int) -> int:
    """The calls of functions, of Python's and of libraries', in all threads of a whole job."""
    series = Series(slices=slices, rows=SIDE, columns=SIDE, transfer_syntax=RLELossless)
    made = request(phantoms.write(folder / "received", series), folder / "derived")
    counts: Counter[str] = Counter()

    def count(frame: FrameType, happened: str, argument: object) -> None:
        counts[happened] += 1

    threading.setprofile(count)
    sys.setprofile(count)
    try:
        outcome = process(
            replace(made, previews=True), progress=lambda _: None, cancelled=lambda: False
        )
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert isinstance(outcome, Derived), outcome
    return counts["call"] + counts["c_call"]


def test_twice_the_slices_take_twice_the_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "CACHE_BYTES", 8 * pixels.BYTES_IN_MEMORY * SIDE * SIDE)
    monkeypatch.setattr(derived, "MOST_PARTS", FEW_PARTS)
    calls_of_a_job(tmp_path / "first", 3)  # what is loaded and remembered by the first job
    few, more, many = (calls_of_a_job(tmp_path / str(count), count) for count in COUNTS)
    assert many - more <= 2 * (more - few) * MOST_MORE


@pytest.mark.parametrize("model", ["linear", "midslice"])
@pytest.mark.parametrize("factor", [2, 4])
def test_a_plan_looks_at_slices_in_proportion_to_their_number(model: str, factor: int) -> None:
    loaded = registry.load(ModelSpec(model))

    def looks(slices: int) -> int:
        steps = loaded.plan(made_geometry(slices, SIDE, SIDE), Parameters(factor=factor))
        return sum(len(step.needs) for step in steps)

    per_slice = {slices: looks(slices) / slices for slices in (60, 600, 3000)}
    assert per_slice[3000] <= per_slice[600] * MOST_MORE
    assert per_slice[600] <= per_slice[60] * 1.15


ARENAS_OF_THREADS = """
import ctypes, threading
from node.work.executor import share_arenas
share_arenas()
written, counted = threading.Barrier(9), threading.Barrier(9)
def work():
    some = [bytearray(3000) for _ in range(100)]
    written.wait(), counted.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
written.wait()
libc = ctypes.CDLL(None)
stdout = ctypes.c_void_p.in_dll(libc, "stdout")
libc.malloc_info(0, stdout), libc.fflush(stdout)
counted.wait()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are of glibc")
def test_threads_of_a_worker_share_their_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ARENAS_OF_THREADS], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("<heap nr=") == 2
