"""The web process: the application, its server, and the parent's hand on it.

It serves rows and files, and imports neither torch nor a pixel decoder.
"""

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from inference.release import RELEASE
from node import log, store
from node.children import Child, ResourceLimits
from node.dicom.tls import TlsFailed, TlsFiles, password_of, sentence_of, server_context
from node.store import Store
from node.web import dicomweb, frames, live, login, metrics, pages, problems, rendered, setup, stow
from node.web.access import Gate
from node.web.api import jobs, site
from node.web.api.inputs import PROBLEMS
from node.web.live import Live
from node.web.metrics import Metrics
from node.web.middleware import Shield
from node.web.rule_tester import Statements
from node.web.state import Current, Parts, RecentViews, Searches, WebSettings
from storage import files
from storage.queries.figures import change_tokens

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

HEADER_SECONDS = 10.0  # for a whole header, from the connection or the answer before
UNREAD_SECONDS = 60.0  # sent data may wait for its reader for so long
MOST_HEADER_BYTES = 16 * 1024
MOST_CONNECTIONS = 512  # half of the file descriptors that a process has by default
STOP_SECONDS = 5  # for answers under way; live streams end within one
CHILD_STOP_SECONDS = 10.0
LIMITS = ResourceLimits(memory_bytes=4 << 30)  # a request past it fails, and no other one
LEAST_SECONDS = 2.0  # between two starts: one that dies at once must not keep the node busy

logger = logging.getLogger(__name__)


def build(settings: WebSettings, store: Store, *, now: Callable[[], float] = time.time) -> FastAPI:
    """Build the application; it reads and writes rows, reads files, and does nothing else."""
    app = FastAPI(
        title="Midslice",
        version=RELEASE,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # the framework would repeat the Host header, which anybody sets
    )
    secret = store.files.secret(settings.config.storage.secret_file)
    gate = Gate(store.database, settings.config.web, now, secret)
    _hold(app, Parts(settings, store, gate, Current(settings, store.database)), now)
    for part in (metrics, login, setup, live, dicomweb, frames, rendered, stow):
        app.include_router(part.router)
    if settings.config.web.oidc is not None:
        from node.web import oidc_login  # its package takes time and memory

        app.include_router(oidc_login.router)
        app.state.single_sign_on = oidc_login.SingleSignOn(settings.config.web.oidc, now)
    for router in API_ROUTERS:
        app.include_router(router, prefix=API, responses=PROBLEMS)
    if STATIC.is_dir():
        app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.include_router(pages.router)
    problems.install(app, pages.error_page)
    app.add_middleware(
        Shield,
        page=pages.error_page,
        answered=app.state.metrics.requests.answered,
        origins=frozenset(settings.config.web.dicomweb_origins),
    )
    return app


def _hold(app: FastAPI, parts: Parts, now: Callable[[], float]) -> None:
    """Attach to the application what lives as long as the process."""
    app.state.parts = parts
    app.state.gate = parts.gate
    app.state.live = Live(partial(change_tokens, parts.database))
    app.state.reception = stow.Reception(parts.store)
    app.state.metrics = Metrics(now)
    app.state.metrics.begin(parts)
    app.state.recent_views = RecentViews(parts.store.audit)
    app.state.searches = Searches()
    app.state.statements = Statements(log_as_json=parts.settings.log_as_json)


# uvicorn waits without end for a header and for who does not read an answer. Here each of these
# waits has an end; a body's has one in the middleware. An answer that takes long, as a live stream,
# is none of these. Who opens many connections at once is for a proxy to turn away.


@dataclass(eq=False)
class _Connection:
    """An accepted connection, with the number of its requests that are being answered."""

    socket: socket.socket
    address: tuple[Any, ...]
    requests: int = 0
    timer: asyncio.TimerHandle | None = None


