"""Each case that the documents list is tried, and the documents say what came of it."""

import ast
from functools import cache
from pathlib import Path

import pytest
from pydicom import dcmread

from inference.dataset import Header
from inference.errors import Reason
from inference.request import Derived, Outcome, Verdict
from inference.stacks import read_headers, set_aside, stacks_of
from tests.unit.inference.case import Case
from tests.unit.inference.cases import CASES
from tests.unit.inference.made import images, request, run

TABLE = Path("CASES.md")
HERE = Path("tests/unit/inference")
# What no header tells: these are reached by tests of their own, named in the table.
ELSEWHERE = {
    Reason.ACQUIRED_THIN_SERIES_EXISTS,
    Reason.OUTPUT_CHECK_FAILED,
    Reason.LOW_CONFIDENCE,
    Reason.NOT_AN_MR_SLICE,
    Reason.PEERS_DISAGREE,
    Reason.DAMAGED_FILES,
}
LONGEST = 240
THIS_TEST = "jobs/test_cases.py::test_a_case"


def outcomes(case: Case, tmp_path: Path) -> tuple[list[Header], list[Outcome]]:
    """What becomes of every stack of the series, largest first, as the node makes a job of each."""
    headers = read_headers(case.write(tmp_path / "received"))
    found = []
    for number, stack in enumerate(stacks_of(headers)):
        files = [header.path for header in sorted(stack.headers, key=lambda header: header.order)]
        made = request(files, tmp_path / f"derived-{number}", edit=case.ask)
        outcome = run(made, closed_gaps=case.closed_gaps)
        if case.seen is not None and isinstance(outcome, Derived):
            assert all(case.seen(dcmread(path)) for path in images(outcome, made.folder))
        found.append(outcome)
    return headers, found


def row(case: Case, sentence: str) -> str:
    """The row of a case in the table of the documents."""
    reason = case.reason or case.aside
    short = sentence if len(sentence) <= LONGEST else f"{sentence[:LONGEST].rsplit(' ', 1)[0]} ..."
    code = f"`{reason}`" if reason else "-"
    return f"| {case.title} | {case.does} | {code} | {short or '-'} | `{THIS_TEST}` |"


def sentence_of(case: Case, headers: list[Header], outcome: Outcome) -> str:
    """What a technologist reads: the verdict, the note, or why an instance was left out."""
    if isinstance(outcome, Verdict):
        return outcome.sentence
    assert isinstance(outcome, Derived), outcome
    notes = outcome.record["notes"]
    assert isinstance(notes, list)
    said = [item.sentence for item in set_aside(headers)] if case.aside else notes
    return next((str(note) for note in said if case.said and case.said in note), "")


@pytest.mark.filterwarnings("ignore:End of file", "ignore:.*[Ii]nvalid value for VR UI")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_a_case(case: Case, tmp_path: Path) -> None:
    headers, found = outcomes(case, tmp_path)
    assert len(found) == case.stacks
    for outcome in found:
        assert getattr(outcome, "reason", None) == case.reason, outcome
        if case.reason is not None:
            assert isinstance(outcome, Verdict)
            assert outcome.held == case.does.startswith("held")
    if case.aside is not None:
        assert {item.reason for item in set_aside(headers)} == {case.aside}
    sentence = sentence_of(case, headers, found[0])
    assert case.said in sentence
    assert row(case, sentence) in TABLE.read_text(encoding="utf-8").splitlines()


def test_every_reason_is_reached_and_stands_in_the_table() -> None:
    assert {case.reason for case in CASES} - {None} == set(Reason) - ELSEWHERE
    text = TABLE.read_text(encoding="utf-8")
    assert [reason for reason in Reason if f"| `{reason}` |" not in text] == []


def test_every_case_and_test_of_the_table_exists() -> None:
    rows = [
        line.strip("| ").split(" | ")
        for line in TABLE.read_text(encoding="utf-8").splitlines()
        if "::" in line
    ]
    assert [cells[0] for cells in rows if THIS_TEST in cells[-1]] == [case.title for case in CASES]
    for cells in rows:
        file, _, function = cells[-1].strip("`").partition("::")
        assert function in functions(Path("tests") / file if "/" in file else HERE / file)


@cache
def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_a_held_or_refused_case_says_so() -> None:
    for case in CASES:
        word = case.does.split(";")[0].split(" ")[0].rstrip(",")
        assert (word in ("held", "refused")) == (case.reason is not None), case.title
