"""The validators and the second checker themselves: they must be able to say no."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from tests import phantoms, validators
from tests.derived_checker import check
from tests.phantoms import Series
from tests.unit.inference.made import derive, request


@pytest.fixture
def made(tmp_path: Path) -> tuple[list[Path], list[Path]]:
    """A made series of three slices and its derived series of five."""
    sources = phantoms.write(tmp_path / "received", Series(slices=3))
    return sources, derive(request(sources, tmp_path / "derived"))


def change(path: Path, edit: Callable[[Dataset], object]) -> None:
    slice_ = phantoms.pydicom_read(path)
    edit(slice_)
    phantoms.save(path, slice_)


def put(keyword: str, value: object) -> Callable[[Dataset], object]:
    return lambda slice_: setattr(slice_, keyword, value)


def drop(keyword: str) -> Callable[[Dataset], object]:
    return lambda slice_: slice_.__delattr__(keyword)


def brighten(slice_: Dataset) -> None:
    values = np.frombuffer(slice_.PixelData, "<i2").copy()
    values[600] = 20000
    slice_.PixelData = values.tobytes()


@pytest.mark.parametrize(
    ("number", "edit", "words"),
    [
        (0, brighten, "the copied slice differs"),
        (1, brighten, "outside those of the two neighbours"),
        (1, put("SyntheticData", "NO"), "says ('NO'"),
        (1, put("SOPInstanceUID", phantoms.uid("phantom", 3, "instance", 0)), "of the source"),
        (1, put("SOPInstanceUID", "1.2.3"), "not of the form"),
        (1, put("PatientName", "Other^One"), "PatientName is not the source's"),
        (1, drop("StudyDate"), "StudyDate is not the source's"),
        (1, put("Exposure", 100), "Exposure must not be there"),
        (1, put("ImageType", ["DERIVED", "SECONDARY", "AXIAL"]), "Image Type"),
        (1, put("Manufacturer", "Maker of Phantoms"), "named as the equipment"),
        (1, put("ImagePositionPatient", [-150, -120, -297]), "lies at"),
        (1, put("PixelSpacing", [1, 1]), "PixelSpacing differs"),
        (1, put("RescaleIntercept", "0"), "RescaleIntercept differs"),
        (1, put("InstanceNumber", 9), "Instance Numbers"),
        (1, drop("DerivationCodeSequence"), "DerivationCodeSequence"),
        (1, put("SeriesNumber", 4), "SeriesNumber varies"),
        (1, lambda slice_: slice_.SourceImageSequence.pop(), "references are not exactly"),
    ],
)
def test_the_second_checker_finds_what_was_done_to_a_file(
    made: tuple[list[Path], list[Path]],
    number: int,
    edit: Callable[[Dataset], object],
    words: str,
) -> None:
    sources, derived = made
    assert check(sources, derived, factor=2) == []
    change(derived[number], edit)
    try:
        found = "\n".join(check(sources, derived, factor=2))
    except (AttributeError, KeyError) as error:
        found = str(error)
    assert words in found


def test_the_second_checker_counts(made: tuple[list[Path], list[Path]]) -> None:
    sources, derived = made
    assert check(sources, derived[1:], factor=2) == ["4 instances, expected 5"]
    assert check(sources, derived, factor=3) == ["5 instances, expected 7"]


def test_dciodvfy_errors_are_seen_whatever_its_exit_status(
    made: tuple[list[Path], list[Path]],
) -> None:
    sources, derived = made
    change(derived[1], put("ImageType", ["DERIVED", "SECONDARY"]))
    assert any("Error - " in line for line in validators.new_complaints(sources, derived))


def test_dcentvfy_errors_are_seen(made: tuple[list[Path], list[Path]]) -> None:
    sources, derived = made
    change(derived[1], put("PatientID", "PH-0002"))
    assert any("PatientID" in line for line in validators.new_complaints(sources, derived))


def test_a_defect_that_the_source_has_too_is_no_new_one(tmp_path: Path) -> None:
    def edit(slice_: Dataset, _: int) -> None:
        phantoms.put(slice_, "PatientAge", b"55Y")

    sources = phantoms.write(tmp_path / "received", Series(slices=2, edit=edit))
    derived = derive(request(sources, tmp_path / "derived"))
    assert any("Error - " in line for line in validators.dciodvfy(derived[0]))
    assert validators.new_complaints(sources, derived) == []
