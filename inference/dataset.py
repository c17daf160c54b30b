"""The data set of a Part 10 file as it lies there: its elements, and values on request."""

import math
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

from pydicom import dcmread
from pydicom.charset import convert_encodings, decode_bytes, python_encoding
from pydicom.datadict import dictionary_has_tag, dictionary_keyword, dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
)
from pydicom.values import convert_SQ

from inference.errors import Reason, shortage

if TYPE_CHECKING:
    from inference.request import Source

Element = DataElement | RawDataElement

# What a damaged data set makes the parser raise; it promises no class of its own.
DAMAGED = (
    InvalidDicomError,
    BytesLengthException,
    EOFError,
    struct.error,
    zlib.error,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    AssertionError,
    NotImplementedError,
    ArithmeticError,
    RecursionError,
)
UNOPENED = "cannot be opened"
# A header is small: longer values are not read, and so much of a deflated data set is inflated;
# some bytes may stand for gigabytes.
MOST_QUOTED = 64  # characters of a received value that a sentence repeats
MOST_RUNS = 12  # of Instance Numbers in a sentence
LONGEST_UID = 64  # characters (PS3.5 9.1)
MOST_INFLATED = 16 << 20
READ_AT_ONCE = 1 << 20
# PS3.10 7.1: preamble, "DICM", the group length element; what it counts is never as long as this.
META_AT, LONGEST_META = 128 + 4 + 12, 1 << 16
GROUP_LENGTH = b"\x02\0\0\0UL\x04\0"
# Why a value is in doubt; without one of these a result would have another patient, or none.
SAID_TWICE, ELSEWHERE = (
    "twice, with different values",
    "inside something else, as in a broken sequence",
)
NAMING_PATIENT = ("PatientName", "PatientID")
DEFAULT_REPERTOIRE = frozenset({"", "ISO_IR 6", "ISO 2022 IR 6"})
# struct formats of the binary value representations (PS3.5 6.2)
BINARY = {
    "US": "H",
    "SS": "h",
    "UL": "I",
    "SL": "i",
    "UV": "Q",
    "SV": "q",
    "FL": "f",
    "FD": "d",
    "AT": "H",
}


class Doubt(NamedTuple):
    """An attribute of which a data set leaves the value open, and why."""

    keyword: str
    why: str


