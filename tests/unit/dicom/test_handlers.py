"""C-STORE requests and their answers, without a socket: Success is the last thing that is said."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.presentation import PresentationContextTuple

from node.dicom.handlers import handle_store
from node.dicom.status import (
    CANNOT_UNDERSTAND,
    DOES_NOT_MATCH,
    OUT_OF_RESOURCES,
    SOP_CLASS_NOT_SUPPORTED,
    SUCCESS,
    UID_INVALID,
)
from storage.errors import Busy, NoRoom
from storage.records import Peer, Received
from tests.raw_peer import CT, EXPLICIT, MR, data_set, element, store_command
from tests.unit.dicom.receiving import association, fragment, receiver

SCANNER = Peer("CT1", "MIDSLICE", 7)


@dataclass
class Archive:
    """Keeps what it is handed, or fails."""

    folder: Path
    fails: Exception | None = None

    def __post_init__(self) -> None:
        self.kept: list[tuple[Received, Peer, bytes]] = []

    def keep(self, received: Received, peer: Peer, incoming: Path, digest: str) -> None:
        if self.fails is not None:
            raise self.fails
        self.kept.append((received, peer, incoming.read_bytes()))
        incoming.unlink()


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path)


def request(folder: Path, command: bytes, content: bytes) -> C_STORE:
    """The request of a peer that sends this command and this data set."""
    dimse = receiver(folder)
    dimse.receive_primitive(fragment(command, command=True))
    dimse.receive_primitive(fragment(content))
    _, primitive = dimse.get_msg()
    assert isinstance(primitive, C_STORE)
    return primitive


def answer(archive: Archive, content: bytes, command: bytes = b"") -> int | Dataset:
    """What a peer is answered."""
    primitive = request(archive.folder, command or store_command(), content)
    return answer_to(archive, primitive)


def answer_to(archive: Archive, primitive: C_STORE) -> int | Dataset:
    context = PresentationContextTuple(1, UID(CT), UID(EXPLICIT))
    event = evt.Event(association(), evt.EVT_C_STORE, {"request": primitive, "context": context})
    return handle_store(event, archive.keep, SCANNER)


def status(answered: int | Dataset) -> int:
    return answered if isinstance(answered, int) else int(answered.Status)


def comment(answered: int | Dataset) -> str:
    assert isinstance(answered, Dataset)
    return str(answered.ErrorComment)


def test_success_is_answered_once_the_archive_has_the_whole_file(archive: Archive) -> None:
    assert answer(archive, data_set()) == SUCCESS
    ((received, peer, content),) = archive.kept
    assert (received.study_uid, received.series_uid) == ("1.2.3", "1.2.3.1")
    assert (received.instance_uid, received.sop_class_uid) == ("1.2.3.4", CT)
    assert (received.transfer_syntax, received.modality) == (EXPLICIT, "CT")
    assert (received.patient_id, received.study_date) == ("P1", "20260101")
    assert peer == SCANNER
    assert content.endswith(data_set())
    assert list(archive.folder.iterdir()) == []


@pytest.mark.parametrize(
    "error", [NoRoom("full"), Busy("busy"), OSError(5, "Input/output error: DOE^JANE")]
)
def test_what_could_not_be_kept_is_to_be_sent_again_and_leaves_nothing(
    archive: Archive, error: Exception
) -> None:
    archive.fails = error
    answered = answer(archive, data_set())
    assert status(answered) == OUT_OF_RESOURCES
    assert comment(answered) == f"not stored, try again later: {type(error).__name__}"
    assert list(archive.folder.iterdir()) == []


def test_an_error_that_nobody_expected_is_never_success(archive: Archive) -> None:
    archive.fails = KeyError("unexpected")
    with pytest.raises(KeyError):  # the library answers it with a failure
        answer(archive, data_set())
    assert list(archive.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "expected", "says"),
    [
        (data_set("1.2.9"), DOES_NOT_MATCH, "SOP Instance UID differs"),
        (data_set(sop_class=MR), DOES_NOT_MATCH, "SOP Class UID differs"),
        (data_set(study_uid=""), UID_INVALID, "Study Instance UID: 1-64 letters"),
        (data_set(series_uid="DOE^JANE"), UID_INVALID, "Series Instance UID: 1-64 letters"),
        (data_set()[:30], CANNOT_UNDERSTAND, "the data set ends in the middle"),
        (data_set()[:34] + b"\x08\0\x18\0??\0\0", CANNOT_UNDERSTAND, "no value representation"),
        (b"", UID_INVALID, "Study Instance UID"),
    ],
    ids=["instance", "class", "no study", "name for a UID", "cut short", "rubbish", "empty"],
)
def test_a_data_set_that_is_not_what_it_says_is_refused(
    archive: Archive, content: bytes, expected: int, says: str
) -> None:
    answered = answer(archive, content)
    assert status(answered) == expected
    assert says in comment(answered)
    assert "DOE" not in comment(answered)
    assert archive.kept == []
    assert list(archive.folder.iterdir()) == []


def test_the_offending_element_is_named(archive: Archive) -> None:
    answered = answer(archive, data_set(study_uid=""))
    assert isinstance(answered, Dataset)
    assert answered.OffendingElement == 0x0020000D


def test_what_was_mended_in_a_command_does_not_come_back_as_the_peers(archive: Archive) -> None:
    answered = answer(archive, data_set(), store_command(b"DOE^JANE"))
    assert isinstance(answered, Dataset)
    assert status(answered) == UID_INVALID
    assert answered.AffectedSOPInstanceUID is None
    assert answered.AffectedSOPClassUID is None
    wrong_class = answer(archive, data_set(), store_command(sop_class=MR.encode()))
    assert status(wrong_class) == SOP_CLASS_NOT_SUPPORTED


def test_a_request_without_a_data_set_is_refused(archive: Archive) -> None:
    primitive = C_STORE()
    primitive.AffectedSOPInstanceUID = UID("1.2.3.4")
    answered = answer_to(archive, primitive)
    assert (status(answered), comment(answered)) == (CANNOT_UNDERSTAND, "there is no data set")


def test_a_uid_that_the_standard_forbids_identifies_as_well_as_another(
    archive: Archive, caplog: pytest.LogCaptureFixture
) -> None:
    assert answer(archive, data_set(study_uid="1.02.3")) == SUCCESS
    assert "unusual UID" in caplog.messages
    assert archive.kept[0][0].study_uid == "1.02.3"


def test_a_name_in_another_character_set_is_read_as_it_is_meant(archive: Archive) -> None:
    name = "Müller^Jörg"
    content = element(0x00080005, b"CS", b"ISO_IR 192") + data_set()
    at = content.index(b"\x10\x00\x20\x00")
    content = content[:at] + element(0x00100010, b"PN", name.encode()) + content[at:]
    assert answer(archive, content) == SUCCESS
    assert archive.kept[0][0].patient_name == name
