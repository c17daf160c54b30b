"""What the Storage SCP keeps and what it answers, to peers that say raw bytes."""

import logging
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from storage.errors import Busy, NoRoom, NotFound
from tests.node_scp import Node, node_scp
from tests.peers import wait_until
from tests.raw_peer import (
    CT,
    IMPLICIT,
    MR,
    RawPeer,
    associate_request,
    data_set,
    data_set_bytes,
    element,
    fragment,
    status_of,
    store_command,
)
from tests.sending import JPEG_LS_FILES

DEMO = Path(__file__).parents[2] / "node/demo/data"

JPEG_LS = sorted((DEMO / "received").glob("*.dcm"))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_other_encodings_are_understood(node: Node, syntax: str) -> None:
    ds = dcmread(JPEG_LS_FILES[0])
    ds.decompress()
    del ds.PixelData
    ds.file_meta.TransferSyntaxUID = syntax
    file = BytesIO()
    ds.save_as(file, implicit_vr=syntax == IMPLICIT, little_endian=True)
    file.seek(140)
    length = struct.unpack("<I", file.read(4))[0]
    body = file.getvalue()[144 + length :]
    request = associate_request(contexts=((CT, (str(syntax),)),))
    with RawPeer(node.port) as peer:
        peer.associate(request)
        assert peer.status(store_command(str(ds.SOPInstanceUID).encode()), body) == 0x0000
    assert node.archive.kept[0].received.series_uid == ds.SeriesInstanceUID
    assert node.archive.kept[0].received.transfer_syntax == syntax


@pytest.mark.parametrize("error", [NoRoom("full"), Busy("locked"), OSError(28, "No space left")])
def test_what_may_work_later_is_answered_out_of_resources(node: Node, error: Exception) -> None:
    node.archive.failures = [error]
    with RawPeer(node.port) as peer:
        peer.associate()
        answer = peer.store(store_command(), data_set())
        assert status_of(answer) == 0xA700
        assert 0 < len(answer[0x0902]) <= 64
        assert node.archive.litter() == []
        assert peer.status(store_command(), data_set()) == 0x0000  # the same instance, later
    assert len(node.archive.kept) == 1


@pytest.mark.parametrize("error", [RuntimeError("a mistake of ours"), NotFound("no row")])
def test_an_unexpected_error_is_a_failure_and_the_next_instance_is_kept(
    node: Node, error: Exception
) -> None:
    node.archive.failures = [error]
    with RawPeer(node.port) as peer:
        peer.associate()
        assert peer.status(store_command(), data_set()) == 0xC211
        assert node.archive.litter() == []
        assert peer.status(store_command(), data_set()) == 0x0000


