"""What the Storage SCU sends to peers of this process, and how it understands their answers."""

import socket
import threading
from pathlib import Path

import pytest
from pynetdicom import AE, evt

from node.dicom.contexts import proposed_contexts
from node.dicom.scu import Outgoing, send
from node.dicom.status import Outcome
from tests.peers import Script, listening, scripted_scp
from tests.raw_peer import CT, EXPLICIT, MR
from tests.sending import JPEG_LS_FILES, Answers, native, peer

JPEG_LS = "1.2.840.10008.1.2.4.80"


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
    answers = Answers()
    with listening(pacs, handlers) as port:
        assert answers.send(port, six_slices[:2]).outcome is Outcome.STORED
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


def test_several_associations_share_the_instances_of_one_series(tmp_path: Path) -> None:
    files = native(tmp_path, 12)
    callers: set[int] = set()
    together = threading.Barrier(3)

    def store(event: evt.Event) -> int:
        if id(event.assoc) not in callers:
            callers.add(id(event.assoc))
            together.wait(20.0)  # each of the three has an instance on its way
        return 0x0000

    pacs = AE("SCRIPTED")
    pacs.add_supported_context(CT, [EXPLICIT])
    answers = Answers()
    with listening(pacs, [(evt.EVT_C_STORE, store)]) as port:
        sent = send(
            peer(port), files, answered=answers.answered, stop=lambda: False, associations=3
        )
    assert sent.outcome is Outcome.STORED
    assert sorted(answers.statuses) == [(number, 0) for number in range(12)]
    assert len(callers) == 3
