"""Callers that wait at the same time share a transaction, and nobody pays for another's fault."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select

from storage.archive import Group, GroupCommit
from storage.database import Database
from storage.errors import Busy, StorageError
from storage.schema import fact

WAIT_SECONDS = 20.0


class Callers:
    """Threads that call at the same time, and what each of them got."""

    def __init__(self, database: Database) -> None:
        self.commits = GroupCommit(database)
        self.groups: dict[str, int] = {}
        self.results: dict[str, str] = {}
        self.errors: dict[str, type[Exception]] = {}
        self._threads: list[threading.Thread] = []

    def call(self, name: str, spoil: Callable[[], None] = lambda: None) -> None:
        thread = threading.Thread(target=self._call, args=(name, spoil))
        self._threads.append(thread)
        thread.start()

    def wait(self) -> None:
        for thread in self._threads:
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive()

    def _call(self, name: str, spoil: Callable[[], None]) -> None:
        def work(group: Group) -> str:
            self.groups[name] = id(group)
            group.db.execute(insert(fact).values(name=name, value="x"))
            spoil()
            return f"result of {name}"

        try:
            self.results[name] = self.commits.run(work, order=name)
        except (StorageError, OSError, TypeError) as error:
            self.errors[name] = type(error)


class Gate:
    """Work that waits until the test lets it go on."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self.opened.wait(WAIT_SECONDS)


def waiting(callers: Callers, count: int) -> bool:
    return len(callers.commits._waiting) == count


def until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came to this")


def facts(database: Database) -> set[str]:
    with database.reading() as db:
        return set(db.execute(select(fact.c.name)).scalars())


@pytest.fixture
def callers(database: Database) -> Callers:
    return Callers(database)


def held_back(callers: Callers, *names: str, **spoiled: Callable[[], None]) -> None:
    """Let these wait behind one caller, so that they make one group."""
    gate = Gate()
    callers.call("first", gate)
    assert gate.entered.wait(WAIT_SECONDS)
    for name in names:
        callers.call(name, spoiled.get(name, lambda: None))
    until(lambda: waiting(callers, len(names)))
    gate.opened.set()
    callers.wait()


def test_those_who_wait_together_share_one_transaction(
    callers: Callers, database: Database
) -> None:
    held_back(callers, "a", "b", "c")
    assert callers.groups["a"] == callers.groups["b"] == callers.groups["c"]
    assert callers.results == {n: f"result of {n}" for n in ("first", "a", "b", "c")}
    assert facts(database) == {"first", "a", "b", "c"}


def test_a_result_is_committed_before_its_caller_hears_of_it(
    callers: Callers, database: Database
) -> None:
    callers.commits.run(lambda group: group.db.execute(insert(fact).values(name="n", value="v")))
    assert facts(database) == {"n"}


def fail_always() -> None:
    raise OSError("the file is gone")


def test_one_bad_member_does_not_fail_its_neighbours(callers: Callers, database: Database) -> None:
    held_back(callers, "a", "b", "c", b=fail_always)
    assert set(callers.results) == {"first", "a", "c"}
    assert callers.errors == {"b": OSError}
    assert facts(database) == {"first", "a", "c"}


def test_a_broken_rule_fails_only_the_one_who_broke_it(
    callers: Callers, database: Database
) -> None:
    with database.writing() as db:
        db.execute(insert(fact).values(name="b", value="there already"))
    held_back(callers, "a", "b", "c")
    assert set(callers.results) == {"first", "a", "c"}
    assert callers.errors == {"b": StorageError}


def test_a_caller_after_a_failure_is_served(callers: Callers, database: Database) -> None:
    with pytest.raises(OSError, match="gone"):
        callers.commits.run(lambda group: fail_always())
    assert callers.commits.run(lambda group: "served") == "served"


def raise_a_mistake() -> None:
    raise TypeError("a mistake in our code")


def test_a_mistake_in_our_code_leaves_nobody_waiting(callers: Callers, database: Database) -> None:
    held_back(callers, "a", "b", b=raise_a_mistake)
    assert callers.errors["b"] is TypeError
    assert "b" not in facts(database)
    assert callers.commits.run(lambda group: "served") == "served"


def test_a_locked_database_makes_the_whole_group_busy_once(
    tmp_path: Path, migrated_sqlite: Path
) -> None:
    file = tmp_path / "midslice.db"
    file.write_bytes(migrated_sqlite.read_bytes())
    ours = Database(f"sqlite:///{file}", busy_seconds=0.3)
    theirs = Database(f"sqlite:///{file}")
    callers = Callers(ours)
    with theirs.writing():
        for number in range(8):
            callers.call(f"n{number}")
        callers.wait()
    assert set(callers.errors.values()) == {Busy}
    assert len(callers.errors) == 8
    ours.close()
    theirs.close()


def test_folders_are_on_disk_before_the_commit(callers: Callers, tmp_path: Path) -> None:
    missing = tmp_path / "missing"

    def work(group: Group) -> None:
        group.db.execute(insert(fact).values(name="n", value="v"))
        group.folders.add(missing)

    with pytest.raises(FileNotFoundError):
        callers.commits.run(work)
    with callers.commits._database.reading() as db:
        assert db.execute(select(func.count()).select_from(fact)).scalar_one() == 0
