"""The parts of the demo that need no network: its children, its pictures, its report."""

import io
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from rich.console import Console

from node.config import load
from node.demo import report
from node.demo.peers import (
    DemoError,
    DicomAddress,
    NodeChild,
    Program,
    exclusive,
    signals_deferred,
    stopped_by_signals,
    tail,
)
from node.demo.report import ComparedSlice, Comparison, DemoResult, TimelinePhase
from node.demo.run import DATA, DemoConsole, DemoSettings, run
from node.second_opinion import Check, ImageSeries
from tests.peers import wait_until

FILES = sorted((DATA / "received").glob("*.dcm"))[:3]


def python(code: str, tmp_path: Path, **more: float) -> Program:
    return Program([sys.executable, "-c", code], log=tmp_path / "child.log", **more)


def test_a_child_ends_when_asked_and_its_words_are_kept(tmp_path: Path) -> None:
    child = python("import time; print('hello'); time.sleep(60)", tmp_path)
    wait_until(lambda: "hello" in tail(tmp_path / "child.log"), what="its first word")
    assert child.is_alive
    assert child.stop() == -signal.SIGTERM
    assert not psutil.pid_exists(child.pid)
    assert child.output() == str(child) == "hello\n"


def test_a_child_that_does_not_listen_is_made_to_end(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf'); time.sleep(60)"
    child = python(deaf, tmp_path, stop_seconds=0.2)
    wait_until(lambda: str(child) == "deaf\n", what="it is deaf")
    assert child.stop() == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_demo_in_order(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), stopped_by_signals():
        os.kill(os.getpid(), number)
        threading.Event().wait(5.0)
    assert signal.getsignal(number) is before


def test_a_signal_waits_for_what_must_not_be_disturbed() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt), stopped_by_signals(), signals_deferred():
        signal.raise_signal(signal.SIGINT)
        steps.append("went on")
    assert steps == ["went on"]


def test_two_demos_do_not_share_a_folder(tmp_path: Path) -> None:
    words = io.StringIO()
    with exclusive(tmp_path):
        assert run(tmp_path, DemoSettings(), Console(file=words, width=200)) == 1
    assert f"another demo runs in {tmp_path}" in words.getvalue()


def test_a_new_run_removes_what_an_earlier_one_left_and_nothing_else(tmp_path: Path) -> None:
    for name in ("node/received/old.dcm", "derived/0001.dcm", "own/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "report.html").touch()
    with exclusive(tmp_path):
        left = {path.name for path in tmp_path.iterdir()}
    assert left == {".lock", "own"}


NODE = """
import json, sys, time
for event in {events!r}:
    print(json.dumps(event)); print("no JSON")
time.sleep({seconds})
"""


@pytest.fixture
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NodeChild]:
    """A program that says some events in its log, and then lives for some seconds."""
    events, seconds = request.param
    script = tmp_path / "midslice"
    script.write_text(f"#!{sys.executable}\n" + NODE.format(events=events, seconds=seconds))
    script.chmod(0o755)
    node = NodeChild(tmp_path / "config.toml", log=tmp_path / "node.log", program=script)
    yield node
    node.child.stop()


QUEUED = [{"event": "job queued", "job": 7}, {"event": "job queued", "job": 8}]
REFUSED = {"event": "job refused", "reason": "TOO_FEW_SLICES"}
HELD = {"event": "delivery held", "reason": "REFUSED_BY_PEER"}


@pytest.mark.parametrize("node", [(QUEUED, 60)], indirect=True)
def test_an_event_of_the_node_is_waited_for(node: NodeChild) -> None:
    assert node.wait("job queued", 20.0)["job"] == 7
    assert node.wait("job queued", 20.0, count=2)["job"] == 8
    assert node.find("job queued", job=8) == [QUEUED[1]]
    with pytest.raises(DemoError, match=r"not within 0\.1 s: job running"):
        node.wait("job running", 0.1)


@pytest.mark.parametrize(
    ("node", "problem"),
    [
        (([REFUSED], 60), "job refused TOO_FEW_SLICES"),
        (([HELD], 60), "delivery held REFUSED_BY_PEER"),
        (([{"event": "job failed"}], 60), "job failed"),
        (([], 0), "ended by itself before: job succeeded"),
    ],
    indirect=["node"],
)
def test_a_bad_end_is_not_waited_out(node: NodeChild, problem: str, tmp_path: Path) -> None:
    with pytest.raises(DemoError, match=problem) as error:
        node.wait("job succeeded", 30.0)
    assert error.value.log == tmp_path / "node.log"


