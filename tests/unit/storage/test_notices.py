"""Everybody is told once, through every channel, until it is given up; and never of a patient."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from node.rules.reasons import FUTILE
from storage.database import Database
from storage.errors import NotFound
from storage.records import Message, MessageState
from storage.site import notices, peers
from storage.site.audit import NODE, note
from tests.conftest import Clock
from tests.unit.storage.stored import Stored

EVENTS = ("job_held", "job_failed", "delivery_held")
DAY = 86_400.0


def outbox(database: Database, now: float) -> list[tuple[str, str]]:
    notices.address(database, now, ("mail", "hook"), EVENTS)
    return [(one.notice.event, one.channel) for one in notices.due(database, now)]


def one(database: Database, now: float) -> Message:
    notices.tell(database, now, "job_held", "k", {"job": 1})
    notices.address(database, now, ("mail",), EVENTS)
    (message,) = notices.due(database, now)
    return message


def test_the_same_is_told_once_through_each_channel(database: Database, clock: Clock) -> None:
    assert notices.tell(database, clock(), "job_held", "job 1", {"job": 1})
    assert not notices.tell(database, clock(), "job_held", "job 1", {"job": 1})
    assert outbox(database, clock()) == [("job_held", "mail"), ("job_held", "hook")]
    assert len(outbox(database, clock())) == 2


def test_nobody_is_told_of_what_nobody_asked_for(database: Database, clock: Clock) -> None:
    notices.tell(database, clock(), "disk_low", "disk", {})
    assert outbox(database, clock()) == []
    assert notices.address(database, clock(), ("mail",), ("disk_low",)) == ()  # it was looked at


def test_what_did_not_work_is_tried_again_later(database: Database, clock: Clock) -> None:
    message = one(database, clock())
    notices.retry(database, message.id, clock.now + 30, "mail.example.org did not take the mail")
    assert notices.due(database, clock()) == ()
    clock.now += 31
    (again,) = notices.due(database, clock())
    assert (again.tries, again.sentence) == (1, "mail.example.org did not take the mail")
    notices.sent(database, clock(), again.id)
    assert notices.due(database, clock()) == ()
    (done,) = notices.newest(database)
    assert (done.state, done.tries, done.done_at) == (MessageState.SENT, 2, clock.now)


def test_a_clock_that_is_set_back_keeps_nobody_waiting(database: Database, clock: Clock) -> None:
    one(database, clock())
    clock.now -= 2 * DAY
    assert len(notices.due(database, clock())) == 1


def test_what_one_node_has_claimed_no_other_sends_until_its_time_is_over(
    database: Database, clock: Clock
) -> None:
    message = one(database, clock())
    assert notices.claim(database, clock(), [message.id, 99]) == {message.id}
    assert notices.claim(database, clock(), [message.id]) == frozenset()
    assert notices.due(database, clock()) == ()
    clock.now += notices.CLAIM_SECONDS + 1  # the node died while it was sending
    assert notices.claim(database, clock(), [message.id]) == {message.id}
    notices.sent(database, clock(), message.id)
    clock.now += notices.CLAIM_SECONDS + 1
    assert notices.claim(database, clock(), [message.id]) == frozenset()


def test_a_clock_that_is_set_back_gives_no_message_to_two(database: Database, clock: Clock) -> None:
    message = one(database, clock())
    clock.now -= 2 * DAY
    assert notices.claim(database, clock(), [message.id]) == {message.id}
    assert notices.claim(database, clock(), [message.id]) == frozenset()


def test_many_claim_at_once_and_each_message_has_one_owner(database_url: str, clock: Clock) -> None:
    nodes = [Database(database_url) for _ in range(4)]
    for number in range(20):
        notices.tell(nodes[0], clock(), "job_held", f"job {number}", {})
    notices.address(nodes[0], clock(), ("mail", "hook"), EVENTS)
    ids = [each.id for each in notices.due(nodes[0], clock(), 100)]
    begin = threading.Barrier(len(nodes))

    def claim(node: Database) -> list[int]:
        begin.wait(20.0)
        return [each for number in ids for each in notices.claim(node, clock(), [number])]

    with ThreadPoolExecutor(len(nodes)) as pool:
        claimed = [each for found in pool.map(claim, nodes) for each in found]
    for node in nodes:
        node.close()
    assert sorted(claimed) == sorted(ids)
    assert len(ids) == 40


def test_what_was_given_up_is_counted_and_may_be_sent_once_more(
    database: Database, clock: Clock
) -> None:
    message = one(database, clock())
    notices.failed(database, clock(), message.id, "given up")
    assert notices.count(database)[MessageState.FAILED] == 1
    notices.again(database, clock(), message.id)
    assert [m.id for m in notices.due(database, clock())] == [message.id]
    with pytest.raises(NotFound):
        notices.again(database, clock(), 999)


def test_a_channel_is_stuck_until_it_has_taken_something_later(
    database: Database, clock: Clock
) -> None:
    def stuck() -> list[str]:
        return [each.channel for each in notices.stuck(database, clock.now - DAY)]

    message = one(database, clock())
    assert stuck() == []  # nobody has tried yet
    notices.retry(database, message.id, clock.now, "No.")
    assert stuck() == ["mail"]
    notices.failed(database, clock(), message.id, "No.")
    assert stuck() == ["mail"]
    notices.tell(database, clock(), "job_held", "later", {"job": 2})
    notices.address(database, clock(), ("mail",), EVENTS)
    (later,) = notices.due(database, clock())
    assert stuck() == ["mail"]
    notices.sent(database, clock(), later.id)
    assert stuck() == []


def test_a_channel_that_failed_long_ago_is_not_stuck(database: Database, clock: Clock) -> None:
    notices.failed(database, clock(), one(database, clock()).id, "No.")
    clock.now += DAY + 1
    assert notices.stuck(database, clock.now - DAY) == ()


def test_old_notices_are_forgotten_but_not_what_waits(database: Database, clock: Clock) -> None:
    message = one(database, clock())
    notices.forget(database, clock.now + 1)
    assert len(notices.newest(database)) == 1
    notices.sent(database, clock(), message.id)
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
    stored.queue.requeue(job.id)
    stored.queue.fail(stored.claim(), "ValueError", "It raised.", "frames of it")
    ((event, facts),) = told(stored)
    assert event == "job_failed"
    assert "frames" not in json.dumps(facts)
    stored.clock.now += 1
    stored.queue.requeue(job.id)
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
        stored.queue.requeue(job.id)


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
        stored.queue.requeue(job.id)
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


def test_what_the_node_has_written_down_for_the_administrator_is_told(stored: Stored) -> None:
    told(stored)
    stored.clock.now += 1
    with stored.database.writing() as db:
        now = stored.clock()
        note(db, now, NODE, "notice", "job 7", {"kind": "revision", "sentence": "Again."})
        note(db, now, NODE, "notice", "retention waits", {"kind": "retention", "sentence": "Old."})
    found = sorted(told(stored), key=lambda pair: pair[0])
    assert found == [
        ("attention", {"sentence": "Old."}),
        ("result_superseded", {"job": "7", "sentence": "Again."}),
    ]
    assert told(stored) == []


def test_a_destination_is_told_of_once_down_and_once_up(database: Database, clock: Clock) -> None:
    events = []
    for ok in (True, False, False, False, True, True, False, True):
        clock.now += 10
        peers.record(database, clock(), "pacs", ok=ok, seconds=0.1, sentence="It is off.")
        events += [one.event for one in notices.address(database, clock(), (), ())]
    assert events == ["destination_down", "destination_up"]  # one lost echo is no outage
