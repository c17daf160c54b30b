"""What monitoring asks the web process, and what a full disk does to a sender."""

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from tests import series
from tests.node_process import NodeProcess, route, running, wait_for
from tests.peers import storescu


def ask(node: NodeProcess, path: str) -> tuple[int, Any]:
    """The status and the JSON of an answer, whether it is a good one or not."""
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{node.web_port}{path}", timeout=10
        ) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
    except (urllib.error.URLError, TimeoutError):
        return 0, None


@contextmanager
def open_association(node: NodeProcess) -> Iterator[None]:
    """An association that stays open for as long as the block lasts."""
    entity = AE("IDLE")
    entity.add_requested_context(Verification)
    association = entity.associate("127.0.0.1", node.port, ae_title="MIDSLICE")
    assert association.is_established
    try:
        yield
    finally:
        association.release()


def test_a_node_that_serves_is_alive_and_ready(tmp_path: Path) -> None:
    with running(NodeProcess(tmp_path / "node", route(destinations=[]))) as node:
        assert wait_for("alive", lambda: ask(node, "/healthz")[0] == 200)
        assert ask(node, "/readyz") == (200, {"ready": True, "reasons": []})
        status, document = ask(node, "/api/openapi.json")
        assert status == 200
        assert {"/healthz", "/readyz"} <= set(document["paths"])


def test_a_node_that_stops_is_not_ready_while_its_work_ends(tmp_path: Path) -> None:
    with running(NodeProcess(tmp_path / "node", route(destinations=[]))) as node:
        wait_for("alive", lambda: ask(node, "/healthz")[0] == 200)
        with open_association(node):
            node.terminate()
            node.event("node stopping")
            status, answer = ask(node, "/readyz")
            assert status == 503
            assert answer["reasons"] == ["the node is stopping"]
            assert ask(node, "/healthz")[0] == 200
        assert node.wait() == 0


def test_below_its_reserve_the_node_answers_a700_and_says_that_it_is_not_ready(
    tmp_path: Path,
) -> None:
    node = NodeProcess(tmp_path / "node", route(destinations=[]), min_free_gb=1e6)
    with running(node):
        sent = storescu(node.port, *series.thick(2), options=("-xt",))
        assert "Refused: OutOfResources" in sent.output
        node.event("instance not kept")
        wait_for("alive", lambda: ask(node, "/healthz")[0] == 200)
        status, answer = ask(node, "/readyz")
        assert status == 503
        assert "storage.min_free_gb" in answer["reasons"][0]
        assert list((tmp_path / "node" / "var" / "incoming").iterdir()) == []


def test_a_live_stream_ends_with_the_node_and_keeps_it_from_nothing(tmp_path: Path) -> None:
    with running(NodeProcess(tmp_path / "node", route(destinations=[]))) as node:
        wait_for("alive", lambda: ask(node, "/healthz")[0] == 200)
        stream = urllib.request.urlopen(f"http://127.0.0.1:{node.web_port}/live", timeout=60)
        assert stream.readline() == b"event: hello\n"
        node.terminate()
        assert node.wait() == 0
        assert stream.read().endswith(b"\n\n")  # to its end: nothing was cut
        stream.close()
        assert "Traceback" not in node.output()


def test_a_running_node_tries_its_rules_and_states_its_conformance(tmp_path: Path) -> None:
    with running(NodeProcess(tmp_path / "node", route(destinations=[]))) as node:
        wait_for("alive", lambda: ask(node, "/healthz")[0] == 200)
        base = f"http://127.0.0.1:{node.web_port}"
        files = [("file", (path.name, path.read_bytes())) for path in series.thick(3)]
        answer = httpx.post(f"{base}/api/v1/rules/explain", files=files, timeout=120.0)
        assert answer.status_code == 200, f"{answer.text}\n{node.output()}"
        (stack,) = answer.json()["stacks"]
        assert stack["state"] == "would be processed"
        page = httpx.get(f"{base}/conformance", timeout=120.0)
        assert page.status_code == 200, node.output()
        assert "<table>" in page.text


def test_a_node_that_others_could_reach_serves_them_nothing_without_a_user(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path / "node", route(destinations=[]))
    path = node.folder / "config.toml"
    path.write_text(path.read_text().replace("[web]\n", '[web]\nhost = "0.0.0.0"\n'))
    with running(node):
        node.event("pages closed to others")
        outside = socket.gethostbyname(socket.gethostname())
        wait_for("alive", lambda: ask(node, "/healthz")[0] == 200)
        answer = httpx.get(f"http://{outside}:{node.web_port}/api/v1/jobs", timeout=30.0)
        expected = 200 if outside.startswith("127.") else 403  # a machine without a network
        assert answer.status_code == expected
        named = httpx.get(
            f"http://127.0.0.1:{node.web_port}/api/v1/jobs",
            headers={"Host": "midslice.example"},
            timeout=30.0,
        )
        assert named.status_code == 403
