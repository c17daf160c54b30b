"""The product says the same of itself on the wire, in its files and in its package."""

import shutil
import tomllib
from pathlib import Path

import pytest
from pydicom.uid import UID

from inference import release
from node import cli

ROOT = Path(__file__).parents[2]


def test_the_implementation_is_named_as_the_standard_wants_it() -> None:
    # PS3.7 D.3.3.2: both identify the implementation; a support engineer compares them.
    assert UID(release.IMPLEMENTATION_CLASS_UID).is_valid
    assert release.IMPLEMENTATION_CLASS_UID.startswith("2.25.")
    assert 1 <= len(release.IMPLEMENTATION_VERSION_NAME) <= 16


def test_the_release_stands_in_one_place() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in document["project"]["dynamic"]
    version = document["tool"]["setuptools"]["dynamic"]["version"]
    assert version == {"attr": "inference.release.RELEASE"}


def test_a_build_is_known_by_its_code_and_by_nothing_else(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for package in release.PACKAGES:
        shutil.copytree(ROOT / package, copy / package, symlinks=True)
    assert release.digest(copy) == release.digest(ROOT)
    (copy / "README.md").write_text("What is said of it is not the code.")
    assert release.digest(copy) == release.digest(ROOT)
    with (copy / "node" / "wording.py").open("a") as file:
        file.write("# Changed.\n")
    assert release.digest(copy) != release.digest(ROOT)


def test_the_command_line_says_release_and_build(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"midslice {release.RELEASE}, {release.build()}\n"
