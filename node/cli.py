"""The command `midslice`: assembles the commands and turns errors into one line and a status."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from node.commands import backup, models, node, queue, terminal, tls, top, users
from node.commands.terminal import DEFAULT_CONFIG, AsJson, ConfigFile, opened
from node.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from node.health import Finding


def serve(config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Run the node until SIGTERM; a second SIGTERM stops at once."""
    from node import app, log

    log.configure()
    raise typer.Exit(app.serve(config))


def check(config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Check configuration, ports, disk, database, clock, decoders, models and destinations."""
    from node import check as checking
    from node.config import load

    findings = []
    for finding in checking.run(load(config)):
        findings.append(finding)
        if not as_json:
            _print(finding)
    if as_json:
        terminal.print_json(checking.as_json(findings))
    if not checking.is_ok(findings):
        terminal.failed()


def _print(finding: "Finding") -> None:
    """One line as soon as it is known: an echo that waits does not hide the others."""
    line = Text(f"{finding.level:<8}", style=terminal.COLOURS[finding.level])
    line.append(f"{finding.what}: ", style="bold")
    line.append(finding.sentence)
    if finding.action:
        line.append(f" {finding.action}", style="dim")
    terminal.console().print(line, soft_wrap=True)


def conformance(
    config: ConfigFile = DEFAULT_CONFIG,
    as_html: Annotated[
        bool, typer.Option("--html", help="An HTML file, to open or print.")
    ] = False,
) -> None:
    """The DICOM conformance statement for this configuration, as Markdown or HTML."""
    from node.config import load
    from node.conformance import page, statement

    write = page if as_html else statement
    sys.stdout.write(write(load(config)))


def schema() -> None:
    """The JSON schema of config.toml, for editors that complete its keys and mark mistakes."""
    from node.config.schema import schema

    terminal.print_json(schema())


def events(as_json: AsJson = False) -> None:
    """The events of the log: level, keys and meaning of each."""
    from node.events import EVENTS

    if as_json:
        names = ("event", "level", "keys", "meaning")
        terminal.print_json({"events": [dict(zip(names, event, strict=True)) for event in EVENTS]})
        return
    keys = ("keys", lambda event: ", ".join(event.keys))
    terminal.tabulate(EVENTS, (("event", "name"), "level", keys, "meaning"), empty="")


def reindex(config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Rebuild the index from the archive; nothing that was acknowledged is removed."""
    from node.dicom.handlers import identify_file
    from storage import recovery

    with opened(config) as store:
        called_ae = store.config.node.ae_title
        result = recovery.reindex(store.archive, identify_file, called_ae=called_ae)
    indexed, unreadable, missing = len(result.indexed), result.unreadable, result.missing
    if as_json:
        facts = {"indexed": indexed, "removed": len(result.removed)}
        terminal.print_json(facts | {"unreadable": list(unreadable), "missing": list(missing)})
        return
    terminal.say(f"{indexed} files of the archive were not in the index and are now.")
    for path in unreadable:
        terminal.say(f"unreadable, left where it is: {path}", style="yellow")
    for path in missing:
        terminal.say(f"in the index, but gone from the archive: {path}", style="red")


def demo(
    folder: Annotated[Path, typer.Option(help="For its files and its report.")] = Path("var/demo"),
    model: Annotated[str, typer.Option(help="midslice, linear, or a model of objects.")] = "",
    as_json: AsJson = False,
) -> None:
    """Run a scanner, a node and a PACS on this machine with a real series; write a report."""
    from node.demo import run as demonstration

    settings = demonstration.DemoSettings(model=model)
    if model and model not in settings.models:
        raise UsageError(
            f"no demo of the model {model!r}; there is one of {', '.join(settings.models)}"
        )
    console = terminal.console(stderr=as_json)
    raise typer.Exit(demonstration.run(folder, settings, console, json=as_json))


def _version(asked: bool) -> None:
    if asked:
        from inference.release import RELEASE, build

        terminal.say(f"midslice {RELEASE}, {build()}")
        raise typer.Exit


app = typer.Typer(
    name="midslice",
    help="A DICOM node that makes the slices a CT scanner did not take.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they print local variables, and those may hold a patient
)


@app.callback()
def global_options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print what runs."),
    ] = False,
) -> None:
    """Options before a command."""


for command in (
    node.init,
    serve,
    check,
    node.echo,
    node.send,
    models.process,
    queue.jobs,
    queue.job,
    queue.ledger,
    queue.series,
    top.top,
    queue.requeue,
    queue.cancel,
    queue.redeliver,
    node.prioritise,
    node.process_now,
    node.fetch,
    node.never,
    node.drain,
    node.pause,
    node.allow,
    node.reload,
    node.selftest,
    node.notify,
    models.models,
    conformance,
    schema,
    events,
    backup.backup,
    backup.restore,
    reindex,
    demo,
    models.train,
    models.calibrate,
    models.evaluate,
):
    app.command()(command)
app.add_typer(users.user_commands, name="user")
app.add_typer(users.token_commands, name="token")
app.add_typer(tls.commands, name="tls")

DONE, FAILED, WRONG_USE = 0, 1, 2
# What the parser raises for wrong use; typer names only one kind of it.
ParserError: type[Exception] = typer.BadParameter.__mro__[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: 0 done, 1 the thing asked for failed, 2 wrong use or configuration."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit status."""
    try:
        status = app(list(arguments), prog_name="midslice", standalone_mode=False)
    except ParserError as error:
        return _end(WRONG_USE, _usage(error))
    except (ConfigError, UsageError) as error:
        return _end(WRONG_USE, str(error))
    except (typer.Abort, KeyboardInterrupt):
        return _end(FAILED, "stopped")
    except BrokenPipeError:  # the reader of a pipe, as `head`, has seen enough
        sys.stdout = None
        return FAILED
    except Exception as error:  # noqa: BLE001 - main: the last place that can say it
        return _end(FAILED, _sentence(error))
    return status if isinstance(status, int) else DONE


def _end(status: int, line: str) -> int:
    if line:  # empty where the parser has printed the help already
        sys.stderr.write(f"{line}\n")
    return status


def _usage(error: Exception) -> str:
    """The parser's words on one line, with where to look further."""
    text = getattr(error, "format_message", lambda: str(error))()
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "midslice"
    text = " ".join(text.split()).rstrip(".")
    return f"{command}: {text}; see {command} --help" if text else ""


def _sentence(error: Exception) -> str:
    """Our own errors in their words; of any other what it is and where, without its text."""
    from node import log

    if isinstance(error, log.OUR_ERRORS):
        return f"midslice: {error}"
    where = log.frames(error)
    return f"midslice: {type(error).__name__} at {where[-1] if where else 'an unknown place'}"
