"""Series after series through one process: what it keeps in memory is as much as before."""

from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path
from types import MethodType

import pytest

from node.config import defaults
from node.work import deliver
from node.work.deliver import INTACT_SECONDS, Intact
from storage.database import Database
from storage.files import Files
from storage.records import DeliveryState
from tests.conftest import Clock
from tests.peers import wait_until
from tests.phantoms import Series
from tests.unit.storage.stored import Stored
from tests.unit.work import test_arrivals, test_deliver
from tests.unit.work.test_deliver import PACS, Pacs

WARM_UP, SERIES = 20, 100
PAUSE_SECONDS = INTACT_SECONDS / 10  # between two series


def test_what_a_node_remembers_does_not_grow_with_the_series_that_it_has_processed(
    sqlite_database: Database, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliver, "IDLE_SECONDS", 0.02)
    monkeypatch.setattr(deliver, "MARK_SECONDS", -1.0)  # the files were written this moment
    settings = defaults(tmp_path)
    stored = Stored(sqlite_database, Files(tmp_path / "var", min_free_bytes=0), clock)
    receiving = test_arrivals.Site(stored, settings, tmp_path / "sent")
    sending = test_deliver.Site(stored, settings, Pacs(clock))
    sending.deliverers._intact = Intact(sending.steady)
    sending.configure(PACS)
    parts = (receiving.arrivals, stored.archive, stored.queue, stored.ledger, sending.deliverers)
    try:
        for number in range(WARM_UP):
            process(receiving, sending, number)
        before = lengths(parts)
        for number in range(WARM_UP, WARM_UP + SERIES):
            process(receiving, sending, number)
        after = lengths(parts)
    finally:
        sending.end()
    assert before["Intact._known"] > 0
    grown = {name: (before[name], after[name]) for name in after if after[name] > before[name] + 2}
    assert grown == {}


def process(receiving: test_arrivals.Site, sending: test_deliver.Site, number: int) -> None:
    """Receive a series over an association of its own, close it, and deliver its result."""
    stored = receiving.stored
    association = stored.archive.associated("CT9", "MIDSLICE", "192.0.2.9")
    made = Series(slices=3, rows=8, columns=8, seed=f"{number}", study=f"{number}")
    receiving.receive(made, association=association)
    stored.archive.dissociated(association, "released")
    sending.wait(PAUSE_SECONDS)
    receiving.arrivals.sweep()
    job = stored.claim()
    stored.queue.succeed(job, stored.derive(job, f"2.25.{number + 1}"))
    (delivery,) = stored.ledger.of_job(job.id)
    sending.deliverers.wake()
    wait_until(
        lambda: stored.ledger.get(delivery.id).state is DeliveryState.SENT, what="it is delivered"
    )


def lengths(parts: Iterable[object]) -> Counter[str]:
    """The sizes of all that the parts of a node hold, by class and attribute."""
    sizes: Counter[str] = Counter()
    seen: set[int] = set()
    waiting = [(type(part).__name__, part) for part in parts]
    while waiting:
        name, held = waiting.pop()
        if id(held) in seen:
            continue
        seen.add(id(held))
        if isinstance(held, MethodType):
            waiting.append((name, held.__self__))
        elif isinstance(held, dict | list | set | deque | tuple):
            sizes[name] += len(held)
            values = held.values() if isinstance(held, dict) else held
            waiting += [(name, value) for value in values]
        elif type(held).__module__.startswith(("node.", "storage.")) and hasattr(held, "__dict__"):
            kind = type(held).__name__
            waiting += [(f"{kind}.{attribute}", value) for attribute, value in vars(held).items()]
    return sizes
