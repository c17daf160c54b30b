"""Commands that talk to destinations."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.commands import terminal
from node.commands.filters import destinations
from node.commands.terminal import DEFAULT_CONFIG, AsJson, ConfigFile
from node.errors import UsageError

if TYPE_CHECKING:
    from node.config import Config, Destination
    from node.dicom.scu import Outgoing, PeerAddress


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
