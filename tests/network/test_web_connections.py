"""Who holds a connection for nothing loses it; who asks in full is answered, and streams last."""

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.web import access, live, middleware, server
from storage.records import Role
from storage.site import people
from tests.node_process import wait_for
from tests.unit.web.site import Site, listening_site

TOKEN = "midslice_of_the_tests"
PROOF = f"Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
LISTEN = b"GET /live HTTP/1.1\r\n" + PROOF + b"\r\n"
ASK = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /api/v1/drain HTTP/1.1\r\n" + PROOF + b"Content-Type: application/json\r\n"
SECONDS = 20.0


@pytest.fixture
def listening(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Site]:
    with listening_site(tmp_path / "site", migrated_sqlite) as made:
        role, digest = Role.ADMINISTRATOR, access.digest(TOKEN)
        people.add_token(made.database, made.clock(), "test", "script", role, digest)
        yield made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr(server, "UNREAD_SECONDS", 0.5)
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.5)
    monkeypatch.setattr(live, "POLL_SECONDS", 0.05)


@contextlib.contextmanager
def raw(listening: Site, sent: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", listening.port), timeout=SECONDS) as one:
        one.sendall(sent)
        yield one


def is_ended(one: socket.socket) -> bool:
    """True where the other side has closed or reset it; what it said before is read away."""
    try:
        while one.recv(65536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def drip(one: socket.socket, text: bytes, seconds: float = 0.05) -> int:
    """Send a letter at a time; how many went out before the other side had enough."""
    with selectors.DefaultSelector() as waiting:
        waiting.register(one, selectors.EVENT_READ)
        for number, letter in enumerate(text):
            if waiting.select(seconds):
                return number
            try:
                one.sendall(bytes([letter]))
            except ConnectionError:
                return number
    return len(text)


def answer(one: socket.socket) -> bytes:
    one.sendall(ASK)
    said = b""
    while not said.endswith(b"}"):
        part = one.recv(65536)
        assert part, said
        said += part
    return said


def hear(one: socket.socket, text: bytes) -> None:
    """Read on until that text has come."""
    heard = b""
    while text not in heard:
        part = one.recv(65536)
        assert part, heard
        heard += part


def test_who_asks_nothing_is_cut_off(listening: Site) -> None:
    with raw(listening) as one:
        assert is_ended(one)


def test_a_header_that_comes_a_letter_at_a_time_has_an_end(listening: Site) -> None:
    with raw(listening) as one:
        assert drip(one, ASK[:-2] + b"X-Slow: " + b"a" * 400) < 100
        assert is_ended(one)


def test_the_second_header_of_a_connection_has_an_end_too(listening: Site) -> None:
    with raw(listening) as one:
        assert answer(one).startswith(b"HTTP/1.1 200")
        assert answer(one).startswith(b"HTTP/1.1 200")  # it may be used again
        assert drip(one, ASK[:-2] + b"X-Slow: " + b"a" * 400) < 100
        assert is_ended(one)


def test_a_header_without_end_is_refused(listening: Site) -> None:
    with raw(listening, ASK[:-2] + b"X-Long: " + b"a" * server.MOST_HEADER_BYTES) as one:
        assert one.recv(65536).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("path", [b"/api/v1/drain", b"/login", b"/live"])
def test_a_body_that_comes_a_letter_at_a_time_has_an_end(listening: Site, path: bytes) -> None:
    asked = POST.replace(b"/api/v1/drain", path)
    with raw(listening, asked + b"Content-Length: 4000\r\n\r\n") as one:
        assert drip(one, b"{" * 400) < 100
        assert is_ended(one)


def test_a_slow_body_is_answered_before_the_connection_ends(listening: Site) -> None:
    asked = POST.replace(b"/api/v1/drain", b"/api/v1/jobs/1/priority")
    with raw(listening, asked + b"Content-Length: 4000\r\n\r\n{") as one:
        said = b""
        while part := one.recv(65536):
            said += part
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    detail = "The request did not arrive completely in time; it was too slow."
    assert json.loads(body)["detail"] == detail


def test_a_large_body_has_as_much_longer(listening: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "SLOWEST", 1000)
    asked = POST.replace(b"/api/v1/drain", b"/api/v1/jobs/1/priority")
    with raw(listening, asked + b"Content-Length: 9000\r\n\r\n") as one:
        for _ in range(9):  # as fast as the slowest, for longer than a small body may take
            one.sendall(b"{" * 1000)
            time.sleep(0.15)
        assert one.recv(65536).startswith(b"HTTP/1.1 422")


def test_who_does_not_read_the_answer_is_cut_off(listening: Site) -> None:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.connect(("127.0.0.1", listening.port))
        asked = b"GET /static/htmx.min.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with contextlib.suppress(ConnectionError):
            for _ in range(400):
                one.sendall(asked)
        open_ones = listening.server.server_state.connections
        wait_for("it is cut off", lambda: not open_ones, SECONDS)


def test_a_stream_lasts_though_each_of_these_times_is_over(listening: Site) -> None:
    with raw(listening, LISTEN) as one:
        ends = time.monotonic() + 2.0
        while time.monotonic() < ends:
            time.sleep(0.1)
        listening.administrator().post("/api/v1/drain")
        hear(one, b"event: now")


def is_healthy(listening: Site) -> bool:
    return listening.client().get("/healthz").status_code == 200


def test_many_that_never_finish_asking_hold_others_up_no_longer_than_a_header_may_take(
    listening: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening.server.config, "limit_concurrency", 40)
    slow = (b"", ASK[:-2] + b"X-Slow: ", POST + b"Content-Length: 400\r\n\r\n{")
    with contextlib.ExitStack() as held:
        stream = held.enter_context(raw(listening, LISTEN))
        assert stream.recv(65536).startswith(b"HTTP/1.1 200")
        many = [held.enter_context(raw(listening, slow[n % len(slow)])) for n in range(200)]
        began = time.monotonic()
        wait_for("others are answered", lambda: is_healthy(listening), SECONDS)
        assert time.monotonic() - began < 5.0
        assert all(is_ended(one) for one in many)
        listening.administrator().post("/api/v1/drain")  # and who listened listens
        hear(stream, b"event: now")


def test_where_every_connection_waits_for_an_answer_one_more_is_told_to_come_again(
    listening: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening.server.config, "limit_concurrency", 4)
    with contextlib.ExitStack() as held:
        for _ in range(3):
            one = held.enter_context(raw(listening, LISTEN))
            assert one.recv(65536).startswith(b"HTTP/1.1 200")
        assert listening.client().get("/healthz").status_code == 503


def test_the_end_of_one_answer_begins_no_clock_while_the_next_is_under_way(
    listening: Site,
) -> None:
    with raw(listening, ASK + LISTEN) as one:
        time.sleep(2.0)
        listening.administrator().post("/api/v1/drain")
        hear(one, b"event: now")
