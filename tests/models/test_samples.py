"""What training shows the network: whose series, and what is made of them."""

from pathlib import Path

import numpy as np
import pytest

from inference.training.data import (
    NoSeries,
    Patient,
    divided,
    load_folder,
    load_patients,
)
from inference.training.samples import (
    CROP,
    GapSample,
    Pool,
    draw,
    moved_linearly,
    other_materials,
    patch,
)
from tests.models.made import made_hu, write_dicom, write_npz

# --- the patients -----------------------------------------------------------------------------


def test_every_folder_with_a_volume_is_one_patient(patients: tuple[Patient, ...]) -> None:
    assert [patient.name for patient in patients] == ["body", "head"]
    body, head = patients
    assert (len(body), body.spacing_mm, body.geometry.pixel_mm) == (24, 1.0, 6.0)
    assert (len(head), head.spacing_mm, head.extent_mm) == (20, 1.5, 64.0)


def test_a_patient_left_out_is_left_out_whole(patients: tuple[Patient, ...]) -> None:
    kept, left = divided(patients, frozenset({"head"}))
    assert ([each.name for each in kept], [each.name for each in left]) == (["body"], ["head"])


def test_all_series_of_a_patient_leave_together_wherever_they_lie(tmp_path: Path) -> None:
    hu = np.clip(made_hu(10), -1024, 3000)
    heights = [2.5 * index for index in range(10)]
    for folder, person in (("a/thin", "P1"), ("b/thin", "P1"), ("c", "P2")):
        write_dicom(tmp_path / folder, hu, heights, person)
    everybody = load_patients(tmp_path, "ct-train")
    assert [each.name for each in everybody] == ["a-thin", "b-thin", "c"]
    kept, left = divided(everybody, frozenset({"b-thin"}))
    assert [each.name for each in kept] == ["c"]
    assert [each.name for each in left] == ["a-thin", "b-thin"]


def test_every_series_of_a_folder_is_trained_on(tmp_path: Path) -> None:
    hu = np.clip(made_hu(10), -1024, 3000)
    write_dicom(tmp_path / "one", hu, [2.5 * index for index in range(10)])
    write_dicom(tmp_path / "other", hu[:9], [2.0 * index for index in range(9)])
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for path in tmp_path.glob("o*/*.dcm"):
        path.rename(mixed / f"{path.parent.name}-{path.name}")
    found = load_patients(mixed, "ct-train")
    assert [each.name for each in found] == ["mixed-1", "mixed-2"]
    assert sorted(len(each) for each in found) == [9, 10]


def test_a_folder_with_a_training_part_gives_that_part_alone(tmp_path: Path) -> None:
    write_npz(tmp_path / "ct-train" / "one", made_hu(10), (1.0, 0.7, 0.7))
    write_npz(tmp_path / "ct-validate" / "two", made_hu(10), (1.0, 0.7, 0.7))
    assert [patient.name for patient in load_patients(tmp_path, "ct-train")] == ["one"]
    assert [patient.name for patient in load_patients(tmp_path, "ct-validate")] == ["two"]


def test_a_dicom_series_is_sorted_by_position_and_rescaled(tmp_path: Path) -> None:
    hu = np.clip(made_hu(10), -1024, 3000)
    write_dicom(tmp_path / "series", hu, [2.5 * index for index in range(10)])
    (patient,) = load_folder(tmp_path / "series")
    assert np.array_equal(patient.hu, hu)
    assert patient.spacing_mm == pytest.approx(2.5)
    assert patient.geometry.thickness_mm == 1.0


@pytest.mark.parametrize(
    "heights",
    [[float(z) for z in range(7)], [0.0, 1, 2, 3, 4, 7, 8, 9, 10, 11]],
    ids=["too short", "a slice missing"],
)
def test_a_series_that_cannot_be_thinned_evenly_is_passed_over(
    tmp_path: Path, heights: list[float]
) -> None:
    write_dicom(tmp_path / "series", made_hu(len(heights)), heights)
    assert load_folder(tmp_path / "series") == []


def test_a_folder_without_data_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(NoSeries, match=r"no evenly spaced CT series .* volume\.npz"):
        load_patients(tmp_path, "ct-train")


# --- the samples ------------------------------------------------------------------------------


