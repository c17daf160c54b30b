"""The benchmarks' arithmetic, tables, bounds and made instances."""

import collections
import json
import mmap
import os
import random
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from pydicom import dcmread
from rich.console import Console

from inference.registry import REGISTERED
from tests.benchmarks import memory, models, references, run
from tests.benchmarks.rig import SIDE, Setting, Stock
from tests.benchmarks.table import (
    Bound,
    RatioBound,
    Row,
    Subject,
    document,
    interleaved,
    missed,
    ratio,
    rendered,
)


def subject(*values: float, of: tuple[float, ...] = (10.0, 20.0, 100.0)) -> Subject:
    rows = (Row("peer", "inst/s", of, "peer"), Row("ours", "inst/s", values, "peer"))
    return Subject("made", "what was measured", rows)


def test_a_ratio_compares_within_each_repetition() -> None:
    # The machine was slow in the first repetition and fast in the last, for both of them: the
    # medians' own ratio, 30 / 20, would say something else.
    found = subject(20.0, 30.0, 300.0)
    assert ratio(found.row("ours"), found) == 2.0
    assert ratio(found.row("peer"), found) == 1.0


def test_a_reference_that_does_not_exist_or_was_not_measured_as_often_is_a_mistake() -> None:
    lost = Row("ours", "s", (1.0,), "theirs")
    with pytest.raises(KeyError, match="made has no row 'theirs'; it has ours"):
        ratio(lost, Subject("made", "", (lost,)))
    found = subject(1.0, 2.0)
    with pytest.raises(ValueError, match="longer"):
        ratio(found.row("ours"), found)


def test_rows_are_measured_alternately_and_in_another_order_each_time() -> None:
    asked: list[str] = []

    def row(name: str) -> float:
        asked.append(name)
        return float(len(asked))

    names = ["a", "b", "c", "d"]
    rows = {name: lambda name=name: row(name) for name in names}
    told: list[tuple[str, int, int]] = []
    measured = interleaved(rows, 5, random.Random(1), lambda *told_: told.append(told_))
    passes = [asked[start : start + 4] for start in range(0, 20, 4)]
    assert all(sorted(one) == names for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    assert list(measured) == names
    for name in names:  # the value of each repetition stands in its place
        assert measured[name] == [4.0 * i + one.index(name) + 1 for i, one in enumerate(passes)]
    assert [name for name, _, _ in told] == asked
    assert [(done, total) for _, done, total in told] == [(i, 20) for i in range(20)]


def test_the_document_has_the_form_that_other_programs_read() -> None:
    found = document([subject(20.0, 30.0, 300.0)])
    assert json.loads(json.dumps(found)) == found
    assert found["made"]["ours"] == {
        "median": 30.0,
        "unit": "inst/s",
        "ratio": 2.0,
        "least": 20.0,
        "most": 300.0,
    }
    assert list(found) == ["made"]
    assert list(found["made"]) == ["peer", "ours"]


def test_a_bound_is_missed_where_a_single_repetition_misses_it() -> None:
    bound = Bound("made", "ours", below=60.0)
    assert missed([bound], [subject(1.0, 2.0, 59.9)]) == []
    assert missed([bound], [subject(1.0, 2.0, 60.0)]) == [
        "made, ours: 60.0 inst/s, allowed is less than 60 inst/s"
    ]


def test_a_bound_on_a_ratio_takes_the_median_of_the_repetitions() -> None:
    measured_rows = [subject(20.0, 30.0, 90.0)]  # 2.0, 1.5 and 0.9 times the peer
    kept = [
        RatioBound("made", "ours", at_least=1.5),
        RatioBound("made", "ours", at_most=1.5),
        RatioBound("made", "peer", at_most=0.7, to="ours"),
        RatioBound("delivery", "ours", at_least=9.0),  # not measured in this run
    ]
    assert missed(kept, measured_rows) == []
    broken = [
        RatioBound("made", "ours", at_least=1.6),
        RatioBound("made", "ours", at_most=1.4),
        RatioBound("made", "peer", at_most=0.6, to="ours"),
    ]
    assert missed(broken, measured_rows) == [
        "made, ours: 1.5 x peer, allowed is at least 1.6",
        "made, ours: 1.5 x peer, allowed is at most 1.4",
        "made, peer: 0.667 x ours, allowed is at most 0.6",
    ]


def test_a_bound_on_a_ratio_to_nothing_is_missed() -> None:
    bound = RatioBound("made", "ours", at_least=0.5)
    stopped = subject(1.0, 2.0, 3.0, of=(10.0, 0.0, 10.0))
    assert missed([bound], [stopped]) == ["made, ours: no ratio to peer, which was 0"]


def test_the_table_shows_median_spread_ratio_and_what_it_refers_to() -> None:
    out = StringIO()
    Console(file=out, width=120).print(rendered(subject(20.0, 30.0, 300.0)))
    (line,) = (line for line in out.getvalue().splitlines() if "ours" in line)
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells == ["ours", "30.0", "20.0", "300", "inst/s", "2.00", "peer"]
    assert "what was measured" in out.getvalue()


def measured(monkeypatch: pytest.MonkeyPatch, **measures: Callable[[Setting], Subject]) -> None:
    """These subjects instead of the real ones."""
    monkeypatch.setattr(run, "SUBJECTS", measures)


def test_a_run_prints_its_tables_writes_the_document_and_ends_with_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Setting] = []

    def measure(setting: Setting) -> Subject:
        seen.append(setting)
        return subject(20.0, 30.0, 300.0)

    measured(monkeypatch, first=measure, second=measure)
    output = tmp_path / "benchmark.json"
    assert run.main(["second", "--output", str(output)]) == 0
    (setting,) = seen
    assert (setting.repetitions, setting.is_quick) == (5, False)
    assert json.loads(output.read_text())["made"]["ours"]["ratio"] == 2.0
    said = capsys.readouterr().out
    assert said.index("cores, load") < said.index("what was measured") < said.index("seed 1")


