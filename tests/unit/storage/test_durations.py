"""How long each step takes, how much is done, and how long the disk lasts."""

from dataclasses import replace

import pytest

from storage.errors import WrongState
from storage.queries import figures
from storage.queries.figures import percentiles
from storage.records import JobState
from storage.site import nodes
from storage.site.nodes import DiskSample
from tests.unit.storage.stored import Stored

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


def test_the_disk_lasts_as_long_as_its_line_goes() -> None:
    falling = [DiskSample(day * DAY, 1000 - 100 * day, 2000) for day in range(4)]
    found = nodes.forecast(falling, reserve=200)
    assert found.days_left == pytest.approx(5.0)
    assert found.bytes_per_day == pytest.approx(100.0)


def test_a_disk_that_empties_lasts_for_ever_and_a_full_one_no_day() -> None:
    rising = [DiskSample(day * DAY, 1000 + 100 * day, 2000) for day in range(4)]
    assert nodes.forecast(rising, reserve=200).days_left is None
    assert nodes.forecast(rising, reserve=1400).days_left == 0.0


def test_from_an_hour_nobody_can_tell_how_long_the_disk_lasts() -> None:
    few = [DiskSample(minute * 60.0, 1000 - minute, 2000) for minute in range(60)]
    assert nodes.forecast(few, reserve=0) == nodes.Forecast(None, None)
    assert nodes.forecast([], reserve=0).days_left is None


def test_samples_are_of_one_node_and_are_forgotten(stored: Stored) -> None:
    database = stored.database
    for day in range(3):
        nodes.record(database, day * DAY, "one", 10**12 - day, 2 * 10**12)
        nodes.record(database, day * DAY, "two", 5, 10)
    assert [one.free for one in nodes.samples(database, "one", DAY)] == [10**12 - 1, 10**12 - 2]
    nodes.forget(database, 2 * DAY)
    assert len(nodes.samples(database, "one", 0.0)) == 1
