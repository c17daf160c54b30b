"""A walk over the data elements of a file, for whatever a peer may have sent.

It is linear and without recursion: it costs bounded time and memory, and no value is interpreted
before it is wanted.
"""

import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF
# PS3.5 7.1.2: the long ones have a 32-bit length after two reserved bytes.
LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
VRS = LONG_VRS | SHORT_VRS
HEAD, LONG_LENGTH = struct.Struct("<HH2sH"), struct.Struct("<I")
LONGEST_HEAD = HEAD.size + LONG_LENGTH.size

MAX_ELEMENTS = 100_000
MAX_DEPTH = 64
MAX_INFLATED_BYTES = 4 << 20


class Unreadable(Exception):
    """The bytes are no data set that this transfer syntax allows."""


@dataclass(frozen=True)
class Element:
    """The start of one data element; `implicit` is how what it contains is encoded."""

    tag: int
    length: int
    implicit: bool


class Walk:
    """One pass over the elements of a data set."""

    def __init__(self, stream: BinaryIO, *, little: bool, implicit: bool) -> None:
        self._stream = stream
        self._order = "<" if little else ">"
        self._implicit = implicit
        self._elements = 0

    def detect_encoding(self) -> None:
        """Tell by the first element: some peers send Implicit VR in an Explicit VR context."""
        start = self._stream.tell()
        head = self._stream.read(6)
        self._stream.seek(start)
        if len(head) == 6 and head[4:6] not in VRS:
            self._implicit = True

    def next(self, implicit: bool | None = None) -> Element | None:
        """The next element's start; None at the end of the data set."""
        implicit = self._implicit if implicit is None else implicit
        self._elements += 1
        if self._elements > MAX_ELEMENTS:
            raise Unreadable("too many elements")
        head = self._stream.read(8)
        if not head:
            return None
        if len(head) < 8:
            raise Unreadable("the data set ends in the middle of an element")
        group, number = struct.unpack_from(self._order + "HH", head)
        tag = group << 16 | number
        if implicit or group == 0xFFFE:
            return Element(tag, struct.unpack_from(self._order + "I", head, 4)[0], implicit)
        vr = head[4:6]
        if vr in SHORT_VRS:
            return Element(tag, struct.unpack_from(self._order + "H", head, 6)[0], implicit)
        if vr not in LONG_VRS:
            return self._of_unknown_form(tag, head)
        length = struct.unpack(self._order + "I", self.read(4))[0]
        # PS3.5 6.2.2: what is in a UN of undefined length is encoded with Implicit VR.
        return Element(tag, length, implicit=vr == b"UN")

    def _of_unknown_form(self, tag: int, head: bytes) -> Element:
        """An element whose value representation says nothing of its length.

        The form that another element follows counts; PS3.5 7.1.2 gives those to come 32 bits.
        """
        at, vr = self._stream.tell(), head[4:6]
        long = self._stream.read(4)
        (short,) = struct.unpack_from(self._order + "H", head, 6)
        forms = [(at, short, False), (at, *struct.unpack_from(self._order + "I", head, 4), True)]
        if head[6:8] == b"\0\0" and len(long) == 4:
            form = (at + 4, *struct.unpack(self._order + "I", long), False)
            forms.insert(0 if vr.isalpha() and vr.isupper() else 1, form)
        for value_at, length, implicit in forms:
            self._stream.seek(value_at + length)
            following = self._stream.read(8)
            self._stream.seek(value_at)
            if following[4:6] in VRS:
                return Element(tag, length, implicit)
        raise Unreadable(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) has no value representation")

    def skip(self, element: Element) -> None:
        """Go to the end of an element, whatever it contains."""
        if element.length != UNDEFINED:
            self._stream.seek(element.length, 1)
            return
        # One entry for each sequence or item of undefined length that is open: how it is encoded.
        opened = [element.implicit]
        while opened:
            inner = self.next(opened[-1])
            if inner is None:
                raise Unreadable("the data set ends in the middle of a sequence")
            if inner.tag in (ITEM_END, SEQUENCE_END):
                opened.pop()
            elif inner.length == UNDEFINED:
                opened.append(opened[-1] if inner.tag == ITEM else inner.implicit)
            else:
                self._stream.seek(inner.length, 1)
            if len(opened) > MAX_DEPTH:
                raise Unreadable(f"sequences are nested deeper than {MAX_DEPTH}")

    def read(self, length: int) -> bytes:
        """The next bytes; Unreadable where there are fewer."""
        value = self._stream.read(length)
        if len(value) < length:
            raise Unreadable("the data set ends in the middle of an element")
        return value


def inflated(stream: BinaryIO) -> BinaryIO:
    """The start of a deflated data set: PS3.5 A.5, a raw deflate stream without a zlib header."""
    try:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(
            stream.read(MAX_INFLATED_BYTES), MAX_INFLATED_BYTES
        )
    except zlib.error as error:
        raise Unreadable("the data set is not a deflate stream") from error
    return BytesIO(data)
