"""Commands that run a node: for good, or to show what one does."""

from pathlib import Path
from typing import Annotated

import typer

from node.commands.terminal import DEFAULT_CONFIG, ConfigFile


def serve(config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Run the node until SIGTERM; a second SIGTERM stops at once."""
    from node import app, log

    log.configure()
    raise typer.Exit(app.serve(config))


def demo(
    folder: Annotated[
        Path, typer.Option(help="Where the demo keeps its files and its report.")
    ] = Path("var/demo"),
) -> None:
    """A scanner, a node and a PACS on a real CT series, on this machine, with a report."""
    from node.demo import run

    raise typer.Exit(run.main(folder))
