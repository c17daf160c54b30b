"""An evaluation as rows of a table, for the terminal and for the model card."""

from inference.training.evaluate import Cell, Figures, Result

COLUMNS = (
    "patient",
    "factor",
    "gap mm",
    "method",
    "PSNR dB",
    "over linear [worst]",
    "over DIS [worst]",
    "SSIM",
    "body MAE HU",
    "bias HU",
    "below linear",
    "below DIS",
    "ms",
)


def rows_of(result: Result) -> list[tuple[str, ...]]:
    """One row a cell and method, in the order of COLUMNS."""
    return [
        _row(cell, method, figures)
        for cell in result.cells
        for method, figures in cell.methods.items()
    ]


def _row(cell: Cell, method: str, figures: Figures) -> tuple[str, ...]:
    slab = " slab" if cell.mode == "slab" else ""
    return (
        cell.patient,
        f"{cell.factor}x{slab}",
        f"{cell.gap_mm:g}",
        method,
        f"{figures.psnr_db:.2f}",
        f"{figures.over_linear_db:+.2f} [{figures.worst_over_linear_db:+.2f}]",
        f"{figures.over_dis_db:+.2f} [{figures.worst_over_dis_db:+.2f}]",
        f"{figures.ssim:.4f}",
        f"{figures.body_mae_hu:.1f}",
        f"{figures.body_bias_hu:+.1f}",
        f"{figures.below_linear:.0%}",
        f"{figures.below_dis:.0%}",
        f"{figures.ms_per_slice:.0f}",
    )


def markdown(result: Result) -> str:
    """The table as Markdown."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS), *rows_of(result)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
