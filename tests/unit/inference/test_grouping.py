"""Grouping of slices to stacks, and their names, beside the cases of `cases_grouping.py`."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from inference.errors import Reason
from inference.geometry import examine, measure, verdict
from inference.request import Output
from inference.stacks import keys, read_headers, set_aside, stacks_of
from tests import phantoms
from tests.phantoms import Edit, Series


def test_a_stack_keeps_its_key_when_more_arrives(tmp_path: Path) -> None:
    first = phantoms.write(tmp_path / "a", Series(slices=3))
    second = phantoms.write(tmp_path / "b", Series(slices=4, kernel="B70f", seed="other kernel"))

    def one_series(path: Path) -> None:
        made = phantoms.pydicom_read(path)
        made.SeriesInstanceUID = phantoms.uid("phantom", "series", 3)
        made.StudyInstanceUID = phantoms.uid("phantom", "study")
        phantoms.save(path, made)

    for path in second:
        one_series(path)
    (alone,) = stacks_of(read_headers(first))
    both = stacks_of(read_headers([*first, *second]))
    assert [len(stack) for stack in both] == [4, 3]
    assert both[1].key == alone.key
    assert [stack.label for stack in both] == ["B70f", "B30f"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda made, index: setattr(made, "Rows", made.Rows + index // 3),
        lambda made, index: setattr(made, "KVP", "120" if index < 3 else "80"),
        lambda made, index: setattr(made, "PixelSpacing", ["0.8", f"0.8{index // 3}"]),
        lambda made, index: setattr(
            made, "ImageType", ["ORIGINAL", "PRIMARY", "AXIAL" if index < 3 else "OTHER"]
        ),
    ],
)
def test_what_separates_images_makes_stacks_of_their_own(tmp_path: Path, edit: Edit) -> None:
    files = phantoms.write(tmp_path, Series(slices=6, edit=edit))
    assert [len(stack) for stack in stacks_of(read_headers(files))] == [3, 3]


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("BitsStored", (12, 11)),
        ("HighBit", (11, 15)),
        ("PixelRepresentation", (1, 0)),
        ("PhotometricInterpretation", ("MONOCHROME1", "MONOCHROME2")),
        ("RescaleIntercept", ("-1024", "0")),
        ("ImageType", (["ORIGINAL", "PRIMARY", "AXIAL"], ["ORIGINAL", "SECONDARY", "AXIAL", "X"])),
        ("ImageType", (["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "PRIMARY"])),
        ("ImageType", (["ORIGINAL", "PRIMARY", "AXIAL"], None)),
        ("ConvolutionKernel", ("B30f", "b30f ")),
        ("ConvolutionKernel", ("B30f", None)),
        ("KVP", ("120", "120.0")),
        ("KVP", ("120", None)),
        ("PixelSpacing", (["0.8", "0.8"], ["0.8001", "0.8"])),
        ("ImageOrientationPatient", ([1, 0, 0, 0, 1, 0], [1, 0.0005, 0, -0.0005, 1, 0])),
        ("TriggerTime", ("581", "583")),
        ("ReconstructionDiameter", ("500", "501")),
        ("SliceThickness", ("5", None)),
    ],
)
def test_what_only_says_how_a_slice_was_written_down_parts_nothing(
    tmp_path: Path, keyword: str, values: tuple[object, object]
) -> None:
    def edit(made: Dataset, index: int) -> None:
        setattr(made, keyword, values[index % 2])

    (stack,) = stacks_of(read_headers(phantoms.write(tmp_path, Series(slices=6, edit=edit))))
    assert len(stack) == 6
    assert verdict(stack, Output()) is None


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("TriggerTime", lambda index: f"{100 * (index // 3)}.5"),
        ("NominalPercentageOfCardiacPhase", lambda index: 40 + index // 3),
        ("TemporalPositionIdentifier", lambda index: 1 + index // 3),
        ("AcquisitionNumber", lambda index: 1 + index // 3),
        ("AcquisitionTime", lambda index: f"1010{index // 3:02d}"),
    ],
)
def test_phases_part_only_where_places_come_again(
    tmp_path: Path, keyword: str, value: Callable[[int], object]
) -> None:
    """Three slices each: behind one another they are one stack, at the same places two."""

    def adjoining(made: Dataset, index: int) -> None:
        setattr(made, keyword, value(index))

    def again(made: Dataset, index: int) -> None:
        adjoining(made, index)
        made.ImagePositionPatient = [0, 0, 5 * (index % 3)]

    one = stacks_of(read_headers(phantoms.write(tmp_path / "a", Series(edit=adjoining))))
    two = stacks_of(read_headers(phantoms.write(tmp_path / "b", Series(edit=again))))
    assert [len(stack) for stack in one] == [6]
    assert [len(stack) for stack in two] == [3, 3]
    assert len({stack.label for stack in two}) == len({stack.key for stack in two}) == 2
    assert all((stack.key + stack.label).isprintable() for stack in two)


def test_a_phase_of_the_heart_is_named_as_a_person_would_write_it(tmp_path: Path) -> None:
    def edit(made: Dataset, index: int) -> None:
        made.NominalPercentageOfCardiacPhase = (30, 70)[index // 6]
        made.TriggerTime = str((270, 630)[index // 6] + (0, 4, -3)[index % 6 // 2])
        made.ImagePositionPatient = [0, 0, 5 * (index % 6)]

    found = stacks_of(read_headers(phantoms.write(tmp_path, Series(slices=12, edit=edit))))
    assert [len(stack) for stack in found] == [6, 6]
    assert [stack.label for stack in found] == ["30 %", "70 %"]
    assert [stack.key.rpartition(", ")[2] for stack in found] == ["30 %", "70 %"]


@pytest.mark.parametrize("vr", ["FD", "FL", "DS", "US", "SV"])
def test_a_number_is_read_as_its_file_says_that_it_is_written(tmp_path: Path, vr: str) -> None:
    def edit(made: Dataset, index: int) -> None:
        made.NominalPercentageOfCardiacPhase = (30.0, 70.0)[index // 6]
        made.ImagePositionPatient = [0, 0, 5 * (index % 6)]
        if vr != "FD":
            value = (30, 70)[index // 6]
            made["NominalPercentageOfCardiacPhase"] = DataElement(
                made["NominalPercentageOfCardiacPhase"].tag, vr, str(value) if vr == "DS" else value
            )

    found = stacks_of(read_headers(phantoms.write(tmp_path, Series(slices=12, edit=edit))))
    assert [stack.label for stack in found] == ["30 %", "70 %"]


@pytest.mark.parametrize(("vr", "value"), [("LO", "75%"), ("FD", [30.0, 70.0]), ("LO", "")])
def test_a_phase_that_is_no_number_names_no_stack(tmp_path: Path, vr: str, value: object) -> None:
    def edit(made: Dataset, index: int) -> None:
        made.add_new("NominalPercentageOfCardiacPhase", vr, value)

    (stack,) = stacks_of(read_headers(phantoms.write(tmp_path, Series(slices=4, edit=edit))))
    assert len(stack) == 4
    assert "%" not in stack.key


def test_stacks_in_several_planes_are_named_by_them(tmp_path: Path) -> None:
    planes = ([1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0.8, -0.6])

    def edit(made: Dataset, index: int) -> None:
        cosines = planes[index // 3]
        normal = np.cross(cosines[:3], cosines[3:])
        made.ImageOrientationPatient = cosines
        made.ImagePositionPatient = [f"{x:.3f}" for x in normal * 5.0 * (index % 3)]

    found = stacks_of(read_headers(phantoms.write(tmp_path, Series(slices=12, edit=edit))))
    assert {stack.label for stack in found} == {"axial", "coronal", "sagittal", "oblique"}


def test_a_contrast_agent_is_named_in_its_own_character_set(tmp_path: Path) -> None:
    def edit(made: Dataset, index: int) -> None:
        made.ContrastBolusAgent = ("\u30e8\u30fc\u30c9", "Iod")[index // 6]
        made.ImagePositionPatient = [0, 0, 5 * (index % 6)]

    series = Series(slices=12, character_set="ISO_IR 192", edit=edit)
    found = stacks_of(read_headers(phantoms.write(tmp_path, series)))
    names = {stack.key.rpartition(", ")[2] for stack in found}
    assert names == {"\u30e8\u30fc\u30c9", "Iod"}
    assert all(stack.label.isascii() for stack in found)  # the description is ASCII
    assert len({stack.label for stack in found}) == 2


@pytest.mark.parametrize("by", ["AcquisitionTime", "AcquisitionNumber", "TriggerTime"])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("slices_a_value", [1, 2, 4])
def test_passes_whose_slices_have_numbers_of_their_own_are_parted_by_pass(
    tmp_path: Path, by: str, backwards: bool, slices_a_value: int
) -> None:
    """Two passes over ten places, the second a minute later and perhaps from behind."""

    def edit(made: Dataset, index: int) -> None:
        second, place = divmod(index, 10)
        step = place // slices_a_value
        time = f"10{10 + second:02d}{step:02d}"
        setattr(made, by, time if by == "AcquisitionTime" else str(1000 * second + step))
        place = 9 - place if backwards and second else place
        made.ImagePositionPatient = [0, 0, 5 * place]

    found = stacks_of(read_headers(phantoms.write(tmp_path, Series(slices=20, edit=edit))))
    assert [len(stack) for stack in found] == [10, 10]
    for stack in found:
        numbers = sorted(header.integer("InstanceNumber") or 0 for header in stack.headers)
        assert numbers in (list(range(1, 11)), list(range(11, 21)))
        assert verdict(stack, Output()) is None


@pytest.mark.parametrize("common", [1, 2, 4])
def test_acquisitions_that_adjoin_are_parted_at_the_border_and_filled_once(
    tmp_path: Path, common: int
) -> None:
    def edit(made: Dataset, index: int) -> None:
        made.AcquisitionNumber = 1 + index // 10
        made.ImagePositionPatient = [0, 0, 5 * (index - (common if index >= 10 else 0))]

    headers = read_headers(phantoms.write(tmp_path, Series(slices=20, edit=edit)))
    found = stacks_of(headers)
    assert sorted(len(stack) for stack in found) == sorted([10, 11 - common])
    gaps = []
    for stack in found:
        layout = examine(stack, Output())
        gaps += np.round(layout.geometry.distances_mm[:-1]).tolist()
    assert sorted(gaps) == [5.0 * place for place in range(19 - common)]
    assert len(set_aside(headers)) == common - 1
    assert {item.reason for item in set_aside(headers)} <= {Reason.DUPLICATE_POSITIONS}


@pytest.mark.parametrize(
    ("keyword", "value", "name"),
    [
        ("KVP", "121", "KVP"),
        ("ConvolutionKernel", "B70f", "Convolution Kernel"),
        ("ImageType", ["ORIGINAL", "PRIMARY", "OTHER"], "Image Type"),
    ],
)
def test_nothing_is_generated_where_a_real_slice_of_another_kind_lies(
    tmp_path: Path, keyword: str, value: object, name: str
) -> None:
    def edit(made: Dataset, index: int) -> None:
        if index == 3:
            setattr(made, keyword, value)

    overlapping = Series(slices=8, spacing_mm=2.5, thickness_mm=5.0, edit=edit)
    files = phantoms.write(tmp_path, overlapping)
    (stack,) = stacks_of(read_headers(files))
    found = verdict(stack, Output())
    assert found is not None
    assert found.reason == Reason.MIXED_ACQUISITIONS
    assert name in str(found)
    again = stacks_of(read_headers([header.path for header in stack.headers]))
    assert [len(same) for same in again] == [8]


@pytest.mark.parametrize("place", [0, 7])
def test_an_odd_slice_at_an_end_is_left_out_and_the_others_are_a_stack(
    tmp_path: Path, place: int
) -> None:
    def edit(made: Dataset, index: int) -> None:
        if index == place:
            made.KVP = "121"

    (stack,) = stacks_of(read_headers(phantoms.write(tmp_path, Series(slices=8, edit=edit))))
    assert len(stack) == 7
    assert verdict(stack, Output()) is None


@pytest.mark.parametrize(
    ("gaps", "sideways", "joined"),
    [
        ([5.0], 0.0, False),
        ([5.0, 5.0], 0.0, True),
        ([5.0, 5.0, 5.0], 0.0, True),
        ([5.0, 10.0, 5.0], 0.0, False),
        ([5.0, 10.0, 5.0, 5.0], 0.0, True),
        ([5.0] * 7, 1.0, True),  # a tilted gantry: a straight line too
        ([5.0] * 7, 0.5, False),
    ],
)
def test_frames_of_reference_are_joined_only_in_a_straight_row(
    tmp_path: Path, gaps: list[float], sideways: float, joined: bool
) -> None:
    def edit(made: Dataset, index: int) -> None:
        made.FrameOfReferenceUID = f"1.2.3.{index + 1}"
        x, y, z = made.ImagePositionPatient
        curve = index if sideways == 1.0 else index**2
        made.ImagePositionPatient = [float(x) + sideways * curve, y, z]

    headers = read_headers(phantoms.write(tmp_path, Series(gaps_mm=gaps, edit=edit)))
    (stack,) = stacks_of(headers)
    found = verdict(stack, Output(across_missing="leave"))
    assert (found is None) == joined
    assert found is None or found.reason == Reason.TOO_FEW_SLICES
    layout = measure(stack)
    assert (layout is not None) == joined
    assert layout is None or "each slice names its own frame of reference" in str(layout.notes)


@pytest.mark.parametrize(
    "edit",
    [
        lambda made, index: setattr(made, "ImageType", ["ORIGINAL", "PRIMARY", f"X{index // 3}"]),
        lambda made, index: setattr(made, "FrameOfReferenceUID", f"1.2.{3 + index // 3}"),
        lambda made, index: setattr(
            made,
            "ImageOrientationPatient",
            [1, 0, 0, 0, 1, 0] if index < 3 else [1, 0, 0, 0, 0.9999, 0.012],
        ),
    ],
    ids=["kind", "frame", "orientation"],
)
def test_no_two_stacks_of_a_series_have_one_key(tmp_path: Path, edit: Edit) -> None:
    files = phantoms.write(tmp_path, Series(slices=6, edit=edit))
    first = {stack.key for stack in stacks_of(read_headers(files))}
    assert len(first) == 2
    assert {stack.key for stack in stacks_of(read_headers(files[::-1]))} == first
    assert all(
        len(stacks_of(read_headers([h.path for h in stack.headers]))) == 1
        for stack in stacks_of(read_headers(files))
    )


def test_stacks_that_nothing_readable_tells_apart_are_numbered(tmp_path: Path) -> None:
    first, second = read_headers(phantoms.write(tmp_path, Series(slices=2)))
    names = keys([[first], [second]])
    assert keys([[second], [first]]) == names[::-1]
    assert sorted(name.endswith(", 2") for name in names) == [False, True]
    assert keys([[first]]) == [min(names)]


def test_phases_of_unequal_length_are_parted_where_they_show_the_same_places(
    tmp_path: Path,
) -> None:
    def edit(made: Dataset, index: int) -> None:
        made.AcquisitionNumber = 1 + index // 8
        made.ImagePositionPatient = [0, 0, 5 * (index % 8) + (10 if index >= 8 else 0)]

    files = phantoms.write(tmp_path, Series(slices=13, edit=edit))
    random.Random(3).shuffle(files)
    found = stacks_of(read_headers(files))
    assert [len(stack) for stack in found] == [8, 5]
    assert [stack.label for stack in found] == ["acquisition 1", "acquisition 2"]
    assert all(verdict(stack, Output()) is None for stack in found)


@pytest.mark.parametrize("offset_mm", [0.2, 1.0, 2.5, 4.0])
def test_phases_whose_slices_lie_between_each_other_are_refused(
    tmp_path: Path, offset_mm: float
) -> None:
    def edit(made: Dataset, index: int) -> None:
        made.AcquisitionNumber = 1 + index % 2
        made.ContrastBolusAgent = "" if index % 2 else "Ultravist"
        made.ImagePositionPatient = [0, 0, 5 * (index // 2) + offset_mm * (index % 2)]

    (stack,) = stacks_of(read_headers(phantoms.write(tmp_path, Series(slices=12, edit=edit))))
    found = verdict(stack, Output())
    assert found is not None
    assert found.reason == Reason.MIXED_ACQUISITIONS


def test_places_that_were_acquired_twice_may_differ_by_the_rounding_of_the_table(
    tmp_path: Path,
) -> None:
    def edit(made: Dataset, index: int) -> None:
        made.AcquisitionNumber = 1 + index % 2
        made.ImagePositionPatient = [0, 0, 5 * (index // 2) + 0.05 * (index % 2)]

    found = stacks_of(read_headers(phantoms.write(tmp_path, Series(slices=12, edit=edit))))
    assert [len(stack) for stack in found] == [6, 6]


def test_slices_of_another_acquisition_inside_one_gap_are_refused(tmp_path: Path) -> None:
    def edit(made: Dataset, index: int) -> None:
        made.AcquisitionNumber = 1 if index < 6 else 2
        made.ImagePositionPatient = [0, 0, 5 * index if index < 6 else 12 + index - 6]

    (stack,) = stacks_of(read_headers(phantoms.write(tmp_path, Series(slices=8, edit=edit))))
    found = verdict(stack, Output())
    assert found is not None
    assert found.reason == Reason.MIXED_ACQUISITIONS
