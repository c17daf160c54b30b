"""The node's rows and files as a command sees them; the running node is told through them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from node.config import Config
    from storage.archive import Archive
    from storage.audit import Audit
    from storage.database import Database
    from storage.files import Files
    from storage.jobs import Queue
    from storage.ledger import Ledger

# A command claims nothing: no lease is ever taken in its name.
NO_NODE = "command line"
NO_LEASE_SECONDS = 1.0


@dataclass(frozen=True)
class Store:
    """Storage, opened for one command."""

    config: "Config"
    database: "Database"
    files: "Files"
    archive: "Archive"
    queue: "Queue"
    ledger: "Ledger"
    audit: "Audit"

    @property
    def zone(self) -> tzinfo | None:
        """The zone of the times that are shown."""
        return self.config.node.zone


@contextmanager
def opened(path: Path) -> Iterator[Store]:
    """Storage of the configuration in `path`; the database is made where there is none yet."""
    import time

    from node.config import load
    from storage.archive import Archive
    from storage.audit import Audit
    from storage.database import Database
    from storage.files import Files
    from storage.jobs import Queue
    from storage.ledger import Ledger

    config = load(path)
    files = Files(config.folder, config.storage.min_free_bytes)
    database = Database.for_folder(config.folder, config.storage.database)
    try:
        if not database.is_current():
            database.migrate()
        yield Store(
            config=config,
            database=database,
            files=files,
            archive=Archive(database, files, time.time),
            queue=Queue(database, time.time, node=NO_NODE, lease_seconds=NO_LEASE_SECONDS),
            ledger=Ledger(database, time.time, node=NO_NODE, lease_seconds=NO_LEASE_SECONDS),
            audit=Audit(database, time.time),
        )
    finally:
        database.close()