@dataclass(frozen=True, eq=False)
class Header:
    """A data set without its pixels. Nothing in it is trusted to be valid."""

    path: Path
    elements: Mapping[int, Element]
    transfer_syntax: str = ""
    order: int = 0  # rises with the time of receipt
    fault: str = ""  # why the file could not be read; then there are no elements
    doubts: tuple[Doubt, ...] = ()
    repairs: tuple[tuple[int, bytes], ...] = ()  # what to read at which place of the file instead

    def __contains__(self, keyword: str) -> bool:
        return _tag(keyword) in self.elements

    def raw(self, keyword: str) -> bytes:
        """The value as it lies in the file, with its padding; empty where absent."""
        element = self.elements.get(_tag(keyword))
        if element is None or element.VR == "SQ" or not isinstance(element.value, bytes):
            return b""
        return element.value

    def text(self, keyword: str) -> str:
        """The whole value of an attribute whose characters are ASCII, without its padding."""
        return self.raw(keyword).decode("latin-1").strip(" \0\t\r\n")

    def decoded(self, keyword: str) -> str | None:
        """Text in the data set's own character set; None where it does not fit it."""
        raw = self.raw(keyword).rstrip(b" \0")
        charsets = self.values("SpecificCharacterSet")
        if not any(charsets):
            return raw.decode("ascii") if raw.isascii() else None
        if any(charset not in python_encoding for charset in charsets):
            return None
        codecs = convert_encodings(list(charsets))
        try:
            if b"\x1b" not in raw:
                # The parser's table takes the default repertoire for Latin-1 (PS3.5 6.1.1).
                first = "ascii" if charsets[0] in DEFAULT_REPERTOIRE else codecs[0]
                return raw.decode(first).strip()
            text = decode_bytes(raw, codecs, {0x0C, 0x0A, 0x0D, 0x09}).strip()
        except (UnicodeError, LookupError, ValueError, UserWarning):
            return None
        return None if "\ufffd" in text else text

    def values(self, keyword: str) -> tuple[str, ...]:
        """Each value as text, numbers too; () where the attribute is absent or empty."""
        code = BINARY.get(self._representation(keyword))
        if code:
            return tuple(str(number) for number in self._unpacked(keyword, code))
        text = self.text(keyword)
        return tuple(value.strip() for value in text.split("\\")) if text else ()

    def value(self, keyword: str, index: int = 0) -> str:
        """One value of a multi-valued attribute; empty where there is none."""
        values = self.values(keyword)
        return values[index] if index < len(values) else ""

    def numbers(self, keyword: str) -> tuple[float, ...]:
        """Finite numbers; () where the attribute is absent, empty or anything but numbers."""
        try:
            numbers = tuple(float(value) for value in self.values(keyword))
        except ValueError:
            return ()
        return numbers if all(math.isfinite(number) for number in numbers) else ()

    def number(self, keyword: str) -> float | None:
        """The only or first number of an attribute."""
        numbers = self.numbers(keyword)
        return numbers[0] if numbers else None

    def integer(self, keyword: str) -> int | None:
        """A whole number, as Instance Number is meant to be."""
        number = self.number(keyword)
        return int(number) if number is not None and number == int(number) else None

    def items(self, keyword: str) -> tuple["Header", ...]:
        """The items of a sequence; () where it is absent or damaged."""
        element = self.elements.get(_tag(keyword))
        if element is None:
            return ()
        # An item is in the character set of the data set around it (PS3.3 C.12.1.1.2).
        charset = _tag("SpecificCharacterSet")
        around = {charset: self.elements[charset]} if charset in self.elements else {}
        return tuple(
            Header(self.path, around | raw_elements(item)) for item in sequence_items(element)
        )

    def codes(self, keyword: str) -> tuple[str, ...]:
        """The code values of a code sequence."""
        return tuple(item.text("CodeValue") for item in self.items(keyword))

    @cached_property
    def uid(self) -> str:
        """SOP Instance UID; versions of an instance share it."""
        return self.text("SOPInstanceUID")

    @property
    def identity(self) -> str:
        """The key of an instance: files without a UID are no versions of one another."""
        return self.uid or str(self.path)

    @cached_property
    def is_signed(self) -> bool:
        return self.number("PixelRepresentation") == 1

    def _representation(self, keyword: str) -> str:
        """The VR that the file names, however wrong; that of the dictionary where it names none."""
        element = self.elements.get(_tag(keyword))
        named = element.VR if isinstance(element, RawDataElement) else None
        return named if named and named != "UN" else dictionary_VR(_tag(keyword))[:2]

    def _unpacked(self, keyword: str, code: str) -> tuple[float, ...]:
        element = self.elements.get(_tag(keyword))
        raw = self.raw(keyword)
        size = struct.calcsize(code)
        little = not isinstance(element, RawDataElement) or element.is_little_endian
        count = len(raw) // size
        return struct.unpack(f"{'<' if little else '>'}{count}{code}", raw[: count * size])


@dataclass(frozen=True, eq=False)
class Stack:
    """Instances of one series that form one volume; all versions of each are among them."""

    key: str  # readable; the same for the same kind of images whatever else has arrived
    headers: tuple[Header, ...]
    label: str = ""  # what tells it from the other stacks of its series; "" for an only one
    fault: str = ""  # why its images form no volume
    fault_reason: Reason = Reason.TOO_FEW_SLICES
    beside: tuple[Header, ...] = ()  # the other received instances of the series

    def __len__(self) -> int:
        """The number of slices; versions of an instance count once."""
        return len({header.identity for header in self.headers})


def newest(headers: Iterable[Header]) -> list[Header]:
    """The newest version of each instance, in the order of their UIDs."""
    newest_by_uid: dict[str, Header] = {}
    for header in headers:
        known = newest_by_uid.get(header.identity)
        if known is None or header.order > known.order:
            newest_by_uid[header.identity] = header
    return [newest_by_uid[uid] for uid in sorted(newest_by_uid)]


def read_headers(files: "Iterable[Path | Source]") -> list[Header]:
    """The header of every file, in the order given; what cannot be read says so in `fault`.

    Most elements are the same in all slices of a series: they are in memory once.
    """
    once: dict[tuple[object, ...], Element] = {}
    return [_shared(header, once) for header in _read_each(files)]


def _read_each(files: "Iterable[Path | Source]") -> Iterator[Header]:
    for position, file in enumerate(files):
        if isinstance(file, Path):
            yield read_header(file, order=position)
        else:
            yield read_header(file.path, order=file.order)


def _shared(header: Header, once: dict[tuple[object, ...], Element]) -> Header:
    elements = {tag: _one(element, once) for tag, element in header.elements.items()}
    return replace(header, elements=elements)


