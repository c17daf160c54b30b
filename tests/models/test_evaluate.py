"""Evaluation as a whole: the same targets for every method, honest gains, and folds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inference.model import Model
from inference.models.classical import Linear
from inference.request import Output
from inference.training.data import NoSeries, ThinSeries
from inference.training.evaluate import EvaluatedCell
from inference.training.leave_out import TargetList
from inference.training.metrics import anatomy_of
from inference.training.report import StudyRequest, card, confidence_rows, page_of, run
from tests.models.judged import NAMES, Knowing, Lazy, hu_of, study_of
from tests.models.made import drifting, made_geometry, thin_series, write_series
from tests.phantoms import Series, write

ROOT = Path(__file__).parents[2]
JPEG_LS = "1.2.840.10008.1.2.4.80"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thin made series at 1 mm: a body that drifts and grows along z."""
    root = tmp_path_factory.mktemp("thin")
    write_series(root, drifting())
    return root


def without_times(cell: EvaluatedCell) -> dict[str, object]:
    return {
        name: replace(figures, ms_per_slice=0.0, cpu_ms_per_slice=0.0)
        for name, figures in cell.methods.items()
    }


# --- the figures ------------------------------------------------------------------------------


def test_every_method_is_judged_on_the_same_targets(data: Path) -> None:
    found = study_of(data, Lazy(), 2, 4)
    assert [(c.kind.series, c.kind.factor, c.kind.gap_mm) for c in found.cells] == [
        ("drifting", 2, 2.0),
        ("drifting", 4, 4.0),
    ]
    for cell in found.cells:
        assert len(cell.targets) == len(cell.gains_db) == 4
        assert np.mean(cell.gains_db) == pytest.approx(cell.ours.over_linear_db)
        assert list(cell.methods) == [*NAMES, "lazy"]
        assert cell.methods["linear"].over_linear_db == 0.0
        assert cell.methods["linear"].over_linear_interval_db == (0.0, 0.0)
        assert cell.methods["dis"].over_dis_db == 0.0
        assert cell.methods["nearest"].over_linear_db < 0.0
        assert all(figures.ms_per_slice > 0.0 for figures in cell.methods.values())


def test_a_second_evaluation_finds_the_same(data: Path) -> None:
    one, other = (study_of(data, Lazy(), 3).cells for _ in range(2))
    assert [cell.targets for cell in one] == [cell.targets for cell in other]
    assert [without_times(cell) for cell in one] == [without_times(cell) for cell in other]


def test_the_truth_itself_has_the_best_figures(data: Path) -> None:
    ours = study_of(data, Knowing(hu_of(data), 2), 2, targets=5).cells[0].ours
    assert ours.psnr_db == pytest.approx(20.0 * np.log10(3072.0 / 0.5))
    assert ours.ssim == ours.ssim_soft == pytest.approx(1.0)
    assert ours.body_mae_hu == ours.body_bias_hu == 0.0
    assert ours.body_mae_to_linear == -1.0
    assert ours.noise_ratio == ours.gradient_ratio == pytest.approx(1.0)
    assert ours.below_linear == ours.below_dis == 0.0
    assert ours.worst_over_linear_db > 1.2
    low, high = ours.over_linear_interval_db
    assert low <= ours.over_linear_db <= high


def test_a_model_below_linear_is_said_to_be(data: Path) -> None:
    ours = study_of(data, Lazy(), 4, targets=5).cells[0].ours
    assert ours.below_linear > 0.5
    assert ours.notably_below_linear <= ours.below_linear
    assert ours.worst_over_linear_db <= ours.over_linear_db < 0.0
    assert ours.body_mae_to_linear > 0.0


def test_linear_itself_neither_gains_nor_loses(data: Path) -> None:
    ours = study_of(data, Linear(), 3).cells[0].ours
    assert ours.over_linear_db == pytest.approx(0.0, abs=0.02)  # it is stored in whole HU
    assert ours.body_mae_to_linear == pytest.approx(0.0, abs=0.01)


