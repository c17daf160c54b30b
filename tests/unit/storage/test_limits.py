"""Too much of one study or series in a day: something runs in a circle, and a person looks."""

import pytest

from storage.enqueue import Limits
from storage.records import Enqueued, JobState
from tests.unit.storage.stored import STUDY, Stored

FOUR = Limits(results=4, reruns=0)
THREE_RUNS = Limits(results=0, reruns=3)


def ask(stored: Stored, limits: Limits, key: str, series_uid: str, **changed: object) -> Enqueued:
    stored.receive(f"{series_uid}.{key[1:]}", series_uid=series_uid)
    arrival = stored.arrival(series_uid=series_uid)
    new = stored.new_job(arrival, key, **changed)
    (enqueued,) = stored.queue.complete(arrival.id, {}, [new], limits=limits)
    return enqueued


def circle(stored: Stored, count: int, study_uid: str = STUDY) -> list[str]:
    """Results that come back, each as a series that nobody knows: what each leads to."""
    found = []
    for n in range(count):
        found.append(ask(stored, FOUR, f"k{study_uid}.{n}", f"1.9.{n}").what)
        if found[-1] == "queued":
            stored.succeed(f"2.25.{study_uid}.{n}")
    return found


def test_results_that_come_back_under_other_uids_are_stopped(stored: Stored) -> None:
    assert circle(stored, 6) == ["queued"] * 4 + ["held"] * 2
    held = stored.queue.list(JobState.HELD)[0]
    assert held.reason == "TOO_MANY_RESULTS"
    assert "4 derived series" in held.sentence
    assert "completion.results_per_study allows 4" in held.sentence
    assert "requeue" in held.sentence
    # A person has looked.
    stored.queue.requeue(held.id)
    assert stored.claim().id == held.id


def test_what_waits_or_runs_counts_before_it_is_made(stored: Stored) -> None:
    whats = [ask(stored, FOUR, f"k{n}", f"1.9.{n}").what for n in range(5)]
    assert whats == ["queued"] * 4 + ["held"]


def test_the_next_day_and_another_study_begin_anew(stored: Stored) -> None:
    circle(stored, 4)
    stored.receive("7.1", series_uid="7.1", study_uid="7")
    arrival = stored.arrival(series_uid="7.1")
    new = stored.new_job(arrival, "other")
    assert stored.queue.complete(arrival.id, {}, [new], limits=FOUR)[0].what == "queued"
    stored.clock.now += 86_401
    assert ask(stored, FOUR, "k9", "1.9.9").what == "queued"


def test_slices_that_come_one_by_one_are_processed_so_often_and_then_wait(stored: Stored) -> None:
    whats = [ask(stored, THREE_RUNS, f"k{n}", "1.2.3.4") for n in range(5)]
    assert [one.what for one in whats] == ["queued"] * 3 + ["held"] * 2
    *_, last = stored.queue.of_series(1)
    assert (last.state, last.reason) == (JobState.HELD, "TOO_MANY_RERUNS")
    assert "completion.quiet_seconds" in last.sentence
    others = {one.state for one in stored.queue.of_series(1)[:-1]}
    assert others == {JobState.CANCELLED}  # only the newest set is wanted
    stored.queue.requeue(last.id)
    assert stored.claim().id == last.id


def test_another_stack_or_route_of_the_series_has_its_own_count(stored: Stored) -> None:
    for n in range(3):
        ask(stored, THREE_RUNS, f"k{n}", "1.2.3.4")
    assert ask(stored, THREE_RUNS, "k4", "1.2.3.4", route="five").what == "queued"
    assert ask(stored, THREE_RUNS, "k5", "1.2.3.4", stack="sharp").what == "queued"


@pytest.mark.parametrize("limits", [FOUR, THREE_RUNS])
def test_a_resend_of_what_was_made_is_never_one_too_many(stored: Stored, limits: Limits) -> None:
    for n in range(4):
        ask(stored, limits, f"k{n}", f"1.9.{n}")
        stored.succeed(f"2.25.{n}")
    assert ask(stored, limits, "k0", "1.9.0").what == "redelivered"


def test_without_limits_nothing_is_held(stored: Stored) -> None:
    assert {ask(stored, Limits(), f"k{n}", "1.2.3.4").what for n in range(30)} == {"queued"}
