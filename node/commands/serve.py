"""The command that runs a node."""

import typer

from node.commands.terminal import DEFAULT_CONFIG, ConfigFile


def serve(config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Run the node until SIGTERM; a second SIGTERM stops at once."""
    from node import app, log

    log.configure()
    raise typer.Exit(app.serve(config))