@pytest.fixture(scope="module")
def received() -> ImageSeries:
    return ImageSeries.read(FILES)


@pytest.fixture(scope="module")
def acquired() -> ImageSeries:
    return ImageSeries.read(sorted((DATA / "acquired").glob("*.dcm"))[: len(FILES) - 1])


def test_cuts_of_two_series_show_the_same_place(
    received: ImageSeries, acquired: ImageSeries
) -> None:
    both = ImageSeries.of([*received.slices, *acquired.slices])
    for cut in (report.SAGITTAL, report.CORONAL):
        thick = report.reformat(received, received.volume(), cut, 600)
        thin = report.reformat(both, both.volume(), cut, 600)
        assert thick.size == thin.size
        difference = np.asarray(thick, float) - np.asarray(thin, float)
        assert np.abs(difference[[0, -1]]).max() <= 1.0  # the outer slices are the same ones
        assert np.abs(difference).max() > 20.0  # those between are not


def test_the_picture_of_the_readme_is_small_and_whole(
    tmp_path: Path, received: ImageSeries
) -> None:
    path = tmp_path / "before-after.png"
    report.save_small(report.before_after(received, received), path)
    with Image.open(path) as picture:
        assert picture.width == 1200
    shipped = DATA.with_name("before-after.png")
    assert shipped.stat().st_size < 300_000


def demo_result(
    received: ImageSeries, acquired: ImageSeries, folder: Path, *checks: Check
) -> DemoResult:
    both = ImageSeries.of([*received.slices, *acquired.slices])
    return DemoResult(
        at=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        received=received,
        derived=both,
        acquired=acquired,
        comparison=report.compare(received, received, acquired),
        checks=checks,
        phases=(
            TimelinePhase("Receive", "words", 0.0, 1.5),
            TimelinePhase("Model", "words", 1.5, 4.0),
        ),
        model="<script>alert(1)</script>",
        pacs="Orthanc",
        machine="2 cores",
        folder=folder,
        licence="# Title\n\nCC BY 3.0, cite `this`.",
    )


COUNT = Check("Count", ok=True, detail="5")


