"""How a worker's messages become the progress of a job."""

import pytest

from inference.request import Progress
from node.work.jobs import fraction


def test_progress_never_goes_backwards_through_the_steps_of_a_job() -> None:
    steps = [
        Progress(step, done, 10)
        for step in ("reading", "predicting", "writing", "checking")
        for done in range(11)
    ]
    shares = [fraction(progress) for progress in steps]
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert shares[-1] < 1.0  # only the queue says that a job is done


@pytest.mark.parametrize("step", ["reading", "predicting", "writing", "checking", "unheard of"])
def test_progress_stays_between_nothing_and_all_whatever_a_worker_reports(step: str) -> None:
    assert 0.0 <= fraction(Progress(step, 7, 0)) <= 1.0
    assert 0.0 <= fraction(Progress(step, 9, 3)) <= 1.0
