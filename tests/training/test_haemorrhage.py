"""The two commands on a made data set: a training of one step, and its folds judged again."""

import csv
from pathlib import Path

import pytest

from inference.training import scores
from inference.training.beside import EvaluationOrder
from inference.training.haemorrhage_figures import judge
from node import cli
from tests.head_pictures import write_data


def test_a_training_is_judged_again_from_its_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scores, "DRAWS", 20)
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    write_data(data)
    command = ["train", str(data), "--model", "haemorrhage", "--steps", "1", "--folds", "2"]
    assert cli.run([*command, "--device", "cpu", "--out", str(out)]) == 0
    assert "At the thresholds" in capsys.readouterr().out
    assert (out / "haemorrhage.safetensors").is_file()
    again = judge(
        EvaluationOrder("haemorrhage", data, tmp_path / "again", None, out, "cpu"),
        lambda _share, _what: None,
    )
    with (out / "scores.csv").open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 12
    first = (out / "card.md").read_text(encoding="utf-8")
    assert "frozen ImageNet features" in first
    own = next(row for row in again.rows if row[0] == "haemorrhage")
    assert f"| haemorrhage | all | {own[2]} | {own[3]} | {own[4]} |" in first
