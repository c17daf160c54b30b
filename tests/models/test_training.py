"""Training: what the network is shown, that it learns, and that an interruption loses nothing."""

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from inference.checkpoint import (
    Tensors,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from inference.errors import ModelLoadError
from inference.models.midslice import Midslice, Network
from inference.training.adversarial import Adversary, balanced
from inference.training.data import (
    NoTrainingData,
    Patient,
    divided,
    load_folder,
    load_patients,
)
from inference.training.losses import BORDER, loss_of
from inference.training.progress import Progress
from inference.training.samples import (
    CROP,
    Pool,
    Sample,
    draw,
    moved_linearly,
    other_materials,
    patch,
)
from inference.training.train import Plan, Training, rate, train
from tests.models.stacks import made_geometry, made_plane

QUICK = Plan(steps=6, batch=2, side=32, pool=8, first=4, refresh=2, seed=5)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


def made_hu(slices: int = 24, side: int = 64, noise_hu: float = 10.0) -> NDArray[np.int16]:
    geometry = made_geometry(slices, side, side, gaps_mm=1.0)
    planes = [made_plane(geometry, 3.0 * z, noise_hu=noise_hu, seed=z) for z in range(slices)]
    return np.rint(planes).astype(np.int16)


def write_npz(folder: Path, hu: NDArray[np.int16], spacing: tuple[float, float, float]) -> Path:
    folder.mkdir(parents=True)
    np.savez(folder / "volume.npz", hu=hu, spacing_mm=np.array(spacing))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two made patients, each a folder with an NPZ volume: a chest's field of view and a head's."""
    root = tmp_path_factory.mktemp("data")
    write_npz(root / "body", made_hu(), (1.0, 6.0, 6.0))
    write_npz(root / "head", made_hu(20), (1.5, 1.0, 1.0))
    return root


@pytest.fixture(scope="module")
def patients(data: Path) -> tuple[Patient, ...]:
    return load_patients(data, "ct-train")


def write_dicom(
    folder: Path, hu: NDArray[np.int16], heights_mm: list[float], person: str = "made"
) -> None:
    """A series whose files are numbered against the order of their positions."""
    folder.mkdir(parents=True)
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    for index, (plane, height) in enumerate(zip(hu, heights_mm, strict=True)):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        path = folder / f"{len(hu) - index:03d}.dcm"
        ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID = CTImageStorage
        ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = series, study, frame
        ds.Modality, ds.PatientID, ds.PatientName = "CT", person, "Made^Body"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.InstanceNumber = index + 1
        ds.ImagePositionPatient = [0.0, 0.0, height]
        ds.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        ds.PixelSpacing, ds.SliceThickness = [0.7, 0.7], 1.0
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, -1024, "HU"
        ds.Rows, ds.Columns = plane.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.PixelData = np.clip(plane + 1024, 0, 4095).astype("<u2").tobytes()
        ds.save_as(path, enforce_file_format=True)


# --- the patients -----------------------------------------------------------------------------


def test_every_folder_with_a_volume_is_one_patient(patients: tuple[Patient, ...]) -> None:
    assert [patient.name for patient in patients] == ["body", "head"]
    body, head = patients
    assert (len(body), body.spacing_mm, body.pixel_mm) == (24, 1.0, 6.0)
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
    with pytest.raises(NoTrainingData, match=r"no evenly spaced CT series .* volume\.npz"):
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
    sample = Sample(planes, told, np.array([-0.1, 0.6, 0.5, 0.0], np.float32))
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
    batch = pool.batch(3, 48)
    assert batch.planes.shape == (3, 6, 48, 48)
    assert batch.truth.shape == (3, 1, 48, 48)


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


# --- the loss ---------------------------------------------------------------------------------


def test_the_loss_counts_errors_inside_the_border_alone() -> None:
    truth = torch.zeros(1, 1, 32, 32)
    scale = torch.full_like(truth, 30.0)
    at_border, inside = truth.clone(), truth.clone()
    at_border[..., : BORDER - 1, :] = 500.0
    inside[..., 16, 16] = 500.0
    perfect = float(loss_of(truth, scale, truth, truth))
    assert float(loss_of(at_border, scale, truth, truth)) == perfect
    assert float(loss_of(inside, scale, truth, truth)) > perfect


def test_the_best_scale_is_the_error() -> None:
    truth = torch.zeros(1, 1, 32, 32)
    made = torch.full_like(truth, 40.0)
    losses = [
        float(loss_of(made, torch.full_like(truth, hu), truth, truth)) for hu in (10, 40, 160)
    ]
    assert losses[1] < min(losses[0], losses[2])


def test_an_area_that_is_too_dark_costs_more_than_errors_of_both_signs() -> None:
    truth, scale = torch.zeros(1, 1, 96, 96), torch.full((1, 1, 96, 96), 30.0)
    dark, mixed = truth - 10.0, truth - 10.0
    mixed[..., ::2] = 10.0
    assert float(loss_of(dark, scale, truth, truth)) > float(loss_of(mixed, scale, truth, truth))


def test_an_error_counts_less_where_the_flow_blend_errs_more() -> None:
    truth = torch.zeros(1, 1, 32, 32)
    made, scale = truth + 40.0, truth + 30.0
    easy, hard = (
        loss_of(made, scale, truth, truth + 10.0),
        loss_of(made, scale, truth, truth + 90.0),
    )
    assert float(easy) > float(hard)


def test_the_learning_rate_rises_shortly_and_ends_near_nothing() -> None:
    assert rate(0.0, 0) < 0.02
    assert rate(0.01, 500) > 0.99
    assert rate(0.5, 500) == pytest.approx(0.505)
    assert rate(1.0, 500) == pytest.approx(0.01)


# --- training ---------------------------------------------------------------------------------


def quick_train(data: Path, folder: Path, plan: Plan = QUICK) -> bytes:
    weights = folder / "weights.safetensors"
    trained = train(data, plan, weights=weights, checkpoint=folder / "checkpoint.safetensors")
    assert trained.steps == plan.steps
    assert trained.patients == ("body", "head")
    return weights.read_bytes()


def test_the_same_seed_trains_the_same_weights(data: Path, tmp_path: Path) -> None:
    one, same = quick_train(data, tmp_path / "a"), quick_train(data, tmp_path / "b")
    other = quick_train(data, tmp_path / "c", replace(QUICK, seed=6))
    assert one == same
    assert one != other


def test_trained_weights_are_a_model(data: Path, tmp_path: Path) -> None:
    quick_train(data, tmp_path)
    model = Midslice(tmp_path / "weights.safetensors")
    assert load_weights(tmp_path / "weights.safetensors", model.weights_sha256).keys() == (
        Network().state_dict().keys()
    )


def error_of(weights: Tensors, patients: tuple[Patient, ...]) -> float:
    """The mean absolute error on samples that training did not draw."""
    pool = Pool(patients, 30, np.random.default_rng(77))
    for _ in range(15):
        pool.refresh()
    batch = pool.batch(30, 64)
    network = Network()
    network.load_state_dict(dict(weights))
    with torch.inference_mode():
        made, _ = network(*map(torch.from_numpy, (batch.planes, batch.conditions, batch.cubic)))
    return float(np.abs(made.numpy() - batch.truth).mean())


def test_training_learns(patients: tuple[Patient, ...]) -> None:
    plan = replace(QUICK, steps=120, batch=4, side=48, pool=40, first=40, refresh=1000)
    training = Training(patients, plan)
    untrained = error_of(training.average, patients)
    while training.share < 1.0:
        training.advance()
    assert training.progress().share == 1.0
    assert error_of(training.average, patients) < 0.95 * untrained


def test_an_interrupted_training_goes_on_where_it_was(
    patients: tuple[Patient, ...], tmp_path: Path
) -> None:
    training = Training(patients, QUICK)
    for _ in range(3):
        training.advance()
    save_checkpoint(training.checkpoint(), tmp_path / "checkpoint.safetensors")
    resumed = Training(patients, replace(QUICK, seed=99))
    resumed.restore(load_checkpoint(tmp_path / "checkpoint.safetensors"))
    before, after = training.checkpoint(), resumed.checkpoint()
    assert (after.step, after.random, after.patients) == (3, before.random, before.patients)
    assert after.seconds >= before.seconds - 1.0
    for name, tensor in before.weights.items():
        assert torch.equal(tensor, after.weights[name])
        assert torch.equal(before.average[name], after.average[name])
    assert before.optimiser.keys() == after.optimiser.keys() >= {"0.exp_avg", "0.step"}
    for name, tensor in before.optimiser.items():
        assert torch.equal(tensor, after.optimiser[name])


def test_a_second_sitting_adds_to_the_first(data: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop_at_50(progress: Progress) -> None:
        raise Stop

    weights, checkpoint = tmp_path / "w.safetensors", tmp_path / "c.safetensors"
    long = replace(QUICK, steps=52, checkpoint_seconds=0.0)
    with pytest.raises(Stop):
        train(data, long, weights=weights, checkpoint=checkpoint, progress=stop_at_50)
    assert 40 < load_checkpoint(checkpoint).step < 52
    seen: list[Progress] = []
    trained = train(data, long, weights=weights, checkpoint=checkpoint, progress=seen.append)
    assert trained.steps == 52
    assert len(seen) == 1  # step 50, and no other: it did not begin again


def test_a_finished_training_is_not_repeated(data: Path, tmp_path: Path) -> None:
    first = quick_train(data, tmp_path)
    assert quick_train(data, tmp_path) == first


def test_a_checkpoint_of_other_patients_is_refused(data: Path, tmp_path: Path) -> None:
    quick_train(data, tmp_path)
    with pytest.raises(ModelLoadError, match="trained on body, head, the data has body: remove"):
        train(
            data,
            QUICK,
            weights=tmp_path / "other.safetensors",
            checkpoint=tmp_path / "checkpoint.safetensors",
            leave_out=frozenset({"head"}),
        )


def test_a_patient_left_out_is_measured_and_never_drawn(data: Path, tmp_path: Path) -> None:
    plan = replace(QUICK, steps=30, pool=20, first=20, checkpoint_seconds=0.0)
    trained = train(
        data,
        plan,
        weights=tmp_path / "w.safetensors",
        checkpoint=tmp_path / "c.safetensors",
        leave_out=frozenset({"head"}),
    )
    assert trained.patients == ("body",)
    assert trained.last.held_over_dis_db is not None
    lines = (tmp_path / "c.csv").read_text().splitlines()
    assert lines[0].split(",")[-1] == "held_over_dis_db"
    assert len(lines) == 1 + 30 + 1  # a line a checkpoint, and the last
    assert [int(line.split(",")[0]) for line in lines[1:3]] == [1, 2]
    assert float(lines[-1].split(",")[-1]) == pytest.approx(trained.last.held_over_dis_db, abs=1e-3)


def test_nobody_left_out_is_nobody_measured(patients: tuple[Patient, ...]) -> None:
    assert Training(patients, QUICK).measure().held_over_dis_db is None


def test_a_patient_to_leave_out_must_be_there(data: Path, tmp_path: Path) -> None:
    for leave_out, named in (({"nobody"}, "nobody"), ({"body", "head"}, "body, head")):
        with pytest.raises(NoTrainingData, match=f"cannot leave out {named}"):
            train(
                data,
                QUICK,
                weights=tmp_path / "w.safetensors",
                checkpoint=tmp_path / "c.safetensors",
                leave_out=frozenset(leave_out),
            )
    assert not list(tmp_path.iterdir())


def test_training_can_begin_from_weights(
    data: Path, patients: tuple[Patient, ...], tmp_path: Path
) -> None:
    quick_train(data, tmp_path)
    weights = load_weights(tmp_path / "weights.safetensors")
    begun = Training(patients, replace(QUICK, start=tmp_path / "weights.safetensors"))
    assert all(torch.equal(begun.average[name], tensor) for name, tensor in weights.items())
    save_weights({"other": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelLoadError, match="not the weights of midslice"):
        Training(patients, replace(QUICK, start=tmp_path / "other.safetensors"))


# --- the adversary ----------------------------------------------------------------------------


def test_the_judge_learns_to_tell_smooth_slices_from_noisy_ones() -> None:
    torch.manual_seed(0)
    adversary = Adversary("cpu")
    conditions = torch.tensor([[0.5, 0.5, 0.0, 1.0, 1.0, 1.0]]).repeat(4, 1)
    losses = []
    for _ in range(40):
        planes = 60.0 * torch.randn(4, 6, 48, 48)
        made, truth = torch.zeros(4, 1, 48, 48), 60.0 * torch.randn(4, 1, 48, 48)
        losses.append(adversary.learn(made, truth, planes, conditions))
    assert losses[0] == pytest.approx(2.0, abs=0.3)  # it guesses
    assert losses[-1] < 0.5 * losses[0]
    objections = [float(adversary.objection(b, planes, conditions)) for b in (made, truth)]
    assert objections[0] > objections[1]


def test_an_objection_pulls_in_proportion_to_the_loss() -> None:
    made = torch.tensor([1.0, 2.0], requires_grad=True)
    loss, objection = made.square().sum(), 1000.0 * made.sum()  # gradients (2, 4), (1000, 1000)
    balanced(loss, objection, made, 0.5).backward()
    assert made.grad is not None
    pull = made.grad - torch.tensor([2.0, 4.0])
    assert float(pull.norm()) == pytest.approx(0.5 * float(torch.tensor([2.0, 4.0]).norm()))


def test_the_generator_of_an_adversary_is_pushed_towards_grain() -> None:
    torch.manual_seed(0)
    adversary = Adversary("cpu")
    conditions = torch.tensor([[0.5, 0.5, 0.0, 1.0, 1.0, 1.0]]).repeat(4, 1)
    planes, amount = 60.0 * torch.randn(4, 6, 48, 48), torch.zeros(1, requires_grad=True)
    for _ in range(40):
        truth = 60.0 * torch.randn(4, 1, 48, 48)
        adversary.learn(torch.zeros_like(truth), truth, planes, conditions)
    grain = 60.0 * torch.randn(4, 1, 48, 48)
    adversary.objection((0.5 + amount) * grain, planes, conditions).backward()
    assert amount.grad is not None
    assert float(amount.grad) < 0.0  # more of it, fewer objections


def test_training_with_an_adversary_lowers_both_losses_and_survives_an_interruption(
    tmp_path: Path,
) -> None:
    write_npz(tmp_path / "noisy", made_hu(12, CROP, noise_hu=80.0), (1.0, 1.5, 1.5))
    patients = load_patients(tmp_path, "ct-train")
    plan = replace(
        QUICK, steps=200, batch=4, side=48, pool=20, first=20, refresh=1000, adversarial=0.2
    )
    training = Training(patients, plan)
    untrained = error_of(training.average, patients)
    sums = [0.0]
    for step in range(1, 121):
        training.advance()
        sums.append(step * training.progress().adversary_loss)  # of the mean so far
    assert error_of(training.average, patients) < untrained
    assert sums[120] - sums[80] < sums[40] - sums[0]
    save_checkpoint(training.checkpoint(), tmp_path / "c.safetensors")
    resumed = Training(patients, plan)
    resumed.restore(load_checkpoint(tmp_path / "c.safetensors"))
    before, after = training.checkpoint().adversary, resumed.checkpoint().adversary
    assert before.keys() == after.keys()
    assert any(name.startswith("optimiser.") for name in before)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_an_adversary_changes_the_weights_and_the_lack_of_one_keeps_no_state(
    patients: tuple[Patient, ...],
) -> None:
    without, beside = (Training(patients, replace(QUICK, adversarial=a)) for a in (0.0, 0.2))
    for _ in range(4):
        without.advance()
        beside.advance()
    assert not without.checkpoint().adversary
    assert not torch.equal(
        without.average["trunk.head.weight"], beside.average["trunk.head.weight"]
    )


# --- files ------------------------------------------------------------------------------------


def test_weights_come_back_as_they_were_saved(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1)}
    digest = save_weights(tensors, tmp_path / "deep" / "w.safetensors")
    loaded = load_weights(tmp_path / "deep" / "w.safetensors", digest.upper())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["w.safetensors"]


def test_weights_with_another_digest_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights({"a": torch.ones(2)}, path)
    with pytest.raises(ModelLoadError, match=f"SHA-256 is .*, expected {'0' * 64}"):
        load_weights(path, "0" * 64)


def test_what_is_no_weights_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ModelLoadError, match="w.safetensors: not a safetensors file"):
        load_weights(tmp_path / "w.safetensors")
    with pytest.raises(ModelLoadError, match="none.safetensors: the weights cannot be read"):
        load_weights(tmp_path / "none.safetensors")


@pytest.mark.parametrize("content", [b"", b"rubbish", pickle.dumps({"step": 1})])
def test_a_broken_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(content)
    with pytest.raises(ModelLoadError, match="not a checkpoint of this training"):
        load_checkpoint(tmp_path / "checkpoint.safetensors")
