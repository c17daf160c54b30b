"""Everybody is told once, through every channel, until it is given up; and never of a patient."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from node.rules.reasons import FUTILE
from storage.database import Database
from storage.records import Message, MessageState
from storage.site import notices, peers
from storage.site.notices import Outbox
from tests.conftest import Clock
from tests.unit.storage.stored import Stored, post

EVENTS = ("job_held", "job_failed", "delivery_held")
DAY = 86_400.0


def outbox_of(database: Database, clock: Clock, node: str = "one") -> Outbox:
    return Outbox(database, clock, node=node, steady=clock)


@pytest.fixture
def outbox(database: Database, clock: Clock) -> Outbox:
    return outbox_of(database, clock)


def addressed(database: Database, outbox: Outbox, now: float) -> list[tuple[str, str]]:
    """What is due once everything new is addressed."""
    notices.address(database, now, ("mail", "hook"), EVENTS)
    return [(message.notice.event, message.channel) for message in outbox.due()]


def due(database: Database, outbox: Outbox, now: float, key: str = "k") -> Message:
    """One message that is due."""
    post(database, now, "job_held", key, {"job": 1})
    notices.address(database, now, ("mail",), EVENTS)
    (message,) = outbox.due()
    return message


def leased(database: Database, outbox: Outbox, now: float, key: str = "k") -> Message:
    """One message that is being sent."""
    (message,) = outbox.claim([due(database, outbox, now, key).id])
    return message


def test_the_same_is_told_once_through_each_channel(
    database: Database, outbox: Outbox, clock: Clock
) -> None:
    assert post(database, clock(), "job_held", "job 1", {"job": 1})
    assert not post(database, clock(), "job_held", "job 1", {"job": 1})
    assert addressed(database, outbox, clock()) == [("job_held", "mail"), ("job_held", "hook")]
    assert len(addressed(database, outbox, clock())) == 2


def test_nobody_is_told_of_what_nobody_asked_for(
    database: Database, outbox: Outbox, clock: Clock
) -> None:
    post(database, clock(), "disk_low", "disk", {})
    assert addressed(database, outbox, clock()) == []
    assert notices.address(database, clock(), ("mail",), ("disk_low",)) == ()  # it was looked at


def test_what_did_not_work_is_tried_again_later(
    database: Database, outbox: Outbox, clock: Clock
) -> None:
    first = leased(database, outbox, clock())
    outbox.retry(first, clock.now + 30, "mail.example.org did not take the mail")
    assert outbox.due() == ()
    clock.now += 31
    (again,) = outbox.due()
    assert (again.tries, again.sentence) == (1, "mail.example.org did not take the mail")
    (second,) = outbox.claim([again.id])
    outbox.sent(second)
    assert outbox.due() == ()
    (done,) = notices.newest(database)
    assert (done.state, done.tries, done.done_at) == (MessageState.SENT, 2, clock.now)


def test_a_clock_that_is_set_back_keeps_nobody_waiting(
    database: Database, outbox: Outbox, clock: Clock
) -> None:
    due(database, outbox, clock())
    clock.now -= 2 * DAY
    assert len(outbox.due()) == 1


def test_what_one_node_has_claimed_no_other_sends_until_its_time_is_over(
    database: Database, outbox: Outbox, clock: Clock
) -> None:
    other = outbox_of(database, clock, "two")
    message = due(database, outbox, clock())
    (dead,) = outbox.claim([message.id, 99])
    assert outbox.claim([message.id]) == other.claim([message.id]) == ()
    assert outbox.due() == other.due() == ()
    clock.now += notices.CLAIM_SECONDS + 1  # the node died while it was sending
    (again,) = other.claim([message.id])
    assert (again.id, again.attempt) == (dead.id, 2)
    outbox.failed(dead, "Too late: another node has it.")
    other.sent(again)
    clock.now += notices.CLAIM_SECONDS + 1
    assert outbox.claim([message.id]) == ()
    assert [done.state for done in notices.newest(database)] == [MessageState.SENT]


@pytest.mark.parametrize("seconds", [-2 * DAY, 2 * DAY])
def test_a_clock_that_jumps_gives_no_message_to_two(
    database: Database, clock: Clock, seconds: float
) -> None:
    steady = Clock(0.0)
    nodes = [Outbox(database, clock, node=name, steady=steady) for name in ("one", "two")]
    message = due(database, nodes[0], clock())
    clock.now += seconds
    assert len(nodes[0].claim([message.id])) == 1
    clock.now += seconds
    assert [node.claim([message.id]) for node in nodes] == [(), ()]


def test_many_claim_at_once_and_each_message_has_one_owner(database_url: str, clock: Clock) -> None:
    databases = [Database(database_url) for _ in range(4)]
    for number in range(20):
        post(databases[0], clock(), "job_held", f"job {number}", {})
    notices.address(databases[0], clock(), ("mail", "hook"), EVENTS)
    ids = [message.id for message in outbox_of(databases[0], clock).due(100)]
    begin = threading.Barrier(len(databases))

    def claim(database: Database) -> list[int]:
        outbox = outbox_of(database, clock)
        begin.wait(20.0)
        return [message.id for number in ids for message in outbox.claim([number])]

    with ThreadPoolExecutor(len(databases)) as pool:
        claimed = [row_id for claims in pool.map(claim, databases) for row_id in claims]
    for database in databases:
        database.close()
    assert sorted(claimed) == sorted(ids)
    assert len(ids) == 40


def test_a_channel_is_stuck_until_it_has_taken_something_later(
    database: Database, outbox: Outbox, clock: Clock
) -> None:
    def stuck() -> list[str]:
        return [message.channel for message in notices.stuck(database, clock.now - DAY)]

    first = leased(database, outbox, clock())
    assert stuck() == []  # nobody has tried yet
    outbox.retry(first, clock.now, "No.")
    assert stuck() == ["mail"]
    (second,) = outbox.claim([first.id])
    outbox.failed(second, "No.")
    assert stuck() == ["mail"]
    assert notices.count(database)[MessageState.FAILED] == 1
    later = leased(database, outbox, clock(), "later")
    assert stuck() == ["mail"]
    outbox.sent(later)
    assert stuck() == []


def test_a_channel_that_failed_long_ago_is_not_stuck(
    database: Database, outbox: Outbox, clock: Clock
) -> None:
    outbox.failed(leased(database, outbox, clock()), "No.")
    clock.now += DAY + 1
    assert notices.stuck(database, clock.now - DAY) == ()


def test_old_notices_are_forgotten_but_not_what_waits(
    database: Database, outbox: Outbox, clock: Clock
) -> None:
    message = leased(database, outbox, clock())
    notices.forget(database, clock.now + 1)
    assert len(notices.newest(database)) == 1
    outbox.sent(message)
    notices.forget(database, clock.now + 1)
    assert notices.newest(database) == ()


def told(stored: Stored) -> list[tuple[str, dict[str, object]]]:
    """What anybody is told of since the last look."""
    notices.tell_new(stored.database, stored.clock(), FUTILE)
    found = notices.address(stored.database, stored.clock(), (), ())
    return [(one.event, dict(one.facts)) for one in found]


def test_held_and_failed_jobs_and_deliveries_are_told_once_each(stored: Stored) -> None:
    assert told(stored) == []
    stored.clock.now += 1
    stored.ask("k")
    job = stored.claim()
    stored.queue.hold(job, "MISSING_SLICES", "A slice is missing.")
    ((event, facts),) = told(stored)
    assert (event, facts["job"], facts["reason"]) == ("job_held", job.id, "MISSING_SLICES")
    assert told(stored) == []
    stored.clock.now += 1
    stored.requeue(job.id)
    stored.queue.fail(stored.claim(), "ValueError", "It raised.", "frames of it")
    ((event, facts),) = told(stored)
    assert event == "job_failed"
    assert "frames" not in json.dumps(facts)
    stored.clock.now += 1
    stored.requeue(job.id)
    stored.succeed()
    stored.ledger.hold(stored.start_delivery(), "REFUSED_BY_PEER", "No.")
    ((event, facts),) = told(stored)
    assert (event, facts["destination"], facts["job"]) == ("delivery_held", "pacs", job.id)


def test_a_job_that_is_held_again_is_told_again(stored: Stored) -> None:
    told(stored)
    stored.ask("k")
    for _ in range(2):
        stored.clock.now += 1
        job = stored.claim()
        stored.queue.hold(job, "TIME_LIMIT", "It took too long.")
        assert len(told(stored)) == 1
        stored.requeue(job.id)


@pytest.mark.parametrize("reason", sorted(FUTILE))
def test_what_a_job_finds_again_each_time_that_it_is_put_back_is_told_once(
    stored: Stored, reason: str
) -> None:
    told(stored)
    stored.ask("k")
    counts = []
    for _ in range(3):
        stored.clock.now += 1
        job = stored.claim()
        stored.queue.hold(job, reason, "As before.")
        counts.append(len(told(stored)))
        stored.requeue(job.id)
    assert counts == [1, 0, 0]


def test_nobody_is_told_of_what_was_held_before_anybody_was_told_anything(stored: Stored) -> None:
    stored.ask("k")
    stored.queue.hold(stored.claim(), "MISSING_SLICES", "A slice is missing.")
    stored.clock.now += 1
    assert told(stored) == []


def test_a_notice_never_names_a_patient(stored: Stored) -> None:
    told(stored)
    stored.clock.now += 1
    stored.ask("k")
    stored.queue.hold(stored.claim(), "MISSING_SLICES", "A slice is missing.")
    (told_of,) = told(stored)
    text = json.dumps(told_of)
    for secret in ("P1", "A1", "1.2.3.4"):
        assert secret not in text


def test_a_destination_is_told_of_once_down_and_once_up(database: Database, clock: Clock) -> None:
    events = []
    for ok in (True, False, False, False, True, True, False, True):
        clock.now += 10
        peers.record(database, clock(), "pacs", ok=ok, seconds=0.1, sentence="It is off.")
        events += [one.event for one in notices.address(database, clock(), (), ())]
    assert events == ["destination_down", "destination_up"]  # one lost echo is no outage
