"""What arrives on an association on its way to disk, and the connection's deadlines."""

import errno
import os
import queue
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_ECHO, C_STORE

from node.dicom.incoming import NO_UID, Incoming, Refusal, part10_head, uid_of
from node.dicom.status import SOP_CLASS_NOT_SUPPORTED, UID_INVALID
from node.dicom.transport import ESTABLISHED, LONGEST_PDU_BYTES, PromptSocket
from node.dicom.upper_layer import (
    INVALID_PDU,
    LONGEST_COMMAND_BYTES,
    LONGEST_OTHER_DATA_SET_BYTES,
    WAKE,
    Provider,
    Receiver,
)
from tests.raw_peer import CT, EXPLICIT, MR, data_set, echo_command, store_command
from tests.unit.dicom.receiving import fragment, receiver

HEAD = part10_head(sop_class_uid=CT, instance_uid="1.2.3.4", transfer_syntax=EXPLICIT)


C_FIND = 0x0020


def request_of(command_field: int) -> bytes:
    """The command set of another request, which says that a data set follows."""
    store, other = (struct.pack("<HHIH", 0, 0x0100, 2, field) for field in (1, command_field))
    return store_command().replace(store, other)


def next_request(dimse: Receiver) -> C_STORE:
    """The C-STORE request that the association's thread is given next."""
    _, request = dimse.get_msg()
    assert isinstance(request, C_STORE)
    return request


def incoming_of(request: C_STORE) -> Incoming:
    assert isinstance(request.DataSet, Incoming)
    return request.DataSet


def events(dimse: Receiver) -> list[object]:
    """What the state machine was told."""
    return list(dimse.dul.event_queue.queue)


@pytest.mark.parametrize(
    ("value", "uid"),
    [
        (b"1.2.3", "1.2.3"),
        (b"1.2.3\0", "1.2.3"),
        (b"1.02 ", "1.02"),  # old scanners
        (b"9" * 64, "9" * 64),
        (b"9" * 65, ""),
        (b"1.2/../3", ""),
        (b"1.2\n", ""),
        (b"", ""),
    ],
)
def test_a_uid_is_digits_and_dots_and_nothing_that_hurts(value: bytes, uid: str) -> None:
    assert uid_of(value) == uid


def test_a_data_set_that_has_arrived_is_a_part_10_file(tmp_path: Path) -> None:
    incoming = Incoming(tmp_path, HEAD)
    content = data_set()
    assert incoming.write(content[:100]) == 100
    incoming.write(content[100:])
    (arriving,) = tmp_path.iterdir()
    assert arriving.suffix == ".part"
    path, data_at, *_ = incoming.finish()
    assert list(tmp_path.iterdir()) == [path] == [arriving]
    assert path.read_bytes()[data_at:] == content
    assert dcmread(path).SOPInstanceUID == "1.2.3.4"


GROUP_2 = {
    "explicit VR": b"\2\0\1\0OB\0\0\2\0\0\0\0\1" + b"\2\0\x10\0UI\x12\x001.2.840.10008.1.2\0",
    "implicit VR": b"\2\0\0\0\4\0\0\0\x1a\0\0\0" + b"\2\0\x10\0\x12\0\0\x001.2.840.10008.1.2\0",
}


@pytest.mark.parametrize("size", [1, 5, 12, 100, 10_000])
@pytest.mark.parametrize("how", GROUP_2)
def test_group_2_in_a_data_set_is_left_out_however_it_is_cut_up(
    tmp_path: Path, how: str, size: int
) -> None:
    incoming = Incoming(tmp_path, HEAD)
    content = GROUP_2[how] + data_set()
    for at in range(0, len(content), size):
        piece = content[at : at + size]
        assert incoming.write(piece) == len(piece)
    path, data_at, *_ = incoming.finish()
    assert path.read_bytes()[data_at:] == data_set()


@pytest.mark.parametrize("length", [0, 1, 2, 6, 14, 27])
def test_a_data_set_that_ends_in_group_2_breaks_nothing(tmp_path: Path, length: int) -> None:
    incoming = Incoming(tmp_path, HEAD)
    content = GROUP_2["explicit VR"][:length]
    incoming.write(content)
    path, data_at, *_ = incoming.finish()
    assert path.read_bytes()[data_at:] in (content, content[14:])


