"""The demo as a real process: a real node, a real PACS, real slices; nothing of it stays behind."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydicom import dcmread

from node.demo.exhibits import EXHIBITS
from node.demo.peers import Program
from node.second_opinion import CHECKS
from tests.peers import wait_until

SLICES, FACTOR = 4, 2
CODE = """
import sys
from pathlib import Path
from rich.console import Console
from node.demo.run import DemoSettings, run
usual = dict(model="linear", target_spacing_mm=2.5, quiet_seconds=0.5)
settings = DemoSettings(**usual | dict({more}))
console = Console(stderr=True, width=160, highlight=False)
sys.exit(run(Path({folder!r}), settings, console, json=True))
"""
ROOT = Path(__file__).resolve().parents[2]
STEPS = ("PACS:", "Node: MIDSLICE", "Scanner: 4 slices, 5 mm", "Complete:", "Model:", "Delivery:")


class Demo:
    """One run of the demo in a process of its own, as a person sees it."""

    def __init__(self, folder: Path, more: str) -> None:
        self.folder = folder
        code = CODE.format(folder=str(folder), more=more)
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.child = Program([sys.executable, "-c", code], stop_seconds=90, environment=environment)

    def result(self) -> tuple[int, dict[str, Any]]:
        """Its exit status and its JSON document, once it has ended."""
        wait_until(lambda: self.child.is_over, what="it ends", seconds=250.0, log=self.child)
        printed = str(self.child)
        return self.child.wait(1.0), json.loads(printed[printed.rindex("\n{\n") :])

    def left(self) -> list[str]:
        """Programs that still run on something in its folder."""
        processes = psutil.process_iter(["cmdline"])
        commands = [" ".join(process.info["cmdline"] or ()) for process in processes]
        return [command for command in commands if str(self.folder) in command]


@pytest.fixture(scope="module", params=["orthanc", "built-in"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A demo that ran to its end: the demo, its exit status, its document."""
    demo = Demo(tmp_path_factory.mktemp("demo"), f"slices={SLICES}, pacs={request.param!r}")
    try:
        yield demo, *demo.result()
    finally:
        demo.child.stop()


@pytest.fixture
def demo(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path, request.param)
    try:
        yield demo
    finally:
        demo.child.stop()


def test_the_demo_shows_the_whole_way_and_everything_is_true(finished: Any) -> None:
    demo, status, document = finished
    assert (status, document["ok"], document["problem"]) == (0, True, ""), str(demo.child)
    assert [check for check in document["checks"] if not check["ok"]] == []
    assert len(document["checks"]) == len(CHECKS) + 2
    assert document["slices"] == (SLICES - 1) * FACTOR + 1
    assert 25.0 < document["psnr_db"]["linear"] < 50.0
    phases = {"receive", "quiet period", "queue", "model", "delivery", "whole demo"}
    assert set(document["seconds"]) == phases
    assert all(seconds >= 0.0 for seconds in document["seconds"].values())


def test_a_person_sees_each_step_the_report_and_the_derived_series(finished: Any) -> None:
    demo, _, document = finished
    printed = str(demo.child)
    places = [printed.index(step) for step in STEPS]
    assert places == sorted(places)
    assert document["report"] in printed
    assert "Traceback" not in printed
    page = Path(document["report"]).read_text()
    assert f"all {len(CHECKS) + 2} checks passed" in page
    assert document["derived_series_uid"] in page
    assert document["pacs"] in page
    headers = [dcmread(path) for path in Path(document["derived"]).iterdir()]
    assert len(headers) == document["slices"]
    assert {header.SeriesInstanceUID for header in headers} == {document["derived_series_uid"]}


def test_nothing_that_the_demo_started_is_left(finished: Any) -> None:
    demo, _, _ = finished
    assert demo.left() == []
    last = json.loads((demo.folder / "node.log").read_text().splitlines()[-1])
    assert last["event"] == "node stopped"


@pytest.mark.parametrize(
    "demo", [f"model={name!r}, pacs='orthanc'" for name in EXHIBITS], indirect=True
)
def test_a_model_of_objects_is_shown_on_its_series(demo: Demo) -> None:
    status, document = demo.result()
    assert (status, document["ok"], document["problem"]) == (0, True, ""), str(demo.child)
    assert [check for check in document["checks"] if not check["ok"]] == []
    page = Path(document["report"]).read_text()
    assert "all 5 checks passed" in page
    for made in document["objects"]:
        assert made["series_uid"] in page
    assert page.count("data:image/jpeg") >= document["received"] + 2  # each slice, two reformats
    assert "data:image/png" in page  # what Orthanc itself drew
    created = (ROOT / "CONFORMANCE.md").read_text().split("\n## 5 ")[1].split("\n## 6 ")[0]
    headers = [dcmread(path) for path in Path(document["results"]).rglob("*.dcm")]
    assert [uid for uid in {h.SOPClassUID for h in headers} if f"`{uid}`" not in created] == []
    assert demo.left() == []


@pytest.mark.parametrize("demo", ["slices=4, pacs='orthanc'"], indirect=True)
def test_a_demo_that_is_stopped_ends_what_it_started(demo: Demo) -> None:
    wait_until(lambda: "Node: MIDSLICE" in str(demo.child), what="it starts", seconds=60.0)
    assert len(demo.left()) >= 2  # the node and Orthanc
    demo.child.signal(signal.SIGINT)  # its children hear of it from the demo
    assert demo.result() == (1, {"ok": False, "problem": "stopped"})
    assert "The node and the PACS have ended." in str(demo.child)
    assert demo.left() == []


@pytest.mark.parametrize("demo", ["slices=1, pacs='built-in'"], indirect=True)
def test_a_series_without_a_result_fails_with_what_the_node_said(demo: Demo) -> None:
    status, document = demo.result()  # one slice has no gap to fill
    assert (status, document["ok"]) == (1, False)
    assert "job refused TOO_FEW_SLICES" in document["problem"]
    assert f"The end of {demo.folder / 'node.log'}" in str(demo.child)
    assert '"event": "series complete"' in str(demo.child)
    assert demo.left() == []
