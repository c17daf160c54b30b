"""Passed, missed or not measured: the table of what is due, cell by cell and row by row."""

from dataclasses import replace
from pathlib import Path

import pytest

from inference.models.runtime import has_fast_bfloat16
from inference.training.evaluate import CellKind, EvaluatedCell, NetworkSpeed, network_speed
from inference.training.gates import (
    BOUNDS,
    Bound,
    Due,
    Row,
    factors_due,
    fold_of,
    how_to_measure,
    is_passed,
    rows_of,
    speed_row,
    summed,
)
from inference.training.leave_out import Mode
from inference.training.metrics import Confidence, Figures
from inference.training.report import missed_rows, not_measured

GOOD = Figures(
    psnr_db=38.5,
    ssim=0.96,
    psnr_soft_db=26.0,
    ssim_soft=0.88,
    body_mae_hu=30.0,
    body_mae_to_linear=-0.25,
    body_bias_hu=-1.0,
    edge_mae_hu=50.0,
    gradient_ratio=0.9,
    noise_ratio=0.70,
    noise_step=0.3,
    laa_950=0.02,
    laa_950_off=0.001,
    over_linear_db=2.5,
    over_linear_interval_db=(2.3, 2.7),
    worst_over_linear_db=0.8,
    over_dis_db=1.2,
    over_dis_interval_db=(1.0, 1.4),
    worst_over_dis_db=0.2,
    below_linear=0.0,
    notably_below_linear=0.0,
    below_dis=0.05,
    notably_below_dis=0.0,
    ms_per_slice=40.0,
    cpu_ms_per_slice=70.0,
)
LINEAR = replace(GOOD, psnr_db=36.0, noise_ratio=0.80, laa_950_off=0.004, body_bias_hu=-6.0)
CUBIC = replace(LINEAR, psnr_db=36.3, body_bias_hu=-0.2)
DIS = replace(LINEAR, psnr_db=37.3, body_bias_hu=-3.4)
SURE = Confidence(spearman=0.9, predicted_to_true=1.1, coverage=0.9, least=0.6, mean=0.8)
CHEST = CellKind("chest-a", "sub-sampled", 2, 5.0, 2.5, "chest", (512, 512), "shipped")


def cell(
    kind: CellKind = CHEST, confidence: Confidence | None = SURE, **changes: object
) -> EvaluatedCell:
    ours = replace(GOOD, **changes)  # type: ignore[arg-type]
    methods = {"linear": LINEAR, "cubic": CUBIC, "dis": DIS, "midslice": ours}
    return EvaluatedCell(kind, (1, 3), "midslice", "0" * 64, methods, confidence, (), (2.4, 2.6))


def rows(*cells: EvaluatedCell, lacking: tuple[CellKind, ...] = ()) -> tuple[Row, ...]:
    return rows_of(cells, lacking, lambda series: f"run: something for {series}")


def missed(*cells: EvaluatedCell) -> list[str]:
    return [row.title for row in rows(*cells) if row.verdict == "missed"]


def kind(anatomy: str, spacing_mm: float, factor: int, mode: Mode = "sub-sampled") -> CellKind:
    gap = round(spacing_mm * factor, 2)
    return CellKind("a", mode, factor, gap, spacing_mm, anatomy, (256, 256), "fold")  # type: ignore[arg-type]


def test_a_cell_with_good_figures_passes_every_row() -> None:
    found = rows(cell())
    assert {row.verdict for row in found} == {"passed"}
    assert is_passed(found)
    assert len(found) == 13


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"over_linear_db": 1.99}, "chest of slices over 2 mm, gap 4 to 5 mm: dB over linear"),
        ({"over_dis_db": 0.39}, "chest: dB over DIS"),
        ({"body_mae_to_linear": -0.17}, "body MAE against linear"),
        ({"below_linear": 0.05}, "share of slices below linear"),
        ({"worst_over_linear_db": -0.31}, "worst slice: dB over linear"),
        ({"notably_below_dis": 0.15}, "share of slices more than 0.3 dB below DIS"),
        ({"body_bias_hu": -4.5}, "bias in the body, HU (2, or the best candidate's + 1)"),
        ({"body_bias_hu": 4.5}, "bias in the body, HU (2, or the best candidate's + 1)"),
        ({"noise_ratio": 0.59}, "noise ratio in flat tissue (0.55, linear's - 0.20)"),
        ({"laa_950_off": 0.0041}, "LAA-950 off the truth (at most linear's)"),
        ({"ms_per_slice": 131.0}, "speed at 2x: ms for a slice of 512 x 512, all included"),
    ],
)
def test_each_figure_is_missed_just_beyond_its_bound(
    changes: dict[str, object], title: str
) -> None:
    assert missed(cell(**changes)) == [title]


