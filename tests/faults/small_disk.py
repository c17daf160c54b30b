"""A file system of 64 MB of its own: ext4 where loop devices can be had, else one in memory."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SIZE = 64 << 20


@dataclass(frozen=True)
class SmallDisk:
    """Where it is mounted, and a file of any size that takes the room of others."""

    folder: Path
    is_ext4: bool

    @property
    def ballast(self) -> Path:
        return self.folder / "ballast"

    def free_bytes(self) -> int:
        """What a user who is not root could still write."""
        disk = os.statvfs(self.folder)
        return int(disk.f_bavail * disk.f_frsize)

    def leave(self, free: int) -> None:
        """Take or give room, until about so many bytes are free."""
        size = self.ballast.stat().st_size if self.ballast.exists() else 0
        wanted = max(0, size + self.free_bytes() - free)
        if wanted < size:
            with self.ballast.open("r+b") as file:
                file.truncate(wanted)
            return
        with self.ballast.open("ab", buffering=0) as file:
            file.write(bytes(wanted - size))

    def fill(self) -> None:
        """Leave no byte: also of what is reserved for root."""
        for size in (1 << 20, 1 << 12, 1 << 8):
            with contextlib.suppress(OSError), self.ballast.open("ab", buffering=0) as file:
                while file.write(bytes(size)):
                    pass

    def become_read_only(self) -> None:
        """As ext4 does it after an error, with open files and all."""
        _run("mount", "-o", "remount,abort", str(self.folder))


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """Mount one; a test is skipped where nothing can be mounted."""
    mounted = folder / "disk"
    mounted.mkdir()
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(SIZE)
    made = _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
    is_ext4 = made and _run("mount", "-o", "loop", str(image), str(mounted))
    if not is_ext4 and not _run("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(mounted)):
        pytest.skip("nothing can be mounted here: run the tests as root")
    try:
        yield SmallDisk(mounted, is_ext4)
    finally:
        assert _run("umount", str(mounted)) or _run("umount", "-l", str(mounted))


def _run(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
