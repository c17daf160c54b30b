"""MR slices: what parts them, what is out of scope, what their values mean."""

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from inference import mr
from inference.dataset import Stack, read_headers
from inference.errors import Reason, Unprocessable
from inference.kinds import mr_kind_of, words_of_mr
from inference.pixels import PixelReader
from inference.stacks import stacks_of
from tests import mr_series, phantoms
from tests.mr_series import setting
from tests.phantoms import Pixels, Series


def stack_of(files: list[Path]) -> Stack:
    return Stack("mr", tuple(read_headers(files)))


def reason_of(files: list[Path]) -> tuple[Reason, str]:
    with pytest.raises(Unprocessable) as refused:
        mr.examine(stack_of(files))
    return refused.value.reason, refused.value.sentence


def test_a_t1_weighted_head_is_in_scope_and_in_the_order_of_its_places(tmp_path: Path) -> None:
    files = mr_series.write(tmp_path)
    layout = mr.examine(stack_of(files[::-1]))
    assert [header.path for header in layout.headers] == files
    assert not any(mr.weighting_doubt(header) for header in layout.headers)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"EchoTime": "4.92"}, {"EchoTime": "7.38"}),
        ({"EchoNumbers": 1}, {"EchoNumbers": 2}),
        ({"InversionTime": "400"}, {"InversionTime": "900"}),
        ({"DiffusionBValue": 0.0}, {"DiffusionBValue": 1000.0}),
        ({"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "P"]}),
        (
            {"ImageType": ["ORIGINAL", "PRIMARY", "T1", "MAGNITUDE"]},
            {"ImageType": ["ORIGINAL", "PRIMARY", "T1", "PHASE"]},
        ),
    ],
    ids=lambda values: " ".join(values),
)
def test_what_an_mr_scanner_takes_twice_at_one_place_are_two_kinds(
    tmp_path: Path, first: dict[str, object], second: dict[str, object]
) -> None:
    def edit(made: Dataset, index: int) -> None:
        setting(**(first if index % 2 else second))(made, index)

    files = mr_series.write(tmp_path, edit)
    kinds = {mr_kind_of(header) for header in read_headers(files)}
    assert len(kinds) == 2
    assert len({words_of_mr(kind) for kind in kinds}) == 2


def test_a_letter_and_a_word_for_the_same_part_are_one_kind(tmp_path: Path) -> None:
    types = (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "OTHER", "MAGNITUDE"])
    files = mr_series.write(tmp_path, setting(ImageType=lambda index: types[index % 2]))
    assert len({mr_kind_of(header) for header in read_headers(files)}) == 1


def test_images_of_two_echoes_are_no_volume(tmp_path: Path) -> None:
    files = mr_series.write(tmp_path, setting(EchoTime=lambda index: "2" if index % 2 else "4"))
    assert reason_of(files)[0] is Reason.MIXED_ACQUISITIONS


def test_times_of_which_each_shows_other_places_are_stacks_of_their_own(tmp_path: Path) -> None:
    times = setting(TemporalPositionIdentifier=lambda index: 1 + index // 3)
    stacks = stacks_of(read_headers(mr_series.write(tmp_path, times)))
    assert [(len(stack), stack.label) for stack in stacks] == [(3, "time 1"), (3, "time 2")]
    with pytest.raises(Unprocessable, match="Temporal Position Identifier"):
        mr.examine(stack_of(sorted(tmp_path.glob("*.dcm"))))


def test_a_time_that_counts_the_slices_parts_nothing(tmp_path: Path) -> None:
    counted = setting(
        TemporalPositionIdentifier=lambda index: 1 + index % 4,
        EchoTime=lambda index: "2" if index < 4 else "4",
        ImagePositionPatient=lambda index: [0, 0, 2 * (index % 4)],
    )
    series = Series(slices=8, spacing_mm=2.0, thickness_mm=2.0)
    stacks = stacks_of(read_headers(mr_series.write(tmp_path, counted, series)))
    assert [(len(stack), stack.label) for stack in stacks] == [(4, "TE 2 ms"), (4, "TE 4 ms")]
    for stack in stacks:
        assert len(mr.examine(stack).headers) == 4


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"BodyPartExamined": "KNEE"}, "Body Part Examined is KNEE"),
        ({"DiffusionBValue": 1000.0}, "Diffusion b-value is 1000"),
        ({"AngioFlag": "Y"}, "Angio Flag is Y"),
        ({"ScanningSequence": ["EP", "SE"]}, "Scanning Sequence has EP"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "P"]}, "Image Type says phase"),
        ({"ImageType": ["DERIVED", "SECONDARY", "DIFFUSION", "ADC"]}, "Image Type says ADC"),
        ({"ImageType": ["DERIVED", "SECONDARY", "FA"]}, "Image Type says FA"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "Image Type says MOSAIC"),
        ({"SeriesDescription": "ep2d_perfusion"}, "Series Description says PERFUSION"),
        ({"SeriesDescription": "TOF_3D_multi-slab"}, "Series Description says TOF"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_anatomy_of_a_head_is_refused_with_its_attribute(
    tmp_path: Path, values: dict[str, object], named: str
) -> None:
    reason, sentence = reason_of(mr_series.write(tmp_path, setting(**values)))
    assert reason is Reason.OUT_OF_SCOPE
    assert named in sentence


def test_a_flip_angle_in_a_description_is_no_diffusion_map(tmp_path: Path) -> None:
    files = mr_series.write(tmp_path, setting(SeriesDescription="T1 SPGR FA 12"))
    assert len(mr.examine(stack_of(files)).headers) == 6


def test_gadolinium_is_in_scope(tmp_path: Path) -> None:
    files = mr_series.write(tmp_path, setting(ContrastBolusAgent="Gadolinium"))
    assert not mr.weighting_doubt(mr.examine(stack_of(files)).headers[0])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"SeriesDescription": "t2_space_sag"}, "says T2"),
        ({"ProtocolName": "3D FLAIR"}, "says FLAIR"),
        ({"ScanningSequence": "SE", "RepetitionTime": "4500"}, "Repetition Time of 4500 ms"),
    ],
)
def test_another_weighting_is_processed_and_doubted(
    tmp_path: Path, values: dict[str, object], said: str
) -> None:
    files = mr_series.write(tmp_path, setting(**values))
    assert said in mr.weighting_doubt(mr.examine(stack_of(files)).headers[0])


