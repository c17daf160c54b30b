"""The documents say what the code does: each list in them is held to its source."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from inference.errors import Reason
from node.config import sections
from storage.records import ArrivalState, DeliveryState, JobState
from tests.node_process import MIDSLICE

ROOT = Path(__file__).parents[2]
PACKAGES = ("node", "inference", "storage")
# What a table of config.toml is called, where it is not called like its class.
TABLES = {"ModelEntry": "model", "Condition": None, "Section": None, "Config": None}


def read(name: str) -> str:
    return (ROOT / name).read_text()


def project() -> dict[str, object]:
    return tomllib.loads(read("pyproject.toml"))["project"]


def config_keys() -> list[tuple[str, str]]:
    keys = []
    for name, section in vars(sections).items():
        if not (isinstance(section, type) and issubclass(section, sections.Section)):
            continue
        table = TABLES.get(name, name.lower())
        if table is not None:
            keys += [(table, field.alias or key) for key, field in section.model_fields.items()]
    return keys


@pytest.mark.parametrize(("table", "key"), config_keys())
def test_every_configuration_key_stands_in_the_shipped_file(table: str, key: str) -> None:
    shipped = read("config.toml")
    start = re.search(rf"^#? ?\[+{table}\]+", shipped, re.MULTILINE)
    assert start, f"no table {table}"
    rest = shipped[start.end() :]
    following = re.search(r"^#? ?\[+[a-z]+\]+", rest, re.MULTILINE)
    block = rest[: following.start()] if following else rest
    assert re.search(rf"^#? ?{key} *=", block, re.MULTILINE), f"[{table}] does not name {key}"


def events() -> list[str]:
    """Every constant log message of the product."""
    found = set()
    pattern = re.compile(r'logger\.(?:info|warning|error|exception)\(\s*"([^"]+)"')
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            found |= set(pattern.findall(path.read_text()))
    return sorted(found)


@pytest.mark.parametrize("event", events())
def test_every_log_event_is_explained_in_the_readme(event: str) -> None:
    assert f"| `{event}` |" in read("README.md")


def test_every_command_is_explained_in_the_readme() -> None:
    helped = subprocess.run(
        [MIDSLICE, "--help"], capture_output=True, text=True, check=True, env={"COLUMNS": "200"}
    )
    commands = set(re.findall(r"^│ ([a-z][a-z-]+)\s", helped.stdout, re.MULTILINE))
    assert {"serve", "jobs", "conformance"} <= commands
    named = set(re.findall(r"`midslice ([a-z-]+)", read("README.md")))
    assert commands <= named


@pytest.mark.parametrize("target", ["demo", "test", "setup", "run", "bench", "faults", "train"])
def test_make_has_and_explains_the_fixed_targets(target: str) -> None:
    assert re.search(rf"^{target}:.*## ", read("Makefile"), re.MULTILINE)


def test_ci_runs_the_readmes_test_command() -> None:
    assert "    make test" in read("README.md")
    assert "make test" in read(".ci/run").splitlines()


@pytest.mark.parametrize("word", [*Reason, *JobState, *DeliveryState, *ArrivalState])
def test_every_reason_and_state_stands_in_the_conformance_statement(word: str) -> None:
    assert re.search(rf"\b{word}\b", read("CONFORMANCE.md"))


def test_the_newest_version_of_the_changelog_is_the_products() -> None:
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", read("CHANGELOG.md"), re.MULTILINE)
    assert versions[0] == project()["version"]


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "DECISIONS.md", "README.md"])
def test_files_that_a_document_names_exist(document: str) -> None:
    named = re.findall(r"`((?:node|inference|storage|tests)/[\w./-]+)`", read(document))
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_the_top_level_holds_the_fixed_folders_and_files_only() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    folders = {Path(name).parts[0] for name in tracked if "/" in name}
    assert folders == {"node", "inference", "storage", "tests", ".ci"}
