"""Child processes: real ones, that answer, end, are killed, and never outlive their parent."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

from node.children import (
    AnswerFormat,
    Child,
    ResourceLimits,
    leave_signals_to_parent,
    machine_memory_bytes,
    worker_memory_bytes,
)
from tests.peers import wait_until

PARENT = """
import time
from node.children import Child
from tests.faults.test_children import sleep
if __name__ == "__main__":
    print(Child("child", sleep).pid, flush=True)
    time.sleep(600)
"""


def echo(parent: Connection, *words: str) -> None:
    """Answer with the words, then with all that comes."""
    leave_signals_to_parent()
    parent.send(words)
    while True:
        parent.send(parent.recv())


def sleep(_parent: Connection) -> None:
    time.sleep(600)


def take_memory(parent: Connection) -> None:
    try:
        bytearray(8 << 30)
    except MemoryError:
        parent.send("no memory")


def burn(_parent: Connection) -> None:
    while True:
        pass


@dataclass(frozen=True)
class Word:
    text: str
    times: tuple[int, ...] = ()


class Marks:
    """Leaves a file where it is unpickled: what a child that was taken over would send."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)


def answer_well_then_badly(parent: Connection, mark: Path) -> None:
    AnswerFormat(Word).send(parent, Word("good", (1, 2)), 7)
    parent.send(Marks(mark))
    parent.send_bytes(b'{"number": 8, "kind": "Child", "value": {}}')
    parent.send_bytes(b'{"number": 9, "kind": "Word", "value": {"text": 5}}')
    time.sleep(600)


def test_no_answer_of_a_child_runs_in_its_parent(tmp_path: Path) -> None:
    mark, answers = tmp_path / "mark", AnswerFormat(Word)
    child = Child("answers", answer_well_then_badly, mark)
    try:
        assert answers.receive(child.pipe) == (Word("good", (1, 2)), 7)
        for _ in range(3):
            with pytest.raises(OSError, match="no answer that its parent knows"):
                answers.receive(child.pipe)
    finally:
        child.end()
    assert not mark.exists()


def test_a_child_gets_its_arguments_and_speaks_over_its_pipe() -> None:
    child = Child("echo", echo, "one", "two")
    try:
        assert child.pipe.recv() == ("one", "two")
        child.pipe.send(3)
        assert child.pipe.recv() == 3
        assert child.is_alive
        assert child.memory_bytes() > 1 << 20
    finally:
        child.end()
    assert not child.is_alive
    assert child.exit_code() == -signal.SIGKILL
    assert child.memory_bytes() == 0


def test_a_signal_to_the_whole_group_leaves_a_child_that_leaves_it_to_its_parent() -> None:
    child = Child("echo", echo)
    try:
        assert child.pipe.recv() == ()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGTERM)
        os.kill(child.pid, signal.SIGINT)
        child.pipe.send("alive")
        assert child.pipe.recv() == "alive"
    finally:
        child.end()


def test_a_child_whose_parent_is_killed_ends() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    child = psutil.Process(pid)
    wait_until(lambda: child.num_threads() > 1, what="the child watches its parent")
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not psutil.pid_exists(pid) or child.status() == "zombie", what="it ends")


def test_the_kernel_keeps_the_memory_limit_of_a_child() -> None:
    child = Child("bounded", take_memory, limits=ResourceLimits(1 << 30, 60))
    try:
        assert child.pipe.recv() == "no memory"
        assert child.exit_code(20.0) == 0
    finally:
        child.end()


def test_the_kernel_keeps_the_time_limit_of_a_child() -> None:
    child = Child("bounded", burn, limits=ResourceLimits(1 << 30, 1))
    try:
        assert child.exit_code(60.0) == -signal.SIGXCPU
    finally:
        child.end()


def test_a_worker_has_a_memory_limit_as_shipped(tmp_path: Path) -> None:
    total = psutil.virtual_memory().total
    assert machine_memory_bytes(tmp_path / "none") == total
    (tmp_path / "max").write_text("max\n")
    assert machine_memory_bytes(tmp_path / "max") == total
    (tmp_path / "container").write_text("1000000\n")
    assert machine_memory_bytes(tmp_path / "container") == 1_000_000
    assert worker_memory_bytes(2.5, 4) == 2_500_000_000
    assert 0 < worker_memory_bytes(0.0, 2) * 2 < machine_memory_bytes()


def test_the_web_process_has_a_memory_limit_as_shipped() -> None:
    from node.web import server  # here: a child of this file has a second for its imports

    child = Child("bounded", take_memory, limits=server.LIMITS)
    try:
        assert child.pipe.recv() == "no memory"
    finally:
        child.end()