def test_slabs_are_judged_beside_thin_slices_where_they_are_asked_for(data: Path) -> None:
    """The truth of a slab is the mean of the thin slices around it: only their mean is perfect."""
    hu = hu_of(data)
    slabs = np.stack([hu[i : i + 4].mean(axis=0) for i in range(len(hu) - 3)])
    found = study_of(data, Knowing(np.asarray(slabs, np.float32), 4), 4, slab=True).cells
    assert [cell.kind.mode for cell in found] == ["sub-sampled", "slab"]
    assert found[1].ours.body_mae_hu < 0.5  # rounded to whole HU
    assert found[0].ours.body_mae_hu > 1.0
    assert found[1].kind.name == "drifting 4x, 4 mm slab"


def test_an_uneven_series_is_judged_slice_by_slice(tmp_path: Path) -> None:
    write(tmp_path / "head", Series(gaps_mm=(4.0, 4.0, 1.5, 7.0, 7.0, 7.0), thickness_mm=7.0))
    (cell,) = study_of(tmp_path, Linear(), 2, 4).cells
    assert cell.kind.mode == "left-out"
    assert cell.targets == (1, 2, 3, 4, 5)
    assert cell.kind.name == "head, each slice left out"


# --- confidence -------------------------------------------------------------------------------


def test_expected_errors_are_held_to_the_true_ones(data: Path) -> None:
    """Off by 3 HU everywhere; expected are 2 HU and one more a slice; the interval is 2 x 4 HU."""
    cell = study_of(data, Knowing(hu_of(data), 2, off_hu=3.0), 2, targets=5).cells[0]
    found = cell.confidence
    assert found is not None
    expected = np.mean([2.0 + index for index in cell.targets])
    assert found.predicted_to_true == pytest.approx(expected / 3.0, rel=1e-3)
    assert found.coverage == 1.0
    assert found.least == found.mean == pytest.approx(0.9)
    far = study_of(data, Knowing(hu_of(data), 2, off_hu=9.0), 2, targets=5).cells[0].confidence
    assert far is not None
    assert far.coverage == 0.0
    assert confidence_rows([cell])[0][0] == "drifting 2x, 2 mm"


def test_what_is_judged_is_what_the_node_would_deliver(data: Path) -> None:
    """Of a slice that its model is not sure of that is the classical one, here 20 HU too low."""
    least = Output().classical_below
    unsure = Knowing(hu_of(data), 2, confidence=least - 0.01)
    (cell,) = study_of(data, unsure, 2).cells
    assert cell.ours.body_bias_hu == pytest.approx(-20.0)
    (sure,) = study_of(data, Knowing(hu_of(data), 2, confidence=least), 2).cells
    assert sure.ours.body_bias_hu == 0.0


def test_a_model_without_expectations_has_no_confidence(data: Path) -> None:
    (cell,) = study_of(data, Lazy(), 2).cells
    assert cell.confidence is None
    assert confidence_rows([cell]) == []


