"""The elements of a data set as they lie in a file, read as patiently as other programs read them.

Elements may lie in any order, behind the pixels too, come twice (the first counts, as for DCMTK and
Orthanc), or have a value representation that nobody knows. What cannot be read so says why.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag

# PS3.5 7.1.2: the long ones have a 32-bit length after two reserved bytes.
LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
VRS = LONG_VRS | SHORT_VRS
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
DELIMITERS = 0xFFFE  # the group of all three
UNDEFINED = 0xFFFFFFFF
PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})  # float, double float and pixel data
FIRST_GROUP, FIRST_BULK_GROUP = 0x0008, 0x5000  # from there on curves, overlays and pixels
# A header is small: longer values are not read.
LONGEST_VALUE, LONGEST_SEQUENCE = 64 << 10, 1 << 20
DEEPEST = 64  # sequences in sequences
MOST_GUESSES = 4  # unknown value representations in a row
# A known value representation of the same layout stands in for an unknown one.
STAND_IN = {12: b"UN", 8: b"LT"}
PREAMBLE_BYTES, META_GROUP, TRANSFER_SYNTAX = 132, b"\2\0", 0x00020010


class Unreadable(ValueError):
    """The bytes are no data set; the text goes on after "a damaged data set"."""


@dataclass(frozen=True)
class Reading:
    """What a data set holds of elements that are no bulk and not private."""

    elements: Mapping[int, RawDataElement]
    doubled: frozenset[int] = frozenset()  # tags that come twice, with different values
    repairs: tuple[tuple[int, bytes], ...] = ()  # (offset, the value representation to read there)
    pixels: tuple[int, int] | None = None  # where the pixel data element begins and ends


@dataclass(frozen=True)
class Place:
    """Where an element lies: its header at `begin`, its value at `at`."""

    tag: int
    vr: bytes
    length: int
    begin: int
    at: int
    implicit: bool  # how the element, and what it contains, is encoded

    @property
    def name(self) -> str:
        return f"({self.tag >> 16:04X},{self.tag & 0xFFFF:04X})"


def transfer_syntax(file: BinaryIO) -> str | None:
    """The transfer syntax of a Part 10 file, which is left at its data set; None for any other.

    The first one that is named counts: more of group 0002 may lie at the start of the data set.
    """
    if file.read(PREAMBLE_BYTES)[128:] != b"DICM":
        return None
    reader, named = Reader(file, implicit=False, little=True), ""
    while (begin := file.tell()) >= 0 and file.read(2) == META_GROUP:
        file.seek(begin)
        place = reader.next(implicit=False)
        if place is None:
            return named
        if place.tag == TRANSFER_SYNTAX and not named:
            named = file.read(place.length).decode("latin-1").strip(" \0")
        file.seek(place.at + place.length)
    file.seek(begin)
    return named


def read_elements(file: BinaryIO, *, implicit: bool, little: bool) -> Reading:
    """The elements from here to the end; raises Unreadable."""
    return Reader(file, implicit=implicit, little=little).read()


def holds(file: BinaryIO, reading: Reading, tag: int, *, little: bool) -> bool:
    """True where the bytes of an element with a value lie anywhere but in the pixels.

    For an element that was not found: a broken sequence may have swallowed it.
    """
    begin, end = reading.pixels or (LONGEST_SEQUENCE, LONGEST_SEQUENCE)
    file.seek(0)
    header = file.read(min(begin, LONGEST_SEQUENCE))
    file.seek(end)
    data = header + b"\0" * 8 + file.read(LONGEST_SEQUENCE)
    start = struct.pack(f"{'<' if little else '>'}HH", tag >> 16, tag & 0xFFFF)
    lengths = rb"[A-Z]{2}(?!\0\0)..|UN\0\0(?!\0\0\0\0)....|(?!\0\0).\0\0\0|\0\0\0(?!\0)."
    return re.search(re.escape(start) + b"(?:" + lengths + b")[^\0 ]", data, re.DOTALL) is not None


class Reader:
    """One pass over the elements of a data set, without recursion."""

    def __init__(self, file: BinaryIO, *, implicit: bool, little: bool) -> None:
        self._file = file
        begin = file.tell()
        self._size = file.seek(0, 2)
        file.seek(begin)
        self._order = "<" if little else ">"
        self._tag_of = struct.Struct(f"{self._order}HH").unpack_from
        self._short_of = struct.Struct(f"{self._order}H").unpack_from
        self._long_of = struct.Struct(f"{self._order}I").unpack_from
        self._implicit = implicit
        self._elements: dict[int, RawDataElement] = {}
        self._doubled: set[int] = set()
        self._repairs: list[tuple[int, bytes]] = []
        self._pixels: tuple[int, int] | None = None

    def read(self) -> Reading:
        """All elements; what cannot be read behind the pixels is no part of the data set."""
        self._detect_encoding()
        try:
            for place in self._places():
                self._keep(place)
        except Unreadable:
            if self._pixels is None:
                raise
        return Reading(self._elements, frozenset(self._doubled), tuple(self._repairs), self._pixels)

    def next(self, *, implicit: bool) -> Place | None:
        """The header of the element that lies here; None at the end."""
        begin = self._file.tell()
        head = self._file.read(8)
        if len(head) < 8:
            return None
        group, number = self._tag_of(head)
        tag, vr = group << 16 | number, head[4:6]
        if implicit or group == DELIMITERS:
            return Place(tag, b"", self._long_of(head, 4)[0], begin, begin + 8, implicit)
        if vr in SHORT_VRS:
            return Place(tag, vr, self._short_of(head, 6)[0], begin, begin + 8, implicit)
        if vr not in LONG_VRS:
            return self._of_unknown_form(begin)
        length = self._file.read(4)
        if len(length) < 4:
            return None
        # PS3.5 6.2.2: what is in a UN of undefined length is encoded with Implicit VR.
        return Place(tag, vr, self._long_of(length)[0], begin, begin + 12, vr == b"UN")

    def _detect_encoding(self) -> None:
        """Tell by the first element: some programs write another encoding than they declare."""
        begin = self._file.tell()
        vr = self._file.read(6)[4:]
        self._file.seek(begin)
        if vr in VRS:
            self._implicit = False
        elif len(vr) == 2 and not vr.isupper():
            self._implicit = True

    def _places(self) -> Iterator[Place]:
        """Each element on the outermost level, the file at its value."""
        while (place := self.next(implicit=self._implicit)) is not None:
            if place.tag in PIXELS and self._pixels is None:
                self._pixels = place.begin, self._size
            if place.length == UNDEFINED:
                place = self._of_known_length(place)
                end = self._file.tell()
            elif place.at + place.length <= self._size:
                end = place.at + place.length
            else:
                return  # cut in the middle of a value
            yield place
            if place.tag in PIXELS and self._pixels == (place.begin, self._size):
                self._pixels = place.begin, end
            self._file.seek(end)

    def _of_known_length(self, place: Place) -> Place:
        """The same with the length of its items; the file is left behind them."""
        end = self._end_of_items(place)
        return Place(place.tag, place.vr, end - place.at, place.begin, place.at, place.implicit)

    def _end_of_items(self, place: Place) -> int:
        """Where the delimiter of a sequence lies; the file is left behind it."""
        self._file.seek(place.at)
        opened = [(SEQUENCE_END, place.implicit)]  # what ends each level, and its encoding
        while opened:
            ends_with, implicit = opened[-1]
            inner = self.next(implicit=implicit)
            if inner is None:
                raise Unreadable(f"the sequence {place.name} has no end")
            if inner.tag == ends_with:
                opened.pop()
            elif ends_with == SEQUENCE_END and inner.tag != ITEM:
                raise Unreadable(f"in sequence {place.name} lies {inner.name}, which is no item")
            elif inner.length == UNDEFINED:
                level = ITEM_END if inner.tag == ITEM else SEQUENCE_END
                opened.append((level, implicit if inner.tag == ITEM else inner.implicit))
            else:
                self._file.seek(inner.at + inner.length)
            if len(opened) > DEEPEST:
                raise Unreadable(f"in {place.name} sequences are nested deeper than {DEEPEST}")
        return self._file.tell() - 8

    def _of_unknown_form(self, begin: int) -> Place:
        """An element whose value representation says nothing of its length.

        The form that another element follows counts; PS3.5 7.1.2 gives those to come 32 bits.
        """
        forms = self._forms(begin)
        for form in forms:
            if self._is_followed(form):
                if form.vr:
                    self._repairs.append((begin + 4, STAND_IN[form.at - begin]))
                self._file.seek(form.at)
                return form
        raise Unreadable(f"{forms[0].name} has an unknown value representation")

    def _forms(self, begin: int) -> list[Place]:
        """The element that begins here in each form, the likeliest first."""
        self._file.seek(begin)
        head = self._file.read(12)
        group, number = self._tag_of(head)
        tag, vr = group << 16 | number, head[4:6]
        forms = [
            Place(tag, vr, self._short_of(head, 6)[0], begin, begin + 8, False),
            Place(tag, b"", self._long_of(head, 4)[0], begin, begin + 8, True),
        ]
        if head[6:8] == b"\0\0" and len(head) == 12:
            long = Place(tag, vr, self._long_of(head, 8)[0], begin, begin + 12, False)
            forms.insert(0 if vr.isalpha() and vr.isupper() else 1, long)
        return forms

    def _is_followed(self, place: Place, guesses: int = MOST_GUESSES) -> bool:
        """True where the data set ends, or another element begins, behind the value."""
        end = place.at + place.length
        if end >= self._size:
            return end == self._size
        self._file.seek(end)
        head = self._file.read(8)
        if len(head) < 8:
            return False
        group, number = self._tag_of(head)
        if group == DELIMITERS or head[4:6] in VRS:
            return True
        is_later = (group << 16 | number) > place.tag
        fits = self._long_of(head, 4)[0] <= self._size - end - 8
        if place.implicit and is_later and fits:
            return True
        return (
            (is_later or group == place.tag >> 16)
            and guesses > 0
            and any(self._is_followed(form, guesses - 1) for form in self._forms(end))
        )

    def _keep(self, place: Place) -> None:
        group = place.tag >> 16
        if not FIRST_GROUP <= group < FIRST_BULK_GROUP or group % 2:
            return
        value: bytes | None = None
        if place.length <= (LONGEST_SEQUENCE if place.vr == b"SQ" else LONGEST_VALUE):
            self._file.seek(place.at)
            value = self._file.read(place.length)
        known = self._elements.get(place.tag)
        if known is not None and known.value and value:
            if known.value.strip(b"\0 ") != value.strip(b"\0 "):
                self._doubled.add(place.tag)
            return
        if known is None or value:
            self._elements[place.tag] = self._element(place, value)

    def _element(self, place: Place, value: bytes | None) -> RawDataElement:
        vr = place.vr.decode("latin-1") if place.vr in VRS else None
        implicit = place.implicit if place.vr != b"UN" else False
        return RawDataElement(
            BaseTag(place.tag),
            vr,
            place.length,
            value,
            place.at,
            implicit,
            self._order == "<",
        )
