"""The live stream: one look for all listeners, an event for what changed, and an end to each."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx
import pytest

from node.web import live
from node.web.live import Live, Tokens
from node.web.problems import Problem
from storage.errors import Busy
from storage.records import Role
from storage.site import people
from tests.node_process import wait_for
from tests.unit.web.site import Client, Site

T = TypeVar("T")


class Reader:
    """Tokens in the test's hand; counts who asks for them."""

    def __init__(self) -> None:
        self.tokens: Tokens = {"queue": "1", "needs": "1"}
        self.count = 0
        self.busy = False

    def __call__(self) -> Tokens:
        self.count += 1
        if self.busy:
            raise Busy("database: locked")
        return self.tokens


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "POLL_SECONDS", 0.02)


def alone(main: Coroutine[Any, Any, T]) -> T:
    """Run in a thread of its own: the browser tests leave a loop running in the main one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, main).result()


def read(lines: Iterator[str]) -> tuple[str, str, str]:
    """The next event: its name, its id and its data."""
    found: dict[str, str] = {}
    for line in lines:
        if not line and found:
            return found.get("event", ""), found.get("id", ""), found.get("data", "")
        name, _, value = line.partition(": ")
        if name:
            found[name] = value
    raise AssertionError("the stream has ended")


def until(lines: Iterator[str], name: str) -> None:
    """Read on to an event of that name."""
    wait_for(f"event {name}", lambda: read(lines)[0] == name, 20.0)


def listen(client: Client, **headers: str) -> httpx.Response:
    request = client.build_request("GET", "/live", headers=headers)
    return client.send(request, stream=True)


def test_a_listener_hears_what_changes_in_the_rows(listening: Site) -> None:
    answer = listen(listening.administrator())
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    lines = answer.iter_lines()
    assert read(lines)[0] == "hello"
    until(lines, "audit")  # the first look: the page is fresh
    listening.administrator().post("/api/v1/drain")
    until(lines, "now")
    answer.close()


def test_only_who_may_look_may_listen(listening: Site) -> None:
    listening.user("anna")
    assert listening.client().get("/live").status_code == 401
    answer = listen(listening.program(Role.VIEWER))
    assert answer.status_code == 200
    answer.close()


def test_every_stream_ends_when_the_server_stops(listening: Site) -> None:
    streams = [listen(listening.administrator()) for _ in range(3)]
    ended = Counter[str]()

    def drain(answer: httpx.Response) -> None:
        for _ in answer.iter_bytes():
            pass
        ended["streams"] += 1

    readers = [threading.Thread(target=drain, args=(answer,)) for answer in streams]
    for reader in readers:
        reader.start()
    listening.app.state.live.close()
    for reader in readers:
        reader.join(20.0)
    assert ended["streams"] == 3


def test_a_visitor_has_so_many_streams_and_gets_them_back(listening: Site) -> None:
    clients = [listening.administrator() for _ in range(live.MOST_OF_ONE)]
    streams = [listen(client) for client in clients]
    assert [answer.status_code for answer in streams] == [200] * live.MOST_OF_ONE
    wait_for("all listen", lambda: listen_refused(listening), 20.0)
    streams[0].close()
    wait_for("room again", lambda: not listen_refused(listening), 20.0)
    for answer in streams:
        answer.close()


def listen_refused(listening: Site) -> bool:
    answer = listen(listening.administrator())
    answer.close()
    return answer.status_code == 429


async def come_true(ask: Callable[[], bool]) -> None:
    """Wait until it is true."""
    async with asyncio.timeout(20.0):
        while not ask():
            await asyncio.sleep(0.01)


async def first(source: Live, count: int, last_id: str = "", who: str = "anna") -> list[str]:
    """The first events that a listener hears."""
    found: list[str] = []
    async for event in source.stream(who, last_id):
        found.append(event.split("\n")[0].removeprefix("event: "))
        if len(found) == count:
            break
    return found


def test_many_listeners_cost_one_look() -> None:
    polls = Reader()
    source = Live(polls)

    async def many() -> list[list[str]]:
        listeners = [asyncio.create_task(first(source, 4, who=str(n))) for n in range(50)]
        await come_true(lambda: source._listening.total() == 50 and polls.count > 1)
        before = polls.count
        polls.tokens = {"queue": "2", "needs": "1"}
        heard = await asyncio.gather(*listeners)
        assert polls.count - before <= 5
        return heard

    for events in alone(many()):
        assert sorted(events) == ["hello", "needs", "queue", "queue"]


def test_nobody_listening_nobody_looks() -> None:
    polls = Reader()
    source = Live(polls)

    async def gone() -> None:
        await first(source, 3)
        poller = source._poller
        assert poller is not None
        await come_true(poller.done)
        await first(source, 1)  # somebody comes again
        assert source._poller is not poller

    alone(gone())


def test_after_a_break_a_listener_hears_all_areas_if_anything_changed() -> None:
    polls = Reader()
    source = Live(polls)
    heard = alone(first(source, 3))
    now = live._id(polls.tokens)
    assert heard == ["hello", "queue", "needs"]
    assert alone(first(source, 3, "another id")) == ["hello", "queue", "needs"]
    polls.tokens = {"queue": "2", "needs": "1"}
    assert alone(first(source, 2, now)) == ["hello", "queue"]


def test_a_page_hears_what_changed_between_its_making_and_its_stream() -> None:
    polls = Reader()
    source = Live(polls)

    async def opened_late() -> list[str]:
        another = asyncio.create_task(first(source, 4, who="otto"))  # keeps the polls going
        await come_true(lambda: source.id == live._id(polls.tokens))
        page = source.id
        polls.tokens = {"queue": "2", "needs": "1"}
        await come_true(lambda: source.id != page)
        await another
        return await first(source, 2, page)

    assert alone(opened_late()) == ["hello", "queue"]


def test_a_busy_database_ends_no_stream(caplog: pytest.LogCaptureFixture) -> None:
    polls = Reader()
    source = Live(polls)

    async def through() -> list[str]:
        listener = asyncio.create_task(first(source, 4))
        await come_true(lambda: polls.count > 0)
        polls.busy = True
        await come_true(lambda: "live stream not read" in caplog.messages)
        polls.busy = False
        polls.tokens = {"queue": "2", "needs": "1"}
        return await asyncio.wait_for(listener, 20.0)

    assert alone(through())[-1] == "queue"


def test_a_silent_stream_says_that_it_is_alive_and_ends_after_minutes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(live, "LONGEST_SECONDS", 0.2)

    async def whole() -> list[str]:
        return [event async for event in Live(Reader()).stream("anna", "")]

    heard = alone(whole())
    assert ": still here\n\n" in heard


def ended(lines: Iterator[str]) -> bool:
    """Read a stream to its end; True where its last event says that one is logged out."""
    names = [line.partition(": ")[2] for line in lines if line.startswith("event: ")]
    return names[-1] == live.LOGGED_OUT


@pytest.mark.parametrize("how", ["idle", "logged out", "over"])
def test_a_stream_ends_with_the_session_of_who_listens(
    listening: Site, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(live, "CHECK_SECONDS", 0.05)
    listening.user("anna")
    client = listening.logged_in("anna")
    answer = listen(client)
    lines = answer.iter_lines()
    assert read(lines)[0] == "hello"
    if how == "logged out":
        other = listening.browser()
        other.cookies.update(client.cookies)
        assert other.act("POST", "/logout", headers={"X-CSRF-Token": client.csrf}).is_redirect
    else:  # the page is open all the time
        listening.clock.now += {"idle": 3601, "over": 12 * 3600 + 1}[how]
    assert ended(lines)
    answer.close()


def test_a_stream_lasts_as_long_as_a_person_uses_the_pages(
    listening: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "CHECK_SECONDS", 0.05)
    listening.user("anna")
    client = listening.logged_in("anna")
    answer = listen(client)
    lines = answer.iter_lines()
    until(lines, "audit")
    for _ in range(3):
        listening.clock.now += 3000
        assert client.get("/peers").status_code == 200
    client.act("POST", "/api/v1/drain")
    until(lines, "now")
    answer.close()


def test_a_stream_ends_with_the_token_of_a_program(
    listening: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "CHECK_SECONDS", 0.05)
    listening.user("anna")
    answer = listen(listening.program(Role.VIEWER))
    lines = answer.iter_lines()
    assert read(lines)[0] == "hello"
    people.revoke_token(listening.database, listening.clock(), "anna", 1)
    assert ended(lines)
    answer.close()


def test_a_busy_database_logs_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "CHECK_SECONDS", 0.0)
    monkeypatch.setattr(live, "LONGEST_SECONDS", 0.2)

    def busy() -> bool:
        raise Busy("database: locked")

    async def whole() -> list[str]:
        return [event async for event in Live(Reader()).stream("anna", "", busy)]

    assert not any(live.LOGGED_OUT in event for event in alone(whole()))


def test_all_visitors_together_have_so_many() -> None:
    source = Live(Reader())
    source._listening = Counter({str(n): 1 for n in range(live.MOST_AT_ONCE)})
    with pytest.raises(Problem):
        source.check_room("one more")
