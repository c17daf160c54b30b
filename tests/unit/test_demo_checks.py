"""The checks of the demo: a right derived series passes all, each fault is found and named."""

import copy
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset

from inference.model import Parameters
from inference.pipeline import process
from inference.request import Derived, ModelSpec, Output, Request, Resources, Source
from node.demo import verify
from node.demo.run import DATA
from node.demo.verify import Evidence, Series
from node.demo.verify import verify as verified

RECEIVED, FACTOR = 4, 4


@pytest.fixture(scope="module")
def received() -> Series:
    return Series.read(sorted((DATA / "received").glob("*.dcm"))[:RECEIVED])


@pytest.fixture(scope="module")
def acquired(received: Series) -> Series:
    return Series.read(sorted((DATA / "acquired").glob("*.dcm"))[: RECEIVED - 1])


@pytest.fixture(scope="module")
def made(received: Series, tmp_path_factory: pytest.TempPathFactory) -> Series:
    """A derived series as the node makes it."""
    folder = tmp_path_factory.mktemp("derived")
    sources = tuple(
        Source(Path(str(instance.filename)), str(instance.SOPInstanceUID), order)
        for order, instance in enumerate(received.instances)
    )
    outcome = process(
        Request(
            sources=sources,
            model=ModelSpec("linear"),
            parameters=Parameters(factor=FACTOR),
            output=Output(),
            folder=folder,
            secret=b"0123456789abcdef0123456789abcdef",
            started_at=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
            resources=Resources(device="cpu", threads=1),
        ),
        progress=lambda _: None,
        cancelled=lambda: False,
    )
    assert isinstance(outcome, Derived), outcome
    return Series.read(list(folder.glob("*.dcm")))


@pytest.fixture
def derived(made: Series) -> Series:
    """A copy that a test may spoil."""
    return Series.of([copy.deepcopy(instance) for instance in made.instances])


def faults(received: Series, derived: Series) -> set[str]:
    """The names of the checks that fail."""
    rows = verified(Evidence(received, derived, FACTOR))
    return {row.name for row in rows if not row.ok}


def test_what_the_node_makes_passes_every_check(received: Series, derived: Series) -> None:
    rows = verified(Evidence(received, derived, FACTOR))
    assert [row for row in rows if not row.ok] == []
    assert len(rows) == 12
    assert all(row.found for row in rows)


def generated(derived: Series) -> Dataset:
    return next(i for i in derived.instances if i.SyntheticData == "YES")


def copied(derived: Series) -> Dataset:
    return next(i for i in derived.instances if i.SyntheticData == "NO")


def spoil_pixel(derived: Series) -> None:
    instance = copied(derived)
    stored = instance.pixel_array.copy()
    stored[100, 100] += 1
    instance.PixelData = stored.tobytes()


def hide_a_generated_slice(derived: Series) -> None:
    generated(derived).SyntheticData = "NO"


def hide_every_generated_slice(derived: Series) -> None:
    for instance in derived.instances:
        instance.SyntheticData = "NO"


def blame_a_copy(derived: Series) -> None:
    copied(derived).SyntheticData = "YES"


def say_acquired(derived: Series) -> None:
    for instance in derived.instances:
        instance.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]


def keep_the_scanners_description(derived: Series) -> None:
    for instance in derived.instances:
        instance.SeriesDescription = "CHEST 5 MM"


def reuse_a_uid(derived: Series) -> None:
    copied(derived).SOPInstanceUID = copied(derived).SourceImageSequence[0].ReferencedSOPInstanceUID


def use_a_uid_twice(derived: Series) -> None:
    derived.instances[1].SOPInstanceUID = derived.instances[2].SOPInstanceUID


def forget_the_file_meta(derived: Series) -> None:
    derived.instances[1].file_meta.MediaStorageSOPInstanceUID = "2.25.1"