@pytest.mark.parametrize(
    ("confidence", "title"),
    [
        (replace(SURE, spearman=0.84), "confidence: Spearman"),
        (replace(SURE, predicted_to_true=0.79), "confidence: predicted / true error"),
        (replace(SURE, predicted_to_true=1.26), "confidence: predicted / true error"),
        (replace(SURE, coverage=0.849), "confidence: coverage of 90 % intervals"),
        (replace(SURE, coverage=0.951), "confidence: coverage of 90 % intervals"),
    ],
)
def test_confidence_is_missed_just_beyond_its_bounds(confidence: Confidence, title: str) -> None:
    assert missed(cell(confidence=confidence)) == [title]


def test_bias_may_be_one_hu_beyond_that_of_the_best_candidate() -> None:
    """The best one is DIS, by its PSNR, with -3.4 HU; linear's -6 and cubic's -0.2 do not count."""
    assert missed(cell(body_bias_hu=-4.3)) == []
    assert len(missed(cell(body_bias_hu=-4.5))) == 1


def test_noise_is_judged_beside_that_of_linear_and_never_below_0_55() -> None:
    noisy = cell(noise_ratio=0.62)
    assert missed(noisy) == []
    methods = dict(noisy.methods) | {"linear": replace(LINEAR, noise_ratio=0.94)}
    assert len(missed(replace(noisy, methods=methods))) == 1
    methods = dict(noisy.methods) | {"linear": replace(LINEAR, noise_ratio=0.60)}
    low = dict(methods) | {"midslice": replace(GOOD, noise_ratio=0.54)}
    assert missed(replace(noisy, methods=methods)) == []
    assert len(missed(replace(noisy, methods=low))) == 1


@pytest.mark.parametrize(
    ("of", "over_linear_db", "due"),
    [
        (kind("chest", 2.5, 2), 1.9, "at least +2.00, aim +2.40"),
        (kind("chest", 2.5, 4), 2.1, "at least +2.20, aim +2.60"),
        (kind("chest", 1.0, 2), 1.1, "at least +1.20, aim +1.60"),
        (kind("chest", 1.25, 2), 1.1, "at least +1.20, aim +1.60"),
        (kind("chest", 0.8, 5), 1.5, "at least +1.60, aim +2.10"),
        (kind("chest", 1.25, 8), 1.3, "at least +1.40, aim +1.90"),
        (kind("chest", 1.0, 4, "slab"), 1.4, "at least +1.50"),
        (kind("head", 1.5, 3, "slab"), 1.4, "at least +1.50"),
    ],
)
def test_gains_due_over_linear_depend_on_gap_and_slices(
    of: CellKind, over_linear_db: float, due: str
) -> None:
    found = [r for r in rows(cell(of, over_linear_db=over_linear_db)) if r.verdict == "missed"]
    assert [row.due for row in found] == [due]


@pytest.mark.parametrize(
    ("factor", "over_dis_db", "due"),
    [(2, 0.29, "+0.30"), (3, 0.29, "+0.30"), (4, 0.29, "+0.30"), (6, 0.19, "+0.20")],
)
def test_heads_are_judged_over_dis(factor: int, over_dis_db: float, due: str) -> None:
    found = [
        row
        for row in rows(cell(kind("head", 1.5, factor), over_dis_db=over_dis_db, over_linear_db=0))
        if row.verdict == "missed"
    ]
    assert len(found) == 1
    assert f"at least {due}" in found[0].due


def test_a_head_left_out_slice_by_slice_has_its_guard_and_nothing_else() -> None:
    left_out = kind("head", 4.0, 2, "left-out")
    (row,) = rows(cell(left_out, over_dis_db=-0.09, below_linear=0.5))
    assert row.verdict == "passed"
    assert missed(cell(left_out, over_dis_db=-0.11)) == ["head, each slice left out: dB over DIS"]


@pytest.mark.parametrize(("factor", "spearman"), [(2, 0.85), (4, 0.65), (8, 0.65)])
def test_ranks_of_confidence_are_harder_at_two_times(factor: int, spearman: float) -> None:
    of = kind("other", 1.0, factor)
    below = cell(of, confidence=replace(SURE, spearman=spearman - 0.01))
    assert missed(below) == ["confidence: Spearman"]
    assert missed(cell(of, confidence=replace(SURE, spearman=spearman))) == []


def test_gaps_that_the_node_holds_are_shown_and_not_judged() -> None:
    wide = replace(CHEST, factor=8, gap_mm=20.0)
    found = rows(cell(wide, over_dis_db=-5.0, noise_ratio=0.1))
    assert [row.title for row in found] == [
        "speed at 8x: ms for a slice of 512 x 512, all included"
    ]


def test_speed_is_due_by_what_the_processor_can_do() -> None:
    (row,) = (row for row in rows(cell()) if row.title.startswith("speed"))
    assert row.due == ("at most 100" if has_fast_bfloat16("cpu") else "at most 130")
    assert row.note.startswith("70 ms of processor time on ")
    smaller = rows(cell(replace(CHEST, size=(256, 256))))
    assert not any(row.title.startswith("speed") for row in smaller)


