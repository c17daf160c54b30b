"""What is read of a data set's start: the identifiers, in every encoding, never more."""

import random
import struct
import tracemalloc
import zlib
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from node.dicom import handlers
from node.dicom.elements import Unreadable
from node.dicom.handlers import quick_read, read, text
from tests.raw_peer import EXPLICIT, IMPLICIT, data_set, element

BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
UIDS = {
    handlers.SOP_CLASS_UID: b"1.2.840.10008.5.1.4.1.1.2",
    handlers.INSTANCE_UID: b"1.2.3.4",
    handlers.STUDY_UID: b"1.2.3",
    handlers.SERIES_UID: b"1.2.3.1",
}


def nested(depth: int) -> Dataset:
    """A data set with sequences in sequences before its identifiers."""
    inner = Dataset()
    inner.ReferencedSOPInstanceUID = "1.9"
    for _ in range(depth):
        outer = Dataset()
        outer.ReferencedSeriesSequence = Sequence([inner])
        outer["ReferencedSeriesSequence"].is_undefined_length = True
        inner.is_undefined_length_sequence_item = True
        inner = outer
    ds = Dataset()
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    ds.SOPInstanceUID = "1.2.3.4"
    ds.SourceImageSequence = Sequence([inner, Dataset()])
    ds["SourceImageSequence"].is_undefined_length = True
    ds.add_new(0x00091001, "UN", b"private")
    ds.PatientID = "P1"
    ds.StudyInstanceUID = "1.2.3"
    ds.SeriesInstanceUID = "1.2.3.1"
    ds.Rows = 4
    return ds


def encoded(ds: Dataset, *, implicit: bool = False, little: bool = True) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = implicit, little
    write_dataset(buffer, ds)
    return buffer.getvalue()


def identifiers(data: bytes, syntax: str) -> dict[int, bytes]:
    values = read(BytesIO(data), syntax)
    return {tag: values[tag].rstrip(b"\0") for tag in UIDS if tag in values}


@pytest.mark.parametrize("depth", [0, 1, 5])
@pytest.mark.parametrize(
    ("syntax", "implicit", "little"),
    [(EXPLICIT, False, True), (IMPLICIT, True, True), (BIG_ENDIAN, False, False)],
)
def test_identifiers_are_read_past_nested_sequences(
    depth: int, syntax: str, implicit: bool, little: bool
) -> None:
    data = encoded(nested(depth), implicit=implicit, little=little)
    assert identifiers(data, syntax) == UIDS


def test_a_deflated_data_set_is_read() -> None:
    compress = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    data = compress.compress(encoded(nested(1))) + compress.flush()
    assert identifiers(data, DEFLATED) == UIDS


def test_implicit_vr_in_an_explicit_context_is_recognised() -> None:
    assert identifiers(encoded(nested(1), implicit=True), EXPLICIT) == UIDS


def test_an_unknown_element_of_undefined_length_holds_implicit_vr() -> None:
    inner = struct.pack("<HHI", 0x0009, 0x1002, 4) + b"abcd"
    item = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    unknown = struct.pack("<HH2sHI", 0x0009, 0x1001, b"UN", 0, 0xFFFFFFFF) + item + end
    head, rest = data_set()[:50], data_set()[50:]
    assert identifiers(head + unknown + rest, EXPLICIT) == UIDS


NAME = element(0x00100010, b"PN", b"Doe^Jane")


def pieces(pixels: int = 2000) -> list[bytes]:
    """The elements of a data set, one by one, in the order of their tags."""
    uids = [element(tag, b"UI", uid) for tag, uid in UIDS.items()]
    patient = [NAME, element(0x00100020, b"LO", b"P1")]
    return [*uids[:2], *patient, *uids[2:], element(0x7FE00010, b"OW", bytes(pixels))]


def test_nothing_is_read_behind_the_series_uid_where_the_patient_is_known() -> None:
    stream = BytesIO(b"".join(pieces(100_000)))
    assert read(stream, EXPLICIT)[handlers.PATIENT_NAME] == NAME[8:]
    assert stream.tell() < 400


@pytest.mark.parametrize("seed", range(8))
def test_identity_is_read_whatever_the_order_of_the_elements(seed: int) -> None:
    parts = pieces()
    random.Random(seed).shuffle(parts)
    values = read(BytesIO(b"".join(parts)), EXPLICIT)
    assert {tag: values[tag].rstrip(b"\0") for tag in UIDS} == UIDS
    assert (values[handlers.PATIENT_NAME], values[handlers.PATIENT_ID].strip()) == (NAME[8:], b"P1")


def test_of_an_attribute_that_comes_twice_the_first_with_a_value_counts() -> None:
    empty, other = (element(0x00100020, b"LO", value) for value in (b"", b"P2"))
    assert read(BytesIO(empty + data_set() + other + NAME), EXPLICIT)[handlers.PATIENT_ID] == b"P1"


@pytest.mark.parametrize("vr", [b"XX", b"??", b"lo", b"\0\0", b"  "])
@pytest.mark.parametrize("is_long", [False, True])
def test_an_unknown_value_representation_is_passed_over(vr: bytes, is_long: bool) -> None:
    length = struct.pack("<HI", 0, 6) if is_long else struct.pack("<H", 6)
    unknown = struct.pack("<HH", 0x0008, 0x1030) + vr + length + b"HELLO1"
    head, rest = data_set()[:50], data_set()[50:]
    assert identifiers(head + unknown + rest, EXPLICIT) == UIDS


