"""Deliveries: what a destination has, what it lacks, and when it is asked again."""

import threading

import pytest

from storage.database import Database
from storage.errors import LeaseLost, NotFound, WrongState
from storage.leases import Holder
from storage.ledger import AnswerCount, Ledger, ObjectState, answer_counts, object_states
from storage.records import Backlog, Delivery, DeliveryState, Peer
from storage.retention import expired, purge
from storage.site import peers
from tests.conftest import Clock
from tests.unit.storage.stored import LEASE_SECONDS, Stored

OUT_OF_RESOURCES = 0xA700


@pytest.fixture
def made(stored: Stored) -> Stored:
    """A derived series of two instances, queued for `pacs` and `viewer`."""
    stored.ask("k", destinations=("pacs", "viewer"))
    stored.succeed("2.25.1")
    return stored


def offered(stored: Stored) -> bool:
    """True where making the series again would raise its edition."""
    stored.clock.now += 100 * 86_400
    for one in stored.ledger.of_job(1):
        if one.state in (DeliveryState.QUEUED, DeliveryState.HELD):
            stored.ledger.cancel(one.id)
    stored.clock.now += 99 * 86_400
    found = expired(stored.database, stored.clock.now, 7, 1)
    assert purge(stored.database, stored.files, found, stored.clock.now).series
    stored.ask("k")
    return stored.claim().edition == 2


def test_a_destination_gets_its_own_deliveries_only(made: Stored) -> None:
    assert made.start_delivery("viewer").destination == "viewer"
    assert made.ledger.claim("viewer", "s") is None
    assert made.ledger.claim("elsewhere", "s") is None
    assert made.start_delivery("pacs").destination == "pacs"


def test_urgent_deliveries_go_first(stored: Stored) -> None:
    stored.ask("k1", priority=5)
    stored.succeed("2.25.1")
    stored.ask("k2", route="urgent", priority=1)
    stored.succeed("2.25.2")
    assert stored.start_delivery().derived_series_uid == "2.25.2"


def test_what_is_to_be_sent_is_named_with_its_file(made: Stored) -> None:
    delivery = made.start_delivery()
    first, second = made.ledger.unsent(delivery)
    assert (first.instance_uid, first.path) == ("2.25.1.0", "derived/1-1/0.dcm")
    assert (second.instance_uid, second.offers, second.status) == ("2.25.1.1", 0, None)
    assert made.files.path(first.path).is_file()
    assert (delivery.total, delivery.sent, delivery.confirmed) == (2, 0, 0)


def test_a_delivery_is_sent_when_every_instance_is_stored(made: Stored) -> None:
    delivery = made.deliver()
    assert (delivery.state, delivery.sent, delivery.total) == (DeliveryState.SENT, 2, 2)
    assert (delivery.finished_at, delivery.confirmed) == (made.clock.now, 0)
    assert made.ledger.claim("pacs", "s") is None


def test_a_delivery_with_a_gap_is_not_sent(made: Stored) -> None:
    delivery = made.start_delivery()
    first, _ = made.ledger.unsent(delivery)
    made.ledger.answered(delivery, first.id, 0, stored=True)
    with pytest.raises(WrongState, match="has 1 instances that are not stored"):
        made.ledger.sent(delivery)
    assert made.ledger.get(delivery.id).state is DeliveryState.RUNNING


def test_only_what_is_missing_is_sent_again(made: Stored) -> None:
    delivery = made.start_delivery()
    first, second = made.ledger.unsent(delivery)
    made.ledger.answered(delivery, first.id, 0, stored=True)
    made.ledger.answered(delivery, second.id, OUT_OF_RESOURCES, stored=False)
    made.ledger.retry(delivery, made.clock.now + 30, "RETRY", "The PACS is out of resources.")
    waiting = made.ledger.get(delivery.id)
    assert (waiting.state, waiting.failures, waiting.sent) == (DeliveryState.QUEUED, 1, 1)
    assert (waiting.reason, waiting.due_at) == ("RETRY", made.clock.now + 30)
    assert made.ledger.claim("pacs", "s") is None
    made.clock.now += 30
    again = made.start_delivery()
    (left,) = made.ledger.unsent(again)
    assert (left.id, left.offers, left.status) == (second.id, 1, OUT_OF_RESOURCES)
    made.ledger.answered(again, left.id, 0, stored=True)
    made.ledger.sent(again)
    done = made.ledger.get(again.id)
    assert (done.failures, done.reason, done.sentence) == (0, "", "")


