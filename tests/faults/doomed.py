"""Processes that are killed at the worst moment: run as `python -m tests.faults.doomed`."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Engine, event

from storage.archive import Archive
from storage.database import Database
from storage.files import Files
from storage.jobs import Queue
from storage.leases import Holder
from storage.migrations import FOLDER
from tests.unit.storage.stored import INFER, SCANNER, content_of, part10, received


def die() -> None:
    """As a power cut does it: no handler, no `finally`, no flush."""
    os.kill(os.getpid(), signal.SIGKILL)


class KilledAfterRename(Files):
    """The node dies when the file has its name and the database does not know it yet."""

    def move(self, temporary: Path, relative: str) -> Path:
        super().move(temporary, relative)
        die()
        raise AssertionError("a killed process goes on")


def keep_one(folder: Path) -> None:
    """Dies between write and commit."""
    database = Database.for_folder(folder)
    files = KilledAfterRename(folder, 0)
    what = received("1.1")
    file = files.incoming / "1.dcm"
    file.write_bytes(part10(content_of(what)))
    Archive(database, files, time.time).keep(what, SCANNER, file)


def keep_many(folder: Path) -> None:
    """Says each instance that is kept; somebody else kills it at any moment."""
    database = Database.for_folder(folder)
    files = Files(folder, 0)
    archive = Archive(database, files, time.time)
    begin = len(list((folder / "received").rglob("*.dcm")))
    for number in range(begin, begin + 10_000):
        what = received(f"1.{number}")
        file = files.incoming / f"{number}.dcm"
        file.write_bytes(part10(content_of(what, b"x" * 50_000)))
        archive.keep(what, SCANNER, file)
        sys.stdout.write(f"1.{number}\n")
        sys.stdout.flush()


def claim_one(folder: Path) -> None:
    """Dies between claim and finish."""
    queue = Queue(Database.for_folder(folder), Holder("one", time.time, 60.0))
    job = queue.claim("w", INFER)
    assert job is not None
    queue.renew(job, 0.5)
    die()


def migrate(folder: Path, after: str, scripts: str = str(FOLDER)) -> None:
    """Dies in a migration to the newest of these scripts, after so many statements."""
    left = int(after)

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            die()

    event.listen(Engine, "after_cursor_execute", count)
    Database.for_folder(folder).migrate(Path(scripts))


if __name__ == "__main__":
    _, what_dies, where, *arguments = sys.argv
    DEATHS: dict[str, Callable[..., None]] = {
        "keep_one": keep_one,
        "keep_many": keep_many,
        "claim_one": claim_one,
        "migrate": migrate,
    }
    DEATHS[what_dies](Path(where), *arguments)
