"""A backup has the rows of one moment, and brings them into either kind of database."""

import os
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from storage import backup
from storage.database import Database
from storage.errors import StorageError
from storage.schema import metadata
from tests.conftest import Clock
from tests.postgres import PostgresServer
from tests.unit.storage.stored import Stored

Rows = dict[str, list[tuple[Any, ...]]]


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database without a table."""
    url = f"sqlite:///{tmp_path}/new.db"
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        server.drop("restored")
        url = server.create("restored")
    with closing(Database(url)) as database:
        yield database


def rows_of(database: Database) -> Rows:
    with database.reading() as db:
        return {
            table.name: sorted(tuple(row) for row in db.execute(select(table)))
            for table in metadata.sorted_tables
        }


@pytest.fixture
def worked(stored: Stored) -> Stored:
    """A node with a little of everything."""
    stored.ask("k", destinations=("pacs", "viewer"))
    stored.succeed()
    stored.deliver("pacs")
    stored.ask("k2", uids=("1.3",))
    stored.hold()
    return stored


def test_what_was_backed_up_is_there_again(worked: Stored, empty: Database, tmp_path: Path) -> None:
    file = tmp_path / "backup.zip"
    before = rows_of(worked.database)
    made = backup.back_up(worked.database, file, 17.0, secret=b"s", configuration=b"[node]\n")
    assert file.stat().st_mode & 0o777 == 0o600
    assert made.rows["instance"] == 3
    assert (backup.read(file, backup.SECRET), backup.read(file, backup.CONFIGURATION)) == (
        b"s",
        b"[node]\n",
    )
    worked.ask("k3", uids=("1.4",))  # after it
    restored = backup.restore(file, empty)
    assert (restored.made_at, restored.rows) == (17.0, made.rows)
    assert rows_of(empty) == before
    assert empty.is_current()
    assert empty.integrity() == ()


def test_a_restored_database_goes_on_where_it_was(
    worked: Stored, empty: Database, tmp_path: Path, clock: Clock
) -> None:
    backup.back_up(worked.database, tmp_path / "b", 17.0)
    backup.restore(tmp_path / "b", empty)
    again = Stored(empty, worked.files, clock)
    last = max(job.id for job in again.jobs())
    assert again.ask("k4", uids=("1.9",)).job_id == last + 1  # no number is given a second time


def test_the_rows_are_those_of_one_moment_while_others_write(
    stored: Stored, tmp_path: Path, empty: Database
) -> None:
    stop = threading.Event()

    def receive() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            stored.receive(f"1.{number}", series_uid=f"1.2.{number}")

    writer = threading.Thread(target=receive)
    writer.start()
    try:
        made = [backup.back_up(stored.database, tmp_path / f"{n}", 1.0) for n in range(5)]
    finally:
        stop.set()
        writer.join()
    for one in made:  # an instance is of one series and one arrival, whenever it was
        assert one.rows["series"] == one.rows["instance"] == one.rows["arrival_instance"]
    backup.restore(tmp_path / "4", empty)  # each row has what it refers to


def test_nothing_is_restored_over_what_is_there(worked: Stored, tmp_path: Path) -> None:
    backup.back_up(worked.database, tmp_path / "b", 17.0)
    before = rows_of(worked.database)
    with pytest.raises(StorageError, match="the database is not empty"):
        backup.restore(tmp_path / "b", worked.database)
    assert rows_of(worked.database) == before


@pytest.mark.parametrize("where", [0.3, 0.999])
def test_a_backup_that_is_cut_short_or_changed_is_refused_before_anything_is_written(
    worked: Stored, empty: Database, tmp_path: Path, where: float
) -> None:
    file = tmp_path / "b"
    backup.back_up(worked.database, file, 17.0)
    whole = file.read_bytes()
    place = int(len(whole) * where)
    with zipfile.ZipFile(file) as archive:
        of_series = archive.getinfo("tables/series.jsonl")
    at = of_series.header_offset + 100
    for content in (whole[:place], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], b""):
        file.write_bytes(content)
        with pytest.raises(StorageError, match="take another"):
            backup.restore(file, empty)
    with empty.reading() as db:
        query = (
            "SELECT name FROM sqlite_master"
            if empty.is_sqlite
            else "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        )
        assert db.execute(text(query)).all() == []


def test_a_backup_that_fails_leaves_the_one_before_it(worked: Stored, tmp_path: Path) -> None:
    file = tmp_path / "b"
    backup.back_up(worked.database, file, 17.0)
    before = file.read_bytes()
    worked.database.close()
    gone = Database(f"sqlite:///{tmp_path}/no/such/folder.db")
    with pytest.raises(StorageError):
        backup.back_up(gone, file, 18.0)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


@pytest.mark.parametrize("kind", ["database", "folder", "pipe", "link", "device"])
def test_a_backup_takes_the_place_of_nothing_but_a_backup(
    worked: Stored, tmp_path: Path, kind: str
) -> None:
    """The file of a database, or a device that somebody means to write to."""
    target = tmp_path / "target"
    other = tmp_path / "other"
    make: Mapping[str, Callable[[], object]] = {
        "database": lambda: target.write_bytes(b"SQLite format 3\0"),
        "folder": target.mkdir,
        "pipe": lambda: os.mkfifo(target),
        "link": lambda: target.symlink_to(other),
        "device": lambda: target.symlink_to("/dev/null"),
    }
    make[kind]()
    before = target.lstat().st_ino
    with pytest.raises(StorageError, match="is there and is no backup; name another file"):
        backup.back_up(worked.database, target, 0.0, secret=b"", configuration=b"")
    assert target.lstat().st_ino == before
    assert not other.exists()


def test_a_backup_of_a_newer_release_is_refused(
    worked: Stored, empty: Database, tmp_path: Path
) -> None:
    with worked.database.writing() as db:
        db.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    backup.back_up(worked.database, tmp_path / "b", 17.0)
    with worked.database.writing() as db:
        db.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    with pytest.raises(StorageError, match="newer release"):
        backup.restore(tmp_path / "b", empty)
