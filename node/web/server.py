"""The web process: serves rows and files. It imports neither torch nor a pixel decoder."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import uvicorn

from node import log
from node.web.api import build
from storage.database import Database


@dataclass(frozen=True)
class WebSettings:
    """What the parent hands to the web process: everything is picklable."""

    folder: Path
    database: str  # an SQLAlchemy URL, or empty
    node_id: str
    min_free_bytes: int
    log_as_json: bool


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
    database = Database.for_folder(settings.folder, settings.database)
    server = _Server(
        uvicorn.Config(
            build(database, settings.node_id, settings.folder, settings.min_free_bytes),
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=5,  # an event stream never ends by itself
        )
    )

    def watch() -> None:
        try:
            lifeline.recv()  # a word from the parent: stop
        except (EOFError, OSError):
            os._exit(0)  # the parent is gone
        server.should_exit = True

    threading.Thread(target=watch, daemon=True).start()
    server.run(sockets=[listening])
    database.close()
