"""Which instances form a stack, which are left out, and what is refused for its headers."""

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
from tests.phantoms import Pixels, Series
from tests.unit.inference.made import derive, only_stack, request

Edit = Callable[[Dataset, int], None]


def reason(files: list[Path], output: Output | None = None) -> Reason | None:
    """The verdict on the largest stack, from headers alone."""
    found = verdict(stacks_of(read_headers(files))[0], output or Output())
    return found.reason if found else None


def assign(**values: object) -> Edit:
    def edit(made: Dataset, _: int) -> None:
        for keyword, value in values.items():
            setattr(made, keyword, value)

    return edit


def remove(*keywords: str) -> Edit:
    def edit(made: Dataset, _: int) -> None:
        for keyword in keywords:
            del made[keyword]

    return edit


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


def test_localizers_screenshots_and_reports_are_left_out_with_a_reason(tmp_path: Path) -> None:
    def odd(made: Dataset, index: int) -> None:
        if index == 1:
            made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        if index == 2:
            made.BurnedInAnnotation = "YES"
        if index == 3:
            made.PhotometricInterpretation = "RGB"
        if index == 4:
            made.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
            del made.ImagePositionPatient

    files = phantoms.write(tmp_path, Series(slices=8, localizer=True, edit=odd))
    (tmp_path / "notes.txt").write_text("no DICOM")
    (tmp_path / "empty.dcm").touch()
    headers = read_headers([*files, tmp_path / "notes.txt", tmp_path / "empty.dcm"])
    assert [len(stack) for stack in stacks_of(headers)] == [4]
    aside = set_aside(headers)
    assert (
        sorted(item.reason for item in aside)
        == [Reason.NOT_A_CT_SLICE] * 5 + [Reason.PIXEL_DATA_ERROR] * 2
    )
    assert any("localizer" in item.sentence for item in aside)


def test_a_series_without_any_slice_is_one_stack_that_says_why(tmp_path: Path) -> None:
    scout = assign(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    enhanced = assign(SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1", NumberOfFrames=6)
    assert reason(phantoms.write(tmp_path / "a", Series(edit=scout))) == Reason.NOT_A_CT_SLICE
    files = phantoms.write(tmp_path / "b", Series(slices=1, edit=enhanced))
    assert reason(files) == Reason.ENHANCED_NOT_SUPPORTED


def _code(value: str) -> object:
    return phantoms.sequence(phantoms.code_item(value, "DCM", "x"))


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (assign(SOPInstanceUID=""), Reason.MISSING_UIDS),
        (assign(SOPClassUID="1.2.840.10008.5.1.4.1.1.4"), Reason.OUT_OF_SCOPE),
        (assign(Modality="PT"), Reason.OUT_OF_SCOPE),
        (assign(QualityControlImage="YES"), Reason.OUT_OF_SCOPE),
        (assign(PatientSpeciesDescription="Canis lupus"), Reason.OUT_OF_SCOPE),
        (assign(ContentQualification="SERVICE"), Reason.OUT_OF_SCOPE),
        (assign(MultienergyCTAcquisition="YES"), Reason.NOT_HU),
        (assign(RescaleType="Z_EFF"), Reason.NOT_HU),
        (remove("RescaleSlope"), Reason.NOT_HU),
        (assign(RescaleSlope="0"), Reason.NOT_HU),
        (assign(SyntheticData="YES"), Reason.DERIVED_INPUT),
        (
            assign(ImageType=["DERIVED", "SECONDARY", "AXIAL", "", "AI_INTERP"]),
            Reason.DERIVED_INPUT,
        ),
        (assign(ImageType=["DERIVED", "SECONDARY", "MIP"]), Reason.DERIVED_INPUT),
        (assign(DerivationCodeSequence=_code("113078")), Reason.DERIVED_INPUT),
        (
            assign(
                ImageType=["DERIVED", "SECONDARY", "REFORMATTED", "MPR"],
                ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
                ImagePositionPatient=[0, 0, 0],
            ),
            Reason.DERIVED_INPUT,
        ),
        (remove("ImagePositionPatient"), Reason.NO_GEOMETRY),
        (remove("PixelSpacing"), Reason.NO_GEOMETRY),
        (remove("FrameOfReferenceUID"), Reason.NO_GEOMETRY),
        (assign(PixelSpacing=["0", "0.8"]), Reason.NO_GEOMETRY),
        (assign(ImageOrientationPatient=["1", "0", "0", "0", "2", "0"]), Reason.BAD_ORIENTATION),
        (assign(ImageOrientationPatient=["1", "0", "0", "1", "0", "0"]), Reason.BAD_ORIENTATION),
        (assign(Rows=9000), Reason.TOO_LARGE),
        (assign(ImagePositionPatient=[0, 0, 0]), Reason.DUPLICATE_POSITIONS),
    ],
)
def test_a_series_that_cannot_be_processed_has_a_reason(
    tmp_path: Path, edit: Edit, expected: Reason
) -> None:
    assert reason(phantoms.write(tmp_path, Series(edit=edit))) == expected


@pytest.mark.parametrize(
    "edit",
    [
        assign(ImageType=["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]),
        assign(ImageType=["DERIVED", "SECONDARY", "REFORMATTED", "MPR"]),
        assign(ImageType=["ORIGINAL", "PRIMARY"]),
        remove("ImageType"),
        remove("SliceThickness", "InstanceNumber", "AcquisitionNumber"),
        assign(PatientSpeciesDescription="homo sapiens"),
        assign(GantryDetectorTilt="20"),
    ],
)
def test_the_usual_oddities_of_real_series_are_processed(tmp_path: Path, edit: Edit) -> None:
    assert reason(phantoms.write(tmp_path, Series(edit=edit))) is None


def test_derived_images_are_taken_only_where_the_route_takes_them(tmp_path: Path) -> None:
    edit = assign(ImageType=["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"])
    files = phantoms.write(tmp_path, Series(edit=edit))
    assert reason(files, Output(accept_derived=False)) == Reason.DERIVED_INPUT


def test_one_slice_is_too_few(tmp_path: Path) -> None:
    assert reason(phantoms.write(tmp_path, Series(slices=1))) == Reason.TOO_FEW_SLICES


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
