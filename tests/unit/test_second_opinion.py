"""The second opinion: a right derived series passes every check, each fault is found and named."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from inference.request import Output
from node.second_opinion import CHECKS, Check, ImageSeries, check, verify
from tests import phantoms
from tests.phantoms import Pixels, Series
from tests.unit.inference.made import derive, request

Edit = Callable[[Dataset], object]
ALL, COPIED, GENERATED = range(5), (2,), (1,)  # three received slices, two generated between them


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[Path]]:
    """Three received slices, and their derived series of five."""
    folder = tmp_path_factory.mktemp("right")
    pixels = Pixels(padding=-2000)
    received = phantoms.write(folder / "received", Series(slices=3, pixels=pixels))
    return received, derive(request(received, folder / "derived"))


@pytest.fixture
def files(right: tuple[list[Path], list[Path]], tmp_path: Path) -> tuple[list[Path], list[Path]]:
    """The same, with copies of the derived files that a test may spoil."""
    received, derived = right
    return received, [Path(shutil.copy(path, tmp_path)) for path in derived]


def change(path: Path, edit: Edit) -> None:
    header = dcmread(path)
    edit(header)
    header.save_as(path)


def put(keyword: str, value: object) -> Edit:
    return lambda header: setattr(header, keyword, value)


def drop(keyword: str) -> Edit:
    return lambda header: header.__delattr__(keyword)


def set_pixel(value: int) -> Edit:
    def edit(header: Dataset) -> None:
        values = header.pixel_array.copy()
        values[15, 20] = value
        header.PixelData = values.tobytes()

    return edit


def source(header: Dataset) -> Dataset:
    return header.SourceImageSequence[0]


def equipment(place: int) -> Callable[[Dataset], Dataset]:
    return lambda header: header.ContributingEquipmentSequence[place]


def within(item: Callable[[Dataset], Dataset], edit: Edit) -> Edit:
    return lambda header: edit(item(header))


def set_overlay(element: int, vr: str, value: object) -> Edit:
    return lambda header: header.add_new(0x60000000 | element, vr, value)


def number_from_two(header: Dataset) -> None:
    header.InstanceNumber = int(header.InstanceNumber) + 1


def name_another_meta_uid(header: Dataset) -> None:
    header.file_meta.MediaStorageSOPInstanceUID = "2.25.1"


COUNT, POSITION, COPIES, FORMAT, VALUES, SYNTHETIC, OVERLAY, DESCRIPTION, UIDS, STACK = (
    name for name, _, _ in CHECKS[:10]
)
PATIENT, FRAME, SOURCES, EQUIPMENT, ALLOWED = (name for name, _, _ in CHECKS[10:])
RECEIVED_UID = phantoms.uid("phantom", 3, "instance", 1)

# (which slices, what is done to them, words of the fault, the checks that fail)
FAULTS = (
    (GENERATED, put("ImagePositionPatient", [-150, -120, -297]), "lies at", {POSITION}),
    (COPIED, put("ImagePositionPatient", [-150, -120.1, -295]), "lies at", {POSITION}),
    (ALL, put("PixelSpacing", [1, 1]), "PixelSpacing differs", {POSITION}),
    (ALL, put("ImageOrientationPatient", [0.999, 0.0447, 0, 0, 1, 0]), "Orientation", {POSITION}),
    (ALL, put("SpacingBetweenSlices", "5"), "Spacing Between Slices says", {POSITION}),
    (ALL, drop("SpacingBetweenSlices"), "does not say its Spacing", {POSITION}),
    (COPIED, set_pixel(20), "the copied slice differs", {COPIES}),
    (COPIED, put("DerivationCodeSequence", []), "says that it was resampled", {COPIES}),
    (ALL, put("RescaleIntercept", "0"), "RescaleIntercept differs", {FORMAT, VALUES}),
    (GENERATED, put("RescaleSlope", "1.5"), "RescaleSlope differs", {FORMAT, VALUES, STACK}),
    (GENERATED, put("HighBit", 11), "High Bit", {FORMAT}),
    (ALL, put("PhotometricInterpretation", "MONOCHROME1"), "Photometric", {FORMAT}),
    (GENERATED, set_pixel(20000), "outside those of the two neighbours", {VALUES}),
    (GENERATED, set_pixel(-2000), "padding is not where", {VALUES}),
    (GENERATED, put("SyntheticData", "NO"), "Synthetic Data is NO, not YES", {SYNTHETIC}),
    (COPIED, put("SyntheticData", "YES"), "Synthetic Data is YES, not NO", {SYNTHETIC}),
    (GENERATED, drop("SyntheticData"), "absent:", {SYNTHETIC}),
    (ALL, put("ImageType", ["ORIGINAL", "PRIMARY", "AXIAL"]), "Image Type is", {DESCRIPTION}),
    (ALL, put("SOPClassUID", "1.2.840.10008.5.1.4.1.1.7"), "SOP Class UID", {DESCRIPTION}),
    (ALL, put("Modality", "MR"), "Modality", {DESCRIPTION}),
    (ALL, put("ContentQualification", "GOOD"), "Content Qualification", {DESCRIPTION}),
    (GENERATED, set_overlay(0x0022, "LO", "acquired"), "overlay says 'acq", {OVERLAY}),
    (GENERATED, set_overlay(0x3000, "OW", bytes(160)), "overlay is empty", {OVERLAY}),
    (GENERATED, set_overlay(0x0010, "US", 16), "of another size", {OVERLAY}),
    (COPIED, set_overlay(0x3000, "OW", bytes(160)), "a copy has an overlay", {OVERLAY}),
    (ALL, put("SeriesDescription", "CHEST 5 MM"), "Series Description is", {DESCRIPTION}),
    (ALL, put("SeriesDescription", "1 of 5 NOT ACQUIRED"), "Description is", {DESCRIPTION}),
    (ALL, put("SeriesDescription", "NOT ACQUIRED" * 6), "Series Description is", {DESCRIPTION}),
    (GENERATED, put("DerivationDescription", "x"), "does not say 'not acq", {DESCRIPTION}),
    (COPIED, put("DerivationDescription", "x"), "does not say 'copied", {DESCRIPTION}),
    (GENERATED, drop("DerivationCodeSequence"), "DerivationCodeSequence", {DESCRIPTION}),
    (GENERATED, put("SOPInstanceUID", RECEIVED_UID), "is one of the received", {UIDS}),
    (ALL, put("SeriesInstanceUID", phantoms.uid("phantom", "series", 3)), "is one of", {UIDS}),
    (GENERATED, put("SOPInstanceUID", "1.2.3"), "not of the form", {UIDS}),
    (ALL, put("SOPInstanceUID", "2.25.5"), "two slices have the same", {UIDS}),
    (GENERATED, name_another_meta_uid, "names another instance", {UIDS}),
    (GENERATED, put("SeriesNumber", 4), "SeriesNumber varies", {STACK}),
    (GENERATED, put("SliceThickness", 4), "SliceThickness varies", {STACK}),
    (ALL, number_from_two, "Instance Numbers are not", {STACK}),
    (GENERATED, put("InstanceNumber", 9), "Instance Numbers are not", {STACK}),
    (GENERATED, put("PatientName", "Other^One"), "PatientName is not that", {PATIENT}),
    (GENERATED, drop("StudyDate"), "StudyDate is not that", {PATIENT}),
    (ALL, put("StudyInstanceUID", "2.25.7"), "StudyInstanceUID is not that", {PATIENT}),
    (ALL, put("FrameOfReferenceUID", "2.25.8"), "that the scanner did not send", {FRAME}),
    (COPIED, put("FrameOfReferenceUID", "2.25.8"), "2 Frame of Reference UIDs", {FRAME, STACK}),
    (GENERATED, lambda h: h.SourceImageSequence.pop(), "was made from is not named", {SOURCES}),
    (
        COPIED,
        lambda h: h.SourceImageSequence.extend(h.SourceImageSequence),
        "does not list exactly",
        {SOURCES},
    ),
    (
        GENERATED,
        within(source, put("ReferencedSOPInstanceUID", "2.25.9")),
        "was never sent",
        {SOURCES},
    ),
    (GENERATED, drop("ReferencedSeriesSequence"), "absent:", {SOURCES}),
    (GENERATED, within(source, put("SpatialLocationsPreserved", "YES")), "Spatial", {SOURCES}),
    (
        ALL,
        within(lambda h: h.RelatedSeriesSequence[0], put("SeriesInstanceUID", "2.25.9")),
        "Related Series Sequence",
        {SOURCES},
    ),
    (ALL, put("Manufacturer", "Maker of Phantoms"), "node is not named", {EQUIPMENT}),
    (ALL, put("ManufacturerModelName", "Scanner 1"), "the scanner is named as", {EQUIPMENT}),
    (ALL, within(equipment(0), drop("ManufacturerModelName")), "given as ''", {EQUIPMENT}),
    (GENERATED, lambda h: h.ContributingEquipmentSequence.pop(), "the first and", {EQUIPMENT}),
    (
        GENERATED,
        within(equipment(-1), put("ManufacturerModelName", "another")),
        "2 models are named",
        {EQUIPMENT},
    ),
    (GENERATED, put("Exposure", 100), "Exposure must not be there", {ALLOWED}),
    (COPIED, lambda h: h.add_new(0x00091001, "LO", "vendor"), "must not be there", {ALLOWED}),
)


def failed(rows: list[Check]) -> set[str]:
    return {row.name for row in rows if not row.ok}


def test_a_right_series_passes_every_check_and_each_says_what_was_found(
    right: tuple[list[Path], list[Path]],
) -> None:
    received, derived = right
    assert check(received, derived, factor=2) == []
    rows = verify(ImageSeries.read(received), ImageSeries.read(derived), factor=2)
    assert [row.name for row in rows] == [name for name, _, _ in CHECKS]
    assert failed(rows) == set()
    assert rows[0].detail == "3 received + 2 generated = 5"
    assert "{" not in "".join(row.detail for row in rows)


@pytest.mark.filterwarnings("ignore:The value length")
@pytest.mark.parametrize(("numbers", "edit", "words", "checks"), FAULTS)
def test_each_fault_is_found_and_named(
    files: tuple[list[Path], list[Path]],
    numbers: tuple[int, ...],
    edit: Edit,
    words: str,
    checks: set[str],
) -> None:
    received, derived = files
    for number in numbers:
        change(derived[number], edit)
    assert words in "\n".join(check(received, derived, factor=2))
    assert failed(verify(ImageSeries.read(received), ImageSeries.read(derived), factor=2)) == checks


def test_each_check_is_seen_to_fail() -> None:
    seen = set().union(*(checks for *_, checks in FAULTS))
    assert seen == {name for name, _, _ in CHECKS} - {COUNT}  # the count has a test of its own


def test_a_series_of_another_length_is_judged_no_further(
    files: tuple[list[Path], list[Path]],
) -> None:
    received, derived = files
    change(derived[1], put("SyntheticData", "NO"))
    assert check(received, derived[1:], factor=2) == ["4 slices, expected 5"]
    assert check(received, derived, factor=3) == ["5 slices, expected 7"]
    assert check(received, [], factor=2) == ["a series without slices"]
    rows = verify(ImageSeries.read(received), ImageSeries.read(derived[1:]), factor=2)
    assert [(row.name, row.ok) for row in rows] == [(COUNT, False)]


def test_a_lossy_source_without_its_mark_is_a_fault(tmp_path: Path) -> None:
    def mark(header: Dataset, _: int) -> None:
        header.LossyImageCompression = "01"
        header.LossyImageCompressionRatio, header.LossyImageCompressionMethod = "8", "ISO_10918_1"

    received = phantoms.write(tmp_path / "received", Series(slices=2, edit=mark))
    derived = derive(request(received, tmp_path / "derived"))
    change(derived[1], drop("LossyImageCompression"))
    faults = check(received, derived, factor=2)
    assert faults == [f"{derived[1].name}: the mark of lossy compression is gone"]


def test_what_was_not_asked_for_is_not_expected(tmp_path: Path) -> None:
    received = phantoms.write(tmp_path / "received", Series(gaps_mm=(5.0, 2.5)))
    made = request(received, tmp_path / "derived", output=Output(include_received=False))
    only_generated = derive(made)
    assert check(received, only_generated, factor=2, include_received=False) == []
    assert check(received, only_generated, factor=2) == ["2 slices, expected 5"]
    assert check(received, only_generated, target_spacing_mm=2.5, include_received=False) == [
        "2 slices, expected 1"
    ]
    closed = check(received, only_generated, factor=2, include_received=False, closed_gaps=(1,))
    assert closed == ["2 slices, expected 1"]


def test_many_faults_of_one_check_are_counted(files: tuple[list[Path], list[Path]]) -> None:
    received, derived = files
    for path in derived:
        change(path, put("StudyID", "other"))
    rows = verify(ImageSeries.read(received), ImageSeries.read(derived), factor=2)
    (row,) = (row for row in rows if not row.ok)
    assert row.detail.count("StudyID is not that") == 3
    assert row.detail.endswith(" and 2 more")


def test_slices_are_in_order_of_their_place_whatever_order_they_come_in(
    right: tuple[list[Path], list[Path]],
) -> None:
    received, _ = right
    series = ImageSeries.read([received[index] for index in (2, 0, 1)])
    assert [slice_.name for slice_ in series.slices] == [path.name for path in received]
    assert series.gap_mm == pytest.approx(5.0)
    assert series.at(float(series.heights_mm[1])) == 1
    assert series.at(float(series.heights_mm[1]) + 1.0) is None


def test_a_series_as_a_volume_is_in_hounsfield_units(tmp_path: Path) -> None:
    made = replace(Series(slices=2), pixels=Pixels(bits=12, is_signed=False, slope=2.0))
    series = ImageSeries.read(phantoms.write(tmp_path, made))
    expected = np.rint(phantoms.hounsfield(made, 1))
    assert np.abs(series.volume()[1] - expected).max() <= 1.0
    assert series.pixel_spacing_mm == (0.8, 0.8)
