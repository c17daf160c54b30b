"""One database, SQLite or PostgreSQL: two kinds of transaction, its errors, rows as records."""

import json
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import StrEnum
from functools import cache, lru_cache, partial
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from sqlalchemy import (
    Connection,
    Engine,
    Executable,
    Row,
    Select,
    Table,
    create_engine,
    event,
    func,
    select,
    text,
)
from sqlalchemy import exc as sqlalchemy_errors
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from storage import migrations
from storage.errors import Busy, DatabaseDamaged, NoRoom, StorageError
from storage.files import file_system, sync
from storage.records import Delivery, DerivedMark, Job, Received

# File systems over a network, where locks or shared memory do not work as SQLite needs them.
NETWORK = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "fuse.ceph", "fuse.glusterfs"),
        *("fuse.s3fs", "fuse.sshfs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"),
        *("ocfs2", "orangefs", "smb2", "smb3", "smbfs", "vboxsf", "vmhgfs"),
    }
)


def network_file_system(path: Path) -> str | None:
    """The type of the network file system that `path` lies on, or None for a local disk."""
    kind = file_system(path)
    return kind if kind in NETWORK else None


FILE_NAME = "midslice.db"

Record = TypeVar("Record")

# A write that does not get its turn in this time is given up; the peer is asked to come again.
BUSY_SECONDS = 5.0
POOL_SIZE = 8
CLOCK_SECONDS = 10.0
BEGIN_TO_WRITE = "BEGIN IMMEDIATE"
MOST_CONNECTIONS = 32  # to PostgreSQL; of SQLite all are kept

# How the name or SQLSTATE of a driver's error begins, and what it means to a caller. First match.
SQLITE_ERRORS: tuple[tuple[str, type[StorageError]], ...] = (
    ("SQLITE_FULL", NoRoom),
    ("SQLITE_BUSY", Busy),
    ("SQLITE_LOCKED", Busy),
    ("SQLITE_IOERR", Busy),
    ("SQLITE_CANTOPEN", Busy),
    ("SQLITE_READONLY", Busy),  # a file system that went read-only
    ("SQLITE_CORRUPT", DatabaseDamaged),
    ("SQLITE_NOTADB", DatabaseDamaged),
)
POSTGRESQL_ERRORS: tuple[tuple[str, type[StorageError]], ...] = (
    ("53100", NoRoom),  # disk full
    ("25006", Busy),  # read only: a standby, or a server that protects itself
    ("53", Busy),  # insufficient resources, too many connections
    ("08", Busy),  # connection exception
    ("40", Busy),  # serialization failure, deadlock
    ("55P03", Busy),  # lock not available
    ("57", Busy),  # operator intervention: shutdown, statement timeout
    ("58", Busy),  # system error outside PostgreSQL
    ("XX001", DatabaseDamaged),  # data corrupted
    ("XX002", DatabaseDamaged),  # index corrupted
)


# Any number, for the advisory locks of nodes on one PostgreSQL; the second one is made of a name.
LOCKS_SPACE = 531_800_811

DAMAGED = (
    "the database is damaged ({name}). Stop the node and bring back a backup with midslice restore "
    "FILE. Without one, move the database away: with a new one the node takes its index from the "
    "archive, and processes what is there once more"
)


# A receive transaction is not synced, and a checkpoint is: where nothing else writes, one for about
# 500 instances instead of one for 50.
RECEIVE_CHECKPOINT_PAGES = 10_000


# Of each connection. A node has nine, and with 2 MB of rows and 128 statements, as the libraries have
# it, their caches take more memory for hours. Rows that are not in them lie in the system's cache.
CACHE_KIB = 512
CACHED_STATEMENTS = 64


def is_sqlite(url: str) -> bool:
    """True where the database of that URL, or of none, is one of SQLite."""
    return not url.startswith("postgresql")


