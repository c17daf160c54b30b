"""Stacks of a series, what is left out of them or refused, beside the cases of `cases.py`."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from inference.errors import Reason
from inference.geometry import verdict
from inference.request import Output
from inference.stacks import (
    is_derived_by_node,
    open_volume,
    read_header,
    read_headers,
    set_aside,
    stacks_of,
)
from tests import phantoms
from tests.phantoms import Edit, Pixels, Series
from tests.unit.inference.case import altered, lacking
from tests.unit.inference.made import derive, only_stack, request


def reason(files: list[Path]) -> Reason | None:
    """The verdict on the largest stack, from headers alone."""
    found = verdict(stacks_of(read_headers(files))[0], Output())
    return found.reason if found else None


def test_a_series_is_one_stack_whatever_the_order_of_its_files(tmp_path: Path) -> None:
    files = phantoms.write(tmp_path, Series(slices=5))
    random.Random(1).shuffle(files)
    (stack,) = stacks_of(read_headers(files))
    assert len(stack) == 5
    assert stack.label == ""
    assert "B30f" in stack.key
    assert "120 kV" in stack.key
    volume = open_volume(stack)
    assert list(volume.geometry.gaps_mm) == pytest.approx([5.0] * 4)
    assert volume.read(2) == pytest.approx(phantoms.hounsfield(Series(), 2), abs=0.51)


def test_files_that_are_no_dicom_are_left_out_with_a_reason(tmp_path: Path) -> None:
    files = phantoms.write(tmp_path, Series(slices=4))
    (tmp_path / "notes.txt").write_text("no DICOM")
    (tmp_path / "empty.dcm").touch()
    headers = read_headers([*files, tmp_path / "notes.txt", tmp_path / "empty.dcm"])
    assert [len(stack) for stack in stacks_of(headers)] == [4]
    assert [item.reason for item in set_aside(headers)] == [Reason.PIXEL_DATA_ERROR] * 2


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        (altered(RescaleSlope="0"), Reason.NOT_HU),
        (
            altered(ImageType=["DERIVED", "SECONDARY", "AXIAL", "", "AI_INTERP"]),
            Reason.DERIVED_INPUT,
        ),
        (lacking("PixelSpacing"), Reason.NO_GEOMETRY),
        (altered(PatientSpeciesDescription="homo sapiens"), None),
    ],
)
def test_headers_alone_decide_whether_a_series_is_processed(
    tmp_path: Path, series: Series, expected: Reason | None
) -> None:
    assert reason(phantoms.write(tmp_path, series)) == expected


def named_only(name: Callable[[int], str]) -> Edit:
    """Patients without a number and a birth date."""

    def edit(made: Dataset, index: int) -> None:
        made.PatientID = made.PatientBirthDate = ""
        made.PatientName = name(index)

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        lambda made, index: setattr(made, "PatientID", "A" if index else "B"),
        lambda made, index: setattr(made, "PatientBirthDate", "1950010" + str(1 + index % 2)),
        lambda made, index: setattr(made, "IssuerOfPatientID", f"issuer {index % 3}"),
        lambda made, index: setattr(made, "StudyInstanceUID", f"1.2.{1 + index % 2}"),
        named_only(lambda index: f"Unknown^Male {index % 2}"),
    ],
)
def test_instances_of_two_patients_or_studies_are_held_together(tmp_path: Path, edit: Edit) -> None:
    files = phantoms.write(tmp_path, Series(edit=edit))
    (stack,) = stacks_of(read_headers(files))
    found = verdict(stack, Output())
    assert found is not None
    assert found.reason == Reason.PATIENT_MISMATCH
    assert found.is_held


@pytest.mark.parametrize(
    "edit",
    [
        lambda made, index: setattr(made, "PatientID", "PH-0001" + " " * (index % 2)),
        lambda made, index: setattr(made, "PatientName", "One^P" + "^" * (index % 2)),
        lambda made, index: setattr(made, "PatientName", f"Married^Name {index % 2}"),
        named_only(lambda index: ["Unknown^Male", "UNKNOWN  MALE^^", ""][index % 3]),
        lambda made, index: setattr(made, "AccessionNumber", str(index)),
        lambda made, index: setattr(made, "IssuerOfPatientID", "issuer" if index else ""),
    ],
)
def test_differences_of_spelling_are_no_mix_up(tmp_path: Path, edit: Edit) -> None:
    assert reason(phantoms.write(tmp_path, Series(edit=edit))) is None


def test_the_nodes_own_results_are_recognised_and_their_sources_are_not(tmp_path: Path) -> None:
    sources = phantoms.write(tmp_path / "received")
    derived = derive(request(sources, tmp_path / "derived"))
    assert all(is_derived_by_node(read_header(path)) for path in derived)
    assert not any(is_derived_by_node(read_header(path)) for path in sources)


@pytest.mark.parametrize(
    "keywords",
    [
        ("SyntheticData", "ImageType", "ContributingEquipmentSequence"),
        ("SyntheticData", "ImageType", "Manufacturer"),
        ("SyntheticData", "Manufacturer", "ContributingEquipmentSequence"),
    ],
)
def test_one_mark_is_enough_to_recognise_a_result(
    tmp_path: Path, keywords: tuple[str, ...]
) -> None:
    sources = phantoms.write(tmp_path / "received", Series(slices=2))
    derived = derive(request(sources, tmp_path / "derived"))
    made = phantoms.pydicom_read(derived[0])
    for keyword in keywords:
        del made[keyword]
    phantoms.save(tmp_path / "stripped.dcm", made)
    assert is_derived_by_node(read_header(tmp_path / "stripped.dcm"))


def test_padding_never_reaches_a_model(tmp_path: Path) -> None:
    for name, padding, declared in (("a", -2000, True), ("b", -2000, False)):

        def edit(made: Dataset, _: int, declared: bool = declared) -> None:
            if not declared:
                del made.PixelPaddingValue

        series = Series(slices=2, pixels=Pixels(padding=padding), edit=edit)
        headers = only_stack(phantoms.write(tmp_path / name, series))
        (stack,) = stacks_of(headers)
        plane = open_volume(stack).read(0)
        assert plane[0, 0] == -1024.0
        assert plane.min() >= -1024.0
        assert plane.dtype == np.float32


def test_a_padding_value_with_the_wrong_sign_is_understood(tmp_path: Path) -> None:
    def edit(made: Dataset, _: int) -> None:
        made.add_new(0x00280120, "US", 0x10000 - 2000)

    series = Series(slices=2, pixels=Pixels(padding=-2000), edit=edit)
    (stack,) = stacks_of(only_stack(phantoms.write(tmp_path, series)))
    assert open_volume(stack).read(0)[0, 0] == -1024.0
