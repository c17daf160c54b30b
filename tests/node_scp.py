"""The node's own SCP on a real socket, with a minimal archive that fails when it is told to."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from node.dicom.admission import Admission
from node.dicom.scp import Scp, ScpSettings
from storage.errors import Busy
from storage.records import Peer, Received

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Kept:
    """An instance that the node's SCP has kept."""

    received: Received
    peer: Peer
    path: Path


class Archive:
    """A minimal archive behind a real SCP: it moves the files, and fails when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.incoming = folder / "incoming"
        self.incoming.mkdir(parents=True)
        self.kept: list[Kept] = []
        self.failures: list[Exception] = []
        self.takes_no_rows = threading.Event()  # a database that is locked, full or read-only
        self.associations: list[tuple[object, ...]] = []
        self._lock = threading.Lock()

    def keep(self, received: Received, peer: Peer, incoming: Path, digest: str) -> None:
        """Move the file away, as an archive does."""
        with self._lock:
            if self.failures:
                raise self.failures.pop(0)
            target = incoming.rename(self.folder / f"{len(self.kept)}.dcm")
            self.kept.append(Kept(received, peer, target))

    def associated(self, calling_ae: str, called_ae: str, address: str, at: float) -> int:
        """Note it; the number is its place."""
        with self._written():
            self.associations.append(("opened", calling_ae, called_ae, address))
            return len(self.associations)

    def dissociated(self, association_id: int, how: str, at: float) -> None:
        """Note it."""
        with self._written():
            self.associations.append(("ended", association_id, how))

    def rejected(
        self, calling_ae: str, called_ae: str, address: str, reason: str, at: float
    ) -> None:
        """Note it."""
        with self._written():
            self.associations.append(("rejected", calling_ae, called_ae, reason))

    @contextmanager
    def _written(self) -> Iterator[None]:
        if self.takes_no_rows.is_set():
            raise Busy("database: SQLITE_BUSY")
        with self._lock:
            yield

    def ends(self) -> list[str]:
        """How associations ended, in this order."""
        return [str(entry[2]) for entry in self.associations if entry[0] == "ended"]

    def is_log_written(self) -> bool:
        """True where every association that began in the log has ended there."""
        begun = sum(entry[0] == "opened" for entry in self.associations)
        return begun == len(self.ends())

    def rejections(self) -> list[tuple[object, ...]]:
        """Who was rejected and why: (calling, called, reason)."""
        return [entry[1:] for entry in self.associations if entry[0] == "rejected"]

    def litter(self) -> list[Path]:
        """What lies in the folder for what is arriving."""
        return list(self.incoming.iterdir())


@dataclass(frozen=True)
class Node:
    """The node's SCP with a minimal archive behind it."""

    scp: Scp
    port: int
    archive: Archive


@contextmanager
def node_scp(
    folder: Path, admission: Admission | None = None, **settings: object
) -> Iterator[Node]:
    """Run the node's SCP on a free port."""
    archive = Archive(folder)
    values = {"ae_title": "MIDSLICE", "host": HOST, "port": 0, "incoming": archive.incoming}
    scp = Scp(
        ScpSettings(**(values | settings)),  # type: ignore[arg-type]
        admission or Admission(),
        archive,
    )
    port = scp.start()
    try:
        yield Node(scp, port, archive)
    finally:
        scp.abort()
