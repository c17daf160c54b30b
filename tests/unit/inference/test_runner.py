"""Walking the steps: few slices in memory, cancel, and less at once when memory is short."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from inference.errors import Cancelled, PredictionError
from inference.model import Limits, Parameters, Prediction, Step, Trust, Window
from inference.runner import Runner, check_steps, next_rung
from inference.volume import Plane, Volume
from tests.unit.inference.made import Halfway, OutOfMemoryError, Reader, plan_every_gap


class Hungry(Halfway):
    """Fits only where `fits` says so."""

    def __init__(self, fits: Callable[[Limits], bool], error: Exception) -> None:
        self.fits, self.error = fits, error
        self.tried: list[Limits] = []

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        self.tried.append(limits)
        if not self.fits(limits):
            raise self.error
        return super().run(step, slices, limits)


class Spoiled(Halfway):
    """Gives what a test asks for."""

    def __init__(self, planes: Sequence[Plane]) -> None:
        self.planes = tuple(planes)

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        return Prediction(planes=self.planes)


class Writing(Halfway):
    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        slices.slices[step.needs[0]][0, 0] = 1.0
        return super().run(step, slices, limits)


def walk(model: Halfway, volume: Volume, limits: Limits | None = None) -> Runner:
    runner = Runner(model, volume, limits or Limits())
    steps = model.plan(volume.geometry, Parameters(factor=2))
    for step, prediction in runner.predictions(steps, cancelled=lambda: False):
        assert step.gap is not None
        assert prediction.planes[0][0, 0] == step.gap + 0.5
    return runner


def test_each_slice_is_read_once_and_forgotten_after_its_last_step() -> None:
    reader = Reader(6)
    model = Halfway()
    runner = Runner(model, reader.volume, Limits())
    steps = model.plan(reader.volume.geometry, Parameters(factor=2))
    most = 0
    for _ in runner.predictions(steps, cancelled=lambda: False):
        most = max(most, len(runner.held) + 1)
    assert reader.read == [0, 1, 2, 3, 4, 5]
    assert most == 2
    assert runner.held == frozenset()


def test_a_cancelled_job_stops_between_two_steps() -> None:
    reader = Reader(6)
    runner = Runner(Halfway(), reader.volume, Limits())
    steps = plan_every_gap(reader.volume.geometry, Parameters(factor=2))
    done: list[Step] = []
    with pytest.raises(Cancelled):
        for step, _ in runner.predictions(steps, cancelled=lambda: len(done) == 2):
            done.append(step)
    assert len(done) == 2


def test_a_model_cannot_change_what_it_was_given() -> None:
    with pytest.raises(ValueError, match="read-only"):
        walk(Writing(), Reader(2).volume)


@pytest.mark.parametrize(
    ("fits", "rungs"),
    [
        (lambda limits: limits.batch < 4, 1),
        (lambda limits: limits.batch == 1, 2),
        (lambda limits: limits.tile == 256, 3),
        (lambda limits: limits.tile == 128, 4),
        (lambda limits: limits.device == "cpu", 5),
    ],
)
@pytest.mark.parametrize(
    "error", [OutOfMemoryError("x"), MemoryError(), RuntimeError("CUDA out of memory")]
)
def test_less_is_tried_at_once_until_it_fits_and_it_stays_lowered(
    fits: Callable[[Limits], bool], rungs: int, error: Exception
) -> None:
    model = Hungry(fits, error)
    runner = walk(model, Reader(4).volume, Limits(device="cuda", batch=4))
    assert len(runner.lowered) == rungs
    assert len(model.tried) == rungs + 3
    assert fits(runner.limits)


def test_below_the_last_rung_the_error_is_raised() -> None:
    model = Hungry(lambda _: False, OutOfMemoryError("x"))
    with pytest.raises(OutOfMemoryError):
        walk(model, Reader(2).volume, Limits(device="cuda", batch=2))
    assert model.tried[-1].device == "cpu"
    assert next_rung(model.tried[-1]) is not None or model.tried[-1].tile == 128


def test_another_error_of_a_model_is_not_taken_for_a_lack_of_memory() -> None:
    model = Hungry(lambda _: False, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        walk(model, Reader(2).volume)
    assert len(model.tried) == 1


@pytest.mark.parametrize(
    ("planes", "words"),
    [
        ([], "0 slices for a gap of 1"),
        ([np.zeros((4, 5), np.float32)], r"\(4, 5\)"),
        ([np.full((4, 4), np.nan, np.float32)], "finite"),
        ([np.full((4, 4), np.inf, np.float32)], "finite"),
    ],
)
def test_what_is_no_prediction_is_an_error(planes: list[Plane], words: str) -> None:
    with pytest.raises(PredictionError, match=words):
        walk(Spoiled(planes), Reader(2).volume)


class Recording(Halfway):
    """Says of each gap what a test asks for."""

    def __init__(self, record: Mapping[str, object]) -> None:
        self.record = record

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        return replace(super().run(step, slices, limits), record=self.record)


@pytest.mark.parametrize("value", [np.bool_(True), np.float32(1.0), float("nan"), {1.5, 2.5}])
def test_a_record_that_is_no_json_is_an_error_of_the_model(value: object) -> None:
    with pytest.raises(PredictionError, match="the model's record is no JSON"):
        walk(Recording({"value": value}), Reader(2).volume)


def test_a_record_of_plain_values_is_taken() -> None:
    walk(Recording({"words": ["a"], "share": np.float64(0.5), "none": None}), Reader(2).volume)


@pytest.mark.parametrize(
    "steps",
    [
        [Step((0, 1), None)],
        [Step((0, 1), 3, (0.5,))],
        [Step((0, 1), 0, (0.5,)), Step((0, 1), 0, (0.5,))],
        [Step((0,), 0, (0.5,))],
        [Step((0, 1, 9), 0, (0.5,))],
        [Step((0, 1), 0, ())],
        [Step((0, 1), 0, (0.0, 0.5))],
        [Step((0, 1), 0, (0.5, 0.25))],
        [Step((0, 1), 0, (0.5, 0.5))],
    ],
)
def test_an_impossible_plan_is_an_error(steps: list[Step]) -> None:
    with pytest.raises(PredictionError):
        check_steps(steps, 3)


def test_a_possible_plan_is_none() -> None:
    check_steps([Step((0, 1, 2), 1, (0.25, 0.5)), Step((0, 1), 0, (0.1,))], 3)


@pytest.mark.parametrize(
    "prediction",
    [
        Prediction(planes=(np.zeros((4, 4), np.float32),), trust=(Trust(1.0, 1.5, 2.0),)),
        Prediction(planes=(np.zeros((4, 4), np.float32),), trust=(Trust(-1.0, 0.5, 2.0),)),
        Prediction(planes=(np.zeros((4, 4), np.float32),), trust=(Trust(np.nan, 0.5, 2.0),)),
        Prediction(planes=(np.zeros((4, 4), np.float32),), trust=(Trust(1.0, 0.5, 2.0),) * 2),
        Prediction(
            planes=(np.zeros((4, 4), np.float32),), classical=(np.zeros((9, 4), np.float32),)
        ),
        Prediction(
            planes=(np.zeros((4, 4), np.float32),),
            scale_hu=(np.full((4, 4), np.inf, np.float32),),
        ),
    ],
    ids=["over one", "below nothing", "no number", "two", "another size", "not finite"],
)
def test_what_is_said_beside_a_slice_is_checked_too(prediction: Prediction) -> None:
    class Says(Halfway):
        def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
            return prediction

    with pytest.raises(PredictionError):
        walk(Says(), Reader(2).volume)


@pytest.mark.parametrize(
    "steps",
    [
        [Step((0, 1), 0, (0.5,)), Step((0, 1, 2), survey=1)],
        [Step((0, 1, 2), survey=0)],
        [Step((0, 1, 2), survey=2)],
        [Step((0, 2), survey=1)],
        [Step((0, 1, 2), 0, (0.5,), survey=1)],
    ],
    ids=["after a gap", "the first", "the last", "without itself", "with a gap"],
)
def test_an_impossible_survey_is_an_error(steps: list[Step]) -> None:
    with pytest.raises(PredictionError):
        check_steps(steps, 3)
