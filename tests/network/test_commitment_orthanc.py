"""Storage commitment between a whole node and Orthanc, each in both roles."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import series
from tests.node_process import NodeProcess, destination, route, running, wait_for
from tests.peers import Orthanc, orthanc, storescu
from tests.ports import HOST, free_port

SENDER = """
[[sender]]
ae_title = "PACS"
silent_hours = 0
commitment = {{ host = "127.0.0.1", port = {port} }}
"""


@pytest.fixture
def node_port() -> int:
    return free_port()


@pytest.fixture
def pacs(tmp_path: Path, node_port: int) -> Iterator[Orthanc]:
    """An Orthanc that knows the node, and may be asked by it for storage commitment."""
    node = {"AET": "MIDSLICE", "Host": HOST, "Port": node_port, "AllowStorageCommitment": True}
    known = {"DicomModalities": {"midslice": node}}
    with orthanc(tmp_path / "pacs", ae_title="PACS", configuration=known) as server:
        yield server


def test_a_delivery_is_confirmed_by_orthanc_also_after_a_kill(
    tmp_path: Path, pacs: Orthanc, node_port: int
) -> None:
    node = NodeProcess(
        tmp_path / "node",
        destination("pacs", "PACS", pacs.address.port, "commitment = { }\n"),
        route(),
        port=node_port,
    )
    with running(node):
        assert storescu(node.port, *series.thick(3), options=("-xt",)).code == 0
        confirmed = node.event("delivery confirmed")
        assert (confirmed["destination"], confirmed["instances"]) == ("pacs", 5)
        (job,) = node.jobs()
        (delivery,) = job["deliveries"]
        assert (delivery["state"], delivery["sent"], delivery["confirmed"]) == ("confirmed", 5, 5)
        node.cli("redeliver", str(job["id"]))
        node.event("delivery sent", count=2)
        node.kill()
        node.start()
        wait_for("the proof", lambda: node.jobs()[0]["deliveries"][0]["state"] == "confirmed")


def test_orthanc_is_told_what_the_node_keeps(tmp_path: Path, pacs: Orthanc, node_port: int) -> None:
    node = NodeProcess(tmp_path / "node", SENDER.format(port=pacs.address.port), port=node_port)
    with running(node):
        files = series.thick(3)
        assert storescu(pacs.address.port, *files, called="PACS", options=("-xt",)).code == 0
        resources = pacs.get("/instances")
        pacs.post("/modalities/midslice/store", resources[:2])
        asked = {"DicomInstances": [], "Resources": resources}
        answer = pacs.post("/modalities/midslice/storage-commitment", asked)

        def reported() -> dict[str, Any] | None:
            state: dict[str, Any] = pacs.get(answer["Path"])
            return state if state["Status"] != "Pending" else None

        report = wait_for("a report", reported)
        assert report["Status"] == "Failure"
        assert (len(report["Success"]), len(report["Failures"])) == (2, 1)
        assert report["Failures"][0]["FailureReason"] == 0x0112
        node.event("commitment answered", committed=2, failed=1)
