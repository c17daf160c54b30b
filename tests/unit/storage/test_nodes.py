"""Nodes, facts and audit events: who works here, what never changes, who did what."""

import time

import pytest

from storage.archive import Archive
from storage.database import ClusterClock, Database
from storage.errors import NotFound, SecretMismatch, StorageError
from storage.records import DAY, AuditEvent, NodeState, NodeWork
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
from tests.unit.storage.stored import Stored


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


def test_a_node_says_what_it_lacks_and_since_when(database: Database, clock: Clock) -> None:
    nodes = Nodes(database, clock)
    nodes.start("one")
    said: list[tuple[str, float | None]] = []
    for lacks in ("", "no cluster", "another one", "", "no cluster"):
        clock.now += 10
        nodes.beat("one", lacks=lacks)
        (state,) = nodes.get()
        said.append((state.lacks, state.lacking_since))
    now = clock.now
    first, second = ("no cluster", now - 30), ("another one", now - 30)
    assert said == [("", None), first, second, ("", None), ("no cluster", now)]
    nodes.start("one")
    assert nodes.get()[0].lacking_since is None


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


def test_a_node_without_a_sign_of_life_is_lost_once_unless_it_gives_one(
    database: Database, clock: Clock
) -> None:
    nodes = Nodes(database, clock)
    nodes.start("one", "1.0", "http://one/")
    nodes.start("two", "1.0")
    others = [] if database.is_sqlite else ["two"]  # where one node alone works
    assert [other.id for other in nodes.others("one", 60.0)] == others
    clock.now += 61
    nodes.beat("one", load=0.5)
    assert nodes.others("one", 60.0) == ()
    (silent,) = nodes.silent(clock.now - 60)
    nodes.beat("two")  # that moment
    assert not nodes.lose(silent)
    clock.now += 61
    one, two = nodes.silent(clock.now - 60)
    assert nodes.lose(two)
    assert [it.state for it in nodes.get()] == ["serving", "lost"]
    assert nodes.silent(clock.now - 60) == (one,)  # nobody takes its work over a second time
    nodes.beat("two")  # it was only held up
    assert [it.id for it in nodes.others("one", 60.0)] == others


def test_the_work_of_each_node_is_counted(stored: Stored) -> None:
    stored.archive.associated("CT1", "MIDSLICE", "10.0.0.1")
    stored.receive("1.1")
    arrival = stored.arrival()
    jobs = [stored.new_job(arrival, f"k{n}", route=f"route {n}") for n in range(2)]
    stored.queue.complete(arrival.id, {}, jobs)
    stored.succeed("2.25.1")
    assert stored.ledger.claim("pacs", "s") is not None
    assert stored.queue.claim("w", ["infer"]) is not None
    other = Archive(stored.database, stored.files, stored.clock, node="two")
    other.associated("CT2", "MIDSLICE", "10.0.0.2")
    work = Nodes(stored.database, stored.clock).work()
    assert work == {"one": NodeWork(1, 1, 1), "two": NodeWork(associations=1)}


def test_what_one_node_alone_is_to_do_is_no_other_ones_meanwhile(database_url: str) -> None:
    one, two = Database(database_url), Database(database_url)
    try:
        with one.alone("retention") as first, two.alone("retention") as second:
            assert first
            assert second is one.is_sqlite  # where one node alone works
            with two.alone("scrub") as third:
                assert third
        with two.alone("retention") as again:
            assert again
    finally:
        one.close()
        two.close()


def test_all_nodes_have_the_time_of_the_database(
    postgresql_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = ClusterClock(postgresql_database)
    assert abs(now() - time.time()) < 1.0  # the server is on this machine
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert now() > 1e9  # whatever that says of itself
