"""What the Storage SCU writes to a peer that says just the bytes it is told, and what it reads."""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.dicom.messages import StoreRequest, store_command, store_status
from node.dicom.requests import BLOCK_BYTES
from node.dicom.scu import Outgoing, SendResult, Timeouts, echo, send
from node.dicom.status import Outcome
from tests.ports import HOST
from tests.raw_peer import (
    ABORT,
    ASSOCIATE_AC,
    CT,
    EXPLICIT,
    P_DATA,
    RELEASE_RP,
    RELEASE_RQ,
    command_set,
    data_set_bytes,
    fragment,
    pdu,
)
from tests.sending import Answers, peer

# What is sent back for a request: the peer is told its message id and its number, from 0.
Reply = Callable[[int, int], list[bytes]]


class Scp:
    """An SCP written by hand: accepts one association after the other, and keeps what it reads."""

    def __init__(self, reply: Reply, *, maximum: int = 16384, stalls: bool = False) -> None:
        self.listener = socket.create_server((HOST, 0))
        self.port = int(self.listener.getsockname()[1])
        self.requests: list[tuple[dict[int, bytes], bytes]] = []
        self.fragments: list[int] = []
        self.kinds: list[int] = []  # of PDUs that are no data
        self._reply, self._maximum, self._stalls = reply, maximum, stalls
        self.over = threading.Event()

    def serve(self) -> None:
        """Answer until the test is over."""
        while not self.over.is_set():
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            connection.settimeout(20.0)
            with connection, connection.makefile("rb") as stream:
                self._associate(connection, self._pdu(stream)[1])
                if self._stalls:
                    self.over.wait(20.0)
                    continue
                with suppress(ConnectionError):  # the requestor has left already
                    self._converse(connection, stream)

    def _associate(self, connection: socket.socket, request: bytes) -> None:
        item = b"\x40\0" + struct.pack(">H", len(EXPLICIT)) + EXPLICIT.encode()
        context = bytes([1, 0, 0, 0]) + item
        other = bytes([3, 0, 3, 0]) + item  # Implicit VR: not taken
        users = b"\x51\0\0\x04" + struct.pack(">I", self._maximum)
        items = b"\x10\0\0\x151.2.840.10008.3.1.1.1" + b"".join(
            bytes([kind, 0]) + struct.pack(">H", len(value)) + value
            for kind, value in ((0x21, context), (0x21, other), (0x50, users))
        )
        connection.sendall(
            pdu(ASSOCIATE_AC, struct.pack(">HH", 1, 0) + request[4:36] + bytes(32) + items)
        )

    def _converse(self, connection: socket.socket, stream: object) -> None:
        parts: dict[int, bytes] = {0: b"", 1: b""}
        while True:
            kind, value = self._pdu(stream)
            if kind != P_DATA:
                self.kinds.append(kind)
                if kind == RELEASE_RQ:
                    connection.sendall(pdu(RELEASE_RP, bytes(4)))
                return
            control = value[5]
            self.fragments.append(len(value) - 6)
            parts[control & 1] += value[6:]
            if control == 3 and command_set(parts[1])[0x0800] == b"\x01\x01":
                return  # a request without a data set
            if control == 2:
                command = command_set(parts[1])
                (message_id,) = struct.unpack("<H", command[0x0110])
                self.requests.append((command, parts[0]))
                parts = {0: b"", 1: b""}
                for said in self._reply(message_id, len(self.requests) - 1):
                    if not said:
                        return
                    connection.sendall(said)

    @staticmethod
    def _pdu(stream: object) -> tuple[int, bytes]:
        head = stream.read(6)  # type: ignore[attr-defined]
        if len(head) < 6:
            return 0, b""
        kind, length = struct.unpack(">BxI", head)
        return kind, stream.read(length)  # type: ignore[attr-defined]


@contextmanager
def scp(reply: Reply, **options: object) -> Iterator[Scp]:
    """Serve in a thread for as long as the block lasts."""
    server = Scp(reply, **options)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.listener.shutdown(socket.SHUT_RDWR)
        server.listener.close()
        thread.join(20.0)


def element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, number, len(value)) + value


def response(
    message_id: int, status: int = 0, *, field: int = 0x8001, further: bytes = b""
) -> bytes:
    """The command set of a C-STORE response."""
    numbers = ((0x0100, field), (0x0120, message_id), (0x0800, 0x0101), (0x0900, status))
    group = b"".join(element(number, struct.pack("<H", value)) for number, value in numbers)
    group += further
    return element(0, struct.pack("<I", len(group))) + group


def answered(message_id: int, _number: int) -> list[bytes]:
    return [fragment(response(message_id), command=True)]


