"""Power cuts and stops at the worst moments: nothing that was acknowledged is lost."""

import os
import sqlite3
import subprocess
import threading
from pathlib import Path

import psutil
import pytest
from pydicom import dcmread

from tests import series
from tests.node_process import NodeProcess, destination, route, running, wait_for
from tests.peers import Script, scripted_scp, storescu

ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("FAULT_ROUNDS", "1"))
SLOW = '\n[[model]]\nname = "slow"\nclass = "tests.faulty_models:Slow"\n'


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def kept(node: NodeProcess) -> set[str]:
    """The SOP Instance UIDs that the database has a readable file for."""
    folder = node.folder / "var"
    with sqlite3.connect(folder / "midslice.db") as db:
        rows = db.execute(
            "SELECT instance_uid, path FROM instance WHERE path IS NOT NULL"
        ).fetchall()
    for uid, path in rows:
        assert dcmread(folder / path).SOPInstanceUID == uid
    return {uid for uid, _ in rows}


def children_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def test_a_clean_stop_in_the_middle_of_receiving_lets_the_association_finish(
    tmp_path: Path,
) -> None:
    files = series.thick(24)
    node = NodeProcess(tmp_path / "node", route(destinations=[]))
    with running(node):
        done: list[int] = []
        scanner = threading.Thread(
            target=lambda: done.append(storescu(node.port, *files, options=("-xt",)).code)
        )
        scanner.start()
        node.event("instance stored", count=3)
        node.terminate()
        assert node.wait() == 0
        scanner.join(30)
        assert done == [0]
        assert len(kept(node)) == len(files)


def test_a_clean_stop_in_the_middle_of_a_job_gives_it_back_without_counting(
    tmp_path: Path,
) -> None:
    node = NodeProcess(
        tmp_path / "node", SLOW, route(model="slow", destinations=[]), shutdown_seconds=1.0
    )
    with running(node):
        storescu(node.port, *series.thick(24), options=("-xt",))
        node.event("job running")
        node.terminate()
        assert node.wait() == 0
        assert node.found("job released")
        (job,) = node.jobs()
        assert job["state"] == "queued"
        node.hurry()
        node.start()
        node.event("job succeeded", seconds=90)


def test_a_clean_stop_in_the_middle_of_sending_sends_only_the_rest_after_the_next_start(
    tmp_path: Path,
) -> None:
    script = Script(stall_at=4)
    with scripted_scp(script) as port:
        node = NodeProcess(
            tmp_path / "node",
            destination("archive", "SCRIPTED", port),
            route(destinations=["archive"]),
            shutdown_seconds=2.0,
        )
        with running(node):
            storescu(node.port, *series.thick(5), options=("-xt",))
            wait_for("the peer stalls", lambda: len(script.received) >= 4)
            node.terminate()
            assert node.wait() == 0
            script.stop.set()
            node.start()
            node.event("delivery sent", seconds=90)
            assert len(set(script.received)) == 9
            assert len(script.received) <= 10


def test_a_second_sigterm_stops_at_once(tmp_path: Path) -> None:
    node = NodeProcess(
        tmp_path / "node", SLOW, route(model="slow", destinations=[]), shutdown_seconds=120.0
    )
    with running(node):
        storescu(node.port, *series.thick(24), options=("-xt",))
        node.event("job running")
        node.terminate()
        node.event("node stopping")
        node.terminate()
        assert node.wait(60.0) == 0
        assert node.jobs()[0]["state"] == "queued"


def test_the_web_process_is_started_again_where_it_dies(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path / "node", route(destinations=[]))
    with running(node):
        ready = ["curl", "-sf", f"http://127.0.0.1:{node.web_port}/readyz"]
        wait_for("ready", lambda: subprocess.run(ready, check=False).returncode == 0)
        for child in children_of(node.pid):
            if any(c.laddr.port == node.web_port for c in child.net_connections() if c.laddr):
                child.kill()
        node.event("web process died")
        wait_for("ready again", lambda: subprocess.run(ready, check=False).returncode == 0)


def test_a_node_with_another_secret_refuses_to_start(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path / "node", route(destinations=[]))
    with running(node):
        pass
    secret = tmp_path / "node" / "var" / "secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    secret.write_text("0" * 64)
    with pytest.raises(AssertionError, match="secret"):
        node.start()
    assert node.wait() != 0
