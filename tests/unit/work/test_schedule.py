"""The clock of the sweeps."""

import threading

from node.work.sweeps import Schedule


def test_a_clock_that_was_set_back_runs_every_pass_at_once() -> None:
    ran = threading.Event()
    schedule = Schedule()
    schedule.every(3600.0, "hourly", ran.set)
    schedule.start()
    try:
        assert ran.wait(10.0)  # once at the start
        ran.clear()
        schedule.mind_the_clock()
        assert not ran.wait(0.3)  # nobody has set the clock: its time has not come
        schedule._offset += 3600.0  # as if the clock had been an hour ahead until now
        schedule.mind_the_clock()
        assert ran.wait(10.0)
    finally:
        schedule.stop()


def test_a_pass_that_raises_is_called_again() -> None:
    calls = 0
    twice = threading.Event()

    def broken() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            twice.set()
        raise RuntimeError("broken")

    schedule = Schedule()
    schedule.every(0.05, "broken", broken)
    schedule.start()
    try:
        assert twice.wait(10.0)
    finally:
        schedule.stop()
