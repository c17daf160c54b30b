"""The migrated schema is `schema.py`, and a migration is all or nothing."""

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, create_engine, inspect, text

from storage.database import Database
from storage.errors import StorageError
from storage.files import Files
from storage.schema import metadata
from tests.conftest import Clock
from tests.postgres import PostgresServer
from tests.unit.storage.stored import SERIES, Stored, later_release


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without a table."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new.db"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    server.drop("empty")
    return server.create("empty")


def schema_of(database: Database) -> dict[str, dict[str, object]]:
    """Everything that the database says of its tables."""
    with database.reading() as db:
        look = inspect(db)
        tables = set(look.get_table_names()) - {"alembic_version"}
        return {
            name: {
                "columns": {
                    one["name"]: (str(one["type"]), one["nullable"], str(one["default"]))
                    for one in look.get_columns(name)
                },
                "key": look.get_pk_constraint(name),
                "references": sorted(str(one) for one in look.get_foreign_keys(name)),
                "indexes": sorted(index_of(one) for one in look.get_indexes(name)),
                "unique": sorted(str(one) for one in look.get_unique_constraints(name)),
                "checks": sorted(str(one) for one in look.get_check_constraints(name)),
            }
            for name in sorted(tables)
        }


def index_of(found: Mapping[str, Any]) -> str:
    options = {name: str(value) for name, value in found.get("dialect_options", {}).items()}
    return str({**found, "dialect_options": options})


def test_the_migrated_schema_is_the_one_that_the_code_means(empty_url: str) -> None:
    database = Database(empty_url)
    database.migrate()
    migrated = schema_of(database)
    with database.reading() as db:
        assert compare_metadata(MigrationContext.configure(db), metadata) == []
    with database.writing() as db:
        metadata.drop_all(db)
        metadata.create_all(db)
    assert migrated == schema_of(database)
    assert set(migrated) == set(metadata.tables)
    assert "arriving" in str(migrated["arrival"]["indexes"])
    database.close()


def test_every_rule_of_the_schema_has_a_name_of_its_own() -> None:
    for table in metadata.tables.values():
        for rule in table.constraints:
            assert rule.name, f"{table.name}: {rule}"
            if isinstance(rule, CheckConstraint):
                assert str(rule.name) != "None"


def test_a_second_migration_changes_nothing(empty_url: str) -> None:
    database = Database(empty_url)
    assert not database.is_current()
    database.migrate()
    before = schema_of(database)
    with database.writing() as db:
        db.execute(text("INSERT INTO fact (name, value) VALUES ('a', 'b')"))
    database.migrate()
    assert database.is_current()
    assert schema_of(database) == before
    with database.reading() as db:
        assert db.execute(text("SELECT value FROM fact")).scalars().all() == ["b"]
    database.close()


def test_a_database_of_a_newer_release_is_left_alone(database_url: str) -> None:
    database = Database(database_url)
    with database.writing() as db:
        db.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert not database.is_current()
    with pytest.raises(StorageError, match="made by a newer release"):
        database.migrate()
    database.close()


def test_a_migration_that_fails_leaves_nothing_behind(empty_url: str) -> None:
    engine = create_engine(Database(empty_url).url)
    with engine.begin() as db:
        db.execute(text("CREATE TABLE delivery (id INTEGER)"))  # in the way of the last table
    database = Database(empty_url)
    with pytest.raises(StorageError):
        database.migrate()
    with database.reading() as db:
        assert inspect(db).get_table_names() == ["delivery"]
    with engine.begin() as db:
        db.execute(text("DROP TABLE delivery"))
    database.migrate()
    assert database.is_current()
    database.close()
    engine.dispose()


def test_references_are_checked_again_after_a_migration(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/new.db")
    database.migrate()
    with (
        pytest.raises(StorageError, match="SQLITE_CONSTRAINT_FOREIGNKEY"),
        database.writing() as db,
    ):
        db.execute(text("INSERT INTO arrival_instance VALUES (7, 7, 1.0)"))
    database.close()


def test_a_row_that_points_nowhere_stops_a_migration(migrated_sqlite: Path, tmp_path: Path) -> None:
    file = tmp_path / "midslice.db"
    file.write_bytes(migrated_sqlite.read_bytes())
    damaged = sqlite3.connect(file, isolation_level=None)
    damaged.execute("INSERT INTO arrival_instance VALUES (7, 7, 1.0)")
    damaged.close()
    database = Database(f"sqlite:///{file}")
    assert database.integrity() == (
        "arrival_instance row ? points nowhere",  # its table has no row numbers
        "arrival_instance row ? points nowhere",
    )
    with pytest.raises(StorageError, match="points nowhere; nothing changed"):
        database.migrate()
    database.close()


def test_a_later_migration_may_make_a_table_anew_that_others_point_to(
    database_url: str, tmp_path: Path
) -> None:
    database = Database(database_url)
    stored = Stored(database, Files(tmp_path / "var", 0), Clock())
    stored.ask("k")
    database.migrate(later_release(tmp_path))
    with database.reading() as db:
        assert db.execute(text("SELECT body_part, modality FROM series")).all() == [("-", "CT")]
    assert stored.claim().series_uid == SERIES
    assert database.integrity() == ()
    database.close()