def test_samples_are_what_the_network_is_told_they_are(patients: tuple[Patient, ...]) -> None:
    random = np.random.default_rng(2)
    samples = [sample for _ in range(40) for sample in draw(patients, random)]
    for sample in samples:
        t, gap, _, thickness, has_p, has_n = sample.conditions
        assert sample.planes.shape == (7, CROP, CROP)
        assert sample.planes.min() >= -1024
        assert sample.planes.max() <= 3071
        assert 0.0 < t <= 0.5  # the nearer neighbour is A
        assert 0.0 < gap <= 1.2 + 1e-6
        assert 0.0 < thickness <= 2.0
        assert sample.cubic.sum() == pytest.approx(1.0, abs=1e-5)
        assert (sample.cubic[0] != 0.0) <= bool(has_p)
        assert (sample.cubic[3] != 0.0) <= bool(has_n)
    told = np.stack([sample.conditions for sample in samples])
    assert 0.0 < told[:, 4].mean() < 1.0  # some have no P
    assert len(np.unique(told[:, 0])) > 3  # many places in the gap


def test_the_same_seed_draws_the_same_samples(patients: tuple[Patient, ...]) -> None:
    one, other = (draw(patients, np.random.default_rng(7)) for _ in range(2))
    assert all(np.array_equal(a.planes, b.planes) for a, b in zip(one, other, strict=True))


def test_drift_moves_the_slices_apart_in_proportion_to_z(patients: tuple[Patient, ...]) -> None:
    still = np.repeat(patients[0].plane(12)[None], 5, axis=0)
    places = (-1.0, 0.0, 1.0, 2.0, 0.5)
    unmoved, far = 0, []
    for seed in range(12):
        moved = moved_linearly(still, places, np.random.default_rng(seed))
        away = np.abs(moved - still).mean(axis=(1, 2))
        unmoved += away[4] == 0.0
        far.append(np.abs(moved[0] - moved[3]).mean() > np.abs(moved[1] - moved[2]).mean())
    assert 2 <= unmoved <= 10  # the truth is resampled half of the time
    assert all(far)


def test_a_patch_half_way_is_sometimes_reversed_in_z(patients: tuple[Patient, ...]) -> None:
    planes = np.repeat(np.arange(7, dtype=np.int16)[:, None, None], CROP, axis=1)
    planes = np.repeat(planes, CROP, axis=2)
    told = np.array([0.5, 0.5, 1.0, 1.0, 1.0, 0.0], np.float32)
    sample = GapSample(planes, told, np.array([-0.1, 0.6, 0.5, 0.0], np.float32))
    random = np.random.default_rng(0)
    patches = [patch(sample, 16, random) for _ in range(20)]
    orders = {tuple(int(plane[0, 0]) for plane in one.planes) for one in patches}
    assert orders == {(0, 1, 2, 3, 4, 5, 6), (3, 2, 1, 0, 5, 4, 6)}
    for one in patches:
        is_reversed = one.planes[0, 0, 0] == 3
        assert one.conditions[4] == (0.0 if is_reversed else 1.0)
        assert one.cubic[0] == pytest.approx(0.0 if is_reversed else -0.1)


def test_the_pool_grows_to_its_size_and_is_refreshed(patients: tuple[Patient, ...]) -> None:
    pool = Pool(patients, 6, np.random.default_rng(1))
    sizes = []
    for _ in range(5):
        pool.refresh()
        sizes.append(len(pool))
    assert sizes == [3, 6, 6, 6, 6]
    planes, truth, _, _ = pool.batch(3, 48)
    assert planes.shape == (3, 6, 48, 48)
    assert truth.shape == (3, 1, 48, 48)


def test_other_materials_keep_the_order_of_tissues_and_the_ends_of_the_range() -> None:
    tissues = np.array([[-1024.0, -850.0, -100.0, 0.0, 40.0, 60.0, 300.0, 1200.0, 3071.0]])
    tissues = tissues.astype(np.float32)
    drawn = [other_materials(tissues, np.random.default_rng(seed))[0] for seed in range(5)]
    for altered in drawn:
        assert (np.diff(altered) > 0.0).all()
        assert altered[[0, -1]] == pytest.approx([-1024.0, 3071.0], abs=0.01)
    assert np.std(drawn, axis=0)[4] > 50.0  # soft tissue is not always at 40 HU


def test_bodies_are_mostly_shown_as_received_and_sometimes_of_another_build(
    patients: tuple[Patient, ...],
) -> None:
    random = np.random.default_rng(12)
    told = np.array([draw(patients[:1], random)[0].conditions for _ in range(40)])
    gap_over_pixel = np.exp(2.0 * told[:, 2]) / (10.0 * told[:, 1])  # 1 / pixel in mm
    assert len(np.unique(gap_over_pixel.round(4))) > 3  # zoomed in, out and stretched
    assert np.median(gap_over_pixel) == pytest.approx(1.0 / 6.0, rel=1e-3)  # mostly as received
