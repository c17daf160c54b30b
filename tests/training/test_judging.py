"""Evaluation and calibration with the shipped weights, from the data to the files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from inference.models.gate import calibration_path, load_calibration
from inference.models.midslice import SHIPPED_WEIGHTS, Midslice
from inference.training import calibrate
from inference.training.leave_out import TargetList
from inference.training.report import StudyRequest, page_of, run
from node import cli
from tests.models.made import made_patient
from tests.unit.commands.console import Midslice as CommandLine

CHEST = Path(__file__).parents[2] / "node" / "demo" / "data" / "acquired"  # 23 slices


def test_a_real_series_is_judged_with_the_shipped_weights(tmp_path: Path) -> None:
    """23 slices, 5 mm apart, of a chest: the whole way in seconds."""
    wanted = StudyRequest(CHEST, (2,), targets=3, pictures=True)
    found = run(wanted, lambda _weights: Midslice(), TargetList())
    (cell,) = found.cells
    assert (cell.kind.anatomy, cell.kind.gap_mm) == ("chest", 10.0)
    assert cell.ours.over_linear_db > 1.5
    assert cell.ours.over_dis_db > 0.4
    assert cell.ours.below_linear == 0.0
    assert 0.3 < (cell.methods["linear"].noise_ratio or 0.0) < 1.2
    assert cell.ours.laa_950 is not None
    assert [panel.what for panel in cell.panels] == ["least gain", "second least", "third least"]
    page = tmp_path / "index.html"
    page.write_text(page_of(found))
    assert page.stat().st_size < 2_000_000


def test_calibrating_writes_figures_beside_the_weights_and_beside_each_fold(
    tmp_path: Path,
) -> None:
    """One patient has a fold of its own: its figures are those of the other."""
    data, weights, folds = tmp_path / "data", tmp_path / "new.safetensors", tmp_path / "folds"
    folds.mkdir()
    for name in ("one", "two"):
        patient = made_patient()
        (data / "ct-train" / name).mkdir(parents=True)
        spacing = np.array([1.0, 0.7, 0.7])
        np.savez(data / "ct-train" / name / "volume.npz", hu=patient.hu, spacing_mm=spacing)
    shutil.copy(SHIPPED_WEIGHTS, weights)
    shutil.copy(SHIPPED_WEIGHTS, folds / "one.safetensors")
    found, cells = calibrate.calibrate(data, weights=weights, folds=folds)
    assert (
        Midslice(weights).calibration.digest
        == load_calibration(calibration_path(weights), Midslice(weights).weights_sha256).digest
    )
    assert Midslice(weights).calibration.is_fitted
    assert Midslice(folds / "one.safetensors").calibration.is_fitted
    assert found.factor == pytest.approx(Midslice(weights).calibration.factor, abs=1e-5)
    assert {(cell.patient, cell.held_out) for cell in cells} == {("one", True), ("two", False)}
    provenance = json.loads(calibration_path(weights).read_text())["provenance"]
    assert provenance["patients"] == ["one", "two"]
    fold = json.loads((folds / "one.json").read_text())["provenance"]
    assert fold["patients"] == ["two"]


def test_the_command_says_what_it_found_cell_by_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patient, weights = made_patient(24), tmp_path / "new.safetensors"
    (tmp_path / "data" / "one").mkdir(parents=True)
    spacing = np.array([1.0, 0.7, 0.7])
    np.savez(tmp_path / "data" / "one" / "volume.npz", hu=patient.hu, spacing_mm=spacing)
    shutil.copy(SHIPPED_WEIGHTS, weights)
    told = ["--weights", str(weights), "--folds", str(tmp_path / "none")]
    assert cli.run(["calibrate", str(tmp_path / "data"), *told]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "one 2x thin 2.0 trained on it" in said
    assert "one 4x slabs 4.0 trained on it" in said
    assert calibration_path(weights).exists()


def test_evaluate_fails_on_a_missed_figure_where_it_is_asked_to(
    midslice: CommandLine, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    arguments = ("evaluate", CHEST, "--factor", "2", "--targets", 1, "--model", "linear")
    arguments += ("--out", page)
    card = tmp_path / "made" / "card.md"
    result = midslice(*arguments, "--card", card)
    assert result.status == 0
    assert card.read_text().startswith("| cell | weights | DIS over linear |")
    assert "linear, smoothed" in result.out
    assert page.read_text().startswith("<!doctype html>")
    failed = midslice(*arguments, "--gates")
    assert failed.status == 1
    assert "chest: dB over DIS" in failed.out
    assert "Every figure is reached" not in failed.out
    document = midslice(*arguments, "--gates", "--json", "--no-page")
    assert document.status == 1
    missed = {row["title"] for row in document.json["gates"] if row["verdict"] == "missed"}
    assert "body MAE against linear" in missed


def test_the_targets_of_an_evaluation_can_be_kept_and_given(
    midslice: CommandLine, tmp_path: Path
) -> None:
    kept = tmp_path / "targets.json"
    assert midslice("evaluate", CHEST, "--draw-targets", kept).status == 0
    document = midslice(
        *("evaluate", CHEST, "--factor", "10", "--model", "linear", "--target-list", kept),
        *("--json", "--no-page"),
    )
    (listed,) = [
        entry
        for entry in json.loads(kept.read_text())["series"]
        if (entry["slices"], entry["factor"]) == (23, 10)
    ]
    assert document.json["cells"][0]["targets"] == listed["targets"]
    kept.write_text("{}")
    result = midslice("evaluate", CHEST, "--target-list", kept)
    assert result.status == 2
    assert "no list as --draw-targets writes it" in result.err
