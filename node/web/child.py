"""The web process as its parent sees it: started with `spawn`, restarted where it dies."""

import contextlib
import logging
import multiprocessing
import socket
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from node.web import server
from node.web.settings import WebSettings

logger = logging.getLogger(__name__)

STOP_SECONDS = 10.0
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
            target=server.main, args=(self._settings, self._listening, theirs), name="web"
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
        self._process.join(STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._lifeline.close()
        self._listening.close()
