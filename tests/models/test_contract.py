"""What every model promises, and what those of its family do."""

import json
import re

import numpy as np
import pytest

from inference.errors import Reason, Unprocessable
from inference.model import Limits, Model, Parameters, Segment, Step, Window
from inference.registry import REGISTERED, RegisteredModel, load, spec_of
from inference.runner import check_findings, check_whole
from inference.volume import Geometry, Volume
from tests import chest
from tests.models.made import made_geometry, made_planes, window_of


def loaded(name: str) -> Model:
    """A registered model as the node loads it."""
    return load(spec_of(name))


GENERATORS = [entry.name for entry in REGISTERED if entry.produces == "slices"]
FINDERS = [entry.name for entry in REGISTERED if entry.produces == "findings"]


@pytest.mark.parametrize("entry", REGISTERED, ids=lambda entry: entry.name)
def test_a_model_says_what_it_is(entry: RegisteredModel) -> None:
    model = loaded(entry.name)
    assert (model.name, model.version, model.produces) == (
        *(entry.name, entry.version, entry.produces),
    )
    assert re.fullmatch(r"\d+\.\d+\.\d+", model.version)
    assert re.fullmatch(r"|[0-9a-f]{64}", model.weights_sha256)


@pytest.mark.parametrize("entry", REGISTERED, ids=lambda entry: entry.name)
def test_one_slice_is_too_few(entry: RegisteredModel) -> None:
    asked = Parameters(factor=2) if entry.produces == "slices" else Parameters()
    with pytest.raises(Unprocessable) as refused:
        loaded(entry.name).plan(made_geometry(1), asked)
    assert refused.value.reason is Reason.TOO_FEW_SLICES


# The promises below are those of models that make slices.


@pytest.fixture(scope="module")
def chest_volume() -> Volume:
    """A made chest with two nodules."""
    hu = chest.chest()
    return Volume(chest.geometry(), lambda index: hu[index].copy())


@pytest.mark.parametrize("name", FINDERS)
def test_findings_lie_in_the_stack_in_the_order_of_their_scores_and_are_the_same_each_time(
    name: str, chest_volume: Volume
) -> None:
    model, geometry = loaded(name), chest_volume.geometry
    assert isinstance(getattr(model, "finding", None), Segment)
    steps = model.plan(geometry, Parameters())
    check_whole(steps, len(geometry))
    (step,) = steps
    planes = {index: chest_volume.read(index) for index in step.needs}
    before = np.stack([planes[index] for index in step.needs])
    for plane in planes.values():
        plane.setflags(write=False)
    first, second = (model.run(step, Window(geometry, planes), Limits()) for _ in range(2))
    check_findings(step, first, chest_volume)
    assert first.findings
    assert all(finding.score >= getattr(model, "threshold", 1.0) for finding in first.findings)
    assert json.dumps([dict(finding.record) for finding in first.findings])
    assert np.array_equal(np.stack(first.planes), np.stack(second.planes))
    for one, other in zip(first.findings, second.findings, strict=True):
        assert (one.score, one.first, one.site) == (other.score, other.first, other.site)
        assert np.array_equal(one.mask, other.mask)
    assert np.array_equal(np.stack([planes[index] for index in step.needs]), before)


@pytest.fixture(scope="module", params=GENERATORS)
def model(request: pytest.FixtureRequest) -> Model:
    return loaded(request.param)


def steps_of(model: Model, geometry: Geometry, factor: int = 2) -> list[Step]:
    return [
        step for step in model.plan(geometry, Parameters(factor=factor)) if step.gap is not None
    ]


@pytest.mark.parametrize("factor", range(2, 11))
def test_every_gap_is_filled_evenly_at_every_factor(model: Model, factor: int) -> None:
    steps = steps_of(model, made_geometry(5), factor)
    assert [step.gap for step in steps] == [0, 1, 2, 3]
    for step in steps:
        assert step.gap is not None
        assert {step.gap, step.gap + 1} <= set(step.needs)
        assert list(step.needs) == sorted(set(step.needs) & set(range(5)))
        assert step.fractions == pytest.approx(np.arange(1, factor) / factor)


@pytest.mark.parametrize("factor", [-1, 0, 1, 11])
def test_a_factor_that_is_not_offered_is_refused_with_the_allowed_ones(
    model: Model, factor: int
) -> None:
    with pytest.raises(ValueError, match=f"factor = {factor}: allowed is 2 to 10"):
        model.plan(made_geometry(5), Parameters(factor=factor))


@pytest.mark.parametrize(
    "parameters", [Parameters(), Parameters(factor=2, target_spacing_mm=1.0)], ids=["none", "both"]
)
def test_exactly_one_way_to_say_how_many_slices_is_taken(
    model: Model, parameters: Parameters
) -> None:
    with pytest.raises(ValueError, match="exactly one of factor and target_spacing_mm"):
        model.plan(made_geometry(5), parameters)


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan"), float("inf")])
def test_a_target_spacing_is_a_number_above_zero(model: Model, target: float) -> None:
    with pytest.raises(ValueError, match="allowed is a number above 0"):
        model.plan(made_geometry(5), Parameters(target_spacing_mm=target))


def test_a_target_spacing_fills_each_gap_as_its_width_asks(model: Model) -> None:
    geometry = made_geometry(6, gaps_mm=[1.0, 2.5, 5.02, 5.1, 40.0])
    steps = model.plan(geometry, Parameters(target_spacing_mm=2.5))
    slices_out = {step.gap: len(step.fractions) + 1 for step in steps if step.gap is not None}
    assert slices_out == {2: 2, 3: 3, 4: 10}  # 5.02 mm is two slices of 2.5; ten are the most


