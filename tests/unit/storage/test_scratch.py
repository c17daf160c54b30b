"""Folders for a moment: gone after it, and after a death at the next start; others' stay."""

import subprocess
import sys
from pathlib import Path

import pytest

from storage.errors import NoRoom
from storage.files import MADE, UPLOADS, Files, scratch_folder, sweep_scratch

DIES = """
import os, sys
from pathlib import Path
from storage.files import Files, scratch_folder
with scratch_folder(Files(Path(sys.argv[1]), 0), "uploads", sys.argv[2]) as folder:
    (folder / "0.dcm").write_bytes(b"of a patient")
    os._exit(9)
"""


def test_a_folder_is_its_nodes_and_gone_afterwards(tmp_path: Path) -> None:
    files = Files(tmp_path / "var", 0)
    with scratch_folder(files, UPLOADS, "host/MIDSLICE") as one:
        (one / "0.dcm").write_bytes(b"x")
        assert one.parent == tmp_path / "var" / "uploads"
        assert one.stat().st_mode & 0o077 == 0  # nobody else reads it
    assert list((tmp_path / "var" / "uploads").iterdir()) == []


def test_what_a_dead_process_left_goes_and_what_another_node_uses_stays(tmp_path: Path) -> None:
    files = Files(tmp_path / "var", 0)
    for node in ("host/ONE", "host/TWO"):
        done = subprocess.run([sys.executable, "-c", DIES, str(tmp_path / "var"), node])
        assert done.returncode == 9
    assert len(list(files.path("uploads").iterdir())) == 2
    with scratch_folder(files, MADE, "host/ONE") as other_kind:
        assert sweep_scratch(files, UPLOADS, "host/ONE") == 1
        assert other_kind.exists()
    (left,) = files.path("uploads").iterdir()
    assert [each.name for each in left.iterdir()] == ["0.dcm"]
    assert sweep_scratch(files, UPLOADS, "host/TWO") == 1


def test_a_full_disk_takes_no_uploads(tmp_path: Path) -> None:
    files = Files(tmp_path / "var", 1 << 60)
    with pytest.raises(NoRoom), scratch_folder(files, UPLOADS, "host/ONE"):
        raise AssertionError("there is no room")
