"""Commands about the installation: is it right, and what does it promise to its peers."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from node.commands import terminal
from node.commands.terminal import DEFAULT_CONFIG, AsJson, ConfigFile

if TYPE_CHECKING:
    from node.check import Finding


def check(config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Look at configuration, ports, disk, database, clock, decoders, models, destinations."""
    from node import check as checking
    from node.config import load

    found = []
    for finding in checking.run(load(config)):
        found.append(finding)
        if not as_json:
            _tell(finding)
    if as_json:
        terminal.print_json(checking.as_json(found))
    if any(finding.level is checking.Level.FAULT for finding in found):
        terminal.failed()


def conformance(
    config: ConfigFile = DEFAULT_CONFIG,
    as_html: Annotated[
        bool, typer.Option("--html", help="An HTML file, to open or print.")
    ] = False,
) -> None:
    """The DICOM conformance statement for this very configuration, as Markdown or HTML."""
    from node.config import load
    from node.conformance import page, statement

    write = page if as_html else statement
    sys.stdout.write(write(load(config)))


def _tell(finding: "Finding") -> None:
    """One line as soon as it is known: an echo that waits does not hide the others."""
    from rich.text import Text

    line = Text(f"{finding.level:<8}", style=terminal.COLOURS[finding.level])
    line.append(f"{finding.what}: ", style="bold")
    line.append(finding.sentence)
    if finding.action:
        line.append(f" {finding.action}", style="dim")
    terminal.console().print(line, soft_wrap=True)
