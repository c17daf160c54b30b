"""The documents say what the code does: each list in them is held to its source."""

import ast
import re
import subprocess
from collections import defaultdict
from collections.abc import Set
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from inference.errors import Reason
from inference.release import RELEASE
from inference.training.beside import TRAINERS
from inference.training.peers import KINDS
from node.config import sections
from node.events import EVENTS, Event
from storage.records import ArrivalState, DeliveryState, JobState
from tests.node_process import MIDSLICE

ROOT = Path(__file__).parents[2]
PACKAGES = ("node", "inference", "storage")
# What a table of config.toml is called, where it is not called like its class.
TABLES = {
    "DeliverySettings": "delivery",
    "ExpectedSender": "sender",
    "ModelEntry": "model",
    "Oidc": "web.oidc",
    "Commitment": None,  # in a destination
    "ReportAddress": None,  # in a sender
    "Condition": None,
    "DestinationTls": None,
    "Section": None,
    "Config": None,
}


def read(name: str) -> str:
    return (ROOT / name).read_text()


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
    following = re.search(r"^#? ?\[+[a-z.]+\]+", rest, re.MULTILINE)
    block = rest[: following.start()] if following else rest
    if re.search(rf"^#? ?\[{table}\.{key}\]", shipped, re.MULTILINE):
        return  # a table in the table
    assert re.search(rf"^#? ?{key} *=", block, re.MULTILINE), f"[{table}] does not name {key}"


@pytest.mark.parametrize("section", [sections.Commitment, sections.ReportAddress])
def test_every_key_of_a_table_within_a_table_stands_in_an_example(
    section: type[sections.Section],
) -> None:
    examples = re.findall(r"\{ [^{}]* \}", read("config.toml"))
    written = [set(re.findall(r"(\w+) = ", example)) for example in examples]
    assert set(section.model_fields) in written


Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Logged:
    """An event as the source logs it."""

    levels: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    has_more: bool = False  # keys that come from elsewhere


@cache
def logged() -> dict[str, Logged]:
    """Every constant log message of the product with its levels and its keys."""
    found: dict[str, Logged] = defaultdict(Logged)
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text())
            for scope in (node for node in ast.walk(tree) if isinstance(node, Function)):
                for call in ast.walk(scope):
                    if isinstance(call, ast.Call) and is_log_call(call):
                        add(found, call, scope)
    return found


def is_log_call(call: ast.Call) -> bool:
    function = call.func
    return isinstance(function, ast.Attribute) and ast.unparse(function.value) == "logger"


def add(found: dict[str, Logged], call: ast.Call, scope: Function) -> None:
    assert isinstance(call.func, ast.Attribute)
    assert isinstance(call.args[0], ast.Constant), f"no constant event: {ast.unparse(call)}"
    event = found[str(call.args[0].value)]
    level = call.func.attr
    event.levels.add("error" if level == "exception" else level)
    arguments = {keyword.arg: keyword.value for keyword in call.keywords}
    if level == "exception" or "exc_info" in arguments:
        event.keys.add("error")
    if "extra" in arguments:
        read_keys(event, arguments["extra"], scope)


def read_keys(event: Logged, value: ast.expr, scope: Function) -> None:
    """Keys of a mapping: of a display, of a union, or of a name that the function gives one."""
    if isinstance(value, ast.Dict):
        event.keys |= {str(key.value) for key in value.keys if isinstance(key, ast.Constant)}
        event.has_more |= None in value.keys
    elif isinstance(value, ast.BinOp):
        read_keys(event, value.left, scope)
        read_keys(event, value.right, scope)
    else:
        assigned = [
            statement.value
            for statement in ast.walk(scope)
            if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign)
            and ast.unparse(value) in {ast.unparse(target) for target in targets(statement)}
            and statement.value is not None
        ]
        event.has_more |= not assigned
        for mapping in assigned:
            read_keys(event, mapping, scope)


def targets(statement: ast.Assign | ast.AnnAssign | ast.AugAssign) -> list[ast.expr]:
    return statement.targets if isinstance(statement, ast.Assign) else [statement.target]


OF_LIBRARIES = "library message"  # what the log makes of a line that is not ours
SEVERITY = ("debug", "info", "warning", "error", "critical")


