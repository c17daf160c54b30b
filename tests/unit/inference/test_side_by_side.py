"""Surveys before gaps, and several steps at once: what a runner promises of both."""

import threading
from collections.abc import Callable

import pytest

from inference.errors import Cancelled, PredictionError
from inference.model import Limits, Parameters, Prediction, Step, Window
from inference.runner import Runner, share_cores
from inference.volume import Geometry
from tests.unit.inference.made import Halfway, OutOfMemoryError, Reader, plan_every_gap


class Surveying(Halfway):
    """Surveys every second slice, and remembers what each gap was told."""

    concurrent = True

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def plan(self, geometry: Geometry, parameters: Parameters) -> list[Step]:
        inner = range(1, len(geometry) - 1, 2)
        surveys = [Step((index - 1, index, index + 1), survey=index) for index in inner]
        return [*surveys, *plan_every_gap(geometry, parameters)]

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        if step.survey is not None:
            assert slices.surveyed == ()
            return Prediction(measured={"value": float(slices.slices[step.survey][0, 0])})
        self.told.append(slices.surveyed)
        return super().run(step, slices, limits)


class Meeting(Halfway):
    """Each step waits until another one runs beside it: alone it would wait for ever."""

    concurrent = True

    def __init__(self, parties: int) -> None:
        self.barrier = threading.Barrier(parties)

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        self.barrier.wait(timeout=30.0)
        return super().run(step, slices, limits)


class Crowded(Halfway):
    """Has memory for one step at a time, or for less."""

    concurrent = True

    def __init__(self, most: int, fits: Callable[[Limits], bool] = lambda _: True) -> None:
        self.most, self.fits = most, fits
        self.lock, self.running = threading.Lock(), 0

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        with self.lock:
            self.running += 1
            crowded = self.running > self.most
        try:
            if crowded or not self.fits(limits):
                raise OutOfMemoryError("x")
            return super().run(step, slices, limits)
        finally:
            with self.lock:
                self.running -= 1


def test_surveys_come_before_the_gaps_and_every_gap_is_told_all_of_them() -> None:
    reader, model = Reader(6), Surveying()
    for at_once in (1, 3):
        runner = Runner(model, reader.volume, Limits(), at_once)
        steps = model.plan(reader.volume.geometry, Parameters(factor=2))
        gaps = [step.gap for step, _ in runner.predictions(steps, cancelled=lambda: False)]
        assert gaps == [0, 1, 2, 3, 4]
    measured = ({"value": 1.0}, {"value": 3.0})
    assert model.told == [measured] * 10


def test_slices_of_surveys_are_not_kept_for_the_gaps() -> None:
    """Surveys look at slices all over the stack: kept for their gaps, they would be all of it."""
    reader, model = Reader(12), Surveying()
    runner = Runner(model, reader.volume, Limits())
    steps = model.plan(reader.volume.geometry, Parameters(factor=2))
    held = [len(runner.held) for _ in runner.predictions(steps, cancelled=lambda: False)]
    assert max(held) <= 2


def test_a_job_is_cancelled_between_two_surveys() -> None:
    reader, model = Reader(12), Surveying()
    runner = Runner(model, reader.volume, Limits())
    answers = iter([False, False, True])
    steps = model.plan(reader.volume.geometry, Parameters(factor=2))
    with pytest.raises(Cancelled):
        list(runner.predictions(steps, cancelled=lambda: next(answers)))
    assert model.told == []


@pytest.mark.parametrize("measured", [{}, {"value": float("nan")}, {"value": float("inf")}])
def test_a_survey_that_measures_nothing_is_an_error(measured: dict[str, float]) -> None:
    class Blind(Surveying):
        def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
            return Prediction(measured=measured)

    model, volume = Blind(), Reader(5).volume
    steps = model.plan(volume.geometry, Parameters(factor=2))
    with pytest.raises(PredictionError, match="no finite numbers"):
        list(Runner(model, volume, Limits()).predictions(steps, cancelled=lambda: False))


def test_steps_run_side_by_side_and_come_in_order() -> None:
    reader = Reader(7)
    runner = Runner(Meeting(3), reader.volume, Limits(), at_once=3)
    steps = plan_every_gap(reader.volume.geometry, Parameters(factor=2))
    found = list(runner.predictions(steps, cancelled=lambda: False))
    assert [step.gap for step, _ in found] == list(range(6))
    assert [float(p.planes[0][0, 0]) for _, p in found] == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    assert reader.read == list(range(7))


def test_steps_side_by_side_that_lack_memory_go_on_one_at_a_time() -> None:
    reader = Reader(9)
    runner = Runner(Crowded(most=1), reader.volume, Limits(), at_once=4)
    steps = plan_every_gap(reader.volume.geometry, Parameters(factor=2))
    found = list(runner.predictions(steps, cancelled=lambda: False))
    assert [step.gap for step, _ in found] == list(range(8))
    assert runner.lowered in ([], ["one step at a time"])
    assert runner.limits == Limits()


def test_one_at_a_time_may_still_be_too_much_and_the_ladder_goes_on() -> None:
    reader = Reader(5)
    model = Crowded(most=4, fits=lambda limits: limits.batch == 1)
    runner = Runner(model, reader.volume, Limits(), at_once=3)
    steps = plan_every_gap(reader.volume.geometry, Parameters(factor=2))
    assert len(list(runner.predictions(steps, cancelled=lambda: False))) == 4
    assert runner.lowered[0] == "one step at a time"
    assert runner.limits.batch == 1


def test_another_error_of_a_step_beside_others_is_raised() -> None:
    model = Crowded(most=9, fits=lambda _: True)
    reader = Reader(5)

    class Broken(Crowded):
        def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
            raise RuntimeError("shapes do not match")

    runner = Runner(Broken(most=9), reader.volume, Limits(), at_once=3)
    steps = plan_every_gap(reader.volume.geometry, Parameters(factor=2))
    with pytest.raises(RuntimeError, match="shapes"):
        list(runner.predictions(steps, cancelled=lambda: False))
    assert model.running == 0


def test_only_a_model_that_allows_it_runs_side_by_side() -> None:
    assert share_cores(Halfway(), 6) == 1
    assert share_cores(Surveying(), 6) == 6
    assert share_cores(Surveying(), 64) == 8  # each holds its own window: memory has an end
