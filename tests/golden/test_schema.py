"""The tables that the migrations make, on both kinds of database: no release may change them
unawares, however the migrations are written. Columns stand in the order of their names."""

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests.golden import golden
from tests.postgres import PostgresServer

VERSION_TABLE = "alembic_version"

POSTGRESQL = """
SELECT table_name, '  ' || column_name || ' ' || data_type
    || coalesce('(' || character_maximum_length || ')', '')
    || CASE is_nullable WHEN 'NO' THEN ' NOT NULL' ELSE '' END
    || coalesce(' DEFAULT ' || column_default, '')
    || CASE is_identity WHEN 'YES' THEN ' IDENTITY ' || identity_generation ELSE '' END
FROM information_schema.columns WHERE table_schema = 'public'
UNION ALL
SELECT conrelid::regclass::text, '  CONSTRAINT ' || conname || ' ' || pg_get_constraintdef(oid)
FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype IN ('p', 'u', 'f', 'c')
UNION ALL
SELECT tablename, '  ' || indexdef FROM pg_indexes WHERE schemaname = 'public'
    AND indexname NOT IN (SELECT conname FROM pg_constraint)
"""


def in_sections(lines: list[tuple[str, str]]) -> str:
    """Tables in the order of their names, and so what belongs to each."""
    tables = sorted({table for table, _ in lines} - {VERSION_TABLE})
    sections = [
        "\n".join([table, *sorted(line for name, line in lines if name == table)])
        for table in tables
    ]
    return "\n\n".join(sections) + "\n"


def test_the_schema_on_sqlite(migrated_sqlite: Path) -> None:
    with sqlite3.connect(f"file:{migrated_sqlite}?mode=ro", uri=True) as database:
        lines = list(sqlite_lines(database))
    database.close()
    golden.check("schema/sqlite.txt", in_sections(lines))


def sqlite_lines(database: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    statement = "SELECT type, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL"
    for kind, table, sql in database.execute(statement).fetchall():
        if table.startswith("sqlite_"):
            continue
        if kind == "table":
            yield from sqlite_table(database, table, sql)
        else:
            yield table, "  " + one_line(sql)


def sqlite_table(database: sqlite3.Connection, table: str, sql: str) -> Iterator[tuple[str, str]]:
    for _, name, kind, not_null, default, _ in database.execute(f"PRAGMA table_info({table})"):
        ends = " NOT NULL" if not_null else ""
        yield table, f"  {name} {kind}{ends}" + (f" DEFAULT {default}" if default else "")
    body = one_line(sql.partition("(")[2].rpartition(")")[0])
    for clause in clauses(body):
        if re.match("CONSTRAINT|CHECK|FOREIGN|UNIQUE|PRIMARY", clause):
            yield table, f"  {clause}"
    if "AUTOINCREMENT" in sql:
        yield table, "  AUTOINCREMENT"


def clauses(body: str) -> Iterator[str]:
    """What the commas outside of parentheses and quotes part."""
    depth, clause, is_quoted = 0, "", False
    for letter in body:
        is_quoted ^= letter == "'"
        depth += 0 if is_quoted else (letter == "(") - (letter == ")")
        if letter == "," and not depth and not is_quoted:
            yield clause.strip()
            clause = ""
        else:
            clause += letter
    yield clause.strip()


def one_line(sql: str) -> str:
    return re.sub(r"\s+", " ", sql.replace('"', "")).replace("( ", "(").replace(" )", ")").strip()


def test_the_schema_on_postgresql(postgres_server: PostgresServer) -> None:
    name = "golden"
    url = postgres_server.create(name, template="migrated")
    try:
        with psycopg.connect(url) as database:
            lines = [(table, line) for table, line in database.execute(POSTGRESQL)]
    finally:
        postgres_server.drop(name)
    golden.check("schema/postgresql.txt", in_sections(lines))