def test_the_report_needs_nothing_but_itself(
    received: ImageSeries, acquired: ImageSeries, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    report.write(demo_result(received, acquired, tmp_path, COUNT), path)
    page = path.read_text()
    assert "default-src 'none'" in page
    assert re.findall(r'(?:src|href)="(?!data:)[^"]*"|url\(|@import|fetch\(', page) == []
    assert "all 1 checks passed" in page
    assert "CC BY 3.0, cite this." in page
    assert page.count("data:image/jpeg") >= 6 + 5  # two cuts of three series, five slices
    assert "Confidence of the model" not in page  # none was stated


def test_the_report_says_what_is_wrong_and_runs_nobodys_script(
    received: ImageSeries, acquired: ImageSeries, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    bad = Check("Same patient", ok=False, detail="PatientID is <b>another</b>")
    report.write(demo_result(received, acquired, tmp_path, COUNT, bad), path)
    page = path.read_text()
    assert "1 of 2 checks failed" in page
    assert "&lt;b&gt;another&lt;/b&gt;" in page
    assert "<script>alert" not in page


def test_the_report_shows_the_stated_confidence_of_each_slice(
    received: ImageSeries, acquired: ImageSeries, tmp_path: Path
) -> None:
    stated = ImageSeries.of(deepcopy(acquired.slices))
    for number, header in enumerate(stated.headers):
        words = f"not acquired; expected error {20 + number} HU, confidence 0.{90 - number}"
        header.DerivationDescription = words
    path = tmp_path / "report.html"
    report.write(demo_result(received, stated, tmp_path), path)
    page, count = path.read_text(), len(stated)
    assert page.count("<rect ") == count
    assert f"confidence 0.{91 - count} to 0.90" in page
    assert "confidence 0.90, expected error 20 HU</title>" in page
    assert page.count('"confidence": 0.') == count  # the viewer says it of the slice shown


@pytest.mark.parametrize(
    ("check", "texts"),
    [
        (COUNT, ("All 1 checks passed, in 12 s.", "3 slices became 5.", "report.html")),
        (
            Check("Same patient", ok=False, detail="PatientID is [red]another[/red]"),
            (
                "✕ fault",
                "PatientID is [red]another[/red]",  # text, never markup
                "1 of 1 checks failed.",
                "the last line of the log",
            ),
        ),
    ],
)
def test_the_verdict_says_what_came_of_it(
    received: ImageSeries,
    acquired: ImageSeries,
    tmp_path: Path,
    check: Check,
    texts: tuple[str, ...],
) -> None:
    printed = io.StringIO()
    screen = DemoConsole(Console(file=printed, width=160))
    result = demo_result(received, acquired, tmp_path, check)
    screen.table(result.checks)
    log = tmp_path / "node.log"
    log.write_text("the last line of the log\n")
    screen.verdict(result, tmp_path / "report.html", 12.0, log)
    assert [text for text in texts if text not in printed.getvalue()] == []
    assert ("the last line" in printed.getvalue()) is not check.ok


def test_the_demo_writes_a_configuration_that_the_node_accepts(tmp_path: Path) -> None:
    settings = DemoSettings(model="linear", target_spacing_mm=2.5, quiet_seconds=0.5)
    config = load(settings.configure(tmp_path / "config.toml", DicomAddress("PACS", 4711)))
    (route,), (destination,) = config.routes, config.destinations
    assert (route.model, route.target_spacing_mm, route.destinations) == ("linear", 2.5, ("pacs",))
    assert (destination.ae_title, destination.port) == ("PACS", 4711)
    assert config.completion.quiet_seconds == 0.5
    assert config.node.port == config.web.port == 0
    assert config.node.host == "127.0.0.1"
    assert config.storage.folder == tmp_path / "node"


def test_the_generator_is_used_where_its_weights_are() -> None:
    weights = DATA.parents[2] / "inference" / "models" / "midslice.safetensors"
    assert DemoSettings().model_used == ("midslice" if weights.exists() else "linear")
    assert DemoSettings(model="linear").model_used == "linear"


def test_the_truth_itself_is_closer_than_linear_interpolation(
    received: ImageSeries, acquired: ImageSeries
) -> None:
    perfect = ImageSeries.of([*received.slices, *acquired.slices])
    compared = report.compare(received, perfect, acquired)
    assert compared.closer == len(compared.slices) == len(acquired)
    assert compared.generated_db == float("inf")
    assert 25.0 < compared.linear_db < 45.0
    assert compared.check(must_gain=True).ok


@pytest.mark.parametrize(
    ("gains_db", "acquired", "must_gain", "ok"),
    [
        ((0.1, -0.05), 2, True, True),
        ((-0.1, 0.05), 2, True, False),
        ((0.0, 0.0), 2, True, False),
        ((0.0, -0.01), 2, False, True),  # linear itself, rounded to stored values
        ((-0.1, 0.0), 2, False, False),
        ((1.0,), 2, True, False),  # a place was not filled
        ((), 0, False, False),
    ],
)
def test_a_result_must_gain_over_linear_interpolation_where_a_gain_is_due(
    gains_db: tuple[float, ...], acquired: int, *, must_gain: bool, ok: bool
) -> None:
    plane = np.zeros((2, 2))
    slices = tuple(ComparedSlice(0.0, 30.0 + gain, 30.0, plane) for gain in gains_db)
    assert Comparison(slices, acquired).check(must_gain=must_gain).ok is ok


def test_the_typical_slice_has_the_median_gain() -> None:
    plane = np.zeros((2, 2))
    slices = tuple(ComparedSlice(h, 30.0 + h, 30.0, plane) for h in (5.0, 1.0, 3.0, 2.0, 4.0))
    assert Comparison(slices, 5).typical.gain_db == pytest.approx(3.0)


def test_psnr_is_that_of_the_window() -> None:
    true = np.zeros((4, 4))
    assert report.psnr(true + 30.72, true) == pytest.approx(40.0)
    assert report.psnr(true, true) == float("inf")
    assert report.psnr(true + 5000.0, true + 4000.0) == float("inf")  # both above the window
