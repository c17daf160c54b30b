"""The conformance statement: it says what the tables of the code say, and of this very node."""

import ast
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.datadict import keyword_for_tag

from inference import pipeline, release
from inference.errors import Reason
from inference.kinds import TERMS, Term
from inference.model import Parameters
from inference.request import Derived, ModelSpec, Output, Request, Source
from inference.stacks import read_headers
from node.config import Config, load
from node.conformance import RESULTS, SOURCES, WORD_VERDICTS, body, statement
from node.dicom import contexts, status
from node.rules.reasons import REASONS
from tests import phantoms
from tests.unit.inference.cases import CASES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shipped() -> str:
    return statement(load(ROOT / "config.toml"))


def of(folder: Path, text: str) -> str:
    path = folder / "config.toml"
    path.write_text(text)
    return statement(load(path))


def test_conformance_md_is_the_statement_of_the_shipped_configuration(shipped: str) -> None:
    written = (ROOT / "CONFORMANCE.md").read_text(encoding="utf-8")
    assert written == shipped, "run `make docs`"


def test_as_html_it_begins_with_links_to_all_chapters_and_sections(shipped: str) -> None:
    made = body(shipped)
    contents, _, rest = made.partition("</nav>")
    linked = re.findall(r'href="#(part-\d+)"', contents)
    assert linked == re.findall(r'<h[23] id="([^"]+)"', rest)
    assert len(linked) == len(re.findall(r"^###? ", shipped, re.MULTILINE))
    assert body("Nothing to list.") == "<p>Nothing to list.</p>\n"


def test_it_has_the_sections_of_the_standards_outline(shipped: str) -> None:
    assert re.findall(r"^## (\d+) ", shipped, re.MULTILINE) == [str(n) for n in range(1, 11)]


def test_every_sop_class_and_transfer_syntax_is_listed_in_order(shipped: str) -> None:
    rows = re.findall(r"^\| (\d+) \| .* \| `([\d.]+)` \|$", shipped, re.MULTILINE)
    assert [uid for _, uid in rows] == [str(uid) for uid in contexts.TRANSFER_SYNTAXES]
    annex = shipped.partition("\n## Annex A: ")[2]
    classes = re.findall(r"`([\d.]+)`", annex)
    assert classes == list(contexts.STORAGE_SOP_CLASSES)
    assert release.IMPLEMENTATION_CLASS_UID in shipped


def section(text: str, number: str) -> str:
    """One section, from its heading to the next one."""
    start = text.index(f"\n### {number} ")
    return text[start : text.index("\n##", start + 1)]


def test_every_status_that_the_node_answers_or_reads_is_explained(shipped: str) -> None:
    constants = {
        value
        for name, value in vars(status).items()
        if isinstance(value, int) and name.isupper() and value > 3 and "LONGEST" not in name
    } | {status.SUCCESS}
    answers = "".join(section(shipped, number) for number in ("4.2", "4.4", "4.5"))
    answered = re.findall(r"^\| ([0-9A-F]{4}) \|", answers, re.MULTILINE)
    assert {int(code, 16) for code in answered} == constants
    assert set(status.BEHAVIOUR) == set(status.Outcome)
    for result, text in status.BEHAVIOUR.items():
        assert f"| {result} | {text} |" in section(shipped, "4.3")


def test_every_status_that_a_peer_may_answer_stands_there_in_words(shipped: str) -> None:
    for first, _, words in status.C_STORE_MEANINGS:
        assert re.search(rf"^\| {first:04X}(-[0-9A-F]{{4}})? \| {words} \|$", shipped, re.MULTILINE)


def test_every_rejection_that_the_node_gives_is_explained(shipped: str) -> None:
    given = [value for name, value in vars(status).items() if name.startswith("REJECT_")]
    rows = re.findall(r"^\| (rejected .*) \|$", section(shipped, "3.2"), re.MULTILINE)
    assert len(rows) == len(set(rows)) == len(given)
    for result, source, reason in given:
        expected = f"{RESULTS[result]} | {SOURCES[source]} | {reason} | "
        assert [row for row in rows if row.startswith(expected)], expected
    assert "| rejected permanent | service user | 7 |" in shipped


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_its_state_and_meaning(shipped: str, reason: Reason) -> None:
    assert f"| `{reason}` | {REASONS[reason].state} | {REASONS[reason].meaning} |" in shipped


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.words[0])
def test_every_word_of_image_type_stands_there_with_its_verdict_and_source(
    shipped: str, term: Term
) -> None:
    words = ", ".join(f"`{word}`" for word in term.words)
    row = f"| {term.meaning} | {words}{' *' if term.in_description else ''} | "
    row += f"{WORD_VERDICTS[term.meaning]} | {term.source} |"
    assert row in section(shipped, "6.5").splitlines()


TEST = re.compile(r"^\| (.*) \| .* \| `(tests/.*\.py)::(\w+)(?:\[(.*)\])?` \|$", re.MULTILINE)


def test_every_kind_of_series_and_peer_names_a_test_that_exists(shipped: str) -> None:
    annex = shipped.partition("\n## Annex B: ")[2]
    rows = TEST.findall(annex)
    assert len(rows) == annex.count("::") > 40
    assert len({kind for kind, *_ in rows}) == len(rows)
    for kind, file, function, case in rows:
        body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
        assert function in {item.name for item in body if isinstance(item, ast.FunctionDef)}, kind
        assert case in ("", *(known.title for known in CASES)), kind


