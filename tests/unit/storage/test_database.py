"""Two kinds of transaction, and errors that a caller can act on."""

import sqlite3
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
from sqlalchemy import insert, select, text

from storage.database import POOL_SIZE, Database, network_file_system
from storage.errors import Busy, NoRoom, StorageError
from storage.schema import fact
from tests.postgres import PostgresServer


def put(database: Database, name: str) -> None:
    with database.writing() as db:
        db.execute(insert(fact).values(name=name, value="v"))


def names(database: Database) -> list[str]:
    with database.reading() as db:
        return list(db.execute(select(fact.c.name).order_by(fact.c.name)).scalars())


def test_a_write_is_there_when_it_ends_and_not_before(database: Database) -> None:
    with database.writing() as db:
        db.execute(insert(fact).values(name="a", value="v"))
        assert names(database) == []
    assert names(database) == ["a"]


def test_a_file_that_is_replaced_or_gone_is_another_one(tmp_path: Path) -> None:
    """A server's own files are its own matter."""
    with closing(Database(f"sqlite:///{tmp_path / 'own.db'}")) as own:
        assert own.file is None
        own.migrate()
        first = own.file
        assert own.file == first is not None
        (tmp_path / "other").touch()
        (tmp_path / "other").replace(tmp_path / "own.db")
        assert own.file not in (first, None)
    with closing(Database("postgresql://db.example/midslice")) as server:
        assert server.file is None


