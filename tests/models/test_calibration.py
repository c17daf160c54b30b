"""The figures beside the weights: whose they are, where they come from, what is refused."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from inference.errors import ModelLoadError
from inference.model import Measured
from inference.models.gate import Calibration, calibration_path, load_calibration, save_calibration
from inference.models.midslice import SHIPPED_WEIGHTS, Midslice
from inference.training import calibrate
from inference.training.calibrate import CalibrationCell
from inference.training.leave_out import TargetList, leave_out
from node import cli
from tests.models.made import made_patient

SHA = "ab" * 32


def stored(tmp_path: Path, calibration: Calibration | None = None) -> Path:
    path = tmp_path / "weights.json"
    save_calibration(calibration or Calibration(factor=0.9), path, SHA, {"patients": ["one"]})
    return path


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    found = load_calibration(stored(tmp_path), SHA)
    assert found == Calibration(factor=0.9, is_fitted=True)


def test_a_calibration_of_an_earlier_version_is_read_as_it_was_meant(tmp_path: Path) -> None:
    path = stored(tmp_path)
    whole = json.loads(path.read_text())
    for later in ("noise", "shared"):
        del whole["figures"][later]
    path.write_text(json.dumps(whole))
    assert load_calibration(path, SHA) == Calibration(factor=0.9, is_fitted=True)


def test_the_calibration_of_other_weights_is_passed_over(tmp_path: Path) -> None:
    found = load_calibration(stored(tmp_path), "cd" * 32)
    assert found == Calibration()
    assert not found.is_fitted


def test_weights_without_a_calibration_promise_nothing(tmp_path: Path) -> None:
    assert not load_calibration(tmp_path / "nothing.json", SHA).is_fitted


@pytest.mark.parametrize(
    "spoil",
    [
        lambda whole: whole.pop("figures"),
        lambda whole: whole["figures"].pop("power"),
        lambda whole: whole["figures"].update(another=1.0),
        lambda whole: whole["figures"].update(factor="much"),
        lambda whole: whole["figures"].update(classical="best"),
        lambda whole: whole.pop("weights_sha256"),
    ],
)
def test_a_file_that_is_no_calibration_is_refused(tmp_path: Path, spoil: object) -> None:
    path = stored(tmp_path)
    whole = json.loads(path.read_text())
    assert callable(spoil)
    spoil(whole)
    path.write_text(json.dumps(whole))
    with pytest.raises(ModelLoadError, match="not a calibration"):
        load_calibration(path, SHA)


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.json"
    path.write_text("not at all")
    with pytest.raises(ModelLoadError, match=r"weights\.json: not a calibration"):
        load_calibration(path, SHA)


@pytest.mark.parametrize("name", [field.name for field in fields(Calibration)])
def test_every_figure_changes_the_digest_and_with_it_the_uids(name: str) -> None:
    plain = Calibration()
    other: dict[str, object] = {"classical": "cubic", "is_fitted": True}
    changed = replace(plain, **{name: other.get(name, 7.5)})  # type: ignore[arg-type]
    assert changed.digest != plain.digest


def test_the_shipped_calibration_is_that_of_the_shipped_weights() -> None:
    """After a training whose weights are shipped, `midslice calibrate` must run again."""
    whole = json.loads(calibration_path(SHIPPED_WEIGHTS).read_text())
    model = Midslice()
    assert whole["weights_sha256"] == model.weights_sha256
    assert model.calibration.is_fitted
    assert whole["provenance"]["command"] == "midslice calibrate"
    assert len(whole["provenance"]["cells"]) >= len(whole["provenance"]["patients"]) > 1


def cell(
    patient: str, *, best: float = 0.8, seed: int = 1, offset: float = 0.0, noisy: float = 0.0
) -> CalibrationCell:
    """Made measurements: errors 1.5 x scale x noise^noisy, surveys wrong by a further e^offset."""
    random = np.random.default_rng(seed)

    def measured(at_mm: float, t: float, further: float) -> dict[str, float]:
        scale = float(random.uniform(10.0, 60.0))
        noise = float(random.uniform(10.0, 80.0))
        return {
            "at_mm": at_mm,
            "t": t,
            "overlap": 0.4,
            "noise_hu": noise,
            "scale_hu": scale,
            "true_hu": 1.5
            * scale
            * (noise / 20.0) ** noisy
            * float(np.exp(further + random.normal(0.0, 0.02))),
            "expected_hu": scale,
            "width": 2.2,
            "square_dis": 900.0,
            "square_linear": 1400.0,
            "square_cubic": 1300.0,
            "square_net": 900.0 - 2.0 * best * 100.0 + 100.0,
            "along": best * 100.0,
            "apart": 100.0,
        }

    return CalibrationCell(
        patient,
        2,
        is_slab=False,
        gap_mm=5.0,
        is_held_out=True,
        targets=tuple(measured(5.0 * i, 0.5, 0.0) for i in range(20)),
        surveys=tuple(measured(6.0 * i, 0.5, offset) for i in range(16)),
    )


def test_a_fit_finds_what_noise_adds_to_the_expected_error() -> None:
    made = [cell(name, seed=seed, noisy=0.3) for seed, name in enumerate("abcd")]
    assert calibrate.fit(made).noise == pytest.approx(0.3, abs=0.03)


def placed(
    made: CalibrationCell, overlap: float, power: float, scatter: float = 0.0
) -> CalibrationCell:
    """The same cell with slices at three places of their gaps, errors x (4 t (1 - t))^power."""
    random = np.random.default_rng(7)

    def moved(number: int, measured: Measured) -> Measured:
        t = (0.25, 0.5, 0.75)[number % 3]
        times = (4.0 * t * (1.0 - t)) ** power * float(np.exp(random.normal(0.0, scatter)))
        return {**measured, "t": t, "overlap": overlap, "true_hu": measured["true_hu"] * times}

    return replace(made, targets=tuple(map(moved, range(20), made.targets)))


def chests(shared: float) -> list[CalibrationCell]:
    """Three patients, each with slices of three thicknesses."""
    return [
        placed(cell(name, seed=seed), overlap, 0.4 + shared * overlap)
        for seed, name in enumerate("abc")
        for overlap in (0.2, 0.5, 1.0)
    ]


def test_a_fit_finds_what_thick_slices_share_with_the_nearer_received_one() -> None:
    assert calibrate.fit(chests(0.0)).shared == pytest.approx(0.0, abs=0.1)
    found = calibrate.fit(chests(0.6))
    assert 0.4 < found.shared < 0.65  # what the data do not tell for certain is drawn to nothing
    assert found.place == pytest.approx(0.4, abs=0.15)


def test_a_patient_whose_errors_obey_no_law_does_not_drown_the_others() -> None:
    head = [placed(cell("head", seed=9), overlap, -3.0, scatter=1.0) for overlap in (0.2, 1.0)]
    alone, beside = calibrate.fit(chests(0.6)), calibrate.fit([*chests(0.6), *head])
    assert beside.shared == pytest.approx(alone.shared, abs=0.1)
    assert beside.place == pytest.approx(alone.place, abs=0.1)


def test_a_fit_finds_the_law_that_the_measurements_follow() -> None:
    found = calibrate.fit([cell("one", seed=1), cell("two", seed=2)])
    assert found.power == pytest.approx(1.0, abs=0.05)
    assert found.factor * 30.0**found.power == pytest.approx(45.0, rel=0.05)
    assert found.interval == pytest.approx(2.2)
    assert found.weight == pytest.approx(0.8)
    assert found.apart == pytest.approx(1.0 / 9.0)
    assert found.classical == "dis"
    assert found.is_fitted


def test_a_fit_learns_how_surveys_at_twice_the_gap_differ() -> None:
    found = calibrate.fit([cell("one", offset=0.3), cell("two", seed=2, offset=0.3)])
    assert found.doubled == pytest.approx(np.exp(-0.3), rel=0.05)


def test_a_patient_that_differs_is_foretold_with_the_help_of_its_surveys() -> None:
    """Its errors are half as large again as those of the others; its own surveys say so."""
    others = [cell("one", seed=1), cell("two", seed=2)]
    strange = cell("three", seed=3)
    worse = replace(
        strange,
        targets=tuple({**m, "true_hu": 1.5 * m["true_hu"]} for m in strange.targets),
        surveys=tuple({**m, "true_hu": 1.5 * m["true_hu"]} for m in strange.surveys),
    )
    told = calibrate.fitted(worse, calibrate.fit(others))
    assert 0.85 < told.expected_over_true < 1.1
    assert told.rank_correlation > 0.95
    alone = calibrate.fitted(replace(worse, surveys=()), calibrate.fit(others))
    assert alone.expected_over_true < 0.75


def test_slabs_are_measured_as_whole_numbers_and_as_thick_as_their_gap() -> None:
    patient = made_patient(20)
    (stack,) = leave_out(patient.thin(), 4, "slab", TargetList())
    target = stack.targets[0].index
    step, window = stack.survey(target)
    assert step.survey is not None
    slab = np.rint(patient.hu[target : target + 4].mean(axis=0))
    assert np.array_equal(window.slices[step.survey], slab)
    assert window.geometry.thickness_mm == pytest.approx(2.5 + 3.0)
    assert len(stack.thin.geometry) == 17


def test_a_survey_has_two_received_slices_on_each_side_as_far_as_there_are() -> None:
    patient = made_patient(25)
    (stack,) = leave_out(patient.thin(), 4, "sub-sampled", TargetList())
    for index, around in ((10, (4, 8, 12, 16)), (8, (0, 4, 12, 16)), (1, (0, 4, 8))):
        step, window = stack.survey(index)
        distances = patient.geometry.distances_mm
        left = sorted((*around, index))
        assert window.geometry.distances_mm.tolist() == distances[left].tolist()
        assert step.survey == left.index(index)
        assert step.needs == tuple(range(len(left)))


def test_a_folder_without_patients_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["calibrate", str(tmp_path)]) == 1
    assert "no evenly spaced CT series" in " ".join(capsys.readouterr().err.split())
