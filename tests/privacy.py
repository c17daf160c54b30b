"""No patient's name stands where it must not: every node that a test runs is looked through."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

# Columns that are there to name a patient: pages show them to who may see them.
OF_PATIENTS = {
    ("series", column)
    for column in ("patient_name", "name_key", "patient_id", "accession", "description")
}
SHORTEST = 7  # characters of a name that cannot stand there by chance

_names: set[str] = set()


def note(name: str | bytes) -> None:
    """Remember the name of a patient whose images a test has made."""
    text = name.decode("latin-1") if isinstance(name, bytes) else name
    for spelling in (text, text.replace("^", ", ")):  # "Another One" may stand in any sentence
        if len(spelling) >= SHORTEST and "^" in text:
            _names.add(spelling.strip("^ ").casefold())


def named(lines: Iterable[str]) -> list[str]:
    """The lines that name such a patient."""
    return [line for line in lines if any(name in line.casefold() for name in _names)]


def check(lines: Iterable[str], folder: Path) -> None:
    """Fail where a log line or a column of the database in the folder names a patient."""
    told = named(lines)
    assert not told, f"the log names a patient:\n{''.join(told[:3])}"
    database = folder / "midslice.db"
    if database.exists():
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
            kept = [place for place, value in _texts(db) if named([value])]
        assert not kept, f"the database names a patient in {', '.join(sorted(set(kept)))}"


def _texts(db: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        rows = db.execute(f"SELECT * FROM {table}")
        columns = [column[0] for column in rows.description]
        for row in rows:
            for column, value in zip(columns, row, strict=True):
                if isinstance(value, str) and (table, column) not in OF_PATIENTS:
                    yield f"{table}.{column}", value