def test_failures_in_a_row_are_counted(made: Stored) -> None:
    for count in range(1, 4):
        delivery = made.start_delivery()
        made.ledger.retry(delivery, made.clock.now, "RETRY", "No answer.")
        assert made.ledger.get(delivery.id).failures == count


def test_a_held_delivery_waits_for_a_person(made: Stored) -> None:
    delivery = made.start_delivery()
    made.ledger.hold(delivery, "REFUSED_BY_PEER", "The PACS does not take CT.")
    held = made.ledger.get(delivery.id)
    assert (held.state, held.reason) == (DeliveryState.HELD, "REFUSED_BY_PEER")
    assert made.ledger.claim("pacs", "s") is None
    made.ledger.requeue(delivery.id)
    again = made.start_delivery()
    assert (again.id, again.failures, again.reason) == (delivery.id, 0, "")


def test_a_late_sender_writes_nothing_any_more(made: Stored) -> None:
    dead = made.start_delivery()
    made.clock.now += LEASE_SECONDS + 1
    again = made.start_delivery()
    assert (again.id, again.attempt, again.failures) == (dead.id, 2, 0)
    for write in (
        lambda: made.ledger.renew(dead),
        lambda: made.ledger.unsent(dead),
        lambda: made.ledger.answered(dead, 1, 0, stored=True),
        lambda: made.ledger.sent(dead),
        lambda: made.ledger.retry(dead, 0, "X", "x"),
        lambda: made.ledger.hold(dead, "X", "x"),
        lambda: made.ledger.release(dead),
    ):
        with pytest.raises(LeaseLost, match=f"delivery {dead.id}, attempt 1"):
            write()
    assert made.ledger.get(dead.id) == again


def test_a_renewed_delivery_stays_with_its_sender(made: Stored) -> None:
    delivery = made.start_delivery()
    for _ in range(3):
        made.clock.now += LEASE_SECONDS - 1
        made.ledger.renew(delivery)
    assert made.ledger.claim("pacs", "another") is None


def test_a_clean_stop_gives_the_delivery_back_and_counts_nothing(made: Stored) -> None:
    delivery = made.start_delivery()
    made.ledger.release(delivery)
    again = made.start_delivery()
    assert (again.id, again.failures, again.attempt) == (delivery.id, 0, 2)


def test_at_start_what_a_dead_process_was_sending_is_queued_again(made: Stored) -> None:
    made.start_delivery("pacs")
    made.start_delivery("viewer")
    assert made.ledger.recover() == 2
    assert made.start_delivery("pacs").attempt == 2
    other = Stored(made.database, made.files, made.clock, node="two")
    assert other.ledger.recover() == 0


def test_a_cancelled_delivery_stops_its_sender(made: Stored) -> None:
    delivery = made.start_delivery()
    made.ledger.cancel(delivery.id)
    with pytest.raises(LeaseLost):
        made.ledger.answered(delivery, 1, 0, stored=True)
    assert made.ledger.get(delivery.id).sentence == "Cancelled by a person."
    with pytest.raises(WrongState, match="is cancelled and cannot be cancelled"):
        made.ledger.cancel(delivery.id)


def test_an_operator_delivers_again_what_was_sent(made: Stored) -> None:
    first = made.deliver("pacs")
    made.deliver("viewer")
    made.clock.now += 5
    made.ledger.redeliver(1, "pacs")
    again = made.start_delivery("pacs")
    assert (again.id, again.sent, again.queued_at) == (first.id, 0, made.clock.now)
    assert made.ledger.claim("viewer", "s") is None
    made.ledger.redeliver(1)
    assert made.ledger.claim("viewer", "s") is not None


def test_an_operator_delivers_to_a_destination_that_the_job_did_not_name(made: Stored) -> None:
    deliveries = made.ledger.redeliver(1, "archive")
    assert [one.destination for one in deliveries] == ["pacs", "viewer", "archive"]
    assert made.deliver("archive").sent == 2


def test_what_cannot_be_delivered_again_says_why(stored: Stored) -> None:
    stored.ask("k", destinations=())
    with pytest.raises(WrongState, match="it waits for its turn, and its result is delivered"):
        stored.ledger.redeliver(1, "pacs")
    stored.succeed()
    with pytest.raises(WrongState, match="no destinations: name one"):
        stored.ledger.redeliver(1)
    with pytest.raises(NotFound, match="no job 5"):
        stored.ledger.redeliver(5)
    for ask in (stored.ledger.get, stored.ledger.cancel, stored.ledger.requeue):
        with pytest.raises(NotFound, match="no delivery 5"):
            ask(5)


