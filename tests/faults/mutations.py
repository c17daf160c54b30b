"""Mutations of a valid conversation: by the grammar of PDUs, of messages and of data sets.

Each mutation is made from a seed and a number when it is run; nothing that breaks a program is
kept. A valid conversation is a request for an association, a C-STORE request and a release.
"""

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pydicom.uid import JPEGLSLossless, RLELossless

from tests.raw_peer import (
    CT,
    EXPLICIT,
    IMPLICIT,
    P_DATA,
    RELEASE_RQ,
    associate_request,
    element,
    pdu,
    store_command,
)

DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
SYNTAXES = (EXPLICIT, IMPLICIT, DEFLATED, BIG_ENDIAN, JPEGLSLossless, RLELossless)
COMMAND_FIELD = 0x0100
UNDEFINED = b"\xff\xff\xff\xff"
NUMBERS = (0, 1, 2, 3, 0x7F, 0xFF, 0x7FFF, 0xFFFE, 0xFFFF)
LENGTHS = (0, 1, 5, 6, 255, 65535, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
VRS = tuple(b"AE CS DA DS IS LO OB OW PN SQ SV UC UI UL UN UR US UT UV ZZ".split()) + (b"\0\0",)
CHARACTER_SETS = (b"ISO_IR 100", b"\\ISO 2022 IR 87", b"GB18030", b"ISO_IR 192", b"NO SUCH SET")


@dataclass
class Conversation:
    """What a peer says: the parts may be changed one by one, and are joined at the end."""

    instance_uid: bytes
    elements: list[bytes]
    transfer_syntax: str = EXPLICIT
    command: bytes = b""
    request: bytes = b""
    tail: list[bytes] = field(default_factory=list)  # after the data set
    most: int = 4000  # bytes of a fragment
    change_pdus: Callable[[list[bytes]], list[bytes]] = list

    def pdus(self) -> list[bytes]:
        """Everything after the request for an association."""
        said = [_fragment(self.command, 3), *self._data(), *self.tail, pdu(RELEASE_RQ, bytes(4))]
        return self.change_pdus(said)

    def _data(self) -> list[bytes]:
        whole = b"".join(self.elements)
        pieces = [whole[at : at + self.most] for at in range(0, len(whole), self.most)] or [b""]
        last = len(pieces) - 1
        return [_fragment(piece, 2 * (number == last)) for number, piece in enumerate(pieces)]


Mutation = Callable[[Conversation, random.Random], None]


def _fragment(value: bytes, control: int, context_id: int = 1) -> bytes:
    return pdu(P_DATA, struct.pack(">IBB", len(value) + 2, context_id, control) + value)


def valid(number: int, transfer_syntax: str = EXPLICIT, pixels: int = 600) -> Conversation:
    """A conversation as a scanner has it; other numbers are other instances of the same series."""
    uid = f"1.2.3.4.{number}".encode()
    elements = [
        element(0x00080005, b"CS", b"ISO_IR 100"),
        element(0x00080016, b"UI", CT.encode()),
        element(0x00080018, b"UI", uid),
        element(0x00080020, b"DA", b"20260101"),
        element(0x00080060, b"CS", b"CT"),
        _sequence(0x00081115, element(0x0020000E, b"UI", b"1.2.3.9")),
        element(0x00100010, b"PN", b"Phantom^One"),
        element(0x00100020, b"LO", b"P1"),
        element(0x0020000D, b"UI", b"1.2.3"),
        element(0x0020000E, b"UI", b"1.2.3.1"),
        element(0x7FE00010, b"OW", bytes(pixels)),
    ]
    return Conversation(
        uid,
        elements,
        transfer_syntax,
        command=store_command(uid + b"\0" * (len(uid) % 2)),
        request=associate_request(contexts=((CT, (transfer_syntax,)),)),
    )


def mutated(seed: int, number: int) -> Conversation:
    """The mutation of that number: one to three changes of a valid conversation."""
    drawn = random.Random(f"{seed}/{number}")
    made = valid(number, drawn.choice((*(EXPLICIT,) * 20, *SYNTAXES)))
    made.most = drawn.choice((2, 17, 300, 4000, 100_000)) if drawn.random() < 0.5 else 4000
    for _ in range(drawn.randint(1, 3)):
        drawn.choice(MUTATIONS)(made, drawn)
    return made


def _sequence(tag: int, *items: bytes, depth: int = 0) -> bytes:
    inner = b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(item)) + item for item in items)
    for _ in range(depth):
        inner = _open(tag, b"\xfe\xff\x00\xe0" + UNDEFINED + inner)
    return element(tag, b"SQ", inner)


