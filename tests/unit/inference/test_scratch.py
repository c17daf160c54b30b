"""A scratch file: arrays by a key, which threads share, and whose file nobody sees."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from inference.scratch import ScratchFile

FORMS = (np.int16, np.uint16, np.int32, np.float32)


def arrays(count: int) -> list[np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    return [np.arange(place + 6, dtype=FORMS[place % 4]).reshape(1, -1) for place in range(count)]


def test_threads_that_write_and_read_at_once_get_what_was_written(tmp_path: Path) -> None:
    scratch: ScratchFile[int, np.generic] = ScratchFile(tmp_path)
    wanted = arrays(200)

    def written_and_read(key: int) -> bool:
        scratch[key] = wanted[key]
        read = scratch[key]
        return read.dtype == wanted[key].dtype and np.array_equal(read, wanted[key])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(written_and_read, range(200)))
    assert all(np.array_equal(scratch[key], wanted[key]) for key in reversed(range(200)))
    assert sorted(scratch) == list(range(200))
    assert scratch.nbytes == sum(array.nbytes for array in wanted)


def test_there_is_no_file_until_something_is_written_and_never_a_name(tmp_path: Path) -> None:
    scratch: ScratchFile[str, np.generic] = ScratchFile(tmp_path)
    assert not scratch
    assert scratch.nbytes == 0
    scratch["a"] = arrays(1)[0]
    assert "a" in scratch
    assert not list(tmp_path.iterdir())


def test_what_was_never_written_or_was_deleted_is_not_there(tmp_path: Path) -> None:
    scratch: ScratchFile[str, np.generic] = ScratchFile(tmp_path)
    scratch["a"] = arrays(1)[0]
    del scratch["a"]
    for key in "ab":
        assert key not in scratch
        with pytest.raises(KeyError):
            scratch[key]