def _one(element: Element, once: dict[tuple[object, ...], Element]) -> Element:
    if not isinstance(element, RawDataElement):
        return element  # a sequence
    return once.setdefault(tuple(element), element)


def read_header(path: Path, *, order: int = 0) -> Header:
    """The header of one file. Without the Part 10 prefix nothing is guessed (PS3.10 7.1)."""
    return _read(path, order, read_elements)


def read_whole(path: Path) -> Header:
    """The same with the overlays and the pixels among its elements."""
    return _read(path, 0, partial(read_elements, with_bulk=True))


def _read(path: Path, order: int, read: "ReadElements") -> Header:
    try:
        with path.open("rb") as file:
            syntax = transfer_syntax(file)
            if syntax is None:
                return Header(path, {}, order=order, fault="is not a DICOM Part 10 file")
            if syntax == DeflatedExplicitVRLittleEndian:
                return _header(path, inflated(path, MOST_INFLATED), syntax, order, read)
            return _header(path, file, syntax, order, read)
    except DamagedDataSet as error:
        return Header(path, {}, order=order, fault=f"holds a damaged data set: {error}")
    except OSError as error:
        if shortage(error):
            raise  # it says nothing of the file
        return Header(path, {}, order=order, fault=f"{UNOPENED} ({error.strerror})")
    except DAMAGED:
        return Header(path, {}, order=order, fault="holds a damaged data set")


def _header(path: Path, file: BinaryIO, syntax: str, order: int, read: "ReadElements") -> Header:
    little = syntax != ExplicitVRBigEndian
    implicit = syntax in ("", ImplicitVRLittleEndian)
    reading = read(file, implicit=implicit, little=little)
    known = filter(dictionary_has_tag, sorted(reading.doubled))  # no group length, no unknown one
    doubts = [Doubt(dictionary_keyword(tag), SAID_TWICE) for tag in known]
    doubts += [
        Doubt(keyword, ELSEWHERE)
        for keyword in NAMING_PATIENT
        if (tag := _tag(keyword)) not in reading.elements
        and holds(file, reading, tag, little=little)
    ]
    return Header(path, reading.elements, syntax, order, "", tuple(doubts), reading.repairs)


def with_inner_meta(path: Path) -> tuple[str, BytesIO] | None:
    """The transfer syntax and the data set of a file whose data set begins with group 0002.

    Such elements mean nothing there (PS3.5 7.1), but the parser would read on and take them for the
    file's own. None for any other file.
    """
    with path.open("rb") as file:
        head = file.read(META_AT)
        if not head[132:].startswith(GROUP_LENGTH):
            return None
        head += file.read(min(int.from_bytes(head[-4:], "little"), LONGEST_META))
        group = file.read(2)
        if group not in (b"\x02\0", b"\0\x02"):
            return None
        meta = dcmread(BytesIO(head)).file_meta
        syntax = str(meta.get("TransferSyntaxUID", "")).strip(" \0")
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        is_inner = struct.unpack(f"{order}H", group)[0] == 2
        if not syntax or syntax == DeflatedExplicitVRLittleEndian or not is_inner:
            return None
        return syntax, BytesIO(group + file.read())


def data_set_of(syntax: str, data: BytesIO) -> Dataset:
    """The elements of a data set that no file meta information comes before, without group 0002."""
    is_implicit, is_little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    dataset = Dataset(read_dataset(data, is_implicit, is_little))
    for tag in [tag for tag in dataset.keys() if tag.group == 2]:  # noqa: SIM118
        del dataset[tag]
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    return dataset


def inflated(path: Path, most: int) -> BytesIO:
    """The first bytes of a deflated data set (PS3.5 A.5); what is beyond is never inflated."""
    start = META_AT + int(read_file_meta_info(path).FileMetaInformationGroupLength)
    inflate, data = zlib.decompressobj(-zlib.MAX_WBITS), BytesIO()
    with path.open("rb") as file:
        file.seek(start)
        while not inflate.eof and data.tell() < most:
            piece = inflate.unconsumed_tail or file.read(READ_AT_ONCE)
            if not piece:
                break
            data.write(inflate.decompress(piece, most - data.tell()))
    data.seek(0)
    return data


def raw_elements(dataset: Dataset) -> dict[int, Element]:
    """The elements of a data set, unconverted; private and bulk groups are left out."""
    return {
        int(tag): _as_read(dataset.get_item(tag))
        for tag in dataset.keys()  # noqa: SIM118  (iterating a data set converts its elements)
        if not tag.is_private and tag.group < FIRST_BULK_GROUP
    }


