"""Commands about the queue: received series, their jobs, and the changes that an operator makes."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node import wording
from node.commands import terminal
from node.commands.terminal import DEFAULT_CONFIG, AsJson, ConfigFile, opened, user
from node.errors import NodeError, UsageError
from storage.records import Arrival, Commitment, Delivery, Instance, Job, JobState, Series

if TYPE_CHECKING:
    from node.config import Completion, Config
    from node.store import Store
    from storage.ledger import InstanceState
    from storage.queries.find import Wanted

ROUTE_CHANGED = "its route has changed since"
MOST_ROWS = 100  # of a list, unless --limit says otherwise
# Options of a list that are given to the search as they are typed.
TEXTS = ("reason", "route", "destination", "sender", "uid", "accession", "patient_id")


def _configured() -> "Config | None":
    """The configuration in this folder, for the completion of names in a shell."""
    from node.config import load

    try:
        return load(DEFAULT_CONFIG)
    except NodeError:
        return None


def routes() -> list[str]:
    """Names of routes, to complete one in a shell."""
    config = _configured()
    return [route.name for route in config.routes] if config else []


def destinations() -> list[str]:
    """Names of destinations, to complete one in a shell."""
    config = _configured()
    return [destination.name for destination in config.destinations] if config else []


State = Annotated[
    str,
    typer.Option(
        "--state",
        metavar="S",
        help="Only jobs in this state: queued, running, held, ...",
        autocompletion=lambda: list(JobState),
    ),
]
Reason = Annotated[str, typer.Option("--reason", help="A reason code, as MISSING_SLICES.")]
Route = Annotated[str, typer.Option("--route", help="Of this route.", autocompletion=routes)]
Destination = Annotated[
    str, typer.Option("--destination", help="For this one.", autocompletion=destinations)
]
Sender = Annotated[str, typer.Option("--sender", help="From this calling AE title.")]
Uid = Annotated[str, typer.Option("--uid", help="Of a study, series or instance, derived too.")]
Accession = Annotated[str, typer.Option("--accession", help="How the number begins.")]
PatientId = Annotated[str, typer.Option("--patient-id", help="How the ID begins.")]
Since = Annotated[str, typer.Option("--since", metavar="TIME", help="As 2026-03-01T07:30.")]
Until = Annotated[str, typer.Option("--until", metavar="TIME", help="As 2026-03-01T07:30.")]
Limit = Annotated[int, typer.Option("--limit", help="At most this many, the newest first.", min=1)]
Offset = Annotated[int, typer.Option("--offset", help="Skip this many.", min=0)]
JobId = Annotated[int, typer.Argument(metavar="ID", help="The number of a job.")]


def wanted_by(options: Mapping[str, Any]) -> "Wanted":
    """The filter of a list; raises UsageError for a state or a time that there is not."""
    from storage.queries.find import Wanted

    state = options["state"]
    if state and state not in tuple(JobState):
        raise UsageError(f"--state {state}: one of {', '.join(JobState)}")
    words = {name: options[name] for name in TEXTS if name in options}
    times = (_time(f"--{name}", options[name]) for name in ("since", "until"))
    return Wanted.typed(words, [state] if state else [], *times)


def note_search(store: "Store", wanted: "Wanted", total: int) -> None:
    """Write the audit event of a look for a patient, as the pages do; the words stay out of it."""
    from storage.site.audit import FIND

    if wanted.of_a_patient:
        store.audit.record(user(), FIND, "", {"by": list(wanted.of_a_patient), "found": total})


def _time(option: str, text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        raise UsageError(f"{option} {text}: a time as 2026-03-01T07:30") from None


def jobs(
    context: typer.Context,
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
    from node.web.api import answers
    from storage.queries import find

    wanted = wanted_by(context.params)
    with opened(config) as store:
        page = find.jobs(store.database, wanted, limit, offset)
        note_search(store, wanted, page.total)
        rows = find.jobs_with_deliveries(store.database, [line.id for line in page.lines])
        arriving = store.archive.arriving() if wanted == type(wanted)() else ()
        has_series = bool(find.find_series(store.database, type(wanted)(), limit=1).lines)
        completion, zone = store.config.completion, store.zone
    deliveries = {job.id: of_job for job, of_job in rows}
    terminal.show(
        [job for job, _ in rows],
        (
            "id",
            ("state", _state),
            ("series", lambda job: terminal.uid_end(job.series_uid)),
            "route",
            "model",
            "queued_at",
            ("took", _took),
            ("confidence", lambda job: wording.confidence(job.confidence_counts)),
            ("deliveries", lambda job: ", ".join(map(_delivered, deliveries[job.id]))),
            ("why", "sentence"),
        ),
        zone,
        as_json=as_json,
        document=lambda job, zone: answers.job(job, deliveries[job.id], zone),
        empty=_no_jobs(wanted, has_series=has_series),
    )
    for arrival in () if as_json else arriving:
        terminal.say(_arriving(arrival, completion), style=terminal.COLOURS["arriving"])


def _arriving(arrival: Arrival, completion: "Completion") -> str:
    """Tell of a series that has no job yet because it is still coming in."""
    brought = f"{wording.count(arrival.instances, 'instance')} from {arrival.calling_ae}"
    uid = terminal.uid_end(arrival.series_uid)
    return f"Arriving: series {uid}, {brought}, {_complete_in(arrival, completion)}."


def _state(job: Job) -> str:
    if job.state == JobState.RUNNING:
        stopping = ", to be cancelled" if job.cancel_requested else ""
        return f"running {job.progress:.0%}{stopping}"
    return str(job.state)


def _took(job: Job) -> str:
    if job.started_at is None:
        return ""
    return wording.duration((job.finished_at or time.time()) - job.started_at)


def _delivered(delivery: Delivery) -> str:
    return f"{delivery.destination} {delivery.state} {delivery.sent}/{delivery.total}"


def _no_jobs(wanted: "Wanted", *, has_series: bool) -> str:
    everything = type(wanted)()
    if wanted == everything:
        listed = " `midslice series` lists what was received." if has_series else ""
        return f"There are no jobs.{listed}"
    by_state = replace(everything, states=wanted.states)
    return f"No job is {''.join(wanted.states)}." if wanted == by_state else "No job matches."


def job(job_id: JobId, config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """One job with its attempts, instances and deliveries."""
    from node.web.api import answers
    from storage.commitment_scu import of_deliveries

    with opened(config) as store:
        row, zone = store.queue.get(job_id), store.zone
        deliveries = store.ledger.of_job(job_id)
        proofs = of_deliveries(store.database, [delivery.id for delivery in deliveries])
        attempts = store.queue.attempts(job_id)
        instances = store.queue.instances(job_id)
        senders = store.queue.senders(job_id)
    if as_json:
        whole = answers.job_in_full(row, deliveries, attempts, instances, senders, proofs, zone)
        terminal.print_json(whole)
        return
    _print_facts(row, len(instances), senders, zone)
    columns = (("attempt", "number"), "worker", "started_at", "ended_at", "outcome", "detail")
    terminal.tabulate(attempts, columns, zone, empty="It has not been tried yet.")
    _print_deliveries(deliveries, proofs, zone)


def ledger(
    job_id: JobId,
    config: ConfigFile = DEFAULT_CONFIG,
    as_csv: Annotated[bool, typer.Option("--csv", help="A row an instance, as CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """Each instance of a job's result at each destination: answers, and proof that it is kept."""
    from node.web.api import answers
    from storage.ledger import instance_states

    with opened(config) as store:
        store.queue.get(job_id)
        instances, zone = instance_states(store.database, job_id), store.zone
    if as_csv:
        sys.stdout.write(answers.ledger_csv(instances, zone))
        return
    terminal.show(
        instances,
        (
            "destination",
            "instance_uid",
            "kind",
            "offers",
            ("status", lambda it: "" if it.status is None else f"{it.status:04X}"),
            "answered_at",
            "confirmed_at",
            ("by", lambda it: it.evidence or ""),
            ("failure", _failure),
        ),
        zone,
        as_json=as_json,
        document=lambda it, zone: answers.ledger([it], zone)[0],
        empty="Nothing of it was to be delivered.",
    )


