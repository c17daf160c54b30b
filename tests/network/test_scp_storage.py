"""What the Storage SCP keeps and what it answers, with DCMTK and with peers that say raw bytes."""

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import FileDataset

from storage.errors import NoRoom
from tests.node_scp import Node, node_scp
from tests.peers import Finished, dcmsend, echoscu, orthanc, storescu, wait_until
from tests.raw_peer import (
    CT,
    EXPLICIT,
    IMPLICIT,
    VERIFICATION,
    RawPeer,
    associate_request,
    data_set,
    data_set_bytes,
    echo_command,
    fragment,
    status_of,
    store_command,
)
from tests.sending import JPEG_LS_FILES, native


@pytest.fixture(params=[True, False], ids=["direct", "library"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    with node_scp(tmp_path, is_direct=request.param) as running:
        yield running


def test_a_data_set_lies_on_disk_exactly_as_storescu_sent_it(node: Node, tmp_path: Path) -> None:
    sent = [outgoing.path for outgoing in native(tmp_path / "sent", 3)]
    for path in sent:  # as DCMTK writes a data set, so that what it sends is what the file holds
        subprocess.run(["dcmconv", "+te", "-p", "-g", path, path], check=True)
    done = storescu(node.port, *sent)
    assert done.code == 0, done.output
    assert [one.received.instance_uid for one in node.archive.kept] == [
        f"1.2.826.0.1.7.{index}" for index in range(3)
    ]
    for before, after in zip(sent, node.archive.kept, strict=True):
        assert data_set_bytes(after.path) == data_set_bytes(before)
    assert node.archive.litter() == []


def test_a_kept_file_is_a_part_10_file_that_names_its_transfer_syntax(node: Node) -> None:
    done = storescu(node.port, JPEG_LS_FILES[0], options=["-xt"])
    assert done.code == 0, done.output
    ds = dcmread(node.archive.kept[0].path)
    assert isinstance(ds, FileDataset)
    assert ds.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.80"
    assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
    assert str(ds.file_meta.ImplementationClassUID).startswith("2.25.")
    assert (ds.pixel_array == dcmread(JPEG_LS_FILES[0]).pixel_array).all()


def test_what_orthanc_stores_it_routes_on_to_the_node(node: Node, tmp_path: Path) -> None:
    modalities = {"node": ("MIDSLICE", node.port)}
    with orthanc(tmp_path / "pacs", modalities=modalities, routes_to="node") as pacs:
        for outgoing in native(tmp_path / "sent", 3):
            pacs.post("/instances", outgoing.path.read_bytes())
        wait_until(lambda: len(node.archive.kept) == 3, what="all are routed", log=pacs.child)
    assert {one.peer.calling_ae for one in node.archive.kept} == {"ORTHANC"}


def test_the_identity_of_a_real_series_is_read(node: Node) -> None:
    assert dcmsend(node.port, *JPEG_LS_FILES[:2]).code == 0
    source = dcmread(JPEG_LS_FILES[0], stop_before_pixels=True)
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


@pytest.mark.parametrize("program", [dcmsend, storescu], ids=["dcmsend", "storescu"])
@pytest.mark.parametrize("refused", [1, 2], ids=["one", "all"])
def test_a_program_of_dcmtk_that_is_refused_an_instance_ends_with_a_failure(
    node: Node, tmp_path: Path, program: Callable[..., Finished], refused: int
) -> None:
    sent = [outgoing.path for outgoing in native(tmp_path / "sent", 2)]
    node.archive.failures = [NoRoom("full")] * refused
    assert program(node.port, *sent).code != 0
    node.archive.failures = []
    assert program(node.port, *sent).code == 0


def test_eight_associations_at_once_lose_nothing(node: Node, tmp_path: Path) -> None:
    series = [native(tmp_path / str(n), 6, prefix=f"1.2.826.0.1.{n}") for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        done = list(
            pool.map(lambda files: storescu(node.port, *(one.path for one in files)), series)
        )
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