def _as_read(element: Element) -> Element:
    """The parser converts Specific Character Set while it reads; back to its bytes."""
    if isinstance(element, RawDataElement) or isinstance(element.value, Items):
        return element
    values = [element.value] if isinstance(element.value, str) else list(element.value or ())
    value = "\\".join(str(value) for value in values).encode("latin-1", "replace")
    value += b" " * (len(value) % 2)
    return RawDataElement(element.tag, element.VR, len(value), value, 0, False, True)


def sequence_items(element: Element) -> tuple[Dataset, ...]:
    """The items of a sequence element, their own elements unconverted."""
    if isinstance(element, DataElement):
        return tuple(element.value) if isinstance(element.value, Items) else ()
    if not isinstance(element.value, bytes):
        return ()
    try:
        # A sequence sent as UN is implicit VR little endian whatever surrounds it (PS3.5 6.2.2).
        implicit = element.is_implicit_VR or element.VR == "UN"
        little = element.is_little_endian or element.VR == "UN"
        return tuple(convert_SQ(element.value, implicit, little, None, 0))
    except DAMAGED:
        return ()


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return tag


def quoted(words: str) -> str:
    """The words of another program, as a sentence may repeat it: short, printable, on one line."""
    letters = "".join(letter if letter.isprintable() else " " for letter in words)
    plain = " ".join(letters.split())
    if len(plain) > MOST_QUOTED:
        plain = plain[: MOST_QUOTED - 3].rstrip() + "..."
    return plain or "no reason is given"


def numbers_of(headers: Sequence[Header]) -> str:
    """The Instance Numbers of slices as a person would write them: 3 to 9, 12."""
    numbers = sorted({n for h in headers if (n := h.integer("InstanceNumber")) is not None})
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    more = [f"and {len(words) - MOST_RUNS} more"] if len(words) > MOST_RUNS else []
    return ", ".join([*words[:MOST_RUNS], *more]) or "without a number"


# The elements of a data set as they lie in a file, read as patiently as other programs read them:
# they may lie in any order, behind the pixels too, come twice (the first counts, as for DCMTK and
# Orthanc), or have a value representation that nobody knows. What cannot be read so says why.

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


class DamagedDataSet(ValueError):
    """The bytes are no data set; the text goes on after "a damaged data set"."""


@dataclass(frozen=True)
class ElementsRead:
    """The elements of a data set that are not private, and no bulk unless that was asked for."""

    elements: Mapping[int, RawDataElement]
    doubled: frozenset[int] = frozenset()  # tags that come twice, with different values
    repairs: tuple[tuple[int, bytes], ...] = ()  # (offset, the value representation to read there)
    pixels: tuple[int, int] | None = None  # where the pixel data element begins and ends


@dataclass(frozen=True)
class ElementPlace:
    """The place of an element: its header at `begin`, its value at `at`."""

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
    reader, named = ElementReader(file, implicit=False, little=True), ""
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


class ReadElements(Protocol):
    """Reads the elements of a data set in a transfer syntax."""

    def __call__(self, file: BinaryIO, *, implicit: bool, little: bool) -> ElementsRead: ...


def read_elements(
    file: BinaryIO, *, implicit: bool, little: bool, with_bulk: bool = False
) -> ElementsRead:
    """The elements from here to the end; raises DamagedDataSet."""
    return ElementReader(file, implicit=implicit, little=little, with_bulk=with_bulk).read()


def holds(file: BinaryIO, reading: ElementsRead, tag: int, *, little: bool) -> bool:
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


