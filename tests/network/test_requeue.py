"""A job that is held for what its route asks is put back once the route asks for something else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import node_rows, phantoms
from tests.node_process import NodeProcess, destination, route, running
from tests.peers import Storescp
from tests.phantoms import Series
from tests.traffic import send_and_wait, uid_of


def parts(archive: Storescp, more: str = "") -> list[str]:
    pacs = destination("pacs", "STORESCP", archive.port)
    return [pacs, route(destinations=["pacs"], more=more)]


@pytest.fixture
def node(tmp_path: Path, archive: Storescp) -> Iterator[NodeProcess]:
    process = NodeProcess(tmp_path / "node", *parts(archive), quiet_seconds=0.7)
    with running(process):
        yield process


def requeue(node: NodeProcess, job_id: int) -> int:
    """Requeue a job and wait until the node has taken it up; the job that it is now."""
    assert node.cli("requeue", str(job_id))["id"] == job_id
    return int(node.event("job queued", how="requeued")["job"])


def test_a_series_with_a_hole_is_done_without_its_slices_once_the_route_says_so(
    node: NodeProcess, archive: Storescp, tmp_path: Path
) -> None:
    files = phantoms.write(tmp_path / "sent", Series(seed="hole", slices=8, missing=(4,)))
    uid = uid_of(files)
    (held,) = send_and_wait(node, files)
    assert (held.state, held.reason) == ("held", "MISSING_SLICES")
    node.events.clear()
    assert requeue(node, held.id) == held.id  # as the route was, so is the job
    node.event("job held", job=held.id)
    node.events.clear()
    node.configure(*parts(archive, 'across_missing = "leave"\n'), quiet_seconds=0.7)
    node.cli("reload")
    number = requeue(node, held.id)
    assert number != held.id
    node.event("job succeeded", job=number)
    old, new = node_rows.jobs(node, uid)
    assert (old.state, old.reason) == ("cancelled", "ROUTE_CHANGED")
    assert (new.id, new.state) == (number, "succeeded")
    # Sent again it is the same job, and the same series.
    again = send_and_wait(node, files, arrivals=2)
    assert [(job.id, job.derived_uid) for job in again] == [
        (old.id, None),
        (number, new.derived_uid),
    ]
    assert {one.derived_uid for one in node_rows.deliveries(node, uid)} == {new.derived_uid}
