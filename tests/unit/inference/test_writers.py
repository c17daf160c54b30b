"""Threads that write results: nothing is left unsynced, and no error is lost."""

import os
import threading
from pathlib import Path

import pytest

from inference import writers
from inference.writers import SYNC_THREADS, Writers


def opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT)


def is_closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return True
    return False


def test_files_are_on_the_disk_when_the_block_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(writers.os, "fsync", synced.append)
    descriptors = [opened(tmp_path / str(number)) for number in range(100)]
    with Writers() as made:
        for descriptor in descriptors:
            made.bring_to_disk(descriptor)
    assert sorted(synced) == sorted(descriptors)
    assert all(map(is_closed, descriptors))


def test_files_wait_for_the_disk_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each waits until all threads are there: one after the other would wait for ever.
    barrier = threading.Barrier(SYNC_THREADS)
    monkeypatch.setattr(writers.os, "fsync", lambda _: barrier.wait(timeout=30.0))
    with Writers() as made:
        for number in range(SYNC_THREADS):
            made.bring_to_disk(opened(tmp_path / str(number)))


def test_a_disk_that_fails_is_told_and_leaves_no_descriptor_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "the disk fails")

    monkeypatch.setattr(writers.os, "fsync", fail)
    descriptors = [opened(tmp_path / str(number)) for number in range(20)]
    with pytest.raises(OSError, match="the disk fails"), Writers() as made:
        for descriptor in descriptors:
            made.bring_to_disk(descriptor)
    assert all(map(is_closed, descriptors))


def test_an_error_of_the_block_ends_what_waits_and_stays_the_error(tmp_path: Path) -> None:
    done = []
    descriptor = opened(tmp_path / "file")
    with pytest.raises(KeyError), Writers(threads=1) as made:
        made.hand_over(lambda: done.append(1))
        made.bring_to_disk(descriptor)
        raise KeyError
    assert is_closed(descriptor)
    assert len(done) <= 1


def test_the_error_of_a_piece_of_work_is_raised_at_the_end() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Writers() as made:
        made.hand_over(fail)
