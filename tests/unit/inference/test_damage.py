"""Damaged, hostile and extreme data: each ends in a result or a verdict, none in a crash."""

import random
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless

from inference.errors import Reason
from inference.geometry import measure, verdict
from inference.request import Derived, Output, Source, Verdict
from inference.stacks import is_derived_by_node, read_header, read_headers, set_aside, stacks_of
from node.second_opinion import check
from tests import phantoms
from tests.phantoms import Patient, Series
from tests.unit.inference.made import derive_series, refused, request, run, unchecked

SMALL = Series(slices=3, rows=6, columns=5)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few flipped bits, a cut, a repeated or a zeroed piece."""
    changed = bytearray(data)
    kind = chance.randrange(4)
    at = chance.randrange(132, len(changed))
    if kind == 0:
        for _ in range(chance.randint(1, 8)):
            changed[chance.randrange(132, len(changed))] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del changed[at:]
    elif kind == 2:
        changed[at:at] = changed[at : at + chance.randrange(64)]
    else:
        changed[at : at + chance.randrange(64)] = b"\0" * 16
    return bytes(changed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless])
def test_headers_of_mutated_files_never_raise(tmp_path: Path, syntax: str) -> None:
    path = phantoms.write(tmp_path, Series(slices=1, rows=6, columns=5, transfer_syntax=syntax))[0]
    data, chance = path.read_bytes(), random.Random(syntax)
    readable = 0
    for _ in range(600):
        path.write_bytes(mutated(data, chance))
        headers = read_headers([path])
        readable += not headers[0].fault
        is_derived_by_node(headers[0])
        set_aside(headers)
        for stack in stacks_of(headers):
            assert verdict(stack, Output()) is not None
    assert readable > 100


@pytest.mark.filterwarnings("ignore")
def test_a_mutated_slice_gives_a_result_that_is_right_or_a_verdict(tmp_path: Path) -> None:
    files = phantoms.write(tmp_path / "received", SMALL)
    data, chance = files[1].read_bytes(), random.Random(7)
    made = request(files, tmp_path / "derived")
    whole = phantoms.write(tmp_path / "whole", SMALL)
    # Its damage makes the slice another object, or is nowhere that counts, or a value like any.
    possible = (files[::2], whole, files)
    seen, unreadable = {}, 0
    for _ in range(200):
        files[1].write_bytes(mutated(data, chance))
        for path in made.folder.iterdir():
            path.unlink()
        outcome = unchecked(made)
        assert isinstance(outcome, Derived | Verdict), outcome
        if isinstance(outcome, Derived):
            derived = [made.folder / file.name for file in outcome.files]
            opinions = [_opinion(sources, derived) for sources in possible]
            assert "right" in opinions or "unreadable" in opinions
            unreadable += "right" not in opinions
        seen[getattr(outcome, "reason", "derived")] = outcome
    assert {"derived", Reason.PIXEL_DATA_ERROR} <= set(seen)
    assert unreadable < 3


def _opinion(sources: list[Path], derived: list[Path]) -> str:
    """What the second checker says, which reads some damaged headers less patiently."""
    try:
        faults = check(sources, derived, factor=2)
    except (NotImplementedError, ValueError, AttributeError):
        return "unreadable"
    if any(fault.startswith("absent") for fault in faults):
        return "unreadable"
    return "wrong" if faults else "right"


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


def test_a_series_of_two_thousand_slices_is_one_stack(tmp_path: Path) -> None:
    def edit(made: Dataset, _: int) -> None:
        made.SOPInstanceUID = "1.2.3.99999999"
        made.ImagePositionPatient = ["0", "0", "99999999"]

    (first,) = phantoms.write(tmp_path, Series(slices=1, rows=1, columns=2, edit=edit))
    data, paths = first.read_bytes(), []
    for index in range(2000):
        paths.append(tmp_path / f"{index}.dcm")
        paths[-1].write_bytes(data.replace(b"99999999", str(10_000_000 + index).encode()))
    (stack,) = stacks_of(read_headers(paths))
    assert len(stack) == 2000
    layout = measure(stack)
    assert layout is not None
    assert layout.gap_mm == 1.0
    assert verdict(stack, Output()) is None


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