def vary_the_description(derived: Series) -> None:
    derived.instances[3].SeriesDescription = "AI-INTERP x4 NOT ACQUIRED, other"


def number_from_two(derived: Series) -> None:
    for instance in derived.instances:
        instance.InstanceNumber = int(instance.InstanceNumber) + 1


def another_patient(derived: Series) -> None:
    derived.instances[5].PatientID = "SOMEBODY"


def another_study(derived: Series) -> None:
    for instance in derived.instances:
        instance.StudyInstanceUID = "2.25.7"


def another_frame_of_reference(derived: Series) -> None:
    for instance in derived.instances:
        instance.FrameOfReferenceUID = "2.25.8"


def two_frames_of_reference(derived: Series) -> None:
    source = generated(derived).SourceImageSequence[0].ReferencedSOPInstanceUID
    derived.instances[0].FrameOfReferenceUID = source


def name_one_neighbour(derived: Series) -> None:
    instance = generated(derived)
    instance.SourceImageSequence = instance.SourceImageSequence[:1]


def name_a_stranger(derived: Series) -> None:
    generated(derived).SourceImageSequence[0].ReferencedSOPInstanceUID = "2.25.9"


def forget_the_referenced_series(derived: Series) -> None:
    del generated(derived).ReferencedSeriesSequence


def forget_the_scanner(derived: Series) -> None:
    for instance in derived.instances:
        del instance.ContributingEquipmentSequence[0].ManufacturerModelName


def claim_the_scanner_made_it(derived: Series) -> None:
    for instance in derived.instances:
        instance.ManufacturerModelName = "LightSpeed Plus"


def repeat_the_dose(derived: Series) -> None:
    derived.instances[0].Exposure = "100"


def carry_private_attributes(derived: Series) -> None:
    derived.instances[0].add_new(0x00091001, "LO", "vendor")


def wrong_spacing(derived: Series) -> None:
    derived.instances[2].SpacingBetweenSlices = "5"


SPOILED = (
    (spoil_pixel, {"Received slices are unchanged"}),
    (hide_a_generated_slice, {"Generated slices are marked as synthetic"}),
    (
        hide_every_generated_slice,
        {"Generated slices are marked as synthetic", "Scanner and model are named"},
    ),
    (blame_a_copy, {"Generated slices are marked as synthetic", "Scanner and model are named"}),
    (say_acquired, {"The series says what it is"}),
    (keep_the_scanners_description, {"The series says what it is"}),
    (reuse_a_uid, {"UIDs are new"}),
    (use_a_uid_twice, {"UIDs are new"}),
    (forget_the_file_meta, {"UIDs are new"}),
    (vary_the_description, {"One stack for the viewer"}),
    (number_from_two, {"One stack for the viewer"}),
    (another_patient, {"Same patient, same study"}),
    (another_study, {"Same patient, same study"}),
    (another_frame_of_reference, {"Same frame of reference"}),
    (two_frames_of_reference, {"Same frame of reference", "One stack for the viewer"}),
    (name_one_neighbour, {"Sources are named"}),
    (name_a_stranger, {"Sources are named"}),
    (forget_the_referenced_series, {"Sources are named"}),
    (forget_the_scanner, {"Scanner and model are named"}),
    (claim_the_scanner_made_it, {"Scanner and model are named"}),
    (repeat_the_dose, {"Nothing is claimed that was not done"}),
    (carry_private_attributes, {"Nothing is claimed that was not done"}),
    (wrong_spacing, {"Every slice lies at its place"}),
)


@pytest.mark.parametrize(("spoil", "expected"), SPOILED, ids=lambda v: getattr(v, "__name__", ""))
def test_each_fault_is_found_and_named(
    received: Series, derived: Series, spoil: Callable[[Series], None], expected: set[str]
) -> None:
    spoil(derived)
    assert faults(received, derived) == expected


def test_a_missing_slice_is_found(received: Series, derived: Series) -> None:
    fewer = Series.of([i for i in derived.instances if i is not generated(derived)])
    assert {"No slice is missing, none too many"} <= faults(received, fewer)


