"""Terminal: options that commands share, output for people and scripts, the opened store."""

import getpass
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from node.store import Store


ConfigFile = Annotated[
    Path, typer.Option("--config", metavar="FILE", help="The configuration of the node.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")]
DEFAULT_CONFIG = Path("config.toml")

WIDTH_OF_A_FILE = 200  # where the output is no terminal, nothing is cut at 80 columns
COLOURS = {
    "ok": "green",
    "warning": "yellow",
    "fault": "red",
    "queued": "cyan",
    "running": "blue",
    "succeeded": "green",
    "sent": "green",
    "confirmed": "green",
    "stored": "green",
    "refused": "yellow",
    "held": "red",
    "failed": "red",
    "cancelled": "dim",
    "arriving": "blue",
    "complete": "green",
}
UNITS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))


def console(*, stderr: bool = False) -> Console:
    """Where people read; tables go to standard output, progress to standard error."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDTH_OF_A_FILE
    return Console(file=stream, width=width, highlight=False, soft_wrap=False)


def say(text: str, *, style: str = "") -> None:
    """One line for a person; brackets in it are text."""
    console().print(Text(text, style=style), soft_wrap=True)


def print_json(value: object) -> None:
    """The one JSON document of a command."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str, title: str = ""
) -> None:
    """A table; words of state are coloured. Without a row, the sentence `empty`."""
    filled = [[_cell(value) for value in row] for row in rows]
    if not filled:
        say(empty)
        return
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, header_style="bold", overflow="fold")
    for row in filled:
        table.add_row(*row)
    console().print(table)


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Names and values below each other; what is empty is left out."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in facts:
        if value not in (None, "", ()):
            table.add_row(Text(name), _cell(value))
    console().print(table)


def when(at: float | None, zone: tzinfo | None) -> str:
    """A time as people say it, and exactly: "3 min ago, 14:02:11"."""
    if at is None:
        return ""
    now = time.time()
    moment, today = datetime.fromtimestamp(at, zone), datetime.fromtimestamp(now, zone)
    clock = moment.strftime("%H:%M:%S" if moment.date() == today.date() else "%Y-%m-%d %H:%M")
    if at > now + 1.0:
        return f"in {duration(at - now)}, {clock}"
    return f"{duration(max(0.0, now - at))} ago, {clock}"


def duration(seconds: float) -> str:
    """Seconds in the largest unit that leaves a number to read."""
    for size, unit in UNITS:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return "0 s" if seconds < 0.05 else f"{seconds:.1f} s"


def counted(count: int, noun: str) -> str:
    """A number with its noun, which takes an s where there are not one."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listed(values: object) -> list[str]:
    """The texts of a list that came out of a record; nothing where there is none."""
    return [str(value) for value in values] if isinstance(values, list) else []


def size(count: float) -> str:
    """Bytes as people say them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000.0:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000.0
    return f"{count:.1f} TB"


def failed(message: str = "") -> NoReturn:
    """The thing asked for failed: exit status 1, with one line where nothing said it yet."""
    if message:
        sys.stderr.write(f"{message}\n")
    raise typer.Exit(1)


@contextmanager
def progress(label: str, *, shown: bool) -> Iterator[Callable[[float, float, str], None]]:
    """A bar on standard error, where that is a terminal; called with done, total and a word."""
    if not (shown and sys.stderr.isatty()):
        yield lambda _done, _total, _step: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)

        def update(done: float, total: float, step: str) -> None:
            text = f"{label} {step}".strip()
            bar.update(task, completed=done, total=total, description=text)

        yield update


def _cell(value: object) -> Text:
    text = "" if value is None else str(value)
    return Text(text, style=COLOURS.get(text.split(" ")[0], ""))


def user() -> str:
    """The account of the system."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in a container
        return "unknown"


NOBODY = "command line"  # a command claims nothing: no lease is ever taken in this name


@contextmanager
def opened(path: Path) -> Iterator["Store"]:
    """Storage of the configuration in `path`."""
    from node import store
    from node.config import load

    with store.opened(load(path), NOBODY) as kept:
        yield kept