def test_what_is_broken_behind_the_identity_is_for_the_worker_to_judge() -> None:
    broken = struct.pack("<HH2sHI", 0x0040, 0x0275, b"SQ", 0, 0xFFFFFFFF)
    assert identifiers(data_set()[:-2012] + broken, EXPLICIT) == UIDS


def test_a_long_value_is_skipped_and_not_held() -> None:
    private = struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, 5_000_000) + bytes(5_000_000)
    head, rest = data_set()[:50], data_set()[50:]
    assert identifiers(head + private + rest, EXPLICIT) == UIDS


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (data_set()[:30], "in the middle of an element"),
        (data_set()[:37], "in the middle of an element"),
        (
            element(0x00080005, b"CS", b"") + b"\x08\x00\x16\x00??\x00\x00",
            "no value representation",
        ),
        (struct.pack("<HH2sHI", 8, 6, b"SQ", 0, 0xFFFFFFFF), "in the middle of a sequence"),
        (
            struct.pack("<HH2sHI", 8, 6, b"SQ", 0, 0xFFFFFFFF)
            + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) * 1000,
            "nested deeper than 64",
        ),
        (element(0x00080001, b"UL", b"") * 100_001, "too many elements"),
    ],
)
def test_what_is_no_data_set_is_unreadable_and_says_why(data: bytes, why: str) -> None:
    with pytest.raises(Unreadable, match=why) as raised:
        read(BytesIO(data), EXPLICIT)
    assert len(str(raised.value)) <= 64


def test_what_does_not_inflate_is_unreadable() -> None:
    with pytest.raises(Unreadable, match="deflate"):
        read(BytesIO(b"\xff" * 100), DEFLATED)


def test_a_deflate_bomb_costs_little() -> None:
    compress = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = b"".join(compress.compress(bytes(1 << 24)) for _ in range(16)) + compress.flush()
    tracemalloc.start()
    with pytest.raises(Unreadable):
        read(BytesIO(bomb), DEFLATED)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20


@given(st.binary(max_size=300), st.sampled_from([EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED]))
def test_any_bytes_are_read_or_unreadable(data: bytes, syntax: str) -> None:
    try:
        values = read(BytesIO(data), syntax)
    except Unreadable:
        return
    assert set(values) <= handlers.WANTED


@given(st.binary(max_size=120), st.integers(min_value=0, max_value=47))
def test_a_damaged_data_set_is_read_or_unreadable(noise: bytes, at: int) -> None:
    whole = data_set(pixels=10)
    try:
        read(BytesIO(whole[:at] + noise + whole[at + len(noise) :]), EXPLICIT)
    except Unreadable:
        return


@pytest.mark.parametrize(
    ("declared", "value", "decoded"),
    [
        (b"", b"Thorax nativ ", "Thorax nativ"),
        (b"ISO_IR 100", "Schädel".encode("latin-1"), "Schädel"),
        (b"ISO_IR 192", "胸部".encode(), "胸部"),
        (b"GB18030", "胸部".encode("gb18030"), "胸部"),
        (b"\\ISO 2022 IR 87", b"\x1b$B6;It\x1b(B", "胸部"),
        (b"", "Schädel".encode("latin-1"), "Schädel"),  # undeclared, and ordinary
        (b"ISO_IR 192", b"\xff\xfe", "\N{REPLACEMENT CHARACTER}" * 2),
        (b"NO SUCH SET", b"abc", "abc"),
    ],
)
def test_text_is_decoded_as_far_as_it_can_be(declared: bytes, value: bytes, decoded: str) -> None:
    values = {handlers.CHARACTER_SET: declared, handlers.SERIES_DESCRIPTION: value}
    assert text(values, handlers.SERIES_DESCRIPTION) == decoded


@given(st.binary(max_size=64), st.binary(max_size=64))
@pytest.mark.filterwarnings("ignore")
def test_no_text_makes_the_reading_fail(declared: bytes, value: bytes) -> None:
    values = {handlers.CHARACTER_SET: declared, handlers.SERIES_DESCRIPTION: value}
    assert isinstance(text(values, handlers.SERIES_DESCRIPTION), str)


@given(
    damage=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=3),
    cut=st.integers(0, 2300),
    depth=st.integers(-1, 2),
)
def test_a_quick_look_says_the_same_as_the_walk_or_nothing(
    damage: list[tuple[int, int]], cut: int, depth: int
) -> None:
    whole = bytearray(data_set() if depth < 0 else encoded(nested(depth)))
    for place, byte in damage:
        if place < len(whole):
            whole[place] = byte
    begin = bytes(whole[: max(cut, 12)])
    values = quick_read(begin)
    if values is not None:
        assert values == read(BytesIO(bytes(whole)), EXPLICIT)


def test_a_quick_look_finds_the_identity_of_a_usual_instance() -> None:
    values = quick_read(data_set())
    assert values is None  # it has no name: what lies behind may have one
    named = data_set().replace(
        element(0x00100020, b"LO", b"P1"),
        element(0x00100010, b"PN", b"A^B") + element(0x00100020, b"LO", b"P1"),
    )
    assert quick_read(named) == read(BytesIO(named), EXPLICIT)
    assert quick_read(named) is not None
