"""What the Storage SCU sends, and how it understands the answers of real and scripted peers."""

import socket
import threading
from pathlib import Path

import pytest
from pydicom import dcmread
from pynetdicom import AE, evt

from node.dicom.contexts import proposed_contexts
from node.dicom.scu import Outgoing, SendResult, echo, send
from node.dicom.status import Outcome
from tests.network.sending import JPEG_LS_FILES, Answers, peer
from tests.peers import Script, orthanc, scripted_scp, storescp
from tests.raw_peer import CT, EXPLICIT, IMPLICIT, MR

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


def test_each_instance_has_its_own_status(six_slices: list[Outgoing]) -> None:
    script = Script(statuses=[0x0000, 0xA700, 0xB000, 0xC123, 0x0111])
    answers = Answers()
    with scripted_scp(script) as port:
        assert answers.send(port, six_slices).outcome is Outcome.STORED
    statuses = [0x0000, 0xA700, 0xB000, 0xC123, 0x0111, 0x0000]
    assert answers.statuses == list(enumerate(statuses))


def test_a_class_that_the_peer_does_not_take_is_refused_and_the_rest_sent(
    six_slices: list[Outgoing],
) -> None:
    other = Outgoing(99, "1.2.3", MR, EXPLICIT, six_slices[0].path)
    answers = Answers()
    with scripted_scp(Script()) as port:
        assert answers.send(port, [six_slices[0], other, six_slices[1]]).outcome is Outcome.STORED
    assert answers.statuses == [(0, 0x0000), (99, 0x0122), (1, 0x0000)]
    assert answers.comments == [
        "",
        "it accepts no MR Image Storage in Explicit VR Little Endian",
        "",
    ]


@pytest.mark.parametrize("maximum", [16383, 16384, 1001, 0])
def test_fragments_are_even_whatever_maximum_the_peer_names(
    six_slices: list[Outgoing], maximum: int
) -> None:
    lengths: list[int] = []

    def look(event: evt.Event) -> None:
        items = getattr(event.pdu, "presentation_data_value_items", [])
        lengths.extend(len(item.presentation_data_value) - 1 for item in items)

    pacs = AE("PACS")
    pacs.maximum_pdu_size = maximum
    pacs.add_supported_context(CT, [EXPLICIT])
    handlers = [(evt.EVT_PDU_RECV, look), (evt.EVT_C_STORE, lambda _: 0x0000)]
    server = pacs.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    answers = Answers()
    try:
        assert answers.send(server.server_address[1], six_slices[:2]).outcome is Outcome.STORED
    finally:
        server.shutdown()
    assert {status for _, status in answers.statuses} == {0x0000}
    assert len(lengths) >= 4
    assert [length for length in lengths if length % 2] == []
    assert max(lengths) <= (maximum or 1 << 17)


def test_a_compressed_instance_that_the_peer_does_not_take_is_refused() -> None:
    one = Outgoing(1, "1.2.3", CT, JPEG_LS, JPEG_LS_FILES[0])
    answers = Answers()
    with scripted_scp(Script()) as port:
        assert answers.send(port, [one]).outcome is Outcome.STORED
    assert answers.statuses == [(1, 0x0122)]


def test_more_kinds_than_one_association_holds_are_sent_over_several(
    six_slices: list[Outgoing], tmp_path: Path
) -> None:
    path = six_slices[0].path
    many = [Outgoing(index, "1.2", f"1.2.3.{index}", EXPLICIT, path) for index in range(70)]
    assert len(proposed_contexts((one.sop_class_uid, EXPLICIT) for one in many)) > 128
    answers = Answers()
    with scripted_scp(Script()) as port:
        batch = [six_slices[0], *many[:63], six_slices[1], *many[63:], six_slices[2]]
        sent = answers.send(port, batch)
    assert sent.outcome is Outcome.STORED
    assert [id for id, status in answers.statuses if status == 0] == [0, 1, 2]
    assert len(answers.statuses) == len(batch)


def test_requested_sockets_wait_for_no_acknowledgement(six_slices: list[Outgoing]) -> None:
    seen = []

    def look() -> bool:
        for thread in threading.enumerate():
            if thread.name.startswith("RequestorThread"):
                sock = thread.dul.socket.socket  # type: ignore[attr-defined]
                seen.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                seen.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK))
        return False

    with scripted_scp(Script()) as port:
        send(peer(port), six_slices[:2], answered=lambda *_: None, stop=look)
    assert len(seen) >= 2
    assert all(seen)
