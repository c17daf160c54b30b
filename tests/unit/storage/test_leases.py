"""A lease ends when nobody renews it, whatever the clock on the wall is set to."""

import pytest

from storage.errors import LeaseLost
from storage.jobs import Queue
from storage.leases import Holder, Liveness
from storage.ledger import Ledger
from storage.records import Delivery, Job
from tests.conftest import Clock
from tests.unit.storage.stored import INFER, LEASE_SECONDS, Stored

HOUR = 3600.0


class Parts:
    """The queue and the ledger of one process: a clock on the wall, and one that nobody sets."""

    def __init__(self, stored: Stored, node: str) -> None:
        self.steady = Clock(0.0)
        self.wall = stored.clock
        holder = Holder(node, stored.clock, LEASE_SECONDS, self.steady)
        self.queue = Queue(stored.database, holder)
        self.ledger = Ledger(stored.database, holder)

    def claim(self) -> Job | None:
        return self.queue.claim("w", INFER)

    def send(self) -> Delivery | None:
        return self.ledger.claim("pacs", "s")


@pytest.fixture
def mine(stored: Stored) -> Parts:
    return Parts(stored, "one")


@pytest.fixture
def other(stored: Stored) -> Parts:
    return Parts(stored, "two")


@pytest.mark.parametrize("seconds", [HOUR, 400 * 24 * HOUR, -HOUR])
def test_a_clock_that_jumps_takes_no_job_from_a_worker_that_lives(
    stored: Stored, mine: Parts, other: Parts, seconds: float
) -> None:
    stored.ask("k")
    job = mine.claim()
    assert job is not None
    stored.clock.now += seconds
    assert mine.claim() is None
    assert other.claim() is None
    for part in (mine, other):
        part.steady.now += LEASE_SECONDS - 1
    mine.queue.renew(job, 0.5)
    assert mine.claim() is None
    assert other.claim() is None
    for part in (mine, other):
        part.steady.now += 2
    assert mine.claim() is None
    assert other.claim() is None
    mine.queue.succeed(job, stored.derive(job))


@pytest.mark.parametrize("who", ["mine", "other"])
@pytest.mark.parametrize("seconds", [0.0, -HOUR, HOUR])
def test_what_nobody_renews_is_claimed_again_whatever_the_clock_says(
    stored: Stored, mine: Parts, other: Parts, who: str, seconds: float
) -> None:
    stored.ask("k")
    dead = mine.claim()
    assert dead is not None
    part = {"mine": mine, "other": other}[who]
    stored.clock.now += seconds
    assert part.claim() is None  # another node sees it for the first time
    part.steady.now += LEASE_SECONDS + 1
    again = part.claim()
    assert again is not None
    assert (again.id, again.attempt, again.abandoned) == (dead.id, 2, 1)
    with pytest.raises(LeaseLost):
        mine.queue.renew(dead, 0.9)


def test_a_second_lease_of_a_job_has_its_own_time(stored: Stored, mine: Parts) -> None:
    stored.ask("k")
    assert mine.claim() is not None
    mine.steady.now += LEASE_SECONDS + 1
    assert mine.claim() is not None
    mine.steady.now += LEASE_SECONDS - 1
    assert mine.claim() is None


def test_a_job_that_lives_keeps_no_other_waiting(stored: Stored, mine: Parts, other: Parts) -> None:
    stored.ask("k1", priority=1)
    assert mine.claim() is not None
    stored.receive("1.7", series_uid="1.2.3.5")
    arrival = stored.arrival(series_uid="1.2.3.5")
    stored.queue.complete(arrival.id, {}, [stored.new_job(arrival, "k2")])
    stored.clock.now += HOUR
    found = other.claim()
    assert found is not None
    assert found.key == "k2"


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_a_clock_that_jumps_takes_no_delivery_from_a_sender_that_lives(
    stored: Stored, mine: Parts, other: Parts, seconds: float
) -> None:
    stored.ask("k")
    stored.succeed()
    delivery = mine.send()
    assert delivery is not None
    assert mine.ledger.claim("viewer", "s") is None  # another destination's leases are its own
    stored.clock.now += seconds
    assert mine.send() is None
    assert other.send() is None
    mine.ledger.renew(delivery)
    for part in (mine, other):
        part.steady.now += LEASE_SECONDS + 1
    assert other.send() is None  # it was renewed since it was looked at
    other.steady.now += LEASE_SECONDS + 1
    again = other.send()
    assert again is not None
    assert (again.id, again.attempt) == (delivery.id, 2)


def test_a_node_is_dead_once_its_heartbeat_stood_still_by_a_steady_clock(clock: Clock) -> None:
    beats = Liveness[str](clock, 120.0)
    assert beats.dead({"one": 1.0, "two": 1.0}) == ()  # however long ago that was
    clock.now += 121
    assert beats.dead({"one": 2.0, "two": 1.0}) == ("two",)
    clock.now += 119
    assert beats.dead({"one": 2.0}) == ()
    clock.now += 2
    assert beats.dead({"one": 2.0}) == ("one",)
