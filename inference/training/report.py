"""An evaluation as rows of tables, for the terminal, the page and the model card."""

from collections.abc import Sequence

from inference.training.evaluate import SHIPPED, Cell
from inference.training.gates import Row, Summed, summed
from inference.training.methods import DIS, LINEAR
from inference.training.summary import Figures

COLUMNS = (
    "series",
    "cell",
    "method",
    "PSNR dB",
    "over linear [worst]",
    "95 %",
    "over DIS [worst]",
    "SSIM",
    "soft dB SSIM",
    "body MAE",
    "edge MAE",
    "gradient",
    "noise",
    "SNLI",
    "bias",
    "LAA (off)",
    "below linear",
    "below DIS",
    "ms (CPU)",
)
OVERVIEW_COLUMNS = (
    "cell",
    "weights",
    "DIS over linear",
    "over linear [worst]",
    "95 %",
    "over DIS [worst]",
    "body MAE",
    "bias",
    "noise (linear)",
    "LAA off (linear)",
    "Spearman",
    "predicted / true",
    "90 % covers",
)
CONFIDENCE_COLUMNS = ("cell", "Spearman", "predicted / true", "90 % covers", "least", "mean")
GATE_COLUMNS = ("figure", "due", "worst", "in", "passed", "verdict")
MISSED_COLUMNS = ("missed", "in", "figure", "due", "note")
LEGEND = (
    "PSNR and SSIM in -1024..2048 HU, soft in -160..240; MAE and bias in HU, in the body, on "
    "its edges; gradient, noise: of edges and flat tissue, over the truth's; SNLI: change of noise "
    "to the slices beside; LAA: share of lung below -950 HU, in brackets how far from the truth's; "
    "below: share of slices, in brackets by more than 0.3 dB; ms: of a slice, surveys included, "
    "in brackets the processor time of all cores"
)


def rows_of(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """One row a cell and method, in the order of COLUMNS."""
    return [_row(cell, method, it) for cell in cells for method, it in cell.methods.items()]


def _row(cell: Cell, method: str, it: Figures) -> tuple[str, ...]:
    low, high = it.over_linear_interval_db
    return (
        cell.kind.series,
        _cell_name(cell),
        method,
        f"{it.psnr_db:.2f}",
        f"{it.over_linear_db:+.2f} [{it.worst_over_linear_db:+.2f}]",
        f"{low:+.2f} {high:+.2f}",
        f"{it.over_dis_db:+.2f} [{it.worst_over_dis_db:+.2f}]",
        f"{it.ssim:.4f}",
        f"{it.psnr_soft_db:.2f} {it.ssim_soft:.3f}",
        f"{it.body_mae_hu:.1f}",
        _number(it.edge_mae_hu, ".1f"),
        _number(it.gradient_ratio, ".2f"),
        _number(it.noise_ratio, ".2f"),
        _number(it.noise_step, ".2f"),
        f"{it.body_bias_hu:+.1f}",
        f"{_number(it.laa_950, '.1%')} ({_number(it.laa_950_off, '.1%')})",
        f"{it.below_linear:.0%} ({it.notably_below_linear:.0%})",
        f"{it.below_dis:.0%} ({it.notably_below_dis:.0%})",
        f"{it.ms_per_slice:.0f} ({it.cpu_ms_per_slice:.0f})",
    )


def _cell_name(cell: Cell) -> str:
    kind = cell.kind
    if kind.mode == "left-out":
        return f"left out, {kind.gap_mm:g} mm"
    return f"{kind.factor}x{' slab' * (kind.mode == 'slab')}, {kind.gap_mm:g} mm"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def overview_rows(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """One row a cell, of the model alone beside linear and DIS."""
    return [_overview(cell) for cell in cells]


def _overview(cell: Cell) -> tuple[str, ...]:
    it, linear, sure = cell.ours, cell.methods[LINEAR], cell.confidence
    low, high = it.over_linear_interval_db
    laa = f"{_number(it.laa_950_off, '.2%')} ({_number(linear.laa_950_off, '.2%')})"
    return (
        cell.kind.name,
        cell.kind.weights,
        f"{cell.methods[DIS].over_linear_db:+.2f}",
        f"{it.over_linear_db:+.2f} [{it.worst_over_linear_db:+.2f}]",
        f"{low:+.2f} {high:+.2f}",
        f"{it.over_dis_db:+.2f} [{it.worst_over_dis_db:+.2f}]",
        f"{it.body_mae_to_linear:+.0%}",
        f"{it.body_bias_hu:+.1f}",
        f"{_number(it.noise_ratio, '.2f')} ({_number(linear.noise_ratio, '.2f')})",
        laa if cell.kind.anatomy == "chest" else "",  # a sinus is no lung
        _number(sure.spearman if sure else None, ".2f"),
        _number(sure.predicted_to_true if sure else None, ".2f"),
        _number(sure.coverage if sure else None, ".0%"),
    )


def confidence_rows(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """One row a cell of a model that says how sure it is."""
    return [
        (
            cell.kind.name,
            _number(it.spearman, ".2f"),
            f"{it.predicted_to_true:.2f}",
            _number(it.coverage, ".1%"),
            f"{it.least:.2f}",
            f"{it.mean:.2f}",
        )
        for cell in cells
        if (it := cell.confidence) is not None
    ]


def gate_rows(summed: Sequence[Summed]) -> list[tuple[str, ...]]:
    """One row a figure, over all its cells."""
    return [
        (each.title, each.due, each.worst, each.where, f"{each.passed}/{each.cells}", each.verdict)
        for each in summed
    ]


def missed_rows(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """One row a cell that missed a figure."""
    return [
        (row.title, row.cell, row.figure, row.due, row.note)
        for row in rows
        if row.verdict == "missed"
    ]


def not_measured(rows: Sequence[Row]) -> list[str]:
    """One sentence for each way to measure what was not."""
    count: dict[str, int] = {}
    for row in rows:
        if row.verdict == "not measured":
            count[row.note] = count.get(row.note, 0) + 1
    return [f"not measured ({times} figures): {note}" for note, times in count.items()]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def card(cells: Sequence[Cell], rows: Sequence[Row]) -> str:
    """What a model card needs, as Markdown: every cell in a row, every figure that is due, and all
    methods on the cells of the shipped weights."""
    shipped = [cell for cell in cells if cell.kind.weights.startswith(SHIPPED)]
    parts = [markdown(OVERVIEW_COLUMNS, overview_rows(cells))]
    if rows:
        parts.append(markdown(GATE_COLUMNS, gate_rows(summed(rows))))
    if missed := missed_rows(rows):
        parts.append(markdown(MISSED_COLUMNS, missed))
    parts += [f"{sentence}\n" for sentence in not_measured(rows)]
    parts += [markdown(COLUMNS, rows_of(shipped)), f"{LEGEND}.\n"]
    return "\n".join(parts)