class Database:
    """The rows. `reading`, `writing` and `receiving` are the only ways in."""

    def __init__(self, url: str, *, busy_seconds: float = BUSY_SECONDS) -> None:
        self.url = _checked(url)
        self._busy_seconds = busy_seconds
        self._is_sqlite = self.url.get_backend_name() == "sqlite"
        self._engine = _engine(self.url, busy_seconds)
        self._driver_error: type[Exception] = cast(Any, self._engine.dialect).loaded_dbapi.Error
        self._reader, self._writer = self._engines()
        self._turn = threading.Lock()
        self._receiver: PoolProxiedConnection | None = None  # on SQLite, and never the pool's again

    @classmethod
    def for_folder(cls, folder: Path, url: str = "") -> "Database":
        """The database at `url`, or where it is empty the SQLite file in the storage folder."""
        if url:
            return cls(url)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cls(f"sqlite:///{folder.resolve() / FILE_NAME}")

    @property
    def is_sqlite(self) -> bool:
        return self._is_sqlite

    @property
    def file(self) -> tuple[int, int] | None:
        """The file that lies at its place now, by device and inode; None without one.

        What was opened before another one took its place is written to all the same, and gone.
        """
        try:
            facts = Path(str(self.url.database)).stat() if self._is_sqlite else None
        except OSError:
            return None
        return (facts.st_dev, facts.st_ino) if facts is not None else None

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A consistent view; waits for no writer."""
        with _translated(self._driver_error), self._reader.begin() as db:
            yield db

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A write transaction, on SQLite the only one; committed and on disk when it ends."""
        with _translated(self._driver_error), self._alone(), self._writer.begin() as db:
            yield db

    @contextmanager
    def receiving(self) -> Iterator[DBAPICursor]:
        """A write transaction for rows that files can bring back: `storage/recovery.py`.

        On SQLite it is committed and seen by all, but only on disk with the next one of `writing`:
        a power cut may take the newest of them, and never one from between two others. On
        PostgreSQL it is as any other, since the server may fail where the files do not.
        """
        with _translated(self._driver_error), self._alone():
            connection = self._receiver or self._engine.raw_connection()
            if self._is_sqlite and self._receiver is None:
                self._receiver = self._as_receiver(connection)
            try:
                cursor = connection.cursor()
                if self._is_sqlite:
                    cursor.execute(BEGIN_TO_WRITE)
                yield cursor
                connection.commit()
            except BaseException:
                connection.rollback()
                raise
            finally:
                if not self._is_sqlite:
                    connection.close()

    @contextmanager
    def alone(self, name: str) -> Iterator[bool]:
        """True for one process at a time of all that work on this database, until the block ends.

        On SQLite one node alone works. On PostgreSQL the lock ends with the process that has it.
        """
        if self._is_sqlite:
            yield True
            return
        with (
            _translated(self._driver_error),
            # Without a transaction: that would keep the server from tidying up behind it.
            self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as db,
        ):
            is_ours = db.execute(select(func.pg_try_advisory_lock(*_lock(name)))).scalar_one()
            try:
                yield bool(is_ours)
            finally:
                if is_ours:
                    db.execute(select(func.pg_advisory_unlock(*_lock(name))))

    def in_turn(self, db: Connection, name: str) -> None:
        """Wait until no other transaction that has called this with the name is under way."""
        if not self._is_sqlite:
            db.execute(select(func.pg_advisory_xact_lock(*_lock(name))))

    def settle(self) -> None:
        """Wait until all that `receiving` has committed is on disk."""
        if self._is_sqlite:
            sync(Path(f"{self.url.database}-wal"))

    def records(self, kind: type[Record], query: Select[*tuple[Any, ...]]) -> tuple[Record, ...]:
        """The rows of a query as records."""
        with self.reading() as db:
            return to_records(kind, db.execute(query))

    def record(self, kind: type[Record], query: Select[*tuple[Any, ...]]) -> Record | None:
        """The only row of a query as a record; None where there is none."""
        with self.reading() as db:
            return one_record(kind, db, query)

    def values(self, query: Select[*tuple[Any, ...]]) -> tuple[Any, ...]:
        """The first column of a query's rows."""
        with self.reading() as db:
            return tuple(db.execute(query).scalars())

    def prepared(self, statement: Executable, *columns: str) -> "Prepared":
        """A statement that is run for each instance; `columns` are those that an INSERT is given.

        It is composed once: for one instance, composing takes longer than running.
        """
        return Prepared(statement, columns, self._engine)

    def insert(self, table: Table) -> postgresql.Insert:
        """An INSERT that knows ON CONFLICT; both dialects spell it alike."""
        if self._is_sqlite:
            return cast(postgresql.Insert, sqlite.insert(table))
        return postgresql.insert(table)

    def migrate(self, scripts: Path = migrations.FOLDER, *, revision: str = "head") -> None:
        """Bring the schema to this release's, or to an older revision; all of it or nothing."""
        with _translated(self._driver_error), self._alone(), self._engine.connect() as db:
            migrations.upgrade(db.execution_options(writes=True), scripts, revision)

    def is_current(self) -> bool:
        """True where the schema is the one that this release works with."""
        with self.reading() as db:
            return migrations.is_current(db)

    def revision(self) -> str:
        """The revision of the schema; empty where there is none yet."""
        with self.reading() as db:
            return migrations.revision(db)

    def integrity(self) -> tuple[str, ...]:
        """Faults that the database finds in itself; on PostgreSQL its own tools find them."""
        if not self._is_sqlite:
            return ()
        with self.reading() as db:
            faults = [str(row[0]) for row in db.exec_driver_sql("PRAGMA integrity_check")]
            orphans = db.exec_driver_sql("PRAGMA foreign_key_check").all()
        named = [fault for fault in faults if fault != "ok"]
        return (*named, *(f"{row[0]} row {row[1] or '?'} points nowhere" for row in orphans))

    def close(self) -> None:
        receiver, self._receiver = self._receiver, None  # it may be opened again
        if receiver is not None:
            receiver.close()
        self._engine.dispose()

    def _as_receiver(self, connection: PoolProxiedConnection) -> PoolProxiedConnection:
        connection.detach()
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute(f"PRAGMA wal_autocheckpoint = {RECEIVE_CHECKPOINT_PAGES}")
        cursor.close()
        return connection

    def _engines(self) -> tuple[Engine, Engine]:
        if self._is_sqlite:
            return self._engine, self._engine.execution_options(writes=True)
        view = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        return self._engine.execution_options(**view), self._engine

    def _alone(self) -> AbstractContextManager[None]:
        return self._our_turn() if self._is_sqlite else nullcontext()

    @contextmanager
    def _our_turn(self) -> Iterator[None]:
        # SQLite lets writers poll for its lock, up to 100 ms at a time: inside a process a real
        # lock is faster and fairer.
        if not self._turn.acquire(timeout=self._busy_seconds):
            raise Busy(f"no turn to write in {self._busy_seconds:g} s")
        try:
            yield
        finally:
            self._turn.release()


