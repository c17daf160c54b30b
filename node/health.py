"""Findings about a node: those that `check` and readyz share, and the facts that they rest on.

The web process asks here, so nothing of DICOM, pixels or models is imported.
"""

import ipaddress
import shutil
import socket
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil

from storage.database import Database
from storage.errors import StorageError
from storage.records import NodeState
from storage.site.nodes import SERVING, Nodes

ALIVE_SECONDS = 15.0  # a node that has not written its heartbeat for so long does not serve
WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104 - what listens there is reached at any address
LOOPBACK = "127.0.0.1"
LOCAL_HOSTS = frozenset({LOOPBACK, "::1", "localhost"})
ELSEWHERE = ("192.0.2.1", 9)  # RFC 5737: an address that nobody has
DISK_WARNING = 0.8  # of a disk in use


class Level(StrEnum):
    """A finding's weight; one fault makes the check fail."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """A fact about the node, and what a person should do where it is not right."""

    what: str
    level: Level
    sentence: str
    action: str = ""


def addresses(host: str) -> tuple[str, ...]:
    """Addresses at which another machine reaches what listens on `host`, the likeliest first."""
    if host not in WILDCARDS:
        return (host,)
    by_interface = psutil.net_if_addrs().values()
    own = [entry.address for entries in by_interface for entry in entries if _is_outward(entry)]
    first = _outgoing()
    return tuple(sorted(dict.fromkeys(own), key=lambda address: address != first)) or (LOOPBACK,)


def _is_outward(entry: Any) -> bool:
    if entry.family is not socket.AF_INET:
        return False
    address = ipaddress.ip_address(entry.address)
    return not (address.is_loopback or address.is_link_local)


def _outgoing() -> str:
    """The address that this machine sends from; asking for it sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(ELSEWHERE)
        except OSError:  # no network
            return ""
        return str(probe.getsockname()[0])


def ok(what: str, sentence: str) -> Finding:
    """A finding that needs nobody."""
    return Finding(what, Level.OK, sentence)


def warning(what: str, sentence: str, action: str) -> Finding:
    """A finding that will need somebody."""
    return Finding(what, Level.WARNING, sentence, action)


def fault(what: str, sentence: str, action: str = "") -> Finding:
    """A finding that stops series."""
    return Finding(what, Level.FAULT, sentence, action)


@dataclass(frozen=True)
class Disk:
    """The file system of the storage folder."""

    free_bytes: int
    total_bytes: int

    @property
    def used(self) -> float:
        return 1.0 - self.free_bytes / self.total_bytes if self.total_bytes else 1.0


def disk(folder: Path) -> Disk:
    """The disk that the folder lies on, or will lie on once it is made."""
    usage = shutil.disk_usage(existing(folder))
    return Disk(usage.free, usage.total)


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def disk_room(folder: Path, min_free_bytes: int) -> Finding:
    """Room for what is received."""
    room, reserve = disk(folder), f"{min_free_bytes / 1e9:g}"
    free = f"{room.free_bytes / 1e9:.1f} GB free"
    if room.free_bytes < min_free_bytes:
        return fault(
            "disk",
            f"{free}, below storage.min_free_gb = {reserve}: every C-STORE is answered with A700.",
            "Make room, or lower storage.keep_days.",
        )
    if room.used > DISK_WARNING:
        return warning("disk", f"{free} in {folder}, {room.used:.0%} in use", "Make room soon.")
    return ok("disk", f"{free} in {folder}, the reserve is {reserve} GB")


def node_serves(database: Database, node_id: str, now: float) -> Finding:
    """A sign of life of the node itself."""
    try:
        state = node_state(database, node_id)
    except StorageError as error:
        return fault("node", f"the database does not answer: {error}")
    if state is None:
        return fault("node", "the node has not started yet")
    if state.state != SERVING:
        return fault("node", f"the node is {state.state}")
    if not is_alive(state, now):
        away = abs(now - state.heartbeat)
        return fault("node", f"the node's last heartbeat was {away:.0f} s ago")
    return ok("node", "the node serves")


def node_state(database: Database, node_id: str) -> NodeState | None:
    """The row of a node, where it ever started on this storage."""
    nodes = Nodes(database, lambda: 0.0).get()
    return next((node for node in nodes if node.id == node_id), None)


def is_alive(node: NodeState, now: float) -> bool:
    """True where a node serves and gave a sign of life a moment ago."""
    return node.state == SERVING and abs(now - node.heartbeat) <= ALIVE_SECONDS


def unready(
    database: Database, node_id: str, *, folder: Path, min_free_bytes: int, now: float
) -> list[str]:
    """The faults for which the node cannot take and process series; empty where it can."""
    findings = disk_room(folder, min_free_bytes), node_serves(database, node_id, now)
    return [finding.sentence for finding in findings if finding.level is Level.FAULT]
