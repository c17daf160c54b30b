"""Nodes, facts and audit events: who works here, what never changes, who did what."""

import pytest

from storage.database import Database
from storage.errors import NotFound, SecretMismatch, StorageError
from storage.records import DAY, AuditEvent, NodeState
from storage.site.audit import Audit
from storage.site.nodes import (
    SECRET,
    STOPPED,
    STOPPING,
    DiskSample,
    Forecast,
    Nodes,
    forecast,
    forget,
    record,
    samples,
)
from tests.conftest import Clock


def test_a_node_says_when_it_started_and_that_it_lives(database: Database, clock: Clock) -> None:
    nodes = Nodes(database, clock)
    begin = clock.now
    nodes.start("one")
    clock.now += 10
    nodes.beat("one")
    nodes.start("two")
    assert nodes.get() == (
        NodeState("one", begin, begin + 10, "serving", None),
        NodeState("two", begin + 10, begin + 10, "serving", None),
    )


def test_a_first_start_looks_at_everything(database: Database, clock: Clock) -> None:
    assert Nodes(database, clock).start("one") == 0.0


def test_after_a_clean_stop_only_what_came_later_is_looked_at(
    database: Database, clock: Clock
) -> None:
    nodes = Nodes(database, clock)
    nodes.start("one")
    clock.now += 100
    nodes.beat("one", STOPPING)
    nodes.beat("one", STOPPED)
    stopped_at = clock.now
    clock.now += 100
    assert nodes.start("one") == stopped_at


def test_after_a_kill_everything_since_the_last_recovery_is_looked_at(
    database: Database, clock: Clock
) -> None:
    nodes = Nodes(database, clock)
    nodes.start("one")
    nodes.recovered("one")
    recovered_at = clock.now
    clock.now += 100
    nodes.beat("one")  # and then it was killed
    clock.now += 100
    assert nodes.start("one") == recovered_at
    clock.now += 100  # killed again before it had recovered
    assert nodes.start("one") == recovered_at


def test_a_node_must_be_known_and_its_state_too(database: Database, clock: Clock) -> None:
    nodes = Nodes(database, clock)
    with pytest.raises(NotFound, match="no node one"):
        nodes.beat("one")
    with pytest.raises(StorageError, match="'asleep'; allowed: serving, stopping, stopped"):
        nodes.beat("one", "asleep")


def test_a_fact_is_set_once_and_never_changes(database: Database, clock: Clock) -> None:
    nodes = Nodes(database, clock)
    nodes.fact("organisation", "a")
    nodes.fact("organisation", "a")
    with pytest.raises(StorageError, match="organisation is 'a' in this database"):
        nodes.fact("organisation", "b")
    nodes.fact("organisation", "a")


def test_another_secret_is_refused_without_showing_either(database: Database, clock: Clock) -> None:
    nodes = Nodes(database, clock)
    nodes.fact(SECRET, "fingerprint-1")
    with pytest.raises(SecretMismatch, match="restore the secret") as caught:
        nodes.fact(SECRET, "fingerprint-2")
    assert "fingerprint" not in str(caught.value)


def test_audit_events_are_listed_newest_first(database: Database, clock: Clock) -> None:
    audit = Audit(database, clock)
    audit.record("admin", "requeue", "job 7", {"from": "held"})
    clock.now += 1
    audit.record("node", "start")
    newest, first = audit.list()
    assert newest == AuditEvent(2, clock.now, "node", "start", "", {})
    assert (first.who, first.what, first.which) == ("admin", "requeue", "job 7")
    assert first.detail == {"from": "held"}
    assert audit.list(limit=1, offset=1) == (first,)


def test_a_long_name_does_not_prevent_an_audit_event(database: Database, clock: Clock) -> None:
    Audit(database, clock).record("w" * 200, "x" * 200, "y" * 2000)
    (event,) = Audit(database, clock).list()
    assert (len(event.who), len(event.what), len(event.which)) == (64, 64, 2000)


def test_the_disk_lasts_as_long_as_its_line_goes() -> None:
    falling = [DiskSample(day * DAY, 1000 - 100 * day, 2000) for day in range(4)]
    found = forecast(falling, reserve=200)
    assert found.days_left == pytest.approx(5.0)
    assert found.bytes_per_day == pytest.approx(100.0)


def test_a_disk_that_empties_lasts_for_ever_and_a_full_one_no_day() -> None:
    rising = [DiskSample(day * DAY, 1000 + 100 * day, 2000) for day in range(4)]
    assert forecast(rising, reserve=200).days_left is None
    assert forecast(rising, reserve=1400).days_left == 0.0


def test_from_an_hour_nobody_can_tell_how_long_the_disk_lasts() -> None:
    few = [DiskSample(minute * 60.0, 1000 - minute, 2000) for minute in range(60)]
    assert forecast(few, reserve=0) == Forecast(None, None)
    assert forecast([], reserve=0).days_left is None


def test_samples_are_of_one_node_and_are_forgotten(database: Database) -> None:
    for day in range(3):
        record(database, day * DAY, "one", 10**12 - day, 2 * 10**12)
        record(database, day * DAY, "two", 5, 10)
    assert [one.free for one in samples(database, "one", DAY)] == [10**12 - 1, 10**12 - 2]
    forget(database, 2 * DAY)
    assert len(samples(database, "one", 0.0)) == 1
