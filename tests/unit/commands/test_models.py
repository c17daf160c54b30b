"""Models: what there are, how one is judged on a site's own series, and what training needs."""

import json
from pathlib import Path

from tests import phantoms
from tests.unit.commands.said import Midslice

ROOT = Path(__file__).parents[3]


def test_models_names_version_weights_and_input(midslice: Midslice) -> None:
    found = {each["name"]: each for each in midslice("models", "--json").json["models"]}
    assert set(found) == {"linear", "midslice"}
    assert len(found["midslice"]["weights_sha256"]) == 64
    assert found["linear"]["weights_sha256"] == ""
    assert "CT stacks" in midslice("models").out


def test_a_model_of_the_site_that_cannot_be_loaded_is_named(
    midslice: Midslice, tmp_path: Path
) -> None:
    with (tmp_path / "config.toml").open("a") as file:
        file.write('[[model]]\nname = "ours"\nclass = "absent_module:Net"\n')
    said = midslice("models")
    assert said.status == 1
    assert "absent_module:Net" in said.out


def test_evaluate_fails_on_a_missed_figure_where_it_is_asked_to(
    midslice: Midslice, tmp_path: Path
) -> None:
    data = ROOT / "node" / "demo" / "data" / "acquired"
    page = tmp_path / "page.html"
    arguments = ("evaluate", data, "--factor", "2", "--targets", 1, "--model", "linear")
    arguments += ("--out", page)
    card = tmp_path / "made" / "card.md"
    said = midslice(*arguments, "--card", card)
    assert said.status == 0
    assert card.read_text().startswith("| cell | weights | DIS over linear |")
    assert "linear, smoothed" in said.out
    assert page.read_text().startswith("<!doctype html>")
    failed = midslice(*arguments, "--gates")
    assert failed.status == 1
    assert "chest: dB over DIS" in failed.out
    assert "Every figure is reached" not in failed.out
    told = midslice(*arguments, "--gates", "--json", "--no-page")
    assert told.status == 1
    missed = {row["title"] for row in told.json["gates"] if row["verdict"] == "missed"}
    assert "body MAE against linear" in missed


def test_the_targets_of_an_evaluation_can_be_kept_and_given(
    midslice: Midslice, tmp_path: Path
) -> None:
    data = ROOT / "node" / "demo" / "data" / "acquired"
    kept = tmp_path / "targets.json"
    assert midslice("evaluate", data, "--draw-targets", kept).status == 0
    told = midslice(
        *("evaluate", data, "--factor", "10", "--model", "linear", "--target-list", kept),
        *("--json", "--no-page"),
    )
    (listed,) = [
        each
        for each in json.loads(kept.read_text())["series"]
        if (each["slices"], each["factor"]) == (23, 10)
    ]
    assert told.json["cells"][0]["targets"] == listed["targets"]
    kept.write_text("{}")
    said = midslice("evaluate", data, "--target-list", kept)
    assert said.status == 2
    assert "no list as --draw-targets writes it" in said.err


def test_a_folder_without_series_cannot_train(midslice: Midslice, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said = midslice("train", tmp_path / "empty")
    assert said.status == 1
    assert "no evenly spaced CT series" in said.err
    assert len(said.err.splitlines()) == 1


def test_a_folder_without_series_is_told_what_evaluation_needs(
    midslice: Midslice, tmp_path: Path
) -> None:
    phantoms.write(tmp_path / "data" / "thick", phantoms.Series(slices=3))
    said = midslice("evaluate", tmp_path / "data")
    assert said.status == 1
    assert "no CT series to judge on; needed are thin axial slices" in said.err
    assert "thick: it has 3 slices; at least 5 are needed" in said.err
    assert len(said.err.splitlines()) == 1
