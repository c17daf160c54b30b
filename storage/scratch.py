"""Folders that are needed for a moment: each is named by its node.

What a dead process left is removed when its node starts again; what other nodes on the same
storage folder work with stays.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.files import Files

UPLOADS = "uploads"  # files that somebody tries the routes on
MADE = "selftest"  # series that self-tests have made


@contextmanager
def folder(files: Files, kind: str, node: str) -> Iterator[Path]:
    """A folder of this node for the length of the block; NoRoom where the disk is too full."""
    files.check_room()
    parent = files.path(kind)
    parent.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_prefix(node), dir=parent) as made:
        yield Path(made)


def sweep(files: Files, kind: str, node: str) -> int:
    """Remove what an earlier process of this node left; returns how many folders."""
    left = list(files.path(kind).glob(f"{_prefix(node)}*"))
    for each in left:
        shutil.rmtree(each, ignore_errors=True)
    return len(left)


def _prefix(node: str) -> str:
    """A node's name has a host and an AE title in it, which may be no part of a path."""
    return f"{hashlib.sha256(node.encode()).hexdigest()[:12]}-"