def test_a_deflated_data_set_that_begins_like_group_2_is_kept_whole(tmp_path: Path) -> None:
    incoming = Incoming(tmp_path, HEAD, has_elements=False)
    incoming.write(GROUP_2["explicit VR"])
    path, data_at, *_ = incoming.finish()
    assert path.read_bytes()[data_at:] == GROUP_2["explicit VR"]


def test_a_disk_without_room_ends_the_writing_and_the_rest_is_read_and_dropped(
    tmp_path: Path,
) -> None:
    incoming = Incoming(tmp_path, HEAD, min_free_bytes=1 << 60)
    assert incoming.write(b"fragment") == 8
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        incoming.finish()


def test_what_is_spoiled_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    incoming = Incoming(tmp_path, HEAD)
    incoming.spoil(Refusal(UID_INVALID, "no UID"))
    incoming.write(b"fragment")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Refusal, match="no UID"):
        incoming.finish()


def test_what_was_moved_into_the_archive_is_not_discarded(tmp_path: Path) -> None:
    incoming = Incoming(tmp_path, HEAD)
    path, *_ = incoming.finish()
    kept = path.rename(tmp_path / "kept.dcm")
    incoming.discard()
    assert kept.exists()


def test_a_request_in_fragments_is_one_file_and_one_message(tmp_path: Path) -> None:
    dimse, command, content = receiver(tmp_path), store_command(), data_set()
    dimse.receive_primitive(fragment(command[:50], command=True, last=False))
    dimse.receive_primitive(fragment(command[50:], command=True))
    dimse.receive_primitive(fragment(content[:700], last=False))
    assert dimse.get_msg() == WAKE  # it is not whole
    dimse.receive_primitive(fragment(content[700:]))
    request = next_request(dimse)
    assert request.AffectedSOPInstanceUID == "1.2.3.4"
    path, data_at, *_ = incoming_of(request).finish()
    assert path.read_bytes()[data_at:] == content
    assert str(dcmread(path).file_meta.TransferSyntaxUID) == EXPLICIT


def test_a_request_that_is_not_answered_any_more_leaves_no_file(tmp_path: Path) -> None:
    dimse = receiver(tmp_path)
    for _ in range(2):  # one whole in the queue, one half
        dimse.receive_primitive(fragment(store_command(), command=True))
        dimse.receive_primitive(fragment(data_set()))
    dimse.receive_primitive(fragment(store_command(), command=True))
    assert len(list(tmp_path.iterdir())) == 3
    dimse.discard()
    assert list(tmp_path.iterdir()) == []


def test_an_echo_passes_without_a_file(tmp_path: Path) -> None:
    dimse = receiver(tmp_path)
    dimse.receive_primitive(fragment(echo_command(), command=True))
    _, request = dimse.get_msg(block=True)
    assert isinstance(request, C_ECHO)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "status", "mended"),
    [
        (store_command(b""), UID_INVALID, (CT, NO_UID)),
        (store_command(b"DOE^JANE"), UID_INVALID, (CT, NO_UID)),
        (store_command(sop_class=MR.encode()), SOP_CLASS_NOT_SUPPORTED, (CT, "1.2.3.4")),
        (store_command(sop_class=b""), SOP_CLASS_NOT_SUPPORTED, (CT, "1.2.3.4")),
    ],
    ids=["no UID", "no digits", "class of another context", "no class"],
)
def test_a_command_that_the_library_could_not_answer_is_mended_and_refused(
    tmp_path: Path, command: bytes, status: int, mended: tuple[str, str]
) -> None:
    dimse = receiver(tmp_path)
    dimse.receive_primitive(fragment(command, command=True))
    dimse.receive_primitive(fragment(data_set()))
    request = next_request(dimse)
    assert (request.AffectedSOPClassUID, request.AffectedSOPInstanceUID) == mended
    with pytest.raises(Refusal) as refusal:
        incoming_of(request).finish()
    assert refusal.value.status == status
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "indication",
    [
        fragment(request_of(0x7777), command=True),
        fragment(store_command(), command=True, context_id=3),
        fragment(bytes(LONGEST_COMMAND_BYTES + 1), command=True, last=False),
    ],
    ids=["unknown command", "context that was not accepted", "endless command"],
)
def test_what_is_no_dimse_message_aborts_the_association(
    tmp_path: Path, indication: object
) -> None:
    dimse = receiver(tmp_path)
    dimse.receive_primitive(indication)  # type: ignore[arg-type]
    assert INVALID_PDU in events(dimse)
    assert dimse.message is None
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_that_no_command_announced_may_not_fill_the_memory(tmp_path: Path) -> None:
    dimse = receiver(tmp_path)
    dimse.receive_primitive(fragment(request_of(C_FIND), command=True))
    dimse.receive_primitive(fragment(bytes(LONGEST_OTHER_DATA_SET_BYTES), last=False))
    assert events(dimse) == []
    dimse.receive_primitive(fragment(b"\0", last=False))
    assert INVALID_PDU in events(dimse)