def _failure(instance: "InstanceState") -> str:
    failure = instance.commitment_failure
    return "" if failure is None else f"{failure:04X}"


def _print_facts(job: Job, instances: int, senders: Sequence[str], zone: tzinfo | None) -> None:
    parameters = (f"{k} = {v}" for k, v in job.parameters.items() if v not in (None, ""))
    terminal.print_facts(
        [
            ("job", job.id),
            ("state", _state(job)),
            ("why", " ".join(text for text in (job.reason, job.sentence) if text)),
            ("series", job.series_uid),
            ("stack", job.stack),
            ("senders", ", ".join(senders)),
            ("instances", instances),
            ("set aside", " ".join(wording.set_aside(job.record))),
            ("route", f"{job.route}, priority {job.priority}"),
            ("model", f"{job.model} {job.version}".strip()),
            ("parameters", ", ".join(parameters)),
            ("derived series", job.derived_series_uid),
            ("confidence", wording.confidence(job.confidence_counts)),
            ("result", wording.result(job.record)),
            ("notes", "; ".join(terminal.texts(job.record.get("notes")))),
            ("queued", terminal.when(job.queued_at, zone)),
            ("started", terminal.when(job.started_at, zone)),
            ("finished", terminal.when(job.finished_at, zone)),
        ]
    )