def test_each_instance_arrives_with_its_own_command_and_the_bytes_of_its_file(
    six_slices: list[Outgoing],
) -> None:
    answers = Answers()
    with scp(answered) as server:
        assert answers.send(server.port, six_slices).outcome is Outcome.STORED
    assert len(server.requests) == 6
    for number, (file, (command, data)) in enumerate(zip(six_slices, server.requests, strict=True)):
        assert command[0x0002].rstrip(b"\0").decode() == CT
        assert command[0x1000].rstrip(b"\0").decode() == file.instance_uid
        assert struct.unpack("<H", command[0x0110]) == (number + 1,)
        assert data == data_set_bytes(file.path)
    assert server.kinds == [RELEASE_RQ]


@pytest.mark.parametrize("maximum", [0, 8, 131, 16383, 16384, 131072, 1 << 30])
def test_a_data_set_longer_than_a_block_arrives_whole_at_any_maximum(
    tmp_path: Path, maximum: int
) -> None:
    length = 2 * BLOCK_BYTES + 77774 if maximum == 0 or maximum > 1000 else 250 * maximum
    path = tmp_path / "long.dcm"
    meta = element(0x0010, b"")
    path.write_bytes(bytes(128) + b"DICM\2\0\0\0UL\4\0" + struct.pack("<I", len(meta)) + meta)
    content = bytes(range(256)) * (length // 256) + bytes(length % 256)
    with path.open("ab") as file:
        file.write(content)
    answers = Answers()
    with scp(answered, maximum=maximum) as server:
        one = Outgoing(1, "1.2.3", CT, EXPLICIT, path)
        assert answers.send(server.port, [one, one]).outcome is Outcome.STORED
    assert [data for _, data in server.requests] == [content, content]
    assert not [length for length in server.fragments if length % 2]
    assert max(server.fragments) <= (min(maximum, 1 << 17) or 1 << 17) - 6


COMMENT = element(0x0902, b"No order ")
OFFENDING = element(0x0901, struct.pack("<HH", 0x0010, 0x0020))


@pytest.mark.parametrize(
    ("further", "comment"),
    [
        (b"", ""),
        (COMMENT, "No order"),
        (OFFENDING + COMMENT, "No order; offending elements (0010,0020) PatientID"),
        (element(0x0902, b"\xe4\xff"), "\xe4\xff"),
    ],
)
def test_a_status_comes_with_its_comment(
    six_slices: list[Outgoing], further: bytes, comment: str
) -> None:
    def reply(message_id: int, _number: int) -> list[bytes]:
        return [fragment(response(message_id, 0xA700, further=further), command=True)]

    answers = Answers()
    with scp(reply) as server:
        assert answers.send(server.port, six_slices[:2]).outcome is Outcome.STORED
    assert answers.statuses == [(0, 0xA700), (1, 0xA700)]
    assert answers.comments == [comment, comment]


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(1, 80), max_size=4), split=st.integers(1, 100))
def test_a_response_is_read_however_it_is_cut(
    six_slices: list[Outgoing], cuts: list[int], split: int
) -> None:
    """Into PDUs at any place, and each of them sent in two pieces."""

    def reply(message_id: int, _number: int) -> list[bytes]:
        command, pieces, at = response(message_id, further=COMMENT), [], 0
        for cut in sorted(set(cuts)):
            if at < cut < len(command):
                pieces.append(fragment(command[at:cut], command=True, last=False))
                at = cut
        whole = b"".join([*pieces, fragment(command[at:], command=True)])
        return [part for part in (whole[:split], whole[split:]) if part]

    answers = Answers()
    with scp(reply) as server:
        assert answers.send(server.port, six_slices[:2]).outcome is Outcome.STORED
    assert answers.statuses == [(0, 0), (1, 0)]


def other(command: bytes) -> Reply:
    return lambda message_id, number: (
        [fragment(command, command=True)] if number else answered(message_id, number)
    )


