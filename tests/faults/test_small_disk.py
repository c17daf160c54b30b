"""A disk of 64 MB that fills up, is full, goes read-only; a database that somebody locks."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pydicom import dcmread

from tests import node_rows, phantoms
from tests.faults.small_disk import SmallDisk, small_disk
from tests.faults.table import Fault
from tests.node_process import NodeProcess, destination, running, wait_for
from tests.peers import Storescp, storescp
from tests.ports import free_port
from tests.raw_peer import (
    RELEASE_RP,
    VERIFICATION,
    RawPeer,
    associate_request,
    data_set,
    echo_command,
    fragment,
    status_of,
    store_command,
)
from tests.traffic import named, send, uid_of

MB = 1_000_000
RESERVE = 12 * MB
NEARLY = 14 * MB  # below 1.25 times the reserve
ECHO = associate_request(contexts=((VERIFICATION, ("1.2.840.10008.1.2",)),))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    with small_disk(tmp_path_factory.mktemp("small")) as mounted:
        yield mounted


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storescp]:
    with storescp(tmp_path_factory.mktemp("archive")) as running_archive:
        yield running_archive


@pytest.fixture(scope="module")
def node(disk: SmallDisk, archive: Storescp) -> Iterator[NodeProcess]:
    """One node for all tests, in their order; a route leads to a destination that is away."""
    process = NodeProcess(
        disk.folder / "node",
        destination("pacs", "STORESCP", archive.port),
        destination("away", "AWAY", free_port()),
        named("sent", destinations=["pacs"]),
        named("unsent", destinations=["pacs", "away"]),
        quiet_seconds=0.7,
        min_free_gb=RESERVE / 1e9,
    )
    with running(process):
        yield process


@pytest.fixture(autouse=True)
def room(disk: SmallDisk, node: NodeProcess) -> Iterator[None]:
    """Room at the begin of each test; whatever it does to the disk, no thread ends of it."""
    disk.leave(30 * MB)
    yield
    assert node.found("unhandled exception") == []


def echo(node: NodeProcess) -> None:
    with RawPeer(node.port) as peer:
        peer.associate(ECHO)
        peer.send(fragment(echo_command(), command=True))
        assert status_of(peer.answer()) == 0x0000
        assert peer.release() == RELEASE_RP


def store(node: NodeProcess) -> int:
    with RawPeer(node.port) as peer:
        peer.associate()
        status = peer.status(store_command(), data_set())
        peer.release()
    return status


def series_of(folder: Path, name: str) -> list[Path]:
    return phantoms.write(
        folder / name, phantoms.Series(seed=name, slices=4, rows=256, columns=256)
    )


def kept(node: NodeProcess, files: list[Path]) -> bool:
    uids = {uid for uid, _ in node_rows.kept(node)}
    return any(dcmread(path, stop_before_pixels=True).SOPInstanceUID in uids for path in files)


def test_near_the_reserve_the_oldest_that_was_sent_goes_and_what_is_unsent_stays(
    node: NodeProcess, disk: SmallDisk, tmp_path: Path, fault: Callable[[str], Fault]
) -> None:
    row = fault("disk near its reserve")
    row.times += 1
    unsent, oldest, newest = (series_of(tmp_path, name) for name in ("a", "b", "c"))
    send(node, unsent, called="UNSENT")
    node.event("delivery sent", destination="pacs")
    for number, files in enumerate((oldest, newest), 2):
        send(node, files, called="SENT")
        node.event("delivery sent", destination="pacs", count=number)
    disk.leave(NEARLY)
    node.event("series purged early", seconds=30)
    assert not kept(node, oldest)
    assert kept(node, newest) and kept(node, unsent)
    assert disk.free_bytes() > 1.25 * RESERVE
    assert any("before storage.keep_days" in detail for _, detail in notices(node))
    (away,) = (it for it in node_rows.deliveries(node, uid_of(unsent)) if it.destination == "away")
    assert away.state == "queued"
    disk.leave(NEARLY)
    node.event("series purged early", count=2, seconds=30)
    assert not kept(node, newest)
    row.lost = not kept(node, unsent)
    assert not row.lost


def notices(node: NodeProcess) -> list[tuple[str, str]]:
    path = node.folder / "var" / "midslice.db"
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT event, facts FROM notice").fetchall()


def test_an_instance_is_refused_before_the_disk_is_full_and_taken_again_after(
    node: NodeProcess, disk: SmallDisk, fault: Callable[[str], Fault]
) -> None:
    fault("disk below its reserve").times += 1
    disk.leave(RESERVE // 2)
    assert store(node) == 0xA700
    assert disk.free_bytes() > 0
    echo(node)
    disk.leave(30 * MB)
    assert store(node) == 0x0000


def test_a_c_echo_is_answered_with_zero_bytes_free_and_every_end_is_written_in_time(
    node: NodeProcess, disk: SmallDisk, fault: Callable[[str], Fault]
) -> None:
    fault("disk without a free byte").times += 1
    disk.fill()
    before = len(node.found("association ended"))
    for _ in range(3):
        echo(node)
    assert store(node) == 0xA700
    node.event("association ended", count=before + 4)
    disk.leave(30 * MB)
    wait_for("every end is written", lambda: open_associations(node) == 0, 30)
    assert store(node) == 0x0000


def open_associations(node: NodeProcess) -> int:
    with closing(sqlite3.connect(node.folder / "var" / "midslice.db")) as db:
        row = db.execute("SELECT count(*) FROM association WHERE ended_at IS NULL").fetchone()
    return int(row[0])


def test_a_c_echo_is_answered_while_the_database_is_locked_and_its_end_is_written_after(
    node: NodeProcess, fault: Callable[[str], Fault]
) -> None:
    fault("database locked by somebody else").times += 1
    with closing(sqlite3.connect(node.folder / "var" / "midslice.db", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        for _ in range(3):
            echo(node)
        assert store(node) == 0xA700
        db.execute("ROLLBACK")
    wait_for("every end is written", lambda: open_associations(node) == 0, 30)
    assert store(node) == 0x0000


def test_a_c_echo_is_answered_on_a_file_system_that_went_read_only(
    node: NodeProcess, disk: SmallDisk, fault: Callable[[str], Fault]
) -> None:
    if not disk.is_ext4:
        pytest.skip("only ext4 can be made read-only while files are open")
    fault("file system read-only").times += 1
    disk.become_read_only()  # for the rest of its life: this test is the last one
    for _ in range(3):
        echo(node)
        assert store(node) == 0xA700
    assert node.node.child.is_alive
