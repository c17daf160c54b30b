"""Terminal: options that commands share, output for people and scripts, the opened store."""

import getpass
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeAlias, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from node.wording import whole_duration

if TYPE_CHECKING:
    from node.store import Store


ConfigFile = Annotated[
    Path, typer.Option("--config", metavar="FILE", help="The configuration of the node.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")]
DEFAULT_CONFIG = Path("config.toml")
NOBODY = "command line"  # a command claims nothing: no lease is ever taken in this name

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
LONGEST_UID = 20  # characters of a UID in a table

R = TypeVar("R")
# A column of records: an attribute, which gives the title too, or a title with an attribute or
# with what is written in the cell. An attribute that ends in `_at` is a time.
Column: TypeAlias = str | tuple[str, str | Callable[[R], object]]


@contextmanager
def opened(path: Path) -> Iterator["Store"]:
    """Storage of the configuration in `path`."""
    from node import store
    from node.config import load

    with store.opened(load(path), NOBODY) as parts:
        yield parts


def user() -> str:
    """The account of the system."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in a container
        return "unknown"


def console(*, stderr: bool = False) -> Console:
    """A console: tables go to standard output, progress to standard error."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDTH_OF_A_FILE
    return Console(file=stream, width=width, highlight=False, soft_wrap=False)


def say(text: str, *, style: str = "") -> None:
    """One line for a person; brackets in it are text."""
    console().print(Text(text, style=style), soft_wrap=True)


def print_json(value: object) -> None:
    """The one JSON document of a command."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def show(
    records: Iterable[R],
    columns: Sequence[Column[R]],
    zone: tzinfo | None = None,
    *,
    as_json: bool,
    document: Callable[[R, tzinfo | None], object],
    empty: str,
) -> None:
    """Print records as one JSON document of what `document` makes of each, or as a table."""
    if as_json:
        print_json([document(record, zone) for record in records])
    else:
        tabulate(records, columns, zone, empty=empty)


def tabulate(
    records: Iterable[R], columns: Sequence[Column[R]], zone: tzinfo | None = None, *, empty: str
) -> None:
    """Print a table of records; times are those of `zone`."""
    print_table(*grid(records, columns, zone), empty=empty)


def grid(
    records: Iterable[R], columns: Sequence[Column[R]], zone: tzinfo | None = None
) -> tuple[list[str], list[list[object]]]:
    """The heads and the rows of a table."""
    pairs = [(column, column) if isinstance(column, str) else column for column in columns]
    heads = [name.removesuffix("_at").replace("_", " ") for name, _ in pairs]
    return heads, [[_value(record, value, zone) for _, value in pairs] for record in records]


def _value(record: R, value: str | Callable[[R], object], zone: tzinfo | None) -> object:
    if not isinstance(value, str):
        return value(record)
    attribute = getattr(record, value)
    return when(attribute, zone) if value.endswith("_at") else attribute


def print_table(
    heads: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str, title: str = ""
) -> None:
    """Print a table; words of state are coloured. Without a row, the sentence `empty`."""
    filled = [[_cell(value) for value in row] for row in rows]
    if not filled:
        say(empty)
        return
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for head in heads:
        table.add_column(head, header_style="bold", overflow="fold")
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
        return f"in {whole_duration(at - now)}, {clock}"
    return f"{whole_duration(now - at)} ago, {clock}"


def texts(values: object) -> list[str]:
    """The texts of a list that came out of a record; nothing where there is none."""
    return [str(value) for value in values] if isinstance(values, list) else []


def uid_end(uid: str) -> str:
    """The end of a UID tells two series of one scanner apart; `job ID` shows all of it."""
    return uid if len(uid) <= LONGEST_UID else f"...{uid[3 - LONGEST_UID :]}"


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