def test_the_table_of_events_holds_what_the_source_logs_and_nothing_else() -> None:
    names = [event.name for event in EVENTS]
    assert len(names) == len(set(names)) > 60
    assert set(names) == {*logged(), OF_LIBRARIES}
    assert f'"{OF_LIBRARIES}"' in read("node/log.py")


@pytest.mark.parametrize(
    "event",
    [event for event in EVENTS if event.name != OF_LIBRARIES],
    ids=lambda event: event.name,
)
def test_an_event_has_the_level_and_the_keys_of_the_table(event: Event) -> None:
    source = logged()[event.name]
    assert event.level == max(source.levels, key=SEVERITY.index)
    if source.has_more:
        assert source.keys <= set(event.keys)
    else:
        assert source.keys == set(event.keys)
    assert event.meaning


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


@pytest.mark.parametrize(
    ("target", "models"),
    [("train-models", TRAINERS.keys() - KINDS.keys()), ("train-peers", KINDS.keys())],
)
def test_make_trains_what_ships_beside_the_generator_and_what_it_is_compared_with(
    target: str, models: Set[str]
) -> None:
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", read("Makefile"), re.MULTILINE)
    assert recipe is not None
    assert sorted(re.findall(r"--model (\S+)", recipe.group(1))) == sorted(models)


def test_ci_runs_the_readmes_test_command() -> None:
    assert "    make test" in read("README.md")
    assert "make test" in read(".ci/run").splitlines()


@pytest.mark.parametrize("word", [*Reason, *JobState, *DeliveryState, *ArrivalState])
def test_every_reason_and_state_stands_in_the_conformance_statement(word: str) -> None:
    assert re.search(rf"\b{word}\b", read("CONFORMANCE.md"))


def test_the_newest_version_of_the_changelog_is_the_products() -> None:
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", read("CHANGELOG.md"), re.MULTILINE)
    assert versions[0] == RELEASE


@pytest.mark.parametrize(
    "document", ["ADMINISTRATION.md", "ARCHITECTURE.md", "DECISIONS.md", "README.md"]
)
def test_files_that_a_document_names_exist(document: str) -> None:
    text = read(document)
    named = re.findall(r"`((?:node|inference|storage|tests)/[\w./-]+|[A-Z]+\.md)`", text)
    named += [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_every_decision_has_a_number_and_a_status() -> None:
    sections = re.findall(
        r"^## (\d+)\. .+\n\n\*\*(Holds|Moved|Replaced by (\d+))\b",
        read("DECISIONS.md"),
        re.MULTILINE,
    )
    headings = re.findall(r"^## (\d+)\. ", read("DECISIONS.md"), re.MULTILINE)
    assert [number for number, _, _ in sections] == headings
    assert headings == [str(number) for number in range(1, len(headings) + 1)]
    assert {replacing for _, _, replacing in sections if replacing} <= set(headings)


def test_what_was_moved_out_of_the_decisions_has_its_chapter() -> None:
    decisions = read("DECISIONS.md")
    to = r"^\*\*Moved\*\* to [^`]*`([^`]+)`, \*([^*]+)\*\.$"
    moved = re.findall(to, decisions, re.MULTILINE)
    assert len(moved) == len(re.findall(r"^\*\*Moved\*\* to", decisions, re.MULTILINE)) > 20
    for document, heading in set(moved):
        assert re.search(rf"^##+ {re.escape(heading)}$", read(document), re.MULTILINE), heading


def test_the_top_level_holds_the_fixed_folders_and_files_only() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    folders = {Path(name).parts[0] for name in tracked if "/" in name}
    assert folders == {"node", "inference", "storage", "tests", "findings", ".ci"}


MAPPED = [
    "node",
    "node/commands",
    "node/config",
    "node/demo",
    "node/dicom",
    "node/rules",
    "node/work",
    "storage",
    "storage/queries",
    "storage/site",
    "inference",
]


@pytest.mark.parametrize("folder", MAPPED)
def test_the_code_map_names_every_file(folder: str) -> None:
    code_map = re.search(r"```\nnode/.*?```", read("ARCHITECTURE.md"), re.DOTALL)
    assert code_map is not None
    words = set(re.findall(r"\w+", code_map[0]))
    files = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"}
    assert files
    assert files - words == set()
