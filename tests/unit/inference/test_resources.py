"""A machine that lacks room is no fault of a series: the job may be done later, and says so."""

import errno
import mmap
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import torch
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from inference.dataset import read_headers
from inference.errors import Unprocessable, is_out_of_memory, shortage
from inference.model import Limits, Prediction, Step, Window
from inference.models.classical import Linear
from inference.pixels import decoded
from inference.request import (
    Derived,
    ModelSpec,
    Outcome,
    OutOfMemory,
    OutOfResources,
    Request,
    Verdict,
)
from tests import phantoms
from tests.phantoms import Series
from tests.unit.inference.made import request, run, unchecked

SIDE = Series(slices=4)


@pytest.fixture
def made(tmp_path: Path) -> Request:
    return request(phantoms.write(tmp_path / "received", SIDE), tmp_path / "derived")


@pytest.fixture
def names(made: Request, tmp_path: Path) -> list[str]:
    """The files that the job writes where there is room, in their order."""
    folder = tmp_path / "before"
    folder.mkdir()
    outcome = run(replace(made, folder=folder))
    assert isinstance(outcome, Derived)
    return [file.name for file in outcome.files]


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open no further file."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path(os.devnull).open() as file:
        lowest = file.fileno()  # the next one would be this
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def no_more_memory() -> Iterator[None]:
    """Let this process map little more memory than it has, and hold what it freed before."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    taken = psutil.Process().memory_info().data
    resource.setrlimit(resource.RLIMIT_DATA, (taken + 2_000_000, before[1]))
    held: list[bytearray] = []
    with suppress(MemoryError):
        while True:
            held.append(bytearray(8_000_000))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def lacked(outcome: Outcome, number: int) -> OutOfResources:
    assert isinstance(outcome, OutOfResources), outcome
    assert os.strerror(number) in outcome.sentence
    return outcome


@pytest.mark.parametrize("place", [0, 3, -1])
def test_a_disk_that_fills_up_ends_the_job_for_now(
    made: Request, names: list[str], place: int
) -> None:
    (made.folder / names[place]).symlink_to("/dev/full")
    lacked(unchecked(made), errno.ENOSPC)
    assert list(made.folder.iterdir()) == []


def test_what_cannot_be_decoded_while_memory_lacks_is_not_called_damaged(tmp_path: Path) -> None:
    """A decoder says the same of either; here the slice is damaged too, which is told later."""
    paths = phantoms.write(tmp_path, replace(SIDE, transfer_syntax=RLELossless))
    cut = dcmread(paths[0])
    cut.PixelData = encapsulate([b"\0" * 64])
    cut.save_as(paths[0])
    (header,) = read_headers(paths[:1])
    with no_more_memory(), pytest.raises(MemoryError):
        decoded(header)
    with pytest.raises(Unprocessable):
        decoded(header)


def test_too_many_open_files_are_no_damaged_series(made: Request, names: list[str]) -> None:
    assert names  # whatever is loaded late is loaded
    with no_more_files():
        outcome = unchecked(made)
    lacked(outcome, errno.EMFILE)


def test_a_header_that_cannot_be_opened_for_want_of_room_is_not_damaged(made: Request) -> None:
    paths = [source.path for source in made.sources]
    with no_more_files(), pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        read_headers(paths)
    (gone,) = read_headers([made.folder / "gone.dcm"])
    assert gone.fault.startswith("cannot be opened")


def test_a_missing_file_is_a_fault_of_the_series(made: Request) -> None:
    made.sources[1].path.unlink()
    assert isinstance(unchecked(made), Verdict)


def test_a_result_that_would_take_from_the_reserve_is_not_begun(made: Request) -> None:
    outcome = unchecked(replace(made, reserve_bytes=1 << 60))
    assert isinstance(outcome, OutOfResources)
    assert "GB are free, the reserve is" in outcome.sentence
    assert "the result needs 0.00 GB" in outcome.sentence
    assert list(made.folder.iterdir()) == []


def test_a_result_that_fits_beside_the_reserve_is_made(made: Request) -> None:
    assert isinstance(run(replace(made, reserve_bytes=0)), Derived)


def test_what_was_lacked_is_found_behind_what_was_raised_of_it() -> None:
    def raised(number: int) -> Exception:
        try:
            try:
                raise OSError(number, os.strerror(number))
            except OSError as error:
                raise ValueError("the decoder failed") from error
        except ValueError as error:
            return error

    for number in (errno.ENFILE, errno.ENOMEM):
        assert shortage(raised(number)) == os.strerror(number)
    assert shortage(raised(errno.EIO)) == ""


PETABYTE = 1 << 50


@pytest.mark.parametrize(
    "ask",
    [
        lambda: np.empty(PETABYTE, np.uint8),
        lambda: torch.empty(PETABYTE, dtype=torch.uint8),
        lambda: cv2.resize(np.zeros((9, 9), np.float32), (1 << 25, 1 << 25)),
        lambda: mmap.mmap(-1, PETABYTE),
        lambda: bytearray(PETABYTE),
    ],
    ids=["NumPy", "torch", "OpenCV", "the system", "Python"],
)
def test_a_lack_of_memory_is_known_from_what_each_library_raises(
    ask: Callable[[], object],
) -> None:
    with pytest.raises(Exception) as caught:
        ask()
    assert is_out_of_memory(caught.value)
    try:
        raise ValueError("the decoder failed") from caught.value
    except ValueError as error:
        assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [ValueError("out of memory"), RuntimeError("shapes"), OSError(errno.EMFILE, "x")]
)
def test_another_error_is_not_taken_for_a_lack_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_a_model_that_finds_no_memory_ends_the_job_for_now(
    made: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits are lowered as far as they go, and then the job is no failure."""
    lowered: list[Limits] = []

    def run_step(_model: Linear, _step: Step, _window: Window, limits: Limits) -> Prediction:
        lowered.append(limits)
        raise MemoryError

    monkeypatch.setattr(Linear, "run", run_step)
    outcome = unchecked(replace(made, model=ModelSpec("linear")))
    assert isinstance(outcome, OutOfMemory)
    assert "run_step" in outcome.frames
    assert (lowered[-1].batch, lowered[-1].tile) == (1, 128)
    assert list(made.folder.iterdir()) == []
