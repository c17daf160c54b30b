"""What a file on disk is, whatever a peer has put into its data set."""

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from node.dicom.handlers import MAX_META_BYTES, identify_file
from node.dicom.incoming import part10_head
from storage.database import Database
from storage.files import Files, received_digest
from storage.records import Received
from storage.recovery import recover
from tests.conftest import Clock
from tests.unit.storage.stored import Stored

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
SEQUENCE = struct.pack("<HH2sHI", 0x0040, 0x0275, b"SQ", 0, 0xFFFFFFFF)
WHAT = Received("1.2", "1.2.4", "1.2.3", CT, EXPLICIT, "CT", "P1")


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def data_set() -> bytes:
    elements = (
        (0x0008, 0x0016, b"UI", WHAT.sop_class_uid),
        (0x0008, 0x0018, b"UI", WHAT.instance_uid),
        (0x0008, 0x0060, b"CS", WHAT.modality),
        (0x0010, 0x0020, b"LO", WHAT.patient_id),
        (0x0020, 0x000D, b"UI", WHAT.study_uid),
        (0x0020, 0x000E, b"UI", WHAT.series_uid),
    )
    return b"".join(
        element(group, number, vr, value.encode()) for group, number, vr, value in elements
    )


def nested(depth: int) -> bytes:
    """Sequences of undefined length, one in the other: a recursive reader gives up."""
    opened = SEQUENCE + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    closed = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    return opened * depth + closed * depth


def head(syntax: str = EXPLICIT) -> bytes:
    return part10_head(sop_class_uid=CT, instance_uid=WHAT.instance_uid, transfer_syntax=syntax)


def written(folder: Path, content: bytes) -> Path:
    file = folder / "one.dcm"
    file.write_bytes(content)
    return file


def test_a_file_says_what_it_is(tmp_path: Path) -> None:
    assert identify_file(written(tmp_path, head() + data_set())) == WHAT


@pytest.mark.parametrize(("calling", "known"), [("CT1", "CT1"), ("CTé", ""), ("", "")])
def test_a_file_says_who_sent_it_and_to_whom(tmp_path: Path, calling: str, known: str) -> None:
    titles = {"calling_ae": calling, "called_ae": "MIDSLICE_X2"}
    uid = WHAT.instance_uid
    start = part10_head(sop_class_uid=CT, instance_uid=uid, transfer_syntax=EXPLICIT, **titles)
    found = identify_file(written(tmp_path, start + data_set()))
    assert found == replace(WHAT, calling_ae=known, called_ae="MIDSLICE_X2")


def test_what_follows_the_identity_is_never_parsed(tmp_path: Path) -> None:
    assert identify_file(written(tmp_path, head() + data_set() + nested(2000))) == WHAT
    rubbish = head() + data_set() + b"\x40\x00\x75\x02SQ\x00\x00\xff\xff\xff\xff rubbish"
    assert identify_file(written(tmp_path, rubbish)) == WHAT


def test_the_file_meta_says_how_the_data_set_is_read(tmp_path: Path) -> None:
    implicit = "1.2.840.10008.1.2"
    found = identify_file(written(tmp_path, head(implicit) + implicit_data_set()))
    assert found == replace(WHAT, transfer_syntax=implicit)


def implicit_data_set() -> bytes:
    explicit, plain = data_set(), b""
    while explicit:
        group, number, _, length = struct.unpack_from("<HH2sH", explicit)
        plain += struct.pack("<HHI", group, number, length) + explicit[8 : 8 + length]
        explicit = explicit[8 + length :]
    return plain


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"DICM",
        bytes(128) + b"DICM",
        head()[:150],
        head()[:-20],
        head() + data_set()[:-20],
        bytes(128) + b"NONE" + head()[132:] + data_set(),
        head()[:140] + struct.pack("<I", MAX_META_BYTES + 1) + head()[144:] + data_set(),
        head()[:140] + struct.pack("<I", 0) + data_set(),
        bytes(128) + b"DICM\x02\x00\x00\x00UL\x04\x00\xff\x00\x00\x00" + nested(40),
    ],
    ids=[
        "empty",
        "no preamble",
        "no meta",
        "meta cut in its length",
        "meta cut short",
        "data set cut short",
        "no Part 10 file",
        "a length that lies",
        "no transfer syntax",
        "sequences for meta",
    ],
)
def test_a_broken_file_has_no_identity(tmp_path: Path, content: bytes) -> None:
    assert identify_file(written(tmp_path, content)) is None


def test_a_missing_file_has_no_identity(tmp_path: Path) -> None:
    assert identify_file(tmp_path / "gone.dcm") is None


def test_a_hostile_file_in_incoming_does_not_stop_the_node_from_starting(
    database: Database, tmp_path: Path, clock: Clock
) -> None:
    stored = Stored(database, Files(tmp_path / "var", 0), clock)
    hostile = written(stored.files.incoming, head() + data_set() + nested(2000))
    sealed = Path(stored.files.seal(hostile, received_digest(hostile)))
    assert recover(stored.archive, identify_file).indexed == (f"incoming/{sealed.name}",)
    assert stored.series()[0].series_uid == WHAT.series_uid
    assert list(stored.files.incoming.iterdir()) == []