def test_a_received_slice_that_was_left_out_is_found(received: Series, derived: Series) -> None:
    fewer = Series.of([i for i in derived.instances if i is not copied(derived)])
    assert {"Received slices are unchanged"} <= faults(received, fewer)


def test_a_slice_off_its_place_is_found(received: Series, derived: Series) -> None:
    x, y, z = map(float, derived.instances[1].ImagePositionPatient)
    derived.instances[1].ImagePositionPatient = [x, y + 0.5, z]
    moved = Series.of(derived.instances)
    assert faults(received, moved) == {"Every slice lies at its place"}


def test_an_absent_attribute_is_a_fault_not_a_crash(received: Series, derived: Series) -> None:
    del derived.instances[4].SyntheticData
    rows = verified(Evidence(received, derived, FACTOR))
    marked = next(row for row in rows if row.name == "Generated slices are marked as synthetic")
    assert not marked.ok
    assert "SyntheticData" in marked.found


def test_slices_are_in_order_of_their_place_whatever_order_they_come_in(received: Series) -> None:
    shuffled = Series.of([received.instances[i] for i in (2, 0, 3, 1)])
    assert shuffled.heights_mm.tolist() == received.heights_mm.tolist()
    assert shuffled.gap_mm == pytest.approx(5.0)
    assert shuffled.at(float(received.heights_mm[1])) == 1
    assert shuffled.at(float(received.heights_mm[1]) + 1.0) is None


def test_linear_slices_are_as_far_from_the_truth_as_linear_interpolation(
    received: Series, derived: Series, acquired: Series
) -> None:
    comparison = verify.compare(received, derived, acquired)
    assert len(comparison.places) == comparison.acquired == RECEIVED - 1
    assert comparison.gain_db == pytest.approx(0.0, abs=verify.TOLERANCE_DB)
    assert comparison.check(must_gain=False).ok
    assert comparison.linear_db < 45.0


def test_the_truth_itself_is_closer_than_linear_interpolation(
    received: Series, acquired: Series
) -> None:
    perfect = Series.of([*received.instances, *acquired.instances])
    comparison = verify.compare(received, perfect, acquired)
    assert comparison.closer == RECEIVED - 1
    assert comparison.generated_db == float("inf")
    assert comparison.check(must_gain=True).ok


def test_slices_that_gain_nothing_fail_where_a_gain_is_due(
    received: Series, derived: Series, acquired: Series
) -> None:
    comparison = verify.compare(received, derived, acquired)
    worse = [
        verify.Place(p.height_mm, p.linear_db - 0.1, p.linear_db, p.true) for p in comparison.places
    ]
    check = verify.Comparison(tuple(worse), comparison.acquired).check(must_gain=True)
    assert not check.ok
    assert "closer at 0 of 3" in check.found


def test_a_place_that_was_not_filled_fails(
    received: Series, derived: Series, acquired: Series
) -> None:
    height = float(acquired.heights_mm[0])
    fewer = Series.of([i for n, i in enumerate(derived.instances) if n != derived.at(height)])
    check = verify.compare(received, fewer, acquired).check(must_gain=False)
    assert not check.ok


def test_the_typical_place_has_the_median_gain() -> None:
    plane = np.zeros((2, 2))
    places = tuple(verify.Place(h, 30.0 + h, 30.0, plane) for h in (5.0, 1.0, 3.0, 2.0, 4.0))
    assert verify.Comparison(places, 5).typical.gain_db == pytest.approx(3.0)


def test_psnr_is_that_of_the_window() -> None:
    true = np.zeros((4, 4))
    assert verify.psnr(true + 30.72, true) == pytest.approx(40.0)
    assert verify.psnr(true, true) == float("inf")
    assert verify.psnr(true + 5000.0, true + 4000.0) == float("inf")  # both above the window
