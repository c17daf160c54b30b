"""Connections of the web port: none may be held for nothing.

uvicorn waits without end for who connects and asks nothing, who asks a letter at a time, and who
does not read the answer. Here each of these waits has an end, and where too many connections are
open the one whose request has been outstanding for the longest makes room: whoever asks in full is
answered. An answer that takes long, as a live stream, is none of these.
"""

import asyncio
import logging
import math
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

logger = logging.getLogger(__name__)

TOLD_SECONDS = 60.0
HEADER_SECONDS = 10.0  # for a whole header, from the connection or the answer before
UNREAD_SECONDS = 60.0  # an answer may wait in the way for so long
MOST_HEADER_BYTES = 16 * 1024
MOST_CONNECTIONS = 512  # half of the file descriptors that a process has by default


class BoundedConnection(H11Protocol):
    """One connection, with an end to each wait for its other side."""

    told_at = -math.inf

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._silent: asyncio.TimerHandle | None = None  # until a whole header is there
        self._unread: asyncio.TimerHandle | None = None  # until the answer goes on
        self._owes_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._owes_since = self.loop.time()
        self._mind()
        if len(self.connections) > MOST_CONNECTIONS:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._mind()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._owes_since = self.loop.time()
        self._mind()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self._end)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._silent, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    @property
    def owes_since(self) -> float | None:
        """Since when it owes us a request, header or body; None while we owe it an answer."""
        is_whole = not self._has_no_request() and not self.cycle.more_body
        return None if is_whole else self._owes_since

    def _has_no_request(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # the library says that it is never None
        return cycle is None or cycle.response_complete

    def _mind(self) -> None:
        """A letter more changes nothing: what counts is a whole header."""
        if not self._has_no_request():
            if self._silent is not None:
                self._silent.cancel()
                self._silent = None
        elif self._silent is None:
            self._silent = self.loop.call_later(HEADER_SECONDS, self._close)

    def _make_room(self) -> None:
        owing = [each for each in self.connections if isinstance(each, BoundedConnection)]
        since = {each: each.owes_since for each in owing if each is not self}
        late = [(at, id(each), each) for each, at in since.items() if at is not None]
        if late:
            self._tell()
            min(late)[2]._end()

    def _tell(self) -> None:
        """Once a minute: an attack must not fill the log too."""
        if self.loop.time() - BoundedConnection.told_at >= TOLD_SECONDS:
            BoundedConnection.told_at = self.loop.time()
            logger.warning("web port crowded", extra={"connections": len(self.connections)})

    def _close(self) -> None:
        """Once the answer before has been read, or its time is over."""
        self.transport.close()
        self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def _end(self) -> None:
        """At once: what is still to be written waits for who does not read."""
        self.connections.discard(self)
        self.transport.abort()
