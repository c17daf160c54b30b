"""What a dead process left: files get their rows, broken ones go, and nothing good is deleted."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from sqlalchemy import select

from storage.archive import UNKNOWN_AE
from storage.database import Database
from storage.files import Files
from storage.records import DAY, Peer, Received, Recovered
from storage.recovery import recover, reindex, take_over
from storage.retention import expired, purge
from storage.schema import instance, series
from storage.site import notices
from tests.conftest import Clock
from tests.unit.storage.stored import (
    SCANNER,
    STUDY,
    Stored,
    content_of,
    part10,
    read_header,
    received,
)

UNNAMED = Peer(UNKNOWN_AE, UNKNOWN_AE)  # of files whose meta information names nobody


def archived(files: Files) -> list[str]:
    return sorted(
        str(path.relative_to(files.folder)) for path in (files.folder / "received").rglob("*.dcm")
    )


def forget(stored: Stored) -> None:
    """The database is lost, the files are not."""
    with stored.database.writing() as db:
        for table in ("arrival_instance", "arrival", "instance", "series"):
            db.exec_driver_sql(f"DELETE FROM {table}")


def test_a_sealed_file_in_incoming_is_indexed(stored: Stored) -> None:
    file = stored.sealed(content_of(received("1.1")))
    found = recover(stored.archive, read_header)
    assert found.indexed == (f"incoming/{file.name}",)
    (one,) = stored.series()
    assert (one.study_uid, one.instances, one.states) == (STUDY, 1, ("arriving",))
    assert len(archived(stored.files)) == 1
    assert list(stored.files.incoming.iterdir()) == []


WHOLE = part10(content_of(received("1.1")))
DIGEST = blake3(content_of(received("1.1"))).hexdigest()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("1.part", WHOLE),
        ("1.dcm", WHOLE),
        (f"1.{DIGEST[1:]}.dcm", WHOLE),
        (f"1.{DIGEST}.dcm.part", WHOLE),
        (f"1.{DIGEST}.dcm", b""),
        (f"1.{DIGEST}.dcm", WHOLE[:-1]),
        (f"1.{DIGEST}.dcm", WHOLE[:140] + bytes(len(WHOLE) - 140)),
        (f"1.{DIGEST}.dcm", WHOLE + b"\0"),
        (f"1.{DIGEST}.dcm", bytes(4096)),
    ],
)
def test_what_is_not_sealed_or_torn_in_incoming_goes(
    stored: Stored, name: str, content: bytes
) -> None:
    (stored.files.incoming / name).write_bytes(content)
    assert recover(stored.archive, read_header) == Recovered(removed=(f"incoming/{name}",))
    assert list(stored.files.incoming.iterdir()) == []
    assert stored.series() == ()


def test_a_sealed_file_that_cannot_be_read_is_left_for_a_person(stored: Stored) -> None:
    file = stored.sealed(b"odd, yet acknowledged perhaps")
    found = recover(stored.archive, read_header)
    assert found == Recovered(unreadable=(f"incoming/{file.name}",))
    assert list(stored.files.incoming.iterdir()) == [file]


def test_a_recovered_instance_joins_its_arrival_when_the_peer_sends_it_again(
    stored: Stored,
) -> None:
    stored.sealed(content_of(received("1.1")))
    recover(stored.archive, read_header)
    kept = stored.receive("1.1")
    assert not kept.is_new
    assert stored.arrival().instances == 1


def test_a_row_whose_file_lost_its_name_in_the_archive_gets_it_back(stored: Stored) -> None:
    stored.receive("1.1")
    (path,) = archived(stored.files)
    stored.files.path(path).unlink()
    stored.sealed(content_of(received("1.1")))
    assert recover(stored.archive, read_header) == Recovered()
    assert archived(stored.files) == [path]
    assert list(stored.files.incoming.iterdir()) == []
    assert [(one.calling_ae, one.instances) for one in stored.archive.arriving()] == [
        (SCANNER.calling_ae, 1)
    ]


def test_of_two_versions_that_come_back_the_one_that_came_last_is_the_newest(
    stored: Stored,
) -> None:
    versions = [b"first", b"second", b"third", b"fourth"]
    for version in versions[:2]:
        stored.receive("1.1", version=version)
    forget(stored)
    for version in versions[2:]:  # their names in the archive were not on disk yet
        stored.sealed(content_of(received("1.1"), version))
    assert len(recover(stored.archive, read_header).indexed) == 4
    newest = stored.archive.instances(stored.arrival(UNNAMED).id)
    digests = [blake3(content_of(received("1.1"), it)).hexdigest() for it in versions]
    assert [one.digest for one in newest] == digests[::-1]


def test_a_file_that_was_renamed_and_not_committed_is_indexed(stored: Stored) -> None:
    stored.receive("1.1")
    kept_as = archived(stored.files)
    forget(stored)
    assert recover(stored.archive, read_header).indexed == tuple(kept_as)
    assert archived(stored.files) == kept_as
    assert recover(stored.archive, read_header) == Recovered()  # and no second time
    assert stored.receive("1.1").is_new is False


def test_an_unreadable_file_of_the_archive_is_left_for_a_person(stored: Stored) -> None:
    kept = stored.archive.keep(received("1.1"), SCANNER, stored.incoming(b"odd, yet stored"))
    forget(stored)
    (path,) = archived(stored.files)
    assert recover(stored.archive, read_header) == Recovered(unreadable=(path,))
    assert archived(stored.files) == [path]
    assert kept.is_new


def test_files_that_a_purge_did_not_reach_go(stored: Stored) -> None:
    stored.receive("1.1")
    with stored.database.writing() as db:
        db.execute(instance.update().values(path=None))
        db.execute(series.update().values(purged_at=time.time() + 1))
    (path,) = archived(stored.files)
    assert recover(stored.archive, read_header) == Recovered(removed=(path,))
    assert archived(stored.files) == []


def test_only_folders_that_changed_since_the_last_clean_stop_are_looked_at(
    stored: Stored,
) -> None:
    stored.receive("1.1", series_uid="1.2.1")
    stored.receive("1.1", series_uid="1.2.2")
    forget(stored)
    old, new = (stored.files.path(path) for path in archived(stored.files))
    os.utime(old.parent, (1000.0, 1000.0))
    os.utime(new.parent, (9000.0, 9000.0))
    found = recover(stored.archive, read_header, since=5000.0)
    assert found.indexed == (str(new.relative_to(stored.files.folder)),)
    assert len(recover(stored.archive, read_header).indexed) == 1


def test_results_of_dead_attempts_go_and_kept_ones_stay(stored: Stored) -> None:
    stored.ask("k")
    dead = stored.claim()
    stored.derive(dead)
    stored.queue.recover()
    job = stored.succeed()
    foreign = stored.files.make("derived/99-1")
    other = stored.files.make("derived/not ours")
    found = recover(stored.archive, read_header)
    assert found.removed == (f"derived/{dead.id}-1",)
    assert stored.files.path(f"derived/{job.id}-2").is_dir()
    assert foreign.is_dir()
    assert other.is_dir()


def test_the_result_of_a_job_that_runs_on_another_node_stays(stored: Stored) -> None:
    stored.ask("k")
    running = stored.claim()
    stored.derive(running)
    assert recover(stored.archive, read_header) == Recovered()
    assert stored.files.path(f"derived/{running.id}-1").is_dir()


def test_reindex_rebuilds_all_rows_from_the_archive(stored: Stored) -> None:
    for series_uid in ("1.2.1", "1.2.2"):
        for uid in ("1.1", "1.2"):
            stored.receive(uid, series_uid=series_uid)
    before = archived(stored.files)
    forget(stored)
    found = reindex(stored.archive, read_header)
    assert sorted(found.indexed) == before
    assert archived(stored.files) == before
    assert {(one.series_uid, one.instances) for one in stored.series()} == {
        ("1.2.1", 2),
        ("1.2.2", 2),
    }


def test_reindex_tells_of_rows_whose_file_is_gone(stored: Stored) -> None:
    stored.receive("1.1")
    kept = stored.receive("1.2")
    lost = stored.archive.instances(kept.arrival_id)[0].path
    assert lost is not None
    stored.files.path(lost).unlink()
    assert reindex(stored.archive, read_header) == Recovered(missing=(lost,))
    assert [one.instance_uid for one in stored.archive.instances(kept.arrival_id)] == ["1.1"]
    assert stored.receive("1.2").is_new


def test_a_file_under_another_name_comes_to_its_place(stored: Stored) -> None:
    stored.receive("1.1")
    (path,) = archived(stored.files)
    forget(stored)
    file = stored.files.path(path)
    file.rename(file.with_name("restored by hand.dcm"))
    assert len(reindex(stored.archive, read_header).indexed) == 1
    assert archived(stored.files) == [path]


def test_recovery_minds_neither_strange_files_nor_an_empty_archive(stored: Stored) -> None:
    assert recover(stored.archive, read_header) == Recovered()
    (stored.files.folder / "received" / "README").write_text("of the administrator")
    (stored.files.incoming / "folder").mkdir()
    assert recover(stored.archive, read_header) == Recovered()
    assert Path(stored.files.folder / "received" / "README").is_file()


def test_a_purged_series_is_not_brought_back_by_a_restart(stored: Stored) -> None:
    stored.receive("1.1")
    stored.queue.complete(stored.arrival().id, {}, [])
    stored.clock.now += 3 * 86_400
    found = expired(stored.database, stored.clock.now, 7, 1)
    assert purge(stored.database, stored.files, found, stored.clock.now).series == (1,)
    assert recover(stored.archive, read_header) == Recovered()
    assert reindex(stored.archive, read_header) == Recovered()
    assert stored.series()[0].bytes == 0


def raising(path: Path) -> Received | None:
    """A reader that a hostile file brings to its end, in a way that nobody thought of."""
    if b"hostile" in path.read_bytes():
        raise RecursionError("maximum recursion depth exceeded")
    return read_header(path)


def test_a_file_that_breaks_the_reader_is_told_left_and_stops_nothing(stored: Stored) -> None:
    stored.receive("1.1")
    stored.archive.keep(received("1.2"), SCANNER, stored.incoming(b"hostile, yet stored"))
    forget(stored)
    hostile = stored.sealed(b"hostile")
    whole = stored.sealed(content_of(received("1.3")))
    found = recover(stored.archive, raising)
    (kept,) = (path for path in archived(stored.files) if path in found.unreadable)
    assert found.unreadable == (kept, f"incoming/{hostile.name}")
    assert f"incoming/{whole.name}" in found.indexed
    assert len(found.indexed) == 2
    assert found.removed == ()
    assert list(stored.files.incoming.iterdir()) == [hostile]
    assert recover(stored.archive, raising).unreadable == found.unreadable  # and with every start


class SentAgain(Files):
    """A peer sends a lost file again just after somebody saw that it is missing."""

    lost = ""

    def path(self, relative: str) -> Path:
        path = super().path(relative)
        if relative != self.lost:
            return path
        self.lost = ""
        return path.with_name("not there yet")


def test_reindex_forgets_no_file_that_its_peer_has_just_sent_again(
    database: Database, tmp_path: Path, clock: Clock
) -> None:
    files = SentAgain(tmp_path / "var", 0)
    stored = Stored(database, files, clock)
    kept = stored.receive("1.1")
    (files.lost,) = archived(files)
    assert reindex(stored.archive, read_header) == Recovered()
    assert [one.id for one in stored.archive.instances(kept.arrival_id)] == [kept.instance_id]


# The database was lost, or an older copy of it was put back: the archive has files that it does not
# know. Each of them was acknowledged.


def told(stored: Stored) -> list[str]:
    posted = notices.address(stored.database, stored.clock(), (), ())
    return [str(notice.facts["sentence"]) for notice in posted]


def test_files_of_a_lost_database_arrive_once_more_and_people_are_told(stored: Stored) -> None:
    for series_uid in ("1.2.1", "1.2.2"):
        stored.receive(f"{series_uid}.1", series_uid=series_uid)
        stored.receive(f"{series_uid}.2", series_uid=series_uid)
    forget(stored)
    recover(stored.archive, read_header, called_ae="MIDSLICE")
    arrivals = stored.archive.arriving()
    assert [(it.calling_ae, it.called_ae, it.instances) for it in arrivals] == [
        (UNKNOWN_AE, "MIDSLICE", 2)
    ] * 2
    (sentence,) = told(stored)
    assert sentence.startswith("4 received files of 2 series were on disk")
    assert recover(stored.archive, read_header) == Recovered()
    assert told(stored) == []  # it was said


def test_a_file_that_names_its_peer_arrives_from_it(stored: Stored) -> None:
    def with_peer(path: Path) -> Received | None:
        what = read_header(path)
        return what and replace(what, calling_ae="CT1", called_ae="MIDSLICE_X2")

    stored.receive("1.1")
    forget(stored)
    reindex(stored.archive, with_peer, called_ae="MIDSLICE")
    (arrival,) = stored.archive.arriving()
    assert (arrival.calling_ae, arrival.called_ae) == ("CT1", "MIDSLICE_X2")


def test_what_came_back_by_itself_and_no_route_takes_is_kept_for_the_longer_time(
    stored: Stored,
) -> None:
    stored.receive("1.1")
    forget(stored)
    recover(stored.archive, read_header, called_ae="MIDSLICE")
    (arrival,) = stored.archive.arriving()
    stored.queue.complete(arrival.id, {}, [])
    stored.clock.now += 7 * DAY - 1
    assert expired(stored.database, stored.clock.now, 7, 1) == ()
    stored.clock.now += 1
    assert [it.rule for it in expired(stored.database, stored.clock.now, 7, 1)] == ["keep_days"]


def test_what_was_received_again_after_its_purge_survives_an_older_database(
    stored: Stored,
) -> None:
    stored.receive("1.1")
    stored.queue.complete(stored.arrival().id, {}, [])
    stored.purge_all()
    rows = rows_of(stored)
    stored.receive("1.1")  # acknowledged, after the copy of the database was made
    (path,) = archived(stored.files)
    os.utime(stored.files.path(path), (stored.clock.now + 1, stored.clock.now + 1))
    put_back(stored, rows)
    assert recover(stored.archive, read_header).indexed == (path,)
    assert archived(stored.files) == [path]


def test_a_file_that_was_missing_and_is_there_again_is_not_taken_for_a_purged_one(
    stored: Stored,
) -> None:
    stored.receive("1.1")
    (path,) = archived(stored.files)
    file = stored.files.path(path)
    away = file.rename(stored.files.folder / "away")
    assert reindex(stored.archive, read_header).missing == (path,)
    away.rename(file)
    assert recover(stored.archive, read_header).indexed == (path,)


Rows = dict[str, list[dict[str, Any]]]


def rows_of(stored: Stored) -> Rows:
    """A copy of what the database knows of received instances."""
    with stored.database.reading() as db:
        return {
            table.name: [dict(row) for row in db.execute(select(table)).mappings()]
            for table in (series, instance)
        }


def put_back(stored: Stored, rows: Rows) -> None:
    forget(stored)
    with stored.database.writing() as db:
        for table in (series, instance):
            db.execute(table.insert(), rows[table.name])


def of_node(stored: Stored, node: str) -> Stored:
    files = Files(stored.files.folder, 0, node=node)
    return replace(stored, files=files, node=node)


def test_what_a_lost_node_had_sealed_is_kept_by_another_one(
    database: Database, stored: Stored, clock: Clock
) -> None:
    one, two = of_node(stored, "one"), of_node(stored, "two")
    sealed = two.sealed(content_of(received("1.1")))
    cut_short = two.incoming(b"abc").rename(two.files.incoming / "7.part")
    own = one.incoming(b"abc").rename(one.files.incoming / "8.part")
    assert len({one.files.incoming, two.files.incoming, stored.files.incoming}) == 3
    taken = take_over(one.archive, read_header, "two")
    assert len(taken.indexed) == len(taken.removed) == 1
    assert own.exists() and not cut_short.exists() and not sealed.exists()
    (kept,) = one.series()
    assert (kept.instances, kept.states) == (1, ("arriving",))
    assert take_over(one.archive, read_header, "three") == Recovered((), (), ())


def test_what_another_node_moved_this_moment_is_left_to_it(stored: Stored) -> None:
    one = of_node(stored, "one")
    one.receive("1.1")
    forget(one)
    assert recover(one.archive, read_header, are_others_at_work=True).indexed == ()
    assert len(recover(one.archive, read_header).indexed) == 1
