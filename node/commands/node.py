"""Commands that ask the running node (process-now, reload, ...); each change is an audit event."""

import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node import wording
from node.commands import terminal
from node.commands.queue import JobId, destinations, routes
from node.commands.terminal import DEFAULT_CONFIG, AsJson, ConfigFile, opened, user
from node.errors import UsageError
from storage.records import UID_CHARACTERS, RequestKind, SwitchName

if TYPE_CHECKING:
    from node.config import Destination
    from node.dicom.scu import Outgoing
    from node.store import Store
    from storage.records import NodeRequest

POLL_SECONDS = 0.2
QUICK_SECONDS = 60.0  # a running node answers most requests within them

Off = Annotated[bool, typer.Option("--off", help="Undo it.")]
SeriesUid = Annotated[str, typer.Argument(metavar="UID", help="A Series Instance UID.")]


def init(
    config: ConfigFile = DEFAULT_CONFIG,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a config.toml for a first node, with a comment on every key."""
    from node.config import load
    from node.config.reading import first

    text = first()
    try:
        with config.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        terminal.failed(f"{config} exists already; --force overwrites it")
    except OSError as error:
        raise UsageError(f"{config}: {error.strerror}") from None
    node = load(config).node
    name = "" if config == DEFAULT_CONFIG else f" --config {config}"
    terminal.say(
        f"{config} is written: AE title {node.ae_title}, port {node.port}. "
        "What is made is kept and shown, and sent nowhere until you name your PACS there."
    )
    terminal.say(f"Next: midslice check{name}, then midslice serve{name}.")


def prioritise(
    job_id: JobId,
    priority: Annotated[int, typer.Argument(help="1 first, 9 last.", min=1, max=9)],
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:
    """Put a queued job before or after others."""
    with opened(config) as store:
        store.queue.prioritise(job_id, priority, who=user())
    terminal.say(f"Job {job_id} has priority {priority}.")


def drain(off: Off = False, config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Keep receiving and sending, but start no job until `--off`."""
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
    """Send nothing to a destination until `--off`."""
    with opened(config) as store:
        store.config.destination(name)
        _turn(store, SwitchName.PAUSED, name, on=not off)
    terminal.say(f"Sending to {name} is resumed." if off else f"Nothing is sent to {name}.")


def never(series_uid: SeriesUid, off: Off = False, config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Never process this series, whether it is arriving or comes later."""
    with opened(config) as store:
        _turn(store, SwitchName.NEVER, series_uid, on=not off)
    terminal.say(f"{series_uid} is {'processed again' if off else 'never processed'}.")


def allow(
    ae_title: Annotated[str, typer.Argument(metavar="AE", help="A calling AE title.")],
    off: Off = False,
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:
    """Accept a calling AE title besides node.allowed_ae_titles."""
    with opened(config) as store:
        _turn(store, SwitchName.ALLOWED_AE, ae_title, on=not off)
        is_any = not store.config.node.allowed_ae_titles
    terminal.say(f"{ae_title} is {'no longer on this list' if off else 'accepted'}.")
    if is_any:
        terminal.say("node.allowed_ae_titles is empty: every AE title is accepted in any case.")


def process_now(
    series_uid: SeriesUid,
    route: Annotated[
        str,
        typer.Option(
            "--route",
            metavar="NAME",
            help="Process it by this route, whatever the route asks for.",
            autocompletion=routes,
        ),
    ] = "",
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: AsJson = False,
) -> None:
    """Close an arriving series without its quiet period, or let a route process it."""
    _request(config, RequestKind.PROCESS_NOW, series_uid, route=route, as_json=as_json)


def fetch(
    name: Annotated[
        str,
        typer.Option("--from", metavar="NAME", help="A destination.", autocompletion=destinations),
    ],
    study_uid: Annotated[str, typer.Option("--study", metavar="UID", help="A Study Instance UID.")],
    series_uid: Annotated[
        str, typer.Option("--series", metavar="UID", help="One series of it; without it, all.")
    ] = "",
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: AsJson = False,
) -> None:
    """Have a destination send a study by C-GET or C-MOVE; it is received like any other."""
    for option, uid in (("--study", study_uid), ("--series", series_uid)):
        if not re.fullmatch(f"[{UID_CHARACTERS}]{{1,64}}", uid or "0"):
            raise UsageError(f"{option} {uid}: 1-64 letters, digits and . - _")
    _request(
        config,
        RequestKind.FETCH,
        study_uid,
        destination=name,
        series_uid=series_uid,
        as_json=as_json,
    )


def reload(config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Let the running node read its configuration again, all or nothing."""
    with opened(config) as store:
        node = store.requested_node
    _request(config, RequestKind.RELOAD, node, as_json=as_json)


def selftest(config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Let the running node process a synthetic series, and verify the result."""
    _request(config, RequestKind.SELFTEST, as_json=as_json)


def notify(config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Let the running node send a test notice to every channel."""
    _request(config, RequestKind.NOTIFY, as_json=as_json)


def _turn(store: "Store", name: SwitchName, subject: str, *, on: bool) -> None:
    from storage.site import control

    control.turn(store.database, store.now(), user(), name, subject, on=on)


def _request(
    config: Path, kind: RequestKind, subject: str = "", *, as_json: bool, **further: str
) -> None:
    """Put a request to the node, wait for the answer and print it; status 1 where it failed."""
    from storage.site import control

    with opened(config) as store:
        if route := further.get("route"):
            store.config.route(route)
        if destination := further.get("destination"):
            store.config.destination(destination)
        more = {RequestKind.SELFTEST: store.config.selftest.minutes, RequestKind.FETCH: 60.0}
        minutes = more.get(kind, 0.0)
        asked = control.ask(store.database, store.now(), user(), kind, subject, **further)
        request = _answered(store, asked, QUICK_SECONDS + minutes * 60)
    sentence = request.sentence or "No node has answered; is it running?"
    if as_json:
        terminal.print_json({"id": request.id, "state": request.state, "sentence": sentence})
    else:
        terminal.say(sentence)
    if request.state != "done":
        terminal.failed()


def _answered(store: "Store", request: "NodeRequest", seconds: float) -> "NodeRequest":
    """The request once a node has answered it, or as it is when the time is over."""
    from storage.site import control

    give_up = time.monotonic() + seconds
    while request.state == "asked" and time.monotonic() < give_up:
        time.sleep(POLL_SECONDS)
        request = control.get_request(store.database, request.id)
    return request


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
    from node.dicom import stow

    settings = load(config)
    peers = (settings.destination(name),) if name else settings.destinations
    answers = {peer.name: stow.echo(peer, settings.node.ae_title) for peer in peers}

    def document(peer: "Destination", _: object) -> object:
        answer = answers[peer.name]
        facts = {"destination": peer.name, "ok": answer.ok, "seconds": round(answer.seconds, 3)}
        return facts | {"sentence": answer.sentence}

    terminal.show(
        peers,
        (
            ("", lambda peer: "ok" if answers[peer.name].ok else "fault"),
            ("destination", "name"),
            ("peer", "place"),
            ("took", lambda peer: f"{answers[peer.name].seconds * 1000:.0f} ms"),
            ("", lambda peer: answers[peer.name].sentence),
        ),
        as_json=as_json,
        document=document,
        empty="No destination is configured.",
    )
    if not all(answer.ok for answer in answers.values()):
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
    """C-STORE, or STOW-RS, of a folder to a destination."""
    from node.config import load
    from node.dicom import scu, stow

    settings = load(config)
    destination = settings.destination(to)
    peer = scu.PeerAddress(*destination.address(settings.node.ae_title))
    send_to = stow.sender(destination)
    files, skipped = _outgoing(files_of(folder))
    statuses: dict[int, int | None] = {}
    with terminal.progress(f"sending to {to}", shown=not as_json) as bar:

        def answered(file: "Outgoing", status: int | None, _comment: str) -> None:
            statuses[file.id] = status
            bar(len(statuses), len(files), "")

        sent = send_to(
            peer,
            files,
            answered=answered,
            stop=lambda: False,
            abandon=lambda: False,
            timeouts=scu.Timeouts(answer=destination.answer_seconds),
            associations=1,
        )
    instances = [_answer(file, statuses.get(file.id)) for file in files]
    stored = sum(bool(instance["stored"]) for instance in instances)
    if as_json:
        counts = {"destination": to, "stored": stored, "total": len(files)}
        further = {"sentence": sent.sentence, "skipped": [str(path) for path in skipped]}
        terminal.print_json(counts | further | {"instances": instances})
    else:
        terminal.say(f"{stored} of {len(files)} instances are stored at {to}.")
        _print_failures(instances, len(skipped), sent.sentence)
    if stored < len(files) or not files:
        terminal.failed()


def files_of(folder: Path) -> list[Path]:
    """Every file below a folder, in the order of their names; or the file itself."""
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such file or folder")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _outgoing(paths: Iterable[Path]) -> tuple[list["Outgoing"], list[Path]]:
    """Files to send; and those that are no Part 10 file with the UIDs that C-STORE names."""
    from inference.stacks import read_headers
    from node.dicom.scu import Outgoing

    files: list[Outgoing] = []
    skipped: list[Path] = []
    for header in read_headers(paths):
        uids = (header.uid, header.text("SOPClassUID"), header.transfer_syntax)
        if header.fault or not all(uids):
            skipped.append(header.path)
        else:
            files.append(Outgoing(len(files), *uids, header.path))
    return files, skipped


def _answer(file: "Outgoing", status: int | None) -> dict[str, object]:
    from node.dicom.status import Outcome, outcome, status_text

    return {
        "file": str(file.path),
        "instance_uid": file.instance_uid,
        "status": "no answer" if status is None else f"0x{status:04X}",
        "answer": "no answer" if status is None else status_text(status),
        # A duplicate (0111) is there: whoever sends a folder by hand wants it there.
        "stored": status is not None
        and outcome(status) in {Outcome.STORED, Outcome.STORED_IF_OURS},
    }


def _print_failures(instances: Sequence[dict[str, object]], skipped: int, sentence: str) -> None:
    failures = Counter(str(row["answer"]) for row in instances if not row["stored"])
    for answer, count in sorted(failures.items()):
        terminal.say(f"{count} of them: {answer}.")
    if skipped:
        files = wording.count(skipped, "file")
        terminal.say(f"skipped: {files}: no Part 10, or without UIDs")
    if sentence:
        terminal.say(sentence)
