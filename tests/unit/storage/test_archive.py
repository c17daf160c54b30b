"""What peers send is kept, belongs to its arrival, and is found again."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3
from sqlalchemy import func, insert, select, update

from storage.archive import Archive, Group, GroupCommit
from storage.database import Database
from storage.errors import Busy, NoRoom, NotFound, StorageError
from storage.files import Files
from storage.queries.find import Wanted, find_series
from storage.records import Enqueued, Instance, JobState, KeptInstance, Peer
from storage.schema import fact, series
from tests.conftest import Clock
from tests.unit.storage.stored import (
    SCANNER,
    SERIES,
    STUDY,
    Stored,
    content_of,
    part10,
    received,
)

WORKSTATION = Peer("WORKSTATION", "MIDSLICE")


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_kept_instance_is_on_disk_and_in_the_index(stored: Stored) -> None:
    kept = stored.receive("1.1")
    assert kept.is_new
    (instance,) = stored.archive.instances(kept.arrival_id)
    assert (instance.id, instance.instance_uid) == (kept.instance_id, "1.1")
    assert instance.received_at == stored.clock.now
    content = content_of(received("1.1"))
    assert instance.digest == blake3(content).hexdigest()
    assert instance.path is not None
    file = stored.files.path(instance.path)
    assert file.read_bytes() == part10(content)
    assert file.stat().st_size == instance.size
    assert files_in(stored.files.incoming) == []


def test_a_path_is_made_of_digests_and_never_of_a_peers_text(stored: Stored) -> None:
    what = received("../../1.1", "../../../etc/passwd", "/root")
    kept = stored.archive.keep(what, SCANNER, stored.incoming(b"x"))
    (instance,) = stored.archive.instances(kept.arrival_id)
    assert instance.path is not None
    top, group, series, name = instance.path.split("/")
    assert top == "received"
    assert group == series[:2]
    assert set(group + series + name.removesuffix(".dcm")) <= set("0123456789abcdef")


def test_the_same_bytes_are_stored_once_and_count_for_each_arrival(stored: Stored) -> None:
    first = stored.receive("1.1")
    again = stored.receive("1.1")
    other = stored.receive("1.1", peer=WORKSTATION)
    assert again == KeptInstance(first.instance_id, first.arrival_id, is_new=False)
    assert (other.instance_id, other.is_new) == (first.instance_id, False)
    assert other.arrival_id != first.arrival_id
    assert len(files_in(stored.files.folder / "received")) == 1
    assert files_in(stored.files.incoming) == []
    assert [one.instances for one in stored.archive.arriving()] == [1, 1]


def test_another_file_header_does_not_make_another_version(stored: Stored) -> None:
    what = received("1.1")
    for number, meta in enumerate((b"of a scanner", b"of a PACS, and longer")):
        file = stored.files.incoming / f"{number}.dcm"
        file.write_bytes(part10(content_of(what), meta))
        assert stored.archive.keep(what, SCANNER, file).is_new is (number == 0)


def test_other_bytes_under_the_same_uid_are_kept_beside_the_first(stored: Stored) -> None:
    first = stored.receive("1.1")
    stored.clock.now += 1
    second = stored.receive("1.1", version=b"reconciled")
    assert second.is_new
    assert second.instance_id != first.instance_id
    versions = stored.archive.instances(first.arrival_id)
    assert [one.id for one in versions] == [second.instance_id, first.instance_id]  # newest first
    assert len(files_in(stored.files.folder / "received")) == 2
    assert stored.series()[0].instances == 1


def test_a_duplicate_restarts_the_quiet_period(stored: Stored) -> None:
    stored.receive("1.1")
    begin = stored.clock.now
    stored.clock.now += 29
    stored.receive("1.1")
    arrival = stored.arrival()
    assert (arrival.first_at, arrival.last_at) == (begin, begin + 29)


def test_after_an_arrival_is_complete_the_next_instance_opens_another(stored: Stored) -> None:
    first = stored.receive("1.1")
    stored.queue.complete(first.arrival_id, {}, [])
    late = stored.receive("1.2")
    assert late.arrival_id != first.arrival_id
    assert stored.arrival().instances == 1
    found = stored.archive.instances(late.arrival_id)
    assert {one.instance_uid for one in found} == {"1.1", "1.2"}  # of all its arrivals


def test_instances_of_another_peer_do_not_belong_to_an_arrival(stored: Stored) -> None:
    mine = stored.receive("1.1")
    stored.receive("1.2", peer=WORKSTATION)
    stored.receive("1.3", peer=Peer("SCANNER", "OTHER_AE"))
    stored.receive("1.4", series_uid="1.2.3.5")
    (found,) = stored.archive.instances(mine.arrival_id)
    assert found.instance_uid == "1.1"


def test_an_arrival_knows_how_its_associations_ended(stored: Stored) -> None:
    ends = ["released", "released", "aborted", "dropped", None]
    for how in ends:
        association = stored.archive.associated("SCANNER", "MIDSLICE", "10.0.0.7")
        stored.receive("1.1", peer=Peer("SCANNER", "MIDSLICE", association))
        stored.receive("1.1", peer=Peer("SCANNER", "MIDSLICE", association))
        if how is not None:
            stored.archive.dissociated(association, how)
    arrival = stored.arrival()
    assert (arrival.open_associations, arrival.released, arrival.aborted) == (1, 2, 2)


def test_the_first_end_of_an_association_counts(stored: Stored) -> None:
    association = stored.archive.associated("SCANNER", "MIDSLICE", "10.0.0.7")
    stored.receive("1.1", peer=Peer("SCANNER", "MIDSLICE", association))
    stored.archive.dissociated(association, "aborted")
    stored.archive.dissociated(association, "released")
    assert (stored.arrival().aborted, stored.arrival().released) == (1, 0)


def test_associations_of_a_dead_process_end_as_lost(stored: Stored) -> None:
    other = Archive(stored.database, stored.files, stored.clock, node="two")
    mine = stored.archive.associated("SCANNER", "MIDSLICE", "10.0.0.7")
    theirs = other.associated("SCANNER", "MIDSLICE", "10.0.0.7")
    for association in (mine, theirs):
        stored.receive("1.1", peer=Peer("SCANNER", "MIDSLICE", association))
    assert stored.archive.lose_associations() == 1
    arrival = stored.arrival()
    assert (arrival.aborted, arrival.open_associations) == (1, 1)


def test_a_rejected_association_is_written_down_whatever_the_peer_calls_itself(
    stored: Stored,
) -> None:
    stored.archive.rejected("X" * 40, "Y" * 40, "z" * 99, "calling AE title not recognised, sorry")
    assert stored.archive.lose_associations() == 0  # it never was open


def test_a_result_that_comes_back_is_known_by_series_or_instance(stored: Stored) -> None:
    stored.ask("k")
    stored.succeed("2.25.1")
    stored.receive("9.9", series_uid="2.25.1")
    stored.receive("2.25.1.0", series_uid="2.25.77")  # a PACS gave it another series
    stored.receive("9.8", series_uid="1.2.3.9")
    own = {one.series_uid: one.own for one in stored.archive.arriving()}
    assert own == {"2.25.1": True, "2.25.77": True, "1.2.3.9": False}


def test_an_arrival_stays_own_when_a_foreign_instance_joins_it(stored: Stored) -> None:
    stored.ask("k")
    stored.succeed("2.25.1")
    for uid in ("9.0", "2.25.1.1", "9.1"):
        stored.receive(uid, series_uid="2.25.88")
    assert stored.arrival(series_uid="2.25.88").own


def test_a_series_uid_in_two_studies_is_told(stored: Stored) -> None:
    first = stored.receive("1.1")
    stored.receive("1.1", study_uid="9.9")
    arrival = stored.archive.arrival(first.arrival_id)
    assert stored.archive.other_studies(arrival) == ("9.9",)
    assert {one.study_uid for one in stored.archive.series_by_uid(SERIES)} == {STUDY, "9.9"}
    assert stored.archive.series_by_uid("7.7") == ()


def test_the_other_series_of_a_study_are_told_without_results_of_the_node(stored: Stored) -> None:
    stored.ask("k", uids=("1.1",))
    stored.succeed("2.25.1")
    for series_uid, study_uid in (("2.25.1", STUDY), ("1.2.5", STUDY), ("1.2.6", "9.9")):
        stored.receive(f"{series_uid}.1", series_uid=series_uid, study_uid=study_uid)
    stored.receive("1.2")
    beside = stored.archive.beside(stored.arrival())
    assert [[one.instance_uid for one in instances] for instances in beside] == [["1.2.5.1"]]


def test_what_only_other_peers_brought_of_a_series_is_told(stored: Stored) -> None:
    stored.receive("1.1")
    stored.receive("1.1", version=b"corrected", peer=WORKSTATION)
    stored.receive("1.2", peer=WORKSTATION)
    mine = stored.arrival()
    assert [one.instance_uid for one in stored.archive.brought_by_others(mine)] == ["1.2"]
    theirs = stored.arrival(WORKSTATION)
    assert stored.archive.brought_by_others(theirs) == ()


def test_a_version_that_is_sent_once_more_is_the_newest_again(stored: Stored) -> None:
    first = stored.receive("1.1")
    for version in (b"corrected", b""):
        stored.clock.now += 1
        stored.receive("1.1", version=version)
    newest, older = stored.archive.instances(first.arrival_id)
    assert newest.id == first.instance_id
    assert newest.received_at > older.received_at


def test_series_are_listed_newest_first_with_what_they_hold(stored: Stored) -> None:
    for number in range(3):
        stored.clock.now += 1
        stored.receive("1.1", series_uid=f"1.2.{number}")
    assert [one.series_uid for one in stored.series()] == ["1.2.2", "1.2.1", "1.2.0"]
    page = find_series(stored.database, Wanted(), limit=1, offset=1)
    assert [line.subject.series_uid for line in page.lines] == ["1.2.1"]
    (one, *_) = stored.series()
    assert (one.modality, one.patient_id, one.accession) == ("CT", "P1", "A1")
    assert (one.instances, one.states) == (1, ("arriving",))
    assert one.bytes == len(part10(content_of(received("1.1", "1.2.2"))))


def test_the_newest_text_of_a_series_counts(stored: Stored) -> None:
    stored.receive("1.1")
    corrected = type(received("1.2"))(**{**vars(received("1.2")), "patient_id": "P2"})
    stored.archive.keep(corrected, SCANNER, stored.incoming(b"1.2"))
    assert stored.series()[0].patient_id == "P2"


def test_the_row_of_a_series_is_left_alone_for_a_second_and_not_where_it_was_purged(
    stored: Stored,
) -> None:
    times = []
    for number, later in enumerate((0.0, 0.9, 0.2, -5.0)):  # the last by a clock that was set back
        stored.clock.now += later
        stored.receive(f"1.{number}")
        times.append(round(stored.series()[0].last_at - 1_700_000_000.0, 3))
    assert times == [0.0, 0.0, 1.1, -3.9]
    assert len({one.series_id for one in stored.archive.arriving()}) == 1
    with stored.database.writing() as db:
        db.execute(update(series).values(purged_at=stored.clock.now))
    stored.receive("1.9")
    assert stored.series()[0].purged_at is None


@pytest.mark.parametrize("text", ["a\0b", "\udce9t\udce9", "x" * 5000, "Ωμέγα", "'; DROP TABLE"])
def test_no_text_of_a_peer_prevents_an_instance_from_being_kept(stored: Stored, text: str) -> None:
    what = received("1.1")
    fields = ("modality", "patient_id", "accession", "study_date", "description")
    hostile = type(what)(**{**vars(what), **dict.fromkeys(fields, text)})
    assert stored.archive.keep(hostile, SCANNER, stored.incoming(b"x")).is_new
    assert stored.series()[0].description == text.encode("utf-8", "replace").decode().replace(
        "\0", ""
    )


def test_below_the_reserve_nothing_is_kept_and_nothing_stays(
    database: Database, tmp_path: Path, clock: Clock
) -> None:
    full = Stored(database, Files(tmp_path / "var", min_free_bytes=1 << 60), clock)
    with pytest.raises(NoRoom, match="GB free, the reserve is"):
        full.receive("1.1")
    assert files_in(full.files.folder) == []
    assert full.series() == ()


def test_a_failed_write_keeps_nothing_and_nothing_stays(stored: Stored) -> None:
    with pytest.raises(FileNotFoundError):
        stored.archive.keep(received("1.1"), SCANNER, stored.files.incoming / "gone.dcm")
    blocked = stored.files.folder / "received"
    blocked.rmdir()
    blocked.write_bytes(b"not a folder")
    with pytest.raises(OSError, match="Not a directory|File exists"):
        stored.receive("1.1")
    assert files_in(stored.files.incoming) == []
    assert stored.series() == ()


class FolderOnBrokenDisk(Files):
    """Renames a file, and then its folder cannot be fsynced."""

    def move(self, temporary: Path, relative: str) -> Path:
        return super().move(temporary, relative) / "unreadable"


def test_without_its_name_on_disk_no_instance_is_acknowledged(
    database: Database, tmp_path: Path, clock: Clock
) -> None:
    stored = Stored(database, FolderOnBrokenDisk(tmp_path / "var", 0), clock)
    stored.files.names_last = False
    with pytest.raises(FileNotFoundError):
        stored.receive("1.1")
    assert stored.series() == ()


def test_an_instance_whose_file_was_lost_is_stored_again(stored: Stored) -> None:
    kept = stored.receive("1.1")
    (file,) = files_in(stored.files.folder / "received")
    file.unlink()
    assert stored.receive("1.1").instance_id == kept.instance_id
    assert file.is_file()


@pytest.mark.parametrize("damage", [b"", b"x", b"\0" * 4096])
def test_a_damaged_file_is_mended_by_its_peer_that_sends_the_same_again(
    stored: Stored, damage: bytes
) -> None:
    (instance,) = stored.archive.instances(stored.receive("1.1").arrival_id)
    assert instance.path is not None
    file = stored.files.path(instance.path)
    whole = file.read_bytes()
    file.write_bytes(damage)
    assert stored.receive("1.1").is_new is False
    assert file.read_bytes() == whole
    assert files_in(stored.files.incoming) == []


def test_an_unknown_arrival_is_said_to_be_unknown(stored: Stored) -> None:
    with pytest.raises(NotFound, match="no arrival 7"):
        stored.archive.arrival(7)
    assert stored.archive.instances(7) == ()


def test_eight_first_instances_of_one_study_at_once_break_no_rule(
    stored: Stored, files: Files
) -> None:
    """Eight associations, on two nodes: none may fail because another was faster."""
    nodes = [Stored(stored.database, files, stored.clock, node=name) for name in ("one", "two")]
    begin = threading.Barrier(8)
    kept: list[KeptInstance] = []

    def work(number: int) -> None:
        node = nodes[number % 2]
        what = received(f"1.{number // 2}", f"1.2.{number // 4}")
        file = files.incoming / f"{number}.dcm"
        file.write_bytes(part10(content_of(what)))
        begin.wait(10)
        kept.append(node.archive.keep(what, SCANNER, file))

    for _ in range(3):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert len(kept) == 24
    assert sum(one.is_new for one in kept) == 4  # two threads brought each
    assert [one.instances for one in stored.archive.arriving()] == [2, 2]
    assert len(files_in(files.folder / "received")) == 4


def test_a_database_that_stays_locked_answers_busy_in_time_and_leaves_nothing(
    tmp_path: Path, clock: Clock, migrated_sqlite: Path
) -> None:
    file = tmp_path / "midslice.db"
    file.write_bytes(migrated_sqlite.read_bytes())
    ours = Database(f"sqlite:///{file}", busy_seconds=0.1)
    theirs = Database(f"sqlite:///{file}")
    stored = Stored(ours, Files(tmp_path / "var", 0), clock)
    with theirs.writing(), pytest.raises(Busy):
        stored.receive("1.1")
    assert files_in(stored.files.folder) == []
    assert stored.receive("1.1").is_new
    ours.close()
    theirs.close()


# Versions of an instance: what a peer sent last counts, and a whole re-send ends a conflict.

SLICES = ("1.1", "1.2", "1.3")


def send(
    stored: Stored, uids: tuple[str, ...] = SLICES, version: bytes = b"", peer: Peer = SCANNER
) -> None:
    for uid in uids:
        stored.clock.now += 1
        stored.receive(uid, version=version, peer=peer)


def close(stored: Stored) -> None:
    """The series is complete, and no route wants it."""
    stored.queue.complete(stored.arrival().id, {}, [])


def hold_the_conflict(stored: Stored) -> None:
    """The series is complete, its versions disagree, and a person is told."""
    stored.complete(key_of(stored))
    stored.queue.hold(stored.claim(), "CONFLICTING_INSTANCES", "Send the series again.")


def versions(stored: Stored, peer: Peer = SCANNER) -> list[tuple[str, str]]:
    """UID and digest of what counts, the newest first."""
    found = stored.archive.instances(stored.arrival(peer).id)
    return [(one.instance_uid, one.digest) for one in found]


def digest_of(stored: Stored, uid: str, version: bytes) -> str:
    """As `Stored.receive` would keep it."""
    kept = stored.receive(uid, version=version, peer=Peer("ANY", "MIDSLICE"))
    arrival = stored.arrival(Peer("ANY", "MIDSLICE"))
    found = {one.id: one for one in stored.archive.instances(arrival.id)}
    return found[kept.instance_id].digest


def test_bytes_that_come_a_second_time_after_others_are_the_newest_again(stored: Stored) -> None:
    for version in (b"A", b"B", b"A"):
        send(stored, ("1.1",), version)
    newest, older = stored.archive.instances(stored.arrival().id)
    assert newest.digest == digest_of(stored, "1.1", b"A")
    assert newest.id < older.id
    assert (newest.received_at, older.received_at) == (stored.clock.now, stored.clock.now - 1)


def test_what_another_peer_sends_does_not_change_what_is_newest(stored: Stored) -> None:
    send(stored, ("1.1",), b"A")
    send(stored, ("1.1",), b"B")
    send(stored, ("1.1",), b"A", peer=WORKSTATION)
    assert versions(stored)[0] == ("1.1", digest_of(stored, "1.1", b"B"))
    assert versions(stored, WORKSTATION)[0] == ("1.1", digest_of(stored, "1.1", b"A"))


def test_versions_of_the_same_moment_are_in_the_order_of_their_first_arrival(
    stored: Stored,
) -> None:
    first = stored.receive("1.1", version=b"A")
    second = stored.receive("1.1", version=b"B")
    found = stored.archive.instances(first.arrival_id)
    assert [one.id for one in found] == [second.instance_id, first.instance_id]


def test_a_whole_resend_supersedes_the_versions_that_came_before(stored: Stored) -> None:
    send(stored)
    send(stored, ("1.2",), b"other pixels")
    hold_the_conflict(stored)
    send(stored)
    plain = [(uid, digest_of(stored, uid, b"")) for uid in reversed(SLICES)]
    assert versions(stored) == plain
    close(stored)
    send(stored, ("1.4",))  # a late slice supersedes nothing, and brings nothing back
    assert versions(stored)[1:] == plain


def test_a_whole_resend_with_other_pixels_is_a_conflict_until_a_person_was_told(
    stored: Stored,
) -> None:
    send(stored)
    close(stored)
    send(stored, version=b"other pixels")
    assert len(versions(stored)) == 6


def test_a_whole_resend_may_bring_the_later_version_too(stored: Stored) -> None:
    send(stored)
    hold_the_conflict(stored)
    send(stored, (*SLICES, "1.4"), b"corrected")
    assert {uid for uid, _ in versions(stored)} == {*SLICES, "1.4"}
    assert len(versions(stored)) == 4


def test_part_of_a_series_supersedes_nothing(stored: Stored) -> None:
    send(stored)
    close(stored)
    send(stored, ("1.1", "1.2"), b"other pixels")
    assert len(versions(stored)) == 5


def test_two_versions_in_one_arrival_both_count(stored: Stored) -> None:
    send(stored)
    send(stored, version=b"other pixels")
    assert len(versions(stored)) == 6


def test_a_series_that_came_in_two_arrivals_is_whole(stored: Stored) -> None:
    send(stored, ("1.1", "1.2"))
    close(stored)
    send(stored, ("1.3", "1.4"))
    assert [uid for uid, _ in versions(stored)] == ["1.4", "1.3", "1.2", "1.1"]


def test_a_whole_resend_of_one_peer_supersedes_nothing_of_another(stored: Stored) -> None:
    send(stored)
    send(stored, ("1.1",), b"other pixels")
    close(stored)
    send(stored, peer=WORKSTATION)
    send(stored, ("1.9",))
    assert len(versions(stored)) == 5


@pytest.mark.parametrize("conflict_in_one_arrival", [True, False])
@pytest.mark.parametrize("right", [b"", b"other pixels"])
def test_a_conflict_is_resolved_by_sending_the_right_series_again(
    stored: Stored, conflict_in_one_arrival: bool, right: bytes
) -> None:
    send(stored)
    if not conflict_in_one_arrival:
        close(stored)
    send(stored, ("1.1",), b"other pixels")
    held = stored.complete(key_of(stored))
    stored.queue.hold(stored.claim(), "CONFLICTING_INSTANCES", "Send the series again.")
    send(stored, ("1.1",), right)
    send(stored, ("1.2", "1.3"))
    again = stored.complete(key_of(stored))
    # Where what was newest is right, it is the same job, and its conflict is gone.
    expected = (
        Enqueued(held.job_id, "requeued")
        if right
        else Enqueued(held.job_id + 1, "queued", (held.job_id,))
    )
    assert again == expected
    job = stored.claim()
    assert job.id == again.job_id
    assert len(stored.queue.instances(job.id)) == 3
    if not right:
        assert stored.queue.get(held.job_id).state is JobState.CANCELLED


def key_of(stored: Stored) -> str:
    """As the node makes it: of the newest version of each instance."""
    newest: dict[str, Instance] = {}
    for one in stored.archive.instances(stored.arrival().id):
        newest.setdefault(one.instance_uid, one)
    return " ".join(sorted(f"{uid} {one.digest[:8]}" for uid, one in newest.items()))


def test_a_job_works_on_what_was_the_newest_when_it_was_asked_for(stored: Stored) -> None:
    for version in (b"A", b"B", b"A"):
        send(stored, ("1.1",), version)
    brought = [one.id for one in stored.archive.instances(stored.arrival().id)]
    asked = stored.complete("k")
    assert [one.id for one in stored.queue.instances(asked.job_id)] == brought
    assert brought == sorted(brought)  # the first version is the newest again


def test_a_job_keeps_to_the_versions_and_the_order_that_it_was_asked_for_with(
    stored: Stored,
) -> None:
    send(stored, ("1.1",), b"A")
    send(stored, ("1.1",), b"B")
    asked = stored.complete("k")
    before = [one.id for one in stored.queue.instances(asked.job_id)]
    send(stored, ("1.1",), b"A")  # the newest from now on, for another job
    assert [one.id for one in stored.queue.instances(asked.job_id)] == before
    assert [one.id for one in stored.archive.instances(stored.arrival().id)] != before


# Callers that wait at the same time share a transaction, and nobody pays for another's fault.

WAIT_SECONDS = 20.0


class Callers:
    """Threads that call at the same time, and what each of them got."""

    def __init__(self, database: Database) -> None:
        self.commits = GroupCommit(database)
        self.groups: dict[str, int] = {}
        self.results: dict[str, str] = {}
        self.errors: dict[str, type[Exception]] = {}
        self._threads: list[threading.Thread] = []
        self._insert = database.prepared(insert(fact), "name", "value")

    def write(self, group: Group, name: str) -> None:
        self._insert.run(group.db, {"name": name, "value": "x"})

    def call(self, name: str, spoil: Callable[[], None] = lambda: None) -> None:
        thread = threading.Thread(target=self._call, args=(name, spoil))
        self._threads.append(thread)
        thread.start()

    def wait(self) -> None:
        for thread in self._threads:
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive()

    def _call(self, name: str, spoil: Callable[[], None]) -> None:
        def work(group: Group) -> str:
            self.groups[name] = id(group)
            self.write(group, name)
            spoil()
            return f"result of {name}"

        try:
            self.results[name] = self.commits.run(work, order=name)
        except (StorageError, OSError, TypeError) as error:
            self.errors[name] = type(error)


class Gate:
    """Work that waits until the test lets it go on."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self.opened.wait(WAIT_SECONDS)


