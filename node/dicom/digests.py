"""The digests of data sets, worked out beside the threads that receive them.

A digest of 0.5 MB takes as long as receiving and writing it. Where a core is free, a thread of its
own takes the pieces of one data set; where all of these threads are taken, the cores are busy with
other associations and the receiving thread digests by itself.
"""

import hashlib
import os
import threading
from collections import deque
from queue import SimpleQueue

SMALL_BYTES = 1 << 14  # digested sooner than handed over


class DigestThreads:
    """Threads of which each digests one data set at a time."""

    def __init__(self, count: int | None = None) -> None:
        threads = max(1, (os.cpu_count() or 1) // 2) if count is None else count
        self._free = deque(_DigestThread() for _ in range(threads))

    def digest(self) -> "Digest":
        """The digest of a data set that begins."""
        try:
            return Digest(self._free.popleft(), self._free)
        except IndexError:
            return Digest()


class _DigestThread:
    """Takes pieces in their order and says after each that it is done."""

    def __init__(self) -> None:
        self._pieces: SimpleQueue[tuple[hashlib._Hash, memoryview]] = SimpleQueue()
        self._done: SimpleQueue[None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name="digest")
        self._is_started = False

    def put(self, digest: "hashlib._Hash", piece: memoryview) -> None:
        """Have a piece digested."""
        if not self._is_started:
            self._is_started = True
            self._thread.start()
        self._pieces.put((digest, piece))

    def wait(self) -> None:
        """Return when the next piece is done."""
        self._done.get()

    def _run(self) -> None:
        while True:
            digest, piece = self._pieces.get()
            digest.update(piece)  # which lets other threads run
            piece.release()
            del piece
            self._done.put(None)


class Digest:
    """The SHA-256 of one data set.

    A piece must stay as it is until it is digested: `before_reuse` waits for those of the last turn
    but one, `hexdigest` and `close` for all. One thread at a time may call it.
    """

    def __init__(
        self,
        thread: _DigestThread | None = None,
        free: "deque[_DigestThread] | None" = None,
    ) -> None:
        self._digest = hashlib.sha256()
        self._thread = thread
        self._free = free
        self._put = self._done = self._put_before = 0

    def update(self, piece: bytes | memoryview) -> None:
        """Add the next piece."""
        if self._thread is None or (self._put == self._done and len(piece) < SMALL_BYTES):
            self._digest.update(piece)
        else:
            self._thread.put(self._digest, memoryview(piece))
            self._put += 1

    def before_reuse(self) -> None:
        """Wait for all pieces that were there when this was called before."""
        self._wait(self._put_before)
        self._put_before = self._put

    def hexdigest(self) -> str:
        """The digest of all pieces."""
        self.close()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Wait for all pieces and let the next data set have the thread."""
        self._wait(self._put)
        if self._thread is not None and self._free is not None:
            self._free.append(self._thread)
            self._thread = None

    def _wait(self, count: int) -> None:
        while self._thread is not None and self._done < count:
            self._thread.wait()
            self._done += 1
