"""What DIMSE statuses and association rejections mean for the sender."""

import pytest
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS

from node.dicom.status import (
    C_STORE_MEANINGS,
    C_STORE_OUTCOMES,
    REJECTIONS,
    UNKNOWN,
    Outcome,
    meaning,
    outcome,
    rejection,
    status_text,
)


@pytest.mark.parametrize(
    ("status", "meaning"),
    [
        (0x0000, Outcome.STORED),
        (0xB000, Outcome.STORED),
        (0xB006, Outcome.STORED),
        (0xB007, Outcome.STORED),
        (0xA700, Outcome.RETRY),
        (0xA7FF, Outcome.RETRY),
        (0x0110, Outcome.RETRY),
        (0x0213, Outcome.RETRY),
        (0x0111, Outcome.STORED_IF_OURS),
        (0xA900, Outcome.FEW_RETRIES),
        (0xC000, Outcome.FEW_RETRIES),
        (0xC211, Outcome.FEW_RETRIES),
        (0x0122, Outcome.REFUSED),
        (0x0124, Outcome.REFUSED),
        (0x0112, Outcome.REFUSED),
        (0xFE00, Outcome.REFUSED),
    ],
)
def test_a_status_decides_what_the_sender_does_next(status: int, meaning: Outcome) -> None:
    assert outcome(status) is meaning


def test_every_status_has_a_meaning() -> None:
    assert all(isinstance(outcome(status), Outcome) for status in range(0x10000))


def test_no_range_of_the_table_hides_a_later_one() -> None:
    for index, (first, last, _) in enumerate(C_STORE_OUTCOMES):
        assert first <= last
        earlier = C_STORE_OUTCOMES[:index]
        assert not any(low <= first and last <= high for low, high, _ in earlier)


def test_a_status_is_said_with_its_number_and_its_meaning() -> None:
    assert status_text(0x0122) == "0x0122 (SOP Class not supported)"
    assert status_text(0xA7FF) == "0xA7FF (out of resources)"
    assert status_text(0xA900) == "0xA900 (data set does not match SOP Class)"
    assert status_text(0xC123) == "0xC123 (cannot understand)"
    assert status_text(0x1234) == "0x1234 (not a status of the standard)"


def test_every_status_of_c_store_is_known_and_no_other() -> None:
    named = {status for status in range(0x10000) if meaning(status) != UNKNOWN}
    of_commitment = {0x0131}  # duplicate transaction UID: PS3.3 C.14.1.1
    assert named == set(STORAGE_SERVICE_CLASS_STATUS) | of_commitment


def test_no_status_has_two_meanings() -> None:
    ranges = sorted((first, last) for first, last, _ in C_STORE_MEANINGS)
    assert all(
        last < following for (_, last), (following, _) in zip(ranges, ranges[1:], strict=False)
    )


@pytest.mark.parametrize("result", [1, 2])
@pytest.mark.parametrize("source", [1, 2, 3])
@pytest.mark.parametrize("reason", range(8))
def test_every_rejection_has_a_sentence(result: int, source: int, reason: int) -> None:
    decided, sentence = rejection((result, source, reason), calling="NODE", called="PACS")
    assert decided is (Outcome.RETRY if result == 2 else Outcome.REFUSED)
    assert sentence.startswith("PACS rejects the association")
    assert ("unknown (source" in sentence) == ((source, reason) not in REJECTIONS)
    assert "{" not in sentence


def test_a_rejection_says_which_title_to_correct_and_where() -> None:
    assert (
        "calling AE title NODE: enter it there"
        in rejection((1, 1, 3), calling="NODE", called="PACS")[1]
    )
    assert (
        "called AE title PACS: correct it here"
        in rejection((1, 1, 7), calling="NODE", called="PACS")[1]
    )
