"""The check before a result may leave finds what was done to a file after it was planned."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from inference.checks.slice_checks import Expected, verify
from inference.dataset import read_headers
from inference.geometry import arrange
from inference.model import Parameters
from inference.pixels import PixelReader
from inference.registry import load
from inference.request import File, ModelSpec, Output
from inference.results.derived import plan_slices
from tests import phantoms
from tests.phantoms import Patient, Pixels, Series
from tests.unit.inference.made import HERE, derive, only_stack, request

SERIES = Series(slices=3, pixels=Pixels(padding=-2000))


class Planning:
    """Keeps the plan that a job made, to check its files against again."""

    def __init__(self, tmp_path: Path) -> None:
        self.sources = phantoms.write(tmp_path / "received", SERIES)
        made = request(self.sources, tmp_path / "derived", output=Output())
        self.files = derive(made)
        layout = arrange(only_stack(self.sources))
        model = load(ModelSpec("halfway", f"{HERE}:Halfway"))
        steps = model.plan(layout.geometry, Parameters(factor=2))
        read = [phantoms.pydicom_read(path) for path in self.files]
        series_uid = str(read[0].SeriesInstanceUID)
        uids = {int(slice_.InstanceNumber): str(slice_.SOPInstanceUID) for slice_ in read}
        planned = plan_slices(layout, steps, Output(), lambda place: place)
        slices = [replace(slice_, uid=uids[slice_.number]) for slice_ in planned]
        received = frozenset({header.uid for header in layout.headers})
        frame = layout.headers[0].text("FrameOfReferenceUID")
        self.state = made.folder / "presentation-state.dcm"
        objects = [_object(self.state)]
        self.expected = Expected(
            made.folder, series_uid, layout, slices, received, frame, objects=objects
        )

    def faults(self) -> str:
        return "\n".join(verify(self.expected, PixelReader(), progress=lambda _: None))

    def change(self, number: int, edit: Callable[[Dataset], None]) -> str:
        """Change one file and check again."""
        path = self.files[number]
        made = phantoms.pydicom_read(path)
        edit(made)
        phantoms.save(path, made)
        return self.faults()


def _object(path: Path) -> File:
    made = phantoms.pydicom_read(path)
    return File(
        name=path.name,
        instance_uid=str(made.SOPInstanceUID),
        sop_class_uid=str(made.SOPClassUID),
        digest="",
        generated=False,
        series_uid=str(made.SeriesInstanceUID),
        kind="presentation state",
    )


@pytest.fixture
def planning(tmp_path: Path) -> Planning:
    return Planning(tmp_path)


def test_what_was_planned_and_written_has_no_fault(planning: Planning) -> None:
    assert planning.faults() == ""


def _pixel(place: int, value: int) -> Callable[[Dataset], None]:
    def edit(made: Dataset) -> None:
        values = np.frombuffer(made.PixelData, "<i2").copy()
        values[place] = value
        made.PixelData = values.tobytes()

    return edit


def _set(keyword: str, value: object) -> Callable[[Dataset], None]:
    return lambda made: setattr(made, keyword, value)


@pytest.mark.parametrize(
    ("number", "edit", "words"),
    [
        (0, _pixel(700, 123), "copied slice differs"),
        (1, _pixel(700, 30000), "outside those of the neighbours"),
        (1, _pixel(0, 100), "padding is not where"),
        (1, _pixel(700, -2000), "padding is not where"),
        (1, _set("RescaleIntercept", "0"), "pixel format or rescale"),
        (1, _set("SyntheticData", "NO"), "SyntheticData is not YES"),
        (1, _set("SyntheticData", "MAYBE"), "SyntheticData is not YES"),
        (0, _set("SyntheticData", "YES"), "SyntheticData is not NO"),
        (1, _set("ImageType", ["ORIGINAL", "PRIMARY", "AXIAL"]), "ImageType"),
        (1, _set("ImagePositionPatient", [0, 0, 0]), "not where the slice was planned"),
        (1, _set("InstanceNumber", 7), "instance numbers"),
        (1, _set("PatientID", "PH-0002"), "patient or study attribute"),
        (1, _set("StudyDate", "20240306"), "patient or study attribute"),
        (1, _set("PatientComments", "new"), "patient or study attribute"),
        (1, _set("FrameOfReferenceUID", "1.2.3"), "FrameOfReferenceUID"),
        (1, _set("SeriesInstanceUID", "1.2.3"), "SeriesInstanceUID is not"),
        (1, _set("SeriesDescription", "other"), "SeriesDescription varies"),
        (1, _set("SpacingBetweenSlices", "5"), "SpacingBetweenSlices varies"),
        (1, _set("SOPInstanceUID", generate_uid()), "SOPInstanceUID is not"),
        (1, lambda made: made.SourceImageSequence.pop(), "source images are not"),
        (1, lambda made: made.SourceImageSequence.append(made.SourceImageSequence[0]), "source"),
        (
            1,
            lambda made: made.ReferencedSeriesSequence[0].ReferencedInstanceSequence.pop(),
            "list exactly the source images",
        ),
    ],
)
def test_a_changed_file_is_found(
    planning: Planning, number: int, edit: Callable[[Dataset], None], words: str
) -> None:
    assert words in planning.change(number, edit)


def _referred(made: Dataset) -> list[Dataset]:
    return list(made.ReferencedSeriesSequence[0].ReferencedImageSequence)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_set("PatientID", "PH-0002"), "patient or study"),
        (_set("PatientName", "Phantom^Two"), "patient or study"),
        (_set("SeriesInstanceUID", "2.25.1"), "SeriesInstanceUID is not"),
        (_set("SOPInstanceUID", "2.25.1"), "SOPInstanceUID is not"),
        (
            lambda made: setattr(_referred(made)[0], "ReferencedSOPInstanceUID", "2.25.1"),
            "refers to other images",
        ),
        (
            lambda made: made.ReferencedSeriesSequence[0].ReferencedImageSequence.pop(1),
            "leaves out a generated slice",
        ),
    ],
)
def test_a_changed_object_beside_the_series_is_found(
    planning: Planning, edit: Callable[[Dataset], None], words: str
) -> None:
    made = phantoms.pydicom_read(planning.state)
    edit(made)
    phantoms.save(planning.state, made)
    assert words in planning.faults()
    planning.state.unlink()
    assert "presentation-state.dcm: cannot be opened" in planning.faults()


@pytest.mark.parametrize(
    ("number", "element", "value", "words"),
    [
        (1, 0x3000, bytes(160), "no overlay plane says"),
        (1, 0x0022, "acquired", "no overlay plane says"),
        (0, 0x3000, bytes(160), "an overlay plane where none belongs"),
    ],
)
def test_a_changed_overlay_is_found(
    planning: Planning, number: int, element: int, value: object, words: str
) -> None:
    vr = "OW" if isinstance(value, bytes) else "LO"
    tag = 0x60000000 | element
    assert words in planning.change(number, lambda made: made.add_new(tag, vr, value))


def test_a_file_with_a_uid_of_the_source_is_found(planning: Planning) -> None:
    source = phantoms.pydicom_read(planning.sources[0])
    found = planning.change(0, _set("SOPInstanceUID", source.SOPInstanceUID))
    assert "SOPInstanceUID is not" in found


def test_missing_broken_and_extra_files_are_found(planning: Planning) -> None:
    planning.files[1].write_bytes(b"nothing")
    assert "not a DICOM Part 10 file" in planning.faults()
    planning.files[1].unlink()
    assert "cannot be opened" in planning.faults()
    assert "other files than planned" in planning.faults()
    phantoms.break_pixels(planning.files[0])
    assert "damaged or incomplete" in planning.faults()


def test_the_name_of_another_patient_in_one_file_is_found(planning: Planning) -> None:
    other = Patient(name="Phantom^Two")
    assert "patient or study" in planning.change(2, _set("PatientName", other.name))


def test_a_generated_slice_where_a_received_one_of_the_series_lies_is_found(
    planning: Planning, tmp_path: Path
) -> None:
    (path, *_) = phantoms.write(tmp_path / "beside", replace(SERIES, slices=1, edit=_halfway))
    (beside,) = read_headers([path])
    planning.expected = replace(planning.expected, beside=[beside])
    assert planning.faults() == "a generated slice lies where a received one of the series lies"


def _halfway(made: Dataset, _: int) -> None:
    x, y, z = made.ImagePositionPatient
    made.SOPInstanceUID, made.ImagePositionPatient = "1.2.3", [x, y, float(z) + 2.5]
