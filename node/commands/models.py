"""Commands about models: list, process a folder, train, calibrate, evaluate."""

import json
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from inference.errors import ModelLoadError
from inference.request import (
    PRODUCTS,
    AcrossMissing,
    Derived,
    Failed,
    File,
    Mark,
    ModelSpec,
    Outcome,
    Output,
    Parameters,
    ReportForm,
    Request,
    Resources,
    Source,
    Undersampled,
    Verdict,
)
from inference.training import beside
from inference.training.beside import EvaluationOrder, Report, Table, TrainingOrder
from node import wording
from node.commands import terminal
from node.commands.node import files_of
from node.commands.terminal import DEFAULT_CONFIG, AsJson
from node.errors import UsageError

if TYPE_CHECKING:
    from inference.model import Model
    from inference.stacks import Header, SetAside, Stack
    from inference.training.evaluate import EvaluatedCell
    from inference.training.leave_out import TargetList
    from inference.training.report import Study, StudyRequest
    from inference.training.train import Trained, TrainingProgress
    from node.config import Config


DEFAULT_FACTOR = 2
GENERATOR = "midslice"
PAGE = Path("var/evaluation/index.html")
PEERS = Path("var/training")  # a folder each

Order = TypeVar("Order", TrainingOrder, EvaluationOrder)
Data = Annotated[Path, typer.Argument(help="A folder of CT series, one folder per patient.")]
Folds = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Weights trained without a patient.")
]


