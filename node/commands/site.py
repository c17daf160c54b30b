"""Commands about the installation: its check, its promises to peers, the events of its log."""

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


def events(as_json: AsJson = False) -> None:
    """The events of the log: level, keys and meaning of each."""
    from node.events import EVENTS

    if as_json:
        names = ("event", "level", "keys", "meaning")
        terminal.print_json({"events": [dict(zip(names, event, strict=True)) for event in EVENTS]})
        return
    rows = [(name, level, ", ".join(keys), meaning) for name, level, keys, meaning in EVENTS]
    terminal.print_table(("event", "level", "keys", "meaning"), rows, empty="")


def _tell(finding: "Finding") -> None:
    """One line as soon as it is known: an echo that waits does not hide the others."""
    from rich.text import Text

    line = Text(f"{finding.level:<8}", style=terminal.COLOURS[finding.level])
    line.append(f"{finding.what}: ", style="bold")
    line.append(finding.sentence)
    if finding.action:
        line.append(f" {finding.action}", style="dim")
    terminal.console().print(line, soft_wrap=True)
