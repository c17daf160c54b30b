"""Associations begin and end without a write; what is noted is written until it is written."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.dicom import association_log
from node.dicom.association_log import AssociationWriter
from storage.errors import Busy
from tests.conftest import Clock
from tests.node_scp import Archive, node_scp
from tests.peers import wait_until
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

NAMES = ("CT1", "MIDSLICE", "192.0.2.7")
ECHO = associate_request(contexts=((VERIFICATION, ("1.2.840.10008.1.2",)),))


class Slow(Archive):
    """Remembers when things happened; its rows are not written while it is locked."""

    times: list[float]

    def associated(self, calling_ae: str, called_ae: str, address: str, at: float) -> int:
        number = super().associated(calling_ae, called_ae, address, at)
        self.times.append(at)
        return number

    def dissociated(self, association_id: int, how: str, at: float) -> None:
        super().dissociated(association_id, how, at)
        self.times.append(at)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(association_log, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(association_log, "ROW_SECONDS", 0.1)


@pytest.fixture
def archive(tmp_path: Path) -> Slow:
    slow = Slow(tmp_path)
    slow.times = []
    return slow


@pytest.fixture
def writer(archive: Slow, clock: Clock) -> Iterator[AssociationWriter]:
    started = AssociationWriter(archive, clock)
    started.start()
    yield started
    started.close()


def test_what_a_locked_database_does_not_take_is_written_later_in_order_with_its_own_time(
    archive: Slow, writer: AssociationWriter, clock: Clock
) -> None:
    archive.takes_no_rows.set()
    began = clock.now
    entry = writer.opened(*NAMES)
    clock.now += 10
    writer.ended(entry, "released")
    writer.rejected(*NAMES, "network not allowed")
    with pytest.raises(Busy):
        writer.number(entry)
    assert not writer.flush(0.05)
    clock.now += 1_000
    archive.takes_no_rows.clear()
    assert writer.flush(5.0)
    assert [entry[0] for entry in archive.associations] == ["opened", "ended", "rejected"]
    assert archive.times == [began, began + 10]
    assert writer.number(entry) == archive.associations[1][1]


def test_an_entry_that_cannot_be_written_at_all_costs_the_others_nothing(
    archive: Slow, writer: AssociationWriter
) -> None:
    del archive.times  # noting a time raises, which no database does
    writer.opened(*NAMES)
    writer.rejected(*NAMES, "network not allowed")
    assert writer.flush(5.0)
    assert archive.rejections() == [("CT1", "MIDSLICE", "network not allowed")]


def test_the_log_keeps_a_bounded_number_of_entries_in_memory(
    archive: Slow, writer: AssociationWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(association_log, "MOST_WAITING", 3)
    archive.takes_no_rows.set()
    entries = [writer.opened(*NAMES) for _ in range(5)]
    for entry in entries:
        writer.ended(entry, "released")
    archive.takes_no_rows.clear()
    assert writer.flush(5.0)
    assert len(archive.associations) == 3
    assert archive.ends() == []


@pytest.mark.parametrize("is_direct", [True, False])
def test_a_c_echo_is_answered_while_the_database_takes_no_row_and_an_instance_is_refused(
    tmp_path: Path, is_direct: bool
) -> None:
    with node_scp(tmp_path, is_direct=is_direct) as node:
        node.archive.takes_no_rows.set()
        for _ in range(3):
            with RawPeer(node.port) as peer:
                peer.associate(ECHO)
                peer.send(fragment(echo_command(), command=True))
                assert status_of(peer.answer()) == 0x0000
                assert peer.release() == RELEASE_RP
        wait_until(lambda: node.scp.open_associations() == 0, what="their places are free")
        with RawPeer(node.port) as peer:
            peer.associate()
            assert peer.status(store_command(), data_set()) == 0xA700
            node.archive.takes_no_rows.clear()
            assert peer.status(store_command(), data_set()) == 0x0000
            assert peer.release() == RELEASE_RP
        wait_until(lambda: node.archive.ends() == ["released"] * 4, what="all ends are written")
        (kept,) = node.archive.kept
        opened = [row for row in node.archive.associations if row[0] == "opened"]
        assert kept.peer.association is not None and len(opened) == 4
        assert node.archive.litter() == []
