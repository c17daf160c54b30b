"""The storage folder: incoming, received and derived files, scratch folders, the secret.

What makes files durable is here. A received file is its own journal: `Files.seal` gives it a name
in `incoming` that holds the digest of its data set, and brings both to disk with one fsync. From
then on a power cut takes nothing from it: `storage/recovery.py` knows by the digest that it is
whole, and makes again what follows, the name in the archive and the row. `storage/archive.py` does
both after `seal`, and only then does the peer hear Success.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import psutil
from blake3 import blake3

from storage.errors import NoRoom, StorageError

# 128 bytes, "DICM", then (0002,0000) UL: the bytes of the rest of the file meta information.
PREAMBLE_BYTES = 128
BEFORE_LENGTH = b"DICM\x02\x00\x00\x00UL\x04\x00"
HEAD_BYTES = PREAMBLE_BYTES + len(BEFORE_LENGTH) + 4


def data_set_offset(file: BinaryIO) -> int | None:
    """The place of the data set in a file that is read from its begin; None without such a head.

    File meta information before it differs by peer and release; the data set is as it was sent.
    """
    head = file.read(HEAD_BYTES)
    if len(head) < HEAD_BYTES or head[PREAMBLE_BYTES:-4] != BEFORE_LENGTH:
        return None
    return HEAD_BYTES + int.from_bytes(head[-4:], "little")


#     incoming/*.part                               being received: nothing of it was acknowledged
#     incoming/<node>/                              the same of each of several nodes
#     incoming/<number>.<digest>.dcm                sealed: on its way into received, as it is after
#                                                   a power cut; acknowledged where it is whole
#     received/<2 hex>/<series>/<digest>.dcm        one file a version of an instance
#     derived/<job>-<attempt>/                      one folder a derived series
#     secret                                        keys the derived UIDs
#
# No part of a path comes from a peer's text: names are digests and numbers.

StrPath = str | os.PathLike[str]

INCOMING = "incoming"
RECEIVED = "received"
DERIVED = "derived"
SECRET = "secret"  # noqa: S105 - the name of the file

# Scratch folders. What a dead process left there is removed when its node starts again; what other
# nodes on the same storage folder work with stays.
UPLOADS = "uploads"  # files that somebody tries the routes on
MADE = "selftest"  # series that self-tests have made

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
SHORTEST_SECRET = 32
OTHERS = 0o077  # what others may do with a file: nothing

WHOLE = ".dcm"
SEALED = re.compile(r"[^.]+\.([0-9a-f]{64})\.dcm")

# File systems on which the fsync of a file brings the name to disk that it has by then: creating
# and renaming change the file's own inode as well, and the journal keeps the order of changes.
NAMES_LAST_WITH_FILES = frozenset({"ext4", "xfs"})


def file_system(path: Path) -> str:
    """The type of the file system that `path` lies on; empty where nothing says it."""
    path, kind, depth = path.resolve(), "", 0
    for mount in psutil.disk_partitions(all=True):
        point = Path(mount.mountpoint)
        # Of two at one place the later covers the first.
        if path.is_relative_to(point) and len(point.parts) >= depth:
            kind, depth = mount.fstype, len(point.parts)
    return kind


def keep_to_ourselves(folder: Path) -> None:
    """Let nobody else open the storage folder or what lies in it, whatever was allowed before.

    Files that this process and its children make from now on are 0600, folders 0700. Whose folder
    it is not cannot change it; `midslice check` names it.
    """
    os.umask(OTHERS)
    for path in (folder, *folder.iterdir()):
        with contextlib.suppress(OSError):
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & OTHERS and not path.is_symlink():
                path.chmod(mode & ~OTHERS)


class Files:
    """Files on one local disk, each in place only when all of it is.

    What an instance passes uses text for paths: pathlib takes longer to take one apart than the
    system to rename the file.
    """

    def __init__(self, folder: Path, min_free_bytes: int, *, node: str = "") -> None:
        self.folder = folder.absolute()
        self._folder_text = str(self.folder)
        self.min_free_bytes = min_free_bytes
        self.incoming = self.incoming_of(node)
        with _room():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in (INCOMING, RECEIVED, DERIVED):
                (self.folder / name).mkdir(exist_ok=True)
            self.incoming.mkdir(exist_ok=True)
        if self.incoming.stat().st_dev != (self.folder / RECEIVED).stat().st_dev:
            raise StorageError(
                f"{self.incoming} and {self.folder / RECEIVED} lie on different file systems: "
                "a rename between them is not atomic; keep both on one"
            )
        self.names_last = file_system(self.folder) in NAMES_LAST_WITH_FILES
        self._series_folder = lru_cache(maxsize=256)(self.path)  # an association fills one

    def incoming_of(self, node: str) -> Path:
        """What a node is receiving; with several on one folder, each has its own."""
        incoming = self.folder / INCOMING
        return incoming / _prefix(node)[:-1] if node else incoming

    def recently(self, seconds: float) -> float:
        """So many seconds ago, by the clock that gives files their times: a server's, perhaps."""
        with tempfile.NamedTemporaryFile(dir=self.incoming, suffix=".part") as file:
            return os.fstat(file.fileno()).st_ctime - seconds

    def free_bytes(self) -> int:
        """The room that is left on the disk."""
        disk = os.statvfs(self.folder)
        return disk.f_bavail * disk.f_frsize

    def check_room(self) -> None:
        """Raise NoRoom where the disk is below its reserve."""
        free = self.free_bytes()
        if free < self.min_free_bytes:
            raise NoRoom(f"{free / 1e9:.2f} GB free, the reserve is {self.min_free_bytes / 1e9:g}")

    def path(self, relative: str) -> Path:
        """The path of a file column; never outside the storage folder."""
        return Path(self.text_path(relative))

    def text_path(self, relative: str) -> str:
        """The same for each file of every series.

        `pathlib` enters each name into the interpreter's table of names, which grows for hours.
        """
        if relative.startswith("/") or ".." in relative.split("/"):
            raise StorageError(f"{relative!r} is not a path within the storage folder")
        return f"{self._folder_text}/{relative}"

    def received_path(self, study_uid: str, series_uid: str, digest: str) -> str:
        """The place of these bytes of a series."""
        return f"{_series_folder(study_uid, series_uid)}/{digest}.dcm"

    def derived_folder(self, job_id: int, attempt: int) -> str:
        """The folder of the result of a job's attempt."""
        return f"{DERIVED}/{job_id:d}-{attempt:d}"

    def make(self, relative: str) -> Path:
        """An empty folder on disk; what a dead attempt or an older database left there goes."""
        folder = self.path(relative)
        with _room():
            if folder.exists():
                shutil.rmtree(folder)
            self._make_folder(folder)
        return folder

    def seal(self, file: Path, digest: str) -> str:
        """Bring a received file to disk under a name that says what has to be in it; that name."""
        sealed = f"{os.fspath(file).removesuffix(file.suffix)}.{digest}{WHOLE}"
        with _room():
            os.rename(file, sealed)  # noqa: PTH104
            sync(sealed)
        return sealed

    def move(self, temporary: StrPath, relative: str) -> Path:
        """Rename a file into place; returns its folder, which is not fsynced yet.

        Where names last with files it need not be: a sealed file is safe under either name. A
        second call finds the file in place and changes nothing.
        """
        folder, name = os.path.split(relative)
        parent = self._series_folder(folder)
        target = f"{parent}/{name}"
        with _room():
            try:
                os.rename(temporary, target)  # noqa: PTH104
            except FileNotFoundError:
                if os.path.exists(target):  # noqa: PTH110
                    return parent
                if self.names_last:
                    parent.mkdir(parents=True, exist_ok=True)
                else:
                    self._make_folder(parent)
                os.rename(temporary, target)  # noqa: PTH104
        return parent

    def remove(self, relative: str) -> None:
        """Remove a file, or a folder with all that is in it; what is gone already is fine."""
        path = self.path(relative)
        if path.is_dir() and not path.is_symlink():
            _remove_folder(path)
        else:
            path.unlink(missing_ok=True)

    def settle_folder(self, relative: str) -> None:
        """Wait until what was removed from a folder is gone for good; it goes where it is empty."""
        try:
            sync(self.path(relative))
            self.path(relative).rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise

    def secret(self, path: Path | None = None) -> bytes:
        """The site's secret: made once, mode 0600, the same for all of its nodes."""
        file = path or self.folder / SECRET
        try:
            if not file.exists():
                _make_secret(file)
            content = file.read_bytes().strip()
        except OSError as error:
            raise StorageError(f"secret {file}: {error.strerror}") from error
        if len(content) < SHORTEST_SECRET:
            raise StorageError(
                f"secret {file} has {len(content)} characters, at least {SHORTEST_SECRET} are "
                "needed; restore it from the site's backup"
            )
        return content

    def _make_folder(self, folder: Path) -> None:
        """Make a folder whose name survives a crash, with those above it."""
        missing = [level for level in (folder, *folder.parents) if not level.exists()]
        for level in reversed(missing):
            level.mkdir(exist_ok=True)
            sync(level.parent)