class HeaderDeadline:
    """Wraps the application, and ends a connection on which no whole header comes in time."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._connections: dict[Any, _Connection] = {}  # by the address of the other side

    def accepted(self, connection: socket.socket, address: tuple[Any, ...]) -> None:
        """Begin to wait for the first header."""
        self._connections[address[:2]] = new = _Connection(connection, address[:2])
        self._wait(new)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = self._connections.get(scope.get("client"))
        if connection is None:
            await self._app(scope, receive, send)
            return
        connection.requests += 1
        if connection.timer is not None:
            connection.timer.cancel()
        try:
            await self._app(scope, receive, send)
        finally:
            connection.requests -= 1
            if not connection.requests:
                self._wait(connection)

    def _wait(self, connection: _Connection) -> None:
        """Give the next header its time; a letter more changes nothing."""
        loop = asyncio.get_running_loop()
        connection.timer = loop.call_later(HEADER_SECONDS, self._end, connection)

    def _end(self, connection: _Connection) -> None:
        if self._connections.get(connection.address) is connection:
            del self._connections[connection.address]
        with contextlib.suppress(OSError):  # it was closed before
            connection.socket.shutdown(socket.SHUT_RDWR)


class _Listener(socket.socket):
    """A listening socket that tells of each connection that it accepts."""

    accepted: Callable[[socket.socket, tuple[Any, ...]], None]

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        # Ends a connection whose other side does not read what was sent to it.
        connection.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD_SECONDS * 1e3)
        )
        self.accepted(connection, address)
        return connection, address


class Server(uvicorn.Server):
    """Serves an application on one socket; takes no signals, the parent says when to stop."""

    def __init__(
        self,
        app: ASGIApp,
        certificate: Path | None = None,
        key: Path | None = None,
        key_password: str = "",
    ):
        self._deadline = HeaderDeadline(app)  # ends a handshake without end too
        super().__init__(
            uvicorn.Config(
                self._deadline,
                ssl_certfile=certificate,
                ssl_keyfile=key,
                ssl_keyfile_password=key_password or None,
                loop="asyncio",  # its sockets are Python's: another loop would not call `accept`
                http="h11",
                ws="none",
                log_config=None,
                access_log=False,  # an address may be a patient's
                server_header=False,
                proxy_headers=False,  # who may speak for others is decided by the gate
                h11_max_incomplete_event_size=MOST_HEADER_BYTES,
                limit_concurrency=MOST_CONNECTIONS,
                timeout_graceful_shutdown=STOP_SECONDS,
            )
        )

    def listen(self, listening: socket.socket) -> None:
        """Serve on this socket until it is told to stop."""
        listener = _Listener(fileno=listening.detach())
        listener.accepted = self._deadline.accepted
        self.run(sockets=[listener])

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main(parent: Connection, settings: WebSettings, listening: socket.socket) -> None:
    """Serve until the parent says so or is gone."""
    log.configure(json=settings.log_as_json)
    with store.opened(settings.config, settings.node_id) as opened, opened.now.kept():
        files.sweep_scratch(opened.files, files.UPLOADS, settings.node_id)
        app = build(settings, opened, now=opened.now)
        app.state.reception.recover()
        web = settings.config.web
        password = password_of(web.key_password) if web.key_password else ""
        server = Server(app, web.certificate, web.key, password)
        threading.Thread(target=_watch, args=(server, app.state.live, parent), daemon=True).start()
        server.listen(listening)
        app.state.reception.close()


def _watch(server: Server, live: Live, parent: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):  # the parent is gone, and so is this process
        parent.recv()  # a word from it: stop
        live.close()
        server.should_exit = True


class WebProcess:
    """The child that serves pages; the parent holds the listening socket, so the port stays."""

    def __init__(self, host: str, port: int, settings: WebSettings) -> None:
        self._settings = settings
        self._check_certificate()
        self._listening = socket.create_server((host, port))
        self._started = 0.0
        self._certificate: tuple[float, ...] = ()
        self._child: Child | None = None

    @property
    def port(self) -> int:
        """The port that it serves."""
        return int(self._listening.getsockname()[1])

    def start(self) -> int:
        """Start the child; returns the port that it serves."""
        # No daemon: it has children of its own, which answer one question each.
        inside = (self._settings, self._listening)
        self._child = Child("web", main, *inside, daemon=False, limits=LIMITS)
        self._started = time.monotonic()
        self._certificate = self._changed_at()
        return self.port

    def watch(self) -> None:
        """Start the child again where it died, or its certificate was replaced."""
        child = self._child
        if child is None or time.monotonic() - self._started < LEAST_SECONDS:
            return
        if child.is_alive:
            if self._changed_at() == self._certificate or not self._is_replaced():
                return
            logger.info("web certificate replaced")
            self._end(child)
        else:
            logger.warning("web process died", extra={"exit_code": child.exit_code()})
            child.end()
        self.start()

    def stop(self) -> None:
        """Ask the child to stop, and end it where it does not."""
        if self._child is not None:
            self._end(self._child)
        self._listening.close()

    def _end(self, child: Child) -> None:
        with contextlib.suppress(OSError):  # it is gone already
            child.pipe.send("stop")
        child.end(CHILD_STOP_SECONDS)

    def _is_replaced(self) -> bool:
        """True where the new files can be served; else the old ones are served on."""
        try:
            self._check_certificate()
        except OSError as error:
            self._certificate = self._changed_at()
            extra = {"file": str(self._settings.config.web.certificate), "why": sentence_of(error)}
            logger.error("certificate not replaced", extra=extra)  # noqa: TRY400 - said in words
            return False
        return True

    def _check_certificate(self) -> None:
        """Raise OSError where the pages cannot be served with the files of the certificate."""
        web = self._settings.config.web
        if web.certificate is not None:
            files = TlsFiles(web.certificate, web.key, None, key_password=web.key_password)
            try:
                server_context(files, verifies=False)
            except OSError as error:
                raise TlsFailed(sentence_of(error)) from error

    def _changed_at(self) -> tuple[float, ...]:
        """When the files of the certificate changed; nothing while they are being replaced."""
        web = self._settings.config.web
        try:
            kind, _, place = web.key_password.partition(":")
            password = Path(place) if kind == "file" else None
            paths = (web.certificate, web.key, password)
            return tuple(path.stat().st_mtime for path in paths if path is not None)
        except OSError:
            return self._certificate
