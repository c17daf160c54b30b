"""The web process: serves rows and files. It imports neither torch nor a pixel decoder."""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection

import uvicorn
from starlette.types import ASGIApp

from node import log, store
from node.web import connections
from node.web.application import build
from node.web.connections import MOST_HEADER_BYTES, BoundedConnection
from node.web.live import Live
from node.web.settings import WebSettings
from storage import files
from storage.site import people

logger = logging.getLogger(__name__)

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
        limit_concurrency=connections.MOST_CONNECTIONS + 1,
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
