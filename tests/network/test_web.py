"""What monitoring asks the web process, and what a full disk does to a sender."""

import json
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
        live = f"http://127.0.0.1:{node.web_port}/live"
        stream = urllib.request.urlopen(
            urllib.request.Request(live, headers=node.proof), timeout=60
        )
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
        explain, asked = f"{base}/api/v1/rules/explain", {"headers": node.proof, "timeout": 120.0}
        answer = httpx.post(explain, files=files, **asked)
        assert answer.status_code == 200, f"{answer.text}\n{node.output()}"
        (stack,) = answer.json()["stacks"]
        assert stack["state"] == "would be processed"
        page = httpx.get(f"{base}/conformance", **asked)
        assert page.status_code == 200, node.output()
        assert "<table>" in page.text


def test_nobody_is_known_until_the_set_up_link_has_made_the_first_user(tmp_path: Path) -> None:
    with running(NodeProcess(tmp_path / "node", route(destinations=[]))) as node:
        link = node.event("no user yet")["set_up_link"]
        base = f"http://127.0.0.1:{node.web_port}"
        wait_for("alive", lambda: ask(node, "/healthz")[0] == 200)
        assert httpx.get(f"{base}/api/v1/jobs", timeout=30.0).status_code == 401
        with httpx.Client(timeout=30.0, follow_redirects=True) as browser:
            form = browser.get(link)
            assert "Make the first administrator" in form.text
            key = link.partition("key=")[2]
            password = {"password": "correct horse", "again": "correct horse"}
            set_up = browser.post(f"{base}/setup", data={"key": key, "name": "anna", **password})
            assert set_up.status_code == 200 and "Log out" in set_up.text
            assert browser.get(f"{base}/api/v1/me").json()["role"] == "administrator"
        assert httpx.get(link, timeout=30.0).status_code == 410
        node.terminate()
        assert node.wait() == 0
        node.start()
        assert node.found("no user yet") == []