def _open(tag: int, inner: bytes) -> bytes:
    """A sequence of undefined length, which nothing ends."""
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, b"SQ", 0) + UNDEFINED + inner


def _place(values: Sequence[bytes], drawn: random.Random) -> int:
    return drawn.randrange(len(values)) if values else 0


def _bytes(value: bytes, drawn: random.Random) -> bytes:
    """A few bytes changed, cut off, repeated or put in."""
    changed = bytearray(value or b"\0")
    at = drawn.randrange(len(changed))
    match drawn.randrange(4):
        case 0:
            for _ in range(drawn.randint(1, 6)):
                changed[drawn.randrange(len(changed))] = drawn.randrange(256)
        case 1:
            del changed[at:]
        case 2:
            changed[at:at] = changed[at : at + drawn.randrange(40)]
        case _:
            changed[at:at] = drawn.randbytes(drawn.randrange(20))
    return bytes(changed)


# Of the data set.


def change_element(made: Conversation, drawn: random.Random) -> None:
    """Some bytes of an element."""
    at = _place(made.elements, drawn)
    made.elements[at] = _bytes(made.elements[at], drawn)


def change_length(made: Conversation, drawn: random.Random) -> None:
    """An element announces another length than it has."""
    at = _place(made.elements, drawn)
    changed = bytearray(made.elements[at])
    if len(changed) >= 12 and changed[4:6] in (b"OW", b"SQ", b"OB"):
        struct.pack_into("<I", changed, 8, drawn.choice(LENGTHS))
    elif len(changed) >= 8:
        struct.pack_into("<H", changed, 6, drawn.choice(LENGTHS) & 0xFFFF)
    made.elements[at] = bytes(changed)


def change_vr(made: Conversation, drawn: random.Random) -> None:
    at = _place(made.elements, drawn)
    made.elements[at] = made.elements[at][:4] + drawn.choice(VRS) + made.elements[at][6:]


def change_tag(made: Conversation, drawn: random.Random) -> None:
    at = _place(made.elements, drawn)
    tag = struct.pack("<HH", drawn.choice((0, 2, 8, 0x20, 0xFFFE)), drawn.choice(NUMBERS))
    made.elements[at] = tag + made.elements[at][4:]


def change_order(made: Conversation, drawn: random.Random) -> None:
    drawn.shuffle(made.elements)


def leave_out(made: Conversation, drawn: random.Random) -> None:
    if made.elements:
        del made.elements[_place(made.elements, drawn)]


def repeat(made: Conversation, drawn: random.Random) -> None:
    at = _place(made.elements, drawn)
    made.elements[at:at] = made.elements[at : at + 1] * drawn.choice((1, 2, 300))


def nest(made: Conversation, drawn: random.Random) -> None:
    """Sequences in sequences, deeper than any device sends them, and without an end."""
    inner = element(0x0020000E, b"UI", b"1.2.3.8")
    nested = _sequence(0x00081115, inner, depth=drawn.choice((1, 5, 63, 64, 65, 2000)))
    made.elements.insert(_place(made.elements, drawn), nested)


def encapsulate(made: Conversation, drawn: random.Random) -> None:
    """Compressed pixels whose offsets and fragments lie."""
    fragments = b"".join(
        b"\xfe\xff\x00\xe0" + struct.pack("<I", drawn.choice(LENGTHS[:6])) + drawn.randbytes(60)
        for _ in range(drawn.randrange(4))
    )
    head = struct.pack("<HH2sH", 0x7FE0, 0x0010, b"OB", 0) + UNDEFINED
    made.elements[-1:] = [head + fragments + drawn.choice((b"", b"\xfe\xff\xdd\xe0\0\0\0\0"))]


def change_characters(made: Conversation, drawn: random.Random) -> None:
    made.elements[:1] = [element(0x00080005, b"CS", drawn.choice(CHARACTER_SETS))]
    name = drawn.choice((b"\x1b$B", b"\xff\xfe", b"\0\0", b"^" * 300)) + drawn.randbytes(12)
    made.elements.append(element(0x00100010, b"PN", name))


def put_meta_first(made: Conversation, drawn: random.Random) -> None:
    """Elements of group 0002, which belong to files."""
    length = drawn.choice(LENGTHS) & 0xFFFF
    made.elements.insert(0, struct.pack("<HH2sH", 2, 0x10, b"UI", length) + b"1.2.840")


# Of the message.


def change_command(made: Conversation, drawn: random.Random) -> None:
    made.command = _bytes(made.command, drawn)


