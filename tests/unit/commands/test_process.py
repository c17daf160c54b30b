"""`midslice process`: a model on a folder, without network or queue."""

from pathlib import Path

from tests import phantoms
from tests.unit.commands.said import Midslice


def test_process_makes_one_derived_series_a_stack(midslice: Midslice, tmp_path: Path) -> None:
    phantoms.write(tmp_path / "ct", phantoms.Series(slices=4))
    said = midslice(
        *("process", tmp_path / "ct", "--model", "linear", "--out", tmp_path / "out"),
        *("--factor", 2, "--json"),
    )
    assert said.status == 0
    (series,) = said.json["series"]
    assert (series["state"], series["instances"], series["generated"]) == ("succeeded", 7, 3)
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 7


def test_process_makes_the_same_series_as_the_node_each_time(
    midslice: Midslice, tmp_path: Path
) -> None:
    phantoms.write(tmp_path / "ct", phantoms.Series(slices=3))
    found = [
        midslice("process", "ct", "--model", "linear", "--out", name, "--json").json["series"][0]
        for name in ("a", "b")
    ]
    assert found[0]["derived_series_uid"] == found[1]["derived_series_uid"]
    (tmp_path / "config.toml").unlink()
    alone = midslice("process", "ct", "--model", "linear", "--out", "c", "--json").json
    assert alone["series"][0]["derived_series_uid"] != found[0]["derived_series_uid"]


def test_process_puts_two_series_into_two_folders(midslice: Midslice, tmp_path: Path) -> None:
    phantoms.write(tmp_path / "ct" / "a", phantoms.Series(slices=3, seed="a"))
    phantoms.write(tmp_path / "ct" / "b", phantoms.Series(slices=3, seed="b"))
    said = midslice("process", "ct", "--model", "linear", "--out", "out")
    assert said.status == 0
    assert [len(list((tmp_path / "out" / n).glob("*.dcm"))) for n in ("1", "2")] == [5, 5]


def test_process_says_why_nothing_was_made_and_leaves_no_folder(
    midslice: Midslice, tmp_path: Path
) -> None:
    phantoms.write(tmp_path / "ct", phantoms.Series(slices=3))
    arguments = ("process", "ct", "--model", "linear", "--out", "out", "--target-spacing", 20)
    said = midslice(*arguments)
    assert said.status == 1
    assert "refused: NOTHING_TO_DO: The slices lie 5.00 mm apart" in said.out
    assert not (tmp_path / "out").exists()
    (series,) = midslice(*arguments, "--json").json["series"]
    assert (series["state"], series["reason"]) == ("refused", "NOTHING_TO_DO")


def test_process_of_a_folder_without_dicom_says_so(midslice: Midslice, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no DICOM")
    said = midslice("process", "empty", "--model", "linear", "--out", "out")
    assert said.status == 1
    assert "There is no DICOM series in this folder." in said.out
    assert "set aside: 1 file: PIXEL_DATA_ERROR" in said.out
