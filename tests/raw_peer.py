"""A peer that says exactly the bytes it is told to: an SCU written by hand on a real socket."""

import socket
import struct
from pathlib import Path
from types import TracebackType

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
SECONDS = 20.0


def element(tag: int, vr: bytes, value: bytes, *, pad: bytes = b" ") -> bytes:
    """One data element, Explicit VR Little Endian; an odd value is padded."""
    if len(value) % 2:
        value += b"\0" if vr in (b"UI", b"OB") else pad
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
        return head + struct.pack("<HI", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def data_set(
    instance_uid: str = "1.2.3.4",
    *,
    sop_class: str = CT,
    study_uid: str = "1.2.3",
    series_uid: str = "1.2.3.1",
    pixels: int = 2000,
) -> bytes:
    """A small CT data set, Explicit VR Little Endian."""
    return b"".join(
        [
            element(0x00080016, b"UI", sop_class.encode()),
            element(0x00080018, b"UI", instance_uid.encode()),
            element(0x00080020, b"DA", b"20260101"),
            element(0x00080060, b"CS", b"CT"),
            element(0x00100020, b"LO", b"P1"),
            element(0x0020000D, b"UI", study_uid.encode()),
            element(0x0020000E, b"UI", series_uid.encode()),
            element(0x7FE00010, b"OW", bytes(pixels)),
        ]
    )


def store_command(
    instance_uid: bytes = b"1.2.3.4\0", *, sop_class: bytes = CT.encode(), message_id: int = 1
) -> bytes:
    """The command set of a C-STORE-RQ; UIDs as given, so that they can be wrong."""
    elements = [
        _command(0x0002, sop_class + b"\0" * (len(sop_class) % 2)),
        _command(0x0100, struct.pack("<H", 0x0001)),
        _command(0x0110, struct.pack("<H", message_id)),
        _command(0x0700, struct.pack("<H", 0)),
        _command(0x0800, struct.pack("<H", 0x0001)),
        _command(0x1000, instance_uid),
    ]
    group = b"".join(elements)
    return _command(0x0000, struct.pack("<I", len(group))) + group


def echo_command() -> bytes:
    """The command set of a C-ECHO-RQ."""
    group = b"".join(
        [
            _command(0x0002, VERIFICATION.encode() + b"\0"),
            _command(0x0100, struct.pack("<H", 0x0030)),
            _command(0x0110, struct.pack("<H", 7)),
            _command(0x0800, struct.pack("<H", 0x0101)),
        ]
    )
    return _command(0x0000, struct.pack("<I", len(group))) + group


def fragment(
    data: bytes, *, context_id: int = 1, command: bool = False, last: bool = True
) -> bytes:
    """One P-DATA-TF PDU with one fragment."""
    control = (1 if command else 0) | (2 if last else 0)
    value = struct.pack(">IBB", len(data) + 2, context_id, control) + data
    return pdu(P_DATA, value)


def pdu(kind: int, value: bytes) -> bytes:
    """A PDU: type, length, value."""
    return struct.pack(">BBI", kind, 0, len(value)) + value


def associate_request(
    *,
    called: str = "MIDSLICE",
    calling: str = "RAW",
    contexts: tuple[tuple[str, tuple[str, ...]], ...] = ((CT, (EXPLICIT,)),),
) -> bytes:
    """An A-ASSOCIATE-RQ; the contexts get the ids 1, 3, 5, ..."""
    items = _item(0x10, b"1.2.840.10008.3.1.1.1")
    for index, (abstract, syntaxes) in enumerate(contexts):
        inner = _item(0x30, abstract.encode())
        inner += b"".join(_item(0x40, syntax.encode()) for syntax in syntaxes)
        items += _item(0x20, bytes([2 * index + 1, 0, 0, 0]) + inner)
    user = _item(0x51, struct.pack(">I", 16384)) + _item(0x52, b"1.2.3.99")
    items += _item(0x50, user)
    titles = called.ljust(16).encode() + calling.ljust(16).encode()
    return pdu(ASSOCIATE_RQ, struct.pack(">HH", 1, 0) + titles + bytes(32) + items)


class RawPeer:
    """A TCP connection to an SCP, and what is said on it."""

    def __init__(self, port: int, *, source: str = "") -> None:
        own = (source, 0) if source else None
        self.socket = socket.create_connection(("127.0.0.1", port), SECONDS, own)
        self.socket.settimeout(SECONDS)

    def __enter__(self) -> "RawPeer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Say it."""
        self.socket.sendall(data)

    def receive(self) -> tuple[int, bytes]:
        """The next PDU: type and value; (0, b"") where the other side has closed."""
        head = self._read(6)
        if len(head) < 6:
            return 0, b""
        kind, _, length = struct.unpack(">BBI", head)
        return kind, self._read(length)

    def associate(self, request: bytes = b"") -> tuple[int, bytes]:
        """Ask for an association; the answer."""
        self.send(request or associate_request())
        return self.receive()

    def store(self, command: bytes, data: bytes, *, context_id: int = 1) -> dict[int, bytes]:
        """A whole C-STORE request; the command set of the answer by element number."""
        self.send(fragment(command, context_id=context_id, command=True))
        self.send(fragment(data, context_id=context_id))
        return self.answer()

    def answer(self) -> dict[int, bytes]:
        """The command set of the next response; empty where there is another PDU."""
        kind, value = self.receive()
        return command_set(value[6:]) if kind == P_DATA else {}

    def status(self, command: bytes, data: bytes) -> int:
        """The status that a C-STORE request is answered with; -1 where there is none."""
        return status_of(self.store(command, data))

    def release(self) -> int:
        """Ask for the release; the type of the answer."""
        self.send(pdu(RELEASE_RQ, bytes(4)))
        return self.receive()[0]

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            try:
                piece = self.socket.recv(length - len(data))
            except ConnectionResetError:
                break
            if not piece:
                break
            data += piece
        return data


def command_set(encoded: bytes) -> dict[int, bytes]:
    """The elements of group 0000 by their number."""
    values, at = {}, 0
    while at < len(encoded):
        _, number, length = struct.unpack_from("<HHI", encoded, at)
        values[number] = encoded[at + 8 : at + 8 + length]
        at += 8 + length
    return values


def status_of(answer: dict[int, bytes]) -> int:
    """The status in a command set; -1 where there is none."""
    return int(struct.unpack("<H", answer[0x0900])[0]) if 0x0900 in answer else -1


def rejection(answer: tuple[int, bytes]) -> tuple[int, int, int]:
    """(result, source, reason) of an A-ASSOCIATE-RJ."""
    kind, value = answer
    assert kind == ASSOCIATE_RJ
    return value[1], value[2], value[3]


def data_set_bytes(path: Path) -> bytes:
    """The data set of a Part 10 file: the group length of its meta information says where."""
    whole = path.read_bytes()
    return whole[144 + struct.unpack_from("<I", whole, 140)[0] :]


def _command(number: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, number, len(value)) + value


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value
