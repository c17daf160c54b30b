"""Real series that are wrong in real ways: the documented verdict of each, and equal pixels.

`tests/data/edge-cases` holds small extracts; the whole folders, where they lie beside the
repository, take seconds each: `tests/training/test_whole_folders.py`.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from inference.dataset import read_header
from inference.errors import Reason, Unprocessable
from inference.pixels import decode
from inference.stacks import read_headers, stacks_of
from node import cli
from node.second_opinion import check
from tests.series import changed
from tests.unit.inference.made import derive, request

EXTRACTS = Path("tests/data/edge-cases")
TABLE = Path("CASES.md")
SYNTAXES = EXTRACTS / "transfer-syntaxes"
NATIVE = "DeflatedExplicitVRLittleEndianTransferSyntax_1.2.840.10008.1.2.1.99.dcm"


def said(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What `midslice process` says of a folder."""
    capsys.readouterr()
    cli.run(["process", str(folder), "--model", "linear", "--out", str(out), "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def verdicts(found: dict[str, Any]) -> str:
    """The verdict on each stack, and what was set aside, as the table has it."""
    parts = [
        f"{series['slices']} image{'' if series['slices'] == 1 else 's'}: {series['state']}"
        + (f" `{series['reason']}`" if series["reason"] else f", {series['generated']} generated")
        for series in found["series"]
    ]
    aside = Counter(item["reason"] for item in found["set_aside"])
    parts += [f"set aside: {count} `{reason}`" for reason, count in sorted(aside.items())]
    return "; ".join(parts)


def documented() -> dict[str, str]:
    """Folder -> verdicts, from the table of the conformance statement."""
    rows = [line.strip("| ").split(" | ") for line in TABLE.read_text().splitlines()]
    return {row[0].strip("`"): row[2] for row in rows if row[-1].endswith("of_the_table`")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("folder", sorted(EXTRACTS.glob("*")), ids=str)
def test_each_folder_has_the_verdict_of_the_table(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_verdict(folder, tmp_path, capsys)


def check_verdict(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The verdict is the table's, and the second opinion has nothing against what was made."""
    found = said(folder, tmp_path / "out", capsys)
    assert verdicts(found) == documented()[folder.name]
    by_key = {stack.key: stack for stack in stacks_of(read_headers(sorted(folder.iterdir())))}
    for series in found["series"]:
        if series["state"] == "succeeded":
            sources = [header.path for header in by_key[series["stack"]].headers]
            assert check(sources, sorted(Path(series["folder"]).glob("*.dcm")), factor=2) == []


def test_a_person_reads_what_was_odd_about_the_series(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = EXTRACTS / "ge-head-tilt-irregular"
    cli.run(["process", str(folder), "--model", "linear", "--out", str(tmp_path / "out")])
    text = " ".join(capsys.readouterr().out.split())
    assert "note: sheared by 18.5 degrees" in text
    assert "note: gaps of 1.08 to 7.00 mm" in text


def test_every_folder_has_its_row_and_every_row_its_folder() -> None:
    assert set(documented()) == {folder.name for folder in EXTRACTS.iterdir()}


def test_a_hole_is_filled_around_where_the_route_leaves_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = EXTRACTS / "tcga-missing-slices", tmp_path / "out"
    capsys.readouterr()
    options = ("--model", "linear", "--out", str(out), "--across-missing", "leave", "--json")
    cli.run(["process", str(folder), *options])
    series = json.loads(capsys.readouterr().out)["series"][1]
    assert (series["state"], series["generated"]) == ("succeeded", 31)
    closed = [gap for gap, fact in enumerate(series["record"]["gaps"]) if fact["factor"] == 1]
    sources = [h.path for h in stacks_of(read_headers(sorted(folder.iterdir())))[1].headers]
    derived = sorted(Path(series["folder"]).glob("*.dcm"))
    assert check(sources, derived, factor=2, closed_gaps=closed) == []
    assert len(closed) == 2


def pixels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    return decode(read_header(path))


@pytest.mark.parametrize("path", sorted(SYNTAXES.glob("*Loss[l]ess*")), ids=lambda p: p.name)
def test_a_lossless_transfer_syntax_holds_the_native_values(path: Path) -> None:
    assert (pixels(path) == pixels(SYNTAXES / NATIVE)).all()


@pytest.mark.parametrize("name", ["Process14SV1", "Process14T"])
def test_lossless_jpeg_holds_the_native_values(name: str) -> None:
    (path,) = SYNTAXES.glob(f"JPEG{name}*")
    assert (pixels(path) == pixels(SYNTAXES / NATIVE)).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["JPEGProcess1T", "JPEGProcess2", "JPEG2000T", "JPEGLSLossy"])
def test_a_lossy_transfer_syntax_marks_the_result_though_no_attribute_says_so(
    tmp_path: Path, name: str
) -> None:
    (path,) = SYNTAXES.glob(f"{name}*")
    files = two_slices(path, tmp_path)
    for made in derive(request(files, tmp_path / "derived")):
        assert dcmread(made).LossyImageCompression == "01"


def two_slices(path: Path, folder: Path) -> list[Path]:
    """The slice, and itself once more 5 mm further."""
    files = []
    for number in (1, 2):

        def change(made: Any, number: int = number) -> None:
            x, y, z = made.ImagePositionPatient
            made.ImagePositionPatient = [x, y, float(z) + 5 * number]
            made.SOPInstanceUID = f"1.2.3.{number}"
            made.pop("LossyImageCompression", None)

        files += changed([path], folder / str(number), change)
    return files


@pytest.mark.parametrize("name", ["JPEGProcess6_8", "JPEGProcess10_12"])
def test_a_transfer_syntax_that_nothing_decodes_is_refused_by_name(name: str) -> None:
    (path,) = SYNTAXES.glob(f"{name}*")
    with pytest.raises(Unprocessable) as caught:
        pixels(path)
    assert caught.value.reason == Reason.NO_DECODER
    assert "Send the series uncompressed" in caught.value.sentence
