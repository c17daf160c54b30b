"""When a received series of thin slices makes generated ones pointless, and when it does not."""

from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from inference.dataset import Header, Stack, read_header
from inference.errors import Reason
from inference.stacks import read_headers, stacks_of
from inference.thin_series import acquired_thin, kernel_family
from tests import phantoms
from tests.phantoms import Edit, Series
from tests.unit.inference.case import assign, each
from tests.unit.inference.made import other

THICK = Series(slices=6, spacing_mm=5.0)
THIN = Series(slices=26, spacing_mm=1.0, number=4)


def stack_of(folder: Path, series: Series) -> Stack:
    (found,) = stacks_of(read_headers(phantoms.write(folder, series)))
    return found


def is_twin(folder: Path, thick: Series, thin: Series) -> bool:
    verdict = acquired_thin(stack_of(folder / "thick", thick), [stack_of(folder / "thin", thin)])
    return verdict is not None


def test_a_thin_series_of_the_same_range_makes_generated_slices_pointless(tmp_path: Path) -> None:
    mine, theirs = stack_of(tmp_path / "a", THICK), stack_of(tmp_path / "b", THIN)
    far = stack_of(tmp_path / "far", replace(THIN, number=5, gaps_mm=[1.0] * 5))
    sharp = stack_of(tmp_path / "sharp", replace(THIN, number=6, kernel="B70f"))
    found = acquired_thin(mine, [far, sharp, theirs])
    assert found is not None
    assert found.reason == Reason.ACQUIRED_THIN_SERIES_EXISTS
    assert "1.00 mm" in found.sentence
    assert acquired_thin(mine, [far, sharp, mine]) is None
    assert acquired_thin(theirs, [mine]) is None


def moved(mm: float) -> Edit:
    def edit(made: Dataset, _: int) -> None:
        x, y, z = made.ImagePositionPatient
        made.ImagePositionPatient = [x, y, float(z) + mm]

    return edit


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"edit": assign(StudyInstanceUID="1.2.3")}, id="study"),
        pytest.param({"edit": assign(FrameOfReferenceUID="1.2.3")}, id="frame of reference"),
        pytest.param({"edit": assign(AcquisitionNumber=2)}, id="acquisition"),
        pytest.param({"kernel": "B60s"}, id="sharper kernel"),
        pytest.param({"kernel": "H31s"}, id="kernel of another family"),
        pytest.param({"edit": moved(200.0)}, id="another range"),
        pytest.param({"edit": moved(20.0)}, id="a fifth of the range shared"),
        pytest.param({"tilt_degrees": 15.0}, id="another plane"),
        pytest.param({"pixel_mm": (0.3, 0.3)}, id="a small field of view out of the large one"),
    ],
)
def test_what_is_not_surely_the_same_leaves_the_thick_series_to_be_processed(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    assert is_twin(tmp_path / "same", THICK, THIN)
    assert not is_twin(tmp_path / "other", THICK, other(THIN, **changes))


@pytest.mark.parametrize(
    ("thick", "thin", "twin"),
    [
        ("Ultravist", "Ultravist", True),
        ("Ultravist", "ULTRAVIST", True),
        ("Ultravist", "Omnipaque", False),
        ("Ultravist", "", True),  # the acquisition number says that it is one acquisition
        ("", "", True),
    ],
)
def test_two_contrast_phases_are_not_the_same(
    tmp_path: Path, thick: str, thin: str, twin: bool
) -> None:
    series = [
        other(series, edit=assign(ContrastBolusAgent=agent))
        for series, agent in ((THICK, thick), (THIN, thin))
    ]
    assert is_twin(tmp_path, *series) is twin


def test_without_acquisition_numbers_a_contrast_agent_in_one_of_them_is_another_phase(
    tmp_path: Path,
) -> None:
    with_agent = other(THIN, edit=assign(ContrastBolusAgent="Ultravist", AcquisitionNumber=None))
    without = other(THICK, edit=assign(AcquisitionNumber=None))
    assert not is_twin(tmp_path / "a", without, with_agent)
    assert is_twin(tmp_path / "b", without, other(THIN, edit=assign(AcquisitionNumber=None)))


@pytest.mark.parametrize(
    ("thick", "thin", "twin"),
    [
        ("101300", "101300.5", True),
        ("101300", "101340", False),  # the same number and agent: the delayed phase
        ("1013", "101340.25", False),
        ("101300", "", True),
    ],
)
def test_an_acquisition_that_began_after_the_other_had_ended_is_not_the_same(
    tmp_path: Path, thick: str, thin: str, twin: bool
) -> None:
    series = [
        other(series, edit=assign(AcquisitionTime=time, ContrastBolusAgent="Ultravist"))
        for series, time in ((THICK, thick), (THIN, thin))
    ]
    assert is_twin(tmp_path, *series) is twin


def test_a_time_of_its_own_for_each_slice_parts_no_reconstructions_of_one_scan(
    tmp_path: Path,
) -> None:
    thick = other(THICK, edit=each("AcquisitionTime", lambda index: f"{101300 + 5 * index}"))
    thin = other(THIN, edit=each("AcquisitionTime", lambda index: f"{101300 + index}.5"))
    assert is_twin(tmp_path, thick, thin)


def test_shots_with_numbers_of_their_own_are_the_same_where_they_share_one(tmp_path: Path) -> None:
    thick = other(THICK, edit=each("AcquisitionNumber", lambda index: 1 + index // 2))
    thin = other(THIN, edit=each("AcquisitionNumber", lambda index: 1 + index // 10))
    assert is_twin(tmp_path, thick, thin)


def header_with(folder: Path, kernel: str) -> Header:
    (path,) = phantoms.write(folder, Series(slices=1, rows=1, columns=2, kernel=kernel))
    return read_header(path)


@pytest.mark.parametrize(
    ("kernels", "alike"),
    [
        (("B30f", "B31f", "B40s", "b30f "), True),
        (("B60f", "B70s"), True),
        (("Br36d", "Br40f", "Br40d\\3"), True),
        (("STANDARD", "SOFT", "HD STANDARD", "Stnd"), True),
        (("BONE", "BONEPLUS", "EDGE"), True),
        (("FC01", "FC08", "FC13", "FC18-H"), True),
        (("FC30", "FC35"), True),
        (("D", "D"), True),
        (("B30f", "B70f"), False),
        (("B40s", "H40s"), False),
        (("Br59", "Bl59"), False),
        (("STANDARD", "LUNG"), False),
        (("BONE", "LUNG"), False),
        (("STANDARD", "DETAIL"), False),
        (("FC08", "FC52"), False),
        (("FC23", "FC30"), False),
        (("B", "C"), False),  # one letter of Philips: nothing is assumed
        (("STANDARD", ""), False),
    ],
)
def test_kernels_of_one_family_are_soft_or_sharp_in_the_words_of_their_maker(
    tmp_path: Path, kernels: tuple[str, ...], alike: bool
) -> None:
    families = {
        kernel_family(header_with(tmp_path / str(number), kernel))
        for number, kernel in enumerate(kernels)
    }
    assert len(families) == (1 if alike else len(kernels))
