"""The way from any earlier schema to this release's: one transaction, all or nothing."""

from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, RevisionStep
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, MetaData, text

from storage.errors import StorageError

# The names of constraints and indexes, in every migration and in `storage.schema`.
NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

FOLDER = Path(__file__).parent

# Any number, the same for every node on one PostgreSQL: two that start at once take turns.
ADVISORY_LOCK = 5_318_008_112


def upgrade(db: Connection, scripts: Path = FOLDER, to: str = "head") -> None:
    """Run what is missing. `db` has no transaction yet; this makes the one that all of it is in."""
    is_sqlite = db.dialect.name == "sqlite"
    if is_sqlite:
        _foreign_keys(db, on=False)  # a table that is made anew for a change is dropped once
    try:
        with db.begin():
            if not is_sqlite:
                db.execute(text("SET LOCAL statement_timeout = 0"))
                db.execute(text("SET LOCAL lock_timeout = 0"))
                db.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": ADVISORY_LOCK})
            _run(db, ScriptDirectory(str(scripts)), to)
            if is_sqlite and db.exec_driver_sql("PRAGMA foreign_key_check").first():
                raise StorageError("a migration left a row that points nowhere; nothing changed")
    finally:
        if is_sqlite:
            _foreign_keys(db, on=True)


def is_current(db: Connection) -> bool:
    """True where the schema is this release's, neither older nor newer."""
    revision = MigrationContext.configure(db).get_current_revision()
    return revision == ScriptDirectory(str(FOLDER)).get_current_head()


def revision(db: Connection) -> str:
    """The revision of the schema; empty where there is none."""
    return MigrationContext.configure(db).get_current_revision() or ""


def _run(db: Connection, scripts: ScriptDirectory, to: str) -> None:

    def steps(revision: Any, context: MigrationContext) -> list[RevisionStep]:
        return list(scripts._upgrade_revs(to, revision))

    with EnvironmentContext(Config(), scripts, fn=steps) as environment:
        named = MetaData(naming_convention=NAMES)
        environment.configure(
            connection=db, target_metadata=named, transactional_ddl=True, render_as_batch=True
        )
        try:
            environment.run_migrations()
        except CommandError as error:
            raise StorageError(
                "the database was made by a newer release: start that release, or restore a backup"
            ) from error


def _foreign_keys(db: Connection, *, on: bool) -> None:
    # Inside a transaction this PRAGMA does nothing, and the connection would begin one for us.
    driver = db.connection.driver_connection
    assert driver is not None
    driver.execute(f"PRAGMA foreign_keys = {'ON' if on else 'OFF'}")
