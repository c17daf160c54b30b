"""Workers and senders ask twice a second: that must not read history, nor wait for who writes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.pool import Pool

from storage.database import Database
from storage.files import Files
from storage.queries import find, overview
from tests.conftest import Clock
from tests.unit.storage.stored import INFER, Stored

LOOKS: dict[str, Callable[[Stored], object]] = {
    "job": lambda stored: stored.queue.claim("w", (*INFER, "selftest")),
    "delivery": lambda stored: stored.ledger.claim("pacs", "s"),
    "backlog": lambda stored: stored.ledger.backlog(),
    "arrival": lambda stored: stored.archive.arriving(),
}
INDEXES = {
    "job": "ix_job_due",
    "delivery": "ix_delivery_open",
    "backlog": "ix_delivery_open",
    "arrival": "ix_arrival_open",
}


@pytest.fixture
def local(migrated_sqlite: Path, tmp_path: Path, clock: Clock) -> Iterator[Stored]:
    """A storage of its own on SQLite."""
    file = tmp_path / "midslice.db"
    file.write_bytes(migrated_sqlite.read_bytes())
    database = Database(f"sqlite:///{file}", busy_seconds=0.2)
    yield Stored(database, Files(tmp_path / "var", 0), clock)
    database.close()


@contextmanager
def statements() -> Iterator[list[tuple[str, Any]]]:
    """What is asked of the database meanwhile."""
    seen: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@contextmanager
def sent_to_driver() -> Iterator[list[str]]:
    """What SQLite itself is told meanwhile, the begin of each transaction too."""
    sent: list[str] = []

    def trace(connection: Any, *_: Any) -> None:
        connection.set_trace_callback(sent.append)

    event.listen(Pool, "checkout", trace)
    try:
        yield sent
    finally:
        event.remove(Pool, "checkout", trace)


def plan(stored: Stored, statement: str, parameters: Any) -> list[str]:
    """How SQLite finds the rows, one line a step."""
    with stored.database.reading() as db:
        rows = db.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    return [str(row[3]) for row in rows]


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_reads_what_is_open_through_an_index_and_writes_nothing(
    local: Stored, look: str
) -> None:
    with statements() as seen:
        LOOKS[look](local)
    assert {statement.split()[0] for statement, _ in seen} == {"SELECT"}
    for asked in seen:
        steps = plan(local, *asked)
        assert any(INDEXES[look] in step for step in steps), steps
        whole = [step for step in steps if step.startswith("SCAN") and "USING" not in step]
        assert whole == [], steps


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_does_not_wait_for_somebody_who_writes(local: Stored, look: str) -> None:
    other = Database(str(local.database.url))
    with other.writing():
        assert not LOOKS[look](local)
    other.close()


def test_a_claim_of_what_is_due_is_written(local: Stored) -> None:
    local.ask("k")
    with sent_to_driver() as sent:
        assert local.claim().key == "k"
    begins = [statement for statement in sent if statement.startswith("BEGIN")]
    assert begins == ["BEGIN", "BEGIN IMMEDIATE"]


@pytest.mark.parametrize("wanted", [{"patient_id": "p"}, {"accession": "a"}, {"text": "p"}])
def test_the_newest_of_what_many_have_are_found_by_going_back_in_time(
    local: Stored, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, str]
) -> None:
    monkeypatch.setattr(find, "COMMON", 0)
    local.ask("k")
    local.ask("l", ("1.4",))
    with statements() as seen:
        find.find_series(local.database, find.Wanted(**wanted), limit=1)
    ordered = [asked for asked in seen if "ORDER BY series.last_at" in asked[0]]
    assert len(ordered) == 1
    steps = plan(local, *ordered[0])
    assert any("ix_series_last_at" in step for step in steps), steps
    assert not any("B-TREE FOR ORDER BY" in step or "CORRELATED" in step for step in steps), steps
    (counted,) = [asked for asked in seen if "count(*)" in asked[0]]
    assert not any("ix_series_last_at" in step for step in plan(local, *counted))


def test_where_no_destination_gives_proof_nothing_is_asked_of_what_was_sent(local: Stored) -> None:
    with statements() as seen:
        assert overview.unconfirmed(local.database, ()).lines == ()
    assert seen == []


def test_what_a_filter_may_choose_from_is_looked_up_in_indexes(local: Stored) -> None:
    local.ask("k", destinations=("pacs",))
    local.succeed()
    local.deliver("pacs")
    with statements() as seen:
        choices = find.choices(local.database)
    assert (choices.routes, choices.destinations) == (("ct-slices",), ("pacs",))
    looks = [asked for asked in seen if asked[0].startswith("SELECT")]
    assert len(looks) >= 4
    for look in looks:
        steps = plan(local, *look)
        assert all("INDEX ix_" in step for step in steps if step.startswith(("SEARCH", "SCAN"))), (
            look,
            steps,
        )