def _lock(name: str) -> tuple[int, int]:
    """The two numbers of an advisory lock."""
    return LOCKS_SPACE, zlib.crc32(name.encode()) - (1 << 31)


class ClusterClock:
    """The time of all nodes on one database: that of its server, whatever their machines say.

    Read now and then, and counted on by a clock that nobody sets. On SQLite it is the machine's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ahead = 0.0  # of the clock that nobody sets
        self._stop = threading.Event()
        self.set()

    def __call__(self) -> float:
        return time.time() if self._database.is_sqlite else time.monotonic() + self._ahead

    def set(self) -> None:
        """Read the time of the server."""
        if self._database.is_sqlite:
            return
        with self._database.reading() as db:
            before = time.monotonic()
            query = text("SELECT extract(epoch FROM clock_timestamp())::float8")
            now = float(db.execute(query).scalar_one())
            self._ahead = now - (before + time.monotonic()) / 2

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Set it again and again, as long as the block lasts."""
        keeper = threading.Thread(target=self._keep, daemon=True, name="clock")
        if not self._database.is_sqlite:
            keeper.start()
        try:
            yield
        finally:
            self._stop.set()

    def _keep(self) -> None:
        while not self._stop.wait(CLOCK_SECONDS):
            with suppress(StorageError):  # no server: then it goes on as it was
                self.set()


class Prepared:
    """A statement in the driver's own words; its values are of types that need no conversion."""

    def __init__(self, statement: Executable, columns: Sequence[str], engine: Engine) -> None:
        compiled = cast(Any, statement).compile(engine, column_keys=columns or None)
        self._sql = str(compiled)
        self._defaults: dict[str, Any] = compiled.params
        order: list[str] | None = compiled.positiontup  # None: by name
        # By the driver in their order; every statement has two values at least.
        self._given = itemgetter(*order) if order else None

    def run(self, cursor: DBAPICursor, values: Mapping[str, object]) -> Sequence[Any] | None:
        """Run it; the first row where it has any."""
        named = {**self._defaults, **values}
        given = named if self._given is None else self._given(named)
        cursor.execute(self._sql, given)
        return cursor.fetchone() if cursor.description else None

    def number(self, cursor: DBAPICursor, values: Mapping[str, object]) -> int:
        """Run a statement that returns an id; the id."""
        row = self.run(cursor, values)
        assert row is not None
        return int(row[0])


