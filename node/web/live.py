"""The live stream: says which part of the pages has changed, so that a page asks for that part.

One look at the database a second serves everybody who listens; nobody listening, nobody looks.
"""

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from http import HTTPStatus

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import StreamingResponse

from node.web.access import AsViewer, Gate, Visitor
from node.web.problems import Problem
from storage.errors import StorageError

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
BEAT_SECONDS = 15.0  # a proxy ends what is silent for long
CHECK_SECONDS = 10.0  # whether who listens may still listen
LONGEST_SECONDS = 600.0  # then the browser comes again, and shows again who it is
MOST_OF_ONE = 12  # streams of one visitor: tabs
MOST_AT_ONCE = 200

LOGGED_OUT = "logged-out"  # the event that ends a stream; the page says so

Marks = Mapping[str, str]  # area -> a short text that is another one when the area has changed

router = APIRouter(include_in_schema=False)


class Live:
    """Who listens, and what they were told last."""

    def __init__(self, read: Callable[[], Marks]) -> None:
        self._read = read
        self._marks: Marks = {}
        self._looked = asyncio.Event()  # replaced at each change: whoever waits has the old one
        self._listening: Counter[str] = Counter()
        self._looker: asyncio.Task[None] | None = None
        self._closed = False

    def close(self) -> None:
        """End every stream within a second; from any thread."""
        self._closed = True

    async def stream(
        self, who: str, last_id: str, may_listen: Callable[[], bool] = lambda: True
    ) -> AsyncIterator[str]:
        """The events for one listener; `last_id` is what they had heard before a break.

        It ends soon after `may_listen`, which is asked in a thread, says that they may no more.
        """
        self._listening[who] += 1
        try:
            check = time.monotonic() + CHECK_SECONDS
            async for event in self._events(last_id):
                if time.monotonic() >= check:
                    check = time.monotonic() + CHECK_SECONDS
                    if not await _asked(may_listen):
                        yield _event(LOGGED_OUT, "", "")
                        return
                if event:
                    yield event
        finally:
            self._listening[who] -= 1
            self._listening += Counter()  # without those that listen no more

    def check_room(self, who: str) -> None:
        """Raise where this visitor, or everybody together, listens too often."""
        if self._listening[who] >= MOST_OF_ONE or self._listening.total() >= MOST_AT_ONCE:
            said = f"At most {MOST_OF_ONE} live streams a visitor; close other tabs."
            wait = {"Retry-After": "30"}
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, said, headers=wait)

    async def _events(self, last_id: str) -> AsyncIterator[str]:
        """What to say at each look; nothing, where there is nothing."""
        self._start_looking()
        told = self._marks  # perhaps of long ago: then the first look tells what is new since
        now = _id(told)
        yield _event("hello", now, now)
        if last_id and last_id != now:  # it is unknown what was missed: all of it may be new
            for area, mark in told.items():
                yield _event(area, mark, now)
        ends, beat = time.monotonic() + LONGEST_SECONDS, time.monotonic() + BEAT_SECONDS
        while not self._closed and time.monotonic() < ends:
            await self._wait()
            current = self._marks
            for area, mark in current.items():
                if told.get(area) != mark:
                    yield _event(area, mark, _id(current))
            told = current
            if time.monotonic() >= beat:
                beat = time.monotonic() + BEAT_SECONDS
                yield ": still here\n\n"
            yield ""

    async def _wait(self) -> None:
        try:
            await asyncio.wait_for(self._looked.wait(), LOOK_SECONDS)
        except TimeoutError:
            return

    def _start_looking(self) -> None:
        if self._looker is None or self._looker.done():
            self._looker = asyncio.create_task(self._keep_looking())

    async def _keep_looking(self) -> None:
        while self._listening and not self._closed:
            await self._look()
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        try:
            found = await run_in_threadpool(self._read)
        except StorageError as error:  # busy: the next look comes
            logger.warning("live stream not read", extra={"error": error})
            return
        if found != self._marks:
            self._marks = found
            self._looked.set()
            self._looked = asyncio.Event()


@router.get("/live")
async def live(request: Request, visitor: AsViewer) -> StreamingResponse:
    """Server-sent events (HTML, 9.2): one a change, named by its area."""
    source: Live = request.app.state.live
    source.check_room(visitor.name)
    last_id = request.headers.get("last-event-id", "")
    events = source.stream(visitor.name, last_id, partial(_may_listen, request, visitor))
    return StreamingResponse(
        events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
    )


def _may_listen(request: Request, visitor: Visitor) -> bool:
    """Whether the proof with which they came is still one: a session ends, a token is revoked."""
    gate: Gate = request.app.state.gate
    try:
        found = gate.visitor(request)
    except Problem:
        return False
    return found is not None and found.name == visitor.name


async def _asked(may_listen: Callable[[], bool]) -> bool:
    try:
        return await run_in_threadpool(may_listen)
    except StorageError as error:  # busy: asked again at the next check
        logger.warning("live stream not checked", extra={"error": error})
        return True


def _id(marks: Marks) -> str:
    text = "\n".join(f"{area} {mark}" for area, mark in sorted(marks.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _event(name: str, data: str, identity: str) -> str:
    return f"event: {name}\nid: {identity}\ndata: {data}\n\n"
