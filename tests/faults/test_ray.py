"""A node whose workers are on a Ray cluster: a head that is away or dies, and a dead worker."""

import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from node.work.ray_executor import RaySettings, ray_executor
from node.work.ray_relay import keep, written
from tests import series
from tests.node_process import NodeProcess, destination, route, running, wait_for
from tests.node_rows import jobs
from tests.peers import Script, scripted_scp, storescu
from tests.ray_cluster import RayCluster, ray_cluster

ROOT = Path(__file__).parents[2]
SLOW = '\n[[model]]\nname = "slow"\nclass = "tests.faulty_models:Slow"\n'
SLICES = 20
MADE = 2 * SLICES - 1


def send(node: NodeProcess, number: int) -> str:
    """Send a series of its own; its UID."""
    uid = str(generate_uid())

    def rename(dataset: Dataset) -> None:
        dataset.SeriesInstanceUID = uid
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()

    files = series.changed(series.thick(SLICES), node.folder / f"sent-{number}", rename)
    assert storescu(node.port, *files, options=("-xt",)).code == 0
    assert dcmread(files[0]).SeriesInstanceUID == uid
    return uid


def node_of(folder: Path, cluster: RayCluster, port: int) -> NodeProcess:
    """A node whose one worker is on the cluster, and whose destination is at that port."""
    node = NodeProcess(
        folder,
        SLOW,
        destination("archive", "SCRIPTED", port),
        route(model="slow", destinations=["archive"]),
        memory_gb=2.0,
        ahead_gb=0.0,
    )
    node.environment = {
        "MIDSLICE_INFERENCE__EXECUTOR": "ray",
        "MIDSLICE_INFERENCE__ADDRESS": cluster.address,
        "MIDSLICE_INFERENCE__OVERTAKING": "false",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    }
    return node


def wait_until_half_made(node: NodeProcess) -> None:
    """Wait until slices of the job that runs have been made."""

    def is_half_made() -> bool:
        with closing(sqlite3.connect(node.folder / "var" / "midslice.db")) as database:
            query = "SELECT 1 FROM job WHERE state = 'running' AND progress > 0.15"
            return database.execute(query).fetchone() is not None

    wait_for("slices are made", is_half_made)


def lacks(node: NodeProcess) -> str:
    """Why jobs wait, as REST says it."""
    at = f"http://127.0.0.1:{node.web_port}/api/v1/nodes"
    return str(httpx.get(at, headers=node.proof).json()[0]["lacks"])


def reasons(node: NodeProcess) -> str:
    """Why jobs wait, as the log says it."""
    return " ".join(event["why"] for event in node.found("jobs wait for a worker"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("rounds", [1, pytest.param(5, marks=pytest.mark.long)])
def test_jobs_wait_for_a_head_and_go_on_after_the_death_of_a_worker_and_of_the_head_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    folder = tmp_path / "node"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MIDSLICE_TEST_HURRY", str(folder / "hurry"))
    script = Script()
    with ray_cluster(start=False) as cluster, scripted_scp(script) as port:
        node = node_of(folder, cluster, port)
        with running(node):
            wait_for("it says what to do", lambda: "ray start --head" in reasons(node))
            wait_for("REST says it too", lambda: "ray start --head" in lacks(node))
            sent = send(node, 0)
            wait_for("it waits", lambda: [it.state for it in jobs(node, sent)] == ["queued"])
            cluster.start_head()
            for done in range(rounds):
                node.event("job running", count=3 * done + 1, seconds=120)
                wait_until_half_made(node)
                psutil.Process(node.found("worker joined")[-1]["pid"]).kill()
                node.event("worker lost", count=done + 1)
                node.event("job running", count=3 * done + 2, seconds=120)
                wait_until_half_made(node)
                cluster.kill(-1)
                node.event("job given back", count=done + 1, seconds=120)
                cluster.start_head()
                node.event("job running", count=3 * done + 3, seconds=120)
                node.hurry()
                node.event("delivery sent", count=done + 1, seconds=120)
                assert [job.state for job in jobs(node, sent)] == ["succeeded"]
                assert len(script.received) == len(set(script.received)) == (done + 1) * MADE
                wait_for("nothing lacks", lambda: not lacks(node))
                if done + 1 < rounds:
                    node.slow_down()
                    sent = send(node, done + 1)


def test_a_worker_that_waits_for_a_machine_is_asked_of_the_next_head() -> None:
    with ray_cluster() as cluster:
        settings = RaySettings(cluster.address, 1.0 + cluster.cpus, 0.0, 1 << 30)
        executor = ray_executor("worker-test", time.monotonic, settings)
        try:
            said = "no machine of the cluster has started a worker yet: it takes 3 processors"
            wait_for("no machine suffices", lambda: executor.lacking().startswith(said))
            cluster.cpus *= 2
            cluster.replace_head()
            wait_for("a machine has the worker", lambda: not executor.lacking(), seconds=90.0)
        finally:
            executor.close()


def test_ray_is_not_imported_where_it_is_not_used() -> None:
    """By the parent not even where its workers are on a cluster."""
    names = "node.app, node.cli, node.work.ray_executor, node.work.ray_relay, inference.pipeline"
    program = f"import {names}, sys; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_links_that_a_worker_leaves_in_its_folder_are_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "result"
    (folder / "previews").mkdir(parents=True)
    (folder / "1.dcm").write_bytes(b"one")
    (folder / "previews" / "2.png").write_bytes(b"two")
    assert dict(written(folder)) == {"1.dcm": b"one", "previews/2.png": b"two"}
    (folder / "3.dcm").symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="symbolic"):
        dict(written(folder))


@pytest.mark.parametrize("name", ["../1.dcm", "/tmp/1.dcm", "previews/../../1.dcm"])
def test_no_file_of_a_worker_is_written_outside_the_folder_of_its_request(
    tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "result"
    folder.mkdir()
    with pytest.raises(OSError, match="leads out of its folder"):
        keep(folder, name, b"")
    assert list(tmp_path.iterdir()) == [folder]
