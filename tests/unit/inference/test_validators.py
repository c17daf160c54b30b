"""The validators of other people: they must be able to say no."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from tests import phantoms, validators
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
