"""Senders and destinations as an administrator sees them: seen, turned away, up, down, waiting."""

import pytest

from storage.records import Peer, SwitchName
from storage.site import control, peers
from storage.site.nodes import fact_or_set
from tests.unit.storage.stored import Stored

NOT_KNOWN = "calling AE title not recognised"


def associate(stored: Stored, name: str, address: str = "10.0.0.7") -> int:
    return stored.archive.associated(name, "MIDSLICE", address)


def test_a_sender_is_known_by_what_it_brought_and_when(stored: Stored) -> None:
    today = stored.clock.now
    stored.receive("1.0", series_uid="1.9", peer=Peer("CT1", "MIDSLICE"))
    arrival = stored.arrival(Peer("CT1", "MIDSLICE"), "1.9")
    stored.clock.now += 10
    stored.queue.complete(arrival.id, {}, [])
    for uid in ("1.1", "1.2"):
        stored.receive(uid, peer=Peer("CT1", "MIDSLICE", associate(stored, "CT1", "10.0.0.8")))
        stored.clock.now += 10
    stored.receive("2.1", peer=Peer("CT2", "MIDSLICE"))
    first, second = peers.senders(stored.database, today)
    assert (first.ae_title, second.ae_title) == ("CT2", "CT1")
    assert (second.series_today, second.instances_today, second.open) == (2, 3, 2)
    assert second.addresses == ("10.0.0.8",)
    assert first.last_at == stored.clock.now
    yesterday = {one.ae_title: one for one in peers.senders(stored.database, stored.clock.now + 9)}
    assert yesterday["CT1"].instances_today == 2  # what is arriving still is of today in any case
    assert peers.last_heard(stored.database, ["CT1", "CT9"]) == {"CT1": stored.clock.now - 10}


def test_the_senders_of_self_tests_are_nobodys(stored: Stored) -> None:
    associate(stored, f"{peers.GUEST}AB12CD")
    assert peers.senders(stored.database, 0.0) == ()


def test_who_was_turned_away_alike_is_one_line_with_its_reason(stored: Stored) -> None:
    for number in range(3):
        stored.clock.now += number
        stored.archive.rejected("CT9", "MIDSLICE", "10.0.0.3", NOT_KNOWN)
    stored.archive.rejected("CT9", "AI_NODE", "10.0.0.3", "called AE title not recognised")
    page = peers.rejections(stored.database, 0.0)
    assert [(one.called_ae, one.count) for one in page.lines] == [("AI_NODE", 1), ("MIDSLICE", 3)]
    line = page.lines[1]
    assert (line.calling_ae, line.address, line.reason) == ("CT9", "10.0.0.3", NOT_KNOWN)
    assert line.last_at - line.first_at == 3
    shortest = peers.rejections(stored.database, 0.0, limit=1)
    assert (shortest.lines, shortest.total) == (page.lines[:1], 2)
    assert peers.rejections(stored.database, stored.clock.now + 1).total == 0
    (sender,) = peers.senders(stored.database, 0.0)
    assert (sender.rejected_today, sender.instances_today) == (4, 0)
    assert (sender.last_at, sender.last_image_at) == (stored.clock.now, None)


def test_who_is_only_turned_away_has_brought_nothing_since_its_last_image(stored: Stored) -> None:
    stored.receive("1.1", peer=Peer("CT1", "MIDSLICE"))
    image_at = stored.clock.now
    fact_or_set(stored.database, peers.EXPECTED.format("CT1"), repr(image_at - 900))
    fact_or_set(stored.database, peers.EXPECTED.format("CT2"), repr(image_at - 500))
    stored.clock.now += 7200
    for name in ("CT1", "CT2"):
        stored.archive.rejected(name, "MIDSLICE", "10.0.0.3", NOT_KNOWN)
    first = peers.senders(stored.database, 0.0)[0]
    assert (first.ae_title, first.last_at, first.last_image_at) == ("CT1", stored.clock(), image_at)
    since = peers.quiet_since(stored.database, ["CT1", "CT2", "CT9"])
    assert since == {"CT1": image_at, "CT2": image_at - 500}