def _checked(url: str) -> URL:
    try:
        parsed = make_url(url)
    except sqlalchemy_errors.ArgumentError as error:
        raise StorageError("storage.database is not an SQLAlchemy URL") from error
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise StorageError(f"database {backend!r} is not supported; allowed: sqlite, postgresql")
    if parsed.database in (None, "", ":memory:"):
        raise StorageError("an SQLite database must be a file: sqlite:////folder/midslice.db")
    kind = network_file_system(Path(str(parsed.database)))
    if kind is not None:
        raise StorageError(
            f"{parsed.database} lies on a network file system ({kind}), where SQLite loses data; "
            "use a local disk, or PostgreSQL"
        )
    return parsed


def _engine(url: URL, busy_seconds: float) -> Engine:
    options: dict[str, Any] = {
        "hide_parameters": True,  # they may be patient attributes, and errors end in logs
        "pool_size": POOL_SIZE,
        "pool_timeout": busy_seconds,
        # The last one used: SQLite drops what it has cached where another connection has written.
        "pool_use_lifo": True,
    }
    if url.get_backend_name() == "postgresql":
        arguments = _postgresql_arguments(busy_seconds)
        try:
            options |= {"max_overflow": MOST_CONNECTIONS - POOL_SIZE, "pool_pre_ping": True}
            return create_engine(url, connect_args=arguments, **options)
        except ModuleNotFoundError as error:
            sentence = "PostgreSQL needs the extra: pip install 'midslice[postgresql]'"
            raise StorageError(sentence) from error
    # None for a moment: the descriptor of one that is closed stays open while others have the file.
    options["max_overflow"] = 0
    arguments = {"timeout": busy_seconds, "cached_statements": CACHED_STATEMENTS}
    engine = create_engine(url, connect_args=arguments, **options)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


# What is asked takes milliseconds of rows that are in memory: looked up by an index, and before
# processes that helped had started. The server's defaults are those of slow disks and long sums.
POSTGRESQL_PLANS = {"random_page_cost": 1.1, "max_parallel_workers_per_gather": 0, "jit": "off"}


def _postgresql_arguments(busy_seconds: float) -> dict[str, object]:
    """Every wait has an end: for the server, for a lock, for a statement, for a dead network."""
    milliseconds = max(1, int(busy_seconds * 1000))
    session = {
        "lock_timeout": milliseconds,
        "statement_timeout": 4 * milliseconds,
        **POSTGRESQL_PLANS,
    }
    return {
        "connect_timeout": max(2, int(busy_seconds)),
        "options": " ".join(f"-c {name}={value}" for name, value in session.items()),
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 2,
        "tcp_user_timeout": 20_000,
    }