def test_nothing_to_do_is_a_verdict_not_an_empty_result(model: Model) -> None:
    with pytest.raises(Unprocessable) as refused:
        model.plan(made_geometry(5, gaps_mm=1.0), Parameters(target_spacing_mm=1.25))
    assert refused.value.reason is Reason.NOTHING_TO_DO
    assert "1.00 mm" in refused.value.sentence


@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (3, 200), (33, 47), (64, 64), (65, 130)], ids=str
)
def test_slices_of_any_size_come_out_finite_and_as_large(
    model: Model, rows: int, columns: int
) -> None:
    geometry = made_geometry(3, rows, columns)
    planes = made_planes(geometry)
    for step in steps_of(model, geometry, factor=3):
        made = model.run(step, window_of(geometry, planes, step), Limits()).planes
        assert len(made) == 2
        for plane in made:
            assert plane.shape == (rows, columns)
            assert plane.dtype == np.float32
            assert np.isfinite(plane).all()


def test_the_smallest_stack_has_two_slices(model: Model) -> None:
    geometry = made_geometry(2)
    planes = made_planes(geometry, noise_hu=0.0)
    (step,) = steps_of(model, geometry)
    (plane,) = model.run(step, window_of(geometry, planes, step), Limits()).planes
    assert step.needs == (0, 1)
    between = (np.minimum(*planes).min() <= plane) & (plane <= np.maximum(*planes).max())
    assert between.all()


def test_a_step_run_twice_gives_the_same_bits(model: Model) -> None:
    geometry = made_geometry(4)
    planes = made_planes(geometry)
    step = steps_of(model, geometry, factor=4)[1]
    first, second = (
        model.run(step, window_of(geometry, planes, step), Limits()).planes for _ in range(2)
    )
    assert [plane.tobytes() for plane in first] == [plane.tobytes() for plane in second]


def test_another_instance_of_the_model_gives_the_same_bits(model: Model) -> None:
    geometry = made_geometry(4)
    planes = made_planes(geometry)
    step = steps_of(model, geometry)[1]
    other = loaded(model.name)
    (mine,) = model.run(step, window_of(geometry, planes, step), Limits()).planes
    (its,) = other.run(step, window_of(geometry, planes, step), Limits()).planes
    assert mine.tobytes() == its.tobytes()


def test_the_order_of_the_gaps_changes_nothing(model: Model) -> None:
    geometry = made_geometry(5)
    planes = made_planes(geometry)
    steps = steps_of(model, geometry)
    results = {
        order: {
            step.gap: model.run(step, window_of(geometry, planes, step), Limits()).planes[0]
            for step in steps[::order]
        }
        for order in (1, -1)
    }
    for gap, plane in results[1].items():
        assert plane.tobytes() == results[-1][gap].tobytes()


def test_the_received_slices_are_not_modified(model: Model) -> None:
    geometry = made_geometry(4, shear_mm=0.3)
    planes = made_planes(geometry)
    before = [plane.copy() for plane in planes]
    for plane in planes:
        plane.flags.writeable = True
    for step in steps_of(model, geometry, factor=3):
        model.run(step, window_of(geometry, planes, step), Limits())
    assert all(np.array_equal(now, then) for now, then in zip(planes, before, strict=True))


def test_constant_slices_give_the_constant(model: Model) -> None:
    geometry = made_geometry(4)
    planes = [np.full((64, 64), 37.0, np.float32) for _ in range(4)]
    for step in steps_of(model, geometry, factor=3):
        for plane in model.run(step, window_of(geometry, planes, step), Limits()).planes:
            assert np.allclose(plane, 37.0, rtol=0.0, atol=1e-3)


@pytest.mark.parametrize(
    "limits",
    [Limits(batch=1), Limits(batch=3), Limits(tile=64), Limits(batch=1, tile=40)],
    ids=["one at a time", "odd batch", "tiles", "small tiles one at a time"],
)
def test_lower_limits_give_the_same_slices(model: Model, limits: Limits) -> None:
    geometry = made_geometry(3, 150, 131)
    planes = made_planes(geometry)
    step = steps_of(model, geometry, factor=6)[0]
    whole = model.run(step, window_of(geometry, planes, step), Limits()).planes
    limited = model.run(step, window_of(geometry, planes, step), limits).planes
    assert len(limited) == len(whole) == 5
    for one, other in zip(limited, whole, strict=True):
        assert np.abs(one - other).max() < 0.05  # HU: below half a stored value


def test_a_sheared_stack_is_followed(model: Model) -> None:
    """Slices that step sideways in space show a still body moving; between them it is half-way."""
    geometry = made_geometry(4, shear_mm=2.8)  # 4 pixels a gap along the column
    whole = made_plane_of(64 + 16)
    planes = [whole[4 * index : 4 * index + 64] for index in range(4)]
    step = steps_of(model, geometry)[1]
    (plane,) = model.run(step, window_of(geometry, planes, step), Limits()).planes
    truth = whole[6 : 6 + 64]
    inner = slice(8, -8)
    straight = 0.5 * (planes[1] + planes[2])
    assert np.abs(plane - truth)[inner, inner].mean() < 2.0
    assert np.abs(straight - truth)[inner, inner].mean() > 20.0


def made_plane_of(rows: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    y, x = np.mgrid[:rows, :64].astype(np.float32)
    return np.asarray(300.0 * np.sin(y / 2.5) * np.cos(x / 7.0), np.float32)
