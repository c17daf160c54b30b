"""Association requests and answers as peers write them, in the form that the library reads.

PS3.8 says what they are; DCMTK and Orthanc, which most peers are tried with, take more. What they
take is mended here, before the library decodes it: padding of another kind, bytes that are not
ASCII, user items that nobody knows, context ids that are even, a missing or odd maximum length.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

REQUEST, ACCEPTED, DATA = 0x01, 0x02, 0x04  # types of a PDU: PS3.8 9.3.1
CONTEXT_OF_REQUEST, CONTEXT_OF_ANSWER, USER_INFORMATION = 0x20, 0x21, 0x50
APPLICATION_CONTEXT, ABSTRACT_SYNTAX, TRANSFER_SYNTAX = 0x10, 0x30, 0x40
MAXIMUM_LENGTH, CLASS_UID, ROLES, VERSION_NAME = 0x51, 0x52, 0x54, 0x55

PDU_HEAD_BYTES = 6
ITEMS_AT = 74  # in a request or an answer, after the AE titles and the reserved bytes
CALLED, CALLING = slice(10, 26), slice(26, 42)
LONGEST_VERSION_NAME = 16
# A peer that names no maximum gets what the smallest implementations take; one that names an
# impossible one gets PDUs with one fragment of two bytes.
USUAL_PDU_BYTES, SMALLEST_PDU_BYTES = 16384, 8
NO_UID = b"0.0"  # stands in for one that is none: no SOP Class, no transfer syntax

Item = tuple[int, bytes]


@dataclass(frozen=True)
class Negotiation:
    """A request or an answer as the library reads it; `ids` are the peer's own of contexts."""

    pdu: bytes
    version: int  # of the protocol: 1, or one that nobody knows
    ids: Mapping[int, int] = field(default_factory=dict)  # of the library -> of the peer


def readable(pdu: bytes) -> Negotiation:
    """Mend a request for an association, or its acceptance; ValueError where there is no sense."""
    if len(pdu) < ITEMS_AT:
        raise ValueError(f"it has {len(pdu)} bytes, fewer than its fixed part")
    ids = _free_ids(value[0] for kind, value in _items(pdu[ITEMS_AT:]) if kind in CONTEXTS)
    peers = {own: theirs for theirs, own in ids.items() if own != theirs}
    items = b"".join(_item(kind, _mended(kind, value, ids)) for kind, value in _whole(pdu))
    version = struct.unpack_from(">H", pdu, PDU_HEAD_BYTES)[0]
    if version & 1:  # PS3.8 9.3.2: only this bit is tested
        version = 1
    names = _ascii_title(pdu[CALLED]) + _ascii_title(pdu[CALLING])
    value = struct.pack(">HH", version, 0) + names + bytes(32) + items
    return Negotiation(_pdu(pdu[0], value), version, peers)


def with_ids(pdu: bytes, ids: Mapping[int, int]) -> bytes:
    """An acceptance or data with each presentation context id replaced."""
    if not ids:
        return pdu
    if pdu[0] == ACCEPTED:
        items = ((kind, _with_id(kind, value, ids)) for kind, value in _items(pdu[ITEMS_AT:]))
        return pdu[:ITEMS_AT] + b"".join(_item(*item) for item in items)
    if pdu[0] != DATA:
        return pdu
    mended, at = bytearray(pdu), PDU_HEAD_BYTES
    while at + 5 <= len(mended):  # PS3.8 9.3.5.1: the length, then the id
        mended[at + 4] = ids.get(mended[at + 4], mended[at + 4])
        at += 4 + int(struct.unpack_from(">I", mended, at)[0])
    return bytes(mended)


def titles(pdu: bytes) -> tuple[str, str]:
    """Calling and called AE title of a request, for people: as the peer writes them."""
    return _shown(pdu[CALLING]), _shown(pdu[CALLED])


def _shown(title: bytes) -> str:
    stripped = _title(title)
    try:
        text = stripped.decode()
    except UnicodeDecodeError:
        text = stripped.decode("latin-1")
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _title(title: bytes) -> bytes:
    return title.split(b"\0")[0].strip()


def _ascii_title(title: bytes) -> bytes:
    """An AE title that the library takes: PS3.5 6.2, without control characters and backslash."""
    return _ascii(_title(title)).replace(b"\\", b"?").ljust(16)