def test_a_destination_shows_what_waits_and_how_well_it_goes(stored: Stored) -> None:
    for number in range(4):
        stored.ask(f"k{number}", (f"{number}.1", f"{number}.2"), stack=f"stack {number}")
        stored.succeed(f"2.25.{number}")
    stored.deliver()
    stored.deliver()
    stored.ledger.hold(stored.start_delivery(), "REFUSED_BY_PEER", "No.")
    database, now = stored.database, stored.clock()
    peers.record(database, now, "pacs", ok=True, seconds=0.02, sentence="")
    control.turn(database, now, "anna", SwitchName.PAUSED, "pacs", on=True)
    pacs, research = peers.destinations(database, now, ["pacs", "research"])
    assert (pacs.queued, pacs.running, pacs.held) == (1, 0, 1)
    assert (pacs.delivered, pacs.failed) == (2, 1)
    assert pacs.success == pytest.approx(2 / 3)
    assert (pacs.up, pacs.oldest_at) == (True, now)
    assert pacs.paused is not None
    assert pacs.last_echo is not None
    assert (research.up, research.success, research.paused) == (None, None, None)


def test_what_waits_for_a_destination_that_is_gone_is_shown(stored: Stored) -> None:
    stored.ask("k", destinations=("old-pacs",))
    stored.succeed()
    assert [one.name for one in peers.destinations(stored.database, 0.0, ["pacs"])] == [
        "pacs",
        "old-pacs",
    ]


def test_a_destination_is_up_or_down_since_it_changed(stored: Stored) -> None:
    database, clock = stored.database, stored.clock

    def look(*, ok: bool) -> tuple[bool, float, int]:
        clock.now += 10
        found = peers.record(database, clock(), "pacs", ok=ok, seconds=0.1, sentence="why")
        return found.up, found.since, found.failures

    began = clock.now + 10
    assert look(ok=True) == (True, began, 0)
    assert look(ok=True) == (True, began, 0)
    assert look(ok=False) == (False, began + 20, 1)
    assert look(ok=False) == (False, began + 20, 2)
    assert look(ok=True) == (True, began + 40, 0)
    newest = peers.newest(database, "pacs", 2)
    assert [one.ok for one in newest] == [True, False]
    peers.forget(database, clock.now + 1)
    assert [one.ok for one in peers.newest(database, "pacs")] == [True]  # the last one stays


def test_a_breaker_is_open_for_a_while_and_an_echo_closes_it(stored: Stored) -> None:
    database, clock = stored.database, stored.clock

    def may() -> bool:
        return peers.may_send(database, clock(), "pacs", 600.0)

    assert may()
    peers.unreachable(database, clock(), "pacs", "It is off.", open_until=clock.now + 60)
    assert not may()
    clock.now += 61
    assert may()
    peers.unreachable(database, clock(), "pacs", "It is off.", open_until=clock.now + 120)
    assert not may()
    peers.record(database, clock(), "pacs", ok=True, seconds=0.1, sentence="")
    assert may()


def test_what_was_put_off_is_due_as_soon_as_its_destination_answers(stored: Stored) -> None:
    database, clock = stored.database, stored.clock
    for number, reason in enumerate((peers.UNREACHABLE, "RETRY")):
        stored.ask(f"k{number}", (f"{number}.1",), stack=f"stack {number}")
        stored.succeed(f"2.25.{number}")
        stored.ledger.retry(stored.start_delivery(), clock.now + 600, reason, "Later.")
    peers.unreachable(database, clock(), "pacs", "It is off.", open_until=clock.now + 600)
    assert stored.ledger.claim("pacs", "w") is None
    peers.record(database, clock(), "pacs", ok=True, seconds=0.1, sentence="")
    assert stored.start_delivery().derived_series_uid == "2.25.0"
    assert stored.ledger.claim("pacs", "w") is None  # the other was put off by the peer itself


def test_a_clock_that_is_set_back_opens_no_breaker_for_ever(stored: Stored) -> None:
    database, clock = stored.database, stored.clock
    peers.unreachable(database, clock(), "pacs", "It is off.", open_until=clock.now + 60)
    clock.now -= 86_400
    assert peers.may_send(database, clock(), "pacs", 600.0)


def test_a_paused_destination_is_not_sent_to(stored: Stored) -> None:
    database, now = stored.database, stored.clock()
    control.turn(database, now, "anna", SwitchName.PAUSED, "pacs", on=True)
    assert not peers.may_send(database, now, "pacs", 600.0)
    assert peers.may_send(database, now, "research", 600.0)