def test_the_network_is_timed_beside_plain_torch() -> None:
    found = network_speed(rounds=1, side=64)
    assert found.eager_ms > 0.0
    assert found.ours_ms > 0.0
    assert found.least == (2.0 if has_fast_bfloat16("cpu") else 1.25)
    quick = speed_row(NetworkSpeed(eager_ms=found.least * 50.0, ours_ms=50.0))
    slow = speed_row(NetworkSpeed(eager_ms=found.least * 50.0, ours_ms=50.1))
    assert (quick.verdict, slow.verdict) == ("passed", "missed")


def test_a_model_that_says_nothing_of_its_error_does_not_pass() -> None:
    found = rows(cell(confidence=None))
    silent = [row for row in found if row.verdict == "not measured"]
    assert [row.title.split(":")[0] for row in silent] == ["confidence"] * 3
    assert not is_passed(found)


# --- folds ------------------------------------------------------------------------------------


def test_a_cell_without_the_weights_of_its_fold_is_not_measured_and_not_passed() -> None:
    lacking = kind("chest", 1.0, 4)
    found = rows(cell(), lacking=(lacking,))
    absent = [row for row in found if row.cell == lacking.name]
    assert len(absent) == len([bound for bound in BOUNDS if bound.applies(lacking)]) == 12
    assert {row.verdict for row in absent} == {"not measured"}
    assert {row.note for row in absent} == {"run: something for a"}
    assert not is_passed(found)
    assert not_measured(found) == ["not measured (12 figures): run: something for a"]


def test_the_way_to_measure_names_the_patient_and_the_file() -> None:
    folds = Path("var/training/folds")
    assert fold_of(folds, "lidc-0002") == folds / "lidc-0002.safetensors"
    said = how_to_measure("lidc-0002", Path("data"), folds)
    assert said.startswith("run: midslice train data --leave-out lidc-0002 ")
    assert f"--weights {folds / 'lidc-0002.safetensors'}" in said


@pytest.mark.parametrize(
    ("spacing_mm", "anatomy", "expected"),
    [
        (1.0, "chest", [2, 4, 8, "slab 4"]),
        (1.25, "chest", [2, 4, 8, "slab 4"]),
        (0.8, "chest", [3, 5, 10, "slab 5"]),
        (2.5, "chest", [2, 4, "slab 2"]),
        (1.5, "head", [2, 3, 4, 6, "slab 3"]),
        (1.0, "head", [3, 4, 6, 8, "slab 4"]),
        (5.0, "chest", [2]),
        (7.0, "chest", []),
    ],
)
def test_the_factors_of_a_series_are_those_that_make_the_gaps_due(
    spacing_mm: float, anatomy: str, expected: list[object]
) -> None:
    found = [
        f"slab {factor}" if mode == "slab" else factor
        for mode, factor in factors_due(spacing_mm, anatomy)
    ]
    assert found == expected


# --- the table --------------------------------------------------------------------------------


def test_one_line_a_figure_names_the_cell_that_is_worst() -> None:
    other = replace(CHEST, series="chest-b")
    found = summed(rows(cell(), cell(other, over_linear_db=1.5)))
    first = found[0]
    assert (first.passed, first.cells, first.verdict) == (1, 2, "missed")
    assert (first.worst, first.where) == ("+1.50", "chest-b 2x, 5 mm")
    assert {line.verdict for line in found[1:]} == {"passed"}
    assert missed_rows(rows(cell(other, over_linear_db=1.5)))[0][1] == "chest-b 2x, 5 mm"


def test_among_passed_cells_the_one_with_the_least_room_is_shown() -> None:
    found = summed(rows(cell(over_linear_db=2.6), cell(over_linear_db=2.1), cell()))
    assert found[0].worst == "+2.10"


def test_what_is_missed_is_shown_before_what_was_not_measured() -> None:
    found = summed(rows(cell(below_linear=0.5), lacking=(kind("chest", 1.0, 4),)))
    (line,) = (line for line in found if line.title == "share of slices below linear")
    assert (line.verdict, line.passed, line.cells) == ("missed", 0, 2)


def test_gates_that_judged_nothing_do_not_pass() -> None:
    assert not is_passed(())
    assert summed(()) == ()


def test_every_bound_has_a_title_of_its_own_and_a_due_that_can_be_missed() -> None:
    assert len({bound.title for bound in BOUNDS}) == len(BOUNDS)
    bound: Bound
    for bound in BOUNDS:
        due = bound.due_of(cell(), CHEST)
        assert due.least is not None or due.most is not None


def test_a_due_is_kept_at_its_very_bound() -> None:
    both = Due(least=0.8, most=1.25)
    assert both.holds(0.8)
    assert both.holds(1.25)
    assert not both.holds(1.2501)
    assert both.margin(1.2) == pytest.approx(0.05)
    assert both.margin(0.7) == pytest.approx(-0.1)
