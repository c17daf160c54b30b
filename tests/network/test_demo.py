"""The demo as a real process: a real node, a real PACS, real slices; nothing of it stays behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydicom import dcmread

from node.second_opinion import CHECKS

SLICES, FACTOR = 4, 2
CODE = """
import sys
from pathlib import Path
from rich.console import Console
from node.demo.run import DemoSettings, run
settings = DemoSettings(model="linear", target_spacing_mm=2.5, quiet_seconds=0.5, {more})
console = Console(stderr=True, width=160, highlight=False)
sys.exit(run(Path({folder!r}), settings, console, json=True))
"""
ROOT = Path(__file__).resolve().parents[2]


class Demo:
    """One run of the demo in a process of its own; what it tells is kept."""

    def __init__(self, folder: Path, more: str) -> None:
        self.folder = folder
        self._told: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-c", CODE.format(folder=str(folder), more=more)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def told(self) -> str:
        """What a person has seen so far."""
        return "".join(self._told)

    def wait_until(self, words: str, seconds: float = 60.0) -> None:
        """Wait until a person sees these words."""
        self._until(lambda: words in self.told(), f"it tells {words!r}", seconds)

    def interrupt(self) -> None:
        """Ctrl-C, to the demo alone: its children hear of it from the demo."""
        os.kill(self._process.pid, signal.SIGINT)

    def result(self, seconds: float = 100.0) -> tuple[int, dict[str, Any]]:
        """Its exit status and its JSON document, once it has ended."""
        assert self._process.stdout is not None
        self._until(lambda: self._process.poll() is not None, "it ends", seconds)
        document = self._process.stdout.read()
        self._reader.join(10.0)
        return self._process.returncode, json.loads(document)

    def left(self) -> list[str]:
        """Programs that still run on something in its folder."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = " ".join(process.info["cmdline"] or ())
            if str(self.folder) in words:
                found.append(words)
        return found

    def close(self) -> None:
        """End it in every case; a demo ends its own children when it is asked to."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(90.0)
        self._reader.join(10.0)
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()

    def _until(self, is_true: Callable[[], bool], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not is_true():
            ended = self._process.poll() is not None and not self._reader.is_alive()
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}\n{self.told()}"
            assert is_true() or not ended, f"ended before {what}\n{self.told()}"
            threading.Event().wait(0.05)

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._told.append(line)


@pytest.fixture(scope="module", params=["orthanc", "built-in"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A demo that ran to its end: the demo, its exit status, its document."""
    folder = tmp_path_factory.mktemp("demo")
    demo = Demo(folder, f"slices={SLICES}, pacs={request.param!r}")
    try:
        status, document = demo.result()
        yield demo, status, document
    finally:
        demo.close()


def test_the_demo_shows_the_whole_way_and_everything_is_true(finished: Any) -> None:
    demo, status, document = finished
    assert status == 0, demo.told()
    assert document["ok"] is True
    assert document["problem"] == ""
    assert [check for check in document["checks"] if not check["ok"]] == []
    assert len(document["checks"]) == len(CHECKS) + 2
    assert document["slices"] == (SLICES - 1) * FACTOR + 1
    assert 25.0 < document["psnr_db"]["linear"] < 50.0
    assert set(document["seconds"]) == {
        "receive",
        "quiet period",
        "queue",
        "model",
        "delivery",
        "whole demo",
    }
    assert all(seconds >= 0.0 for seconds in document["seconds"].values())


def test_the_derived_series_lies_where_the_demo_says(finished: Any) -> None:
    demo, _, document = finished
    instances = [dcmread(path) for path in Path(document["derived"]).iterdir()]
    assert len(instances) == document["slices"]
    assert {i.SeriesInstanceUID for i in instances} == {document["derived_series_uid"]}
    assert sum(i.SyntheticData == "YES" for i in instances) == SLICES - 1
    assert Path(document["derived"]).parent == demo.folder


def test_the_report_tells_what_was_found(finished: Any) -> None:
    _, _, document = finished
    page = Path(document["report"]).read_text()
    assert f"all {len(CHECKS) + 2} checks passed" in page
    assert document["derived_series_uid"] in page
    assert document["pacs"] in page
    assert "CC BY 3.0" in page
    assert 'src="http' not in page


def test_a_person_is_told_each_step(finished: Any) -> None:
    demo, _, document = finished
    steps = (
        "PACS:",
        "Node: MIDSLICE",
        "Scanner: 4 slices, 5 mm",
        "Complete:",
        "Model:",
        "Delivery:",
    )
    told = demo.told()
    places = [told.index(step) for step in steps]
    assert places == sorted(places)
    assert document["report"] in told
    assert "Traceback" not in told


def test_nothing_that_the_demo_started_is_left(finished: Any) -> None:
    demo, _, _ = finished
    assert demo.left() == []
    stopped = json.loads((demo.folder / "node.log").read_text().splitlines()[-1])
    assert stopped["event"] == "node stopped"


def test_a_demo_that_is_stopped_ends_what_it_started(tmp_path: Path) -> None:
    demo = Demo(tmp_path, "slices=4, pacs='orthanc'")
    try:
        demo.wait_until("Node: MIDSLICE")
        assert len(demo.left()) >= 2  # the demo itself, the node, Orthanc
        demo.interrupt()
        status, document = demo.result()
        assert status == 1
        assert document == {"ok": False, "problem": "stopped"}
        assert "The node and the PACS have ended." in demo.told()
        assert demo.left() == []
    finally:
        demo.close()


def test_a_series_without_a_result_fails_with_what_the_node_said(tmp_path: Path) -> None:
    demo = Demo(tmp_path, "slices=1, pacs='built-in'")  # one slice has no gap to fill
    try:
        status, document = demo.result()
        assert status == 1
        assert document["ok"] is False
        assert "job refused TOO_FEW_SLICES" in document["problem"]
        assert f"The end of {tmp_path / 'node.log'}" in demo.told()
        assert '"event": "series complete"' in demo.told()
        assert demo.left() == []
    finally:
        demo.close()
