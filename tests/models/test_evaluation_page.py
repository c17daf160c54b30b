"""What comes of an evaluation: tables, Markdown, JSON, and one whole page."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from inference.training.report import (
    BOUNDS_COLUMNS,
    COLUMNS,
    GATE_COLUMNS,
    MISSED_COLUMNS,
    OVERVIEW_COLUMNS,
    RELIABILITY_COLUMNS,
    card,
    markdown,
    page_of,
    table_rows,
)
from tests.models.judged import NAMES, Knowing, Lazy, hu_of, study_of
from tests.models.made import drifting, write_series


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thin made series at 1 mm: a body that drifts and grows along z."""
    root = tmp_path_factory.mktemp("thin")
    write_series(root, drifting())
    return root


def test_a_result_is_json(data: Path) -> None:
    found = study_of(data, Lazy(), 2, targets=2, gates=True)
    read = json.loads(json.dumps(found.as_json()))
    assert read["model"] == "lazy"
    first = read["cells"][0]
    assert (first["series"], first["factor"], first["anatomy"]) == ("drifting", 2, "head")
    assert first["methods"]["linear"]["over_linear_db"] == 0.0
    assert len(first["targets"]) == len(first["gains_db"]) == 2
    assert "panels" not in first
    assert {row["verdict"] for row in read["gates"]} <= {"passed", "missed", "not measured"}


def test_a_report_has_a_row_for_each_method(data: Path) -> None:
    cells = study_of(data, Lazy(), 2, 3, targets=2).cells
    rows = table_rows(cells)
    assert len(rows) == 2 * 7
    assert all(len(row) == len(COLUMNS) for row in rows)
    assert {row[2] for row in rows} == {*NAMES, "lazy"}
    lines = markdown(COLUMNS, rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert lines[0].startswith("| series | cell | method |")


def test_the_card_has_every_table_in_markdown(data: Path) -> None:
    found = study_of(data, Knowing(hu_of(data), 2), 2, targets=2, gates=True)
    written = card(found.cells, found.rows)
    tables = COLUMNS, OVERVIEW_COLUMNS, RELIABILITY_COLUMNS, BOUNDS_COLUMNS
    for heads in (*tables, GATE_COLUMNS, MISSED_COLUMNS):
        assert f"| {' | '.join(heads)} |" in written
    widths = {line.count("|") for line in written.splitlines() if line.startswith("| drifting")}
    assert widths == {len(heads) + 1 for heads in tables}


class Page(HTMLParser):
    """Tags that are opened and closed in order, and every address on the page."""

    VOID = frozenset({"meta", "img", "br", "line", "link", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.pictures = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.pictures += tag == "img"
        self.addresses += [v for k, v in attributes if k in ("src", "href", "data") and v]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [v for k, v in attributes if k in ("src", "href", "data") and v]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_nobody_for_anything(data: Path) -> None:
    found = study_of(data, Lazy(), 2, targets=3, gates=True, pictures=True)
    page = page_of(found)
    reader = Page()
    reader.feed(page)
    assert reader.open == []
    assert reader.pictures == len(found.cells) * 3 * 6  # the worst; A, truth, three, one error
    assert all(address.startswith("data:image/jpeg;base64,") for address in reader.addresses)
    assert "<script" not in page
    assert not re.search(r"https?://|url\(|@import", page)
    assert "default-src 'none'" in page
    assert page.count("<circle") == sum(len(cell.targets) for cell in found.cells)
    assert 'id="gates"' in page
    assert "missed" in page


def test_a_name_that_is_code_is_text_on_the_page(tmp_path: Path) -> None:
    write_series(tmp_path, drifting(9, name="<script>alert(1)<"))
    page = page_of(study_of(tmp_path, Lazy(), 2, targets=2))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