def written(text: str) -> set[str]:
    """Keywords of the attributes that the statement says the node writes."""
    tags = re.findall(r"^\| .* \| \((\w{4}),(\w{4})\) \|", section(text, "5.1"), re.MULTILINE)
    return {keyword_for_tag((int(group, 16), int(element, 16))) for group, element in tags}


def copied(text: str) -> list[str]:
    """Keywords of the attributes that the statement says the node copies."""
    table = section(text, "5.1").partition("| attributes | keywords |\n|---|---|\n")[2]
    rows = re.findall(r"^\| .* \| (.*) \|$", table, re.MULTILINE)
    return [keyword for row in rows for keyword in row.split(", ")]


def test_an_attribute_is_written_or_copied_and_known_to_the_dictionary(shipped: str) -> None:
    assert len(written(shipped)) > 30
    assert "" not in written(shipped)
    assert len(copied(shipped)) == len(set(copied(shipped))) > 100
    assert written(shipped) & set(copied(shipped)) <= {"LossyImageCompression"}
    assert "| Synthetic Data | (0008,001C) | `YES` on generated slices" in shipped
    assert "DERIVED\\SECONDARY\\AXIAL\\\\AI_INTERP" in shipped


def test_a_derived_instance_holds_what_is_stated_and_nothing_else(
    shipped: str, tmp_path: Path
) -> None:
    stated = {keyword for keyword in written(shipped) if not keyword.startswith("Overlay")}
    always = stated - {"LossyImageCompression", "DerivationCodeSequence"}
    instances = derived_series(tmp_path)
    assert len(instances) == 5
    for instance in instances:
        overlays = instance.group_dataset(0x6000)
        assert bool(overlays) == (instance.SyntheticData == "YES")
        for element in overlays:
            assert f"| ({element.tag.group:04X},{element.tag.element:04X}) |" in shipped
        keywords = {element.keyword for element in instance if element.tag.group != 0x6000}
        assert keywords <= stated | set(copied(shipped))
        assert always <= keywords
    assert {instance.SyntheticData for instance in instances} == {"YES", "NO"}


def derived_series(folder: Path) -> list[Dataset]:
    """What the node makes of a made series of three slices."""
    paths = phantoms.write(folder / "ct", phantoms.Series(slices=3))
    out = folder / "out"
    out.mkdir()
    headers = read_headers(paths)
    request = Request(
        sources=tuple(Source(h.path, h.uid, h.order) for h in headers),
        model=ModelSpec("linear"),
        parameters=Parameters(factor=2),
        output=Output(presentation_state=False),
        folder=out,
        secret=b"s" * 32,
        started_at=datetime(2026, 1, 2, tzinfo=UTC),
    )
    outcome = pipeline.process(request, progress=lambda _: None, cancelled=lambda: False)
    assert isinstance(outcome, Derived), outcome
    return [dcmread(path) for path in sorted(out.glob("*.dcm"))]


def test_it_says_what_this_node_is_configured_to_do(tmp_path: Path) -> None:
    text = of(
        tmp_path,
        '[node]\nae_title = "MID1"\nport = 104\nallowed_ae_titles = ["CT1"]\n'
        'allowed_networks = ["10.1.0.0/16"]\nmax_associations = 7\nidle_seconds = 60\n'
        "[completion]\nquiet_seconds = 5.0\nopen_association_seconds = 50.0\n"
        '[[destination]]\nname = "arc"\nae_title = "ARC"\nhost = "arc.local"\nport = 105\n'
        '[[route]]\nname = "head"\ncalled_ae_title = "MID4"\nmodel = "linear"\nfactor = 4\n'
        'destinations = []\nmatch = { BodyPartExamined = ["HEAD", "BRAIN"], '
        'instances = { max = 90 }, SeriesDescription = { regex = "a|b" } }\n',
    )
    for expected in (
        "| AE titles answered (called) | `MID1`, `MID4` |",
        "| port | 104 |",
        "| calling AE titles allowed | `CT1` |",
        "| networks allowed | `10.1.0.0/16` |",
        "| associations accepted at once | 7 |",
        "| idle association accepted | 60 s, then aborted |",
        "came for 5 s; while an association that carried it is open, when none came for\n50 s.",
        "| `arc` | `ARC` | arc.local:105 | - | `MID1` |",
        "| `head` | `MID4` | any | BodyPartExamined = `HEAD` or `BRAIN`; instances at most 90; "
        "SeriesDescription matches `a\\|b` | `linear` | factor 4 | none (shadow mode) |",
    ):
        assert expected in text


def test_it_does_not_say_where_the_node_keeps_its_files(tmp_path: Path) -> None:
    assert str(tmp_path) not in of(tmp_path, '[storage]\ndatabase = "sqlite:///secret.db"\n')


def test_no_table_is_broken_by_its_values(shipped: str) -> None:
    tables = re.findall(r"(?:^\|.*\|\n)+", shipped, re.MULTILINE)
    assert len(tables) > 10
    for table in tables:
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(cells) == 1, table.splitlines()[0]


def test_a_configuration_without_limits_says_any() -> None:
    open_to_all: Config = load(ROOT / "config.toml")
    assert open_to_all.node.allowed_ae_titles == ()
    assert "- calling AE titles: any" in statement(open_to_all)
