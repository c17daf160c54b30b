"""A power cut takes what was written and not synced: rows and names, and never a sealed file.

Simulated on what a node leaves on disk: the write-ahead log ends anywhere after its last sync, the
newest names in the archive are those of `incoming` again, and a file that was not sealed is torn.
"""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from storage.database import FILE_NAME, Database
from storage.files import Files, received_digest
from storage.recovery import recover
from tests.conftest import Clock
from tests.unit.storage.stored import Stored, content_of, part10, read_header, received

LOG = f"{FILE_NAME}-wal"
SERIES = ("1.2.1", "1.2.2", "1.2.3")
TORN = (b"", bytes(4096), part10(content_of(received("9.9")))[:-4])


@dataclass
class Disk:
    """The storage folder of a node that receives, and what of it a power cut cannot take."""

    stored: Stored
    folder: Path
    drawn: random.Random
    kept: list[str] = field(default_factory=list)  # places in the archive, in their order
    acknowledged: set[tuple[str, str]] = field(default_factory=set)
    log_bytes: int = 0  # of the write-ahead log that the last sync has brought to disk

    def receive(self, count: int) -> None:
        """Keep so many instances; each is acknowledged."""
        for _ in range(count):
            number = len(self.kept)
            uid, series_uid = f"1.{number}", self.drawn.choice(SERIES)
            kept = self.stored.receive(uid, series_uid=series_uid)
            (version,) = (
                it
                for it in self.stored.archive.instances(kept.arrival_id)
                if it.instance_uid == uid
            )
            assert version.path is not None
            self.kept.append(version.path)
            self.acknowledged.add((uid, version.digest))

    def sync(self) -> None:
        """Another transaction is committed, and with it all rows before."""
        number = self.stored.archive.associated("SCANNER", "MIDSLICE", "10.0.0.7")
        self.stored.archive.dissociated(number, "released")
        self.log_bytes = (self.folder / LOG).stat().st_size

    def after_a_cut(self, names: int, torn: bytes) -> Path:
        """What is left where the newest `names` names and part of the log were not on disk."""
        left = self.folder.with_name("left")
        shutil.copytree(self.folder, left)
        log = (left / LOG).read_bytes()
        (left / LOG).write_bytes(log[: self.drawn.randint(self.log_bytes, len(log))])
        (left / f"{FILE_NAME}-shm").unlink()
        for number, place in enumerate(self.kept[len(self.kept) - names :]):
            file = left / place
            file.rename(left / "incoming" / f"{number:032x}.{file.stem}.dcm")
        (left / "incoming" / f"{'a' * 32}.{'b' * 64}.dcm").write_bytes(torn)
        (left / "incoming" / f"{'c' * 32}.part").write_bytes(torn)
        return left


def sqlite_files(folder: Path, migrated: Path) -> Database:
    folder.mkdir()
    (folder / FILE_NAME).write_bytes(migrated.read_bytes())
    return Database(f"sqlite:///{folder / FILE_NAME}")


@pytest.mark.parametrize("torn", TORN, ids=["empty", "zeros", "cut short"])
@pytest.mark.parametrize("seed", range(8))
def test_what_was_acknowledged_is_there_after_a_cut_and_nothing_torn(
    tmp_path: Path, migrated_sqlite: Path, clock: Clock, seed: int, torn: bytes
) -> None:
    drawn = random.Random(seed)
    folder = tmp_path / "var"
    database = sqlite_files(folder, migrated_sqlite)
    disk = Disk(Stored(database, Files(folder, 0), clock), folder, drawn)
    disk.receive(drawn.randint(0, 10))
    disk.sync()
    disk.receive(drawn.randint(1, 20))
    left = disk.after_a_cut(drawn.randint(0, len(disk.kept)), torn)
    database.close()
    again = Database(f"sqlite:///{left / FILE_NAME}")
    stored = Stored(again, Files(left, 0), clock)
    found = recover(stored.archive, read_header, called_ae="MIDSLICE")
    assert len(found.removed) == 2
    assert (found.unreadable, again.integrity()) == ((), ())
    with again.reading() as db:
        rows = db.exec_driver_sql("SELECT instance_uid, digest, path FROM instance").all()
    assert {(uid, digest) for uid, digest, _ in rows} == disk.acknowledged
    assert all(received_digest(left / path) == digest for _, digest, path in rows)
    assert list(stored.files.incoming.iterdir()) == []
    again.close()


def test_that_the_same_came_once_more_is_not_taken_by_a_cut(
    tmp_path: Path, migrated_sqlite: Path, clock: Clock
) -> None:
    folder = tmp_path / "var"
    database = sqlite_files(folder, migrated_sqlite)
    synced: list[int] = []
    settle: Callable[[], None] = database.settle

    def settled() -> None:
        settle()
        synced.append((folder / LOG).stat().st_size)

    database.settle = settled  # type: ignore[method-assign]  # notes how far the sync reached
    stored = Stored(database, Files(folder, 0), clock)
    stored.receive("1.1")
    assert synced == []
    stored.receive("1.1")  # no file says that it came twice
    assert synced == [(folder / LOG).stat().st_size]
    database.close()
