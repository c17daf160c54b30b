"""What monitoring and lists read: counter deltas, gauges, pages of jobs; both databases."""

from storage.archive import newest_arrival
from storage.queries import figures
from storage.queries.figures import CounterDelta, Gauges, Since, gauges
from storage.queries.find import jobs_with_deliveries
from storage.records import Peer
from tests.unit.storage.stored import SERIES, Stored

LATER = 60.0


def look(stored: Stored, since: Since) -> tuple[CounterDelta, Since]:
    stored.clock.now += LATER
    return figures.counter_delta(stored.database, since, stored.clock())


def begin(stored: Stored) -> Since:
    return figures.begin(stored.database, stored.clock())


def test_what_ended_is_told_once(stored: Stored) -> None:
    since = begin(stored)
    stored.ask("k", destinations=("pacs",))
    stored.clock.now += 10
    stored.succeed()
    stored.deliver()
    found, since = look(stored, since)
    ((job,), (delivery,), (arrival,)) = (found.jobs, found.deliveries, found.arrivals)
    assert (job.state, job.waited, job.took) == ("succeeded", 10, 0)
    assert (delivery.destination, delivery.state, delivery.instances) == ("pacs", "sent", 2)
    assert arrival == 0
    assert found.instances == 2
    assert found.bytes > 0
    assert look(stored, since)[0] == CounterDelta()


def test_what_was_before_the_first_look_is_not_told(stored: Stored) -> None:
    stored.ask("k")
    stored.succeed()
    stored.clock.now += LATER
    assert look(stored, begin(stored))[0] == CounterDelta()


def test_what_ended_a_moment_ago_waits_for_the_next_look(stored: Stored) -> None:
    since = begin(stored)
    stored.receive("1.1")
    found, since = figures.counter_delta(stored.database, since, stored.clock())
    assert found == CounterDelta()
    assert look(stored, since)[0].instances == 1


def test_the_rows_behind_an_old_instance_are_not_read_again(stored: Stored) -> None:
    since = begin(stored)
    stored.receive("1.1")
    _, since = look(stored, since)
    stored.receive("1.2")
    found, since = look(stored, since)
    assert found.instances == 1
    assert since.instance_id == 1  # one window late


def test_a_held_and_a_cancelled_job_are_told_with_their_reason(stored: Stored) -> None:
    since = begin(stored)
    stored.ask("a", stack="a")
    stored.queue.hold(stored.claim(), "MISSING_SLICES", "Slices are missing.")
    cancelled = stored.ask("b", stack="b")
    stored.queue.cancel(cancelled.job_id)
    found, _ = look(stored, since)
    told = {(job.state, job.reason, job.waited) for job in found.jobs}
    assert told == {("held", "MISSING_SLICES", 0), ("cancelled", "", None)}


def test_associations_are_told_by_how_they_ended(stored: Stored) -> None:
    since = begin(stored)
    first = stored.archive.associated("CT1", "MIDSLICE", "10.0.0.1")
    stored.archive.associated("CT1", "MIDSLICE", "10.0.0.1")
    stored.archive.rejected("CT2", "MIDSLICE", "10.0.0.2", "unknown")
    stored.archive.dissociated(first, "released")
    assert look(stored, since)[0].associations == {"released": 1, "rejected": 1}
    assert gauges(stored.database).associations == 1


def test_how_things_stand(stored: Stored) -> None:
    assert gauges(stored.database) == Gauges(0, 0, None)
    stored.ask("k")
    queued_at = stored.clock()
    stored.clock.now += 5
    stored.receive("9.1", series_uid="1.2.3.9")
    assert gauges(stored.database) == Gauges(1, 0, queued_at)


def test_a_page_of_jobs_has_their_deliveries_in_the_order_asked_for(stored: Stored) -> None:
    stored.ask("a", stack="a", destinations=("pacs", "archive"))
    stored.succeed()
    stored.deliver("pacs")
    stored.ask("b", stack="b")
    listed = jobs_with_deliveries(stored.database, [2, 1, 99])
    assert [job.id for job, _ in listed] == [2, 1]
    assert listed[0][1] == ()
    assert listed[1] == (stored.queue.get(1), stored.ledger.of_job(1))
    assert [(d.destination, d.sent) for d in listed[1][1]] == [("pacs", 2), ("archive", 0)]
    assert jobs_with_deliveries(stored.database, []) == ()


def test_the_newest_arrival_of_a_series_is_the_last_that_brought_something(stored: Stored) -> None:
    assert newest_arrival(stored.database, SERIES) is None
    stored.receive("1.1")
    stored.clock.now += 1
    stored.receive("1.1", peer=Peer("PACS", "MIDSLICE"))
    found = newest_arrival(stored.database, SERIES)
    assert found is not None
    assert found.calling_ae == "PACS"