def test_what_was_about_to_be_sent_counts_as_offered(made: Stored) -> None:
    delivery = made.start_delivery()
    made.ledger.unsent(delivery)  # the node may die now, with the first instance under way
    made.ledger.recover()
    assert offered(made)


def test_what_was_never_sent_does_not_count_as_offered(made: Stored) -> None:
    made.ledger.release(made.start_delivery())
    assert not offered(made)


def test_the_backlog_counts_what_is_unfinished_by_destination_and_state(made: Stored) -> None:
    since = made.clock.now
    made.deliver("pacs")
    made.ledger.hold(made.start_delivery("viewer"), "REFUSED_BY_PEER", "No.")
    made.clock.now += 60
    for number in (2, 3):
        made.ask(f"k{number}", route=f"route {number}", destinations=("pacs",))
        made.succeed(f"2.25.{number}")
    made.start_delivery("pacs")
    assert made.ledger.backlog() == (
        Backlog("pacs", DeliveryState.QUEUED, 1, since + 60),
        Backlog("pacs", DeliveryState.RUNNING, 1, since + 60),
        Backlog("viewer", DeliveryState.HELD, 1, since),
    )


def test_a_clock_that_is_set_back_delays_no_delivery(made: Stored) -> None:
    delivery = made.start_delivery()
    made.ledger.retry(delivery, made.clock.now + 30, "RETRY", "No answer.")
    made.clock.now -= 3600
    again = made.start_delivery("pacs")
    assert made.start_delivery("viewer").destination == "viewer"  # never tried before
    made.ledger.retry(again, made.clock.now + 30, "RETRY", "No answer.")
    assert made.ledger.claim("pacs", "s") is None  # and the back-off goes on as ever
    made.clock.now += 30
    assert made.start_delivery("pacs").failures == 2


def test_a_try_that_ended_while_the_clock_was_wrong_delays_no_delivery(made: Stored) -> None:
    delivery = made.start_delivery("pacs")
    made.clock.now += 5 * 3600  # set forward while it is tried
    made.ledger.retry(delivery, made.clock.now + 30, "RETRY", "No answer.")
    assert made.ledger.claim("pacs", "s") is None
    made.clock.now -= 5 * 3600 - 1  # and right again
    assert made.start_delivery("pacs").id == delivery.id


def test_a_failure_after_something_was_stored_is_the_first_in_a_row(made: Stored) -> None:
    for is_first, failures in ((False, 1), (False, 2), (True, 1), (False, 2)):
        delivery = made.start_delivery()
        made.ledger.retry(delivery, made.clock.now, "RETRY", "No answer.", is_first=is_first)
        assert made.ledger.get(delivery.id).failures == failures


def test_what_is_not_understood_is_counted_until_it_is_offered_anew(made: Stored) -> None:
    delivery = made.start_delivery()
    first, second = made.ledger.unsent(delivery)
    for status, not_understood in ((OUT_OF_RESOURCES, False), (0xC000, True), (None, False)):
        made.ledger.answered(
            delivery, first.id, status, stored=False, not_understood=not_understood
        )
    for _ in range(2):
        made.ledger.answered(delivery, second.id, 0xA900, stored=False, not_understood=True)
    counts = [(one.offers, one.not_understood) for one in made.ledger.unsent(delivery)]
    assert counts == [(3, 1), (2, 2)]
    made.ledger.hold(delivery, "NOT_UNDERSTOOD", "No.")
    made.ledger.requeue(delivery.id)
    again = made.ledger.unsent(made.start_delivery())
    assert [(one.offers, one.not_understood) for one in again] == [(3, 0), (2, 0)]


def test_an_operator_delivers_all_again_while_the_rest_of_it_is_on_its_way(made: Stored) -> None:
    sending = made.start_delivery("pacs")
    first, second = made.ledger.unsent(sending)
    made.ledger.answered(sending, first.id, 0, stored=True)
    made.ledger.redeliver(1, "pacs")
    with pytest.raises(LeaseLost):
        made.ledger.answered(sending, second.id, 0, stored=True)
    again = made.start_delivery("pacs")
    assert again.id == sending.id
    assert [one.id for one in made.ledger.unsent(again)] == [first.id, second.id]
    assert made.start_delivery("viewer").sent == 0


def test_eight_senders_take_each_delivery_once(stored: Stored) -> None:
    stored.receive("1.1")
    arrival = stored.arrival()
    jobs = [stored.new_job(arrival, f"k{n}", route=f"route {n}") for n in range(24)]
    stored.queue.complete(arrival.id, {}, jobs)
    for number in range(24):
        stored.succeed(f"2.25.{number + 1}")
    claimed: list[Delivery] = []

    def work() -> None:
        while len(claimed) < 24:
            if (delivery := stored.ledger.claim("pacs", "s")) is None:
                continue  # another one is being sent there
            claimed.append(delivery)
            stored.ledger.hold(delivery, "REFUSED_BY_PEER", "No.")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(delivery.id for delivery in claimed) == list(range(1, 25))


