"""Commands about the queue: what was received, and what became of it."""

import time
from datetime import tzinfo
from typing import TYPE_CHECKING, Annotated

import typer

from node.commands import filters, terminal
from node.commands.account import user
from node.commands.store import opened
from node.commands.terminal import DEFAULT_CONFIG, AsJson, ConfigFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from node.config import Completion
    from storage.queries.find import Wanted
    from storage.records import Arrival, Attempt, Delivery, Job, Series

JobId = Annotated[int, typer.Argument(metavar="ID", help="The number of a job.")]
Limit = Annotated[int, typer.Option("--limit", help="The newest so many.", min=1)]
MOST_ROWS = 100


def jobs(
    state: filters.State = "",
    reason: filters.Reason = "",
    route: filters.Route = "",
    destination: filters.Destination = "",
    sender: filters.Sender = "",
    uid: filters.Uid = "",
    accession: filters.Accession = "",
    patient_id: filters.PatientId = "",
    since: filters.Since = "",
    until: filters.Until = "",
    limit: Limit = MOST_ROWS,
    offset: filters.Offset = 0,
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: AsJson = False,
) -> None:
    """The queue, newest first; each filter that is given must hold."""
    from node.web.api import inputs
    from storage.queries import find
    from storage.queries.find import jobs_with_deliveries

    wanted = filters.wanted(
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
        filters.note(store, wanted, user(), page.total)
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
    if wanted == filters.wanted():
        return "There are no jobs."
    state = "".join(wanted.states)
    return f"No job is {state}." if wanted == filters.wanted(state=state) else "No job is such."


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
    state: filters.State = "",
    route: filters.Route = "",
    sender: filters.Sender = "",
    accession: filters.Accession = "",
    patient_id: filters.PatientId = "",
    since: filters.Since = "",
    until: filters.Until = "",
    limit: Limit = MOST_ROWS,
    offset: filters.Offset = 0,
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: AsJson = False,
) -> None:
    """What was received, newest first; each filter that is given must hold."""
    from node.web.api import inputs
    from storage.queries import find

    wanted = filters.wanted(
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
            page = find.found_series(store.database, wanted, limit, offset)
            filters.note(store, wanted, user(), page.total)
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