# --- which series, which weights --------------------------------------------------------------


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A data set in parts: a series held out, one trained on."""
    write_series(tmp_path / "data" / "ct-validate", drifting(13, name="held-out"))
    write_series(tmp_path / "data" / "ct-train", drifting(13, name="seen"))
    return tmp_path / "data"


def test_of_a_data_set_in_parts_the_held_out_one_is_judged(parts: Path) -> None:
    found = study_of(parts, Lazy(), 2)
    assert [cell.kind.series for cell in found.cells] == ["held-out"]
    assert found.rows == ()


def test_a_series_trained_on_is_no_proof_and_every_table_says_so(parts: Path) -> None:
    found = study_of(parts / "ct-train", Lazy(), 2)
    (cell,) = found.cells
    assert cell.kind.weights == "shipped, trained on it"
    assert cell.kind.title == "seen 2x, 2 mm (shipped, trained on it)"
    assert "shipped, trained on it" in page_of(found)
    assert "shipped, trained on it" in card(found.cells, found.rows)


def test_gates_say_which_folds_are_missing(parts: Path, tmp_path: Path) -> None:
    found = study_of(parts, Lazy(), 2, gates=True, folds=tmp_path / "folds", targets=3)
    assert {cell.kind.series for cell in found.cells} == {"held-out"}
    absent = [row for row in found.rows if row.verdict == "not measured" and "seen" in row.cell]
    assert absent
    assert all("--leave-out seen" in row.note for row in absent)


def test_a_series_trained_on_is_judged_with_the_weights_of_its_fold(
    parts: Path, tmp_path: Path
) -> None:
    fold = tmp_path / "folds" / "seen.safetensors"
    fold.parent.mkdir()
    fold.write_bytes(b"")
    used: list[Path | None] = []

    def load(weights: Path | None) -> Model:
        used.append(weights)
        return Lazy()

    wanted = StudyRequest(parts, (2,), gates=True, folds=fold.parent, targets=3)
    found = run(wanted, load, TargetList())
    assert used == [None, fold]
    labels = {cell.kind.series: cell.kind.weights for cell in found.cells}
    assert labels == {"held-out": "shipped", "seen": "trained without seen"}
    assert not any("--leave-out" in row.note for row in found.rows)


def test_gates_add_the_cells_that_figures_are_due_in(data: Path) -> None:
    found = study_of(data, Lazy(), 2, gates=True, targets=2)
    cells = [(cell.kind.mode, cell.kind.factor) for cell in found.cells]
    assert cells == [("sub-sampled", f) for f in (2, 3, 4, 6, 8)] + [("slab", 4)]
    mae = [row.verdict for row in found.rows if row.title == "body MAE against linear"]
    assert mae == ["missed"] * 6


def test_a_series_that_breaks_on_the_way_is_passed_over_with_its_reason(tmp_path: Path) -> None:
    paths = write(tmp_path / "broken", Series(slices=9, spacing_mm=1.0, transfer_syntax=JPEG_LS))
    write_series(tmp_path, drifting(13))
    written = paths[2].read_bytes()
    start, end = written.rindex(b"\xff\xda"), written.rindex(b"\xff\xd9")  # of the coded pixels
    half = (start + end) // 2
    paths[2].write_bytes(written[:half] + b"\xff\xd9" + bytes(end - half) + written[end + 2 :])
    found = study_of(tmp_path, Lazy(), 2)
    assert [cell.kind.series for cell in found.cells] == ["drifting"]
    (passed,) = found.passed_over
    assert passed.name.startswith("broken")
    assert "pixels of image 3 are damaged or incomplete" in passed.sentence


def test_a_factor_too_wide_for_a_series_is_said_to_be(data: Path, tmp_path: Path) -> None:
    write_series(tmp_path, drifting(6))
    found = study_of(tmp_path, Lazy(), 2, 8)
    assert [cell.kind.factor for cell in found.cells] == [2]
    (passed,) = found.passed_over
    assert passed.sentence == "6 slices are too few to leave out 7 of 8"
    with pytest.raises(NoSeries, match="too few to leave out 7 of 8"):
        study_of(tmp_path, Lazy(), 8)


def test_progress_counts_to_the_end(data: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    wanted = StudyRequest(data, (2, 4), targets=4)
    run(wanted, lambda _weights: Linear(), TargetList(), progress=lambda *now: seen.append(now))
    assert [done for done, _, _ in seen] == list(range(1, 9))
    assert {total for _, total, _ in seen} == {8}
    assert seen[-1][2] == "drifting 4x, 4 mm"


# --- anatomy ----------------------------------------------------------------------------------


def disc(radius_mm: float, inside_hu: float, bone: bool) -> ThinSeries:
    geometry = made_geometry(9, 256, 256, gaps_mm=1.0, pixel_mm=1.5)
    y, x = np.mgrid[:256, :256].astype(np.float32)
    away = 1.5 * np.hypot(y - 128, x - 128)
    plane = np.where(away < radius_mm, np.float32(40.0), np.float32(-1000.0))
    plane = np.where(away < 0.5 * radius_mm, np.float32(inside_hu), plane)
    if bone:
        plane = np.where(np.abs(away - radius_mm + 5.0) < 4.0, np.float32(900.0), plane)
    return thin_series([plane] * 9, geometry)


@pytest.mark.parametrize(
    ("radius_mm", "inside_hu", "bone", "expected"),
    [
        (150.0, -850.0, False, "chest"),
        (85.0, 30.0, True, "head"),
        (150.0, 30.0, True, "other"),
        (85.0, 30.0, False, "other"),
    ],
)
def test_anatomy_is_told_from_a_few_slices(
    radius_mm: float, inside_hu: float, bone: bool, expected: str
) -> None:
    assert anatomy_of(disc(radius_mm, inside_hu, bone)) == expected
