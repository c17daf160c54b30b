"""Damaged, hostile and extreme data: each ends in a result or a verdict, none in a crash."""

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from inference.errors import Reason
from inference.request import Derived, Source, Verdict
from inference.stacks import read_header, read_headers
from node.second_opinion import check
from tests import phantoms
from tests.phantoms import Patient, Series
from tests.unit.inference.made import derive_series, refused, request, run


def test_names_that_look_like_paths_or_statements_are_only_text(tmp_path: Path) -> None:
    series = Series(
        slices=2,
        patient=Patient(name="../../etc/passwd^'; DROP TABLE job;--", id="..\\..\\x"[:3] + "1"),
        description="<script>alert(1)</script>",
        kernel="../../B30f",
    )
    files = derive_series(tmp_path, series)
    assert {path.parent for path in files} == {tmp_path / "derived"}


@pytest.mark.filterwarnings("ignore:The PN component length")
def test_a_patient_name_of_two_hundred_characters_keeps_its_bytes(tmp_path: Path) -> None:
    name = b"A" * 200
    files = derive_series(tmp_path, Series(slices=2, patient=Patient(name=name)))
    assert name in files[0].read_bytes()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 300), (3, 2), (2048, 5)])
def test_any_size_of_slice_is_processed(tmp_path: Path, rows: int, columns: int) -> None:
    assert len(derive_series(tmp_path, Series(slices=2, rows=rows, columns=columns))) == 3


def test_a_result_that_would_fill_the_disk_is_refused(tmp_path: Path) -> None:
    def edit(made: Dataset, _: int) -> None:
        made.Rows = made.Columns = 8192

    series = Series(slices=40, edit=edit)
    files = phantoms.write(tmp_path / "received", series)
    outcome = run(request(files, tmp_path / "derived", factor=10))
    assert isinstance(outcome, Verdict)
    assert outcome.reason == Reason.TOO_LARGE


def test_a_broken_sequence_costs_the_sequence_and_not_the_series(tmp_path: Path) -> None:
    files = phantoms.write(tmp_path / "received", Series(slices=2))
    for path in files:
        made = phantoms.pydicom_read(path)
        phantoms.put(made, "RequestAttributesSequence", b"\xfe\xff\x00\xe0\xff\x00\x00\x00no")
        phantoms.save(path, made)
    outcome = run(request(files, tmp_path / "derived"))
    assert isinstance(outcome, Derived)


def test_deeply_nested_sequences_are_cut(tmp_path: Path) -> None:
    def edit(made: Dataset, _: int) -> None:
        inner = Dataset()
        inner.CodeMeaning = "innermost"
        for _level in range(30):
            outer = Dataset()
            outer.RequestAttributesSequence = phantoms.sequence(inner)
            inner = outer
        made.RequestAttributesSequence = phantoms.sequence(inner)

    files = derive_series(tmp_path, Series(slices=2, edit=edit))
    assert b"innermost" not in files[0].read_bytes()


def test_a_file_without_the_part_10_prefix_is_not_guessed_at(tmp_path: Path) -> None:
    path = phantoms.write(tmp_path, Series(slices=1))[0]
    path.write_bytes(path.read_bytes()[132:])
    assert read_header(path).fault == "is not a DICOM Part 10 file"
    assert read_header(tmp_path / "gone.dcm").fault.startswith("cannot be opened")
    assert read_headers([Source(path, "1.2", 5)])[0].order == 5


def test_pixels_of_all_padding_stay_padding(tmp_path: Path) -> None:
    def edit(made: Dataset, index: int) -> None:
        if index == 1:
            values = np.full((32, 40), -2000, np.int64)
            made.PixelData = phantoms.raw_pixels(values, 16)

    series = Series(slices=3, pixels=phantoms.Pixels(padding=-2000), edit=edit)
    derive_series(tmp_path, series)


def test_two_patients_under_one_series_are_held(tmp_path: Path) -> None:
    def edit(made: Dataset, index: int) -> None:
        made.PatientID = "one" if index < 2 else "two"

    found = refused(tmp_path, Series(slices=4, edit=edit))
    assert (found.reason, found.held) == (Reason.PATIENT_MISMATCH, True)
    assert "one" not in found.sentence.split()


def test_interleaved_jobs_share_nothing(tmp_path: Path) -> None:
    one = phantoms.write(tmp_path / "one", Series(slices=3, seed="one"))
    two = phantoms.write(tmp_path / "two", Series(slices=3, seed="two", kernel="B70f"))
    made = [
        request(one, tmp_path / "a"),
        request(two, tmp_path / "b"),
        request(one, tmp_path / "c"),
    ]
    digests = []
    for each, sources in zip(made, (one, two, one), strict=True):
        outcome = run(each)
        assert isinstance(outcome, Derived)
        assert check(sources, [each.folder / file.name for file in outcome.files], factor=2) == []
        digests.append([file.digest for file in outcome.files])
    assert digests[0] == digests[2]
