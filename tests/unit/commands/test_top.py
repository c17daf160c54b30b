"""`midslice top`: once where nobody can press a key, and live at a terminal."""

import fcntl
import os
import pty
import select
import subprocess
import termios
from pathlib import Path

import pytest

from storage.records import SwitchName
from storage.site import control
from tests.node_process import MIDSLICE, wait_for
from tests.unit.commands.console import Midslice, configure, rows


def test_top_prints_once_where_nobody_can_press_a_key(midslice: Midslice, tmp_path: Path) -> None:
    with rows(tmp_path) as kept:
        kept.ask("a", stack="a")
        kept.queue.hold(kept.claim(), "MISSING_SLICES", "Slices are missing.")
        kept.ask("b", stack="b")
        kept.claim()
        kept.ask("c", stack="c")
        kept.receive("9.1", series_uid="1.2.3.9")
        control.turn(kept.database, 0.0, "anna", SwitchName.DRAINING, on=True)
    result = midslice("top")
    assert result.status == 0
    for text in (
        "no node is running",
        "drained by anna",
        "Slices are missing.",
        "Running  1",
        "Queue  1",
        "Arriving  1",
        "1.2.3.9",
        "Sending  none",
    ):
        assert text in result.out
    assert "P1" not in result.out  # the patient


def _own_terminal() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_top_watches_until_a_key_that_quits_is_pressed(tmp_path: Path, key: bytes) -> None:
    configure(tmp_path)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [MIDSLICE, "top", "--seconds", "0.2"],
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        preexec_fn=_own_terminal,
    )
    os.close(theirs)
    seen = bytearray()

    def shows(text: bytes) -> bool:
        if select.select([ours], [], [], 0.1)[0]:
            seen.extend(os.read(ours, 65_536))
        return text in seen

    try:
        wait_for("the first look", lambda: shows(b"no node is running"), 60.0)
        seen.clear()
        wait_for("another look", lambda: shows(b"Arriving"), 60.0)
        os.write(ours, key)
        wait_for("the end", lambda: shows(b"\x1b[?1049l"), 60.0)  # the screen as it was before
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