def _ascii(value: bytes) -> bytes:
    return bytes(byte if 0x20 <= byte < 0x7F else ord("?") for byte in value)


def _whole(pdu: bytes) -> Iterator[Item]:
    """The items, with a user information even where the peer sends none."""
    kinds = set()
    for kind, value in _items(pdu[ITEMS_AT:]):
        kinds.add(kind)
        yield kind, value
    if USER_INFORMATION not in kinds:
        yield USER_INFORMATION, b""


def _mended(kind: int, value: bytes, ids: Mapping[int, int]) -> bytes:
    mend: Callable[[bytes], bytes] | None = MENDED.get(kind)
    value = _with_id(kind, value, ids)
    return value if mend is None else mend(value)


def _with_id(kind: int, value: bytes, ids: Mapping[int, int]) -> bytes:
    if kind not in CONTEXTS:
        return value
    return bytes([ids.get(value[0], value[0])]) + value[1:]


def _free_ids(used: Iterable[int]) -> dict[int, int]:
    """An odd id for each that the peer uses, its own where that is odd: PS3.8 9.3.2.2."""
    wanted = list(dict.fromkeys(used))
    free = iter([number for number in range(255, 0, -2) if number not in wanted])
    try:
        return {number: number if number % 2 else next(free) for number in wanted}
    except StopIteration:
        raise ValueError("more presentation contexts than there are ids") from None


def _context(value: bytes) -> bytes:
    """A presentation context: UIDs without padding; those that are none are not known."""
    head, items = value[:4], [(kind, _uid(inner)) for kind, inner in _items(value[4:])]
    kept = [(kind, uid) for kind, uid in items if kind == ABSTRACT_SYNTAX or uid != NO_UID]
    if all(kind != TRANSFER_SYNTAX for kind, _ in kept):
        kept.append((TRANSFER_SYNTAX, NO_UID))
    return head + b"".join(_item(*item) for item in kept)


def _uid(value: bytes) -> bytes:
    stripped = value.strip(b"\0 ")
    parts = stripped.split(b".")
    fits = len(stripped) <= 64 and all(part.isdigit() for part in parts)
    return stripped if fits else NO_UID


def _user_information(value: bytes) -> bytes:
    """The user items that the node makes use of; the first of each kind, in a form that is read."""
    items = dict.fromkeys((MAXIMUM_LENGTH, CLASS_UID, VERSION_NAME), b"")
    roles = []
    for kind, inner in reversed(list(_items(value))):
        if kind in items:
            items[kind] = inner
        elif kind == ROLES:
            roles.append((kind, inner))
    length = _maximum_length(items[MAXIMUM_LENGTH])
    kept = [(MAXIMUM_LENGTH, struct.pack(">I", length)), (CLASS_UID, _uid(items[CLASS_UID]))]
    version = _ascii(items[VERSION_NAME].rstrip(b"\0 "))[:LONGEST_VERSION_NAME].strip()
    if version:
        kept.append((VERSION_NAME, version))
    return b"".join(_item(*item) for item in kept + roles[::-1])


def _maximum_length(value: bytes) -> int:
    """The longest PDU to send, so that fragments are even: PS3.8 Annex E. 0: no limit."""
    if len(value) != 4:
        return USUAL_PDU_BYTES
    length = int(struct.unpack(">I", value)[0])
    return max(SMALLEST_PDU_BYTES, length & ~1) if length else 0


def _items(data: bytes) -> Iterator[Item]:
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise ValueError("it ends in the middle of an item")
        kind, length = struct.unpack_from(">BxH", data, at)
        value = data[at + 4 : at + 4 + length]
        if len(value) < length or (kind in CONTEXTS and length < 4):
            raise ValueError(f"the length of an item of type {kind:02X}H is wrong")
        yield kind, value
        at += 4 + length


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


def _pdu(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBI", kind, 0, len(value)) + value


CONTEXTS = frozenset({CONTEXT_OF_REQUEST, CONTEXT_OF_ANSWER})
MENDED: Mapping[int, Callable[[bytes], bytes]] = {
    APPLICATION_CONTEXT: _uid,
    CONTEXT_OF_REQUEST: _context,
    CONTEXT_OF_ANSWER: _context,
    USER_INFORMATION: _user_information,
}
