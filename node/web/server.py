"""The web process: serves rows and files. It imports neither torch nor a pixel decoder."""

import asyncio
import contextlib
import logging
import math
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from node import log, store
from node.store import Store
from node.web import live, login, metrics, pages, problems
from node.web.access import Access, Gate
from node.web.api import jobs, site
from node.web.api.inputs import PROBLEMS
from node.web.live import Live
from node.web.metrics import Metrics
from node.web.rules import Statements
from node.web.shield import Shield
from node.web.state import Current, Parts, PictureViews, Searches, WebSettings
from storage import files
from storage.queries.figures import change_tokens
from storage.site import people

API = "/api/v1"
API_ROUTERS = (
    jobs.find_router,
    jobs.router,
    jobs.series_router,
    site.router,
    jobs.backlog_router,
    site.people_router,
    site.rules_router,
    site.audit_router,
)
STATIC = Path(__file__).parent / "static"


def build(settings: WebSettings, store: Store, *, now: Callable[[], float] = time.time) -> FastAPI:
    """The application; it reads and writes rows, reads files, and does nothing else."""
    app = FastAPI(
        title="Midslice",
        version=version("midslice"),
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    gate = Gate(store.database, access(settings), now)
    _hold(app, Parts(settings, store, gate, Current(settings, store.database)), now)
    for router in (metrics.router, login.router, live.router):
        app.include_router(router)
    for router in API_ROUTERS:
        app.include_router(router, prefix=API, responses=PROBLEMS)
    if STATIC.is_dir():
        app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.include_router(pages.router)
    problems.install(app, pages.error_page)
    app.add_middleware(Shield, page=pages.error_page, answered=app.state.metrics.requests.answered)
    return app


def access(settings: WebSettings) -> Access:
    """What the configuration says about visitors."""
    web = settings.config.web
    return Access(
        session_seconds=web.session_hours * 3600.0,
        idle_seconds=web.idle_minutes * 60.0,
        proxies=web.trusted_proxies,
        user_header=web.user_header,
        role_header=web.role_header,
    )


def _hold(app: FastAPI, parts: Parts, now: Callable[[], float]) -> None:
    """What lives as long as the process: handlers find it at the application."""
    app.state.parts = parts
    app.state.gate = parts.gate
    app.state.live = Live(partial(change_tokens, parts.database))
    app.state.metrics = Metrics(now)
    app.state.metrics.begin(parts)
    app.state.picture_views = PictureViews(parts.store.audit)
    app.state.searches = Searches()
    app.state.statements = Statements(log_as_json=parts.settings.log_as_json)


# uvicorn waits without end for who connects and asks nothing, who asks a letter at a time, and
# who does not read the answer. Here each of these waits has an end, and where too many
# connections are open the one whose request has been outstanding for the longest makes room:
# whoever asks in full is answered. An answer that takes long, as a live stream, is none of these.

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


LOCAL_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})
STOP_SECONDS = 5  # for answers under way; live streams end within one


class _Server(uvicorn.Server):
    """Takes no signals: the parent says when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main(settings: WebSettings, listening: socket.socket, lifeline: Connection) -> None:
    """Serve until the parent says so or is gone."""
    log.configure(json=settings.log_as_json)
    # Ctrl-C and a service manager signal the whole group: until the parent says so, readyz answers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with store.opened(settings.config, settings.node_id) as opened:
        files.sweep_scratch(opened.files, files.UPLOADS, settings.node_id)
        app = build(settings, opened)
        _tell_who_is_served(settings, opened)
        server = _Server(uvicorn_settings(app))
        threading.Thread(
            target=_watch, args=(server, app.state.live, lifeline), daemon=True
        ).start()
        server.run(sockets=[listening])


def uvicorn_settings(app: ASGIApp) -> uvicorn.Config:
    """How the web port is served: by a server that writes down no address that was asked for."""
    return uvicorn.Config(
        app,
        http=BoundedConnection,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who may speak for others is decided by the gate
        h11_max_incomplete_event_size=MOST_HEADER_BYTES,
        # Where nobody can make room: all connections wait for an answer of ours.
        limit_concurrency=MOST_CONNECTIONS + 1,
        timeout_graceful_shutdown=STOP_SECONDS,
    )


def _tell_who_is_served(settings: WebSettings, kept: store.Store) -> None:
    """An open port that answers nobody needs an explanation."""
    web = settings.config.web
    proxied = web.trusted_proxies and web.user_header
    if web.host not in LOCAL_HOSTS and not proxied and not people.exist(kept.database):
        logger.warning(
            "pages closed to others", extra={"host": web.host, "add": "midslice user add"}
        )


def _watch(server: _Server, live: Live, lifeline: Connection) -> None:
    try:
        lifeline.recv()  # a word from the parent: stop
    except (EOFError, OSError):
        os._exit(0)  # the parent is gone
    live.close()
    server.should_exit = True


CHILD_STOP_SECONDS = 10.0
LEAST_SECONDS = 2.0  # between two starts: one that dies at once must not keep the node busy


class WebProcess:
    """One child that serves pages; the parent holds the listening socket, so the port stays."""

    def __init__(self, host: str, port: int, settings: WebSettings) -> None:
        self._settings = settings
        self._listening = socket.create_server((host, port))
        self._started = 0.0
        self._process: BaseProcess | None = None
        self._lifeline: Connection | None = None

    def start(self) -> int:
        """Start the child; returns the port that it serves."""
        context = multiprocessing.get_context("spawn")
        self._lifeline, theirs = context.Pipe()
        self._process = context.Process(
            target=main, args=(self._settings, self._listening, theirs), name="web"
        )
        self._process.start()
        self._started = time.monotonic()
        theirs.close()
        return int(self._listening.getsockname()[1])

    def watch(self) -> None:
        """Start it again where it died."""
        if self._process is None or self._process.is_alive():
            return
        if time.monotonic() - self._started >= LEAST_SECONDS:
            logger.warning("web process died", extra={"exit_code": self._process.exitcode})
            self.start()

    def stop(self) -> None:
        """Ask it to stop, and end it where it does not."""
        if self._process is None or self._lifeline is None:
            return
        with contextlib.suppress(OSError):  # it is gone already
            self._lifeline.send("stop")
        self._process.join(CHILD_STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._lifeline.close()
        self._listening.close()
