"""The storage folder: nothing half written, nothing outside, and a secret made once."""

import errno
import hashlib
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from blake3 import blake3

from storage.errors import NoRoom, StorageError
from storage.files import (
    MADE,
    UPLOADS,
    Files,
    digest,
    fingerprint,
    received_digest,
    scratch_folder,
    sweep_scratch,
)
from tests.unit.storage.stored import part10


def test_the_folders_are_made_and_are_the_owners_alone(tmp_path: Path) -> None:
    files = Files(tmp_path / "a" / "var", 0)
    assert files.incoming.is_dir()
    assert stat.S_IMODE((tmp_path / "a" / "var").stat().st_mode) == 0o700
    Files(tmp_path / "a" / "var", 0)  # a second start finds them


def test_room_is_told_against_the_reserve(tmp_path: Path) -> None:
    files = Files(tmp_path, 0)
    files.check_room()
    with pytest.raises(NoRoom, match=r"GB free, the reserve is"):
        Files(tmp_path, files.free_bytes() + (1 << 40)).check_room()


def test_a_move_that_is_done_again_changes_nothing(files: Files) -> None:
    temporary = files.incoming / "x"
    temporary.write_bytes(b"content")
    assert files.move(temporary, "received/ab/1.dcm") == files.path("received/ab")
    assert files.path("received/ab/1.dcm").read_bytes() == b"content"
    assert not temporary.exists()
    assert files.move(temporary, "received/ab/1.dcm") == files.path("received/ab")
    with pytest.raises(FileNotFoundError):
        files.move(temporary, "received/ab/2.dcm")


@pytest.mark.parametrize("wrong", ["../x", "/etc/passwd", "received/../../x"])
def test_no_path_leads_out_of_the_folder(files: Files, wrong: str) -> None:
    with pytest.raises(StorageError, match="not a path within"):
        files.path(wrong)
    with pytest.raises(StorageError, match="not a path within"):
        files.remove(wrong)


def test_a_series_has_a_folder_of_its_own_in_each_study(files: Files) -> None:
    places = {
        files.received_path("1", "23", "d"),
        files.received_path("12", "3", "d"),
        files.received_path("1", "2", "d"),
    }
    assert len({Path(place).parent for place in places}) == 3
    assert files.received_path("1", "2", "d") == files.received_path("1", "2", "d")


def test_a_folder_for_a_result_is_empty_whatever_was_there(files: Files) -> None:
    folder = files.derived_folder(7, 2)
    assert folder == "derived/7-2"
    (files.make(folder) / "left over").write_bytes(b"x")
    assert list(files.make(folder).iterdir()) == []


def test_removing_takes_a_file_or_a_folder_and_does_not_mind_nothing(files: Files) -> None:
    (files.make("derived/1-1") / "a").write_bytes(b"x")
    files.settle_folder("derived/1-1")
    assert files.path("derived/1-1").is_dir()
    files.remove("derived/1-1/a")
    files.remove("derived/1-1/a")
    files.settle_folder("derived/1-1")
    files.settle_folder("derived/1-1")
    assert not files.path("derived/1-1").exists()
    files.make("derived/1-2")
    files.remove("derived/1-2")
    assert not files.path("derived/1-2").exists()


def test_the_digest_is_of_the_data_set_as_it_was_sent(tmp_path: Path) -> None:
    content = b"a data set" * 1000
    wanted = blake3(content).hexdigest()
    for number, meta in enumerate((b"", b"short", b"long" * 100)):
        file = tmp_path / str(number)
        file.write_bytes(part10(content, meta))
        assert received_digest(file) == wanted


@pytest.mark.parametrize("content", [b"", b"short", bytes(128) + b"DICM", bytes(200)])
def test_what_is_no_part_10_file_is_digested_whole(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x"
    file.write_bytes(content)
    assert received_digest(file) == blake3(content).hexdigest()
    assert digest(file) == blake3(content).hexdigest()


class OnFullDisk:
    """A file whose new name does not fit on the disk any more."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __fspath__(self) -> str:
        raise OSError(self._number, os.strerror(self._number))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_room(files: Files, number: int) -> None:
    with pytest.raises(NoRoom, match="the disk is full"):
        files.move(OnFullDisk(number), "received/1.dcm")


def test_another_fault_of_the_disk_is_not_called_full(files: Files) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        files.move(OnFullDisk(errno.EIO), "received/1.dcm")


def test_the_secret_is_made_once_and_is_the_owners_alone(files: Files) -> None:
    secret = files.secret(None)
    assert files.secret(None) == secret
    assert len(secret) == 64
    assert stat.S_IMODE((files.folder / "secret").stat().st_mode) == 0o600
    assert [path.name for path in files.folder.iterdir() if path.name.startswith(".")] == []


def test_two_nodes_that_start_together_have_one_secret(files: Files) -> None:
    begin, found = threading.Barrier(8), []

    def work() -> None:
        begin.wait(10)
        found.append(files.secret(None))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_secret_may_lie_elsewhere_and_be_a_sites_own(files: Files, tmp_path: Path) -> None:
    file = tmp_path / "elsewhere" / "secret"
    assert files.secret(file) == file.read_bytes().strip()
    file.write_bytes(b"a site's own secret, long enough\n")
    assert files.secret(file) == b"a site's own secret, long enough"


@pytest.mark.parametrize("content", [b"", b"\n", b"too short"])
def test_a_secret_that_was_cut_short_is_refused(
    files: Files, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content)
    with pytest.raises(StorageError, match="at least 32 are needed"):
        files.secret(file)


def test_a_secret_that_cannot_be_read_says_which(files: Files, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(StorageError, match=r"secret .*folder: Is a directory"):
        files.secret(folder)


def test_a_fingerprint_tells_secrets_apart_and_gives_none_away() -> None:
    assert fingerprint(b"one") == fingerprint(b"one") != fingerprint(b"two")
    assert fingerprint(b"one") != hashlib.sha256(b"one").hexdigest()


# Folders for a moment: gone after it, and after a death at the next start; others' stay.

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
