"""Facts about the machine and the storage, for `check` and for readyz; nothing here decides."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from storage.database import Database
from storage.errors import StorageError
from storage.records import NodeState
from storage.site.nodes import SERVING, Nodes

# Transfer syntaxes of CT pixels that need a decoder (PS3.5 8.2), and what provides it.
DECODER_PACKAGES: Mapping[str, str] = {
    "1.2.840.10008.1.2.5": "pylibjpeg-rle",
    "1.2.840.10008.1.2.4.50": "pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.51": "pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.57": "pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.70": "pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.91": "pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg-openjpeg",
}


@dataclass(frozen=True)
class Disk:
    """The file system of the storage folder."""

    free_bytes: int
    total_bytes: int

    @property
    def used(self) -> float:
        """The share that is taken."""
        return 1.0 - self.free_bytes / self.total_bytes if self.total_bytes else 1.0


@dataclass(frozen=True)
class Decoder:
    """Whether the pixels of one transfer syntax can be decoded here."""

    transfer_syntax: str
    name: str
    package: str  # that provides it
    is_available: bool


def disk(folder: Path) -> Disk:
    """The disk that the folder lies on, or will lie on once it is made."""
    usage = shutil.disk_usage(existing(folder))
    return Disk(usage.free, usage.total)


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def decoders() -> tuple[Decoder, ...]:
    """Each transfer syntax that a CT may come in compressed, and whether it can be read."""
    from pydicom.pixels.decoders.base import (
        get_decoder,  # loads every decoder: not in the web process
    )
    from pydicom.uid import UID

    return tuple(
        Decoder(syntax, UID(syntax).name, package, get_decoder(UID(syntax)).is_available)
        for syntax, package in DECODER_PACKAGES.items()
    )


def unready(
    database: Database,
    node_id: str,
    *,
    folder: Path | str,
    min_free_bytes: int,
    now: float,
    beat_seconds: float,
) -> list[str]:
    """Why the node cannot take and process series; empty where it can."""
    reasons = []
    free = disk(Path(folder)).free_bytes
    if free < min_free_bytes:
        reasons.append(
            f"the disk has {free / 1e9:.1f} GB free, "
            f"storage.min_free_gb asks for {min_free_bytes / 1e9:g}"
        )
    try:
        found = node_state(database, node_id)
    except StorageError as error:
        return [*reasons, f"the database does not answer: {error}"]
    if found is None:
        return [*reasons, "the node has not started yet"]
    if found.state != SERVING:
        reasons.append(f"the node is {found.state}")
    elif abs(now - found.heartbeat) > beat_seconds:
        reasons.append(f"the node's last heartbeat is {abs(now - found.heartbeat):.0f} s away")
    return reasons


def node_state(database: Database, node_id: str) -> NodeState | None:
    """The row of a node, where it ever started on this storage."""
    nodes = Nodes(database, lambda: 0.0).get()
    return next((node for node in nodes if node.id == node_id), None)
