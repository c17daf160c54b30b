"""Fixtures for all tests: a clock to turn, and both databases, migrated and empty."""

import gc
import itertools
import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from storage.database import Database
from storage.schema import metadata
from tests.postgres import PostgresServer, postgres

TEMPLATE = "migrated"
KINDS = ("sqlite", "postgresql")
BUSY_SECONDS = 60.0  # eight threads at once on a busy machine; what is busy is tried elsewhere
LARGE = 1000  # rows
EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "100"))  # of each property that Hypothesis tries

# Threads of one convolution that wait for each other sleep: several workers share the cores, and
# waiting awake takes them from each other. Read when torch is loaded, here and in child processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
settings.register_profile("midslice", max_examples=EXAMPLES)
settings.load_profile("midslice")

_numbers = itertools.count(1)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import without looking for garbage, and look for none in what was imported.

    That are a million objects, over half a second each time, and they live as long as the process.
    A look after every seven hundred new objects, as is the default, takes a twentieth of the time
    of tests that make series.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(10_000)
        gc.enable()


class Clock:
    """A clock that a test turns by hand."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with postgres() as server:
        database = Database(server.create(TEMPLATE))
        database.migrate()
        database.close()
        yield server


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file with the schema and no rows, to copy."""
    folder = tmp_path_factory.mktemp("migrated")
    database = Database.for_folder(folder)
    database.migrate()
    database.close()  # the last connection writes the log back: one file holds everything
    (file,) = folder.iterdir()
    return file


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A migrated database of each kind, for one test alone: to break, or to open twice."""
    if request.param == "sqlite":
        file = tmp_path / "midslice.db"
        shutil.copy(request.getfixturevalue("migrated_sqlite"), file)
        yield f"sqlite:///{file}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = f"test_{next(_numbers)}"
    yield server.create(name, template=TEMPLATE)
    server.drop(name)


@pytest.fixture(scope="session")
def sqlite_database(
    migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """One that tests use in turn, each after it was emptied."""
    file = tmp_path_factory.mktemp("shared") / "midslice.db"
    shutil.copy(migrated_sqlite, file)
    database = Database(f"sqlite:///{file}", busy_seconds=BUSY_SECONDS)
    yield database
    database.close()


@pytest.fixture(scope="session")
def postgresql_database(postgres_server: PostgresServer) -> Iterator[Database]:
    """The same on the other kind of server."""
    url = postgres_server.create("shared", template=TEMPLATE)
    database = Database(url, busy_seconds=BUSY_SECONDS)
    yield database
    database.close()


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """An empty database of each kind, whose rows agree with each other at the end."""
    yield from _in_turn(request.getfixturevalue(f"{request.param}_database"))


@pytest.fixture
def sqlite(sqlite_database: Database) -> Iterator[Database]:
    """The same of one kind, for what does not depend on the database."""
    yield from _in_turn(sqlite_database)


def _in_turn(shared: Database) -> Iterator[Database]:
    yield shared
    faults = shared.integrity()
    _empty(shared)
    assert faults == ()


def _empty(database: Database) -> None:
    """Remove all rows, and let numbers begin at 1 again."""
    tables = [table.name for table in reversed(metadata.sorted_tables)]
    with database.writing() as db:
        if database.is_sqlite:
            for name in tables:
                db.exec_driver_sql(f"DELETE FROM {name}")
            return
        # A TRUNCATE of all tables takes ten times as long: it makes new files of each.
        removed = ", ".join(f"{name}_ AS (DELETE FROM {name} RETURNING 1)" for name in tables)
        counts = ", ".join(f"(SELECT count(*) FROM {name}_)" for name in tables)
        rows = db.exec_driver_sql(f"WITH {removed} SELECT {counts}").one()
        db.exec_driver_sql("SELECT setval(oid, 1, false) FROM pg_class WHERE relkind = 'S'")
        large = [name for name, count in zip(tables, rows, strict=True) if count > LARGE]
        if large:  # what is deleted goes on taking time until it is vacuumed
            db.exec_driver_sql(f"TRUNCATE {', '.join(large)} CASCADE")


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """A node lets nobody else read its files: what follows in this process is no node."""
    os.umask(0o022)
    yield
    os.umask(0o022)