def test_a_short_spin_echo_is_t1_weighted(tmp_path: Path) -> None:
    files = mr_series.write(tmp_path, setting(ScanningSequence="SE", RepetitionTime="550"))
    assert not mr.weighting_doubt(mr.examine(stack_of(files)).headers[0])


def test_a_ct_is_no_mr_slice(tmp_path: Path) -> None:
    reason, sentence = reason_of(phantoms.write(tmp_path))
    assert reason is Reason.NOT_AN_MR_SLICE
    assert "Modality CT" in sentence


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"NumberOfFrames": 30}, Reason.ENHANCED_NOT_SUPPORTED),
        ({"SamplesPerPixel": 3}, Reason.NOT_AN_MR_SLICE),
        ({"BurnedInAnnotation": "YES"}, Reason.NOT_AN_MR_SLICE),
        ({"ImagePositionPatient": None}, Reason.NOT_AN_MR_SLICE),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, Reason.NOT_AN_MR_SLICE),
        ({"SeriesInstanceUID": ""}, Reason.MISSING_UIDS),
        ({"QualityControlImage": "YES"}, Reason.OUT_OF_SCOPE),
        ({"SyntheticData": "YES"}, Reason.DERIVED_INPUT),
        ({"ImageType": ["DERIVED", "SECONDARY", "PROJECTION IMAGE", "MIP"]}, Reason.DERIVED_INPUT),
        ({"PatientID": lambda index: f"P{index}"}, Reason.PATIENT_MISMATCH),
    ],
)
def test_other_objects_and_other_subjects_are_refused_by_name(
    tmp_path: Path, values: dict[str, object], reason: Reason
) -> None:
    assert reason_of(mr_series.write(tmp_path, setting(**values)))[0] is reason


def test_a_hole_in_the_stack_is_held(tmp_path: Path) -> None:
    series = Series(slices=12, spacing_mm=2.0, thickness_mm=2.0)
    files = mr_series.write(tmp_path, series=series)
    reason, sentence = reason_of([*files[:5], *files[6:]])
    assert reason is Reason.MISSING_SLICES
    assert "4.0 mm" in sentence


SHIFTED = Pixels(bits=12, is_signed=False, slope=1.0, intercept=-1024.0)


@pytest.mark.parametrize(
    ("photometric", "rescale", "expected"),
    [
        ("MONOCHROME2", None, lambda stored: stored),
        ("MONOCHROME2", ("2.5", "7"), lambda stored: stored * 2.5 + 7),
        ("MONOCHROME1", None, lambda stored: 4095 - stored),
    ],
)
def test_values_are_arbitrary_units_rescaled_where_the_header_says_so(
    tmp_path: Path, photometric: str, rescale: tuple[str, str] | None, expected: object
) -> None:
    values: dict[str, object] = {"PhotometricInterpretation": photometric}
    if rescale:
        values |= {"RescaleSlope": rescale[0], "RescaleIntercept": rescale[1]}
    series = Series(slices=4, spacing_mm=2.0, pixels=SHIFTED)
    files = mr_series.write(tmp_path, setting(**values), series)
    volume = mr.open_volume(mr.examine(stack_of(files)), PixelReader())
    stored = phantoms.stored(series, 2).astype(np.float32)
    assert callable(expected)
    np.testing.assert_allclose(volume.read(2), expected(stored), rtol=1e-6)


def test_padding_becomes_the_lowest_value_of_the_slice(tmp_path: Path) -> None:
    series = Series(slices=4, pixels=Pixels(bits=12, is_signed=False, padding=4000))
    files = mr_series.write(tmp_path, series=series)
    plane = mr.open_volume(mr.examine(stack_of(files)), PixelReader()).read(0)
    stored = phantoms.stored(series, 0)
    assert plane.max() < 4000
    np.testing.assert_array_equal(plane[stored == 4000], stored[stored != 4000].min())
