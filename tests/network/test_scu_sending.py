"""What the Storage SCU sends, and how it understands the answers of real and scripted peers."""

from pathlib import Path

from pydicom import dcmread

from node.dicom.scu import Outgoing, SendResult, echo, send
from node.dicom.status import Outcome
from tests.peers import orthanc, storescp
from tests.raw_peer import CT, EXPLICIT, IMPLICIT
from tests.sending import JPEG_LS_FILES, Answers, peer

JPEG_LS = "1.2.840.10008.1.2.4.80"


def test_storescp_gets_every_instance_with_its_pixels(
    six_slices: list[Outgoing], tmp_path: Path
) -> None:
    answers = Answers()
    with storescp(tmp_path / "stored") as scp:
        sent = answers.send(scp.port, six_slices)
        assert sent == SendResult(Outcome.STORED), scp.process
        stored = {dcmread(path).SOPInstanceUID: dcmread(path) for path in scp.files()}
    assert answers.statuses == [(index, 0x0000) for index in range(6)]
    for one in six_slices:
        assert stored[one.instance_uid] == dcmread(one.path)
        assert stored[one.instance_uid].file_meta.TransferSyntaxUID == EXPLICIT


def test_a_peer_of_implicit_vr_gets_the_same_data_set_re_encoded(
    six_slices: list[Outgoing], tmp_path: Path
) -> None:
    answers = Answers()
    with storescp(tmp_path / "stored", options=["+xi"]) as scp:
        assert answers.send(scp.port, six_slices[:2]).outcome is Outcome.STORED, scp.process
        stored = sorted((dcmread(path) for path in scp.files()), key=lambda ds: ds.SOPInstanceUID)
    for one, after in zip(six_slices[:2], stored, strict=True):
        before = dcmread(one.path)
        assert after.file_meta.TransferSyntaxUID == IMPLICIT
        assert after.PixelData == before.PixelData
        assert [element.tag for element in after] == [element.tag for element in before]


def test_compressed_instances_go_as_they_are(tmp_path: Path) -> None:
    source = JPEG_LS_FILES[0]
    one = Outgoing(1, str(dcmread(source).SOPInstanceUID), CT, JPEG_LS, source)
    answers = Answers()
    with storescp(tmp_path / "stored", options=["+xt"]) as scp:
        assert answers.send(scp.port, [one]).outcome is Outcome.STORED, scp.process
        stored = dcmread(scp.files()[0])
    assert stored.file_meta.TransferSyntaxUID == JPEG_LS
    assert stored.PixelData == dcmread(source).PixelData


def test_orthanc_stores_what_is_sent(six_slices: list[Outgoing], tmp_path: Path) -> None:
    answers = Answers()
    with orthanc(tmp_path / "orthanc") as pacs:
        address = peer(pacs.address.port, ae="ORTHANC")
        sent = send(address, six_slices, answered=answers.answered, stop=lambda: False)
        assert sent.outcome is Outcome.STORED, pacs.child
        assert len(pacs.get("/instances")) == len(six_slices)
        assert echo(address).ok
        wrong = send(
            peer(pacs.address.port, ae="WRONG"), six_slices, answered=answers.answered, stop=bool
        )
    assert wrong.outcome is Outcome.REFUSED
    assert {status for _, status in answers.statuses} == {0x0000}