def waiting(callers: Callers, count: int) -> bool:
    return len(callers.commits._waiting) == count


def until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came to this")


def facts(database: Database) -> set[str]:
    with database.reading() as db:
        return set(db.execute(select(fact.c.name)).scalars())


@pytest.fixture
def callers(database: Database) -> Callers:
    return Callers(database)


def held_back(callers: Callers, *names: str, **spoiled: Callable[[], None]) -> None:
    """Let these wait behind one caller, so that they make one group."""
    gate = Gate()
    callers.call("first", gate)
    assert gate.entered.wait(WAIT_SECONDS)
    for name in names:
        callers.call(name, spoiled.get(name, lambda: None))
    until(lambda: waiting(callers, len(names)))
    gate.opened.set()
    callers.wait()


def test_those_who_wait_together_share_one_transaction(
    callers: Callers, database: Database
) -> None:
    held_back(callers, "a", "b", "c")
    assert callers.groups["a"] == callers.groups["b"] == callers.groups["c"]
    assert callers.results == {n: f"result of {n}" for n in ("first", "a", "b", "c")}
    assert facts(database) == {"first", "a", "b", "c"}


def test_a_result_is_committed_before_its_caller_hears_of_it(
    callers: Callers, database: Database
) -> None:
    callers.commits.run(lambda group: callers.write(group, "n"))
    assert facts(database) == {"n"}


