"""The part of a slice that the network is asked about, and that nothing else of it changes."""

import numpy as np
import pytest
import torch

from inference.model import Limits, Step
from inference.models import classical, filling
from inference.models.classical import Neighbourhood
from inference.models.extent import AIR_HU, AROUND, Extent, extent_of
from inference.models.midslice import Midslice
from inference.models.runtime import MULTIPLE
from inference.volume import Geometry, Plane
from tests.models.stacks import made_geometry, made_planes, window_of

STEP = Step(needs=(0, 1, 2, 3), gap=1, fractions=(0.25, 0.5))
MOST_RMS_HU = 0.5  # what bfloat16 may change too; on chests it is 0.01 to 0.1


def near_of(planes: list[Plane], geometry: Geometry | None = None) -> Neighbourhood:
    geometry = geometry or made_geometry(len(planes), *planes[0].shape)
    return Neighbourhood.of(STEP, window_of(geometry, planes, STEP))


def air(rows: int = 128, columns: int = 192, slices: int = 4) -> list[Plane]:
    """Noisy air, nowhere below what the network sees."""
    random = np.random.default_rng(1)
    noise = random.standard_normal((slices, rows, columns), dtype=np.float32)
    return list(-1000.0 + 5.0 * noise)


def body_in_air(geometry: Geometry, rows: int = 224, columns: int = 256) -> list[Plane]:
    """The made body in the middle of wide, noisy air."""
    top, left = (rows - geometry.rows) // 2, (columns - geometry.columns) // 2
    planes = air(rows, columns, len(geometry))
    for plane, body in zip(planes, made_planes(geometry), strict=True):
        plane[top : top + geometry.rows, left : left + geometry.columns] = body
    return planes


def whole(near: Neighbourhood) -> Extent:
    rows, columns = near.planes[0].shape
    return slice(0, rows), slice(0, columns)


def test_the_network_is_asked_about_what_is_not_air_and_a_little_around_it() -> None:
    planes = air()
    planes[1][40:56, 64:80] = 0.0
    planes[2][48:72, 72:96] = 0.0
    assert extent_of(near_of(planes)) == (
        slice(40 - AROUND, 72 + AROUND),
        slice(64 - AROUND, 96 + AROUND),
    )


def test_what_only_the_slices_farther_away_hold_is_not_asked_about() -> None:
    planes = air()
    planes[1][48:64, 64:80] = 0.0
    planes[3][:, :] = 0.0
    assert extent_of(near_of(planes))[0] == slice(48 - AROUND, 64 + AROUND)


@pytest.mark.parametrize("level", [AIR_HU - 20.0, -1024.0, -2000.0])
def test_slices_of_air_alone_are_asked_about_as_a_whole(level: float) -> None:
    near = near_of([np.full((64, 96), level, np.float32) for _ in range(4)])
    assert extent_of(near) == whole(near)


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (33, 47), (130, 65)], ids=str)
def test_slices_of_any_size_have_an_extent_within_them(shape: tuple[int, int]) -> None:
    planes = [np.full(shape, -1000.0, np.float32) for _ in range(4)]
    planes[1][0, 0] = 3000.0
    planes[2][-1, -1] = 3000.0
    near = near_of(planes)
    assert extent_of(near) == whole(near)


def test_lung_at_the_edge_of_a_small_field_of_view_belongs_to_it() -> None:
    planes = [plane + 130.0 for plane in air()]  # -870 HU all over
    near = near_of(planes)
    assert extent_of(near) == whole(near)


def test_a_sheared_stack_is_asked_about_wherever_its_body_goes() -> None:
    geometry = made_geometry(4, 128, 192, shear_mm=7.0)  # ten pixels a gap
    planes = air()
    for index, plane in enumerate(planes):
        plane[64 - 10 * index : 80 - 10 * index, 64:80] = 0.0
    near = near_of(planes, geometry)
    rows, _ = extent_of(near)
    for t in (0.0, 0.5, 1.0):
        there = np.flatnonzero((near.aligned(0, t) > -500.0).any(axis=1))
        assert rows.start <= there[0] - AROUND
        assert rows.stop >= there[-1] + AROUND
    assert rows.start % MULTIPLE == 0


def test_flipped_slices_have_a_flipped_extent() -> None:
    planes = air()
    planes[1][40:56, 64:80] = 0.0
    rows, columns = extent_of(near_of(planes))
    flipped, same = extent_of(near_of([np.ascontiguousarray(plane[::-1]) for plane in planes]))
    assert (flipped.start, flipped.stop) == (128 - rows.stop, 128 - rows.start)
    assert same == columns


@pytest.mark.parametrize("shear_mm", [0.0, 1.9])
def test_the_body_is_what_it_is_when_the_network_sees_the_whole_slice(
    monkeypatch: pytest.MonkeyPatch, shear_mm: float
) -> None:
    torch.set_num_threads(1)
    planes = body_in_air(made_geometry(4, 128, 128, shear_mm=shear_mm))
    geometry = made_geometry(4, *planes[0].shape, shear_mm=shear_mm)
    window = window_of(geometry, planes, STEP)
    model = Midslice()
    found = model.run(STEP, window, Limits()).planes
    near = Neighbourhood.of(STEP, window)
    assert extent_of(near) != whole(near)
    monkeypatch.setattr(filling, "extent_of", whole)
    for t, one, other in zip(
        STEP.fractions, found, model.run(STEP, window, Limits()).planes, strict=True
    ):
        body = classical.linear(near, t) > -500.0
        assert np.sqrt(np.mean(np.square(one - other)[body])) < MOST_RMS_HU


def test_beyond_the_extent_lies_what_linear_interpolation_and_flow_make_of_air() -> None:
    planes = body_in_air(made_geometry(4))
    near = near_of(planes)
    (rows, _), window = extent_of(near), window_of(made_geometry(4, 224, 256), planes, STEP)
    prediction = Midslice().run(STEP, window, Limits())
    for t, made in zip(STEP.fractions, prediction.planes, strict=True):
        straight, blend = classical.linear(near, t), classical.dis(near, t)
        least, most = np.minimum(straight, blend), np.maximum(straight, blend)
        # Their low frequencies are drawn to each other by a HU at most.
        assert (made[: rows.start] >= least[: rows.start] - 2.0).all()
        assert (made[: rows.start] <= most[: rows.start] + 2.0).all()
    assert all(scale.shape == made.shape for scale in prediction.scale_hu)
    assert all((scale > 0.0).all() for scale in prediction.scale_hu)
