"""A mark changes with its part of the pages, and with no other: else they are drawn in vain."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from storage.queries import figures
from storage.records import SwitchName
from storage.site import control, notices, peers
from tests.unit.storage.stored import Stored, post


@dataclass
class Marked:
    """What has changed since the last look."""

    stored: Stored
    before: Mapping[str, str] = field(default_factory=dict)

    def changed(self) -> set[str]:
        now = figures.change_tokens(self.stored.database)
        areas = {area for area, mark in now.items() if mark != self.before.get(area)}
        self.before = now
        return areas


@pytest.fixture
def marked(stored: Stored) -> Marked:
    made = Marked(stored)
    assert made.changed() == set(figures.change_tokens(stored.database))
    return made


def test_nothing_new_is_no_new_mark(marked: Marked) -> None:
    assert marked.changed() == set()


def test_instances_jobs_and_progress_mark_what_shows_them(marked: Marked) -> None:
    stored = marked.stored
    for uid in ("1.1", "1.2"):
        stored.receive(uid)
        assert marked.changed() == {"now"}
    stored.clock.now += 1
    stored.complete("k")
    assert marked.changed() == {"now", "queue", "capacity"}
    job = stored.claim()
    assert marked.changed() == {"queue"}
    stored.queue.renew(job, 0.5)
    assert marked.changed() == {"queue"}
    stored.queue.hold(job, "MISSING_SLICES", "A slice is missing.")
    assert marked.changed() == {"queue", "needs", "capacity"}
    stored.queue.requeue(job.id, who="anna")
    assert marked.changed() == {"queue", "needs", "capacity", "audit"}


def test_each_instance_that_is_sent_is_a_mark(marked: Marked) -> None:
    stored = marked.stored
    stored.ask("k")
    stored.succeed()
    marked.changed()
    delivery = stored.start_delivery()
    assert marked.changed() == {"deliveries"}
    for one in stored.ledger.unsent(delivery):
        stored.ledger.answered(delivery, one.id, 0, stored=True)
        assert marked.changed() == {"deliveries"}


def test_peers_and_switches_have_their_marks(marked: Marked) -> None:
    stored = marked.stored
    stored.archive.rejected("NEW", "MIDSLICE", "10.0.0.3", "calling AE title not recognised")
    assert marked.changed() == {"peers"}
    control.turn(stored.database, stored.clock(), "anna", SwitchName.DRAINING, on=True)
    assert marked.changed() == {"now", "queue", "peers", "alerts", "configuration", "audit"}


def test_a_destination_that_is_found_down_and_a_notice_that_fails_are_alerts(
    marked: Marked,
) -> None:
    stored = marked.stored
    database, now = stored.database, stored.clock()
    for ok in (True, False):
        stored.clock.now += 1
        peers.record(database, stored.clock(), "pacs", ok=ok, seconds=0.1, sentence="")
        assert marked.changed() == {"peers", "alerts"}
    peers.record(database, stored.clock(), "pacs", ok=False, seconds=0.1, sentence="")
    assert marked.changed() == {"peers"}  # it was down before
    post(database, now, "job_held", "k", {"job": 1})
    notices.address(database, now, ("mail",), ("job_held",))
    assert marked.changed() == {"alerts", "configuration"}
    outbox = notices.Outbox(database, stored.clock, node="one")
    (message,) = outbox.claim([message.id for message in outbox.due()])
    assert marked.changed() == set()
    outbox.retry(message, stored.clock() + 30, "No.")
    assert marked.changed() == {"alerts"}
