"""Models: what there are, how one is judged on a site's own series, and what training needs."""

from pathlib import Path

from node import finding_opinion
from node.mask_opinion import check
from tests import chest_findings, mr_series, phantoms
from tests.jobs.test_mask_jobs import Ball
from tests.unit.commands.console import Midslice


def test_models_names_version_weights_and_input(midslice: Midslice) -> None:
    models = {model["name"]: model for model in midslice("models", "--json").json["models"]}
    assert {name: model["produces"] for name, model in models.items()} == {
        "linear": "slices",
        "midslice": "slices",
        "brain": "mask",
        "brain-unet": "mask",
        "haemorrhage": "scores",
        "nodules": "findings",
    }
    assert len(models["midslice"]["weights_sha256"]) == 64
    assert models["linear"]["weights_sha256"] == ""
    assert "CT stacks" in midslice("models").out


def test_a_model_of_the_site_that_cannot_be_loaded_is_named(
    midslice: Midslice, tmp_path: Path
) -> None:
    with (tmp_path / "config.toml").open("a") as file:
        file.write('[[model]]\nname = "ours"\nclass = "absent_module:Net"\n')
    result = midslice("models")
    assert result.status == 1
    assert "absent_module:Net" in result.out


def test_a_folder_without_series_cannot_train(midslice: Midslice, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = midslice("train", tmp_path / "empty")
    assert result.status == 1
    assert "no evenly spaced CT series" in result.err
    assert len(result.err.splitlines()) == 1


def test_a_folder_without_series_is_told_what_evaluation_needs(
    midslice: Midslice, tmp_path: Path
) -> None:
    phantoms.write(tmp_path / "data" / "thick", phantoms.Series(slices=3))
    result = midslice("evaluate", tmp_path / "data")
    assert result.status == 1
    assert "no CT series to judge on; needed are thin axial slices" in result.err
    assert "thick: it has 3 slices; at least 5 are needed" in result.err
    assert len(result.err.splitlines()) == 1


def test_process_makes_one_derived_series_a_stack(midslice: Midslice, tmp_path: Path) -> None:
    phantoms.write(tmp_path / "ct", phantoms.Series(slices=4))
    result = midslice(
        *("process", tmp_path / "ct", "--model", "linear", "--out", tmp_path / "out"),
        *("--factor", 2, "--json"),
    )
    assert result.status == 0
    (series,) = result.json["series"]
    assert (series["state"], series["instances"], series["generated"]) == ("succeeded", 7, 3)
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 7


def test_process_writes_the_segmentation_and_the_extracted_series(
    midslice: Midslice, tmp_path: Path
) -> None:
    with (tmp_path / "config.toml").open("a") as file:
        file.write(f'[[model]]\nname = "ball"\nclass = "{Ball.__module__}:Ball"\n')
        file.write('produces = "mask"\n')
    received = mr_series.write(tmp_path / "mr")
    command = ("process", tmp_path / "mr", "--model", "ball", "--out", tmp_path / "out")
    wrong = midslice(*command, "--factor", 2)
    assert wrong.status == 2
    assert "ball makes a mask, not slices" in wrong.err
    result = midslice(*command)
    assert result.status == 0
    assert "Brain mask in 2 slices, volume " in result.out
    files = sorted((tmp_path / "out").glob("*.dcm"))
    assert len(files) == len(received) + 1
    assert not check(received, files)


def test_process_writes_a_report_of_findings_with_what_lies_beside_it(
    midslice: Midslice, tmp_path: Path
) -> None:
    with (tmp_path / "config.toml").open("a") as file:
        file.write('[[model]]\nname = "balls"\nclass = "tests.chest_findings:Balls"\n')
        file.write('produces = "findings"\n')
    received = chest_findings.write(tmp_path / "ct")
    command = ("process", tmp_path / "ct", "--model", "balls")
    wrong = midslice(*command, "--out", tmp_path / "wrong", "--factor", 2)
    assert (wrong.status, "balls makes findings, not slices" in wrong.err) == (2, True)
    all_of_them = midslice(*command, "--out", tmp_path / "all")
    assert all_of_them.status == 0
    assert "6 instances, 2 findings at the threshold of 0.50" in all_of_them.out
    one = midslice(*command, "--out", tmp_path / "one", "--max-findings", 1, "--report", "2d")
    assert "1 finding at the threshold" in one.out
    assert "findings of lower scores that were left out: 1" in one.out
    for name in ("all", "one"):
        assert not finding_opinion.check(received, sorted((tmp_path / name).glob("*.dcm")))


def test_process_makes_the_same_series_as_the_node_each_time(
    midslice: Midslice, tmp_path: Path
) -> None:
    phantoms.write(tmp_path / "ct", phantoms.Series(slices=3))
    series = [
        midslice("process", "ct", "--model", "linear", "--out", name, "--json").json["series"][0]
        for name in ("a", "b")
    ]
    assert series[0]["derived_series_uid"] == series[1]["derived_series_uid"]
    (tmp_path / "config.toml").unlink()
    alone = midslice("process", "ct", "--model", "linear", "--out", "c", "--json").json
    assert alone["series"][0]["derived_series_uid"] != series[0]["derived_series_uid"]


def test_process_puts_two_series_into_two_folders(midslice: Midslice, tmp_path: Path) -> None:
    phantoms.write(tmp_path / "ct" / "a", phantoms.Series(slices=3, seed="a"))
    phantoms.write(tmp_path / "ct" / "b", phantoms.Series(slices=3, seed="b"))
    result = midslice("process", "ct", "--model", "linear", "--out", "out")
    assert result.status == 0
    assert [len(list((tmp_path / "out" / n).glob("*.dcm"))) for n in ("1", "2")] == [5, 5]


def test_process_says_why_nothing_was_made_and_leaves_no_folder(
    midslice: Midslice, tmp_path: Path
) -> None:
    phantoms.write(tmp_path / "ct", phantoms.Series(slices=3))
    arguments = ("process", "ct", "--model", "linear", "--out", "out", "--target-spacing", 20)
    result = midslice(*arguments)
    assert result.status == 1
    assert "refused: NOTHING_TO_DO: The slices lie 5.00 mm apart" in result.out
    assert not (tmp_path / "out").exists()
    (series,) = midslice(*arguments, "--json").json["series"]
    assert (series["state"], series["reason"]) == ("refused", "NOTHING_TO_DO")


def test_process_of_a_folder_without_dicom_says_so(midslice: Midslice, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no DICOM")
    result = midslice("process", "empty", "--model", "linear", "--out", "out")
    assert result.status == 1
    assert "There is no DICOM series in this folder." in result.out
    assert "set aside: 1 file: PIXEL_DATA_ERROR" in result.out