def test_a_person_has_what_waits_tried_now_and_nothing_is_sent_twice(made: Stored) -> None:
    leased = made.start_delivery()
    made.ledger.answered(leased, made.ledger.unsent(leased)[0].id, 0x0000, stored=True)
    made.ledger.retry(leased, made.clock.now + 3600, "RETRY", "One is not stored.")
    assert made.ledger.claim("pacs", "s") is None
    made.ledger.requeue(leased.id, who="anna")
    again = made.start_delivery()
    assert (again.id, again.sent, again.failures) == (leased.id, 1, 1)
    assert len(made.ledger.unsent(again)) == 1


def test_what_waits_for_its_turn_keeps_its_place_when_it_is_asked_for_now(made: Stored) -> None:
    before = made.ledger.of_job(1)[0]
    made.clock.now += 5
    made.ledger.requeue(before.id)
    assert made.ledger.of_job(1)[0] == before


def test_a_destination_that_is_down_is_tried_when_a_person_says_so(made: Stored) -> None:
    (pacs, _), now = made.ledger.of_job(1), made.clock.now
    for name in ("pacs", "viewer"):
        peers.unreachable(made.database, now, name, "No association.", open_until=now + 600)
    assert not peers.may_send(made.database, now, "pacs", 3600)
    made.ledger.requeue(pacs.id)
    assert peers.may_send(made.database, now, "pacs", 3600)
    assert not peers.may_send(made.database, now, "viewer", 3600)
    assert not peers.reachability(made.database)[0].up  # it has not answered yet


# What a destination answered, alike answers together, what is not stored first.


def test_nothing_was_asked_yet(database: Database, stored: Stored) -> None:
    stored.ask("k", destinations=("pacs",))
    stored.succeed()
    (delivery,) = stored.ledger.of_job(1)
    assert answer_counts(database, delivery.id) == (AnswerCount(None, False, 2, 0),)


def test_alike_answers_are_counted_together(database: Database, stored: Stored) -> None:
    stored.ask("k", destinations=("pacs",))
    stored.succeed()
    delivery = stored.start_delivery()
    first, second = stored.ledger.unsent(delivery)
    stored.ledger.answered(delivery, first.id, 0x0000, stored=True)
    assert answer_counts(database, delivery.id) == (
        AnswerCount(None, False, 1, 0),
        AnswerCount(0x0000, True, 1, 1),
    )
    stored.ledger.answered(delivery, second.id, 0xA700, stored=False)
    assert answer_counts(database, delivery.id) == (
        AnswerCount(0xA700, False, 1, 1),
        AnswerCount(0x0000, True, 1, 1),
    )


def test_answers_of_another_destination_are_not_mixed_in(
    database: Database, stored: Stored
) -> None:
    stored.ask("k", destinations=("pacs", "other"))
    stored.succeed()
    stored.deliver("pacs")
    other = next(d for d in stored.ledger.of_job(1) if d.destination == "other")
    assert answer_counts(database, other.id) == (AnswerCount(None, False, 2, 0),)
    assert answer_counts(database, 999) == ()


# A delivery that was held for want of a destination, once there is one.

SENDER = "sender WS_%_1"
SENTENCE = "The sender 'WS_%_1' belongs to no destination."
WS = Peer("WS_%_1", "MIDSLICE")


def held(stored: Stored, *destinations: str) -> Delivery:
    """A result for a sender that nobody knows."""
    stored.receive("1.1", peer=WS)
    stored.complete("k", peer=WS, destinations=destinations or (SENDER,))
    stored.succeed()
    delivery = stored.start_delivery(SENDER)
    stored.ledger.hold(delivery, "NO_DESTINATION", SENTENCE)
    return stored.ledger.get(delivery.id)


def test_it_goes_to_the_destination_that_the_sender_has_become(stored: Stored) -> None:
    delivery = held(stored)
    assert stored.ledger.redirect(SENDER, "workstation") == 1
    found = stored.ledger.get(delivery.id)
    assert (found.destination, found.state) == ("workstation", DeliveryState.QUEUED)
    assert (found.reason, found.sentence, found.failures) == ("", "", 0)
    assert stored.deliver("workstation").sent == 2
    assert stored.queue.get(1).destinations == ("workstation",)
    assert stored.ledger.redirect(SENDER, "workstation") == 0