def test_a_write_that_fails_changes_nothing(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.writing() as db:
        db.execute(insert(fact).values(name="a", value="v"))
        raise ZeroDivisionError
    assert names(database) == []


def test_a_reader_sees_one_state_however_long_it_reads(database: Database) -> None:
    with database.reading() as db:
        first = db.execute(select(fact.c.name)).all()
        put(database, "meanwhile")
        assert db.execute(select(fact.c.name)).all() == first == []
    assert names(database) == ["meanwhile"]


def test_a_reader_does_not_wait_for_a_writer(database: Database) -> None:
    with database.writing() as db:
        db.execute(insert(fact).values(name="a", value="v"))
        start = time.perf_counter()
        assert names(database) == []
        assert time.perf_counter() - start < 1.0


def test_nobody_writes_in_a_reading_transaction_on_postgresql(
    postgres_server: PostgresServer,
) -> None:
    database = Database(postgres_server.create("read_only", template="migrated"))
    with pytest.raises(StorageError), database.reading() as db:
        db.execute(insert(fact).values(name="a", value="v"))
    database.close()


def test_an_error_names_its_cause_and_no_value(database: Database) -> None:
    put(database, "a")
    with pytest.raises(StorageError) as caught, database.writing() as db:
        db.execute(insert(fact).values(name="a", value="DOE^JANE"))
    assert "DOE" not in str(caught.value)
    assert str(caught.value) in {"database: SQLITE_CONSTRAINT_PRIMARYKEY", "database: 23505"}


def test_sqlite_is_durable_and_checks_references(migrated_sqlite: Path, tmp_path: Path) -> None:
    file = tmp_path / "midslice.db"
    file.write_bytes(migrated_sqlite.read_bytes())
    database = Database(f"sqlite:///{file}")
    with database.reading() as db:
        found = {
            name: db.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    database.close()


def test_another_process_that_holds_the_lock_makes_us_busy_in_time(
    migrated_sqlite: Path, tmp_path: Path
) -> None:
    file = tmp_path / "midslice.db"
    file.write_bytes(migrated_sqlite.read_bytes())
    database = Database(f"sqlite:///{file}", busy_seconds=0.3)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    start = time.perf_counter()
    with pytest.raises(Busy, match="SQLITE_BUSY"):
        put(database, "a")
    assert 0.2 < time.perf_counter() - start < 3.0
    assert names(database) == []  # reading goes on
    other.execute("ROLLBACK")
    put(database, "a")
    assert names(database) == ["a"]
    other.close()
    database.close()


def test_a_writer_of_our_own_that_never_ends_makes_us_busy_in_time(
    migrated_sqlite: Path, tmp_path: Path
) -> None:
    file = tmp_path / "midslice.db"
    file.write_bytes(migrated_sqlite.read_bytes())
    database = Database(f"sqlite:///{file}", busy_seconds=0.2)
    errors: list[Exception] = []

    def work() -> None:
        try:
            put(database, "a")
        except StorageError as error:
            errors.append(error)

    with database.writing():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(10)
    assert [type(error) for error in errors] == [Busy]
    database.close()


def test_a_row_that_another_node_holds_makes_us_busy_in_time(
    postgres_server: PostgresServer,
) -> None:
    url = postgres_server.create("locked", template="migrated")
    ours, theirs = Database(url, busy_seconds=0.3), Database(url)
    put(theirs, "a")
    with theirs.writing() as db:
        db.execute(text("UPDATE fact SET value = 'w'"))
        with pytest.raises(Busy, match="55P03"), ours.writing() as mine:
            mine.execute(text("UPDATE fact SET value = 'x'"))
    ours.close()
    theirs.close()


def test_a_server_that_is_away_makes_us_busy_and_one_that_is_back_does_not(
    postgres_server: PostgresServer,
) -> None:
    url = postgres_server.create("away", template="migrated")
    database = Database(url, busy_seconds=0.5)
    put(database, "a")
    postgres_server.drop("away")  # ends our connections, as a restart does
    with pytest.raises(Busy, match="no connection|3D000|57P01"):
        put(database, "b")
    postgres_server.create("away", template="migrated")
    put(database, "c")
    assert names(database) == ["c"]
    database.close()


def test_a_full_disk_is_no_room(migrated_sqlite: Path, tmp_path: Path) -> None:
    file = tmp_path / "midslice.db"
    file.write_bytes(migrated_sqlite.read_bytes())
    database = Database(f"sqlite:///{file}")
    with pytest.raises(NoRoom, match="SQLITE_FULL"), database.writing() as db:
        pages = db.exec_driver_sql("PRAGMA page_count").scalar_one()
        db.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        for number in range(1000):
            db.execute(insert(fact).values(name=str(number), value="x" * 1000))
    assert names(database) == []
    database.close()


def test_a_database_that_takes_no_writes_for_now_is_busy(database: Database) -> None:
    only_read = "PRAGMA query_only = ON" if database.is_sqlite else "SET TRANSACTION READ ONLY"
    with pytest.raises(Busy, match="SQLITE_READONLY|25006"), database.writing() as db:
        db.exec_driver_sql(only_read)
        try:
            db.execute(insert(fact).values(name="a", value="x"))
        finally:
            if database.is_sqlite:
                db.exec_driver_sql("PRAGMA query_only = OFF")
    put(database, "b")
    assert names(database) == ["b"]


def test_more_threads_than_connections_wait_and_are_served(database: Database) -> None:
    threads = [threading.Thread(target=put, args=(database, f"{n:03}")) for n in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert names(database) == [f"{n:03}" for n in range(60)]


def test_many_readers_at_once_leave_no_descriptors_behind(tmp_path: Path) -> None:
    with closing(Database.for_folder(tmp_path)) as database:
        database.migrate()
        threads = [threading.Thread(target=linger, args=(database,)) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert names(database) == []
        # Of each connection the file and its log, and the shared memory of all.
        assert 1 < len(descriptors(tmp_path)) <= 2 * POOL_SIZE + 1
    assert descriptors(tmp_path) == []


def linger(database: Database) -> None:
    """Read, and be slow with it."""
    with database.reading() as db:
        db.execute(select(fact.c.name)).all()
        time.sleep(0.02)


def descriptors(folder: Path) -> list[str]:
    """The files there that this process holds open."""
    opened = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            opened.append(str(link.readlink()))
    return [path for path in opened if path.startswith(str(folder))]


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("mysql://localhost/x", "'mysql' is not supported; allowed: sqlite, postgresql"),
        ("sqlite://", "must be a file"),
        ("sqlite:///:memory:", "must be a file"),
        ("no url", "not an SQLAlchemy URL"),
    ],
)
def test_a_database_that_cannot_be_used_is_refused(url: str, sentence: str) -> None:
    with pytest.raises(StorageError, match=sentence):
        Database(url)


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the kernel of this test lists what is mounted."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "filesystems").write_text("\text4\n")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))
    return tmp_path / "proc" / "self" / "mounts"


MOUNTS = r"""
sysfs /sys sysfs rw 0 0
/dev/vda / ext4 rw 0 0
filer:/images /srv/images nfs4 rw 0 0
/dev/vdb /srv/images/local xfs rw 0 0
//pacs/share /srv/a\040share cifs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/midslice.db", None),
        ("/srv/images/midslice.db", "nfs4"),
        ("/srv/images/deep/er/midslice.db", "nfs4"),
        ("/srv/images/local/midslice.db", None),
        ("/srv/images2/midslice.db", None),
        ("/srv/a share/midslice.db", "cifs"),
    ],
)
def test_a_network_file_system_is_recognised(mounts: Path, path: str, kind: str | None) -> None:
    mounts.write_text(MOUNTS)
    assert network_file_system(Path(path)) == kind


def test_sqlite_on_a_network_file_system_is_refused(mounts: Path, tmp_path: Path) -> None:
    mounts.write_text(f"filer:/x {tmp_path} nfs rw 0 0\n")
    with pytest.raises(StorageError, match=r"\(nfs\).* use a local disk, or PostgreSQL"):
        Database(f"sqlite:///{tmp_path}/midslice.db")
    Database(f"sqlite:///{tmp_path.parent}/midslice.db").close()


def test_a_folder_has_its_database_unless_another_is_named(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    database = Database.for_folder(tmp_path / "new")
    database.migrate()
    assert (tmp_path / "new" / "midslice.db").is_file()
    assert database.is_sqlite
    database.close()
    elsewhere = Database.for_folder(tmp_path, postgres_server.url("postgres"))
    assert not elsewhere.is_sqlite
    elsewhere.close()
