"""Jobs, deliveries and series: lists, filters, and what an operator does with them."""

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Annotated, Literal, TypeAlias

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, Field

from node.errors import UsageError
from node.rules import reasons
from node.web.access import AsOperator, AsViewer, Visitor
from node.web.api import answers
from node.web.api.answers import Json, plain
from node.web.api.inputs import (
    LARGEST_ID,
    UID,
    Body,
    Id,
    Line,
    Name,
    Paged,
    PageRequest,
    Uid,
    taken,
    takes,
)
from node.web.state import Parts, PartsOf
from storage.commitment_scu import of_deliveries
from storage.database import Database
from storage.errors import NotFound, StorageError, WrongState
from storage.ledger import instance_states
from storage.queries import find, overview
from storage.queries.find import Wanted, delivery_ids, jobs_with_deliveries
from storage.records import JobState, RequestKind, Series, SeriesSummary, SwitchName
from storage.site import control
from storage.site.audit import FIND

find_router = APIRouter(tags=["find"])
router = APIRouter(tags=["jobs"])
backlog_router = APIRouter(tags=["operating"])
series_router = APIRouter(tags=["series"])

MOST_AT_ONCE = 500
OF_SUBJECT = "patient_id patient_name accession study_date"


class Filter(BaseModel):
    """A filter in an address; everything that is given must hold."""

    state: list[JobState] | None = Field(None, description="One or several.")
    reason: Line = ""
    route: Line = ""
    destination: Line = ""
    sender: Line = Field("", description="A calling AE title.")
    description: Line = Field("", description="What it contains.")
    uid: str = Field("", pattern=rf"^({UID[1:-1]})?$", description="Of any level.")
    since: datetime | None = Field(None, description="ISO 8601")
    until: datetime | None = Field(None, description="ISO 8601")
    text: Line = Field("", description="Any of accession number, patient ID, name.")
    accession: Line = Field("", description="How it begins.")
    patient_id: Line = Field("", description="How it begins.")
    name: Line = Field("", description="How it begins, family name first.")
    study_date: str = Field("", pattern=r"^(\d{8})?$", description="YYYYMMDD")
    study_from: str = Field("", pattern=r"^(\d{8})?$", description="The first day, YYYYMMDD.")
    study_to: str = Field("", pattern=r"^(\d{8})?$", description="The last day, YYYYMMDD.")

    def wanted(self) -> Wanted:
        words = self.model_dump(exclude={"state", "since", "until"})
        return Wanted.typed(words, self.state or (), self.since, self.until)


class Sought(Filter, Body):
    """The filter of `GET /find`, in a body."""


def _wanted(given: Annotated[Filter, Query()]) -> Wanted:
    return given.wanted()


Filtered: TypeAlias = Annotated[Wanted, Depends(_wanted)]


class Priority(Body):
    priority: int = Field(ge=1, le=9, description="1 first, 9 last")


class Redelivery(Body):
    destination: Line = Field("", description="One of the configuration; empty = those of the job.")


class Processing(Body):
    route: Line = Field(
        "",
        description="Process it by this one, whatever it asks for; empty: by those that match.",
    )


class BatchOfIds(Body):
    ids: list[Annotated[int, Field(ge=1, le=LARGEST_ID)]] = Field(
        default=[], max_length=MOST_AT_ONCE, description="Empty: those that the filter finds."
    )


@find_router.get("/jobs", summary="Jobs, the newest first", tags=["jobs"])
def jobs(wanted: Filtered, page: Paged, visitor: AsViewer, parts: PartsOf) -> list[Json]:
    matches = find.jobs(parts.database, wanted, page.limit, page.offset)
    page.of(matches)
    _record_search(parts, visitor, wanted, matches.total)
    jobs = jobs_with_deliveries(parts.database, [line.id for line in matches.lines])
    return [answers.job(job, deliveries, parts.zone) for job, deliveries in jobs]


@find_router.get("/series", summary="What was received, the newest first", tags=["series"])
def series(wanted: Filtered, page: Paged, visitor: AsViewer, parts: PartsOf) -> list[Json]:
    return [_series(line, parts) for line in _matches(wanted, page, visitor, parts)]


