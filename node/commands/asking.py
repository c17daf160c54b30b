"""Commands that set or ask for something of the running node; each is an audit event."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.commands import terminal
from node.commands.account import user
from node.commands.filters import destinations
from node.commands.queue import JobId
from node.commands.store import opened
from node.commands.terminal import DEFAULT_CONFIG, AsJson, ConfigFile

if TYPE_CHECKING:
    from node.store import Store
    from storage.records import SwitchName, WishKind

Off = Annotated[bool, typer.Option("--off", help="Take it back.")]
SeriesUid = Annotated[str, typer.Argument(metavar="UID", help="A Series Instance UID.")]
POLL_SECONDS = 0.2
QUICK_SECONDS = 60.0


def prioritise(
    job_id: JobId,
    priority: Annotated[int, typer.Argument(help="1 first, 9 last.", min=1, max=9)],
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:
    """Put a queued job before or behind others."""
    with opened(config) as store:
        store.queue.prioritise(job_id, priority, who=user())
    terminal.say(f"Job {job_id} has priority {priority}.")


def drain(off: Off = False, config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Keep receiving and delivering, but start no job, until it is taken back."""
    from storage.records import SwitchName

    with opened(config) as store:
        _turn(store, SwitchName.DRAINING, "", on=not off)
    terminal.say("Jobs are started again." if off else "No job is started until `drain --off`.")


def pause(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A destination.", autocompletion=destinations)
    ],
    off: Off = False,
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:
    """Send nothing to a destination, until it is taken back."""
    from storage.records import SwitchName

    with opened(config) as store:
        store.config.destination(name)
        _turn(store, SwitchName.PAUSED, name, on=not off)
    terminal.say(f"{name} is sent to again." if off else f"Nothing is sent to {name}.")


def never(series_uid: SeriesUid, off: Off = False, config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Make no job of a series that arrives, or will."""
    from storage.records import SwitchName

    with opened(config) as store:
        _turn(store, SwitchName.NEVER, series_uid, on=not off)
    terminal.say(f"{series_uid} is {'processed as any other' if off else 'never processed'}.")


def allow(
    ae_title: Annotated[str, typer.Argument(metavar="AE", help="A calling AE title.")],
    off: Off = False,
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:
    """Accept a calling AE title besides node.allowed_ae_titles."""
    from storage.records import SwitchName

    with opened(config) as store:
        _turn(store, SwitchName.ALLOWED_AE, ae_title, on=not off)
        is_any = not store.config.node.allowed_ae_titles
    terminal.say(f"{ae_title} is {'not accepted by this any more' if off else 'accepted'}.")
    if is_any:
        terminal.say("node.allowed_ae_titles is empty: every AE title is accepted in any case.")


def process_now(
    series_uid: SeriesUid, config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False
) -> None:
    """Close what is arriving of a series, without waiting for its quiet period."""
    from storage.records import WishKind

    _ask(config, WishKind.PROCESS_NOW, series_uid, as_json=as_json)


def reload(config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Let the running node read its configuration again, all or nothing."""
    from storage.records import WishKind

    _ask(config, WishKind.RELOAD, "", as_json=as_json)


def selftest(config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Let the running node bring a made series all the way, and verify what comes out."""
    from storage.records import WishKind

    _ask(config, WishKind.SELFTEST, "", as_json=as_json)


def notify(config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Let the running node send a test notice through every channel."""
    from storage.records import WishKind

    _ask(config, WishKind.NOTIFY, "", as_json=as_json)


def _turn(store: "Store", name: "SwitchName", subject: str, *, on: bool) -> None:
    from storage.site import control

    control.turn(store.database, time.time(), user(), name, subject, on=on)


def _ask(config: Path, kind: "WishKind", subject: str, *, as_json: bool) -> None:
    """Ask, wait for the answer, and say it; exit status 1 where it was not done."""
    from storage.site import control

    with opened(config) as store:
        seconds = QUICK_SECONDS
        if kind == "selftest":
            seconds += store.config.selftest.minutes * 60
        asked = control.ask(store.database, time.time(), user(), kind, subject)
        give_up = time.monotonic() + seconds
        while asked.state == "asked" and time.monotonic() < give_up:
            time.sleep(POLL_SECONDS)
            asked = control.get_request(store.database, asked.id)
    sentence = asked.sentence or "No node has answered; is it running?"
    if as_json:
        terminal.print_json({"id": asked.id, "state": asked.state, "sentence": sentence})
    else:
        terminal.say(sentence)
    if asked.state != "done":
        terminal.failed()
