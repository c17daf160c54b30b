"""The Storage SCU without a peer: proposals, requests cut into PDUs, the wait for answers."""

from pathlib import Path

import pytest
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from node.dicom.contexts import MAX_CONTEXTS, proposed_contexts
from node.dicom.requests import comment_of
from node.dicom.scu import Outgoing, _batches
from tests.raw_peer import CT, EXPLICIT, IMPLICIT, MR

JPEG_LS = "1.2.840.10008.1.2.4.80"
TWO_TAGS = "offending elements (0010,0020) PatientID, (0009,1001)"


def test_only_what_is_sent_is_proposed() -> None:
    contexts = proposed_contexts([(CT, EXPLICIT), (CT, EXPLICIT), (MR, JPEG_LS)])
    proposed = [(str(one.abstract_syntax), str(one.transfer_syntax[0])) for one in contexts]
    assert proposed == [
        (CT, EXPLICIT),
        (CT, IMPLICIT),
        (MR, EXPLICIT),
        (MR, IMPLICIT),
        (MR, JPEG_LS),
    ]
    assert all(len(one.transfer_syntax) == 1 for one in contexts)


def test_more_kinds_than_one_association_has_contexts_for_are_sent_over_several() -> None:
    files = [Outgoing(n, "1.2", f"1.2.3.{n % 70}", EXPLICIT, Path("a")) for n in range(140)]
    batches = list(_batches(files))
    assert [file for batch in batches for file in batch] == files
    assert len(batches) > 1
    for batch in batches:
        pairs = [(file.sop_class_uid, file.transfer_syntax) for file in batch]
        assert len(proposed_contexts(pairs)) <= MAX_CONTEXTS


@pytest.mark.parametrize(
    ("comment", "elements", "text"),
    [
        (None, None, ""),
        ("", None, ""),
        ("No order", None, "No order"),
        ("No\r\norder\0", None, "No  order"),
        ("x" * 100, None, "x" * 64),
        (None, 0x00100020, "offending elements (0010,0020) PatientID"),
        (
            "No",
            [0x00100020, 0x00091001],
            "No; " + TWO_TAGS,
        ),
    ],
)
def test_what_a_peer_says_of_its_answer_is_printable_and_short(
    comment: str | None, elements: int | list[int] | None, text: str
) -> None:
    answer = Dataset()
    answer.Status = 0xA900
    if comment is not None:
        element = DataElement(0x00000902, "LO", comment, validation_mode=config.IGNORE)
        answer.add(element)
    if elements is not None:
        answer.OffendingElement = elements
    assert comment_of(answer) == text
