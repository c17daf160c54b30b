"""Evaluation: the same targets for everybody, honest gains, and figures that mean what they say."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inference.model import Limits, Parameters, Prediction, Produces, Step, Window
from inference.models.classical import Linear, Neighbourhood, nearest
from inference.training import metrics
from inference.training.data import NoTrainingData
from inference.training.evaluate import (
    Cell,
    Figures,
    Progress,
    Result,
    drawn_targets,
    evaluate,
    gates,
)
from inference.training.report import COLUMNS, markdown, rows_of
from inference.volume import Geometry
from tests.models.stacks import made_geometry, made_plane

SLICES = 25
LIST_AT_2 = (7, 13, 29, 35, 43, 53, 55, 65, 69, 71, 73, 81, 101, 103, 105, 107, 115, 119, 129, 131)
LIST_AT_4 = (5, 6, 17, 27, 39, 58, 62, 65, 67, 71, 73, 78, 97, 98, 106, 110, 114, 117, 119, 122)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thin made series at 1 mm: a body that drifts and grows along z."""
    root = tmp_path_factory.mktemp("thin")
    geometry = made_geometry(SLICES, 80, 80, gaps_mm=1.0)
    planes = [made_plane(geometry, 3.0 * z, noise_hu=8.0, seed=z) for z in range(SLICES)]
    hu = np.rint(planes).astype(np.int16)
    (root / "made").mkdir()
    np.savez(root / "made" / "volume.npz", hu=hu, spacing_mm=np.array([1.0, 0.7, 0.7]))
    return root


class Knowing:
    """A model that has seen the truth: the best that there can be."""

    name, version, weights_sha256 = "knowing", "1.0.0", ""
    produces: Produces = "slices"

    def __init__(self, truth: np.ndarray[tuple[int, ...], np.dtype[np.int16]], factor: int) -> None:
        self._truth, self._factor = truth, factor

    def plan(self, geometry: Geometry, parameters: Parameters) -> Sequence[Step]:
        return ()

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        assert step.gap is not None
        places = [round((step.gap + t) * self._factor) for t in step.fractions]
        return Prediction(planes=tuple(self._truth[i].astype(np.float32) for i in places))


class Lazy(Linear):
    """A model that repeats the nearest slice: worse than linear wherever something moves."""

    name = "lazy"

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        near = Neighbourhood.of(step, slices)
        return Prediction(planes=tuple(nearest(near, t) for t in step.fractions))


