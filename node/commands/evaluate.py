"""The command `evaluate`: how good a model is on thin series, one's own or the product's."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.commands import terminal
from node.commands.terminal import AsJson
from node.errors import UsageError

if TYPE_CHECKING:
    from inference.model import Model
    from inference.training.evaluate import EvaluationProgress, TargetList
    from inference.training.report import Study, Wanted

PAGE = Path("var/evaluation/index.html")


def evaluate(
    data: Annotated[
        Path,
        typer.Argument(help="A folder of thin CT series, one folder a patient; or volume.npz."),
    ],
    factor: Annotated[
        str, typer.Option("--factor", metavar="2,4,8", help="Each from 2 to 10.")
    ] = "2,4",
    model: Annotated[str, typer.Option(metavar="NAME", help="A registered model.")] = "midslice",
    weights: Annotated[Path | None, typer.Option(help="Other weights for it.")] = None,
    slab: Annotated[
        bool, typer.Option("--slab", help="Also with slices averaged to their gap first.")
    ] = False,
    targets: Annotated[int, typer.Option(min=1, help="Slices predicted a series.")] = 20,
    target_list: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Slices to predict, else the product's own.")
    ] = None,
    draw_targets: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write such a list, evaluate nothing.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "cpu",
    gates: Annotated[
        bool, typer.Option("--gates", help="Every figure due; fail where one is missed.")
    ] = False,
    folds: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Weights trained without a patient.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page with pictures.")] = PAGE,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Write it.")] = True,
    card: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the tables as Markdown too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """How well a model predicts slices of thin series that were left out."""
    from inference.training.gates import FOLDS
    from inference.training.report import Wanted

    wanted = Wanted(
        data=data,
        factors=_factors(factor),
        slab=slab,
        gates=gates,
        targets=targets,
        weights=weights,
        folds=folds or FOLDS,
        pictures=page,
    )
    if draw_targets is not None:
        _draw(wanted, draw_targets)
        return
    study = _study(wanted, _listed(target_list), model, device, quiet=as_json)
    if page:
        _write(_page_of(study), out, "--out")
    if card is not None:
        _write(_card_of(study), card, "--card")
    if as_json:
        terminal.print_json(study.as_json())
    else:
        _say(study, out if page else None)
    if gates:
        _fail_where_missed(study, quiet=as_json)


def _study(
    wanted: "Wanted",
    listed: "TargetList",
    name: str,
    device: str,
    *,
    quiet: bool,
) -> "Study":
    from inference import registry
    from inference.errors import ModelLoadError
    from inference.model import Limits
    from inference.request import ModelSpec
    from inference.training import report
    from inference.training.data import NothingToJudge

    device = registry.choose_device(device, ModelSpec(name))

    def load(other: Path | None) -> "Model":
        return registry.load(ModelSpec(name, weights=other or wanted.weights), device)

    with terminal.progress("evaluating", shown=not quiet) as bar:

        def progress(now: "EvaluationProgress") -> None:
            bar(now.done, now.total, now.what)

        try:
            return report.run(wanted, load, listed, limits=Limits(device=device), progress=progress)
        except (NothingToJudge, ModelLoadError) as error:
            terminal.failed(str(error))


def _listed(path: Path | None) -> "TargetList":
    from inference.training.evaluate import COMMITTED, read_list

    try:
        return read_list(path or COMMITTED)
    except OSError as error:
        raise UsageError(f"--target-list {path}: {error.strerror}") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UsageError(
            f"--target-list {path}: no list as --draw-targets writes it ({error!r})"
        ) from error


def _draw(wanted: "Wanted", path: Path) -> None:
    from inference.training.data import NothingToJudge
    from inference.training.evaluate import write_list
    from inference.training.report import list_of

    try:
        found = list_of(wanted)
    except NothingToJudge as error:
        terminal.failed(str(error))
    write_list(found, path)
    terminal.say(f"{terminal.counted(len(found), 'cell')} in {path}")


def _page_of(study: "Study") -> str:
    from inference.training.report import page_of

    return page_of(study)


def _card_of(study: "Study") -> str:
    from inference.training import report

    return report.card(study.cells, study.rows)


def _write(text: str, path: Path, option: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        terminal.failed(f"{option} {path}: {error.strerror}")


def _say(study: "Study", page: Path | None) -> None:
    from inference.training import report

    cells = study.cells
    for cell in cells:
        rows = [row[2:] for row in report.table_rows([cell])]
        terminal.print_table(report.COLUMNS[2:], rows, empty="", title=cell.kind.title)
    terminal.say(report.LEGEND, style="dim")
    if sure := report.confidence_rows(cells):
        terminal.print_table(report.CONFIDENCE_COLUMNS, sure, empty="", title="Confidence")
    for each in study.passed_over:
        terminal.say(f"passed over: {each.name}: {each.sentence}", style="yellow")
    if page is not None:
        terminal.say(f"with pictures: {page}")


def _fail_where_missed(study: "Study", *, quiet: bool) -> None:
    from inference.training import gates, report

    passed = gates.is_passed(study.rows)
    if not quiet:
        found = gates.summed(study.rows)
        nothing = "No cell has a gap or an anatomy for which a figure is due."
        terminal.print_table(report.GATE_COLUMNS, report.gate_rows(found), empty=nothing)
        if missed := report.missed_rows(study.rows):
            terminal.print_table(report.MISSED_COLUMNS, missed, empty="")
        for sentence in report.not_measured(study.rows):
            terminal.say(sentence, style="yellow")
        if passed:
            terminal.say("Every figure is reached.", style="green")
    if not passed:
        terminal.failed()


def _factors(text: str) -> tuple[int, ...]:
    factors = tuple(int(part) for part in text.split(",") if part.strip().isdecimal())
    if len(factors) != text.count(",") + 1 or not all(2 <= each <= 10 for each in factors):
        raise UsageError(f"--factor {text}: whole numbers from 2 to 10, as 2,4")
    return factors
