"""The Storage SCU without a peer: proposals, requests cut into PDUs, the wait for answers."""

import socket
import struct
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE

from node.dicom.contexts import MAX_CONTEXTS, proposed_contexts
from node.dicom.messages import pdus
from node.dicom.scu import Outgoing, _batches, comment_of
from node.dicom.upper_layer import PromptSocket, RequestSender
from tests.raw_peer import CT, EXPLICIT, IMPLICIT, MR, command_set, data_set

JPEG_LS = "1.2.840.10008.1.2.4.80"
TWO_TAGS = "offending elements (0010,0020) PatientID, (0009,1001)"


def test_only_what_is_sent_is_proposed() -> None:
    contexts = proposed_contexts([(CT, EXPLICIT), (CT, EXPLICIT), (MR, JPEG_LS)])
    proposed = [(str(one.abstract_syntax), str(one.transfer_syntax[0])) for one in contexts]
    assert proposed == [
        (CT, EXPLICIT),
        (CT, IMPLICIT),
        (MR, EXPLICIT),
        (MR, IMPLICIT),
        (MR, JPEG_LS),
    ]
    assert all(len(one.transfer_syntax) == 1 for one in contexts)


@pytest.mark.parametrize("most", [1, 7, 1000, 16378])
def test_a_message_is_cut_into_fragments_that_fit(most: int) -> None:
    data = BytesIO(bytes(range(256)) * 8)
    command = b"command!" * 20
    read, kinds = {0: b"", 1: b""}, []
    for one in pdus(command, data, context_id=5, most=most):
        assert one[0] == 4
        assert len(one) - 12 <= most
        assert int.from_bytes(one[2:6], "big") == len(one) - 6
        assert int.from_bytes(one[6:10], "big") == len(one) - 10
        assert one[10] == 5
        read[one[11] & 1] += one[12:]
        kinds.append(one[11])
    assert read == {1: command, 0: bytes(range(256)) * 8}
    assert [kind for kind in kinds if kind & 2] == [3, 2]
    assert kinds[-1] == 2


def test_more_kinds_than_one_association_has_contexts_for_are_sent_over_several() -> None:
    files = [Outgoing(n, "1.2", f"1.2.3.{n % 70}", EXPLICIT, Path("a")) for n in range(140)]
    batches = list(_batches(files))
    assert [file for batch in batches for file in batch] == files
    assert len(batches) > 1
    for batch in batches:
        pairs = [(file.sop_class_uid, file.transfer_syntax) for file in batch]
        assert len(proposed_contexts(pairs)) <= MAX_CONTEXTS


@pytest.fixture
def ends() -> Iterator[tuple[Association, socket.socket]]:
    """An association that has a connection, and the peer's end of it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    theirs.settimeout(20.0)
    association = Association(AE("MIDSLICE"), "requestor")
    association.set_socket(PromptSocket(association, 5.0, connection=ours))
    yield association, theirs
    ours.close()
    theirs.close()


def received(peer: socket.socket) -> tuple[bytes, bytes]:
    """The command and the data set of the message that the peer is sent, put together."""
    parts, control, stream = {0: b"", 1: b""}, 0, peer.makefile("rb")
    while control != 2:  # the last fragment of a data set
        kind, length = struct.unpack(">BxI", stream.read(6))
        value = stream.read(length)
        assert kind == 4
        control = value[5]
        parts[control & 1] += value[6:]
    stream.close()
    return parts[1], parts[0]


@pytest.mark.parametrize("source", ["file", "memory"])
def test_a_request_arrives_with_its_data_set_as_it_was_encoded(
    ends: tuple[Association, socket.socket], tmp_path: Path, source: str
) -> None:
    association, peer = ends
    content = data_set(pixels=300_000)  # several PDUs, and more than is written at once
    request = C_STORE()
    request.MessageID, request.Priority = 7, 0
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = UID(CT), UID("1.2.3.4")
    if source == "file":
        path = tmp_path / "one.dcm"
        path.write_bytes(b"meta" + content)
        request._dataset_path = (path, 4)
    else:
        request.DataSet = BytesIO(content)
    RequestSender(association, lambda: False).send_msg(request, 5)
    command, arrived = received(peer)
    assert command_set(command)[0x1000].rstrip(b"\0") == b"1.2.3.4"
    assert arrived == content


def test_the_associations_own_thread_never_takes_the_senders_answer() -> None:
    sender = RequestSender(Association(AE("MIDSLICE"), "requestor"), lambda: False)
    sender.msg_queue.put((1, "the answer"))  # type: ignore[arg-type]
    assert sender.get_msg(block=False) == (None, None)
    assert sender.get_msg(block=True) == (1, "the answer")


def test_a_sender_that_abandons_waits_for_no_answer() -> None:
    sender = RequestSender(Association(AE("MIDSLICE"), "requestor"), lambda: True)
    began = time.monotonic()
    assert sender.get_msg(block=True) == (None, None)
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize(
    ("comment", "elements", "text"),
    [
        (None, None, ""),
        ("", None, ""),
        ("No order", None, "No order"),
        ("No\r\norder\0", None, "No  order"),
        ("x" * 100, None, "x" * 64),
        (None, 0x00100020, "offending elements (0010,0020) PatientID"),
        (
            "No",
            [0x00100020, 0x00091001],
            "No; " + TWO_TAGS,
        ),
    ],
)
def test_what_a_peer_says_of_its_answer_is_printable_and_short(
    comment: str | None, elements: int | list[int] | None, text: str
) -> None:
    answer = Dataset()
    answer.Status = 0xA900
    if comment is not None:
        element = DataElement(0x00000902, "LO", comment, validation_mode=config.IGNORE)
        answer.add(element)
    if elements is not None:
        answer.OffendingElement = elements
    assert comment_of(answer) == text