def test_a_disk_below_its_reserve_keeps_the_association_and_writes_nothing(tmp_path: Path) -> None:
    with node_scp(tmp_path, min_free_bytes=1 << 62) as node, RawPeer(node.port) as peer:
        peer.associate()
        assert peer.status(store_command(), data_set(pixels=100_000)) == 0xA700
        assert peer.status(store_command(), data_set()) == 0xA700
        assert node.archive.kept == []
        assert node.archive.litter() == []


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """Writing past this size fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_in_mid_instance_keeps_the_association(node: Node) -> None:
    with RawPeer(node.port) as peer:
        peer.associate()
        with files_no_longer_than(60_000):
            assert peer.status(store_command(), data_set(pixels=40_000)) == 0x0000
            peer.send(fragment(store_command(), command=True))
            whole = data_set(pixels=200_000)
            for start in range(0, len(whole), 16_000):
                last = start + 16_000 >= len(whole)
                peer.send(fragment(whole[start : start + 16_000], last=last))
            assert status_of(peer.answer()) == 0xA700
            assert node.archive.litter() == []
        assert peer.status(store_command(), data_set(pixels=200_000)) == 0x0000
    assert len(node.archive.kept) == 2


def test_a_folder_that_is_gone_is_answered_out_of_resources(node: Node) -> None:
    node.archive.incoming.rmdir()
    with RawPeer(node.port) as peer:
        peer.associate()
        assert peer.status(store_command(), data_set()) == 0xA700
        node.archive.incoming.mkdir()
        assert peer.status(store_command(), data_set()) == 0x0000


@pytest.mark.parametrize(
    ("command", "data", "status", "offending"),
    [
        (store_command(), data_set("1.2.3.5"), 0xA900, 0x00080018),
        (store_command(), data_set(sop_class=MR), 0xA900, 0x00080016),
        (store_command(), data_set(study_uid=""), 0xC010, 0x0020000D),
        (store_command(), data_set(series_uid="1.2/x"), 0xC010, 0x0020000E),
        (store_command(), data_set(series_uid="1." * 33), 0xC010, 0x0020000E),
        (store_command(b""), data_set(), 0xC010, 0x00001000),
        (store_command(b"1." * 40), data_set(), 0xC010, 0x00001000),
        (store_command(b"../../x\0"), data_set(), 0xC010, 0x00001000),
        (store_command(sop_class=MR.encode()), data_set(), 0x0122, 0x00000002),
    ],
)
def test_identifiers_that_are_wrong_are_named_in_the_answer(
    node: Node, command: bytes, data: bytes, status: int, offending: int
) -> None:
    with RawPeer(node.port) as peer:
        peer.associate()
        answer = peer.store(command, data)
        assert status_of(answer) == status
        assert struct.unpack("<HH", answer[0x0901]) == (offending >> 16, offending & 0xFFFF)
        assert 0 < len(answer[0x0902]) <= 64
        assert answer.get(0x1000, b"1.2.3.4\0") == b"1.2.3.4\0"  # the peer's own, or none
        assert peer.status(store_command(), data_set()) == 0x0000  # the association goes on
    assert len(node.archive.kept) == 1
    assert node.archive.litter() == []


@pytest.mark.parametrize(
    "data",
    [
        data_set()[:50],
        data_set()[:5],
        b"\xff" * 300,
        element(0x00080016, b"UI", CT.encode()) + b"\x08\x00\x18\x00??\x00\x00",
        struct.pack("<HH2sHI", 8, 5, b"SQ", 0, 0xFFFFFFFF)
        + b"\xfe\xff\x00\xe0\xff\xff\xff\xff" * 99,
    ],
)
def test_what_cannot_be_read_is_not_understood(node: Node, data: bytes) -> None:
    with RawPeer(node.port) as peer:
        peer.associate()
        assert peer.status(store_command(), data) in range(0xC000, 0xC011)
        assert peer.status(store_command(), data_set()) == 0x0000
    assert node.archive.litter() == []


def test_an_empty_data_set_is_not_understood(node: Node) -> None:
    with RawPeer(node.port) as peer:
        peer.associate()
        assert peer.status(store_command(), b"") == 0xC010


def test_pixels_that_end_too_early_are_kept_for_the_worker_to_judge(node: Node) -> None:
    with RawPeer(node.port) as peer:
        peer.associate()
        assert peer.status(store_command(), data_set(pixels=4000)[:-1000]) == 0x0000
    assert data_set_bytes(node.archive.kept[0].path) == data_set(pixels=4000)[:-1000]


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"1.2.3.4\0\0\0", "1.2.3.4"),
        (b"1.2.3.4 ", "1.2.3.4"),
        (b" 1.2.3.4", "1.2.3.4"),
        (b"..", ".."),
        (b"1.02.3", "1.02.3"),
        (b"1.2.3.", "1.2.3."),
        (b"1.2.3.A7", "1.2.3.A7"),
        (b"550e8400-e29b-41d4-a716-446655440000", "550e8400-e29b-41d4-a716-446655440000"),
        (b"CT_1_2", "CT_1_2"),
        (b"9." * 31 + b"A9", "9." * 31 + "A9"),
    ],
)
def test_uids_that_break_the_rules_and_identify_are_kept(
    node: Node, sent: bytes, kept: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with RawPeer(node.port) as peer:
        peer.associate()
        assert peer.status(store_command(sent), data_set(sent.decode())) == 0x0000
    assert node.archive.kept[0].received.instance_uid == kept
    unusual = [record for record in caplog.records if record.message == "unusual UID"]
    assert bool(unusual) == (kept != "1.2.3.4")


def test_a_command_without_a_priority_is_answered(node: Node) -> None:
    whole = store_command()
    priority = struct.pack("<HHIH", 0, 0x0700, 2, 0)
    with RawPeer(node.port) as peer:
        peer.associate()
        assert peer.status(whole.replace(priority, b""), data_set()) == 0x0000


def test_a_peer_that_vanishes_in_mid_instance_leaves_nothing(node: Node) -> None:
    with RawPeer(node.port) as peer:
        peer.associate()
        peer.send(fragment(store_command(), command=True))
        peer.send(fragment(data_set()[:1000], last=False))
        wait_until(node.archive.litter, what="the data set began to arrive")
    wait_until(lambda: node.archive.ends() == ["dropped"], what="the association was dropped")
    assert node.archive.kept == []
    assert node.archive.litter() == []


def test_a_log_line_names_the_instance_and_never_the_patient(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "node")
    with RawPeer(node.port) as peer:
        peer.associate()
        peer.status(store_command(), data_set())

    def stored_lines() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.message == "instance stored"]

    wait_until(stored_lines, what="the line follows the answer")
    (stored,) = stored_lines()
    assert stored.__dict__["sop_instance_uid"] == "1.2.3.4"
    assert stored.__dict__["series_uid"] == "1.2.3.1"
    assert "P1" not in [str(value) for record in caplog.records for value in vars(record).values()]
