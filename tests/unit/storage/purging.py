"""What retention finds and removes, with the days that these tests keep things."""

from pathlib import Path

from storage.records import Expired, Purged
from storage.retention import expired, purge
from tests.unit.storage.stored import Stored

KEEP_DAYS = 7.0
KEEP_UNROUTED_DAYS = 1.0


def old(stored: Stored) -> tuple[Expired, ...]:
    return expired(stored.database, stored.clock.now, KEEP_DAYS, KEEP_UNROUTED_DAYS)


def sweep(stored: Stored) -> Purged:
    return purge(stored.database, stored.files, old(stored), stored.clock.now)


def files_of(stored: Stored) -> list[Path]:
    return [
        path
        for name in ("received", "derived")
        for path in (stored.files.folder / name).rglob("*")
        if path.is_file()
    ]
