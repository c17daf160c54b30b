"""What a department writes around its work: audit events, echoes, notices, a disk that fills."""

import random
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from sqlalchemy import Table

from storage.database import Database
from storage.schema import audit, disk, echo, notice, reach, selftest

DAY = 86_400.0
DAYS = 90.0
AT_ONCE = 5000
DESTINATIONS = ("pacs", "research", "workstation")


def write(database: Database, table: Table, rows: Iterable[Mapping[str, Any]]) -> None:
    """Many at once: the driver takes thousands of rows in one statement."""
    waiting = iter(rows)
    while some := list(islice(waiting, AT_ONCE)):
        with database.writing() as db:
            db.execute(table.insert(), some)


def write_many(database: Database, statement: str) -> None:
    """What the database makes of rows that are there."""
    with database.writing() as db:
        if not database.is_sqlite:
            db.exec_driver_sql("SET LOCAL statement_timeout = 0")
            statement = statement.replace("%", "%%")
        db.exec_driver_sql(statement)


def fill(database: Database, jobs: int, now: float, chance: random.Random) -> None:
    times = [now - chance.random() * DAYS * DAY for _ in range(jobs)]
    write(
        database,
        audit,
        (
            {
                "at": at,
                "who": chance.choice(("anna", "ben", "command line")),
                "what": chance.choice(("requeue", "cancel", "log in", "find")),
                "which": f"job {chance.randint(1, jobs)}",
                "detail": "{}",
            }
            for at in sorted(times)
        ),
    )
    looks = ((name, now - n * 300.0) for n in range(8000, 0, -1) for name in DESTINATIONS)
    write(
        database,
        echo,
        ({"destination": name, "at": at, "ok": 1, "seconds": 0.02} for name, at in looks),
    )
    write(
        database,
        reach,
        (
            {"destination": name, "up": 1, "since": now - DAY, "checked_at": now}
            for name in DESTINATIONS
        ),
    )
    write(
        database,
        disk,
        (
            {
                "node": "bench",
                "at": now - n * 900.0,
                "free": 10**12 - n * 10**7,
                "total": 2 * 10**12,
            }
            for n in range(3000, 0, -1)
        ),
    )
    write(
        database,
        notice,
        (
            {
                "event": "job_held",
                "key": f"job {n}",
                "at": now - n * 600,
                "facts": "{}",
                "addressed": 1,
            }
            for n in range(3000)
        ),
    )
    write(
        database,
        selftest,
        (
            {
                "node": "bench",
                "who": "schedule",
                "started_at": now - n * DAY,
                "finished_at": now - n * DAY + 40,
                "state": "passed",
                "series_uid": f"1.2.826.9.{n}",
            }
            for n in range(int(DAYS), 0, -1)
        ),
    )
