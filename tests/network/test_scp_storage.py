"""What the Storage SCP keeps and what it answers, with DCMTK and with peers that say raw bytes."""

import logging
import resource
import struct
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from storage.errors import Busy, NoRoom, NotFound
from tests.node_scp import Node, node_scp
from tests.peers import dcmsend, echoscu, orthanc, storescu, wait_until
from tests.raw_peer import (
    CT,
    EXPLICIT,
    IMPLICIT,
    MR,
    VERIFICATION,
    RawPeer,
    associate_request,
    data_set,
    echo_command,
    element,
    fragment,
    status_of,
    store_command,
)

DEMO = Path(__file__).parents[2] / "node/demo/data"
JPEG_LS = sorted((DEMO / "received").glob("*.dcm"))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with node_scp(tmp_path) as running:
        yield running


def native(folder: Path, count: int, *, prefix: str = "1.2.826.0.1.9") -> list[Path]:
    """Real CT slices, decompressed, each with a UID of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        ds = dcmread(JPEG_LS[index % len(JPEG_LS)])
        ds.decompress()
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{prefix}.{index}"
        paths.append(folder / f"{index}.dcm")
        ds.save_as(paths[-1])
    return paths


def data_set_bytes(path: Path) -> bytes:
    """What comes after the file meta information: its group length says where."""
    whole = path.read_bytes()
    return whole[144 + struct.unpack_from("<I", whole, 140)[0] :]


def test_a_data_set_lies_on_disk_exactly_as_storescu_sent_it(node: Node, tmp_path: Path) -> None:
    sent = native(tmp_path / "sent", 3)
    for path in sent:  # as DCMTK writes a data set, so that what it sends is what the file holds
        subprocess.run(["dcmconv", "+te", "-p", "-g", path, path], check=True)
    done = storescu(node.port, *sent)
    assert done.code == 0, done.output
    assert [one.received.instance_uid for one in node.archive.kept] == [
        f"1.2.826.0.1.9.{index}" for index in range(3)
    ]
    for before, after in zip(sent, node.archive.kept, strict=True):
        assert data_set_bytes(after.path) == data_set_bytes(before)
    assert node.archive.litter() == []


def test_a_kept_file_is_a_part_10_file_that_names_its_transfer_syntax(node: Node) -> None:
    done = storescu(node.port, JPEG_LS[0], options=["-xt"])
    assert done.code == 0, done.output
    ds = dcmread(node.archive.kept[0].path)
    assert isinstance(ds, FileDataset)
    assert ds.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.80"
    assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
    assert str(ds.file_meta.ImplementationClassUID).startswith("2.25.")
    assert (ds.pixel_array == dcmread(JPEG_LS[0]).pixel_array).all()


def test_what_orthanc_stores_it_routes_on_to_the_node(node: Node, tmp_path: Path) -> None:
    modalities = {"node": ("MIDSLICE", node.port)}
    with orthanc(tmp_path / "pacs", modalities=modalities, routes_to="node") as pacs:
        for path in native(tmp_path / "sent", 3):
            pacs.post("/instances", path.read_bytes())
        wait_until(lambda: len(node.archive.kept) == 3, what="all are routed", log=pacs.child)
    assert {one.peer.calling_ae for one in node.archive.kept} == {"ORTHANC"}


def test_the_identity_of_a_real_series_is_read(node: Node) -> None:
    assert dcmsend(node.port, *JPEG_LS[:2]).code == 0
    source = dcmread(JPEG_LS[0], stop_before_pixels=True)
    received = node.archive.kept[0].received
    assert received.study_uid == source.StudyInstanceUID
    assert received.series_uid == source.SeriesInstanceUID
    assert received.instance_uid == source.SOPInstanceUID
    assert received.sop_class_uid == CT
    assert received.modality == "CT"
    assert received.patient_id == source.PatientID
    assert received.study_date == source.StudyDate
    assert node.archive.kept[0].peer.calling_ae == "DCMSEND"
    assert node.archive.kept[0].peer.called_ae == "MIDSLICE"


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_other_encodings_are_understood(node: Node, syntax: str) -> None:
    ds = dcmread(JPEG_LS[0])
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


def test_eight_associations_at_once_lose_nothing(node: Node, tmp_path: Path) -> None:
    series = [native(tmp_path / str(n), 6, prefix=f"1.2.826.0.1.{n}") for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda files: storescu(node.port, *files), series))
    assert [one.code for one in done] == [0] * 8, done
    wait_until(lambda: len(node.archive.ends()) == 8, what="all associations ended")
    assert len({one.received.instance_uid for one in node.archive.kept}) == 48
    assert node.archive.ends() == ["released"] * 8
    assert node.archive.litter() == []


def test_c_echo_is_answered_whatever_the_disk_does(node: Node) -> None:
    node.archive.failures = [NoRoom("full")]
    contexts = ((CT, (EXPLICIT,)), (VERIFICATION, (IMPLICIT,)))
    with RawPeer(node.port) as peer:
        peer.associate(associate_request(contexts=contexts))
        assert peer.status(store_command(), data_set()) == 0xA700
        peer.send(fragment(echo_command(), context_id=3, command=True))
        assert status_of(peer.answer()) == 0x0000
    assert echoscu(node.port).code == 0


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
        (store_command(), data_set(series_uid="1.2.x"), 0xC010, 0x0020000E),
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
    [(b"1.2.3.4\0\0\0", "1.2.3.4"), (b"1.2.3.4 ", "1.2.3.4"), (b"..", ".."), (b"1.02.3", "1.02.3")],
)
def test_uids_of_old_scanners_are_kept(
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
    stored = next(record for record in caplog.records if record.message == "instance stored")
    assert stored.__dict__["sop_instance_uid"] == "1.2.3.4"
    assert stored.__dict__["series_uid"] == "1.2.3.1"
    assert "P1" not in [str(value) for record in caplog.records for value in vars(record).values()]