def _prepare_sqlite(connection: Any, record: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # the driver begins nothing: `_begin_sqlite` does
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")


def _begin_sqlite(db: Connection) -> None:
    # With the driver's defaults a read saw two states in one transaction, and DDL was not part of
    # a migration's transaction.
    begin = BEGIN_TO_WRITE if db.get_execution_options().get("writes") else "BEGIN"
    connection = cast(sqlite3.Connection, db.connection.driver_connection)
    connection.execute(begin)  # the library takes ten times as long to hand it on


@contextmanager
def _translated(driver_error: type[Exception]) -> Iterator[None]:
    try:
        yield
    except sqlalchemy_errors.TimeoutError as error:
        raise Busy("every database connection is in use") from error
    except driver_error as error:
        is_operational = type(error).__name__ == "OperationalError"
        raise _translation(error, is_operational=is_operational) from error
    except sqlalchemy_errors.DBAPIError as error:
        is_operational = isinstance(error, sqlalchemy_errors.OperationalError)
        raise _translation(error.orig, is_operational=is_operational) from error


def _translation(driver: BaseException | None, *, is_operational: bool = False) -> StorageError:
    """The error for a caller; never the driver's text, which may quote a row."""
    name = str(getattr(driver, "sqlite_errorname", "") or getattr(driver, "sqlstate", "") or "")
    for begin, kind in (*SQLITE_ERRORS, *POSTGRESQL_ERRORS):
        if name.startswith(begin):
            return kind(
                DAMAGED.format(name=name) if kind is DatabaseDamaged else f"database: {name}"
            )
    if is_operational and not name:
        return Busy("database: no connection")
    return StorageError(f"database: {name or type(driver).__name__}")


MARK = ("revision", "place", "named")
SHORT = 16  # the columns of modality and study date


def to_record(
    kind: type[Record], row: Row[*tuple[Any, ...]], prefix: str = "", **given: Any
) -> Record:
    """A row as a record, each column converted by the type of the field that has its name.

    A record within a record has columns of its own, labelled with the field's name before theirs.
    """
    columns = row._mapping
    values = []
    for name, convert in _fields(cast(Any, kind)):
        if name in given:
            values.append(given[name])
        elif isinstance(convert, _Inner):
            values.append(to_record(convert.kind, row, f"{prefix}{name}_"))
        else:
            value = columns[prefix + name]
            values.append(value if convert is None else convert(value))
    return kind(*values)


def to_records(kind: type[Record], rows: Iterable[Row[*tuple[Any, ...]]]) -> tuple[Record, ...]:
    return tuple(to_record(kind, row) for row in rows)


def one_record(
    kind: type[Record], db: Connection, query: Select[*tuple[Any, ...]]
) -> Record | None:
    """The only row of a query as a record; None where there is none."""
    row = db.execute(query).one_or_none()
    return to_record(kind, row) if row is not None else None


@dataclass(frozen=True)
class _Inner:
    """A field that is a record itself."""

    kind: type[Any]


@cache
def _fields(kind: Any) -> tuple[tuple[str, Callable[[Any], Any] | _Inner | None], ...]:
    """The fields of a record in their order, each with what makes its value of a column's."""
    types = get_type_hints(kind)
    return tuple((field.name, _converter(types[field.name])) for field in fields(kind))


def _converter(of: Any) -> Callable[[Any], Any] | _Inner | None:
    if get_origin(of) is tuple:
        return partial(_to_tuple, get_args(of)[0])
    if get_origin(of) is Mapping:
        return json.loads
    if is_dataclass(of) and isinstance(of, type):
        return _Inner(of)
    if of is bool or (isinstance(of, type) and issubclass(of, StrEnum)):
        return cast(Callable[[Any], Any], of)
    return None


def _to_tuple(of: Any, text: str) -> tuple[Any, ...]:
    values = json.loads(text)
    return tuple(values) if of is str else tuple(of(**value) for value in values)


def to_job(row: Row[*tuple[Any, ...]]) -> Job:
    return to_record(Job, row, destinations=to_names(row.destinations), mark=to_mark(row))


def to_mark(row: Row[*tuple[Any, ...]]) -> DerivedMark:
    return DerivedMark(row.revision, row.place, row.route if row.named else "")


def mark_columns(mark: DerivedMark) -> dict[str, object]:
    return {"revision": mark.revision, "place": mark.place, "named": int(mark.route != "")}


def to_delivery(row: Row[*tuple[Any, ...]]) -> Delivery:
    # The comment may name a patient: the row's own sentence, which notices quote, is without it.
    answer = f' The destination says: "{row.comment}"' if row.sentence and row.comment else ""
    return to_record(Delivery, row, sentence=row.sentence + answer)


def to_json(value: Mapping[str, object] | tuple[str, ...]) -> str:
    return json.dumps(value, sort_keys=True)


def to_names(lines: str | None) -> tuple[str, ...]:
    """The destinations of a job, each once; in shadow mode a line is empty."""
    return tuple(dict.fromkeys(filter(None, (lines or "").split("\n"))))


def fits(received: Received) -> Received:
    """The same in text that both databases take; the file keeps what the peer has sent."""
    fitting = {
        "modality": _text(received.modality)[:SHORT],
        "patient_id": _text(received.patient_id),
        "accession": _text(received.accession),
        "study_date": _text(received.study_date)[:SHORT],
        "description": _text(received.description),
        "patient_name": _text(received.patient_name),
    }
    is_fitting = all(getattr(received, name) == text for name, text in fitting.items())
    return received if is_fitting else replace(received, **fitting)


@lru_cache(maxsize=256)
def name_key(patient_name: str) -> str:
    """A name as it is searched by: case-folded, one space between its parts (PS3.5 6.2.1)."""
    parts = patient_name.replace("^", " ").replace("=", " ").split()
    return " ".join(parts).casefold()


def sought_keys(text: str) -> tuple[str, ...]:
    """The beginnings of names that `text` looks for.

    The pages write "Family, Given"; a peer may also have sent a comma within a part of the name.
    """
    keys = (name_key(text), name_key(text.replace(",", " ")))
    return tuple(key for key in dict.fromkeys(keys) if key)


@lru_cache(maxsize=1024)  # most are those of the series
def _text(value: str) -> str:
    """Without NUL, which PostgreSQL refuses, and lone surrogates, which no database takes."""
    return value.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