def models(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Names further models.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Name, version, weights and input of each model."""
    from inference import registry
    from node.work.jobs import specs

    takes = {entry.name: entry.takes for entry in registry.REGISTERED}
    loaded: list[dict[str, object]] = []
    faults: list[str] = []
    for spec in specs(settings_or_defaults(config)).values():
        try:
            model = registry.load(spec)
        except ModelLoadError as error:
            faults.append(str(error))
            continue
        facts = {name: getattr(model, name) for name in ("version", "weights_sha256", "produces")}
        described = takes.get(spec.name, f"what {spec.factory} takes")
        loaded.append({"name": spec.name, **facts, "takes": described})
    if as_json:
        terminal.print_json({"models": loaded, "faults": faults})
    else:
        heads = ("name", "version", "weights SHA-256", "produces", "takes")
        rows = [tuple(facts.values()) for facts in loaded]
        terminal.print_table(heads, rows, empty="No model could be loaded.")
        for fault in faults:
            terminal.say(fault, style="red")
    if faults:
        terminal.failed()


def train(
    data: Data,
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="NAME", help=f"{GENERATOR} or {', '.join(beside.TRAINERS)}."
        ),
    ] = GENERATOR,
    minutes: Annotated[float, typer.Option(min=0.0, help="Of CPU time.")] = 60.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of --minutes.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 1,
    weights: Annotated[
        Path | None, typer.Option(help="Where to write them; else beside the checkpoint.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Continue an interrupted training from there.")
    ] = None,
    leave_out: Annotated[
        list[str] | None, typer.Option(help="A patient to measure on, not to train on.")
    ] = None,
    start: Annotated[Path | None, typer.Option(help="Weights to begin with; else none.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-6, max=0.1, help="At its peak.")
    ] = None,
    adversarial: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="How hard a PatchGAN pulls beside the loss, as 0.2."),
    ] = 0.0,
    folds: Annotated[
        int | None,
        typer.Option(min=0, help="Of other models: trainings without a patient, else all."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Of other models: for all they write.")
    ] = None,
) -> None:
    """Train a model, on the CPU or with CUDA."""
    from inference.registry import choose_device
    from inference.training import train as training

    if model != GENERATOR:
        folder = out or Path("var/training") / model
        order = TrainingOrder(data, folder, minutes, steps, seed, _device(device), folds)
        _tabulate("training", _trainer(model), order)
        return

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
        trained = training.train(
            data,
            plan,
            weights=weights or training.WEIGHTS,
            checkpoint=checkpoint or training.CHECKPOINT,
            leave_out=frozenset(leave_out or ()),
            progress=lambda now: bar(round(now.share * 1000), 1000, _progress(now)),
        )
    terminal.print_facts(_facts(trained))


def _trainer(model: str) -> Callable[[TrainingOrder, Report], Table]:
    if model not in beside.TRAINERS:
        known = ", ".join((GENERATOR, *beside.TRAINERS))
        raise UsageError(f"--model {model}: cannot be trained; known: {known}")
    return beside.trainer(model)


def _device(wanted: str) -> str:
    from inference.registry import choose_device

    return choose_device(wanted, ModelSpec(GENERATOR))


def _tabulate(
    words: str, work: Callable[[Order, Report], Table], order: Order, *, as_json: bool = False
) -> None:
    """Do the work of a model beside the generator, and print its table."""
    with terminal.progress(words, shown=not as_json) as bar:
        table = work(order, lambda share, what: bar(round(share * 1000), 1000, what))
    if as_json:
        terminal.print_json(table.record)
        return
    terminal.print_table(table.columns, table.rows, empty="Nothing was judged.")
    for note in table.notes:
        terminal.say(note, style="dim")
    terminal.say(f"more in {order.out}")


def _progress(now: "TrainingProgress") -> str:
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
        ("processor time", wording.duration(trained.seconds)),
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


def process(
    folder: Annotated[Path, typer.Argument(help="A folder of Part 10 files.")],
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="See `midslice models`.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="For the result; new or empty.")
    ],
    factor: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, max=10, help="Slices out per slice in; 2 by default."),
    ] = None,
    target_spacing_mm: Annotated[
        float | None,
        typer.Option("--target-spacing", metavar="MM", help="Instead of --factor."),
    ] = None,
    across_missing: Annotated[
        AcrossMissing,
        typer.Option(help="leave: the other gaps are filled where slices are missing."),
    ] = Output.across_missing,
    most_gap_mm: Annotated[
        float, typer.Option("--most-gap", metavar="MM", min=0.1, help="Hold what has a wider gap.")
    ] = Output.most_gap_mm,
    undersampled: Annotated[
        Undersampled,
        typer.Option(help="hold: where gaps are over twice as wide as the slices are thick."),
    ] = Output.undersampled,
    hold_below: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Hold what has a slice of lower confidence.")
    ] = Output.hold_below,
    presentation_state: Annotated[
        bool,
        typer.Option("--presentation-state", help="Write one beside the slices, as a route does."),
    ] = False,
    error_map: Annotated[
        bool, typer.Option("--error-map", help="Write the map of the expected error beside them.")
    ] = False,
    accept_children: Annotated[
        bool, typer.Option("--accept-children", help="By a model whose scope is adults.")
    ] = False,
    max_findings: Annotated[
        int, typer.Option(metavar="N", min=1, max=100, help="Of the highest scores, in a report.")
    ] = Output.max_findings,
    report: Annotated[
        ReportForm,
        typer.Option(help="Of findings: on their segments, or on outlines in slices."),
    ] = Output.report,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="For models of the site, device and secret; ./config.toml where there is one.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a model on a folder: the results of each stack, with the same code as the node."""
    from inference.stacks import read_headers, set_aside, stacks_of

    _refuse_wrong_use(factor, target_spacing_mm, out)
    output = Output(
        across_missing=across_missing,
        most_gap_mm=most_gap_mm,
        undersampled=undersampled,
        hold_below=hold_below,
        presentation_state=presentation_state,
        error_map=error_map,
        accept_children=accept_children,
        max_findings=max_findings,
        report=report,
    )
    asked = Parameters(factor, target_spacing_mm)
    request = _request(settings_or_defaults(config), model, asked, output, out)
    headers = read_headers(files_of(folder))
    ends = _process_each(stacks_of(headers), request, shown=not as_json)
    aside = set_aside(headers)
    if as_json:
        files = [
            {"file": str(item.header.path), "reason": item.reason, "sentence": item.sentence}
            for item in aside
        ]
        series = [_as_json(end) for end in ends]
        terminal.print_json({"model": model, "series": series, "set_aside": files})
    else:
        _print_ends(ends, aside)
    if not any(end.is_derived for end in ends):
        terminal.failed()


def _refuse_wrong_use(factor: int | None, target_spacing_mm: float | None, out: Path) -> None:
    """Raise UsageError for what the options cannot say each for itself."""
    if factor is not None and target_spacing_mm is not None:
        raise UsageError("--factor and --target-spacing exclude each other; give one of them")
    if target_spacing_mm is not None and not 0.0 < target_spacing_mm < float("inf"):
        raise UsageError(f"--target-spacing {target_spacing_mm}: a number above 0")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: is not empty; name a new folder")


def _request(
    settings: "Config", model: str, parameters: Parameters, output: Output, out: Path
) -> Request:
    """The request that the node too would hand to a worker, as yet without a stack."""
    from node.work.jobs import specs

    known = specs(settings)
    if model not in known:
        raise UsageError(f"unknown model '{model}'; there are: {', '.join(known)}")
    makes, is_asked = known[model].produces, parameters != Parameters()
    if makes != "slices" and is_asked:
        made = PRODUCTS[makes]
        raise UsageError(f"--factor and --target-spacing: {model} makes {made}, not slices")
    if makes == "slices" and not is_asked:
        parameters = Parameters(DEFAULT_FACTOR)
    return Request(
        sources=(),
        model=known[model],
        parameters=parameters,
        output=output,
        folder=out,
        secret=_secret(settings),
        started_at=datetime.now(settings.node.zone).astimezone(settings.node.zone),
        station_name=settings.node.ae_title,
        resources=Resources(device=settings.inference.device),
    )


def _secret(settings: "Config") -> bytes:
    """The site's, so that UIDs are those of the node; without a configuration, one of this run."""
    if not settings.path.is_file():
        return secrets.token_bytes(32)
    from storage.files import Files

    return Files(settings.folder, 0).secret(settings.storage.secret_file)


@dataclass(frozen=True)
class StackEnd:
    """The end of one stack."""

    stack: "Stack"
    folder: Path
    outcome: Outcome

    @property
    def is_derived(self) -> bool:
        return isinstance(self.outcome, Derived)


def _process_each(
    stacks: "Sequence[Stack]", request: Request, *, shown: bool
) -> Sequence[StackEnd]:
    """One result in the folder of the request, each of several in a folder of its own there."""
    from inference import pipeline

    ends: list[StackEnd] = []
    for number, stack in enumerate(stacks, start=1):
        folder = request.folder if len(stacks) == 1 else request.folder / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        series_uid = stack.headers[0].text("SeriesInstanceUID")
        before = [end.stack.headers[0].text("SeriesInstanceUID") for end in ends]
        label = f"stack {number} of {len(stacks)}:"
        with terminal.progress(label, shown=shown) as bar:
            of_stack = replace(
                request,
                sources=_sources(stack.headers),
                beside=_sources(stack.beside),
                folder=folder,
                output=replace(request.output, label=stack.label),
                mark=Mark(place=before.count(series_uid)),
            )
            outcome = pipeline.process(
                of_stack,
                progress=lambda now: bar(now.done, now.total, now.step),
                cancelled=lambda: False,
            )
        ends.append(StackEnd(stack, folder, outcome))
        if not ends[-1].is_derived:
            folder.rmdir()
    return ends


def _sources(headers: "Sequence[Header]") -> tuple[Source, ...]:
    return tuple(Source(header.path, header.uid, header.order) for header in headers)


def _print_ends(ends: Sequence[StackEnd], aside: "Sequence[SetAside]") -> None:
    if not ends:
        terminal.say("There is no DICOM series in this folder.")
    for end in ends:
        images = wording.count(len(end.stack), "image")
        terminal.say(f"{end.stack.key}: {images}", style="bold")
        for line in _lines(end):
            terminal.say(f"  {line}")
    counts = Counter((item.reason, item.sentence) for item in aside)
    for (reason, sentence), count in sorted(counts.items()):
        files = wording.count(count, "file")
        terminal.say(f"set aside: {files}: {reason}: {sentence}", style="dim")


def _lines(end: StackEnd) -> list[str]:
    match end.outcome:
        case Derived(series_uid, _, files, record):
            return [
                f"{_counted(files, record)}, in {end.folder}",
                f"derived series {series_uid}",
                *_confidence(record),
                *(f"note: {note}" for note in terminal.texts(record.get("notes"))),
            ]
        case Verdict(reason, sentence, is_held):
            return [f"{'held' if is_held else 'refused'}: {reason}: {sentence}"]
        case Failed(reason, sentence, frames):
            return [f"failed: {reason}: {sentence}", frames]
    return ["stopped"]


def _counted(files: Sequence[File], record: Mapping[str, Any]) -> str:
    instances = wording.count(len(files), "instance")
    if result := wording.result(record):
        return f"{instances}, {result}"
    return f"{instances}, {sum(file.generated for file in files)} of them generated"


def _confidence(record: Mapping[str, Any]) -> list[str]:
    """One line on how many slices are sure, fair and so on, where the record says it."""
    counts = wording.confidence(record.get("confidence_counts") or {})
    return [f"generated slices: {counts}"] if counts else []


def _as_json(end: StackEnd) -> dict[str, object]:
    """The end of a stack in the words of the queue."""
    facts: dict[str, object] = {
        "series_uid": end.stack.headers[0].text("SeriesInstanceUID"),
        "stack": end.stack.key,
        "slices": len(end.stack),
        "reason": "",
        "sentence": "",
        "derived_series_uid": None,
    }
    match end.outcome:
        case Derived(series_uid, version, files, record):
            facts |= {"derived_series_uid": series_uid, "state": "succeeded", "version": version}
            facts |= {"folder": str(end.folder), "instances": len(files)}
            facts |= {"generated": sum(file.generated for file in files), "record": dict(record)}
        case Verdict(reason, sentence, is_held, record):
            facts |= {"reason": reason, "sentence": sentence}
            facts |= {"state": "held" if is_held else "refused", "record": dict(record)}
        case Failed(reason, sentence, frames):
            facts |= {"reason": reason, "sentence": sentence, "state": "failed", "frames": frames}
        case _:
            facts["state"] = "cancelled"
    return facts


def calibrate(
    data: Annotated[Path, typer.Argument(help="What the weights were trained on.")],
    weights: Annotated[
        Path | None, typer.Option(help="Other weights than the product's own.")
    ] = None,
    folds: Folds = None,
) -> None:
    """Fit gate and confidence on held-out patients; write them beside the weights."""
    from inference.training import calibrate as calibration

    with terminal.progress("calibrating", shown=True) as bar:
        _, cells = calibration.calibrate(data, weights=weights, folds=folds, progress=bar)
    terminal.tabulate(
        cells,
        (
            "patient",
            ("factor", lambda cell: f"{cell.factor}x"),
            ("slices", lambda cell: "slabs" if cell.slab else "thin"),
            ("gap mm", "gap_mm"),
            ("weights", lambda cell: "without it" if cell.held_out else "trained on it"),
            ("error HU", "mean_error_hu"),
            ("expected / true", "expected_over_true"),
            "rank_correlation",
            ("interval / true", "interval_over_true"),
            "network_weight",
        ),
        empty="No gap was measured.",
    )


def evaluate(
    data: Annotated[
        Path,
        typer.Argument(help="A folder of thin CT series, one folder a patient; or volume.npz."),
    ],
    factor: Annotated[
        str, typer.Option("--factor", metavar="2,4,8", help="Each from 2 to 10.")
    ] = "2,4",
    model: Annotated[
        str,
        typer.Option(metavar="NAME", help=f"A registered one or {', '.join(beside.JUDGES)}."),
    ] = GENERATOR,
    weights: Annotated[Path | None, typer.Option(help="Other weights for it.")] = None,
    slab: Annotated[
        bool, typer.Option("--slab", help="Also with slices averaged to their gap first.")
    ] = False,
    targets: Annotated[int, typer.Option(min=1, help="Slices predicted per series.")] = 20,
    target_list: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Slices to predict, else the product's own.")
    ] = None,
    draw_targets: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write such a list, evaluate nothing.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "cpu",
    gates: Annotated[
        bool, typer.Option("--gates", help="Exit with 1 where a required figure is missed.")
    ] = False,
    methods: Annotated[
        bool, typer.Option("--methods", help="Beside networks that were trained to compare with.")
    ] = False,
    peers: Annotated[
        Path, typer.Option(metavar="FOLDER", help="These, as `midslice train` left them.")
    ] = PEERS,
    folds: Folds = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page with pictures.")] = PAGE,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Write it.")] = True,
    card: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the tables as Markdown too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model on what was left out: slices of thin series, or whole patients."""
    if model in beside.JUDGES:
        folder = out if out != PAGE else PAGE.parent / model
        order = EvaluationOrder(model, data, folder, weights, folds, _device(device))
        _tabulate("evaluating", beside.judge(model), order, as_json=as_json)
        return
    from inference.training import report
    from inference.training.gates import FOLDS

    wanted = report.StudyRequest(
        data=data,
        factors=_factors(factor),
        slab=slab,
        gates=gates,
        targets=targets,
        weights=weights,
        folds=folds or FOLDS,
        pictures=page,
        peers=peers if methods else None,
    )
    if draw_targets is not None:
        _draw(wanted, draw_targets)
        return
    study = _study(wanted, _read_targets(target_list), model, device, quiet=as_json)
    if page:
        _write(report.page_of(study), out, "--out")
    if card is not None:
        _write(report.card(study.cells, study.rows), card, "--card")
    if as_json:
        terminal.print_json(study.as_json())
    else:
        _print_study(study, out if page else None)
    if gates:
        _fail_where_missed(study, quiet=as_json)


def _study(
    wanted: "StudyRequest", targets: "TargetList", name: str, device: str, *, quiet: bool
) -> "Study":
    from inference import registry
    from inference.model import Limits
    from inference.training import report

    device = registry.choose_device(device, ModelSpec(name))

    def load(other: Path | None) -> "Model":
        return registry.load(ModelSpec(name, weights=other or wanted.weights), device)

    with terminal.progress("evaluating", shown=not quiet) as bar:
        return report.run(wanted, load, targets, limits=Limits(device=device), progress=bar)


def _read_targets(path: Path | None) -> "TargetList":
    from inference.training.leave_out import COMMITTED, read_list

    try:
        return read_list(path or COMMITTED)
    except OSError as error:
        raise UsageError(f"--target-list {path}: {error.strerror}") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UsageError(
            f"--target-list {path}: no list as --draw-targets writes it ({error!r})"
        ) from error


def _draw(wanted: "StudyRequest", path: Path) -> None:
    from inference.training.leave_out import write_list
    from inference.training.report import list_of

    cells = list_of(wanted)
    write_list(cells, path)
    terminal.say(f"{wording.count(len(cells), 'cell')} in {path}")


def _write(text: str, path: Path, option: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        terminal.failed(f"{option} {path}: {error.strerror}")


def _print_study(study: "Study", page: Path | None) -> None:
    from inference.training import report

    cells = study.cells
    for cell in cells:
        rows = [row[2:] for row in report.table_rows([cell])]
        terminal.print_table(report.COLUMNS[2:], rows, empty="", title=cell.kind.title)
    terminal.say(report.LEGEND, style="dim")
    _print_reader(cells)
    if confidence := report.confidence_rows(cells):
        terminal.print_table(report.CONFIDENCE_COLUMNS, confidence, empty="", title="Confidence")
    _print_map(cells)
    for series in study.passed_over:
        terminal.say(f"passed over: {series.name}: {series.sentence}", style="yellow")
    if page is not None:
        terminal.say(f"with pictures: {page}")


def _print_map(cells: "Sequence[EvaluatedCell]") -> None:
    from inference.training import report

    if reliable := report.reliability_rows(cells):
        title = "Map of the expected error"
        terminal.print_table(report.RELIABILITY_COLUMNS, reliable, empty="", title=title)
    if bounded := report.bounds_rows(cells):
        title = "Bounds of the map"
        terminal.print_table(report.BOUNDS_COLUMNS, bounded, empty="", title=title)


def _print_reader(cells: "Sequence[EvaluatedCell]") -> None:
    from inference.training import report

    if read := report.reader_rows(cells):
        title = "What a reader looks at"
        terminal.print_table(report.READER_COLUMNS, read, empty="", title=title)
        terminal.say(report.READER_LEGEND, style="dim")
        for sentence in report.worse_sentences(cells):
            terminal.say(sentence)
    if trained := report.peer_rows(cells):
        terminal.print_table(report.PEER_COLUMNS, trained, empty="", title="Trained peers")


def _fail_where_missed(study: "Study", *, quiet: bool) -> None:
    from inference.training import gates, report

    passed = gates.is_passed(study.rows)
    if not quiet:
        rows = report.gate_rows(gates.summed(study.rows))
        nothing = "No cell has a gap or an anatomy for which a figure is required."
        terminal.print_table(report.GATE_COLUMNS, rows, empty=nothing)
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
    if len(factors) != text.count(",") + 1 or not all(2 <= number <= 10 for number in factors):
        raise UsageError(f"--factor {text}: whole numbers from 2 to 10, as 2,4")
    return factors
