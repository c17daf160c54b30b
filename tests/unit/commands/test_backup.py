"""`backup` and `restore`: what a node knows survives the loss of its disk."""

import fcntl
import shutil
from functools import partialmethod
from pathlib import Path

import pytest

from node.commands.terminal import opened
from storage import migrations
from storage.database import FILE_NAME, Database
from storage.records import JobState
from tests.conftest import Clock
from tests.unit.commands.console import Midslice
from tests.unit.storage.stored import Stored, later_release


@pytest.fixture
def backed_up(midslice: Midslice, tmp_path: Path, clock: Clock) -> Path:
    """The backup of a node with one held job."""
    with opened(tmp_path / "config.toml") as store:
        stored = Stored(store.database, store.files, clock)
        stored.ask("k")
        stored.hold()
    result = midslice("backup", "backup.zip")
    assert (result.status, result.err) == (0, "")
    assert "secret and configuration" in result.out
    return tmp_path / "backup.zip"


def states(folder: Path) -> list[JobState]:
    with opened(folder / "config.toml") as store:
        return [store.queue.get(1).state]


def test_a_lost_folder_comes_back_from_a_backup(
    midslice: Midslice, tmp_path: Path, backed_up: Path
) -> None:
    secret = (tmp_path / "var" / "secret").read_text()
    shutil.rmtree(tmp_path / "var")
    (tmp_path / "config.toml").unlink()
    result = midslice("restore", backed_up)
    assert (result.status, result.err) == (0, "")
    assert "config.toml is written" in result.out
    assert "2 are gone since" in result.out  # a backup has no images
    assert (tmp_path / "var" / "secret").read_text() == secret
    assert (tmp_path / "config.toml").stat().st_mode & 0o777 == 0o600
    assert states(tmp_path) == [JobState.HELD]


@pytest.mark.parametrize("damage", [b"no database at all", b""])
def test_a_damaged_database_says_what_to_do_and_is_moved_aside(
    midslice: Midslice, tmp_path: Path, backed_up: Path, damage: bytes
) -> None:
    file = tmp_path / "var" / FILE_NAME
    file.write_bytes(damage * 1000)
    if damage:
        result = midslice("jobs")
        assert result.status == 1
        assert "midslice restore FILE" in result.err
        assert result.err.count("\n") == 1
    result = midslice("restore", backed_up)
    assert (result.status, result.err) == (0, "")
    (aside,) = (tmp_path / "var").glob(f"{FILE_NAME}.before-*")
    assert aside.read_bytes() == damage * 1000
    assert states(tmp_path) == [JobState.HELD]
    assert "0 files of the archive were received since" in result.out


def test_pages_of_a_database_that_were_overwritten_say_what_to_do(
    midslice: Midslice, tmp_path: Path, backed_up: Path
) -> None:
    file = tmp_path / "var" / FILE_NAME
    content = bytearray(file.read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    file.write_bytes(content)
    result = midslice("jobs")
    assert result.status == 1
    assert "the database is damaged (SQLITE_CORRUPT" in result.err


def test_what_was_received_after_the_backup_arrives_once_more(
    midslice: Midslice, tmp_path: Path, backed_up: Path, clock: Clock
) -> None:
    with opened(tmp_path / "config.toml") as store:
        Stored(store.database, store.files, clock, numbers=lambda: 99).receive("1.7")
    result = midslice("restore", backed_up)
    # Made by the test, its content is no DICOM: it stays where it is, and people are told.
    assert result.status == 0
    assert len(list((tmp_path / "var" / "received").rglob("*.dcm"))) == 3
    assert "2 are gone" not in result.out


def test_a_running_node_is_never_restored(
    midslice: Midslice, tmp_path: Path, backed_up: Path
) -> None:
    with (tmp_path / "var" / "node-1.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = midslice("restore", backed_up)
    assert result.status == 2
    assert "a node is running" in result.err
    assert list((tmp_path / "var").glob(f"{FILE_NAME}.before-*")) == []


def test_another_secret_is_never_replaced(
    midslice: Midslice, tmp_path: Path, backed_up: Path
) -> None:
    (tmp_path / "var" / "secret").write_text("x" * 64)
    result = midslice("restore", backed_up)
    assert result.status == 2
    assert "another secret" in result.err
    assert (tmp_path / "var" / "secret").read_text() == "x" * 64


def test_what_is_no_backup_changes_nothing(midslice: Midslice, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"PK")
    result = midslice("restore", "x")
    assert result.status == 1
    assert "x is no backup" in result.err
    assert list((tmp_path / "var").glob(f"{FILE_NAME}.before-*")) == []


def test_a_migration_is_preceded_by_a_copy_that_can_be_restored(
    midslice: Midslice, tmp_path: Path, backed_up: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = later_release(tmp_path)
    with opened(tmp_path / "config.toml") as store:
        before = store.database.revision()
    monkeypatch.setattr(migrations, "FOLDER", scripts)  # the later release starts
    monkeypatch.setattr(Database, "migrate", partialmethod(Database.migrate, scripts))
    with opened(tmp_path / "config.toml") as store:
        assert store.database.revision() == "9998"
    (copy,) = (tmp_path / "var").glob("midslice-before-*.zip")
    assert copy.name == f"midslice-before-{before}.zip"
    monkeypatch.undo()  # the release before is put back, and has a database that is too new
    monkeypatch.chdir(tmp_path)
    assert midslice("jobs").status == 1
    assert midslice("restore", copy).status == 0
    assert states(tmp_path) == [JobState.HELD]


def test_a_new_database_needs_no_copy(first_command: Midslice, tmp_path: Path) -> None:
    assert first_command("jobs").status == 0
    assert list((tmp_path / "var").glob("midslice-before-*")) == []
