"""The same on PostgreSQL: its planner is told not to read whole tables, and finds another way.

On a few hundred rows it would read them whole, whatever indexes there are. What it still reads
whole when that is made as dear as can be, no index serves, however many rows there are.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import psycopg
import pytest
from sqlalchemy import Connection, event
from sqlalchemy.pool import Pool

from storage.database import Database
from storage.files import Files
from tests.benchmarks import filler, pages
from tests.conftest import TEMPLATE, Clock
from tests.postgres import PostgresServer
from tests.unit.storage.stored import Stored
from tests.unit.storage.test_whole_tables import BIG, JOBS, PATHS

Plan = Mapping[str, Any]
Asked = tuple[str, Any]  # a statement and its values
# What pays for few rows alone: then the planner looks rows up by their keys, as for millions.
DEAR = ("seqscan", "hashjoin", "mergejoin")
READING = ("Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Index Scan")

# As on SQLite: a part of the statement, and the step.
ALLOWED = (
    # Indexes of part of a table, which hold what is open, kept, held or new.
    ("", r"using ix_(job_(due|needs|requeued)|delivery_open|arrival_open)"),
    ("", r"using ix_(series|derived)_(kept|purging)"),
    # The newest first, or a count that stops at a thousand: of what many have, back in time.
    ("LIMIT", r"using ix_(job_queued_at|job_finished_at|series_last_at|audit_at|echo_at)"),
    ("ORDER BY audit.id DESC", r"using pk_audit"),
    ("SELECT count(*)", r"using pk_(series|delivery)"),
    # What is counted by its state, and descriptions: an index of nothing but these.
    ("GROUP BY job.state", r"using ix_job_ended"),
    ("GROUP BY delivery.state", r"using ix_delivery_ended"),
    ("GROUP BY series.description", r"Index Only Scan using ix_series_description"),
)


@pytest.fixture(scope="module")
def filled(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stored]:
    """The database of a department, but of days, and what the planner knows of it."""
    database = Database(postgres_server.create("whole_tables", template=TEMPLATE))
    filler.fill(database, JOBS, pages.NOW)
    with database.writing() as db:
        _continue_numbers(db)
        db.exec_driver_sql("ANALYZE")
    yield Stored(database, Files(tmp_path_factory.mktemp("filled"), 0), Clock(pages.NOW))
    database.close()
    postgres_server.drop("whole_tables")


def _continue_numbers(db: Connection) -> None:
    """The filler gives its own numbers: the next ones come after them."""
    for table in BIG:
        column = f"SELECT pg_get_serial_sequence('{table}', 'id')"
        has_id = f"SELECT 1 FROM information_schema.columns WHERE table_name = '{table}'"
        if db.exec_driver_sql(f"{has_id} AND column_name = 'id'").first():
            sequence = db.exec_driver_sql(column).scalar_one()
            most = f"(SELECT coalesce(max(id), 1) FROM {table})"
            db.exec_driver_sql(f"SELECT setval('{sequence}', {most})")


class Noting(psycopg.Cursor[Any]):
    """A cursor that notes what the server is given: the archive has cursors of its own."""

    sent: ClassVar[dict[str, Any]] = {}

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        self.sent.setdefault(str(query), params)
        return super().execute(query, params, **options)

    def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
        every = list(params_seq)
        self.sent.setdefault(str(query), every[0])
        super().executemany(query, every, **options)


def asked(stored: Stored, path: Callable[[Stored], object]) -> list[Asked]:
    """The statements that the server is given meanwhile, of many alike the first."""

    def note(connection: Any, *_: Any) -> None:
        connection.cursor_factory = Noting

    Noting.sent.clear()
    event.listen(Pool, "checkout", note)
    try:
        path(stored)
    finally:
        event.remove(Pool, "checkout", note)
    words = ("SELECT", "UPDATE", "DELETE", "INSERT", "WITH")
    return [asked for asked in Noting.sent.items() if asked[0].startswith(words)]


def scans(stored: Stored, statement: str, values: Any) -> list[str]:
    """The steps in which PostgreSQL reads all rows of a big table, without a reason to."""
    with stored.database.reading() as db:
        for way in DEAR:
            db.exec_driver_sql(f"SET LOCAL enable_{way} = off")
        explained = db.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", values).scalar_one()
    steps = [step for plan in explained for step in whole(plan["Plan"], "")]
    allowed = [step for words, step in ALLOWED if words in statement]
    return [step for step in steps if not any(re.search(it, step) for it in allowed)]


def whole(plan: Plan, above: str) -> Iterator[str]:
    """The steps of a plan that look at every row of a big table, or of an index of it."""
    table = plan.get("Relation Name", above)
    if plan["Node Type"] in READING and table in BIG and "Index Cond" not in plan:
        index = f" using {plan['Index Name']}" if "Index Name" in plan else ""
        yield f"{plan['Node Type']}{index} on {table}"
    for part in plan.get("Plans", ()):
        yield from whole(part, table)


@pytest.mark.parametrize("path", PATHS)
def test_nothing_reads_a_whole_table(filled: Stored, path: str) -> None:
    statements = asked(filled, PATHS[path])
    assert statements or path == "page: unconfirmed, nobody proves"
    faults = {statement: scans(filled, statement, values) for statement, values in statements}
    assert not {statement: steps for statement, steps in faults.items() if steps}


def test_a_whole_table_is_noticed(filled: Stored) -> None:
    by_column = "SELECT id FROM job WHERE model = 'midslice'"
    assert scans(filled, by_column, ()) != []
    assert scans(filled, "SELECT id FROM job WHERE id = 7", ()) == []
