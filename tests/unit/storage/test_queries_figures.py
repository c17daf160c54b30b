"""What monitors read: counter deltas, gauges, durations, and the change tokens of pages."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest

from storage.archive import newest_arrival
from storage.errors import WrongState
from storage.queries import figures
from storage.queries.figures import CounterDelta, Gauges, Since, gauges, percentiles
from storage.queries.find import jobs_with_deliveries
from storage.records import JobState, Peer, SwitchName
from storage.site import control, notices, peers
from tests.unit.storage.stored import SERIES, Stored, post

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


# How long each step takes, how much is done, and how long the disk lasts.

HOUR, DAY = 3600.0, 86_400.0


def one_job(stored: Stored, infer: float, *, state: JobState = JobState.SUCCEEDED) -> None:
    """A series of two instances, with known times of every step."""
    number = stored.numbers()
    uid = f"1.2.7.{number}"
    stored.receive("1.1", series_uid=uid)
    stored.clock.now += 10
    stored.receive("1.2", series_uid=uid)
    stored.clock.now += 30
    arrival = stored.arrival(series_uid=uid)
    stored.queue.complete(arrival.id, {}, [stored.new_job(arrival, uid)])
    stored.clock.now += 5
    job = stored.claim()
    stored.clock.now += infer
    if state is JobState.FAILED:
        stored.queue.fail(job, "ValueError", "It raised.")
        return
    stored.queue.succeed(job, stored.derive(job, f"2.25.{number}"))
    stored.clock.now += 2
    stored.deliver()


def test_each_step_has_its_middle_and_what_one_in_twenty_exceeds(stored: Stored) -> None:
    began = stored.clock.now
    for infer in (10.0, 20.0, 30.0):
        one_job(stored, infer)
    found = figures.durations(stored.database, began, stored.clock.now + 1)
    assert {step: round(one.p50 or 0, 6) for step, one in found.items()} == {
        "receive": 10,
        "wait": 30,
        "queue": 5,
        "infer": 20,
        "send": 2,
        "total": 30 + 5 + 20 + 2,
    }
    assert found["infer"].p95 == pytest.approx(29)
    assert found["infer"].count == 3
    nothing = figures.durations(stored.database, began - DAY, began)
    assert (nothing["infer"].count, nothing["infer"].p50) == (0, None)


def test_the_newest_jobs_say_what_they_ran_on(stored: Stored) -> None:
    for number, device in enumerate(("cpu", "cuda", "cpu", ""), start=1):
        stored.ask(f"k{number}", (f"{number}.1",), stack=f"stack {number}")
        job = stored.claim()
        stored.clock.now += 1
        record = {"device": device} if device else {}
        stored.queue.succeed(job, replace(stored.derive(job, f"2.25.{number}"), record=record))
    assert figures.devices(stored.database) == ("cpu", "cuda")
    for _ in range(figures.NEWEST_JOBS):
        one_job(stored, 1.0)
    assert figures.devices(stored.database) == ()


def test_a_failed_job_has_waited_but_inferred_nothing(stored: Stored) -> None:
    began = stored.clock.now
    one_job(stored, 10.0, state=JobState.FAILED)
    found = figures.durations(stored.database, began, stored.clock.now + 1)
    assert (found["queue"].count, found["infer"].count, found["send"].count) == (1, 0, 0)


def test_hours_show_what_was_done_in_each(stored: Stored) -> None:
    began = stored.clock.now
    one_job(stored, 10.0)
    one_job(stored, 10.0, state=JobState.FAILED)
    stored.clock.now = began + 2 * HOUR
    one_job(stored, 50.0)
    found = figures.buckets(stored.database, began, began + 3 * HOUR, HOUR)
    assert [one.jobs for one in found] == [2, 0, 1]
    assert [one.failed for one in found] == [1, 0, 0]
    assert [one.instances for one in found] == [4, 0, 2]
    assert [one.steps["infer"].p50 for one in found] == pytest.approx([10.0, None, 50.0])
    assert [one.start for one in found] == [began, began + HOUR, began + 2 * HOUR]


def test_the_wait_for_a_person_is_no_turn_around_time(stored: Stored) -> None:
    began = stored.clock.now
    stored.ask("k")
    job = stored.claim()
    stored.queue.hold(job, "MISSING_SLICES", "A slice is missing.")
    stored.clock.now += DAY
    stored.requeue(job.id)
    stored.succeed()
    stored.deliver()
    found = figures.durations(stored.database, began, stored.clock.now + 1)
    assert (found["infer"].count, found["total"].count) == (1, 0)


def test_a_closed_arrival_knows_how_much_it_brought(stored: Stored) -> None:
    began = stored.clock.now
    for uid in ("1.1", "1.2", "1.3"):
        stored.receive(uid)
    arrival = stored.arrival()
    with pytest.raises(WrongState):
        stored.queue.complete(arrival.id, {}, [], instances=2)
    stored.queue.complete(arrival.id, {}, [], instances=3)
    (hour,) = figures.buckets(stored.database, began, began + HOUR, HOUR)
    assert hour.instances == 3


@pytest.mark.parametrize(
    ("values", "p50", "p95"),
    [
        ([], None, None),
        ([7.0], 7.0, 7.0),
        ([3.0, 1.0], 2.0, 2.9),
        ([20.0, 0.0, 10.0], 10.0, 19.0),
    ],
)
def test_a_percentile_lies_between_its_neighbours(
    values: list[float], p50: float | None, p95: float | None
) -> None:
    found = percentiles(values)
    assert found.count == len(values)
    assert (found.p50, found.p95) == (pytest.approx(p50), pytest.approx(p95))


# A mark changes with its part of the pages, and with no other: else they are drawn in vain.


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