def _print_deliveries(
    deliveries: Sequence[Delivery], proofs: Mapping[int, Commitment], zone: tzinfo | None
) -> None:
    columns: tuple[terminal.Column[Delivery], ...] = (
        "destination",
        "state",
        ("sent", lambda delivery: f"{delivery.sent}/{delivery.total}"),
        ("confirmed", lambda delivery: f"{delivery.confirmed}/{delivery.total}"),
        ("next try", lambda d: terminal.when(d.due_at, zone) if d.state == "queued" else ""),
        ("why", "sentence"),
        ("proof", lambda delivery: wording.proof(proofs.get(delivery.id))),
    )
    terminal.tabulate(deliveries, columns, zone, empty="It has no deliveries.")


def series(
    context: typer.Context,
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
    """All of one series; or received series, newest first, where each filter given holds."""
    if series_uid:
        _show_series(series_uid, config, as_json=as_json)
        return
    from node.web.api import answers
    from storage.queries import find

    wanted = wanted_by(context.params)
    with opened(config) as store:
        page = find.find_series(store.database, wanted, limit, offset)
        note_search(store, wanted, page.total)
        rows = store.archive.series_of([line.subject.series_id for line in page.lines])
        arriving = {arrival.series_id: arrival for arrival in store.archive.arriving()}
        completion, zone = store.config.completion, store.zone

    def note(row: Series) -> str:
        if row.id in arriving:
            return _complete_in(arriving[row.id], completion)
        return _purged(row, zone)

    terminal.show(
        rows,
        (
            ("series", "series_uid"),
            "modality",
            "description",
            "instances",
            ("size", lambda row: wording.size(row.bytes)),
            "last_at",
            ("states", lambda row: " ".join(row.states)),
            ("", note),
        ),
        zone,
        as_json=as_json,
        document=lambda row, zone: answers.plain(row, answers.SERIES, zone),
        empty="Nothing has been received yet.",
    )


def _purged(row: Series, zone: tzinfo | None) -> str:
    return f"files gone {terminal.when(row.purged_at, zone)}" if row.purged_at is not None else ""


@dataclass(frozen=True)
class WholeSeries:
    """A received series in one study, with all that belongs to it."""

    row: Series
    arrivals: tuple[Arrival, ...]  # the newest first
    instances: tuple[Instance, ...]  # all versions
    jobs: tuple[Job, ...]
    stacks: tuple[tuple[str, int], ...]  # name and number of slices; empty where no file is kept
    why: str  # no job was made of it; empty where one was, or it is still arriving

    def document(self, zone: tzinfo | None) -> object:
        from node.web.api import answers

        arrival = "calling_ae called_ae state first_at last_at completed_at instances"
        return answers.plain(self.row, answers.SERIES, zone) | {
            "jobs": [job.id for job in self.jobs],
            "why": self.why,
            "stacks": [{"stack": name, "slices": count} for name, count in self.stacks],
            "arrivals": [answers.plain(it, arrival, zone) for it in self.arrivals],
            "versions": [
                answers.plain(it, answers.INSTANCE, zone) | {"kept": it.path is not None}
                for it in self.instances
            ],
        }


def _show_series(series_uid: str, config: Path, *, as_json: bool) -> None:
    with opened(config) as store:
        rows = store.archive.series_by_uid(series_uid)
        if not rows:
            terminal.failed(f"no series {series_uid} was received")
        whole = [_whole(store, row) for row in rows]
        completion, zone = store.config.completion, store.zone
    if as_json:
        terminal.print_json([series.document(zone) for series in whole])
        return
    for series in whole:
        _print_series(series, completion, zone)


def _whole(store: "Store", row: Series) -> WholeSeries:
    from node.rules.reasons import why_no_job

    of_uid = store.archive.arrivals_of(row.series_uid)
    arrivals = tuple(arrival for arrival in of_uid if arrival.series_id == row.id)
    instances = store.archive.instances_of(row.id)
    jobs = store.queue.of_series(row.id)
    is_arriving = any(arrival.completed_at is None for arrival in arrivals)
    newest = arrivals[0] if arrivals else None
    why = "" if jobs or is_arriving else why_no_job(newest, masked=True)
    return WholeSeries(row, arrivals, instances, jobs, _stacks(store, instances), why)


def _stacks(store: "Store", instances: Sequence[Instance]) -> tuple[tuple[str, int], ...]:
    from inference.stacks import read_headers, stacks_of
    from node.work.jobs import sources

    headers = read_headers(sources(instances, store.files))
    return tuple((stack.key, len(stack)) for stack in stacks_of(headers))


def _print_series(series: WholeSeries, completion: "Completion", zone: tzinfo | None) -> None:
    _print_series_facts(series, zone)
    stacks = (("stack", lambda it: it[0]), ("slices", lambda it: it[1]))
    terminal.tabulate(
        series.stacks,
        stacks,
        zone,
        empty="No stack: none of its files is kept and readable.",
    )
    arrivals: tuple[terminal.Column[Arrival], ...] = (
        ("from", "calling_ae"),
        ("to", "called_ae"),
        "instances",
        "first_at",
        "last_at",
        ("complete", lambda arrival: _completion(arrival, completion, zone)),
    )
    terminal.tabulate(series.arrivals, arrivals, zone, empty="No peer is known to have brought it.")
    jobs: tuple[terminal.Column[Job], ...] = (
        ("job", "id"),
        ("state", _state),
        "route",
        "stack",
        "queued_at",
        ("took", _took),
        ("why", "sentence"),
    )
    terminal.tabulate(series.jobs, jobs, zone, empty="There are no jobs of it.")


def _print_series_facts(series: WholeSeries, zone: tzinfo | None) -> None:
    row = series.row
    further = len(series.instances) - row.instances
    more = f", and {wording.count(further, 'further version')}" if further > 0 else ""
    terminal.print_facts(
        [
            ("series", row.series_uid),
            ("study", row.study_uid),
            ("what", f"{row.modality} {row.description}".strip()),
            ("instances", f"{row.instances}{more}, {wording.size(row.bytes)}"),
            ("files", _purged(row, zone)),
            ("no job", series.why),
        ]
    )


def _completion(arrival: Arrival, completion: "Completion", zone: tzinfo | None) -> str:
    from node.rules.completion import because
    from node.rules.reasons import why_open

    if arrival.completed_at is None:
        return why_open(arrival) or _complete_in(arrival, completion)
    return f"{terminal.when(arrival.completed_at, zone)}. {because(arrival.evidence)}"


def _complete_in(arrival: Arrival, completion: "Completion") -> str:
    from node.rules.completion import complete_at

    left = max(0.0, complete_at(arrival, completion) - time.time())
    return f"complete in {wording.whole_duration(left)} if nothing more comes"


def requeue(job_id: JobId, config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Queue a refused, failed, held or cancelled job again, with its route as it is now."""
    with opened(config) as store:
        store.queue.requeue(job_id, who=user())
        _print_changed(store, job_id, "is queued again", as_json=as_json)


def cancel(job_id: JobId, config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Cancel a queued, held, failed or running job; a running one stops at its next step."""
    with opened(config) as store:
        state = store.queue.cancel(job_id, who=user())
        end = "stops at its next step" if state == JobState.RUNNING else "is cancelled"
        _print_changed(store, job_id, end, as_json=as_json)


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
        end = f"is delivered again{f' to {to}' if to else ''}"
        _print_changed(store, job_id, end, as_json=as_json)


def _print_changed(store: "Store", job_id: int, end: str, *, as_json: bool) -> None:
    if as_json:
        from node.web.api import answers

        job, deliveries = store.queue.get(job_id), store.ledger.of_job(job_id)
        terminal.print_json(answers.job(job, deliveries, store.zone))
    else:
        terminal.say(f"Job {job_id} {end}.")
