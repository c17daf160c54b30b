"""Associations with the small oddities that DCMTK and Orthanc take, on either side."""

import logging
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.dicom.scu import PeerAddress, echo
from tests.node_scp import Node, node_scp
from tests.peers import wait_until
from tests.raw_peer import (
    ABORT,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    ASSOCIATE_RQ,
    CT,
    EXPLICIT,
    IMPLICIT,
    P_DATA,
    VERIFICATION,
    RawPeer,
    command_set,
    data_set,
    echo_command,
    fragment,
    pdu,
    store_command,
)

LENGTH = struct.pack(">I", 16384)


@pytest.fixture(params=[True, False], ids=["direct", "library"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    with node_scp(tmp_path, is_direct=request.param) as running:
        yield running


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


def context(number: int = 1, abstract: bytes = CT.encode(), syntax: bytes = b"") -> bytes:
    inner = item(0x30, abstract) + item(0x40, syntax or EXPLICIT.encode())
    return item(0x20, bytes([number, 0, 0, 0]) + inner)


def request(
    *,
    called: bytes = b"MIDSLICE",
    calling: bytes = b"RAW",
    pad: bytes = b" ",
    version: int = 1,
    application: bytes = b"1.2.840.10008.3.1.1.1",
    contexts: bytes = context(),
    length: bytes | None = LENGTH,
    class_uid: bytes = b"1.2.3.99",
    user: bytes = b"",
) -> bytes:
    """An A-ASSOCIATE-RQ with one part or another as no standard has it."""
    names = called.ljust(16, pad) + calling.ljust(16, pad)
    maximum = item(0x51, length) if length is not None else b""
    own = item(0x52, class_uid) if class_uid else b""
    items = item(0x10, application) + contexts + item(0x50, maximum + own + user)
    return pdu(ASSOCIATE_RQ, struct.pack(">HH", version, 0) + names + bytes(32) + items)


@pytest.mark.parametrize(
    ("asked", "calling"),
    [
        (request(pad=b"\0"), "RAW"),
        (request(calling=b"CT1\0"), "CT1"),
        (request(calling=b"CT1\0old name"), "CT1"),
        (request(calling=b"  CT1"), "CT1"),
        (request(calling="CT_KÖLN".encode("latin-1")), "CT_KÖLN"),
        (request(calling="CT_KÖLN".encode()), "CT_KÖLN"),
        (request(calling=b"CT\\1"), "CT\\1"),
        (request(calling=b"CT\n1\x7f"), "CT?1?"),
        (request(version=3), "RAW"),
        (request(application=b"1.2.840.10008.3.1.1.1\0"), "RAW"),
        (request(user=item(0x55, b"A_LONG_VERSION_NAME_1")), "RAW"),
        (request(user=item(0x55, b"VERSION_2\0")), "RAW"),
        (request(user=item(0x55, b"VERSI\xd6N")), "RAW"),
        (request(user=item(0x55, b"")), "RAW"),
        (request(user=item(0x60, b"xx")), "RAW"),
        (request(user=item(0x53, b"x") + item(0x58, b"\1")), "RAW"),
        (request(class_uid=b""), "RAW"),
        (request(class_uid=b"1.2.3.99\0"), "RAW"),
        (request(class_uid=b"no UID"), "RAW"),
        (request(length=None), "RAW"),
        (request(length=b"\0\0"), "RAW"),
        (request(length=struct.pack(">I", 16385)), "RAW"),
        (request(contexts=context(abstract=CT.encode() + b"\0")), "RAW"),
        (request(contexts=context(syntax=EXPLICIT.encode() + b" ")), "RAW"),
        (request(contexts=context() + context(3, abstract=b"no UID")), "RAW"),
        (request(contexts=context() + context(3, syntax=b"no UID")), "RAW"),
    ],
)
def test_an_odd_request_is_accepted_and_its_instance_stored(
    node: Node, asked: bytes, calling: str
) -> None:
    with RawPeer(node.port) as peer:
        assert peer.associate(asked)[0] == ASSOCIATE_AC
        assert peer.status(store_command(), data_set()) == 0x0000
    assert node.archive.kept[0].peer.calling_ae == calling


@pytest.mark.parametrize("number", [2, 254, 0])
def test_an_even_context_id_is_answered_as_it_is(node: Node, number: int) -> None:
    asked = request(contexts=context(1, VERIFICATION.encode()) + context(number))
    with RawPeer(node.port) as peer:
        kind, value = peer.associate(asked)
        assert kind == ASSOCIATE_AC
        assert item(0x21, bytes([number, 0, 0, 0]) + item(0x40, EXPLICIT.encode())) in value
        peer.send(fragment(store_command(), context_id=number, command=True))
        peer.send(fragment(data_set(), context_id=number))
        kind, value = peer.receive()
        assert (kind, value[4]) == (P_DATA, number)
        assert command_set(value[6:])[0x0900] == b"\0\0"
        peer.send(fragment(echo_command(), context_id=1, command=True))
        assert peer.receive()[1][4] == 1


@pytest.mark.parametrize("length", [27, 8, 7, 1])
def test_an_answer_has_only_fragments_of_even_length(node: Node, length: int) -> None:
    with RawPeer(node.port) as peer:
        peer.associate(request(length=struct.pack(">I", length)))
        peer.send(fragment(store_command(), command=True))
        peer.send(fragment(data_set()))
        answer, last = b"", False
        while not last:
            kind, value = peer.receive()
            assert kind == P_DATA
            assert len(value) <= max(8, length)
            assert len(value) % 2 == 0
            answer, last = answer + value[6:], bool(value[5] & 2)
    assert command_set(answer)[0x0900] == b"\0\0"


@pytest.mark.parametrize(
    ("asked", "why", "answer"),
    [
        (pdu(ASSOCIATE_RQ, bytes(20)), "fewer than its fixed part", ABORT),
        (request(contexts=b"\x20\0\xff\xff"), "the length of an item of type 20H is wrong", ABORT),
        (request(contexts=b"\x20\0"), "the length of an item of type 20H is wrong", ABORT),
        (request(contexts=item(0x20, b"\1")), "the length of an item of type 20H", ABORT),
        (request(contexts=item(0x20, b"\1\0\0\0")), "context has no abstract syntax", ABORT),
        (request(version=2), "protocol version 2", ASSOCIATE_RJ),
    ],
)
def test_a_request_that_nobody_can_read_is_an_event_and_stands_with_the_rejected_ones(
    node: Node, caplog: pytest.LogCaptureFixture, asked: bytes, why: str, answer: int
) -> None:
    with RawPeer(node.port) as peer:
        port = peer.socket.getsockname()[1]
        assert peer.associate(asked)[0] == answer
    wait_until(lambda: bool(node.archive.rejections()), what="it is remembered")
    assert why in str(node.archive.rejections()[0][2])
    (event,) = [line for line in caplog.records if line.message == "association rejected"]
    assert (event.__dict__["address"], event.__dict__["port"]) == ("127.0.0.1", port)
    assert why in event.__dict__["reason"]
    assert "unhandled exception" not in caplog.text
    with RawPeer(node.port) as peer:
        assert peer.associate()[0] == ASSOCIATE_AC


@pytest.mark.parametrize(
    ("end", "how", "by", "reason"),
    [
        (lambda peer: peer.release(), "released", "peer", ""),
        (lambda peer: peer.send(pdu(ABORT, bytes(4))), "aborted", "peer", "by its application"),
        (lambda peer: peer.send(pdu(ABORT, b"\0\0\2\2")), "aborted", "peer", "unexpected PDU"),
        (lambda peer: peer.socket.close(), "dropped", "peer", "the connection broke"),
        (lambda peer: peer.send(pdu(9, bytes(4))), "aborted", "node", "is not a DICOM message"),
    ],
)
def test_the_end_of_an_association_is_an_event(
    node: Node,
    caplog: pytest.LogCaptureFixture,
    end: Callable[[RawPeer], object],
    how: str,
    by: str,
    reason: str,
) -> None:
    caplog.set_level(logging.INFO)
    with RawPeer(node.port) as peer:
        peer.associate()
        peer.status(store_command(), data_set())
        end(peer)
        wait_until(lambda: bool(node.archive.ends()), what="the association has ended")
    (event,) = [line.__dict__ for line in caplog.records if line.message == "association ended"]
    assert (event["how"], event["by"], event["instances"]) == (how, by, 1)
    assert reason in event["reason"]


@pytest.mark.parametrize(
    ("idle_seconds", "reason"), [(0.5, "nothing came for 0.5 s"), (60.0, "the node stops")]
)
def test_the_node_says_why_it_aborts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, idle_seconds: float, reason: str
) -> None:
    with node_scp(tmp_path, idle_seconds=idle_seconds) as node, RawPeer(node.port) as peer:
        peer.associate()
        if idle_seconds > 1:
            node.scp.abort()
        assert peer.receive()[0] == ABORT
        wait_until(lambda: bool(node.archive.ends()), what="the association has ended")
    (event,) = [line.__dict__ for line in caplog.records if line.message == "association ended"]
    assert (event["how"], event["by"], event["reason"]) == ("aborted", "node", reason)


def test_contexts_that_are_refused_are_named(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    jpip = b"1.2.840.10008.1.2.4.94"
    with RawPeer(node.port) as peer:
        peer.associate(request(contexts=context(1) + context(3, syntax=jpip)))
        wait_until(lambda: bool(accepted(caplog)), what="it is logged")
    (event,) = accepted(caplog)
    assert event.__dict__["refused"] == ["CT Image Storage in JPIP Referenced"]


def accepted(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [line for line in caplog.records if line.message == "association accepted"]


def answers(asked: bytes, user: bytes) -> bytes:
    """An A-ASSOCIATE-AC that takes the first transfer syntax of each context."""
    items, at = item(0x10, b"1.2.840.10008.3.1.1.1"), 68
    while at < len(asked):
        kind, length = struct.unpack_from(">BxH", asked, at)
        body, at = asked[at + 4 : at + 4 + length], at + 4 + length
        if kind == 0x20:
            items += item(0x21, body[:1] + bytes(3) + item(0x40, IMPLICIT.encode() + b"\0"))
    return pdu(ASSOCIATE_AC, asked[:68] + items + item(0x50, user))


@contextmanager
def destination(user: bytes) -> Iterator[PeerAddress]:
    """A peer that accepts with this user information and answers one C-ECHO."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            with client:
                head = client.recv(6, socket.MSG_WAITALL)
                asked = client.recv(struct.unpack(">I", head[2:])[0], socket.MSG_WAITALL)
                client.sendall(answers(asked, user))
                while head := client.recv(6, socket.MSG_WAITALL):
                    body = client.recv(struct.unpack(">I", head[2:])[0], socket.MSG_WAITALL)
                    if head[0] != P_DATA:
                        break
                    client.sendall(fragment(echo_answer(), context_id=body[4], command=True))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield PeerAddress("PACS", "127.0.0.1", server.getsockname()[1], "MIDSLICE")
        thread.join(5)


def echo_answer() -> bytes:
    def element(number: int, value: bytes) -> bytes:
        return struct.pack("<HHI", 0, number, len(value)) + value

    group = element(0x0002, VERIFICATION.encode() + b"\0") + element(0x0100, b"\x30\x80")
    group += element(0x0120, b"\1\0") + element(0x0800, b"\1\1") + element(0x0900, b"\0\0")
    return element(0x0000, struct.pack("<I", len(group))) + group


@pytest.mark.parametrize(
    "odd",
    [
        item(0x55, b"A_LONG_VERSION_NAME_1"),
        item(0x55, b"PACS_2\0"),
        item(0x60, b"xx"),
        item(0x53, b"x"),
    ],
)
def test_an_odd_acceptance_is_taken(odd: bytes) -> None:
    with destination(item(0x51, LENGTH) + item(0x52, b"1.2.3.98") + odd) as peer:
        assert echo(peer).sentence == "PACS answers."


@pytest.mark.parametrize("user", [b"", item(0x52, b"1.2.3.98")])
def test_an_acceptance_without_a_maximum_length_is_taken(user: bytes) -> None:
    with destination(user) as peer:
        assert echo(peer).ok


def test_an_acceptance_that_nobody_can_read_is_not_called_an_abort() -> None:
    with destination(b"\x51\0\xff\xff") as peer:
        sentence = echo(peer).sentence
    assert "in a form that the node does not understand: the length of an item" in sentence