def hu_of(data: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    with np.load(data / "made" / "volume.npz") as stored:
        return np.asarray(stored["hu"], np.int16)


# --- the targets ------------------------------------------------------------------------------


def test_the_target_lists_never_change() -> None:
    assert drawn_targets("lidc-0001", 133, 2, 20) == LIST_AT_2
    assert drawn_targets("lidc-0001", 133, 4, 20) == LIST_AT_4


@pytest.mark.parametrize("factor", range(2, 11))
def test_targets_are_left_out_slices_between_received_ones(factor: int) -> None:
    targets = drawn_targets("any", 60, factor, 20)
    assert len(targets) == len(set(targets)) == 20
    assert all(target % factor for target in targets)
    assert max(targets) < 59 // factor * factor


def test_a_short_series_gives_as_many_targets_as_it_has() -> None:
    assert drawn_targets("short", 7, 2, 20) == (1, 3, 5)
    assert drawn_targets("short", 3, 4, 20) == ()


# --- the figures ------------------------------------------------------------------------------


def test_every_method_is_judged_on_the_same_targets(data: Path) -> None:
    result = evaluate(data, (2, 4), model=Linear(), targets=4)
    assert [(cell.patient, cell.factor, cell.gap_mm) for cell in result.cells] == [
        ("made", 2, 2.0),
        ("made", 4, 4.0),
    ]
    for cell in result.cells:
        assert len(cell.targets) == 4
        assert set(cell.methods) == {"nearest", "linear", "cubic", "dis"}
        assert cell.methods["linear"].over_linear_db == 0.0
        assert cell.methods["dis"].over_dis_db == 0.0
        assert cell.methods["nearest"].over_linear_db < 0.0


def test_a_second_evaluation_finds_the_same(data: Path) -> None:
    one, other = (evaluate(data, (3,), model=Lazy(), targets=3) for _ in range(2))
    for first, second in zip(one.cells, other.cells, strict=True):
        assert first.targets == second.targets
        for name, figures in first.methods.items():
            assert replace(figures, ms_per_slice=0.0) == replace(
                second.methods[name], ms_per_slice=0.0
            )


def test_the_truth_itself_has_the_best_figures(data: Path) -> None:
    result = evaluate(data, (2,), model=Knowing(hu_of(data), 2), targets=5)
    figures = result.cells[0].methods["knowing"]
    assert figures.psnr_db == pytest.approx(20.0 * np.log10(3072.0 / 0.5))
    assert figures.ssim == pytest.approx(1.0)
    assert figures.body_mae_hu == figures.body_bias_hu == 0.0
    assert figures.below_linear == figures.below_dis == 0.0
    assert figures.worst_over_linear_db > 1.2
    assert gates(result) == []


def test_a_model_below_linear_is_said_to_be(data: Path) -> None:
    result = evaluate(data, (4,), model=Lazy(), targets=5)
    figures = result.cells[0].methods["lazy"]
    assert figures.below_linear > 0.5
    assert figures.worst_over_linear_db <= figures.over_linear_db < 0.0
    (missed,) = gates(result)
    assert "made 4x (sub-sampled, gap 4 mm)" in missed
    assert "at least +1.20 dB is due" in missed


def test_slabs_are_as_thick_as_their_gap(data: Path) -> None:
    """The truth of a slab is the mean of the thin slices around it: only their mean is perfect."""
    hu = hu_of(data).astype(np.float32)
    slabs = np.stack([hu[i : i + 4].mean(axis=0) for i in range(SLICES - 3)])
    result = evaluate(data, (4,), model=Knowing(np.asarray(slabs), 4), targets=6, mode="slab")
    (cell,) = result.cells
    assert cell.mode == "slab"
    assert cell.methods["knowing"].body_mae_hu == pytest.approx(0.0, abs=1e-3)
    assert max(cell.targets) < SLICES - 3


def test_progress_counts_to_the_end(data: Path) -> None:
    seen: list[Progress] = []
    evaluate(data, (2, 4), model=Linear(), targets=4, progress=seen.append)
    assert [(progress.done, progress.total) for progress in seen] == [(4, 8), (8, 8)]
    assert {progress.patient for progress in seen} == {"made"}


def test_a_factor_too_wide_for_the_series_has_no_cell(data: Path) -> None:
    result = evaluate(data, (10,), model=Linear(), targets=30)
    assert all(target < 20 for target in result.cells[0].targets)
    assert len(result.cells[0].targets) == 18


@pytest.mark.parametrize("factors", [(1,), (2, 11), ()])
def test_factors_that_are_not_offered_are_refused(data: Path, factors: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="allowed are 2 to 10"):
        evaluate(data, factors, model=Linear())


def test_a_folder_without_a_thin_series_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(NoTrainingData, match="no evenly spaced CT series"):
        evaluate(tmp_path, (2,), model=Linear())


# --- what comes of them -----------------------------------------------------------------------


def figures_with(over_linear_db: float) -> Figures:
    return Figures(40.0, 0.9, 20.0, 0.0, over_linear_db, 0.1, 0.2, 0.1, 0.0, 0.0, 100.0)


def result_with(gap_mm: float, over_linear_db: float) -> Result:
    methods = {"midslice": figures_with(over_linear_db)}
    cell = Cell("patient", "sub-sampled", 2, gap_mm, (1, 3), methods)
    return Result("midslice", "1.0.0", "0" * 64, (cell,))


@pytest.mark.parametrize(
    ("gap_mm", "over_linear_db", "missed"),
    [(5.0, 1.2, 0), (5.0, 1.19, 1), (10.0, 1.0, 1), (2.0, 0.7, 0), (2.0, 0.5, 1)],
)
def test_a_gate_closes_below_its_figure(gap_mm: float, over_linear_db: float, missed: int) -> None:
    assert len(gates(result_with(gap_mm, over_linear_db))) == missed


def test_gates_that_judged_nothing_do_not_pass() -> None:
    assert gates(result_with(20.0, 9.0)) == [
        "no cell has a gap for which a figure is set: nothing was judged"
    ]


def test_a_result_is_json(data: Path) -> None:
    result = evaluate(data, (2,), model=Lazy(), targets=2)
    read = json.loads(json.dumps(result.as_json()))
    assert read["model"] == "lazy"
    assert read["cells"][0]["factor"] == 2
    assert read["cells"][0]["methods"]["linear"]["over_linear_db"] == 0.0
    assert len(read["cells"][0]["targets"]) == 2


def test_a_report_has_a_row_for_each_method(data: Path) -> None:
    result = evaluate(data, (2, 3), model=Lazy(), targets=2)
    rows = rows_of(result)
    assert len(rows) == 2 * 5
    assert all(len(row) == len(COLUMNS) for row in rows)
    assert {row[3] for row in rows} == {"nearest", "linear", "cubic", "dis", "lazy"}
    lines = markdown(result).splitlines()
    assert len(lines) == 2 + len(rows)
    assert lines[0].startswith("| patient | factor |")


# --- metrics ----------------------------------------------------------------------------------


def test_psnr_is_of_the_window_of_3072_hu() -> None:
    true = np.zeros((32, 32), np.float32)
    assert metrics.psnr_db(true + 30.72, true) == pytest.approx(40.0, abs=1e-3)


def test_what_lies_outside_the_window_counts_nothing() -> None:
    true = np.full((32, 32), 2048.0, np.float32)
    true[:16] = -1024.0
    beyond = np.where(true > 0.0, np.float32(3000.0), np.float32(-2000.0))
    assert metrics.figures_of(beyond, true).psnr_db == pytest.approx(75.77, abs=0.01)


def test_ssim_is_one_for_the_same_slice_and_falls_with_blur_and_noise() -> None:
    true = made_plane(made_geometry(2, 96, 96), 0.0, noise_hu=15.0)
    random = np.random.default_rng(0)
    noisy = true + 200.0 * random.standard_normal(true.shape, dtype=np.float32)
    assert metrics.ssim(true, true) == pytest.approx(1.0)
    assert metrics.ssim(noisy, true) < 0.5


def test_the_body_holds_its_lungs_and_not_the_table() -> None:
    plane = np.full((100, 100), -1000.0, np.float32)
    plane[20:70, 20:80] = 40.0
    plane[30:60, 35:50] = -850.0  # a lung
    plane[85:88, 10:90] = 100.0  # the table, thinner than what opening leaves
    body = metrics.body_of(plane)
    assert body[45, 42]
    assert not body[86, 50]
    assert body.sum() == 50 * 60


def test_a_slice_of_air_alone_has_no_body_and_no_error_in_it() -> None:
    air = np.full((40, 40), -1000.0, np.float32)
    figures = metrics.figures_of(air + 5.0, air)
    assert not metrics.body_of(air).any()
    assert (figures.body_mae_hu, figures.body_bias_hu) == (0.0, 0.0)


def test_bias_and_error_are_of_the_body_alone() -> None:
    true = made_plane(made_geometry(2, 96, 96), 0.0)
    made = true.copy()
    made[metrics.body_of(true)] += 3.0
    made[:4] += 500.0
    figures = metrics.figures_of(made, true)
    assert figures.body_bias_hu == pytest.approx(3.0, abs=1e-4)
    assert figures.body_mae_hu == pytest.approx(3.0, abs=1e-4)