def test_the_associations_thread_wakes_for_what_its_upper_layer_has_to_say(
    tmp_path: Path,
) -> None:
    association = Association(AE("MIDSLICE"), "acceptor")
    association.dimse = dimse = Receiver(association, tmp_path)
    provider = Provider(association)
    provider.to_user_queue.put("an indication")
    assert dimse.msg_queue.get_nowait() == WAKE
    assert provider._run_loop_delay == 0.001  # another thread than its own does not wait
    _close(provider)


def test_the_upper_layers_thread_sleeps_until_there_is_something_to_send() -> None:
    association = Association(AE("MIDSLICE"), "acceptor")
    provider = Provider(association)
    woken: queue.Queue[float] = queue.Queue()

    def nap() -> None:
        began = time.monotonic()
        provider.rest()
        woken.put(time.monotonic() - began)

    provider._ring.send(b"!")  # somebody rang before
    nap()
    assert woken.get_nowait() < 0.04
    nap()
    assert woken.get_nowait() >= 0.04  # nobody has rung: the timers' own time
    _close(provider)


def _close(provider: Provider) -> None:
    provider._ring.close()
    provider._rung.close()


@pytest.fixture
def ends() -> Iterator[tuple[PromptSocket, socket.socket]]:
    """A connection of ours, which has a fifth of a second for each PDU, and the peer's end."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    connection = PromptSocket(Association(AE("MIDSLICE"), "acceptor"), 0.2, connection=ours)
    yield connection, theirs
    ours.close()
    theirs.close()


Ends = tuple[PromptSocket, socket.socket]


def establish(connection: PromptSocket) -> None:
    connection.assoc.dul.state_machine.current_state = ESTABLISHED


def test_a_pdu_is_read_whole_however_it_comes(ends: Ends) -> None:
    ours, theirs = ends
    theirs.sendall(b"abc")
    later = threading.Timer(0.05, theirs.sendall, (b"defgh",))
    later.start()
    assert ours.recv(6) == b"abcdef"
    later.join()
    assert ours.recv(2) == b"gh"
    assert not ours.is_lost


def test_a_peer_that_stops_in_the_middle_of_a_pdu_is_lost(ends: Ends) -> None:
    ours, theirs = ends
    establish(ours)
    theirs.sendall(b"abc")
    with pytest.raises(TimeoutError):
        ours.recv(6)
    assert ours.is_lost


def test_a_peer_that_closes_in_the_middle_of_a_pdu_is_lost(ends: Ends) -> None:
    ours, theirs = ends
    establish(ours)
    theirs.sendall(b"abc")
    theirs.close()
    assert ours.recv(6) == b"abc"
    assert ours.is_lost


def test_a_connection_that_never_became_an_association_is_not_lost(ends: Ends) -> None:
    ours, theirs = ends
    theirs.close()
    assert ours.recv(6) == b""
    assert not ours.is_lost


def test_a_pdu_that_announces_more_than_any_has_is_not_read(ends: Ends) -> None:
    with pytest.raises(OSError, match="allowed are"):
        ends[0].recv(LONGEST_PDU_BYTES + 1)


def test_what_is_written_arrives_and_a_peer_that_takes_nothing_is_dropped(ends: Ends) -> None:
    ours, theirs = ends
    ours.send(b"abc")
    ours.write(b"def")
    assert theirs.recv(3, socket.MSG_WAITALL) == b"abc"
    assert theirs.recv(3, socket.MSG_WAITALL) == b"def"
    ours.write(bytes(64 << 20))  # more than the buffers of both ends, and nobody reads
    assert ours.socket is not None
    with pytest.raises(OSError, match="Broken pipe"):
        ours.socket.sendall(b"more")


def test_a_connection_that_was_hung_up_says_nothing_more(ends: Ends) -> None:
    ours, theirs = ends
    ours.hang_up()
    assert theirs.recv(1) == b""
    ours.socket = None
    ours.send(b"abc")
    ours.write(b"abc")
