"""A purge that was interrupted is finished by the next sweep, and takes nothing that came again."""

from pathlib import Path

import pytest
from sqlalchemy import select

from storage import retention
from storage.database import Database
from storage.errors import WrongState
from storage.files import Files
from storage.records import DAY, Purged, Recovered
from storage.retention import expired, purge
from storage.schema import instance
from tests.conftest import Clock
from tests.unit.storage.purging import files_of, old, sweep
from tests.unit.storage.stored import Stored, read_header


class Killed(BaseException):
    """Nobody catches it: the process ends here."""


class DiesRemoving(Files):
    """The node dies when it has removed so many files."""

    left = 1_000_000

    def remove(self, relative: str) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1
        super().remove(relative)


@pytest.fixture
def doomed(
    database: Database, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> Stored:
    """A series of 13 instances without a route, old enough to go; 10 files go at once."""
    monkeypatch.setattr(retention, "FILES_AT_ONCE", 10)
    stored = Stored(database, DiesRemoving(tmp_path / "var", 0), clock)
    for number in range(13):
        stored.receive(f"1.{number}")
    stored.queue.complete(stored.arrival().id, {}, [])
    clock.now += 2 * DAY
    return stored


def dies(stored: Stored, after: int) -> None:
    """Begin to purge, and die; then the node starts again, long after the last clean stop."""
    assert isinstance(stored.files, DiesRemoving)
    stored.files.left = after
    with pytest.raises(Killed):
        sweep(stored)
    stored.files.left = 1_000_000
    assert stored.archive.recover(read_header, since=4e9) == Recovered()


def dangling(stored: Stored) -> list[str]:
    """Rows that name a file which is not there."""
    with stored.database.reading() as db:
        paths = db.execute(select(instance.c.path).where(instance.c.path.is_not(None))).scalars()
        return [path for path in paths if not stored.files.path(path).exists()]


@pytest.mark.parametrize("after", [0, 1, 9, 10, 12])
def test_a_purge_that_a_crash_interrupted_goes_on_with_the_next_sweep(
    doomed: Stored, after: int
) -> None:
    dies(doomed, after)
    assert len(files_of(doomed)) == 13 - after
    assert dangling(doomed) == []
    (marked,) = expired(doomed.database, doomed.clock.now, 1000, 1000)  # no days save it now
    assert purge(doomed.database, doomed.files, [marked], doomed.clock.now).series == (1,)
    assert files_of(doomed) == []
    assert doomed.archive.series()[0].bytes == 0
    assert old(doomed) == ()


def test_what_is_sent_again_after_an_interrupted_purge_stays(doomed: Stored) -> None:
    dies(doomed, 11)
    assert doomed.receive("1.0").is_new
    assert not doomed.receive("1.12").is_new
    doomed.queue.complete(doomed.arrival().id, {}, [])
    assert old(doomed) == ()
    assert len(files_of(doomed)) == 3
    assert dangling(doomed) == []


def test_the_received_and_the_derived_series_go_together_after_a_crash(
    database: Database, tmp_path: Path, clock: Clock
) -> None:
    stored = Stored(database, DiesRemoving(tmp_path / "var", 0), clock)
    stored.ask("k", destinations=())
    stored.succeed()
    stored.clock.now += 8 * DAY
    stored.files.left = 0  # type: ignore[attr-defined]  # of DiesRemoving
    with pytest.raises(Killed):
        sweep(stored)
    stored.files.left = 10  # type: ignore[attr-defined]
    assert len(files_of(stored)) == 4
    assert sweep(stored).series == (1,)
    assert files_of(stored) == []


class SendsAgain(Files):
    """A peer sends an instance again when the purge has begun and no received file is gone yet."""

    stored: Stored | None = None

    def remove(self, relative: str) -> None:
        if self.stored is not None and relative.startswith("derived/"):
            self.stored.receive("1.1")
        super().remove(relative)


def test_what_is_sent_again_within_a_purge_stays(
    database: Database, tmp_path: Path, clock: Clock
) -> None:
    files = SendsAgain(tmp_path / "var", 0)
    stored = Stored(database, files, clock)
    stored.ask("k", destinations=())
    stored.succeed()
    clock.now += 8 * DAY
    files.stored = stored
    sweep(stored)
    assert len(stored.archive.instances(stored.arrival().id)) == 2
    assert len(files_of(stored)) == 2
    assert dangling(stored) == []
    assert stored.complete("k").what == "requeued"  # what was made of it is gone


def test_a_job_is_not_requeued_on_files_that_are_about_to_go(doomed: Stored) -> None:
    doomed.receive("1.0")
    job_id = doomed.complete("k").job_id
    doomed.queue.fail(doomed.claim(), "ValueError", "No.")
    doomed.clock.now += 2 * DAY
    dies(doomed, 0)
    with pytest.raises(WrongState, match="received files were removed on .* send the series again"):
        doomed.queue.requeue(job_id)


def test_a_file_that_cannot_be_removed_is_tried_again_and_stops_no_other(doomed: Stored) -> None:
    with doomed.database.writing() as db:
        one = instance.c.instance_uid == "1.7"
        (good,) = db.execute(select(instance.c.path).where(one)).scalars()
        db.execute(instance.update().where(one).values(path="../outside.dcm"))
    assert sweep(doomed) == Purged(failed=(1,))
    assert files_of(doomed) == [doomed.files.path(str(good))]
    with doomed.database.writing() as db:
        db.execute(instance.update().where(one).values(path=good))
    assert sweep(doomed).series == (1,)
    assert files_of(doomed) == []
