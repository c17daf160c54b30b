"""The filters that `jobs` and `series` share, and what the shell completes them with."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.commands.terminal import DEFAULT_CONFIG
from node.errors import NodeError, UsageError

if TYPE_CHECKING:
    from node.store import Store
    from storage.queries.find import Wanted

STATES = ("queued", "running", "succeeded", "refused", "failed", "held", "cancelled")


def _routes() -> list[str]:
    """Those of the configuration in this folder; none where it cannot be read."""
    from node.config import load

    try:
        return [route.name for route in load(Path(DEFAULT_CONFIG)).routes]
    except NodeError:
        return []


def destinations() -> list[str]:
    """What completes the name of a destination, in whichever command it stands."""
    from node.config import load

    try:
        return [destination.name for destination in load(Path(DEFAULT_CONFIG)).destinations]
    except NodeError:
        return []


State = Annotated[
    str,
    typer.Option(
        "--state",
        metavar="S",
        help="Only those: queued, running, held, ...",
        autocompletion=lambda: list(STATES),
    ),
]
Reason = Annotated[str, typer.Option("--reason", help="A reason code, as MISSING_SLICES.")]
Route = Annotated[str, typer.Option("--route", help="Of this route.", autocompletion=_routes)]
Destination = Annotated[
    str, typer.Option("--destination", help="For this one.", autocompletion=destinations)
]
Sender = Annotated[str, typer.Option("--sender", help="From this calling AE title.")]
Uid = Annotated[str, typer.Option("--uid", help="Of a study, series or instance, derived too.")]
Accession = Annotated[str, typer.Option("--accession", help="How the number begins.")]
PatientId = Annotated[str, typer.Option("--patient-id", help="How the ID begins.")]
Since = Annotated[str, typer.Option("--since", metavar="TIME", help="As 2026-03-01T07:30.")]
Until = Annotated[str, typer.Option("--until", metavar="TIME", help="As 2026-03-01T07:30.")]
Offset = Annotated[int, typer.Option("--offset", help="Leave out the first so many.", min=0)]


def wanted(
    *,
    state: str = "",
    reason: str = "",
    route: str = "",
    destination: str = "",
    sender: str = "",
    uid: str = "",
    accession: str = "",
    patient_id: str = "",
    since: str = "",
    until: str = "",
) -> "Wanted":
    """The filter; raises UsageError for a state or a time that there is not."""
    from storage.queries.find import Wanted
    from storage.records import JobState

    if state and state not in STATES:
        raise UsageError(f"--state {state}: one of {', '.join(STATES)}")
    return Wanted(
        states=(JobState(state),) if state else (),
        reason=reason,
        route=route,
        destination=destination,
        sender=sender,
        uid=uid,
        accession=accession,
        patient_id=patient_id,
        since=_seconds("--since", since),
        until=_seconds("--until", until),
    )


def note(store: "Store", wanted: "Wanted", who: str, found: int) -> None:
    """Looking for a patient is an audit event here as on the pages; the words stay out of it."""
    if wanted.names_a_patient:
        by = [name for name in ("accession", "patient_id") if getattr(wanted, name)]
        store.audit.record(who, "find", "", {"by": by, "found": found})


def _seconds(option: str, text: str) -> float | None:
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise UsageError(f"{option} {text}: a time as 2026-03-01T07:30") from None