@find_router.get("/find", summary="As /series, with what the patient is called: an audit event")
def patients(wanted: Filtered, page: Paged, visitor: AsViewer, parts: PartsOf) -> list[Json]:
    lines = _matches(wanted, page, visitor, parts, always=True)
    return [_series(line, parts) | plain(line.subject, OF_SUBJECT, parts.zone) for line in lines]


@find_router.post(
    "/find",
    summary="The same, with the search terms in the body, as proxies record addresses",
    openapi_extra=takes(Sought),
)
def sought(
    body: Annotated[Sought, Depends(taken(Sought))],
    page: Paged,
    visitor: AsViewer,
    parts: PartsOf,
) -> list[Json]:
    return patients(body.wanted(), page, visitor, parts)


@router.get("/jobs/{job_id}", summary="One job with its attempts, instances and deliveries")
def get_job(job_id: Id, _: AsViewer, parts: PartsOf) -> Json:
    queue, deliveries = parts.store.queue, parts.store.ledger.of_job(job_id)
    return answers.job_in_full(
        queue.get(job_id),
        deliveries,
        queue.attempts(job_id),
        queue.instances(job_id),
        queue.senders(job_id),
        of_deliveries(parts.database, [delivery.id for delivery in deliveries]),
        parts.zone,
    )


@router.get(
    "/jobs/{job_id}/ledger",
    summary="Each instance of its result at each destination: answers, and proof of keeping",
)
def get_ledger(job_id: Id, _: AsViewer, parts: PartsOf) -> list[Json]:
    parts.store.queue.get(job_id)
    return answers.ledger(instance_states(parts.database, job_id), parts.zone)


@router.get("/jobs/{job_id}/ledger.csv", summary="The same as CSV", response_class=Response)
def get_ledger_csv(job_id: Id, _: AsViewer, parts: PartsOf) -> Response:
    parts.store.queue.get(job_id)
    text = answers.ledger_csv(instance_states(parts.database, job_id), parts.zone)
    name = f'attachment; filename="job-{job_id}-ledger.csv"'
    headers = {"Content-Disposition": name}
    return Response(text, media_type="text/csv; charset=utf-8", headers=headers)


@router.post(
    "/jobs/{job_id}/requeue",
    summary="Queue a refused, failed, held or cancelled job",
    description=(
        "Where its route has changed since, the node cancels it within seconds, `ROUTE_CHANGED`:\n"
        "its sentence names the new job, by the route as it is now, that replaces it."
    ),
)
def requeue(job_id: Id, visitor: AsOperator, parts: PartsOf) -> Json:
    parts.store.queue.requeue(job_id, who=visitor.name)
    return _job(parts, job_id)


@router.post("/jobs/{job_id}/cancel", summary="Cancel a queued, held, failed or running job")
def cancel(job_id: Id, visitor: AsOperator, parts: PartsOf) -> Json:
    parts.store.queue.cancel(job_id, who=visitor.name)
    return _job(parts, job_id)


@router.post(
    "/jobs/{job_id}/redeliver",
    summary="Send the derived series once more",
    openapi_extra=takes(Redelivery),
)
def redeliver(
    job_id: Id,
    visitor: AsOperator,
    parts: PartsOf,
    body: Annotated[Redelivery, Depends(taken(Redelivery))],
) -> Json:
    if body.destination:
        parts.config().destination(body.destination)
    parts.store.ledger.redeliver(job_id, body.destination or None, who=visitor.name)
    return _job(parts, job_id)


@router.post("/jobs/{job_id}/priority", summary="1 first, 9 last", openapi_extra=takes(Priority))
def prioritise(
    job_id: Id,
    visitor: AsOperator,
    body: Annotated[Priority, Depends(taken(Priority))],
    parts: PartsOf,
) -> Json:
    parts.store.queue.prioritise(job_id, body.priority, who=visitor.name)
    return _job(parts, job_id)


@router.post(
    "/batch/{action}",
    summary="The same for many jobs; each is done, or says why not",
    openapi_extra=takes(BatchOfIds),
)
def batch(
    action: Literal["requeue", "cancel", "redeliver"],
    visitor: AsOperator,
    body: Annotated[BatchOfIds, Depends(taken(BatchOfIds))],
    wanted: Filtered,
    parts: PartsOf,
) -> list[Json]:
    acts: dict[str, Callable[[int], object]] = {
        "requeue": lambda job_id: _requeue_with_others(parts, visitor, job_id),
        "cancel": lambda job_id: parts.store.queue.cancel(job_id, who=visitor.name),
        "redeliver": lambda job_id: parts.store.ledger.redeliver(job_id, who=visitor.name),
    }
    allowed = "no job is named: give ids, or a filter as GET /api/v1/jobs takes it"
    ids = body.ids or _matching(parts, visitor, wanted, find.job_ids, allowed)
    return [_done(acts[action], job_id) for job_id in dict.fromkeys(ids)]


