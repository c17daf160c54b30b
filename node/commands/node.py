"""Commands for the running node and its destinations; each change is an audit event."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.commands import terminal
from node.commands.queue import JobId, destinations
from node.commands.terminal import DEFAULT_CONFIG, AsJson, ConfigFile, opened, user
from node.errors import UsageError

if TYPE_CHECKING:
    from node.config import Config, Destination
    from node.dicom.scu import Outgoing, PeerAddress
    from node.store import Store
    from storage.records import RequestKind, SwitchName


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
    from storage.records import RequestKind

    _ask(config, RequestKind.PROCESS_NOW, series_uid, as_json=as_json)


def reload(config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Let the running node read its configuration again, all or nothing."""
    from storage.records import RequestKind

    _ask(config, RequestKind.RELOAD, "", as_json=as_json)


def selftest(config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Let the running node bring a made series all the way, and verify what comes out."""
    from storage.records import RequestKind

    _ask(config, RequestKind.SELFTEST, "", as_json=as_json)


def notify(config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Let the running node send a test notice through every channel."""
    from storage.records import RequestKind

    _ask(config, RequestKind.NOTIFY, "", as_json=as_json)


def _turn(store: "Store", name: "SwitchName", subject: str, *, on: bool) -> None:
    from storage.site import control

    control.turn(store.database, time.time(), user(), name, subject, on=on)


def _ask(config: Path, kind: "RequestKind", subject: str, *, as_json: bool) -> None:
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


def echo(
    name: Annotated[
        str,
        typer.Argument(
            help="One destination; without it, all of them.", autocompletion=destinations
        ),
    ] = "",
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: AsJson = False,
) -> None:
    """C-ECHO of a destination, or of all."""
    from node.config import load
    from node.dicom import scu

    settings = load(config)
    wanted = (settings.destination(name),) if name else settings.destinations
    found = [(each, scu.echo(address(settings, each))) for each in wanted]
    if as_json:
        terminal.print_json(
            [
                {
                    "destination": each.name,
                    "ok": answer.ok,
                    "seconds": round(answer.seconds, 3),
                    "sentence": answer.sentence,
                }
                for each, answer in found
            ]
        )
    else:
        rows = [
            (
                "ok" if answer.ok else "fault",
                each.name,
                f"{each.ae_title} at {each.host}:{each.port}",
                f"{answer.seconds * 1000:.0f} ms",
                answer.sentence,
            )
            for each, answer in found
        ]
        terminal.print_table(
            ("", "destination", "peer", "took", ""), rows, empty="No destination is configured."
        )
    if not all(answer.ok for _, answer in found):
        terminal.failed()


def send(
    folder: Annotated[Path, typer.Argument(help="A folder of Part 10 files, or one file.")],
    to: Annotated[
        str,
        typer.Option("--to", metavar="NAME", help="A destination.", autocompletion=destinations),
    ],
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: AsJson = False,
) -> None:
    """C-STORE of a folder to a destination."""
    from node.config import load
    from node.dicom import scu

    settings = load(config)
    peer = address(settings, settings.destination(to))
    files, skipped = _outgoing(files_of(folder))
    answers: dict[int, int | None] = {}
    with terminal.progress(f"sending to {to}", shown=not as_json) as bar:

        def answered(one: "Outgoing", status: int | None) -> None:
            answers[one.id] = status
            bar(len(answers), len(files), "")

        sent = scu.send(peer, files, answered=answered, stop=lambda: False)
    instances = [_answer(one, answers.get(one.id)) for one in files]
    stored = sum(bool(each["stored"]) for each in instances)
    if as_json:
        found = {"destination": to, "stored": stored, "total": len(files)}
        further = {"sentence": sent.sentence, "skipped": [str(path) for path in skipped]}
        terminal.print_json(found | further | {"instances": instances})
    else:
        _tell(to, instances, skipped, sent.sentence)
    if stored < len(files) or not files:
        terminal.failed()


def address(settings: "Config", destination: "Destination") -> "PeerAddress":
    """Where a destination is, and what the node calls itself there."""
    from node.dicom.scu import PeerAddress

    return PeerAddress(
        ae_title=destination.ae_title,
        host=destination.host,
        port=destination.port,
        calling_ae_title=destination.calling_ae_title or settings.node.ae_title,
    )


def files_of(folder: Path) -> list[Path]:
    """Every file below a folder, in the order of their names; or the file itself."""
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such file or folder")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _outgoing(paths: Iterable[Path]) -> tuple[list["Outgoing"], list[Path]]:
    """What can be sent, and what is no Part 10 file with the UIDs that C-STORE names."""
    from inference.stacks import read_headers
    from node.dicom.scu import Outgoing

    files: list[Outgoing] = []
    skipped: list[Path] = []
    for header in read_headers(paths):
        uids = (header.uid, header.text("SOPClassUID"), header.transfer_syntax)
        if header.fault or not all(uids):
            skipped.append(header.path)
            continue
        files.append(Outgoing(len(files), *uids, header.path))
    return files, skipped


def _answer(one: "Outgoing", status: int | None) -> dict[str, object]:
    from node.dicom.status import Outcome, outcome, said

    known = outcome(status) if status is not None else None
    return {
        "file": str(one.path),
        "instance_uid": one.instance_uid,
        "status": "no answer" if status is None else f"0x{status:04X}",
        "answer": "no answer" if status is None else said(status),
        # A duplicate (0111) is there: whoever sends a folder by hand wants it there.
        "stored": known in {Outcome.STORED, Outcome.STORED_IF_OURS},
    }


def _tell(
    to: str, instances: Sequence[dict[str, object]], skipped: Sequence[Path], sentence: str
) -> None:
    stored = sum(bool(each["stored"]) for each in instances)
    terminal.say(f"{stored} of {len(instances)} instances are stored at {to}.")
    missing = [each for each in instances if not each["stored"]]
    for answer in sorted({str(each["answer"]) for each in missing}):
        count = sum(each["answer"] == answer for each in missing)
        terminal.say(f"{count} of them: {answer}.")
    if skipped:
        files = terminal.counted(len(skipped), "file")
        terminal.say(f"skipped: {files}: no Part 10, or without UIDs")
    if sentence:
        terminal.say(sentence)
