"""The command that watches a node: what arrives, waits, runs, is sent, and needs a person."""

import contextlib
import select
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from node import wording
from node.commands import terminal
from node.commands.terminal import DEFAULT_CONFIG, Column, ConfigFile, R, opened
from storage.records import ArrivalSummary

if TYPE_CHECKING:
    from node.store import Store

ROWS = 8  # of each list; the pages show the rest
BAR = 20  # characters
QUIT = ("q", "Q", "\x03", "\x1b")
OF_A_JOB = (
    ("job", lambda line: line.job.id),
    ("series", lambda line: terminal.uid_end(line.job.subject.series_uid)),
    ("route", lambda line: line.job.route),
)


def top(
    seconds: Annotated[
        float, typer.Option("--seconds", help="Time between two updates.", min=0.2, max=3600.0)
    ] = 1.0,
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:
    """Watch the node; q or Ctrl-C quits. If the output is not a terminal, it is printed once."""
    console = terminal.console()
    with opened(config) as store:
        if not console.is_terminal:
            console.print(screen(store, store.now()))
            return
        first = screen(store, store.now())
        # Ctrl-C is how one leaves such a screen, no failure.
        stopping = contextlib.suppress(KeyboardInterrupt)
        with _keys(), Live(first, console=console, screen=True) as live, stopping:
            while not _quits(seconds):
                live.update(screen(store, store.now()), refresh=True)


def screen(store: "Store", now: float) -> Group:
    """Draw everything at one moment, without a patient attribute: people pass by a terminal."""
    return Group(
        _head(store, now),
        _needing(store),
        _arriving(store, now),
        _running(store, now),
        _waiting(store, now),
        _sending(store),
    )


def _head(store: "Store", now: float) -> Text:
    """The head line: whether the node lives, is drained, has room."""
    from node import health
    from storage.site import control

    states = [node for node in store.nodes.get() if node.state != "stopped"]
    disk = health.disk(store.config.folder)
    text = Text()
    if not states:
        text.append("no node is running", style="red")
    for state in states:
        age = now - state.heartbeat
        style = "green" if health.is_alive(state, now) else "red"
        text.append(f"{state.id} {state.state}", style=style)
        text.append(f", seen {wording.whole_duration(age)} ago  ", style="dim")
    drained = control.draining(store.database)
    if drained is not None:
        text.append(f"  drained by {drained.who}", style="yellow")
    text.append(f"  {wording.size(disk.free_bytes)} free", style="dim")
    return text


def _needing(store: "Store") -> Group:
    from storage.queries.find import needing

    needs = needing(store.database, limit=ROWS)
    columns = (("", "id"), "what", ("why", "sentence"))
    return _list("Needs a person", needs.lines, columns, needs.total)


def _arriving(store: "Store", now: float) -> Group:
    from storage.queries import overview

    lines = overview.arriving(store.database)
    columns = (
        ("from", lambda line: line.arrival.calling_ae),
        ("series", lambda line: terminal.uid_end(line.arrival.series_uid)),
        ("modality", lambda line: line.subject.modality),
        ("instances", lambda line: line.arrival.instances),
        ("quiet", lambda line: wording.whole_duration(now - line.arrival.last_at)),
        ("complete in", lambda line: _complete_in(store, line, now)),
    )
    return _list("Arriving", lines[:ROWS], columns, len(lines))


def _complete_in(store: "Store", line: ArrivalSummary, now: float) -> str:
    from node.rules.completion import complete_at

    if line.never:
        return "never"
    return wording.whole_duration(complete_at(line.arrival, store.config.completion) - now)


def _running(store: "Store", now: float) -> Group:
    from storage.queries import overview

    runs = overview.running(store.database, now)
    columns = (
        *OF_A_JOB,
        ("", lambda run: _bar(run.job.progress)),
        ("left", lambda run: wording.duration(run.seconds_left)),
    )
    return _list("Running", runs, columns, len(runs))


def _waiting(store: "Store", now: float) -> Group:
    from storage.queries import overview

    workers = store.config.inference.workers
    queue = overview.queue(store.database, now, workers=workers, limit=ROWS)
    columns = (
        *OF_A_JOB,
        ("priority", lambda line: line.job.priority),
        ("starts", lambda line: terminal.when(line.expected_at, store.zone)),
    )
    return _list("Queue", queue.lines, columns, queue.total)


def _sending(store: "Store") -> Group:
    from storage.queries import overview

    sending = overview.sending(store.database, limit=ROWS)
    columns = (
        ("delivery", "id"),
        ("to", "destination"),
        "state",
        ("", lambda delivery: f"{delivery.sent} of {delivery.total}"),
        ("why", "sentence"),
    )
    return _list("Sending", [line.delivery for line in sending.lines], columns, sending.total)


def _list(title: str, records: Sequence[R], columns: Sequence[Column[R]], total: int) -> Group:
    head = Text(f"\n{title}", style="bold")
    head.append(f"  {total}" if total else "  none", style="dim")
    if not records:
        return Group(head)
    table = Table(box=None, pad_edge=False, header_style="dim")
    names, rows = terminal.grid(records, columns)
    for name in names:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*(Text("" if value is None else str(value)) for value in row))
    return Group(head, table)


def _bar(share: float) -> str:
    done = round(share * BAR)
    return f"{'#' * done}{'.' * (BAR - done)} {share:4.0%}"


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Single keys without Enter, where the input is a terminal; as it was at the end.

    Ctrl-C is a key as well: an interrupt may come where Python cannot raise it, and is lost.
    """
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        mode = termios.tcgetattr(sys.stdin)
        mode[3] &= ~termios.ISIG  # the local modes
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, mode)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _quits(seconds: float) -> bool:
    """Wait for a key; True where it is one that quits."""
    if not sys.stdin.isatty():
        time.sleep(seconds)
        return False
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and sys.stdin.read(1) in QUIT
