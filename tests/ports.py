"""Ports for programs that must be told one, and for peers that are away."""

import contextlib
import os
import socket
from collections.abc import Iterator

HOST = "127.0.0.1"
# Below what the kernel gives to outgoing connections: none of them takes the port meanwhile.
FIRST, LAST = 20_000, 32_000
APART = 97  # between the first ports of two processes that follow each other


def _ports() -> Iterator[int]:
    """Each in turn, from another one on in every process that runs tests."""
    count = LAST - FIRST
    at = os.getpid() * APART
    while True:
        yield FIRST + at % count
        at += 1


_next = _ports()


def free_port() -> int:
    """A port that nobody listens on; not the same one twice."""
    while True:
        port = next(_next)
        with contextlib.suppress(OSError):
            socket.create_server((HOST, port)).close()
            return port
