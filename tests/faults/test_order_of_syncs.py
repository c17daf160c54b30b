"""Bytes, names and rows are on disk in this order before Success is sent: by system calls.

A power cut takes what no sync has brought to disk, which no kill of a process shows. So the calls
of a whole node are recorded while a peer stores instance after instance.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from storage.files import Files
from tests.faults.system_calls import Call, calls
from tests.raw_peer import RawPeer, data_set, store_command

WRITES = ("write", "writev", "pwrite64")
SYNCS = ("fsync", "fdatasync")
RENAMES = ("rename", "renameat", "renameat2")
SENDS = ("sendto", "sendmsg")
INSTANCES = 4
SUCCESS = r"\t\2\0\0\0\0\0"  # (0000,0900), two bytes, 0000, as strace writes it
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@contextmanager
def _folder(kind: str, tmp_path: Path) -> Iterator[Path]:
    """One on the disk, or in memory, where the fsync of a file says nothing of its name."""
    if kind == "disk":
        yield tmp_path
        return
    with TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@contextmanager
def recorded_scp(folder: Path, trace: Path, *ways: str) -> Iterator[int]:
    """The port of a Storage SCP whose calls are written down."""
    names = ",".join((*WRITES, *SYNCS, *RENAMES, *SENDS))
    recording = ["strace", "-f", "-yy", "-s", "256", "-e", f"trace={names}", "-o", str(trace)]
    command = [*recording, sys.executable, "-m", "tests.faults.storage_scp", str(folder), *ways]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield int(process.stdout.readline())
        process.stdin.close()


@pytest.mark.parametrize("way", ["direct", "library"])
@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_success_is_sent_after_bytes_name_and_row(tmp_path: Path, kind: str, way: str) -> None:
    trace = tmp_path / "trace"
    with _folder(kind, tmp_path) as folder:
        with recorded_scp(folder, trace, way) as port, RawPeer(port) as peer:
            peer.associate()
            for number in (*range(INSTANCES), 0):  # the first one once more at the end
                uid = f"1.2.3.{number + 10}"
                assert peer.status(store_command(uid.encode()), data_set(uid)) == 0x0000
            peer.release()
        names_last = Files(folder, 0).names_last
    recorded = list(calls(trace.read_text(errors="replace").splitlines()))
    answers = [call for call in recorded if call.is_of(SENDS, "TCP:", SUCCESS)]
    assert len(answers) == INSTANCES + 1
    begin = -1
    for answer in answers:
        before = [call for call in recorded if begin < call.end < answer.begin]
        _check(before, names_last=names_last, is_again=answer is answers[-1])
        begin = answer.end


def _check(before: Sequence[Call], *, names_last: bool, is_again: bool) -> None:
    """What came between two answers, each call at its end: a sync counts once it is over."""
    (written, *_) = reversed([call for call in before if call.is_of(WRITES, "/incoming/")])
    (synced,) = (call for call in before if call.is_of(SYNCS, ".dcm>"))
    assert written.end < synced.begin  # every byte is on disk
    *named, placed = (call for call in before if call.is_of(RENAMES, "/incoming/"))
    assert "/received/" in placed.text and synced.end < placed.begin
    if names_last:
        assert named[-1].end < synced.begin  # the sync of the file brings its name along
    else:
        folders = [call for call in before if call.is_of(SYNCS, "/received/") and call != synced]
        assert any(placed.end < call.begin for call in folders)
    committed = [call for call in before if call.is_of(WRITES, "midslice.db-wal")]
    assert any(synced.end < call.begin for call in committed)
    if is_again:  # that it came once more is in no file
        last = max(call.end for call in committed)
        syncs = [call for call in before if call.is_of(SYNCS, "midslice.db-wal")]
        assert any(last < call.begin for call in syncs)


def test_a_trace_in_which_the_answer_comes_before_the_sync_is_found() -> None:
    node = "/var/incoming/a"
    lines = [
        f'7 write(5<{node}.part>, "x", 1) = 1',
        f'7 rename("{node}.part", "{node}.dcm") = 0',
        f"7 fsync(5<{node}.dcm> <unfinished ...>",
        f'8 rename("{node}.dcm", "/var/received/a.dcm") = 0',
        '8 pwrite64(6</var/midslice.db-wal>, "x", 1, 0) = 1',
        "7 <... fsync resumed>) = 0",
    ]
    with pytest.raises(AssertionError):
        _check(list(calls(lines)), names_last=True, is_again=False)
    in_order = [*lines[:2], f"7 fsync(5<{node}.dcm>) = 0", *lines[3:5]]
    _check(list(calls(in_order)), names_last=True, is_again=False)
    with pytest.raises(AssertionError):  # the folder was never synced
        _check(list(calls(in_order)), names_last=False, is_again=False)
