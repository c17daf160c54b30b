"""The product says the same of itself on the wire, in its files and in its package."""

import tomllib
from pathlib import Path

from inference import header
from node.dicom import contexts

ROOT = Path(__file__).parents[2]


def test_one_implementation_class_uid_and_version_name_on_the_wire_and_in_files() -> None:
    # PS3.7 D.3.3.2: both identify the implementation; a support engineer compares them.
    assert contexts.IMPLEMENTATION_CLASS_UID == header.IMPLEMENTATION_CLASS_UID
    assert contexts.IMPLEMENTATION_VERSION_NAME == header.IMPLEMENTATION_VERSION_NAME
    assert len(contexts.IMPLEMENTATION_VERSION_NAME) <= 16


def test_the_release_in_results_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == header.RELEASE