WRONG: dict[str, Reply] = {
    "another request's": other(response(77)),
    "the one before's": other(response(1)),
    "no response": other(response(2, field=0x0001)),
    "an echo's": other(response(2, field=0x8030)),
    "no status": other(element(0x0100, b"\1\x80") + element(0x0120, b"\2\0")),
    "no command set": other(b"\0\0\0\1\4"),
    "a data set": lambda message_id, number: (
        [fragment(response(message_id))] if number else answered(message_id, number)
    ),
    "twice": lambda message_id, number: 2 * answered(message_id, number),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_answer_to_the_last_request_stores_nothing_and_ends_the_association(
    six_slices: list[Outgoing], wrong: str
) -> None:
    answers = Answers()
    with scp(WRONG[wrong]) as server:
        sent = answers.send(server.port, six_slices[:4])
    assert sent.outcome is Outcome.RETRY
    assert "so the node aborted the association after 1 of 4" in sent.sentence
    assert answers.statuses == [(0, 0), (1, None)]
    assert server.kinds in ([ABORT], [])  # [] where the peer had not read it when it ended


ENDS: dict[str, tuple[Reply, str]] = {
    "abort": (lambda *_: [pdu(ABORT, bytes([0, 0, 2, 1])), b""], "aborted the association ("),
    "release": (lambda *_: [pdu(RELEASE_RQ, bytes(4))], "ended the association"),
    "close": (lambda *_: [b""], "ended the association"),
    "half a response": (lambda *_: [fragment(response(1), command=True)[:20], b""], "ended"),
    "unknown PDU": (lambda *_: [pdu(0x55, bytes(4))], "is not a DICOM message"),
    "too long": (lambda *_: [struct.pack(">BBI", P_DATA, 0, 1 << 30)], "ended the association"),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_peer_that_ends_the_association_instead_is_left_at_once(
    six_slices: list[Outgoing], end: str
) -> None:
    reply, words = ENDS[end]
    answers = Answers()
    began = time.monotonic()
    with scp(reply) as server:
        sent = send(
            peer(server.port),
            six_slices[:3],
            answered=answers.answered,
            stop=bool,
            timeouts=Timeouts(answer=8.0),
        )
        assert time.monotonic() - began < 6.0
    assert answers.statuses == [(0, None)]
    assert sent.outcome is Outcome.RETRY
    assert words in sent.sentence


@pytest.mark.parametrize("is_abandoned", [False, True], ids=["timeout", "abandon"])
def test_a_peer_that_takes_no_bytes_is_left(tmp_path: Path, is_abandoned: bool) -> None:
    path = tmp_path / "long.dcm"
    path.write_bytes(bytes(128) + b"DICM\2\0\0\0UL\4\0" + bytes(4) + bytes(20 << 20))
    long = Outgoing(1, "1.2.3", CT, EXPLICIT, path)
    seconds = 30.0 if is_abandoned else 0.5
    began = time.monotonic()
    answers = Answers()
    with scp(answered, stalls=True) as server:
        sent = send(
            peer(server.port),
            [long],
            answered=answers.answered,
            stop=bool,
            abandon=lambda: is_abandoned and time.monotonic() > began + 0.5,
            timeouts=Timeouts(answer=seconds),
        )
        assert time.monotonic() - began < 6.0
    assert sent.outcome is Outcome.RETRY
    assert answers.statuses == [(1, None)]


def test_an_error_of_the_caller_while_the_peer_is_silent_ends_the_association_at_once(
    six_slices: list[Outgoing],
) -> None:
    class LeaseLost(Exception):
        pass

    def lost() -> bool:
        raise LeaseLost

    answers = Answers()
    began = time.monotonic()
    with scp(lambda *_: []) as server, pytest.raises(LeaseLost):
        send(peer(server.port), six_slices, answered=answers.answered, stop=bool, abandon=lost)
    assert time.monotonic() - began < 6.0
    assert answers.statuses == []


def test_a_file_that_is_gone_is_no_fault_of_the_instance_before(
    six_slices: list[Outgoing], tmp_path: Path
) -> None:
    gone = Outgoing(9, "1.2.3", CT, EXPLICIT, tmp_path / "gone.dcm")
    answers = Answers()
    with scp(answered) as server, pytest.raises(FileNotFoundError):
        answers.send(server.port, [six_slices[0], gone])
    assert answers.statuses == [(0, 0)]


def test_an_echo_of_a_peer_that_goes_at_once_waits_for_nothing() -> None:
    with scp(lambda *_: []) as server:  # it closes at a message without a data set
        began = time.monotonic()
        for _ in range(5):
            asked = echo(peer(server.port), timeouts=Timeouts(answer=20.0))
            assert not asked.ok
            assert "does not answer the C-ECHO" in asked.sentence
        assert time.monotonic() - began < 15.0


def shared(port: int, files: list[Outgoing], answers: Answers, count: int = 3) -> SendResult:
    return send(
        peer(port),
        files,
        answered=answers.answered,
        stop=bool,
        timeouts=Timeouts(associate=1.0, answer=2.0),
        associations=count,
    )


def test_where_a_peer_gives_one_association_of_three_it_gets_every_instance_over_that_one(
    six_slices: list[Outgoing],
) -> None:
    answers = Answers()
    with scp(answered) as server:  # the others wait for theirs in vain
        assert shared(server.port, six_slices, answers).outcome is Outcome.STORED
    assert sorted(answers.statuses) == [(number, 0) for number in range(6)]
    assert len(server.requests) == 6


@given(st.binary(max_size=60))
def test_no_bytes_are_taken_for_a_status_unless_they_are_a_response(junk: bytes) -> None:
    assert store_status(junk, 1) is None
    command = store_command(StoreRequest(1, CT, "1.2.3", EXPLICIT))
    assert store_status(command, 1) is None
    assert store_status(response(1, 0xB000), 1) == 0xB000
