"""The acts that a repository is told of: each kind, in order, once, and none from before."""

from sqlalchemy import select

from storage.schema import series
from storage.site.audit import Audit
from storage.site.trail import MOST, SETTLED_SECONDS, Position, Trail, Transfer, last_of
from tests.unit.storage.stored import CT, STUDY, Stored


def begun(stored: Stored, *kinds: str) -> Trail:
    """A trail that begins now."""
    trail = Trail(stored.database)
    for kind in kinds:
        trail.position(kind, stored.clock())
    return trail


def settle(stored: Stored) -> float:
    stored.clock.now += SETTLED_SECONDS + 1
    return stored.clock.now


def test_what_was_done_before_the_first_start_is_not_told(stored: Stored) -> None:
    audit = Audit(stored.database, stored.clock)
    audit.record("anna", "find")
    settle(stored)
    trail = begun(stored, "events")
    audit.record("otto", "view", "1.2.3")
    now = settle(stored)
    (event,) = trail.events(trail.position("events", now), now)
    assert (event.who, event.what, event.which) == ("otto", "view", "1.2.3")
    trail.remember("events", last_of([event]))
    assert not trail.events(trail.position("events", now), now)
    assert Trail(stored.database).position("events", now) == Position(event.at, event.id)


def test_what_may_still_be_written_before_it_is_waited_for(stored: Stored) -> None:
    trail = begun(stored, "events")
    Audit(stored.database, stored.clock).record("anna", "find")
    before = trail.position("events", stored.clock())
    assert not trail.events(before, stored.clock())
    assert trail.events(before, settle(stored))


def test_a_series_that_came_and_a_result_that_went(stored: Stored) -> None:
    trail = begun(stored, "received", "sent")
    stored.ask("k", destinations=("pacs",))
    stored.succeed()
    stored.deliver()
    now = settle(stored)
    (received,) = trail.received(trail.position("received", now), now)
    (sent,) = trail.sent(trail.position("sent", now), now)
    assert (received.peer, received.instances, received.sop_class_uid) == ("SCANNER", 2, CT)
    assert (sent.peer, sent.instances) == ("pacs", 2)
    for transfer in (received, sent):
        assert (transfer.study_uid, transfer.patient_id) == (STUDY, "P1")


def test_the_series_that_a_person_saw(stored: Stored) -> None:
    asked = stored.ask("k")
    (series_uid,) = stored.database.values(select(series.c.series_uid))
    trail, audit = begun(stored, "events"), Audit(stored.database, stored.clock)
    for what, which in (
        ("view", series_uid),
        ("view pictures", f"job {asked.job_id}"),
        ("view", "1.9.9"),
        ("view pictures", "job 999"),
        ("requeue", f"job {asked.job_id}"),
    ):
        audit.record("anna", what, which)
    now = settle(stored)
    events = trail.events(trail.position("events", now), now)
    page, pictures, *others = [trail.viewed(event) for event in events]
    assert others == [None, None, None]
    for number, viewed in enumerate((page, pictures)):
        event = events[number]
        assert viewed == Transfer(event.id, event.at, "anna", STUDY, "P1", 2, CT)


def test_who_was_turned_away(stored: Stored) -> None:
    trail = begun(stored, "rejected")
    stored.archive.rejected("STRANGER", "MIDSLICE", "192.0.2.9", "unknown")
    now = settle(stored)
    (rejected,) = trail.rejected(trail.position("rejected", now), now)
    assert (rejected.calling_ae, rejected.address) == ("STRANGER", "192.0.2.9")


def test_many_at_one_moment_are_told_in_parts_and_each_once(stored: Stored) -> None:
    trail, audit = begun(stored, "events"), Audit(stored.database, stored.clock)
    for number in range(MOST + 3):
        audit.record("anna", "view", str(number))
    now, told = settle(stored), []
    while events := trail.events(trail.position("events", now), now):
        told += [event.which for event in events]
        trail.remember("events", last_of(events))
    assert told == [str(number) for number in range(MOST + 3)]


def test_an_act_after_the_clock_was_set_back_is_told_too(stored: Stored) -> None:
    trail, audit = begun(stored, "events"), Audit(stored.database, stored.clock)
    audit.record("anna", "find")
    now = settle(stored)
    trail.remember("events", last_of(trail.events(trail.position("events", now), now)))
    stored.clock.now -= 3600
    audit.record("otto", "find")
    (event,) = trail.events(trail.position("events", now), now)
    assert event.who == "otto"
