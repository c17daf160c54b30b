"""One instance UID with several files: header revisions are used, conflicts are held."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEGLSLossless

from inference.errors import Reason
from inference.request import Derived, Verdict
from inference.stacks import read_headers, stacks_of
from tests import phantoms
from tests.phantoms import Patient, Series
from tests.unit.inference.made import other, request, run

PLAIN = Series(slices=3)


def twice(tmp_path: Path, again: Series) -> tuple[list[Path], list[Path]]:
    """The series, and the same instances sent a second time."""
    return phantoms.write(tmp_path / "first", PLAIN), phantoms.write(tmp_path / "again", again)


def test_a_corrected_patient_gives_a_new_derived_series(tmp_path: Path) -> None:
    first, again = twice(tmp_path, other(PLAIN, patient=Patient(name="Other^Name")))
    before = run(request(first, tmp_path / "before"))
    after = run(request([*first, *again], tmp_path / "after"))
    assert isinstance(before, Derived)
    assert isinstance(after, Derived)
    uids = {file.instance_uid for file in (*before.files, *after.files)}
    assert before.series_uid != after.series_uid
    assert len(uids) == len(before.files) + len(after.files)


def test_a_recompressed_series_alone_gives_the_same_uids(tmp_path: Path) -> None:
    first, again = twice(tmp_path, other(PLAIN, transfer_syntax=JPEGLSLossless))
    before = run(request(first, tmp_path / "before"))
    after = run(request([*first, *again], tmp_path / "after"))
    assert isinstance(before, Derived)
    assert isinstance(after, Derived)
    assert before.series_uid == after.series_uid


def _other_pixels(made: Dataset, index: int) -> None:
    if index == 1:
        values = np.frombuffer(made.PixelData, "<u2").copy()
        values[5] += 1
        made.PixelData = values.tobytes()


def _other_place(made: Dataset, index: int) -> None:
    if index == 1:
        made.ImagePositionPatient = [-150, -120, -294]


def _no_rescale(made: Dataset, _: int) -> None:
    del made.RescaleSlope


@pytest.mark.parametrize("edit", [_other_pixels, _other_place])
def test_other_pixels_or_another_place_under_one_uid_is_held(
    tmp_path: Path, edit: Callable[[Dataset, int], None]
) -> None:
    first, again = twice(tmp_path, other(PLAIN, edit=edit))
    outcome = run(request([*first, *again], tmp_path / "derived"))
    assert isinstance(outcome, Verdict)
    assert (outcome.reason, outcome.held) == (Reason.CONFLICTING_INSTANCES, True)
    assert "Image 2" in outcome.sentence


def test_an_older_version_without_rescale_is_a_conflict(tmp_path: Path) -> None:
    first, again = twice(tmp_path, other(PLAIN, edit=_no_rescale))
    outcome = run(request([*again, *first], tmp_path / "derived"))
    assert isinstance(outcome, Verdict)
    assert outcome.reason == Reason.CONFLICTING_INSTANCES


def test_a_series_sent_again_because_its_pixels_were_broken_is_used(tmp_path: Path) -> None:
    first, again = twice(tmp_path, PLAIN)
    phantoms.break_pixels(first[1])
    outcome = run(request([*first, *again], tmp_path / "derived"))
    assert isinstance(outcome, Derived)
    assert "could not be read" in str(outcome.record["notes"])
    broken_last = run(request([*again, *first], tmp_path / "other"))
    assert isinstance(broken_last, Verdict)
    assert broken_last.reason == Reason.PIXEL_DATA_ERROR


def test_versions_count_once_and_stay_with_their_newest(tmp_path: Path) -> None:
    first, again = twice(tmp_path, other(PLAIN, kernel="B70f"))
    (stack,) = stacks_of(read_headers([*first, *again]))
    assert len(stack) == 3
    assert len(stack.headers) == 6
    assert "B70f" in stack.key
