"""The part of a slice that the network is asked about, and that nothing else of it changes."""

import numpy as np
import pytest

from inference.model import Limits, Step
from inference.models import classical, filling
from inference.models.classical import Neighbourhood
from inference.models.filling import AIR_HU, Extent, extent_of, pasted
from inference.models.midslice import Midslice
from inference.volume import Geometry, Plane
from tests.models.made import made_geometry, made_planes, window_of

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
    # Eight pixels around, and sides that are multiples of 32.
    assert extent_of(near_of(planes)) == (slice(32, 96), slice(56, 120))


def test_at_the_lower_end_of_a_slice_it_begins_higher_instead() -> None:
    planes = air(128, 192)
    planes[1][88:120, 168:184] = 0.0
    assert extent_of(near_of(planes)) == (slice(64, 128), slice(160, 192))
    planes = air(132, 192)
    planes[1][104:132, 168:184] = 0.0
    assert extent_of(near_of(planes))[0] == slice(64, 132)


def test_what_only_the_slices_farther_away_hold_is_not_asked_about() -> None:
    planes = air()
    planes[1][48:64, 64:80] = 0.0
    planes[3][:, :] = 0.0
    assert extent_of(near_of(planes))[0] == slice(40, 72)


def test_a_fold_of_cloth_belongs_to_it_where_it_moves() -> None:
    """Two pixels of -750 HU are -938 in the mean of their square: air, but for what moves."""
    planes = air()
    for plane in planes:
        plane[64:80, 64:80] = 0.0
    planes[1][16:18, 64:160] = -750.0
    planes[2][24:26, 64:160] = -750.0
    rows, columns = extent_of(near_of(planes))
    assert rows.start == 8
    assert columns.stop >= 168
    for plane in planes:
        plane[16:18], plane[24:26] = -750.0, -1000.0
    assert extent_of(near_of(planes))[0].start == 56


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
    planes = air()
    for plane in planes:
        plane[:, :64] += 130.0  # -870 HU
        plane[48:80, 80:120] = 0.0
    assert extent_of(near_of(planes)) == (slice(0, 128), slice(0, 128))


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        # A's object lies at its own rows at t = 0, and ten rows higher at t = 1.
        (1, slice(40, 104)),  # 64..80 and 54..70
        (2, slice(48, 112)),  # 64..80 and 74..90, in squares of 8 that lie otherwise
    ],
)
def test_a_sheared_stack_is_asked_about_wherever_its_body_goes(place: int, expected: slice) -> None:
    planes = air()
    planes[place][64:80, 64:80] = 0.0
    near = near_of(planes, made_geometry(4, 128, 192, shear_mm=7.0))  # ten pixels a gap
    rows, _ = extent_of(near)
    assert rows == expected
    for t in (0.0, 0.5, 1.0):
        there = np.flatnonzero((near.aligned(place - 1, t) > -500.0).any(axis=1))
        assert rows.start + 8 <= there[0]
        assert there[-1] < rows.stop - 8


def test_what_leaves_the_picture_of_the_other_slice_belongs_to_it() -> None:
    planes = air()
    planes[1][64:80, 64:80] = 0.0
    planes[2][120:128, 64:80] = 0.0  # in the frame of A ten rows lower: outside
    rows, _ = extent_of(near_of(planes, made_geometry(4, 128, 192, shear_mm=7.0)))
    assert rows.stop == 128


def test_padding_of_one_slice_alone_is_air_as_the_network_sees_it() -> None:
    planes = air()
    planes[1][64:80, 64:80] = planes[2][64:80, 64:80] = 0.0
    before = extent_of(near_of(planes))
    planes[1][:24] = -3024.0
    assert extent_of(near_of(planes)) == before


