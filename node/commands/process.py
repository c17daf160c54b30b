"""The model on a folder of files, without network or database: what the node does to a series."""

import secrets
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.commands import terminal
from node.commands.models import settings_or_defaults, spec_of
from node.commands.peers import files_of
from node.commands.terminal import AsJson
from node.errors import UsageError

if TYPE_CHECKING:
    from inference.model import Parameters
    from inference.request import Outcome, Output, Request
    from inference.stacks import Header, Stack
    from node.config import Config

DEFAULT_FACTOR = 2


@dataclass(frozen=True)
class Made:
    """What became of one stack."""

    stack: "Stack"
    folder: Path
    outcome: "Outcome"


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
        str, typer.Option(help='"leave" fills the other gaps where slices are missing.')
    ] = "hold",
    most_gap_mm: Annotated[
        float, typer.Option("--most-gap", metavar="MM", min=0.1, help="A wider gap is held.")
    ] = 12.0,
    hold_below: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="A slice of lower confidence is held.")
    ] = 0.05,
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
    """Run a model on a folder: one derived series a stack, by the same code as in the node."""
    from inference.model import Parameters
    from inference.request import Output
    from inference.stacks import read_headers, stacks_of

    _refuse_wrong_use(factor, target_spacing_mm, across_missing, out)
    if target_spacing_mm is None:
        factor = factor or DEFAULT_FACTOR
    parameters = Parameters(factor, target_spacing_mm)
    output = Output(
        across_missing="leave" if across_missing == "leave" else "hold",
        most_gap_mm=most_gap_mm,
        hold_below=hold_below,
    )
    site = _Site(settings_or_defaults(config), model, parameters, output)
    headers = read_headers(files_of(folder))
    stacks = stacks_of(headers)
    made = _make(stacks, out, site, shown=not as_json)
    if as_json:
        terminal.print_json(_as_json(model, made, headers))
    else:
        _tell(made, headers)
    if not any(_is_made(each) for each in made):
        terminal.failed()


def _refuse_wrong_use(
    factor: int | None, target_spacing_mm: float | None, across_missing: str, out: Path
) -> None:
    """Raise UsageError for what the options cannot say each for itself."""
    if factor is not None and target_spacing_mm is not None:
        raise UsageError("--factor and --target-spacing exclude each other; give one of them")
    if target_spacing_mm is not None and not 0.0 < target_spacing_mm < float("inf"):
        raise UsageError(f"--target-spacing {target_spacing_mm}: a number above 0")
    if across_missing not in {"hold", "leave"}:
        raise UsageError(f"--across-missing {across_missing}: hold or leave")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: is not empty; name a new folder")


class _Site:
    """What is the same for every stack of the folder."""

    def __init__(
        self, settings: "Config", model: str, parameters: "Parameters", output: "Output"
    ) -> None:
        self.spec = spec_of(settings, model)
        self._settings = settings
        self._parameters = parameters
        self._output = output
        self._secret = _secret(settings)
        self._started_at = datetime.now(settings.node.zone).astimezone(settings.node.zone)

    def request(self, stack: "Stack", folder: Path) -> "Request":
        """The same request that the node would hand to a worker."""
        from inference.request import Request, Resources, Source

        return Request(
            sources=tuple(Source(h.path, h.uid, h.order) for h in stack.headers),
            model=self.spec,
            parameters=self._parameters,
            output=self._output,
            folder=folder,
            secret=self._secret,
            started_at=self._started_at,
            station_name=self._settings.node.ae_title,
            resources=Resources(device=self._settings.inference.device),
        )


def _secret(settings: "Config") -> bytes:
    """The site's, so that UIDs are those of the node; without a configuration, one of this run."""
    if not settings.path.is_file():
        return secrets.token_bytes(32)
    from storage.files import Files

    return Files(settings.folder, 0).secret(settings.storage.secret_file)


def _make(stacks: "Sequence[Stack]", out: Path, site: _Site, *, shown: bool) -> list[Made]:
    from inference import pipeline
    from inference.request import Progress, Stopped

    made: list[Made] = []
    stop = threading.Event()
    for number, stack in enumerate(stacks, start=1):
        folder = out if len(stacks) == 1 else out / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        label = f"stack {number} of {len(stacks)}:"
        with terminal.progress(label, shown=shown) as bar:

            def report(progress: Progress) -> None:
                bar(progress.done, progress.total, progress.step)

            outcome = pipeline.process(
                site.request(stack, folder), progress=report, cancelled=stop.is_set
            )
        if isinstance(outcome, Stopped):
            break
        made.append(Made(stack, folder, outcome))
        if not _is_made(made[-1]):
            folder.rmdir()
    return made


def _is_made(made: Made) -> bool:
    from inference.request import Derived

    return isinstance(made.outcome, Derived)


def _tell(made: "Sequence[Made]", headers: "Sequence[Header]") -> None:
    from inference.stacks import set_aside

    if not made:
        terminal.say("There is no DICOM series in this folder.")
    for each in made:
        facts = _outcome(each)
        images = terminal.counted(len(each.stack), "image")
        terminal.say(f"{each.stack.key}: {images}", style="bold")
        for line in facts["lines"] if isinstance(facts["lines"], list) else []:
            terminal.say(f"  {line}")
    aside = Counter((item.reason, item.sentence) for item in set_aside(headers))
    for (reason, sentence), count in sorted(aside.items()):
        files = terminal.counted(count, "file")
        terminal.say(f"set aside: {files}: {reason}: {sentence}", style="dim")


def _as_json(model: str, made: "Sequence[Made]", headers: "Sequence[Header]") -> dict[str, object]:
    from inference.stacks import set_aside

    series = []
    for each in made:
        facts = _outcome(each)
        del facts["lines"]
        uid = each.stack.headers[0].text("SeriesInstanceUID")
        known: dict[str, object] = {"series_uid": uid, "stack": each.stack.key}
        series.append(known | {"slices": len(each.stack)} | facts)
    aside = [
        {"file": str(item.header.path), "reason": item.reason, "sentence": item.sentence}
        for item in set_aside(headers)
    ]
    return {"model": model, "series": series, "set_aside": aside}


def _outcome(made: Made) -> dict[str, object]:
    """How a stack ended, in the words of the queue, and as lines for a person."""
    from inference.request import Derived, Failed, Verdict

    facts: dict[str, object] = {"reason": "", "sentence": "", "derived_series_uid": None}
    match made.outcome:
        case Derived(series_uid, version, files, record):
            generated = sum(file.generated for file in files)
            lines = [
                f"{terminal.counted(len(files), 'instance')}, {generated} of them generated, "
                f"in {made.folder}",
                f"derived series {series_uid}",
                *(f"note: {note}" for note in terminal.listed(record.get("notes"))),
            ]
            facts |= {"state": "succeeded", "derived_series_uid": series_uid, "version": version}
            facts |= {"folder": str(made.folder), "instances": len(files), "generated": generated}
            facts |= {"record": dict(record)}
        case Verdict(reason, sentence, held, record):
            state = "held" if held else "refused"
            lines = [f"{state}: {reason}: {sentence}"]
            facts |= {"state": state, "reason": reason, "sentence": sentence}
            facts |= {"record": dict(record)}
        case Failed(reason, sentence, frames):
            lines = [f"failed: {reason}: {sentence}", frames]
            facts |= {"state": "failed", "reason": reason, "sentence": sentence, "frames": frames}
        case _:
            lines = ["stopped"]
            facts["state"] = "cancelled"
    return facts | {"lines": lines}
