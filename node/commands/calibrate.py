"""The command `calibrate`: what the generator knows beforehand of its weights."""

from pathlib import Path
from typing import Annotated

import typer

from node.commands import terminal

COLUMNS = (
    "patient",
    "factor",
    "slices",
    "gap mm",
    "weights",
    "error HU",
    "expected / true",
    "rank correlation",
    "interval / true",
    "network weight",
)


def calibrate(
    data: Annotated[Path, typer.Argument(help="What the weights were trained on.")],
    weights: Annotated[
        Path | None, typer.Option(help="Other weights than the product's own.")
    ] = None,
    folds: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Weights trained without a patient.")
    ] = None,
) -> None:
    """Fit gate and confidence on patients held out; write them beside the weights."""
    from inference.errors import ModelLoadError
    from inference.training import calibrate as calibration
    from inference.training.data import NoTrainingData

    with terminal.progress("calibrating", shown=True) as bar:

        def report(now: calibration.Progress) -> None:
            bar(now.done, now.total, f"{now.patient} {now.factor}x")

        try:
            _, cells = calibration.calibrate(
                data,
                weights=weights,
                folds=folds,
                progress=report,
            )
        except (NoTrainingData, ModelLoadError) as error:
            terminal.failed(str(error))
    terminal.print_table(COLUMNS, [_row(cell) for cell in cells], empty="No gap was measured.")


def _row(cell: object) -> tuple[object, ...]:
    told = dict(vars(cell))
    told["factor"] = f"{told['factor']}x"
    told["slab"] = "slabs" if told["slab"] else "thin"
    told["held_out"] = "without it" if told["held_out"] else "trained on it"
    return tuple(told.values())