def test_a_missed_bound_ends_a_run_with_1_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grown = Subject("memory", "", (Row(memory.GROWTH, "MB", (60.5, 1.0)),))
    measured(monkeypatch, memory=lambda _: grown)
    assert run.main(["--output", str(tmp_path / "b.json")]) == 1
    assert "missed: memory, Midslice, growth: 60.5 MB" in capsys.readouterr().out


def test_a_subject_that_fails_ends_a_run_with_1_after_the_others_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(setting: Setting) -> Subject:
        raise AssertionError("STORESCP has taken 299 of 300 instances")

    measured(monkeypatch, first=fail, second=lambda _: subject(1.0, 2.0, 3.0))
    output = tmp_path / "benchmark.json"
    assert run.main(["--output", str(output)]) == 1
    assert list(json.loads(output.read_text())) == ["made"]
    said = capsys.readouterr().out
    assert "first was not measured: STORESCP has taken 299 of 300 instances" in said


@pytest.fixture
def stock(tmp_path: Path) -> Stock:
    return Stock(tmp_path / "stock", 6, series=2)


def uids(stock: Stock) -> list[tuple[str, str, str]]:
    headers = [dcmread(file) for file in stock.files]
    for header in headers:
        assert header.file_meta.MediaStorageSOPInstanceUID == header.SOPInstanceUID
    return [(h.StudyInstanceUID, h.SeriesInstanceUID, h.SOPInstanceUID) for h in headers]


def test_the_stock_is_ct_of_512_x_512_in_several_series_of_one_study(stock: Stock) -> None:
    found = uids(stock)
    assert len({study for study, _, _ in found}) == 1
    assert sorted(collections.Counter(series for _, series, _ in found).values()) == [3, 3]
    assert [uid for _, _, uid in found] == [stock.instance_uid(number) for number in range(6)]
    assert len({uid for _, _, uid in found}) == 6
    header = dcmread(stock.files[0])
    assert header.pixel_array.shape == (SIDE, SIDE)
    assert header.BitsAllocated == 16


def test_a_new_stamp_gives_every_level_uids_that_were_never_used(stock: Stock) -> None:
    seen: set[str] = set()
    for _ in range(3):
        fresh = {uid for of_one in uids(stock) for uid in of_one}
        assert not fresh & seen
        seen |= fresh
        stock.stamp()


def test_memory_that_is_taken_and_given_back_while_it_is_watched_is_growth() -> None:
    with memory.watching(os.getpid()) as watch, mmap.mmap(-1, 80 * 2**20) as taken:
        for offset in range(0, len(taken), mmap.PAGESIZE):  # never pages that were freed before
            taken[offset] = 1
        watch.look()
    assert 70.0 < watch.growth < 250.0
    assert watch.most == watch.before + watch.growth


def test_every_model_that_makes_no_slices_has_a_series_and_bounds() -> None:
    assert {entry.name for entry in REGISTERED if entry.produces != "slices"} <= set(models.CASES)
    assert all(case.megabytes <= 3000.0 for case in models.CASES.values())


def test_models_of_the_brain_stand_beside_the_published_program() -> None:
    ours = {"seconds": 8.0, "processor": 12.0, "predicting": 3.0, "megabytes": 1300.0}
    theirs = {"seconds": 6.0, "processor": 9.0, "volume_cm3": 1500.0, "megabytes": 1600.0}
    values = {"deepbet": [theirs], "brain": [ours], "haemorrhage": [ours]}
    found = Subject("models", "", tuple(models.rows_of(values, ["deepbet"])))
    assert ratio(found.row("brain, mask alone"), found) == 0.5
    assert ratio(found.row("brain, memory"), found) == 1300.0 / 1600.0
    assert found.row("haemorrhage").reference == ""
    alone = Subject("models", "", tuple(models.rows_of({"brain": [ours]}, [])))
    assert {row.reference for row in alone.rows} == {""}


def test_a_program_that_cannot_be_installed_is_named_with_the_reason(tmp_path: Path) -> None:
    nothing = references.Reference("none", (f"none @ {(tmp_path / 'none.whl').as_uri()}",))
    assert "none.whl" in references.installed(nothing, tmp_path / "target")