@pytest.mark.parametrize("shear_mm", [1.4, 5.6, 11.2])  # 2, 8 and 16 pixels a gap
def test_a_sheared_series_turned_over_is_asked_about_the_same(shear_mm: float) -> None:
    def extents(shear_mm: float, planes: list[Plane]) -> list[Extent]:
        geometry = made_geometry(6, 256, 96, shear_mm=shear_mm)
        steps = [Step((gap, gap + 1), gap, (0.5,)) for gap in range(5)]
        nears = [Neighbourhood.of(step, window_of(geometry, planes, step)) for step in steps]
        return [extent_of(filling.oriented(near, (0.5,))[0]) for near in nears]

    random = np.random.default_rng(5)
    for _ in range(20):
        planes = [np.full((256, 96), -1000.0, np.float32) for _ in range(6)]
        for number, plane in enumerate(planes):
            top, left = 8 * random.integers(0, 26), 8 * random.integers(0, 9)
            plane[top : top + 16, left : left + 16] = 10.0 * number
        assert extents(shear_mm, planes) == extents(-shear_mm, planes[::-1])[::-1]


def test_shapes_of_a_series_are_few() -> None:
    """Each costs the runtime some memory for as long as its process lives."""
    shapes = set()
    for top in range(0, 200, 8):
        planes = air(512, 512)
        planes[1][top : top + 300, 50:450] = 0.0
        rows, columns = extent_of(near_of(planes))
        shapes.add((rows.stop - rows.start, columns.stop - columns.start))
    assert len(shapes) <= 2


@pytest.mark.parametrize("shear_mm", [0.0, 1.9])
def test_the_body_is_what_it_is_when_the_network_sees_the_whole_slice(
    monkeypatch: pytest.MonkeyPatch, shear_mm: float
) -> None:
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


def test_beyond_the_extent_lies_what_linear_interpolation_makes_of_air() -> None:
    planes = body_in_air(made_geometry(4))
    near = near_of(planes)
    (rows, _), window = extent_of(near), window_of(made_geometry(4, 224, 256), planes, STEP)
    prediction = Midslice().run(STEP, window, Limits())
    assert prediction.weights == (1.0, 1.0)
    for t, made in zip(STEP.fractions, prediction.planes, strict=True):
        straight, blend = classical.linear(near, t), classical.dis(near, t)
        # Low frequencies are drawn to those of the flow blend by 2 HU at most.
        assert np.abs(made - straight)[: rows.start].max() <= 2.01
        assert np.abs(blend - straight)[: rows.start].max() > 5.0
    assert all(scale.shape == made.shape for scale in prediction.scale_hu)
    assert all((scale > 0.0).all() for scale in prediction.scale_hu)


def test_the_network_fades_out_over_the_air_at_the_ends_of_its_extent() -> None:
    around, inside = np.zeros((64, 96), np.float32), np.full((40, 96), 9.0, np.float32)
    whole = pasted(inside, around, (slice(24, 64), slice(0, 96)))
    assert not whole[:24].any()
    assert np.allclose(whole[24:32], np.arange(1.0, 9.0)[:, None])
    assert (whole[32:] == 9.0).all()  # the lower end and the sides are those of the slice
    assert not around.any()  # the candidate itself stays what it is
    across = pasted(inside.T.copy(), around.T.copy(), (slice(0, 96), slice(16, 56)))
    assert np.allclose(across[:, 16:24], np.arange(1.0, 9.0))
    assert np.allclose(across[:, 48:56], np.arange(8.0, 0.0, -1.0))


def test_noise_in_air_has_no_step_where_the_network_ends() -> None:
    random, planes = np.random.default_rng(1), body_in_air(made_geometry(4, 128, 128))
    for plane in planes:
        empty = plane < -950.0
        plane[empty] = -960.0 + 30.0 * random.standard_normal(int(empty.sum()), dtype=np.float32)
    rows, _ = extent_of(near_of(planes))
    window = window_of(made_geometry(4, 224, 256), planes, STEP)
    made = Midslice().run(STEP, window, Limits()).planes[1]
    outside, inside = made[rows.start - 4 : rows.start], made[rows.start : rows.start + 4]
    assert inside.std() / outside.std() > 0.84  # 0.77 without the fading
