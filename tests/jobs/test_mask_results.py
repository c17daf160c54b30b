"""A mask as a segmentation and as a stack without what lies outside, read back by others."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import highdicom
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from inference import header as h
from inference import mr
from inference.checks.mask_checks import ExpectedMask, verify
from inference.dataset import Header, Stack, read_headers
from inference.models.brain.extraction import BRAIN
from inference.pixels import PixelReader, Stored
from inference.results.making import Algorithm, Making, description
from inference.results.segmentation import region_of, segmentation
from inference.results.stripped import stripped_slices
from inference.uids import as_uid
from tests import mr_series
from tests.mr_series import ball, setting
from tests.phantoms import Edit, Patient, Pixels, Series
from tests.validators import dcm2niix, highdicom_volume, new_complaints

ALGORITHM = Algorithm("brain", "1.0.0", "51fa72e12ed61d6be249", "threshold=0.5")
SERIES = Series(slices=12, spacing_mm=2.0, thickness_mm=2.0, rows=30, columns=40)


def uid_of(place: str) -> str:
    return as_uid(hashlib.sha256(place.encode()).digest())


@dataclass(frozen=True, eq=False)
class Results:
    """The files of both results, and what they were made of."""

    sources: list[Path]
    headers: tuple[Header, ...]
    stored: list[Stored]
    mask: NDArray[np.bool_]
    segmentation: Path
    slices: list[Path]
    making: Making

    def faults(self, folder: Path | None = None) -> tuple[str, ...]:
        """What the check before sending says of the files in a folder."""
        expected = ExpectedMask(
            folder or self.segmentation.parent,
            self.segmentation.name,
            [path.name for path in self.slices],
            self.headers,
            BRAIN,
            self.mask,
            self.making,
        )
        return verify(expected, PixelReader())


def made(
    folder: Path, edit: Edit | None = None, series: Series = SERIES, **making: object
) -> Results:
    sources = mr_series.write(folder / "source", edit, series)
    headers = mr.examine(Stack("mr", tuple(read_headers(sources)))).headers
    pixels = PixelReader()
    stored = [pixels.stored(header) for header in headers]
    mask = ball((len(headers), *stored[0].shape))
    by = replace(
        Making(
            algorithm=ALGORITHM,
            uid_of=uid_of,
            at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            station_name="MIDSLICE",
            creator_uid=uid_of("node"),
            frame_uid=headers[0].text("FrameOfReferenceUID"),
        ),
        **making,
    )
    out = folder / "out"
    out.mkdir()
    h.write_file(out / "seg.dcm", segmentation(headers, [region_of(BRAIN, mask)], by, "Brain"))
    slices = [out / f"{place:04d}.dcm" for place in range(len(headers))]
    for path, elements in zip(slices, stripped_slices(headers, stored, mask, by), strict=True):
        h.write_file(path, elements)
    return Results(sources, headers, stored, mask, out / "seg.dcm", slices, by)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return made(tmp_path_factory.mktemp("results"))


def of_each(results: Results) -> list[Dataset]:
    return [dcmread(path) for path in (results.segmentation, *results.slices)]


def test_both_results_are_conformant_and_fit_their_source(results: Results) -> None:
    assert not new_complaints(results.sources, [results.segmentation, *results.slices])


def test_the_segmentation_has_the_frames_of_the_mask_at_the_places_of_the_source(
    results: Results,
) -> None:
    read = highdicom.seg.segread(results.segmentation)
    shown = [
        header.uid
        for header, plane in zip(results.headers, results.mask, strict=True)
        if plane.any()
    ]
    assert 0 < len(shown) < len(results.headers)  # frames of nothing are left out
    frames = read.get_pixels_by_source_instance(
        [header.uid for header in results.headers], assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(frames[..., 0], results.mask)
    referenced = read.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert sorted(item.ReferencedSOPInstanceUID for item in referenced) == sorted(shown)


def test_another_reader_finds_the_mask_at_the_same_place_of_the_patient(results: Results) -> None:
    image = sitk.ReadImage(str(results.segmentation))
    first = np.flatnonzero(results.mask.any((1, 2)))[0]
    positions = [image.TransformIndexToPhysicalPoint((0, 0, k)) for k in (0, image.GetDepth() - 1)]
    expected = results.headers[first].numbers("ImagePositionPatient")
    assert any(np.allclose(position, expected, atol=1e-4) for position in positions)
    assert image.GetSpacing() == pytest.approx((0.8, 0.8, 2.0))
    assert int(sitk.GetArrayFromImage(image).astype(bool).sum()) == results.mask.sum()


def test_the_segment_says_what_it_shows_and_which_model_made_it(results: Results) -> None:
    (segment,) = dcmread(results.segmentation).SegmentSequence
    assert segment.SegmentLabel == "Brain"
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "12738006"
    assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "123037004"
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmName == "brain"
    assert algorithm.AlgorithmVersion == "1.0.0 51fa72e12ed6"
    assert algorithm.AlgorithmParameters == "threshold=0.5"
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeValue == "123110"
    assert segment.TrackingUID == uid_of("tracking of Brain 1")


def test_every_object_is_marked_as_research(results: Results) -> None:
    for dataset in of_each(results):
        assert dataset.SeriesDescription.endswith("(AI, research)")
        assert dataset.ContentQualification == "RESEARCH"
    head = dcmread(results.segmentation)
    assert head.ContentLabel == "RESEARCH"
    assert head.ContentDescription == "Research only, not for diagnosis"


def test_inside_the_mask_every_value_is_that_of_the_source(results: Results) -> None:
    for path, stored, plane in zip(results.slices, results.stored, results.mask, strict=True):
        values = dcmread(path).pixel_array
        np.testing.assert_array_equal(values[plane], stored[plane])
        assert (values[~plane] == 0).all()


def test_the_extracted_series_is_the_same_volume_for_other_readers(
    results: Results, tmp_path: Path
) -> None:
    assert highdicom_volume(results.slices) == highdicom_volume(results.sources)
    folder = results.slices[0].parent
    volumes = dcm2niix(folder, tmp_path / "nii")
    assert ((40, 30, 12), pytest.approx((0.8, 0.8, 2.0))) in volumes


def test_a_slice_says_what_was_done_to_it_and_of_what(results: Results) -> None:
    for path, header in zip(results.slices, results.headers, strict=True):
        dataset = dcmread(path)
        assert list(dataset.ImageType) == ["DERIVED", "SECONDARY", "M"]
        assert dataset.SyntheticData == "NO"
        assert dataset.DerivationCodeSequence[0].CodeValue == "113047"
        (source,) = dataset.SourceImageSequence
        assert source.ReferencedSOPInstanceUID == header.uid
        assert source.SpatialLocationsPreserved == "YES"
        assert str(dataset.InstanceNumber) == header.text("InstanceNumber")
        for keyword in ("EchoTime", "InversionTime", "FlipAngle", "ImagePositionPatient"):
            assert str(dataset[keyword].value) == str(dcmread(header.path)[keyword].value)


def test_the_node_stands_as_maker_and_the_scanner_as_contributor(results: Results) -> None:
    for dataset in of_each(results):
        assert (dataset.Manufacturer, dataset.StationName) == ("Midslice", "MIDSLICE")
        scanner, model = dataset.ContributingEquipmentSequence
        assert (scanner.Manufacturer, scanner.DeviceSerialNumber) == ("Maker of Phantoms", "4711")
        assert (model.ManufacturerModelName, model.SoftwareVersions) == (
            "brain",
            "1.0.0 51fa72e12ed6",
        )


def test_doing_it_twice_gives_the_same_bytes(results: Results, tmp_path: Path) -> None:
    again = made(tmp_path)
    for first, second in zip(
        (results.segmentation, *results.slices), (again.segmentation, *again.slices), strict=True
    ):
        assert first.read_bytes() == second.read_bytes()


def test_a_name_in_any_character_set_is_copied_byte_by_byte(tmp_path: Path) -> None:
    name = "Müller^Jürgen".encode("latin-1")
    greek = replace(
        SERIES, patient=Patient(name="Διονυσιος".encode("iso8859-7")), character_set="ISO_IR 126"
    )
    for number, series in enumerate((replace(SERIES, patient=Patient(name=name)), greek)):
        results = made(tmp_path / str(number), series=series)
        expected = results.headers[0].raw("PatientName").rstrip()
        for header in read_headers([results.segmentation, results.slices[0]]):
            assert header.raw("PatientName").rstrip() == expected
        assert not new_complaints(results.sources, [results.segmentation, results.slices[0]])


def test_what_identifies_a_patient_or_says_that_nothing_does_goes_together(tmp_path: Path) -> None:
    edit = setting(PatientIdentityRemoved="YES", DeidentificationMethod="By the publisher")
    for dataset in of_each(made(tmp_path, edit)):
        assert dataset.PatientIdentityRemoved == "YES"
        assert dataset.DeidentificationMethod == "By the publisher"


def no_optional(dataset: Dataset, index: int) -> None:
    for keyword in (
        *("StudyID", "AccessionNumber", "ReferringPhysicianName", "PatientBirthDate"),
        *("Manufacturer", "SliceThickness", "SeriesDescription", "SeriesNumber", "EchoTrainLength"),
    ):
        delattr(dataset, keyword)


def test_a_poor_header_gives_results_that_lack_no_more(tmp_path: Path) -> None:
    results = made(tmp_path, no_optional)
    dataset = dcmread(results.segmentation)
    assert "AccessionNumber" not in dataset
    assert dataset.SeriesDescription == "Brain mask (AI, research)"
    assert dataset.ContributingEquipmentSequence[0].Manufacturer == "Unknown"
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SliceThickness) == 2.0  # the gap
    assert results.faults() == ()


def noise(dataset: Dataset, index: int) -> None:
    dataset.PixelSpacing = ["0.8", f"0.8{index % 2:08d}"]
    dataset.ImageOrientationPatient = ["1", f"0.00000{index % 3}", "0", "0", "1", "0"]


def test_directions_and_spacings_that_differ_by_noise_are_one_segmentation(
    tmp_path: Path,
) -> None:
    results = made(tmp_path, noise)
    assert results.faults() == ()
    shared = dcmread(results.segmentation).SharedFunctionalGroupsSequence[0]
    assert "PlaneOrientationSequence" in shared
    assert "PixelMeasuresSequence" in shared


@pytest.mark.parametrize(
    ("pixels", "outside"),
    [
        (Pixels(bits=16, is_signed=True, intercept=0.0), lambda stored: min(0, stored.min())),
        (Pixels(bits=12, is_signed=False, intercept=-2000.0), lambda stored: 0),
        (
            Pixels(bits=12, is_signed=False, photometric="MONOCHROME1"),
            lambda stored: 4095,
        ),
    ],
    ids=["signed", "above 0", "inverted"],
)
def test_outside_is_the_lowest_value_below_zero_or_else_zero(
    tmp_path: Path, pixels: Pixels, outside: Callable[[NDArray[np.int32]], int]
) -> None:
    edit = setting(PhotometricInterpretation=pixels.photometric)
    results = made(tmp_path, edit, replace(SERIES, pixels=pixels))
    expected = outside(np.stack(results.stored))
    for path, stored, plane in zip(results.slices, results.stored, results.mask, strict=True):
        values = dcmread(path).pixel_array
        assert (values[~plane] == expected).all()
        np.testing.assert_array_equal(values[plane], stored[plane])


def test_slices_without_numbers_of_their_own_are_numbered_by_place(tmp_path: Path) -> None:
    results = made(tmp_path, setting(InstanceNumber=1))
    assert [dcmread(path).InstanceNumber for path in results.slices] == list(range(1, 13))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("t1_mprage_sag", "Brain mask of t1_mprage_sag (AI, research)"),
        ("", "Brain mask (AI, research)"),
        ("T1 \xe9t\xe9", "Brain mask (AI, research)"),
        ("x" * 64, f"Brain mask of {'x' * 35} (AI, research)"),
    ],
)
def test_a_description_ends_with_its_mark_whatever_the_source_says(
    tmp_path: Path, source: str, expected: str
) -> None:
    (file,) = mr_series.write(tmp_path, setting(SeriesDescription=source), Series(slices=1))
    (header,) = read_headers([file])
    assert description(header, "Brain mask") == expected
    assert len(expected) <= 64


def test_several_stacks_of_a_series_are_told_apart(tmp_path: Path) -> None:
    results = made(tmp_path, label="echo 2")
    said = {dataset.SeriesDescription for dataset in of_each(results)}
    assert said == {
        "Brain mask echo 2 of t1_mprage_sag (AI, research)",
        "Brain extracted echo 2 of t1_mprage_sag (AI, research)",
    }


def sequence_of(paths: Sequence[Path], keyword: str) -> set[str]:
    return {str(dcmread(path)[keyword].value) for path in paths}


def test_the_two_results_are_two_series_of_the_same_study_and_frame(results: Results) -> None:
    both = [results.segmentation, results.slices[0]]
    sources = results.sources[:1]
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID"):
        assert sequence_of(both, keyword) == sequence_of(sources, keyword)
    assert len(sequence_of([*both, *sources], "SeriesInstanceUID")) == 3
    assert len(sequence_of([*both, *sources], "SeriesNumber")) == 3
    assert len(sequence_of([*results.slices, *both], "SOPInstanceUID")) == 13


def test_the_real_head_gives_conformant_results(tmp_path: Path) -> None:
    sources = sorted(mr_series.HEAD.glob("*.dcm"))[40:44]
    headers = mr.examine(Stack("mr", tuple(read_headers(sources)))).headers
    pixels = PixelReader()
    stored = [pixels.stored(header) for header in headers]
    mask = np.stack([plane > 200 for plane in stored])
    making = Making(
        ALGORITHM,
        uid_of,
        datetime(2026, 1, 2, tzinfo=UTC),
        "MIDSLICE",
        uid_of("node"),
        headers[0].text("FrameOfReferenceUID"),
    )
    h.write_file(
        tmp_path / "seg.dcm", segmentation(headers, [region_of(BRAIN, mask)], making, "Brain")
    )
    paths = [tmp_path / "seg.dcm"]
    for place, elements in enumerate(stripped_slices(headers, stored, mask, making)):
        paths.append(tmp_path / f"{place}.dcm")
        h.write_file(paths[-1], elements)
    assert not new_complaints(sources, paths)


def test_what_was_made_passes_its_own_check(results: Results) -> None:
    assert results.faults() == ()


def test_decimal_strings_that_are_too_long_are_no_fault(tmp_path: Path) -> None:
    def edit(made: Dataset, _index: int) -> None:
        position = [float(x) for x in made.ImagePositionPatient]
        made["ImagePositionPatient"]._value = [f"{x + 1 / 3:.17f}" for x in position]

    assert made(tmp_path, edit).faults() == ()


SEG = "seg.dcm"
SLICE = "0005.dcm"  # in the middle of the mask


def pixels_of(dataset: Dataset) -> None:
    data = bytearray(dataset.PixelData)
    data[len(data) // 2] ^= 1
    dataset.PixelData = bytes(data)


def frame_elsewhere(dataset: Dataset) -> None:
    frame = dataset.PerFrameFunctionalGroupsSequence[0]
    frame.PlanePositionSequence[0].ImagePositionPatient[2] += 1.0


def frame_of_another(dataset: Dataset) -> None:
    first, second = dataset.PerFrameFunctionalGroupsSequence[:2]
    source = second.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
    first.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = source


def reference_too_many(dataset: Dataset) -> None:
    instances = dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    instances.append(Dataset(instances[0]))
    instances[-1].ReferencedSOPInstanceUID = "2.25.1"


def source_of_another(dataset: Dataset) -> None:
    dataset.SourceImageSequence[0].ReferencedSOPInstanceUID = "2.25.1"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (SEG, pixels_of, "its frames are not the mask"),
        (SEG, frame_elsewhere, "its frames are not the slices"),
        (SEG, frame_of_another, "its frames are not the slices"),
        (SEG, reference_too_many, "does not list exactly"),
        (SLICE, pixels_of, "its values are not"),
        (SLICE, source_of_another, "the source image is not"),
        (SLICE, {"ImagePositionPatient": [0, 0, 0]}, "ImagePositionPatient is not"),
        (SLICE, {"SyntheticData": "YES"}, "derived and not synthetic"),
        *(
            (name, change, said)
            for name in (SEG, SLICE)
            for change, said in (
                ({"PatientID": "Other"}, "a patient or study attribute"),
                ({"StudyInstanceUID": "2.25.1"}, "a patient or study attribute"),
                ({"FrameOfReferenceUID": "2.25.1"}, "the frame of reference"),
                ({"SeriesDescription": "Brain"}, "no mark of research"),
                ({"ContentQualification": "PRODUCT"}, "ContentQualification"),
            )
        ),
    ],
)
def test_a_result_that_is_not_as_planned_never_leaves(
    results: Results,
    tmp_path: Path,
    name: str,
    change: dict[str, object] | Callable[[Dataset], None],
    said: str,
) -> None:
    folder = results.segmentation.parent
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    dataset = dcmread(tmp_path / name)
    if callable(change):
        change(dataset)
    else:
        for keyword, value in change.items():
            setattr(dataset, keyword, value)
    dataset.save_as(tmp_path / name)
    (fault,) = results.faults(tmp_path)
    assert fault.startswith(f"{name}: ")
    assert said in fault


def test_a_file_that_is_missing_or_too_many_is_a_fault(results: Results, tmp_path: Path) -> None:
    for path in results.segmentation.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "other.dcm").write_bytes(b"")
    (tmp_path / SLICE).unlink()
    faults = results.faults(tmp_path)
    assert any(fault.startswith(SLICE) for fault in faults)
    assert "the folder holds other files than planned" in faults


def test_a_uid_of_the_source_is_never_used_again(results: Results, tmp_path: Path) -> None:
    for path in results.segmentation.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    dataset = dcmread(tmp_path / SLICE)
    dataset.SOPInstanceUID = results.headers[0].uid
    dataset.save_as(tmp_path / SLICE)
    assert results.faults(tmp_path) == (f"{SLICE}: a UID of the source was used again",)
