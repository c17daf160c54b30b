"""A backup: rows, secret and configuration of a node in one file, and the way back.

The rows are those of one moment, read while the node works. They stand there as JSON, so that
either kind of database takes those of the other. Received and derived files are not in it.
"""

import json
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import Connection, MetaData, Table, func, select, text

from storage import migrations
from storage.database import Database
from storage.errors import StorageError
from storage.files import sync

FORMAT = 1
MANIFEST, SECRET, CONFIGURATION = "manifest.json", "secret", "config.toml"
ROWS_AT_ONCE = 1000
VERSION_TABLE = "alembic_version"

BEGIN_OF_ZIP = b"PK\x03\x04"
OTHER_FILE = "{target} is there and is no backup; name another file"
NOT_EMPTY = (
    "the database is not empty, and nothing in it is replaced: make a new one (createdb NAME), "
    "name it in storage.database, and restore into that"
)


@dataclass(frozen=True)
class Manifest:
    """The description of a backup; written last, so that what is cut short has none."""

    made_at: float
    revision: str  # of the schema
    rows: Mapping[str, int]  # by table
    format: int = FORMAT


def back_up(
    database: Database, target: Path, now: float, *, secret: bytes = b"", configuration: bytes = b""
) -> Manifest:
    """Write a backup; what had this name is replaced once all of it is on disk."""
    with _replacing(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(SECRET, secret)
        archive.writestr(CONFIGURATION, configuration)
        with database.reading() as db:
            manifest = Manifest(now, migrations.revision(db), _dump(db, archive))
        archive.writestr(MANIFEST, json.dumps(asdict(manifest)))
    return manifest


def read(source: Path, member: str) -> bytes:
    """The secret or the configuration of a backup."""
    with _opened(source) as archive:
        return archive.read(member)


def restore(source: Path, database: Database) -> Manifest:
    """Bring the rows of a backup into an empty database, and it to this release's schema."""
    with _opened(source) as archive:
        manifest = Manifest(**json.loads(archive.read(MANIFEST)))
        with database.reading() as db:
            if _tables(db):
                raise StorageError(NOT_EMPTY)
        database.migrate(revision=manifest.revision)
        with database.writing() as db:
            for table in _tables(db):
                _fill(db, table, archive, manifest.rows.get(table.name, 0))
    database.migrate()
    return manifest


def _dump(db: Connection, archive: zipfile.ZipFile) -> Mapping[str, int]:
    if db.dialect.name == "postgresql":
        db.execute(text("SET LOCAL statement_timeout = 0"))
    counts = {}
    streaming = db.execution_options(yield_per=ROWS_AT_ONCE)
    for table in _tables(db):
        counts[table.name] = 0
        with archive.open(_member(table), "w", force_zip64=True) as lines:
            for row in streaming.execute(select(table)).mappings():
                lines.write(json.dumps(dict(row)).encode() + b"\n")
                counts[table.name] += 1
    return counts


def _fill(db: Connection, table: Table, archive: zipfile.ZipFile, count: int) -> None:
    done = 0
    with archive.open(_member(table)) as lines:
        for rows in _bites(json.loads(line) for line in lines):
            db.execute(table.insert(), rows)
            done += len(rows)
    if done != count:
        raise StorageError(f"the backup has {done} rows of {table.name}, and {count} were written")
    if db.dialect.name == "postgresql" and "id" in table.c and table.c.id.autoincrement is True:
        last = select(func.coalesce(func.max(table.c.id), 1)).scalar_subquery()
        sequence = func.pg_get_serial_sequence(table.name, "id")
        db.execute(select(func.setval(sequence, last, done > 0)))


def _bites(rows: Iterator[dict[str, Any]]) -> Iterator[Sequence[dict[str, Any]]]:
    bite: list[dict[str, Any]] = []
    for row in rows:
        bite.append(row)
        if len(bite) == ROWS_AT_ONCE:
            yield bite
            bite = []
    if bite:
        yield bite


def _tables(db: Connection) -> list[Table]:
    """The tables as this database has them, each after those that it refers to."""
    found = MetaData()
    found.reflect(bind=db)
    return [table for table in found.sorted_tables if table.name != VERSION_TABLE]


def _member(table: Table) -> str:
    return f"tables/{table.name}.jsonl"


@contextmanager
def _opened(source: Path) -> Iterator[zipfile.ZipFile]:
    """A backup all of whose bytes are those that were written."""
    with ExitStack() as opened:
        try:
            archive = opened.enter_context(zipfile.ZipFile(source))
            damaged = archive.testzip() or (MANIFEST not in archive.namelist() and MANIFEST)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise StorageError(f"{source} is no backup, or damaged: take another") from error
        except OSError as error:
            raise StorageError(f"{source}: {error.strerror}") from error
        if damaged:
            raise StorageError(f"{source} is damaged ({damaged}): take another")
        yield archive


def _may_be_replaced(target: Path) -> bool:
    """True where nothing is lost: nothing is there, an empty file, or an earlier backup."""
    try:
        facts = target.lstat()
    except FileNotFoundError:
        return True
    if not stat.S_ISREG(facts.st_mode):
        return False
    with target.open("rb") as file:
        return file.read(len(BEGIN_OF_ZIP)) in (b"", BEGIN_OF_ZIP)


@contextmanager
def _replacing(target: Path) -> Iterator[BinaryIO]:
    """A new file that only its owner reads, in place of another one once all of it is on disk."""
    part = target.with_name(f".{target.name}.part")
    try:
        if not _may_be_replaced(target):
            raise StorageError(OTHER_FILE.format(target=target))
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
        sync(target.parent)
    except OSError as error:
        raise StorageError(f"{target}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