@router.post(
    "/batch/deliveries/{action}",
    summary="The same for many deliveries: by ids, or the held ones that a filter finds",
    openapi_extra=takes(BatchOfIds),
)
def batch_of_deliveries(
    action: Literal["requeue", "cancel"],
    visitor: AsOperator,
    body: Annotated[BatchOfIds, Depends(taken(BatchOfIds))],
    wanted: Filtered,
    parts: PartsOf,
) -> list[Json]:
    ledger = parts.store.ledger
    act = partial({"requeue": ledger.requeue, "cancel": ledger.cancel}[action], who=visitor.name)
    allowed = "no delivery is named: give ids, or a filter that finds held ones"
    ids = body.ids or _matching(parts, visitor, wanted, delivery_ids, allowed)
    return [_done(act, delivery_id) for delivery_id in dict.fromkeys(ids)]


@router.post("/deliveries/{delivery_id}/requeue", summary="Try it now: held, cancelled, or waiting")
def requeue_delivery(delivery_id: Id, visitor: AsOperator, parts: PartsOf) -> Json:
    parts.store.ledger.requeue(delivery_id, who=visitor.name)
    return _delivery(parts, delivery_id)


@router.post("/deliveries/{delivery_id}/cancel", summary="Give up a delivery")
def cancel_delivery(delivery_id: Id, visitor: AsOperator, parts: PartsOf) -> Json:
    parts.store.ledger.cancel(delivery_id, who=visitor.name)
    return _delivery(parts, delivery_id)


@backlog_router.post(
    "/destinations/{name}/requeue",
    name="requeue",
    summary="Try every held delivery to it again",
)
def requeue_held_deliveries(name: Name, visitor: AsOperator, parts: PartsOf) -> Json:
    """Count what waits again, and what is held still: the rest of a long list, or refused."""
    held = overview.held_for(parts.database, name, MOST_AT_ONCE)
    if not held:
        parts.config().destination(name)  # one that is gone may have held some; an unknown one not
    done = 0
    for delivery_id in held:
        try:
            parts.store.ledger.requeue(delivery_id, who=visitor.name)
        except StorageError:  # somebody was quicker, or its files are gone: it stays in the list
            continue
        done += 1
    return {"name": name, "requeued": done, "held": overview.held(parts.database).get(name, 0)}


@series_router.get("/series/{series_uid}", summary="One received series and its jobs")
def get_series(series_uid: Uid, _: AsViewer, parts: PartsOf) -> Json:
    series, *others = _received(parts, series_uid)
    never = control.is_on(parts.database, SwitchName.NEVER, series_uid)
    return plain(series, answers.SERIES, parts.zone) | {
        "jobs": [job.id for it in (series, *others) for job in parts.store.queue.of_series(it.id)],
        "never_process": never is not None,
        "also_in_studies": [other.study_uid for other in others],
    }


@series_router.post(
    "/series/{series_uid}/process-now",
    summary="Do not wait for further instances of a series; or process it with a route",
    description=(
        "Without a route, what is arriving of the series is complete now. With one, the series is\n"
        "then processed by that route, though its conditions do not hold; `GET wishes/{id}` says\n"
        "which job does it, or has done it before."
    ),
    status_code=202,
    openapi_extra=takes(Processing),
)
def process_now(
    series_uid: Uid,
    visitor: AsOperator,
    parts: PartsOf,
    body: Annotated[Processing, Depends(taken(Processing))],
) -> Json:
    if body.route:
        _check_processable(parts, series_uid, body.route)
    else:
        _check_arriving(parts, series_uid)
    now, kind = parts.gate.now(), RequestKind.PROCESS_NOW
    request = control.ask(parts.database, now, visitor.name, kind, series_uid, route=body.route)
    answer = {"wish": request.id, "series_uid": series_uid}
    return answer | plain(request, "route state asked_at", parts.zone)


