"""Who may associate with the node, what is negotiated, and how each association ends."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.dicom.admission import Admission
from tests.node_scp import Node, node_scp
from tests.peers import echoscu, wait_until
from tests.raw_peer import (
    ASSOCIATE_AC,
    RELEASE_RP,
    RawPeer,
    associate_request,
    rejection,
)

REJECTED_PERMANENT, REJECTED_TRANSIENT = 1, 2


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with node_scp(tmp_path) as running:
        yield running


def test_several_called_ae_titles_answer_on_one_port(tmp_path: Path) -> None:
    admission = Admission(called_ae_titles=frozenset({"MIDSLICE", "MIDSLICE2"}))
    with node_scp(tmp_path, admission) as node:
        for called, code in (("MIDSLICE", 0), ("MIDSLICE2", 0), ("OTHER", 1)):
            assert echoscu(node.port, called=called).code == code
        with RawPeer(node.port) as peer:
            answer = peer.associate(associate_request(called="OTHER"))
            assert rejection(answer) == (REJECTED_PERMANENT, 1, 7)
        opened = [entry[2] for entry in node.archive.associations if entry[0] == "opened"]
        assert opened == ["MIDSLICE", "MIDSLICE2"]


def test_an_unknown_calling_ae_title_is_rejected_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    admission = Admission(calling_ae_titles=frozenset({"CT1"}))
    with node_scp(tmp_path, admission) as node:
        with RawPeer(node.port) as peer:
            assert rejection(peer.associate()) == (REJECTED_PERMANENT, 1, 3)
        assert node.archive.rejections() == [("RAW", "MIDSLICE", "calling AE title not recognised")]
        assert echoscu(node.port, calling="CT1").code == 0
    rejected = [one for one in caplog.records if one.message == "association rejected"]
    assert rejected[0].__dict__["reason"] == "calling AE title not recognised"
    assert rejected[0].__dict__["calling_ae"] == "RAW"
    assert any(one.message == "association accepted" for one in caplog.records)


def test_a_network_that_is_not_allowed_is_rejected(tmp_path: Path) -> None:
    with node_scp(tmp_path, Admission(networks=("10.0.0.0/8",))) as node:
        with RawPeer(node.port) as peer:
            assert rejection(peer.associate()) == (REJECTED_PERMANENT, 1, 1)
        node.scp.admit(Admission(networks=("10.0.0.0/8", "127.0.0.0/8")))
        assert echoscu(node.port).code == 0


def test_silent_sockets_take_no_places_and_are_closed(tmp_path: Path) -> None:
    with node_scp(tmp_path, max_associations=1, request_seconds=1.0) as node:
        silent = [RawPeer(node.port) for _ in range(12)]
        began = time.monotonic()
        assert echoscu(node.port).code == 0
        assert time.monotonic() - began < 1.0
        assert all(peer.receive() == (0, b"") for peer in silent)
        assert time.monotonic() - began < 10.0
        for peer in silent:
            peer.socket.close()
        assert node.archive.associations[0][0] == "opened"
        assert len(node.archive.associations) == 2  # silent ones are no associations


def test_more_connections_than_may_wait_are_closed_at_once(tmp_path: Path) -> None:
    with node_scp(tmp_path, max_waiting=12, request_seconds=30.0) as node:
        waiting = [RawPeer(node.port) for _ in range(3)]
        with RawPeer(node.port) as one_more:
            assert one_more.receive() == (0, b"")
        waiting.pop().socket.close()
        wait_until(lambda: echoscu(node.port).code == 0, what="a place to wait is free again")
        for peer in waiting:
            peer.socket.close()


SERVE = """
import sys
from pathlib import Path
from node.dicom.admission import Admission
from tests.node_scp import node_scp
with node_scp(Path(sys.argv[1]) / "node") as node:
    print(node.port, flush=True)
    sys.stdin.readline()
"""


def test_a_process_exits_although_an_association_is_open(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        with RawPeer(int(process.stdout.readline())) as peer:
            assert peer.associate()[0] == ASSOCIATE_AC
            process.communicate("stop\n", timeout=20)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


def test_idle_associations_cost_next_to_nothing(node: Node) -> None:
    peers = [RawPeer(node.port) for _ in range(20)]
    assert {peer.associate()[0] for peer in peers} == {ASSOCIATE_AC}
    before = time.process_time()
    threading.Event().wait(1.0)
    assert time.process_time() - before < 0.2  # a nap of a millisecond in each thread: over 0.4
    assert {peer.release() for peer in peers} == {RELEASE_RP}
    for peer in peers:
        peer.socket.close()
