"""The web process of a real node: what it keeps of uploads and words, and who may occupy it."""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from node.web import server
from storage.database import Database
from storage.records import RequestKind, SelfTestState
from storage.site import notices, selftests
from storage.site.control import ask
from tests import series
from tests.node_process import NodeProcess, destination, route, running, wait_for
from tests.outside import Hook, hook
from tests.ports import free_port

WORD = "ZWIEBELFISCH"


def base(node: NodeProcess) -> str:
    address = f"http://127.0.0.1:{node.web_port}"

    def answers() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{address}/healthz", timeout=10.0).status_code == 200
        return False

    wait_for("the web process answers", answers, 90.0)
    return address


def web_process(node: NodeProcess, talking: socket.socket) -> psutil.Process:
    """The child that has this connection."""
    port = talking.getsockname()[1]
    for child in psutil.Process(node.pid).children():
        for one in child.net_connections("tcp"):
            if one.raddr and one.raddr.port == port:
                return child
    raise AssertionError(f"nobody serves this connection\n{node.output()}")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    folder = tmp_path_factory.mktemp("web") / "node"
    with running(NodeProcess(folder, route(destinations=[]))) as made:
        yield made


def test_what_a_killed_web_process_had_been_sent_is_gone_when_it_serves_again(
    node: NodeProcess,
) -> None:
    address = base(node)
    uploads = node.folder / "var" / "uploads"
    theirs = uploads / "0123456789ab-another"
    theirs.mkdir(parents=True)
    files = [("file", (path.name, path.read_bytes())) for path in series.thick(3)]

    def upload() -> None:
        with contextlib.suppress(httpx.TransportError):  # it is killed in the midst of it
            explain = f"{address}/api/v1/rules/explain"
            httpx.post(explain, files=files, headers=node.proof, timeout=120.0)

    proof = node.proof["Authorization"]
    with socket.create_connection(("127.0.0.1", node.web_port), timeout=10.0) as talking:
        head = f"GET /live HTTP/1.1\r\nHost: localhost\r\nAuthorization: {proof}\r\n\r\n"
        talking.sendall(head.encode())
        assert talking.recv(100)
        process = web_process(node, talking)
        sender = threading.Thread(target=upload)
        sender.start()
        wait_for("the files are there", lambda: list(uploads.glob("*/2.dcm")), 30.0)
        process.send_signal(signal.SIGKILL)
        sender.join(30.0)
    base(node)
    assert list(uploads.iterdir()) == [theirs]


def test_no_word_of_a_search_is_in_the_log(node: NodeProcess) -> None:
    asked = {"follow_redirects": True, "timeout": 60.0, "headers": node.proof}
    with httpx.Client(base_url=base(node), **asked) as client:
        for field in ("text", "accession", "patient_id", "name", "study_date", "description"):
            for word in (WORD, f"{WORD}\0' OR 1=1 --" * 10):
                client.get("/find", params={field: word}, headers={"Accept": "text/html"})
                client.post("/find", data={field: word})
                client.post("/api/v1/find", json={field: word})
                client.get(f"/api/v1/series/{WORD}", params={field: word})
                client.get("/api/v1/jobs", params={field: word})
        assert client.post("/find", data={"name": WORD}).url.query.startswith(b"search=")
    with socket.create_connection(("127.0.0.1", node.web_port), timeout=10.0) as raw:
        raw.sendall(f"GET /find?name={WORD} NO/HTTP\r\n\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 400")
    node.event("library message", text="Invalid HTTP request received.")  # the last of it is there
    assert WORD not in "".join(node.lines).upper()


def test_a_slowloris_keeps_others_from_the_pages_for_seconds_only(node: NodeProcess) -> None:
    """As many half requests as there may be connections, and more, with the limits as shipped.

    Who comes meanwhile is told 503; the half requests end ten seconds after they began.
    """
    address = base(node)
    with contextlib.ExitStack() as held:
        stream = held.enter_context(
            httpx.stream("GET", f"{address}/live", headers=node.proof, timeout=60.0)
        ).iter_lines()
        assert next(stream) == "event: hello"
        for number in range(server.MOST_CONNECTIONS + 60):
            one = socket.create_connection(("127.0.0.1", node.web_port), timeout=20.0)
            held.enter_context(one)
            with contextlib.suppress(ConnectionError):
                one.sendall(b"GET /healthz HTTP/1.1\r\nX-Slow: "[: 10 + number % 20])
        healthz = f"{address}/healthz"
        wait_for("others are answered", lambda: httpx.get(healthz).status_code == 200, 20.0)
        drain = f"{address}/api/v1/drain"
        assert httpx.post(drain, headers=node.proof, timeout=20.0).status_code == 200
        wait_for("the stream goes on", lambda: next(stream) == "event: now", 30.0)


def texts(word: str, told: Hook) -> list[str]:
    """What was posted about it."""
    return [post["text"] for post in list(told.posted) if word in post["text"]]


def test_a_self_test_that_a_killed_node_left_has_failed_and_is_told(tmp_path: Path) -> None:
    with hook() as told:
        node = NodeProcess(
            tmp_path / "node",
            route(destinations=[]),
            destination("pacs", "PACS", free_port()),
            f'\n[notify]\nwebhooks = ["{told.url}"]\n\n[selftest]\nmodel = "linear"\n',
            quiet_seconds=60.0,  # it waits for its arrival to be complete
        )
        database = Database.for_folder(node.folder / "var")
        with running(node):
            asked = ask(database, time.time(), "anna", RequestKind.SELFTEST)
            made = node.folder / "var" / "selftest"
            wait_for("its series is sent", lambda: node.found("instance stored"), 60.0)
            node.kill()
        (left,) = selftests.newest(database, 1)
        assert left.state is SelfTestState.RUNNING
        assert list(made.iterdir())
        with running(node):
            node.event("self-test failed", selftest=left.id)
            wait_for("somebody is told", lambda: texts("self-test", told), 30.0)
        (ended,) = selftests.newest(database, 1)
        assert ended.state is SelfTestState.FAILED
        assert "stopped, or failed, while the self-test ran" in ended.sentence
        (text,) = texts("self-test", told)  # beside it, perhaps, what was killed half received
        assert ended.sentence in text
        assert list(made.iterdir()) == []
        assert 1 <= len(notices.newest(database)) <= 2
        assert asked.kind is RequestKind.SELFTEST
        database.close()
