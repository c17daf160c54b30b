"""The live stream: names the areas of the pages that have changed, so that a page asks for these.

One query of the database a second serves all listeners; without a listener there is none.
"""

import asyncio
import hashlib
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Annotated, TypeAlias

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import StreamingResponse

from node.web.access import AsViewer, Gate, Visitor
from node.web.problems import Problem
from storage.errors import StorageError

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
BEAT_SECONDS = 15.0  # a proxy ends what is silent for long
CHECK_SECONDS = 10.0  # between two checks whether a listener may still listen
LONGEST_SECONDS = 600.0  # then the browser connects again, and proves again who it is
MOST_OF_ONE = 12  # streams of one visitor: tabs
MOST_AT_ONCE = 200
REMEMBERED = 120  # states of the areas, a second or more each: what has a page that was just made
LOGGED_OUT = "logged-out"  # the event that ends a stream; the page says so

Tokens: TypeAlias = Mapping[str, str]  # area -> a text that is another one when it has changed

router = APIRouter(include_in_schema=False)


class Live:
    """The listeners, and the state of the areas as it was last read; made once a process."""

    def __init__(self, read: Callable[[], Tokens]) -> None:
        self._read = read
        self._tokens: Tokens = {}
        self._remembered: deque[tuple[str, Tokens]] = deque(maxlen=REMEMBERED)
        self._changed = asyncio.Event()  # replaced at each change: all that wait have the old one
        self._listening: Counter[str] = Counter()
        self._poller: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def id(self) -> str:
        """Name the state of the areas: a page that reads its rows after it misses no change."""
        return _id(self._tokens)

    def close(self) -> None:
        """End every stream within a second; from any thread."""
        self._closed = True

    async def stream(
        self, who: str, last_id: str, may_listen: Callable[[], bool] = lambda: True
    ) -> AsyncIterator[str]:
        """Yield the events for one listener; `last_id` is that of its page, or before a break.

        The stream ends soon after `may_listen`, which is called in a thread, has become false.
        """
        self._listening[who] += 1
        try:
            check = time.monotonic() + CHECK_SECONDS
            async for event in self._events(last_id):
                if time.monotonic() >= check:
                    check = time.monotonic() + CHECK_SECONDS
                    if not await _check(may_listen):
                        yield _event(LOGGED_OUT, "", "")
                        return
                if event:
                    yield event
        finally:
            self._listening[who] -= 1
            self._listening += Counter()  # drops the names that have no stream any more

    def check_room(self, who: str) -> None:
        """Raise where this visitor, or all together, have too many streams."""
        if self._listening[who] >= MOST_OF_ONE or self._listening.total() >= MOST_AT_ONCE:
            detail = f"At most {MOST_OF_ONE} live streams per visitor; close other tabs."
            wait = {"Retry-After": "30"}
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, detail, headers=wait)

    async def _events(self, last_id: str) -> AsyncIterator[str]:
        """Yield the events of each poll, then an empty text."""
        self._start_polling()
        current = self._tokens  # perhaps of long ago: then the first poll shows what is new since
        now = _id(current)
        yield _event("hello", now, now)
        sent = dict(self._remembered).get(last_id, {}) if last_id and last_id != now else current
        ends, beat = time.monotonic() + LONGEST_SECONDS, time.monotonic() + BEAT_SECONDS
        while not self._closed and time.monotonic() < ends:
            for area, token in current.items():
                if sent.get(area) != token:
                    yield _event(area, token, _id(current))
            sent = current
            if time.monotonic() >= beat:
                beat = time.monotonic() + BEAT_SECONDS
                yield ": still here\n\n"
            yield ""
            await self._wait()
            current = self._tokens

    async def _wait(self) -> None:
        try:
            await asyncio.wait_for(self._changed.wait(), POLL_SECONDS)
        except TimeoutError:
            return

    def _start_polling(self) -> None:
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._keep_polling())

    async def _keep_polling(self) -> None:
        while self._listening and not self._closed:
            await self._poll()
            await asyncio.sleep(POLL_SECONDS)

    async def _poll(self) -> None:
        try:
            tokens = await run_in_threadpool(self._read)
        except StorageError as error:  # busy: the next poll comes
            logger.warning("live stream not read", extra={"error": error})
            return
        if tokens != self._tokens:
            self._tokens = tokens
            self._remembered.append((_id(tokens), tokens))
            self._changed.set()
            self._changed = asyncio.Event()


@router.get("/live")
async def live(
    request: Request, visitor: AsViewer, since: Annotated[str, Query(max_length=64)] = ""
) -> StreamingResponse:
    """Stream server-sent events (HTML, 9.2): one a change, named by its area.

    `since` is the id that the page was made with; a browser that connects again sends a later one.
    """
    source: Live = request.app.state.live
    source.check_room(visitor.name)
    last_id = request.headers.get("last-event-id", since)
    events = source.stream(visitor.name, last_id, partial(_may_listen, request, visitor))
    return StreamingResponse(
        events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
    )


def _may_listen(request: Request, visitor: Visitor) -> bool:
    """Check the visitor's proof again: a session may have ended, a token may be revoked."""
    gate: Gate = request.app.state.gate
    try:
        current = gate.visitor(request)
    except Problem:
        return False
    return current is not None and current.name == visitor.name


async def _check(may_listen: Callable[[], bool]) -> bool:
    try:
        return await run_in_threadpool(may_listen)
    except StorageError as error:  # busy: asked again at the next check
        logger.warning("live stream not checked", extra={"error": error})
        return True


def _id(tokens: Tokens) -> str:
    text = "\n".join(f"{area} {token}" for area, token in sorted(tokens.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _event(name: str, data: str, identity: str) -> str:
    return f"event: {name}\nid: {identity}\ndata: {data}\n\n"