class ElementReader:
    """One pass over the elements of a data set, without recursion."""

    def __init__(
        self, file: BinaryIO, *, implicit: bool, little: bool, with_bulk: bool = False
    ) -> None:
        self._file = file
        self._with_bulk = with_bulk
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

    def read(self) -> ElementsRead:
        """All elements; what cannot be read behind the pixels is no part of the data set."""
        self._detect_encoding()
        try:
            for place in self._places():
                self._keep(place)
        except DamagedDataSet:
            if self._pixels is None:
                raise
        return ElementsRead(
            self._elements, frozenset(self._doubled), tuple(self._repairs), self._pixels
        )

    def next(self, *, implicit: bool) -> ElementPlace | None:
        """The header of the element that lies here; None at the end."""
        begin = self._file.tell()
        head = self._file.read(8)
        if len(head) < 8:
            return None
        group, number = self._tag_of(head)
        tag, vr = group << 16 | number, head[4:6]
        if implicit or group == DELIMITERS:
            return ElementPlace(tag, b"", self._long_of(head, 4)[0], begin, begin + 8, implicit)
        if vr in SHORT_VRS:
            return ElementPlace(tag, vr, self._short_of(head, 6)[0], begin, begin + 8, implicit)
        if vr not in LONG_VRS:
            return self._of_unknown_form(begin)
        length = self._file.read(4)
        if len(length) < 4:
            return None
        # PS3.5 6.2.2: what is in a UN of undefined length is encoded with Implicit VR.
        return ElementPlace(tag, vr, self._long_of(length)[0], begin, begin + 12, vr == b"UN")

    def _detect_encoding(self) -> None:
        """Tell by the first element: some programs write another encoding than they declare."""
        begin = self._file.tell()
        vr = self._file.read(6)[4:]
        self._file.seek(begin)
        if vr in VRS:
            self._implicit = False
        elif len(vr) == 2 and not vr.isupper():
            self._implicit = True

    def _places(self) -> Iterator[ElementPlace]:
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

    def _of_known_length(self, place: ElementPlace) -> ElementPlace:
        """The same with the length of its items; the file is left behind them."""
        end = self._end_of_items(place)
        return ElementPlace(
            place.tag, place.vr, end - place.at, place.begin, place.at, place.implicit
        )

    def _end_of_items(self, place: ElementPlace) -> int:
        """The place of the delimiter of a sequence; the file is left behind it."""
        self._file.seek(place.at)
        opened = [(SEQUENCE_END, place.implicit)]  # what ends each level, and its encoding
        while opened:
            ends_with, implicit = opened[-1]
            inner = self.next(implicit=implicit)
            if inner is None:
                raise DamagedDataSet(f"the sequence {place.name} has no end")
            if inner.tag == ends_with:
                opened.pop()
            elif ends_with == SEQUENCE_END and inner.tag != ITEM:
                raise DamagedDataSet(
                    f"in sequence {place.name} lies {inner.name}, which is no item"
                )
            elif inner.length == UNDEFINED:
                level = ITEM_END if inner.tag == ITEM else SEQUENCE_END
                opened.append((level, implicit if inner.tag == ITEM else inner.implicit))
            else:
                self._file.seek(inner.at + inner.length)
            if len(opened) > DEEPEST:
                raise DamagedDataSet(f"in {place.name} sequences are nested deeper than {DEEPEST}")
        return self._file.tell() - 8

    def _of_unknown_form(self, begin: int) -> ElementPlace:
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
        raise DamagedDataSet(f"{forms[0].name} has an unknown value representation")

    def _forms(self, begin: int) -> list[ElementPlace]:
        """The element that begins here in each form, the likeliest first."""
        self._file.seek(begin)
        head = self._file.read(12)
        group, number = self._tag_of(head)
        tag, vr = group << 16 | number, head[4:6]
        forms = [
            ElementPlace(tag, vr, self._short_of(head, 6)[0], begin, begin + 8, False),
            ElementPlace(tag, b"", self._long_of(head, 4)[0], begin, begin + 8, True),
        ]
        if head[6:8] == b"\0\0" and len(head) == 12:
            long = ElementPlace(tag, vr, self._long_of(head, 8)[0], begin, begin + 12, False)
            forms.insert(0 if vr.isalpha() and vr.isupper() else 1, long)
        return forms

    def _is_followed(self, place: ElementPlace, guesses: int = MOST_GUESSES) -> bool:
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

    def _keep(self, place: ElementPlace) -> None:
        group = place.tag >> 16
        is_bulk = group >= FIRST_BULK_GROUP
        if group < FIRST_GROUP or group % 2 or (is_bulk and not self._with_bulk):
            return
        value: bytes | None = None
        longest = LONGEST_SEQUENCE if place.vr == b"SQ" else LONGEST_VALUE
        if is_bulk or place.length <= longest:
            self._file.seek(place.at)
            value = self._file.read(place.length)
        known = self._elements.get(place.tag)
        if known is not None and known.value and value:
            if known.value.strip(b"\0 ") != value.strip(b"\0 "):
                self._doubled.add(place.tag)
            return
        if known is None or value:
            self._elements[place.tag] = self._element(place, value)

    def _element(self, place: ElementPlace, value: bytes | None) -> RawDataElement:
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
