"""What waits for a person keeps retention away, and somebody is told."""

from storage.enqueue import UNREADABLE
from storage.records import DAY, Peer
from storage.retention import HeldWork, report_held_work
from storage.site import notices
from storage.site.audit import Audit
from tests.unit.storage.purging import KEEP_DAYS, old
from tests.unit.storage.stored import Stored


def told(stored: Stored) -> HeldWork | None:
    return report_held_work(stored.database, stored.clock.now, KEEP_DAYS)


def test_a_dead_delivery_is_told_once_a_day_until_somebody_decides(stored: Stored) -> None:
    stored.ask("k")
    stored.succeed()
    stored.ledger.hold(stored.start_delivery(), "NO_DESTINATION", "Nobody knows it.")
    assert told(stored) is None  # it is young
    stored.clock.now += (KEEP_DAYS + 1) * DAY
    assert old(stored) == ()
    assert told(stored) == HeldWork(series=1, jobs=0, deliveries=1)
    assert told(stored) is None
    stored.clock.now += DAY + 1
    assert told(stored) == HeldWork(series=1, jobs=0, deliveries=1)
    events = Audit(stored.database, stored.clock).list(what="notice")
    assert [event.which for event in events] == ["retention waits"] * 2
    assert "1 held deliveries wait for a person" in str(events[0].detail["sentence"])
    posted = notices.address(stored.database, stored.clock(), (), ())
    facts = {"sentence": events[0].detail["sentence"]}
    assert [(notice.event, notice.facts) for notice in posted] == [("attention", facts)] * 2
    stored.ledger.cancel(1)
    stored.clock.now += 2 * DAY
    assert told(stored) is None


def test_a_held_job_is_told_too(stored: Stored) -> None:
    stored.ask("k")
    stored.queue.hold(stored.claim(), "MISSING_SLICES", "One is missing.")
    stored.clock.now += (KEEP_DAYS + 1) * DAY
    assert told(stored) == HeldWork(series=1, jobs=1, deliveries=0)


def test_a_series_that_nobody_can_read_waits_until_it_was_sent_again(stored: Stored) -> None:
    asked = stored.ask("k", stack=UNREADABLE)
    stored.queue.hold(stored.claim(), "PIXEL_DATA_ERROR", "None can be read.")
    stored.clock.now += 100 * DAY
    assert old(stored) == ()  # no retention without a word
    stored.receive("1.1", peer=Peer("ANOTHER", "MIDSLICE"))
    stored.complete("other", peer=Peer("ANOTHER", "MIDSLICE"))
    assert stored.queue.get(asked.job_id).reason == "PIXEL_DATA_ERROR"
    stored.receive("1.1", version=b"whole")
    stored.queue.complete(stored.arrival().id, {}, [])  # it is of no route, but can be read
    done = stored.queue.get(asked.job_id)
    assert (done.state, done.reason) == ("cancelled", "SUPERSEDED")
    assert "can be read" in done.sentence
