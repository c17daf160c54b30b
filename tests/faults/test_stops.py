"""Starts that cannot be, stops that must be quick, and a database that is busy meanwhile."""

import os
import signal
import socket
import sqlite3
import time
from pathlib import Path

import pytest

from tests import series
from tests.node_process import NodeProcess, destination, route, running, wait_for
from tests.peers import Script, scripted_scp, storescu

ROOT = Path(__file__).parents[2]
SLOW = '\n[[model]]\nname = "slow"\nclass = "tests.faulty_models:Slow"\n'


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_a_port_that_is_taken_ends_the_start_with_the_key_and_leaves_no_process(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        node = NodeProcess(tmp_path / "node", route(destinations=[]), port=port)
        with pytest.raises(AssertionError, match=rf"node\.port = {port}"):
            node.start()
        assert node.wait(30.0) == 2


def test_a_second_node_on_the_same_storage_is_refused_and_the_first_goes_on(
    tmp_path: Path,
) -> None:
    first = NodeProcess(tmp_path / "node", SLOW, route(model="slow", destinations=[]))
    with running(first):
        storescu(first.port, *series.thick(24), options=("-xt",))
        first.event("job running")
        second = NodeProcess(tmp_path / "node", SLOW, route(model="slow", destinations=[]))
        with pytest.raises(AssertionError, match="is running on "):
            second.start()
        assert second.wait(30.0) == 2
        first.hurry()
        first.event("job succeeded")
        assert not first.found("lease lost")
        assert first.jobs()[0]["attempt"] == 1


def test_a_signal_to_the_whole_group_counts_no_death(tmp_path: Path) -> None:
    node = NodeProcess(
        tmp_path / "node", SLOW, route(model="slow", destinations=[]), shutdown_seconds=1.0
    )
    with running(node):
        storescu(node.port, *series.thick(16), options=("-xt",))
        node.event("job running")
        os.killpg(os.getpgid(node.pid), signal.SIGTERM)
        assert node.wait() == 0
        assert not node.found("worker died")
        (job,) = node.jobs()
        (attempt,) = node.cli("job", str(job["id"]))["attempts"]
        assert (job["state"], attempt["outcome"]) == ("queued", "released")


def test_a_peer_that_stalls_does_not_keep_the_node_from_stopping(tmp_path: Path) -> None:
    stalls = Script(stall_at=1)
    with scripted_scp(stalls) as one:
        node = NodeProcess(
            tmp_path / "node",
            destination("one", "SCRIPTED", one),
            route(destinations=["one"]),
            shutdown_seconds=1.0,
        )
        with running(node):
            storescu(node.port, *series.thick(3), options=("-xt",))
            wait_for("the peer stalls", lambda: stalls.received)
            began = time.monotonic()
            node.terminate()
            assert node.wait(30.0) == 0
            assert time.monotonic() - began < 15.0
            stalls.stop.set()
            node.start()  # the lease was given back: nothing waits for it to end
            node.event("delivery sent", seconds=30)


def test_a_result_waits_for_a_database_that_is_busy(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path / "node", SLOW, route(model="slow", destinations=[]))
    with running(node):
        storescu(node.port, *series.thick(3), options=("-xt",))
        node.event("job running")
        database = tmp_path / "node" / "var" / "midslice.db"
        with sqlite3.connect(database, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")  # a backup, say
            node.event("lease not renewed", count=2)  # while the model runs, and with its result
            other.execute("ROLLBACK")
        other.close()
        node.event("job succeeded", seconds=60)
        assert node.jobs()[0]["attempt"] == 1