def test_asked_for_again_it_follows(stored: Stored) -> None:
    held(stored)
    stored.ledger.redirect(SENDER, "workstation")
    stored.deliver("workstation")
    (again,) = stored.ledger.redeliver(1)
    assert (again.destination, again.state) == ("workstation", DeliveryState.QUEUED)


def test_where_the_destination_has_it_already_nothing_is_sent_twice(stored: Stored) -> None:
    delivery = held(stored, SENDER, "workstation")
    stored.deliver("workstation")
    assert stored.ledger.redirect(SENDER, "workstation") == 1
    found = stored.ledger.get(delivery.id)
    assert found.state is DeliveryState.CANCELLED
    assert "'workstation'" in found.sentence
    assert [one.state for one in stored.ledger.of_job(1)] == [
        DeliveryState.CANCELLED,
        DeliveryState.SENT,
    ]
    assert stored.queue.get(1).destinations == ("workstation",)


def test_a_destination_that_is_configured_again_gets_what_was_held(stored: Stored) -> None:
    delivery = held(stored)
    assert stored.ledger.redirect(SENDER, SENDER) == 1
    assert stored.ledger.get(delivery.id).state is DeliveryState.QUEUED
    assert stored.ledger.redirect(SENDER, SENDER) == 0


def test_what_is_held_for_another_reason_waits_for_a_person(stored: Stored) -> None:
    stored.ask("k")
    stored.succeed()
    delivery = stored.start_delivery()
    stored.ledger.hold(delivery, "REFUSED_BY_PEER", "No.")
    assert stored.ledger.redirect("pacs", "pacs") == 0
    assert stored.ledger.get(delivery.id).state is DeliveryState.HELD


@pytest.mark.parametrize("other", ["sender WSX_1", "sender WS_%_12"])
def test_another_sender_of_a_like_name_keeps_its_own(stored: Stored, other: str) -> None:
    held(stored, SENDER, other)
    stored.ledger.redirect(SENDER, "workstation")
    assert stored.queue.get(1).destinations == ("workstation", other)


def test_each_series_of_a_result_says_what_each_destination_has_of_it(stored: Stored) -> None:
    stored.ask("k", destinations=("pacs",))
    job = stored.claim()
    stored.queue.succeed(job, stored.derive(job, count=3, supplements=1))
    leased = stored.start_delivery("pacs")
    first, second, beside = stored.ledger.unsent(leased)

    def states() -> list[tuple[int, int, int | None]]:
        rows = object_states(stored.database, job.id)
        return [(row.instances, row.stored, row.status) for row in rows]

    assert states() == [(2, 0, None), (1, 0, None)]
    stored.ledger.answered(leased, first.id, 0x0000, stored=True)
    stored.ledger.answered(leased, second.id, 0xA700, stored=False)
    stored.ledger.answered(leased, beside.id, 0x0122, stored=False)
    assert states() == [(2, 1, 0xA700), (1, 0, 0x0122)]
    images, state = object_states(stored.database, job.id)
    assert images == ObjectState("2.25.1", "image", "0.dcm", 2, "pacs", 1, 0xA700)
    assert (state.kind, state.series_uid) == ("presentation state", "2.25.1.92")
    assert object_states(stored.database, 999) == ()


def test_a_result_that_goes_nowhere_has_its_series_all_the_same(stored: Stored) -> None:
    stored.ask("k", destinations=())
    stored.succeed()
    (images,) = object_states(stored.database, 1)
    assert images == ObjectState("2.25.1", "image", "0.dcm", 2, None, 0, None)


def test_a_destination_gets_one_delivery_at_a_time_whichever_node_sends_it(
    stored: Stored, clock: Clock
) -> None:
    stored.receive("1.1")
    arrival = stored.arrival()
    jobs = [stored.new_job(arrival, f"k{n}", route=f"route {n}") for n in range(2)]
    stored.queue.complete(arrival.id, {}, jobs)
    for number in range(2):
        stored.succeed(f"2.25.{number + 1}")
    other = Ledger(stored.database, Holder("two", clock, 60.0, clock))
    first = stored.ledger.claim("pacs", "s")
    assert first is not None
    assert other.claim("pacs", "s") is None
    assert stored.ledger.recover("one") == 1  # it was lost
    second = other.claim("pacs", "s")
    assert second is not None
    assert (second.id, second.attempt) == (first.id, 2)  # in the order of the queue
    with pytest.raises(LeaseLost):
        stored.ledger.renew(first)
