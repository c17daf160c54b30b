"""The worker loop: one piece of work after the other, whatever happens, until it is drained."""

import sys
import threading
import time

import pytest

from node import children
from node.children import AT_ONCE, IDLE_SECONDS, PAUSE_SECONDS, WorkerLoop, wait_for
from tests.peers import wait_until


class Work:
    """Pieces of work that are done in turn; then there is none."""

    def __init__(self, *pieces: object) -> None:
        self.pieces = list(pieces)
        self.done: list[object] = []
        self.asked = 0
        self.failures: list[type[BaseException] | None] = []

    def failed(self) -> None:
        self.failures.append(sys.exc_info()[0])

    def next(self) -> float:
        self.asked += 1
        if not self.pieces:
            return IDLE_SECONDS
        piece = self.pieces.pop(0)
        if isinstance(piece, Exception):
            raise piece
        self.done.append(piece)
        return AT_ONCE


def test_work_is_done_piece_by_piece_until_there_is_none() -> None:
    work = Work(1, 2, 3)
    worker = WorkerLoop("worker-1", work.next, work.failed)
    worker.start()
    wait_until(lambda: work.done == [1, 2, 3], what="all is done")
    worker.drain()
    began = time.monotonic()
    assert wait_for([worker], 20.0)
    assert time.monotonic() - began < IDLE_SECONDS  # it does not sleep to the end of its wait


def test_a_queue_that_cannot_be_read_is_a_pause_and_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PAUSE_SECONDS >= 1.0
    monkeypatch.setattr(children, "PAUSE_SECONDS", 0.01)
    work = Work(RuntimeError("no such table"), 2)
    worker = WorkerLoop("worker-1", work.next, work.failed)
    worker.start()
    wait_until(lambda: work.done == [2], what="it goes on")
    worker.drain()
    assert wait_for([worker], 20.0)
    assert work.failures == [RuntimeError]  # while it is handled: its frames can be logged


def test_nothing_is_claimed_once_it_is_drained() -> None:
    work = Work(1)
    worker = WorkerLoop("worker-1", work.next, work.failed)
    worker.drain()
    worker.start()
    assert wait_for([worker], 20.0)
    assert work.asked == 0


def test_waiting_for_several_ends_at_one_deadline() -> None:
    release = threading.Event()

    def hang() -> float:
        release.wait(20.0)
        return AT_ONCE

    workers = [WorkerLoop(f"worker-{number}", hang, Work().failed) for number in range(5)]
    for worker in workers:
        worker.start()
        worker.drain()
    began = time.monotonic()
    assert not wait_for(workers, 0.1)
    assert time.monotonic() - began < 0.4
    release.set()
    assert wait_for(workers, 20.0)


def test_a_loop_that_never_started_is_not_waited_for() -> None:
    assert wait_for([WorkerLoop("worker-1", Work().next, Work().failed)], 20.0)