def fail_always() -> None:
    raise OSError("the file is gone")


def test_one_bad_member_does_not_fail_its_neighbours(callers: Callers, database: Database) -> None:
    held_back(callers, "a", "b", "c", b=fail_always)
    assert set(callers.results) == {"first", "a", "c"}
    assert callers.errors == {"b": OSError}
    assert facts(database) == {"first", "a", "c"}


def test_a_broken_rule_fails_only_the_one_who_broke_it(
    callers: Callers, database: Database
) -> None:
    with database.writing() as db:
        db.execute(insert(fact).values(name="b", value="there already"))
    held_back(callers, "a", "b", "c")
    assert set(callers.results) == {"first", "a", "c"}
    assert callers.errors == {"b": StorageError}


def test_a_caller_after_a_failure_is_served(callers: Callers, database: Database) -> None:
    with pytest.raises(OSError, match="gone"):
        callers.commits.run(lambda group: fail_always())
    assert callers.commits.run(lambda group: "served") == "served"


def raise_a_mistake() -> None:
    raise TypeError("a mistake in our code")


def test_a_mistake_in_our_code_leaves_nobody_waiting(callers: Callers, database: Database) -> None:
    held_back(callers, "a", "b", b=raise_a_mistake)
    assert callers.errors["b"] is TypeError
    assert "b" not in facts(database)
    assert callers.commits.run(lambda group: "served") == "served"


def test_a_locked_database_makes_the_whole_group_busy_once(
    tmp_path: Path, migrated_sqlite: Path
) -> None:
    file = tmp_path / "midslice.db"
    file.write_bytes(migrated_sqlite.read_bytes())
    ours = Database(f"sqlite:///{file}", busy_seconds=0.1)
    theirs = Database(f"sqlite:///{file}")
    callers = Callers(ours)
    with theirs.writing():
        for number in range(8):
            callers.call(f"n{number}")
        callers.wait()
    assert set(callers.errors.values()) == {Busy}
    assert len(callers.errors) == 8
    ours.close()
    theirs.close()


def test_folders_are_on_disk_before_the_commit(callers: Callers, tmp_path: Path) -> None:
    missing = tmp_path / "missing"

    def work(group: Group) -> None:
        callers.write(group, "n")
        group.folders.add(missing)

    with pytest.raises(FileNotFoundError):
        callers.commits.run(work)
    with callers.commits._database.reading() as db:
        assert db.execute(select(func.count()).select_from(fact)).scalar_one() == 0
