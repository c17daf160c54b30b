"""A delivery that was held for want of a destination, once there is one."""

import pytest

from storage.records import Delivery, DeliveryState, Peer
from tests.unit.storage.stored import Stored

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
