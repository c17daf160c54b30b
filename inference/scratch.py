"""Arrays on disk that a job looks at again, so that its memory does not grow with its series."""

import errno
import os
import tempfile
import threading
from collections.abc import Hashable, Iterator, MutableMapping
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar
from weakref import finalize

import numpy as np
from numpy.typing import DTypeLike, NDArray

K = TypeVar("K", bound=Hashable)
T = TypeVar("T", bound=np.generic)


class _Place(NamedTuple):
    at: int
    shape: tuple[int, ...]
    dtype: DTypeLike


class ScratchFile(MutableMapping[K, NDArray[T]]):
    """Arrays by a key, in a file without a name: it is gone with the process, however that ends.

    Not mapped into memory, where it would count as the process's own. Threads may share it. The
    room of what is replaced or deleted is not used again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None
        self._places: dict[K, _Place] = {}
        self._end = 0
        self._lock = threading.Lock()

    def __setitem__(self, key: K, array: NDArray[T]) -> None:
        descriptor, place = self._reserved(array)
        data, at = memoryview(array.tobytes()), place.at
        while data:
            written = os.pwrite(descriptor, data, at)
            data, at = data[written:], at + written
        self._places[key] = place

    def __getitem__(self, key: K) -> NDArray[T]:
        at, shape, dtype = self._places[key]
        array: NDArray[T] = np.empty(shape, dtype)
        data = array.reshape(-1).view(np.uint8).data
        while data:
            count = os.preadv(self._descriptor(), [data], at)
            if not count:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            data, at = data[count:], at + count
        return array

    def __delitem__(self, key: K) -> None:
        del self._places[key]

    def __contains__(self, key: object) -> bool:
        return key in self._places  # without reading it

    def __iter__(self) -> Iterator[K]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def nbytes(self) -> int:
        """The room that it takes on disk."""
        return os.fstat(self._descriptor()).st_size if self._file is not None else 0

    def _reserved(self, array: NDArray[T]) -> tuple[int, _Place]:
        with self._lock:
            place = _Place(self._end, array.shape, array.dtype)
            self._end += array.nbytes
            return self._descriptor(), place

    def _descriptor(self) -> int:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed with this
            finalize(self, self._file.close)
        return self._file.fileno()
