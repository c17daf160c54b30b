"""Query/retrieve with Orthanc and DCMTK: studies are fetched, and series wait for more."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from sqlalchemy import create_engine, text

from tests import series
from tests.node_process import MIDSLICE, NodeProcess, destination, route, running, wait_for
from tests.peers import Orthanc, dcmqrscp, orthanc, storescu
from tests.ports import free_port

BUSY_SECONDS = 180.0  # a job, on a machine whose cores others want too
STUDY_UID = str(dcmread(series.thick(1)[0], stop_before_pixels=True).StudyInstanceUID)


@pytest.fixture
def node_port() -> int:
    return free_port()


@pytest.fixture
def pacs(tmp_path: Path, node_port: int) -> Iterator[Orthanc]:
    with orthanc(
        tmp_path / "pacs", ae_title="PACS", modalities={"midslice": ("MIDSLICE", node_port)}
    ) as server:
        yield server


def asking(folder: Path, node_port: int, pacs_port: int, seconds: float) -> NodeProcess:
    """A node that asks the PACS whether it has more, and waits so long for it."""
    parts = destination("pacs", "PACS", pacs_port), route(destinations=())
    node = NodeProcess(folder, *parts, port=node_port)
    asked = {"ASK": "pacs", "ASK_SECONDS": str(seconds), "QUIET_SECONDS": "1.0"}
    node.environment = {f"MIDSLICE_COMPLETION__{key}": value for key, value in asked.items()}
    return node


def fetch(node: NodeProcess, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [MIDSLICE, "fetch", *arguments, "--config", node.folder / "config.toml"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def arrival_of(node: NodeProcess) -> dict[str, Any]:
    """The one arrival of the series, as its row says."""
    engine = create_engine(node.database_url)
    with engine.connect() as db:
        (row,) = db.execute(text("SELECT * FROM arrival")).mappings()
    engine.dispose()
    return {**row, "evidence": json.loads(row["evidence"])}


def shown(node: NodeProcess) -> str:
    """What a person reads of the series."""
    done = subprocess.run(
        [MIDSLICE, "series", series.SERIES_UID, "--config", node.folder / "config.toml"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "400"},
    )
    return " ".join(done.stdout.split())


def received(node: NodeProcess) -> dict[str, bytes]:
    """The pixels that the node has kept, by SOP Instance UID."""
    files = [dcmread(path) for path in (node.folder / "var" / "received").rglob("*.dcm")]
    return {str(file.SOPInstanceUID): file.PixelData for file in files}


def test_a_study_is_fetched_by_c_get_and_processed_as_if_it_had_been_sent(
    tmp_path: Path, pacs: Orthanc, node_port: int
) -> None:
    files = series.thick(6)
    assert storescu(pacs.address.port, *files, called="PACS", options=("-xt",)).code == 0
    parts = destination("pacs", "PACS", pacs.address.port), route(destinations=())
    with running(NodeProcess(tmp_path / "node", *parts, port=node_port)) as node:
        code, said = fetch(node, "--from", "pacs", "--study", STUDY_UID)
        assert (code, said.strip()) == (0, "6 instances came from PACS by C-GET.")
        assert node.event("study fetched")["how"] == "C-GET"
        node.event("job succeeded", seconds=BUSY_SECONDS)
        arrival = arrival_of(node)
        assert (arrival["calling_ae"], arrival["called_ae"]) == ("PACS", "MIDSLICE")
        evidence = arrival["evidence"]
        assert (evidence["instances"], evidence["open"] + evidence["released"]) == (6, 1)
        sent = {str(ds.SOPInstanceUID): ds.PixelData for ds in map(dcmread, files)}
        assert received(node) == sent
        assert not list((node.folder / "var" / "incoming").iterdir())
        events = node.cli("fetch", "--from", "pacs", "--study", STUDY_UID)
        assert events["state"] == "done"


def test_a_series_comes_by_c_move_where_there_is_no_c_get(tmp_path: Path, node_port: int) -> None:
    known = {"MIDSLICE": node_port}
    files = series.native(series.thick(4), tmp_path / "native")  # it moves nothing compressed
    with dcmqrscp(tmp_path / "pacs", known=known, options=("--disable-get",)) as port:
        assert storescu(port, *files, called="PACS").code == 0
        parts = destination("pacs", "PACS", port), route(destinations=())
        with running(NodeProcess(tmp_path / "node", *parts, port=node_port)) as node:
            wanted = ("--study", STUDY_UID, "--series", series.SERIES_UID)
            code, said = fetch(node, "--from", "pacs", *wanted)
            assert (code, said.strip()) == (0, "4 instances came from PACS by C-MOVE.")
            assert len(received(node)) == 4
            node.event("series complete", instances=4)


def test_what_cannot_be_fetched_is_said_and_leaves_nothing(tmp_path: Path, node_port: int) -> None:
    with dcmqrscp(tmp_path / "pacs", options=("+xt", "--disable-get")) as port:
        assert storescu(port, *series.thick(3), called="PACS", options=("-xt",)).code == 0
        gone = destination("gone", "GONE", free_port())
        parts = destination("pacs", "PACS", port), gone
        with running(NodeProcess(tmp_path / "node", *parts, port=node_port)) as node:
            code, said = fetch(node, "--from", "pacs", "--study", "1.2.3")
            assert (code, said.strip()) == (1, "PACS has no such study.")
            code, said = fetch(node, "--from", "gone", "--study", STUDY_UID)
            assert code == 1
            assert "refuses the connection" in said
            assert fetch(node, "--from", "nobody", "--study", STUDY_UID)[0] == 2
            assert fetch(node, "--from", "pacs", "--study", "not/a/uid")[0] == 2
            code, said = fetch(node, "--from", "pacs", "--study", STUDY_UID)
            assert code == 1
            assert "PACS does not know MIDSLICE: enter the node there." in said
            assert not list((node.folder / "var" / "incoming").iterdir())


def test_a_series_waits_for_what_the_pacs_has_more(
    tmp_path: Path, pacs: Orthanc, node_port: int
) -> None:
    files = series.thick(6)
    assert storescu(pacs.address.port, *files, called="PACS", options=("-xt",)).code == 0
    with running(asking(tmp_path / "node", node_port, pacs.address.port, 60.0)) as node:
        assert storescu(node.port, *files[:4], options=("-xt",)).code == 0
        asked = node.event("peer asked")
        assert (asked["instances"], asked["missing"]) == (6, 2)
        arrival = arrival_of(node)
        assert arrival["completed_at"] is None
        assert "pacs has 2 more of the series: it is waited for them." in shown(node)
        assert storescu(node.port, *files[4:], options=("-xt",)).code == 0
        node.event("series complete", instances=6)
        assert not node.found("series complete", instances=4)
        arrival = arrival_of(node)
        assert arrival["evidence"]["missing"] == 0


def test_a_series_of_which_the_rest_does_not_come_waits_no_longer_than_it_may(
    tmp_path: Path, pacs: Orthanc, node_port: int
) -> None:
    files = series.thick(6)
    assert storescu(pacs.address.port, *files, called="PACS", options=("-xt",)).code == 0
    with running(asking(tmp_path / "node", node_port, pacs.address.port, 2.0)) as node:
        assert storescu(node.port, *files[:4], options=("-xt",)).code == 0
        node.event("series complete", instances=4)
        arrival = arrival_of(node)
        evidence = arrival["evidence"]
        assert (evidence["there"], evidence["missing"]) == (6, 2)
        assert evidence["quiet_seconds"] >= 3.0
        assert "pacs has 2 more, which have not come; it has 6 of the series." in shown(node)


def test_a_series_does_not_wait_for_a_pacs_that_is_away(tmp_path: Path, node_port: int) -> None:
    with running(asking(tmp_path / "node", node_port, free_port(), 60.0)) as node:
        assert storescu(node.port, *series.thick(4), options=("-xt",)).code == 0
        assert "refuses the connection" in node.event("peer not asked")["sentence"]
        node.event("series complete", instances=4)
        wait_for("a job", lambda: node.jobs() or None)
