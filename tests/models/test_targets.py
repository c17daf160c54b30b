"""Which slices are left out, and how thick stacks are cut out of thin series."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from inference.training.data import NoSeries, open_series
from inference.training.leave_out import (
    COMMITTED,
    TARGETS,
    SeriesTargets,
    TargetList,
    drawn_targets,
    leave_out,
    read_list,
    unsuitable,
    write_list,
)
from inference.training.report import StudyRequest, list_of
from tests.models.made import drifting, made_geometry, ramp, sheared, thin_series, write_series
from tests.phantoms import Series, write

LIST_AT_2 = (7, 13, 29, 35, 43, 53, 55, 65, 69, 71, 73, 81, 101, 103, 105, 107, 115, 119, 129, 131)
LIST_AT_4 = (5, 6, 17, 27, 39, 58, 62, 65, 67, 71, 73, 78, 97, 98, 106, 110, 114, 117, 119, 122)
NO_LIST = TargetList()


# --- the list ---------------------------------------------------------------------------------


def test_the_target_lists_never_change() -> None:
    assert read_list().targets("lidc-0001", 133, 2) == LIST_AT_2
    assert read_list().targets("lidc-0001", 133, 4) == LIST_AT_4


def test_the_committed_list_is_what_the_rule_draws() -> None:
    stored = json.loads(COMMITTED.read_text())["series"]
    assert len(stored) > 100
    for each in stored:
        again = drawn_targets(each["name"], each["slices"], each["factor"])
        assert tuple(each["targets"]) == again, each["name"]


def test_the_committed_list_has_twenty_slices_of_every_series_at_every_factor_due() -> None:
    listed = read_list()
    known = {"lidc-0001": 133, "lidc-0002": 180, "lidc-0314": 200, "lungfcp-0001": 98}
    for name, slices in (known | {"rider-pilot-0117": 95, "head-cranium": 108}).items():
        for factor in (2, 3, 4, 5, 6, 8, 10):
            assert len(listed.targets(name, slices, factor)) == TARGETS


def test_the_command_that_made_the_list_makes_it_again(tmp_path: Path) -> None:
    write_series(tmp_path / "data", drifting(30))
    wanted = StudyRequest(tmp_path / "data")
    for name in ("one.json", "other.json"):
        write_list(list_of(wanted), tmp_path / name)
    assert (tmp_path / "one.json").read_text() == (tmp_path / "other.json").read_text()
    listed = read_list(tmp_path / "one.json")
    assert listed.targets("drifting", 30, 3) == drawn_targets("drifting", 30, 3)
    assert len(listed) == 18  # nine factors; slabs leave fewer slices, and factor 2 one fewer


def test_a_list_wins_over_the_rule_for_whole_cells_alone() -> None:
    listed = TargetList([SeriesTargets("series", 60, 2, (1, 5, 9))])
    assert listed.targets("series", 60, 2) == (1, 5, 9)
    assert listed.targets("series", 60, 2, 4) == drawn_targets("series", 60, 2, 4)
    assert listed.targets("series", 61, 2) == drawn_targets("series", 61, 2)


@pytest.mark.parametrize("factor", range(2, 11))
def test_targets_are_left_out_slices_between_received_ones(factor: int) -> None:
    targets = drawn_targets("any", 60, factor, 20)
    assert len(targets) == len(set(targets)) == 20
    assert all(target % factor for target in targets)
    assert max(targets) < 59 // factor * factor


def test_a_short_series_gives_as_many_targets_as_it_has() -> None:
    assert drawn_targets("short", 7, 2, 20) == (1, 3, 5)
    assert drawn_targets("short", 3, 4, 20) == ()


# --- cuts -------------------------------------------------------------------------------------


def test_a_sub_sampled_stack_keeps_every_fth_slice_and_its_targets_lie_between() -> None:
    series = ramp(13)
    (cut,) = leave_out(series, 4, "sub-sampled", NO_LIST, 100)
    assert len(cut.volume) == 4
    assert cut.volume.geometry.gaps_mm == pytest.approx(4.0)
    assert [target.index for target in cut.targets] == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert [round(target.t, 3) for target in cut.targets[:3]] == [0.25, 0.5, 0.75]
    assert np.array_equal(cut.volume.read(2), series.read(8))
    assert np.array_equal(cut.truth(cut.targets[3]), series.read(5))


def test_a_slab_is_the_mean_of_as_many_slices_as_its_gap_holds() -> None:
    series = ramp(13)
    (cut,) = leave_out(series, 4, "slab", NO_LIST, 100)
    assert len(cut.volume) == 3
    assert cut.volume.geometry.thickness_mm == pytest.approx(2.5 + 3.0)
    mean = np.mean([series.read(index) for index in range(4, 8)], axis=0)
    assert cut.volume.read(1) == pytest.approx(mean)
    truth = np.mean([series.read(index) for index in range(1, 5)], axis=0)
    assert cut.truth(cut.targets[0]) == pytest.approx(truth)


def test_each_interior_slice_is_left_out_by_itself_at_its_own_place() -> None:
    geometry = made_geometry(5, 16, 16, gaps_mm=(4.0, 1.0, 4.0, 7.0))
    planes = [np.full((16, 16), index, np.float32) for index in range(5)]
    cuts = leave_out(thin_series(planes, geometry), 2, "left-out", NO_LIST)
    assert [cut.targets[0].index for cut in cuts] == [1, 2, 3]
    assert [cut.targets[0].t for cut in cuts] == pytest.approx([4 / 5, 1 / 5, 4 / 11])
    for cut in cuts:
        assert len(cut.volume) == 4
        values = [int(cut.volume.read(place)[0, 0]) for place in range(4)]
        assert cut.targets[0].index not in values
        gap = cut.targets[0].gap
        assert values[gap] == cut.targets[0].index - 1
        assert values[gap + 1] == cut.targets[0].index + 1


def test_the_places_of_targets_come_from_positions() -> None:
    geometry = made_geometry(5, 16, 16, gaps_mm=(1.0, 1.04, 1.0, 0.97))
    planes = [np.zeros((16, 16), np.float32)] * 5
    (cut,) = leave_out(thin_series(planes, geometry), 2, "sub-sampled", NO_LIST)
    assert [target.t for target in cut.targets] == pytest.approx([1.0 / 2.04, 1.0 / 1.97])


def test_what_cannot_be_cut_says_why() -> None:
    assert unsuitable(ramp(13), 4, "sub-sampled") is None
    short = unsuitable(ramp(6), 6, "sub-sampled")
    assert short == "6 slices are too few to leave out 5 of 6"
    assert "too few" in str(unsuitable(ramp(9), 5, "slab"))
    geometry = made_geometry(9, 16, 16, gaps_mm=(4.0, 1.0) * 4)
    uneven = thin_series([np.zeros((16, 16), np.float32)] * 9, geometry)
    assert unsuitable(uneven, 2, "slab") == "unevenly spaced slices cannot be averaged to slabs"
    assert "tilted gantry" in str(unsuitable(sheared(), 2, "slab"))


def test_a_long_series_is_not_held_in_memory() -> None:
    """However far a stack is walked, only a bounded number of its slices is kept."""
    reads: list[int] = []
    geometry = made_geometry(400, 16, 16, gaps_mm=1.0)
    series = thin_series([np.zeros((16, 16), np.float32)] * 400, geometry)
    counted = type(series)(
        "long",
        False,
        geometry,
        lambda index: reads.append(index) or series.read(index),  # type: ignore[func-returns-value]
        series.stored,
    )
    (cut,) = leave_out(counted, 2, "sub-sampled", NO_LIST)
    for place in (0, 1, 0, 1):
        cut.volume.read(place)
    assert reads == [0, 2]
    for place in range(200):
        cut.volume.read(place)
    cut.volume.read(0)
    assert reads.count(0) == 2


# --- folders ----------------------------------------------------------------------------------


def test_dicom_series_and_npz_volumes_of_any_depth_are_found(tmp_path: Path) -> None:
    write(tmp_path / "site" / "study" / "dicom", Series(slices=9, spacing_mm=1.0))
    write_series(tmp_path, drifting(12))
    (tmp_path / "notes.txt").write_text("no image")
    found, passed = open_series(tmp_path)
    assert [(series.name, len(series), series.spacing_mm) for series in found] == [
        ("drifting", 12, 1.0),
        ("dicom", 9, 1.0),
    ]
    assert passed == []
    assert not any(series.trained_on for series in found)


def test_what_the_weights_were_trained_on_is_known_by_its_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "ct-train", drifting(12))
    ((series,), _) = open_series(tmp_path)
    assert series.trained_on


def test_slices_come_as_the_node_reads_them_and_go_as_it_stores_them(tmp_path: Path) -> None:
    write(tmp_path / "dicom", Series(slices=6, spacing_mm=1.0, rows=32, columns=40))
    ((series,), _) = open_series(tmp_path)
    plane = series.read(2)
    assert plane.shape == (32, 40)
    assert plane.dtype == np.float32
    stored = series.stored(plane + np.float32(0.3), 2, 3, 0.5)
    assert np.array_equal(stored, plane)  # whole HU
    beyond = series.stored(np.full_like(plane, 9000.0), 2, 3, 0.5)
    assert beyond.max() <= max(plane.max(), series.read(3).max())


def test_two_series_in_one_folder_are_two(tmp_path: Path) -> None:
    write(tmp_path / "a", Series(slices=9, spacing_mm=1.0))
    write(tmp_path / "b", Series(slices=7, spacing_mm=1.0, seed="other", kernel="B70f"))
    (tmp_path / "both").mkdir()
    for number, path in enumerate([*(tmp_path / "a").iterdir(), *(tmp_path / "b").iterdir()]):
        shutil.copy(path, tmp_path / "both" / f"{number}.dcm")
    found, _ = open_series(tmp_path / "both")
    assert sorted((series.name, len(series)) for series in found) == [("both-1", 9), ("both-2", 7)]


def test_unsuitable_series_are_named_with_their_reason(tmp_path: Path) -> None:
    write(tmp_path / "holes", Series(slices=12, spacing_mm=2.0, thickness_mm=2.0, missing=(5, 6)))
    write(tmp_path / "short", Series(slices=4, spacing_mm=1.0))
    (tmp_path / "wrong").mkdir()
    np.savez(tmp_path / "wrong" / "volume.npz", values=np.zeros(3))
    (tmp_path / "flat").mkdir()
    np.savez(tmp_path / "flat" / "volume.npz", hu=np.zeros((4, 4)), spacing_mm=np.ones(3))
    with pytest.raises(NoSeries) as caught:
        open_series(tmp_path)
    said = str(caught.value)
    assert "needed are thin axial slices" in said
    assert "holes: the node would not process it (MISSING_SLICES" in said
    assert "short: it has 4 slices; at least 5 are needed" in said
    assert "wrong: volume.npz needs hu (z, y, x) and spacing_mm" in said
    assert "flat: volume.npz has hu of (4, 4)" in said
    assert len(said.splitlines()) == 1


def test_a_folder_that_is_not_there_is_said_not_to_be(tmp_path: Path) -> None:
    with pytest.raises(NoSeries, match="no such folder"):
        open_series(tmp_path / "absent")


def test_padding_of_an_npz_volume_is_air(tmp_path: Path) -> None:
    series = thin_series([np.full((16, 16), -3024.0, np.float32)] * 6, made_geometry(6, 16, 16))
    write_series(tmp_path, series)
    ((found,), _) = open_series(tmp_path)
    assert found.read(0).min() == -1024.0