@series_router.post("/series/{series_uid}/never", summary="No jobs are made of it")
def never_process(series_uid: Uid, visitor: AsOperator, parts: PartsOf) -> Json:
    return _never(series_uid, visitor, parts, on=True)


@series_router.delete("/series/{series_uid}/never", summary="Jobs are made of it again")
def process_again(series_uid: Uid, visitor: AsOperator, parts: PartsOf) -> Json:
    return _never(series_uid, visitor, parts, on=False)


def _series(line: SeriesSummary, parts: Parts) -> Json:
    return (
        plain(line.subject, "series_uid study_uid modality description")
        | plain(line, "first_at last_at purged_at instances senders", parts.zone)
        | {"states": _states(line), "jobs": [job.id for job in line.jobs]}
    )


def _matches(
    wanted: Wanted, page: PageRequest, visitor: Visitor, parts: Parts, *, always: bool = False
) -> tuple[SeriesSummary, ...]:
    matches = find.find_series(parts.database, wanted, page.limit, page.offset)
    page.of(matches)
    _record_search(parts, visitor, wanted, matches.total, always=always)
    return matches.lines


def _received(parts: Parts, series_uid: str) -> tuple[Series, ...]:
    """Find a received series, once for each study that it is in."""
    series = parts.store.archive.series_by_uid(series_uid)
    if not series:
        raise NotFound(f"no series {series_uid} was received")
    return series


def _check_arriving(parts: Parts, series_uid: str) -> None:
    _received(parts, series_uid)
    if not any(arrival.series_uid == series_uid for arrival in parts.store.archive.arriving()):
        instead = "requeue its job, or name a route that processes it"
        raise WrongState(f"series {series_uid} is not arriving; {instead}")


def _check_processable(parts: Parts, series_uid: str, route: str) -> None:
    """Raise at once for what the node would answer later."""
    parts.config().route(route)
    if all(series.purged_at is not None for series in _received(parts, series_uid)):
        raise WrongState(f"the files of series {series_uid} are no longer kept; have it sent again")


def _states(line: SeriesSummary) -> list[str]:
    arrival = "arriving" if line.arriving else "complete"
    return list(dict.fromkeys((arrival, *(str(job.state) for job in line.jobs))))


def _record_search(
    parts: Parts, visitor: Visitor, wanted: Wanted, count: int, *, always: bool = False
) -> None:
    """Record that somebody looked for a patient, by which fields; never the words themselves."""
    if always or wanted.of_a_patient:
        detail = {"by": list(wanted.of_a_patient), "found": count}
        parts.store.audit.record(visitor.name, FIND, "", detail)


def _matching(
    parts: Parts,
    visitor: Visitor,
    wanted: Wanted,
    find_ids: Callable[[Database, Wanted, int], Sequence[int]],
    allowed: str,
) -> Sequence[int]:
    """Find the rows of a filter; it tells about the patients that it names."""
    if wanted == Wanted():
        raise UsageError(allowed)
    ids = find_ids(parts.database, wanted, MOST_AT_ONCE)
    _record_search(parts, visitor, wanted, len(ids))
    return ids


def _requeue_with_others(parts: Parts, visitor: Visitor, job_id: int) -> None:
    reason = parts.store.queue.get(job_id).reason
    if reason in reasons.ONE_BY_ONE:
        raise WrongState(
            f"job {job_id} is held for {reason}: look at it and requeue it on its own page"
        )
    parts.store.queue.requeue(job_id, who=visitor.name)


def _job(parts: Parts, job_id: int) -> Json:
    return answers.job(parts.store.queue.get(job_id), parts.store.ledger.of_job(job_id), parts.zone)


def _delivery(parts: Parts, delivery_id: int) -> Json:
    return plain(parts.store.ledger.get(delivery_id), f"{answers.DELIVERY} id sentence comment")


def _done(act: Callable[[int], object], number: int) -> Json:
    try:
        act(number)
    except StorageError as error:
        return {"id": number, "done": False, "sentence": str(error)}
    return {"id": number, "done": True, "sentence": ""}


def _never(series_uid: str, visitor: Visitor, parts: Parts, *, on: bool) -> Json:
    _received(parts, series_uid)
    now = parts.gate.now()
    control.turn(parts.database, now, visitor.name, SwitchName.NEVER, series_uid, on=on)
    return {"series_uid": series_uid, "never_process": on}