@lru_cache(maxsize=256)
def _series_folder(study_uid: str, series_uid: str) -> str:
    name = hashlib.sha256(f"{study_uid}\x1f{series_uid}".encode()).hexdigest()[:40]
    return f"{RECEIVED}/{name[:2]}/{name}"


def _remove_folder(path: Path) -> None:
    """Remove a folder in which a worker may still draw pictures: what is gone takes no more."""
    with contextlib.suppress(FileNotFoundError):
        try:
            shutil.rmtree(path)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            shutil.rmtree(path)


def sync(path: StrPath) -> None:
    """Wait until a file's bytes, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def received_digest(path: Path) -> str:
    """The digest of the data set of a received Part 10 file, as it was sent."""
    with path.open("rb") as file:
        file.seek(data_set_offset(file) or 0)
        return hashlib.file_digest(file, blake3).hexdigest()  # type: ignore[arg-type]


def is_sealed(path: Path) -> bool:
    """True where a file holds what its name says: it is whole, and may have been acknowledged."""
    sealed = SEALED.fullmatch(path.name)
    return sealed is not None and received_digest(path) == sealed.group(1)


def digest(path: Path | str) -> str:
    """The digest of a whole file."""
    with open(path, "rb") as file:  # noqa: PTH123 - see `Files.text_path`
        return hashlib.file_digest(file, blake3).hexdigest()  # type: ignore[arg-type]


def put_secret(path: Path, secret: bytes) -> bool:
    """Make this the secret of the site; False where there is another one."""
    try:
        if not path.exists():
            _make_secret(path, secret)
        return path.read_bytes().strip() == secret.strip()
    except OSError as error:
        raise StorageError(f"secret {path}: {error.strerror}") from error


def fingerprint(secret: bytes) -> str:
    """Digest a secret: it tells one from another and gives neither away."""
    return hashlib.sha256(b"midslice secret\x1f" + secret).hexdigest()


def _make_secret(file: Path, secret: bytes = b"") -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write((secret or secrets.token_hex(32).encode()) + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        # A link, unlike a rename, never replaces the secret of a node that was faster.
        file.hardlink_to(temporary)
    except FileExistsError:
        return
    finally:
        temporary.unlink(missing_ok=True)
    sync(file.parent)


@contextmanager
def _room() -> Iterator[None]:
    """Say NoRoom where the disk says that it is full."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise NoRoom(f"the disk is full: {error.strerror}") from error
        raise


@contextmanager
def scratch_folder(files: Files, kind: str, node: str) -> Iterator[Path]:
    """A folder of this node for the length of the block; NoRoom where the disk is too full."""
    files.check_room()
    parent = files.path(kind)
    parent.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_prefix(node), dir=parent) as folder:
        yield Path(folder)


def sweep_scratch(files: Files, kind: str, node: str) -> int:
    """Remove what an earlier process of this node left; returns how many folders."""
    left = list(files.path(kind).glob(f"{_prefix(node)}*"))
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)
    return len(left)


def _prefix(node: str) -> str:
    """A node's name has a host and an AE title in it, which may be no part of a path."""
    return f"{hashlib.sha256(node.encode()).hexdigest()[:12]}-"
