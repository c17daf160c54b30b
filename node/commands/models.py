"""Commands about models: which there are, and how one is made."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.commands import terminal
from node.commands.terminal import DEFAULT_CONFIG, AsJson
from node.errors import UsageError

if TYPE_CHECKING:
    from inference.request import ModelSpec
    from inference.training.train import Progress, Trained
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
    from node.work.jobs import specs

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
        list[str] | None, typer.Option(help="A patient that is not trained on but measured.")
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Weights to begin from, else from nothing.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-6, max=0.1, help="At its height.")
    ] = None,
    adversarial: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="How hard a PatchGAN pulls beside the loss, as 0.2."),
    ] = 0.0,
) -> None:
    """Train the generator; the same command on a processor and on CUDA."""
    from inference.errors import ModelLoadError
    from inference.registry import choose_device
    from inference.request import ModelSpec
    from inference.training import train as training
    from inference.training.data import NoTrainingData

    plan = training.Plan(
        minutes=minutes,
        steps=steps,
        seed=seed,
        device=choose_device(device, ModelSpec("midslice")),
        start=start,
        learning_rate=learning_rate or training.LEARNING_RATE,
        adversarial=adversarial,
    )
    with terminal.progress("training", shown=True) as bar:
        try:
            trained = training.train(
                data,
                plan,
                weights=weights or training.WEIGHTS,
                checkpoint=checkpoint or training.CHECKPOINT,
                leave_out=frozenset(leave_out or ()),
                progress=lambda now: bar(round(now.share * 1000), 1000, _progress(now)),
            )
        except (NoTrainingData, ModelLoadError) as error:
            terminal.failed(str(error))
    terminal.print_facts(_facts(trained))


def _progress(now: "Progress") -> str:
    gain = f"{now.gain_over_dis_db:+.2f} dB over DIS"
    if now.held_over_dis_db is not None:
        gain += f", {now.held_over_dis_db:+.2f} on the patients left out"
    return f"step {now.step}, {gain}"


def _facts(trained: "Trained") -> list[tuple[str, object]]:
    return [
        ("weights", trained.weights),
        ("SHA-256", trained.sha256),
        ("patients", ", ".join(trained.patients)),
        ("steps", trained.steps),
        ("processor time", terminal.duration(trained.seconds)),
        ("last gain on training patches", _over_dis(trained.last.gain_over_dis_db)),
        ("on the patients left out", _over_dis(trained.last.held_over_dis_db)),
    ]


def _over_dis(gain_db: float | None) -> str:
    return "not measured" if gain_db is None else f"{gain_db:+.2f} dB over DIS"


def settings_or_defaults(path: Path | None) -> "Config":
    """The named configuration, else ./config.toml where there is one, else the defaults."""
    from node.config import defaults, load

    if path is None and not DEFAULT_CONFIG.is_file():
        return defaults(Path())
    return load(path or DEFAULT_CONFIG)


def spec_of(settings: "Config", name: str) -> "ModelSpec":
    """The model of that name, of the product or of the site."""
    from node.work.jobs import specs

    known = specs(settings)
    if name not in known:
        raise UsageError(f"unknown model '{name}'; there are: {', '.join(known)}")
    return known[name]
