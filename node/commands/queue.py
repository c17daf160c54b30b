"""Commands about the queue: received series, their jobs, and the changes that an operator makes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, tzinfo
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node import wording
from node.commands import terminal
from node.commands.terminal import DEFAULT_CONFIG, AsJson, ConfigFile, opened, user
from node.errors import NodeError, UsageError
from storage.records import Arrival, Delivery, Job, JobState, Series

if TYPE_CHECKING:
    from node.config import Completion, Config
    from node.store import Store
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


def _routes() -> list[str]:
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
        help="Only those: queued, running, held, ...",
        autocompletion=lambda: list(JobState),
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
        zone = store.zone
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
        empty=_no_jobs(wanted),
    )


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


def _no_jobs(wanted: "Wanted") -> str:
    everything = type(wanted)()
    if wanted == everything:
        return "There are no jobs."
    by_state = replace(everything, states=wanted.states)
    return f"No job is {''.join(wanted.states)}." if wanted == by_state else "No job matches."


def job(job_id: JobId, config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """One job with its attempts, instances and deliveries."""
    from node.web.api import answers

    with opened(config) as store:
        row, zone = store.queue.get(job_id), store.zone
        deliveries = store.ledger.of_job(job_id)
        attempts = store.queue.attempts(job_id)
        instances = store.queue.instances(job_id)
    if as_json:
        terminal.print_json(answers.job_in_full(row, deliveries, attempts, instances, zone))
        return
    _print_facts(row, len(instances), zone)
    columns = (("attempt", "number"), "worker", "started_at", "ended_at", "outcome", "detail")
    terminal.tabulate(attempts, columns, zone, empty="It has not been tried yet.")
    _print_deliveries(deliveries, zone)


def _print_facts(job: Job, instances: int, zone: tzinfo | None) -> None:
    parameters = (f"{k} = {v}" for k, v in job.parameters.items() if v not in (None, ""))
    terminal.print_facts(
        [
            ("job", job.id),
            ("state", _state(job)),
            ("why", " ".join(text for text in (job.reason, job.sentence) if text)),
            ("series", job.series_uid),
            ("stack", job.stack),
            ("instances", instances),
            ("route", f"{job.route}, priority {job.priority}"),
            ("model", f"{job.model} {job.version}".strip()),
            ("parameters", ", ".join(parameters)),
            ("derived series", job.derived_series_uid),
            ("confidence", wording.confidence(job.confidence_counts)),
            ("notes", "; ".join(terminal.texts(job.record.get("notes")))),
            ("queued", terminal.when(job.queued_at, zone)),
            ("started", terminal.when(job.started_at, zone)),
            ("finished", terminal.when(job.finished_at, zone)),
        ]
    )


def _print_deliveries(deliveries: Sequence[Delivery], zone: tzinfo | None) -> None:
    columns: tuple[terminal.Column[Delivery], ...] = (
        "destination",
        "state",
        ("sent", lambda delivery: f"{delivery.sent}/{delivery.total}"),
        ("confirmed", lambda delivery: f"{delivery.confirmed}/{delivery.total}"),
        ("next try", lambda d: terminal.when(d.due_at, zone) if d.state == "queued" else ""),
        ("why", "sentence"),
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
    """Received series, newest first; each filter that is given must hold."""
    from node.web.api import answers

    wanted = wanted_by(context.params)
    with opened(config) as store:
        rows = _received(store, series_uid, wanted, limit, offset)
        arriving = {arrival.series_id: arrival for arrival in store.archive.arriving()}
        jobs = {row.id: store.queue.of_series(row.id) for row in rows} if series_uid else {}
        completion, zone = store.config.completion, store.zone

    def document(row: Series, zone: tzinfo | None) -> object:
        facts = answers.plain(row, answers.SERIES, zone)
        return facts | {"jobs": [job.id for job in jobs[row.id]]} if series_uid else facts

    def note(row: Series) -> str:
        if row.id in arriving:
            return _complete_in(arriving[row.id], completion)
        if row.purged_at is not None:
            return f"files gone {terminal.when(row.purged_at, zone)}"
        return ", ".join(f"job {job.id}" for job in jobs.get(row.id, ()))

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
        document=document,
        empty="Nothing has been received yet.",
    )


def _received(
    store: "Store", series_uid: str, wanted: "Wanted", limit: int, offset: int
) -> Sequence[Series]:
    """The series of that UID, else those of a page of the list."""
    from storage.queries import find

    if not series_uid:
        page = find.find_series(store.database, wanted, limit, offset)
        note_search(store, wanted, page.total)
        return store.archive.series_of([line.subject.series_id for line in page.lines])
    rows = store.archive.series_by_uid(series_uid)
    if not rows:
        terminal.failed(f"no series {series_uid} was received")
    return rows


def _complete_in(arrival: Arrival, completion: "Completion") -> str:
    from node.rules.completion import complete_at

    left = max(0.0, complete_at(arrival, completion) - time.time())
    return f"complete in {wording.whole_duration(left)} if nothing more comes"


def requeue(job_id: JobId, config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Queue a refused, failed, held or cancelled job again; by its route as it is now."""
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
