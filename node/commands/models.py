"""Commands about models: which there are, how one is made, and how good it is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.commands import terminal
from node.commands.terminal import DEFAULT_CONFIG, AsJson
from node.errors import UsageError

if TYPE_CHECKING:
    from inference.request import ModelSpec
    from node.config import Config

Data = Annotated[Path, typer.Argument(help="A folder of CT series, one folder a patient.")]


def models(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="For models of the site.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Name, version, weights and input of each model."""
    from inference import registry
    from inference.errors import ModelLoadError
    from node.work.models import specs

    takes = {entry.name: entry.takes for entry in registry.registered()}
    found, lacking = [], []
    for spec in specs(settings_or_defaults(config)).values():
        try:
            model = registry.load(spec)
        except ModelLoadError as error:
            lacking.append(str(error))
            continue
        found.append(
            {
                "name": spec.name,
                "version": model.version,
                "weights_sha256": model.weights_sha256,
                "produces": model.produces,
                "takes": takes.get(spec.name, f"what {spec.factory} takes"),
            }
        )
    if as_json:
        terminal.print_json({"models": found, "faults": lacking})
    else:
        columns = ("name", "version", "weights SHA-256", "produces", "takes")
        rows = [tuple(each.values()) for each in found]
        terminal.print_table(columns, rows, empty="No model could be loaded.")
        for fault in lacking:
            terminal.say(fault, style="red")
    if lacking:
        terminal.failed()


def train(
    data: Data,
    minutes: Annotated[float, typer.Option(min=0.0, help="Of processor time.")] = 60.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of --minutes.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 1,
    weights: Annotated[
        Path | None, typer.Option(help="Where to write them; else beside the checkpoint.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="An interrupted training goes on from there.")
    ] = None,
    leave_out: Annotated[
        list[str] | None, typer.Option(help="A patient that is not trained on.")
    ] = None,
) -> None:
    """Train the generator; the same command on a processor and on CUDA."""
    from inference.errors import ModelLoadError
    from inference.registry import choose_device
    from inference.request import ModelSpec
    from inference.training import train as training
    from inference.training.data import NoTrainingData

    plan = training.Plan(
        minutes=minutes, steps=steps, seed=seed, device=choose_device(device, ModelSpec("midslice"))
    )
    with terminal.progress("training", shown=True) as bar:

        def report(now: training.Progress) -> None:
            gain = f"{now.gain_over_linear_db:+.2f} dB over linear"
            bar(round(now.share * 1000), 1000, f"step {now.step}, {gain}")

        try:
            trained = training.train(
                data,
                plan,
                weights=weights or training.WEIGHTS,
                checkpoint=checkpoint or training.CHECKPOINT,
                leave_out=frozenset(leave_out or ()),
                progress=report,
            )
        except (NoTrainingData, ModelLoadError) as error:
            terminal.failed(str(error))
    terminal.print_facts(
        [
            ("weights", trained.weights),
            ("SHA-256", trained.sha256),
            ("patients", ", ".join(trained.patients)),
            ("steps", trained.steps),
            ("processor time", terminal.duration(trained.seconds)),
            ("last gain", f"{trained.last.gain_over_linear_db:+.2f} dB over linear"),
        ]
    )


def evaluate(
    data: Data,
    factor: Annotated[
        str, typer.Option("--factor", metavar="2,4", help="Each from 2 to 10.")
    ] = "2,4",
    model: Annotated[str, typer.Option(metavar="NAME", help="A registered model.")] = "midslice",
    weights: Annotated[Path | None, typer.Option(help="Other weights for it.")] = None,
    slab: Annotated[bool, typer.Option(help="Average slices to the gap first.")] = False,
    targets: Annotated[int, typer.Option(min=1, help="Slices predicted a patient.")] = 20,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "cpu",
    gates: Annotated[bool, typer.Option("--gates", help="Fail where a figure is missed.")] = False,
    as_json: AsJson = False,
) -> None:
    """How well a model predicts slices of thin series that were left out."""
    from inference import registry
    from inference.errors import ModelLoadError
    from inference.model import Limits
    from inference.request import ModelSpec
    from inference.training import evaluate as evaluation
    from inference.training import report
    from inference.training.data import NoTrainingData

    device = registry.choose_device(device, ModelSpec("midslice"))
    with terminal.progress("evaluating", shown=not as_json) as bar:
        try:
            result = evaluation.evaluate(
                data,
                _factors(factor),
                model=registry.load(ModelSpec(model, weights=weights), device),
                mode="slab" if slab else "sub-sampled",
                targets=targets,
                limits=Limits(device=device),
                progress=lambda now: bar(now.done, now.total, f"{now.patient} {now.factor}x"),
            )
        except (NoTrainingData, ModelLoadError) as error:
            terminal.failed(str(error))
    missed = evaluation.gates(result) if gates else []
    if as_json:
        terminal.print_json(result.as_json() | ({"missed": missed} if gates else {}))
    else:
        terminal.print_table(report.COLUMNS, report.rows_of(result), empty="Nothing was judged.")
        for sentence in missed:
            terminal.say(f"missed: {sentence}", style="red")
        if gates and not missed:
            terminal.say("Every figure is reached.", style="green")
    if missed:
        terminal.failed()


def settings_or_defaults(path: Path | None) -> "Config":
    """The named configuration, else ./config.toml where there is one, else the defaults."""
    from node.config import defaults, load

    if path is None and not DEFAULT_CONFIG.is_file():
        return defaults(Path())
    return load(path or DEFAULT_CONFIG)


def spec_of(settings: "Config", name: str) -> "ModelSpec":
    """The model of that name, of the product or of the site."""
    from node.work.models import specs

    known = specs(settings)
    if name not in known:
        raise UsageError(f"unknown model '{name}'; there are: {', '.join(known)}")
    return known[name]


def _factors(text: str) -> tuple[int, ...]:
    factors = tuple(int(part) for part in text.split(",") if part.strip().isdecimal())
    if len(factors) != text.count(",") + 1 or not all(2 <= each <= 10 for each in factors):
        raise UsageError(f"--factor {text}: whole numbers from 2 to 10, as 2,4")
    return factors
