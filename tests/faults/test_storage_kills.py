"""`kill -9` at the worst moments, on real processes: nothing acknowledged is lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from storage.database import Database
from storage.files import Files, received_digest
from storage.records import JobState
from storage.recovery import recover
from tests.unit.storage.stored import INFER, Stored, later_release, read_header

ROOT = Path(__file__).parents[2]
SECONDS = 60.0


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tests.faults.doomed", *map(str, arguments)]


def killed(*arguments: object) -> None:
    """Run one that kills itself."""
    done = subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr


@contextmanager
def reopened(folder: Path) -> Iterator[Stored]:
    """The node starts again."""
    database = Database.for_folder(folder)
    database.migrate()
    yield Stored(database, Files(folder, 0), time.time)  # type: ignore[arg-type]  # a real clock
    assert database.integrity() == ()
    database.close()


def paths(stored: Stored) -> set[str]:
    """Where the rows say that instances are."""
    with stored.database.reading() as db:
        return {row[0] for row in db.exec_driver_sql("SELECT path FROM instance")}


def on_disk(stored: Stored) -> set[str]:
    archive = stored.files.folder / "received"
    return {str(path.relative_to(stored.files.folder)) for path in archive.rglob("*.dcm")}


def test_a_kill_between_write_and_commit_loses_nothing_and_leaves_no_litter(
    tmp_path: Path,
) -> None:
    with reopened(tmp_path):
        pass
    killed("keep_one", tmp_path)
    with reopened(tmp_path) as stored:
        assert len(on_disk(stored)) == 1
        assert paths(stored) == set()  # a file without a row, and no row without a file
        assert recover(stored.archive, read_header).indexed == tuple(on_disk(stored))
        assert paths(stored) == on_disk(stored)
        assert stored.receive("1.1").is_new is False  # its peer heard nothing, and sends it again
        assert stored.arrival().instances == 1


def test_a_kill_between_claim_and_finish_runs_the_job_again(tmp_path: Path) -> None:
    with reopened(tmp_path) as stored:
        stored.ask("k")
    killed("claim_one", tmp_path)
    with reopened(tmp_path) as stored:
        (left,) = stored.jobs(JobState.RUNNING)
        assert (left.attempt, left.progress) == (1, 0.5)
        assert stored.queue.claim("w", INFER) is None  # its lease has not run out
        assert stored.queue.recover() == (left.id,)
        again = stored.claim()
        assert (again.attempt, again.abandoned, again.worker_deaths) == (2, 1, 0)
        ended = stored.queue.succeed(again, stored.derive(again))
        assert ended.state is JobState.SUCCEEDED


@pytest.mark.parametrize("statements", [2, 9, 25, 36])
def test_a_kill_in_a_migration_leaves_the_database_as_it_was(
    tmp_path: Path, statements: int
) -> None:
    killed("migrate", tmp_path, statements)
    database = Database.for_folder(tmp_path)
    with database.reading() as db:
        assert db.exec_driver_sql("SELECT name FROM sqlite_master").all() == []
    database.close()
    with reopened(tmp_path) as stored:
        assert stored.database.is_current()
        stored.ask("k")
        assert stored.claim().key == "k"


@pytest.mark.parametrize("statements", [2, 5, 9])
def test_a_kill_in_a_later_migration_leaves_the_schema_and_the_rows_of_before(
    tmp_path: Path, statements: int
) -> None:
    with reopened(tmp_path / "var") as stored:
        stored.ask("k")
    scripts = later_release(tmp_path)
    killed("migrate", tmp_path / "var", statements, scripts)
    with reopened(tmp_path / "var") as stored:
        assert stored.database.is_current()
        assert stored.claim().key == "k"
        stored.database.migrate(scripts)
        with stored.database.reading() as db:
            assert db.execute(text("SELECT body_part, modality FROM series")).all() == [("-", "CT")]


def test_what_was_acknowledged_before_a_kill_is_there_after_it(tmp_path: Path) -> None:
    with reopened(tmp_path):
        pass
    acknowledged: set[str] = set()
    for count in (1, 7, 23):
        process = subprocess.Popen(
            command("keep_many", tmp_path), cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        acknowledged |= {process.stdout.readline().strip() for _ in range(count)}
        os.kill(process.pid, signal.SIGKILL)
        # What it said before it died was kept too.
        rest = process.stdout.read().splitlines(keepends=True)
        acknowledged |= {line.strip() for line in rest if line.endswith("\n")}
        process.stdout.close()
        assert process.wait(SECONDS) == -signal.SIGKILL
        with reopened(tmp_path) as stored:
            assert paths(stored) <= on_disk(stored)
            recover(stored.archive, read_header)
            assert paths(stored) == on_disk(stored)
            kept = stored.archive.instances(stored.arrival().id)
            assert acknowledged <= {one.instance_uid for one in kept}
            for one in kept:
                assert one.path is not None
                file = stored.files.path(one.path)
                assert (received_digest(file), file.stat().st_size) == (one.digest, one.size)
            assert list(stored.files.incoming.iterdir()) == []
