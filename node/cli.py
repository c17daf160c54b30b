"""The command `midslice`: assembles the commands and turns errors into one line and a status."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from node.commands import (
    archive,
    asking,
    calibrate,
    evaluate,
    models,
    operate,
    peers,
    process,
    queue,
    serve,
    site,
    top,
    users,
)
from node.commands.terminal import AsJson
from node.errors import ConfigError, UsageError

DONE, FAILED, WRONG_USE = 0, 1, 2


def demo(
    folder: Annotated[Path, typer.Option(help="For its files and its report.")] = Path("var/demo"),
    as_json: AsJson = False,
) -> None:
    """A scanner, a node and a PACS on a real CT series, on this machine, with a report."""
    from node.demo import run

    raise typer.Exit(run.main(folder, json=as_json))


app = typer.Typer(
    name="midslice",
    help="A DICOM node that makes the slices a CT scanner did not take.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they print local variables, and those may hold a patient
)
for command in (
    serve.serve,
    site.check,
    peers.echo,
    peers.send,
    process.process,
    queue.jobs,
    queue.job,
    queue.series,
    top.top,
    operate.requeue,
    operate.cancel,
    operate.redeliver,
    asking.prioritise,
    asking.process_now,
    asking.never,
    asking.drain,
    asking.pause,
    asking.allow,
    asking.reload,
    asking.selftest,
    asking.notify,
    models.models,
    site.conformance,
    site.events,
    archive.reindex,
    demo,
    models.train,
    calibrate.calibrate,
    evaluate.evaluate,
):
    app.command()(command)
app.add_typer(users.people, name="user")
app.add_typer(users.programs, name="token")

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
        return _said(WRONG_USE, _usage(error))
    except (ConfigError, UsageError) as error:
        return _said(WRONG_USE, str(error))
    except (typer.Abort, KeyboardInterrupt):
        return _said(FAILED, "stopped")
    except BrokenPipeError:  # the reader of a pipe, as `head`, has seen enough
        sys.stdout = None
        return FAILED
    except Exception as error:  # noqa: BLE001 - main: the last place that can say it
        return _said(FAILED, _sentence(error))
    return status if isinstance(status, int) else DONE


def _said(status: int, line: str) -> int:
    if line:  # empty where the parser has printed the help already
        sys.stderr.write(f"{line}\n")
    return status


def _usage(error: Exception) -> str:
    """The parser's words on one line, with where to look further."""
    said = getattr(error, "format_message", lambda: str(error))()
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "midslice"
    said = " ".join(said.split()).rstrip(".")
    return f"{command}: {said}; see {command} --help" if said else ""


def _sentence(error: Exception) -> str:
    """Our own errors in their words; of any other what it is and where, without its text."""
    from node import log

    if isinstance(error, log.OUR_ERRORS):
        return f"midslice: {error}"
    where = log.frames(error)
    return f"midslice: {type(error).__name__} at {where[-1] if where else 'an unknown place'}"