def change_command_length(made: Conversation, drawn: random.Random) -> None:
    """One of the lengths in the command set, which begins with its group length."""
    changed, at, places = bytearray(made.command), 0, []
    while at + 8 <= len(changed):
        places.append(at + 4)
        at += 8 + struct.unpack_from("<I", changed, at + 4)[0]
    if places:
        struct.pack_into("<I", changed, drawn.choice(places), drawn.choice(LENGTHS))
    made.command = bytes(changed)


def ask_for_something_else(made: Conversation, drawn: random.Random) -> None:
    field_ = struct.pack("<HHIH", 0, COMMAND_FIELD, 2, drawn.choice((0x20, 0x30, 0x8001, 0xFFF)))
    at = made.command.find(struct.pack("<HHI", 0, COMMAND_FIELD, 2))
    if at >= 0:
        made.command = made.command[:at] + field_ + made.command[at + len(field_) :]


def say_it_twice(made: Conversation, drawn: random.Random) -> None:
    made.tail += [_fragment(made.command, 3), _fragment(b"".join(made.elements), 2)]


# Of the PDUs.


def change_pdus(made: Conversation, drawn: random.Random) -> None:
    """A byte, a length, a type, the order, or the end of one of the PDUs."""
    before, changes = made.change_pdus, drawn.choice(PDU_CHANGES)
    seed = drawn.random()

    def change(pdus: list[bytes]) -> list[bytes]:
        pdus, chance = before(pdus), random.Random(seed)
        if not pdus:
            return pdus
        at = _place(pdus, chance)
        return [*pdus[:at], *changes(pdus[at:], chance)]

    made.change_pdus = change


def _with_other_bytes(pdus: list[bytes], chance: random.Random) -> list[bytes]:
    return [_bytes(pdus[0], chance), *pdus[1:]]


def _with_other_length(pdus: list[bytes], chance: random.Random) -> list[bytes]:
    length = struct.pack(">I", chance.choice(LENGTHS))
    return [pdus[0][:2] + length + pdus[0][6:], *pdus[1:]]


def _with_other_type(pdus: list[bytes], chance: random.Random) -> list[bytes]:
    return [bytes([chance.choice((0, *range(1, 9), 255))]) + pdus[0][1:], *pdus[1:]]


def _with_other_fragment_length(pdus: list[bytes], chance: random.Random) -> list[bytes]:
    length = struct.pack(">I", chance.choice(LENGTHS))
    return [pdus[0][:6] + length + pdus[0][10:], *pdus[1:]]


def _with_other_control(pdus: list[bytes], chance: random.Random) -> list[bytes]:
    head = bytes([chance.choice((0, 1, 3, 255)), chance.randrange(256)])
    return [pdus[0][:10] + head + pdus[0][12:], *pdus[1:]]


def _in_other_order(pdus: list[bytes], chance: random.Random) -> list[bytes]:
    return chance.sample(pdus, len(pdus))


def _cut_off(_pdus: list[bytes], _chance: random.Random) -> list[bytes]:
    return []


PDU_CHANGES = (
    *(_with_other_bytes, _with_other_length, _with_other_type, _with_other_fragment_length),
    *(_with_other_control, _in_other_order, _cut_off),
)


def change_request(made: Conversation, drawn: random.Random) -> None:
    made.request = _bytes(made.request, drawn)


def change_items(made: Conversation, drawn: random.Random) -> None:
    """One of the items of the A-ASSOCIATE-RQ: its type, its length, twice, or not at all."""
    head, items, at = made.request[6:74], [], 74
    while at + 4 <= len(made.request):
        length = struct.unpack_from(">H", made.request, at + 2)[0]
        items.append(made.request[at : at + 4 + length])
        at += 4 + length
    if not items:
        return
    place = drawn.randrange(len(items))
    match drawn.randrange(4):
        case 0:
            items[place] = bytes([drawn.choice((0x10, 0x20, 0x21, 0x50, 0x99))]) + items[place][1:]
        case 1:
            length = struct.pack(">H", drawn.choice(LENGTHS) & 0xFFFF)
            items[place] = items[place][:2] + length + items[place][4:]
        case 2:
            items[place:place] = items[place : place + 1] * drawn.choice((1, 200))
        case _:
            del items[place]
    made.request = pdu(1, head + b"".join(items))


MUTATIONS: tuple[Mutation, ...] = (
    *(change_element, change_length, change_vr, change_tag, change_order, leave_out, repeat),
    *(nest, encapsulate, change_characters, put_meta_first),
    *(change_command, change_command_length, ask_for_something_else, say_it_twice),
    *(change_pdus, change_pdus, change_request, change_items),
)
