"""Commands about the queue: received series, their jobs, and the changes that an operator makes."""

import time
from datetime import datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.commands import terminal
from node.commands.terminal import DEFAULT_CONFIG, AsJson, ConfigFile, opened, user
from node.errors import NodeError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from node.config import Completion
    from node.store import Store
    from storage.queries.find import Wanted
    from storage.records import Arrival, Attempt, Delivery, Job, Series


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


def wanted_from(
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


JobId = Annotated[int, typer.Argument(metavar="ID", help="The number of a job.")]
Limit = Annotated[int, typer.Option("--limit", help="The newest so many.", min=1)]
MOST_ROWS = 100


def jobs(
    state: State = "",
    reason: Reason = "",
    route: Route = "",
    destination: Destination = "",
    sender: Sender = "",
    uid: Uid = "",
    accession: Accession = "",
    patient_id: PatientId = "",
    since: Since = "",
    until: Until = "",
    limit: Limit = MOST_ROWS,
    offset: Offset = 0,
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: AsJson = False,
) -> None:
    """The queue, newest first; each filter that is given must hold."""
    from node.web.api import inputs
    from storage.queries import find
    from storage.queries.find import jobs_with_deliveries

    wanted = wanted_from(
        state=state,
        reason=reason,
        route=route,
        destination=destination,
        sender=sender,
        uid=uid,
        accession=accession,
        patient_id=patient_id,
        since=since,
        until=until,
    )
    with opened(config) as store:
        page = find.jobs(store.database, wanted, limit, offset)
        note(store, wanted, user(), page.total)
        listed = jobs_with_deliveries(store.database, [line.id for line in page.lines])
        zone = store.zone
    if as_json:
        terminal.print_json([inputs.job(each, deliveries, zone) for each, deliveries in listed])
        return
    columns = ("id", "state", "series", "route", "model", "queued", "took", "deliveries", "why")
    rows = [
        (
            each.id,
            _state(each),
            _end_of(each.series_uid),
            each.route,
            each.model,
            terminal.when(each.queued_at, zone),
            _took(each),
            _delivered(deliveries),
            each.sentence,
        )
        for each, deliveries in listed
    ]
    terminal.print_table(columns, rows, empty=_no_jobs(wanted))


def _no_jobs(wanted: "Wanted") -> str:
    if wanted == wanted_from():
        return "There are no jobs."
    state = "".join(wanted.states)
    return f"No job is {state}." if wanted == wanted_from(state=state) else "No job is such."


def job(job_id: JobId, config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """One job with its attempts, instances and deliveries."""
    from node.web.api import inputs

    with opened(config) as store:
        found = store.queue.get(job_id)
        deliveries = store.ledger.of_job(job_id)
        attempts = store.queue.attempts(job_id)
        instances = store.queue.instances(job_id)
        zone = store.zone
    if as_json:
        terminal.print_json(inputs.job_in_full(found, deliveries, attempts, instances, zone))
        return
    _print_job(found, len(instances), zone)
    _print_attempts(attempts, zone)
    _print_deliveries(deliveries, zone)


def series(
    series_uid: Annotated[str, typer.Argument(metavar="[UID]", help="One; else the newest.")] = "",
    state: State = "",
    route: Route = "",
    sender: Sender = "",
    accession: Accession = "",
    patient_id: PatientId = "",
    since: Since = "",
    until: Until = "",
    limit: Limit = MOST_ROWS,
    offset: Offset = 0,
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: AsJson = False,
) -> None:
    """What was received, newest first; each filter that is given must hold."""
    from node.web.api import inputs
    from storage.queries import find

    wanted = wanted_from(
        state=state,
        route=route,
        sender=sender,
        accession=accession,
        patient_id=patient_id,
        since=since,
        until=until,
    )
    with opened(config) as store:
        archive = store.archive
        if series_uid:
            found = archive.series_by_uid(series_uid)
        else:
            page = find.find_series(store.database, wanted, limit, offset)
            note(store, wanted, user(), page.total)
            found = archive.series_of([line.subject.series_id for line in page.lines])
        arriving = {each.series_id: each for each in archive.arriving()}
        jobs = {each.id: store.queue.of_series(each.id) for each in found} if series_uid else {}
        completion, zone = store.config.completion, store.zone
    if series_uid and not found:
        terminal.failed(f"no series {series_uid} was received")
    if as_json:
        terminal.print_json(
            [
                inputs.series(each, zone) | {"jobs": [job.id for job in jobs.get(each.id, ())]}
                for each in found
            ]
            if series_uid
            else [inputs.series(each, zone) for each in found]
        )
        return
    columns = ("series", "modality", "description", "instances", "size", "last", "states", "")
    rows = [
        _series_row(each, arriving.get(each.id), jobs.get(each.id, ()), completion, zone)
        for each in found
    ]
    terminal.print_table(columns, rows, empty="Nothing was received yet.")


def _series_row(
    each: "Series",
    arrival: "Arrival | None",
    jobs: "Sequence[Job]",
    completion: "Completion",
    zone: tzinfo | None,
) -> tuple[object, ...]:
    from node.rules.completion import complete_at

    if arrival is not None:
        left = max(0.0, complete_at(arrival, completion) - time.time())
        note = f"complete in {terminal.duration(left)} if nothing more comes"
    elif each.purged_at is not None:
        note = f"files gone {terminal.when(each.purged_at, zone)}"
    else:
        note = ", ".join(f"job {job.id}" for job in jobs)
    return (
        each.series_uid,
        each.modality,
        each.description,
        each.instances,
        terminal.size(each.bytes),
        terminal.when(each.last_at, zone),
        " ".join(each.states),
        note,
    )


def _print_job(found: "Job", instances: int, zone: tzinfo | None) -> None:
    parameters = (f"{k} = {v}" for k, v in found.parameters.items() if v not in (None, ""))
    terminal.print_facts(
        [
            ("job", found.id),
            ("state", _state(found)),
            ("why", " ".join(text for text in (found.reason, found.sentence) if text)),
            ("series", found.series_uid),
            ("stack", found.stack),
            ("instances", instances),
            ("route", f"{found.route}, priority {found.priority}"),
            ("model", f"{found.model} {found.version}".strip()),
            ("parameters", ", ".join(parameters)),
            ("derived series", found.derived_series_uid),
            ("notes", "; ".join(terminal.listed(found.record.get("notes")))),
            ("queued", terminal.when(found.queued_at, zone)),
            ("started", terminal.when(found.started_at, zone)),
            ("finished", terminal.when(found.finished_at, zone)),
        ]
    )


def _print_attempts(attempts: "Sequence[Attempt]", zone: tzinfo | None) -> None:
    rows = [
        (
            each.number,
            each.worker,
            terminal.when(each.started_at, zone),
            terminal.when(each.ended_at, zone),
            each.outcome,
            each.detail,
        )
        for each in attempts
    ]
    columns = ("attempt", "worker", "started", "ended", "outcome", "detail")
    terminal.print_table(columns, rows, empty="It was not attempted yet.")


def _print_deliveries(deliveries: "Sequence[Delivery]", zone: tzinfo | None) -> None:
    rows = [
        (
            each.destination,
            each.state,
            f"{each.sent}/{each.total}",
            f"{each.confirmed}/{each.total}",
            terminal.when(each.due_at, zone) if each.state == "queued" else "",
            each.sentence,
        )
        for each in deliveries
    ]
    columns = ("destination", "state", "sent", "confirmed", "next try", "why")
    terminal.print_table(columns, rows, empty="It has no deliveries.")


def _state(found: "Job") -> str:
    if found.state == "running":
        stopping = ", to be cancelled" if found.cancel_requested else ""
        return f"running {found.progress:.0%}{stopping}"
    return str(found.state)


def _took(found: "Job") -> str:
    if found.started_at is None:
        return ""
    return terminal.duration((found.finished_at or time.time()) - found.started_at)


def _delivered(deliveries: "Sequence[Delivery]") -> str:
    return ", ".join(f"{d.destination} {d.state} {d.sent}/{d.total}" for d in deliveries)


def _end_of(uid: str) -> str:
    """A UID's end tells two series of one scanner apart; `job ID` shows all of it."""
    return uid if len(uid) <= 20 else f"...{uid[-17:]}"


def requeue(job_id: JobId, config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Queue a refused, failed, held or cancelled job again; by its route as it is now."""
    with opened(config) as store:
        store.queue.requeue(job_id, who=user())
        _tell(store, job_id, "is queued again", as_json=as_json)


def cancel(job_id: JobId, config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Cancel a queued, held, failed or running job; a running one stops at its next step."""
    with opened(config) as store:
        state = store.queue.cancel(job_id, who=user())
        said = "stops at its next step" if state == "running" else "is cancelled"
        _tell(store, job_id, said, as_json=as_json)


def redeliver(
    job_id: JobId,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="NAME",
            help="One destination; else those of the job.",
            autocompletion=destinations,
        ),
    ] = "",
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: AsJson = False,
) -> None:
    """Send the derived series of a job once more, without inference."""
    with opened(config) as store:
        if to:
            store.config.destination(to)
        store.ledger.redeliver(job_id, to or None, who=user())
        _tell(store, job_id, f"is delivered again{f' to {to}' if to else ''}", as_json=as_json)


def _tell(store: "Store", job_id: int, said: str, *, as_json: bool) -> None:
    if as_json:
        from node.web.api import inputs

        job, deliveries = store.queue.get(job_id), store.ledger.of_job(job_id)
        terminal.print_json(inputs.job(job, deliveries, store.zone))
    else:
        terminal.say(f"Job {job_id} {said}.")
