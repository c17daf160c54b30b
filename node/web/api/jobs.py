"""Jobs, deliveries and series: lists, filters, and what an operator does with them."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Literal, TypeAlias

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from node.errors import UsageError
from node.rules import reasons
from node.web.access import AsOperator, AsViewer, Visitor
from node.web.api import inputs
from node.web.api.inputs import (
    LARGEST_ID,
    Body,
    Id,
    Json,
    Line,
    Name,
    Paged,
    Uid,
    iso,
    taken,
    takes,
)
from node.web.state import Parts, PartsOf
from storage.errors import NotFound, StorageError, WrongState
from storage.queries import find, overview
from storage.queries.find import Wanted, delivery_ids, jobs_with_deliveries
from storage.records import JobState, RequestKind, SeriesSummary, SwitchName
from storage.site import control

find_router = APIRouter(tags=["find"])

OF_A_PATIENT = ("text", "accession", "patient_id", "name", "study_date")

AnyState: TypeAlias = Literal[
    "queued", "running", "succeeded", "refused", "failed", "held", "cancelled"
]

Asked: TypeAlias = Annotated[Line, Query()]


def _patient(
    text: Annotated[Line, Query(description="Any of accession number, patient ID, name.")] = "",
    accession: Annotated[Line, Query(description="How it begins.")] = "",
    patient_id: Annotated[Line, Query(description="How it begins.")] = "",
    name: Annotated[Line, Query(description="How it begins, family name first.")] = "",
    study_date: Annotated[str, Query(pattern=r"^(\d{8})?$", description="YYYYMMDD")] = "",
) -> Wanted:
    return Wanted(
        text=text.strip(),
        accession=accession.strip(),
        patient_id=patient_id.strip(),
        name=name.strip(),
        study_date=study_date,
    )


def _wanted(
    patient: Annotated[Wanted, Depends(_patient)],
    state: Annotated[list[JobState] | None, Query(description="One or several.")] = None,
    reason: Asked = "",
    route: Asked = "",
    destination: Asked = "",
    sender: Annotated[Line, Query(description="A calling AE title.")] = "",
    description: Annotated[Line, Query(description="What it contains.")] = "",
    uid: Annotated[str, Query(pattern=r"^[0-9.]{0,64}$", description="Of any level.")] = "",
    since: Annotated[datetime | None, Query(description="ISO 8601")] = None,
    until: Annotated[datetime | None, Query(description="ISO 8601")] = None,
) -> Wanted:
    return Wanted(
        states=tuple(state or ()),
        reason=reason,
        route=route,
        destination=destination,
        sender=sender,
        text=patient.text,
        accession=patient.accession,
        patient_id=patient.patient_id,
        name=patient.name,
        study_date=patient.study_date,
        description=description,
        uid=uid,
        since=_seconds(since),
        until=_seconds(until),
    )


Filter: TypeAlias = Annotated[Wanted, Depends(_wanted)]


class Sought(Body):
    """What `GET /find` takes in its address, for a body."""

    text: Line = ""
    accession: Line = ""
    patient_id: Line = ""
    name: Line = ""
    study_date: str = Field("", pattern=r"^(\d{8})?$", description="YYYYMMDD")
    state: list[AnyState] = Field(default=[], description="One or several.")
    reason: Line = ""
    route: Line = ""
    destination: Line = ""
    sender: Line = ""
    description: Line = ""
    uid: str = Field("", pattern=r"^[0-9.]{0,64}$", description="Of any level.")
    since: datetime | None = None
    until: datetime | None = None

    def wanted(self) -> Wanted:
        patient = _patient(self.text, self.accession, self.patient_id, self.name, self.study_date)
        states = [JobState(state) for state in self.state]
        return _wanted(
            patient,
            states,
            reason=self.reason,
            route=self.route,
            destination=self.destination,
            sender=self.sender,
            description=self.description,
            uid=self.uid,
            since=self.since,
            until=self.until,
        )


@find_router.get("/jobs", summary="Jobs, the newest first", tags=["jobs"])
def jobs(wanted: Filter, page: Paged, visitor: AsViewer, parts: PartsOf) -> list[Json]:
    found = find.jobs(parts.database, wanted, page.limit, page.offset)
    page.of(found)
    note_search(parts, visitor, wanted, found.total)
    listed = jobs_with_deliveries(parts.database, [line.id for line in found.lines])
    return [inputs.job(job, deliveries, parts.zone) for job, deliveries in listed]


@find_router.get("/series", summary="What was received, the newest first", tags=["series"])
def series(wanted: Filter, page: Paged, visitor: AsViewer, parts: PartsOf) -> list[Json]:
    found = find.find_series(parts.database, wanted, page.limit, page.offset)
    page.of(found)
    note_search(parts, visitor, wanted, found.total)
    return [_series(line, parts) for line in found.lines]


@find_router.get("/find", summary="As /series, with what the patient is called: an audit event")
def patients(wanted: Filter, page: Paged, visitor: AsViewer, parts: PartsOf) -> list[Json]:
    found = find.find_series(parts.database, wanted, page.limit, page.offset)
    page.of(found)
    note_search(parts, visitor, wanted, found.total, always=True)
    return [_patient_and_series(line, parts) for line in found.lines]


@find_router.post(
    "/find",
    summary="The same, with the words in the body: proxies write addresses down",
    openapi_extra=takes(Sought),
)
def sought(
    body: Annotated[Sought, Depends(taken(Sought))],
    page: Paged,
    visitor: AsViewer,
    parts: PartsOf,
) -> list[Json]:
    return patients(body.wanted(), page, visitor, parts)


def _patient_and_series(line: SeriesSummary, parts: Parts) -> Json:
    return _series(line, parts) | {
        "patient_id": line.subject.patient_id,
        "patient_name": line.subject.patient_name,
        "accession": line.subject.accession,
        "study_date": line.subject.study_date,
    }


def _series(line: SeriesSummary, parts: Parts) -> Json:
    return {
        "series_uid": line.subject.series_uid,
        "study_uid": line.subject.study_uid,
        "modality": line.subject.modality,
        "description": line.subject.description,
        "first_at": iso(line.first_at, parts.zone),
        "last_at": iso(line.last_at, parts.zone),
        "purged_at": iso(line.purged_at, parts.zone),
        "instances": line.instances,
        "senders": list(line.senders),
        "states": _states(line),
        "jobs": [job.id for job in line.jobs],
    }


def _states(line: SeriesSummary) -> list[str]:
    arrival = "arriving" if line.arriving else "complete"
    return list(dict.fromkeys((arrival, *(str(job.state) for job in line.jobs))))


def note_search(
    parts: Parts, visitor: Visitor, wanted: Wanted, found: int, *, always: bool = False
) -> None:
    """Who looked for a patient, by what, and how many were found; never the words themselves."""
    if always or wanted.names_a_patient:
        by = [name for name in OF_A_PATIENT if getattr(wanted, name)]
        detail = {"by": by, "found": found}
        parts.store.audit.record(visitor.name, "find", "", detail)


def _seconds(moment: datetime | None) -> float | None:
    """Without an offset it is the system's own time, as everywhere."""
    return moment.timestamp() if moment is not None else None


router = APIRouter(tags=["jobs"])

MOST_AT_ONCE = 500


class Priority(Body):
    priority: int = Field(ge=1, le=9, description="1 first, 9 last")


class Redelivery(Body):
    destination: Line = Field("", description="One of the configuration; empty = those of the job.")


class Batch(Body):
    ids: list[Annotated[int, Field(ge=1, le=LARGEST_ID)]] = Field(
        default=[], max_length=MOST_AT_ONCE, description="Empty: those that the filter finds."
    )


@router.get("/jobs/{job_id}", summary="One job with its attempts, instances and deliveries")
def get_job(job_id: Id, _: AsViewer, parts: PartsOf) -> Json:
    queue, ledger = parts.store.queue, parts.store.ledger
    return inputs.job_in_full(
        queue.get(job_id),
        ledger.of_job(job_id),
        queue.attempts(job_id),
        queue.instances(job_id),
        parts.zone,
    )


@router.post("/jobs/{job_id}/requeue", summary="Queue a refused, failed, held or cancelled job")
def requeue(job_id: Id, visitor: AsOperator, parts: PartsOf) -> Json:
    """Where its route has changed since, the node cancels it within seconds, `ROUTE_CHANGED`:
    its sentence names the new job, by the route as it is now, that replaces it.
    """
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
    openapi_extra=takes(Batch),
)
def batch(
    action: Literal["requeue", "cancel", "redeliver"],
    visitor: AsOperator,
    body: Annotated[Batch, Depends(taken(Batch))],
    wanted: Filter,
    parts: PartsOf,
) -> list[Json]:
    acts: dict[str, Callable[[int], object]] = {
        "requeue": lambda job_id: _requeue_with_others(parts, visitor, job_id),
        "cancel": lambda job_id: parts.store.queue.cancel(job_id, who=visitor.name),
        "redeliver": lambda job_id: parts.store.ledger.redeliver(job_id, who=visitor.name),
    }
    if not body.ids and wanted == Wanted():
        raise UsageError("name jobs by ids, or by a filter as GET /api/v1/jobs takes it")
    ids = body.ids or find.job_ids(parts.database, wanted, MOST_AT_ONCE)
    if not body.ids:  # what a filter finds tells about the patients that it names
        note_search(parts, visitor, wanted, len(ids))
    return [_done(acts[action], job_id) for job_id in dict.fromkeys(ids)]


@router.post(
    "/batch/deliveries/{action}",
    summary="The same for many deliveries: by ids, or the held ones that a filter finds",
    openapi_extra=takes(Batch),
)
def batch_of_deliveries(
    action: Literal["requeue", "cancel"],
    visitor: AsOperator,
    body: Annotated[Batch, Depends(taken(Batch))],
    wanted: Filter,
    parts: PartsOf,
) -> list[Json]:
    ledger = parts.store.ledger
    act = {"requeue": ledger.requeue, "cancel": ledger.cancel}[action]
    if not body.ids and wanted == Wanted():
        raise UsageError("name deliveries by ids, or the held ones by a filter")
    ids = body.ids or delivery_ids(parts.database, wanted, MOST_AT_ONCE)
    if not body.ids:
        note_search(parts, visitor, wanted, len(ids))
    who = visitor.name
    return [_done(lambda one: act(one, who=who), each) for each in dict.fromkeys(ids)]


@router.post("/deliveries/{delivery_id}/requeue", summary="Try it now: held, cancelled, or waiting")
def requeue_delivery(delivery_id: Id, visitor: AsOperator, parts: PartsOf) -> Json:
    parts.store.ledger.requeue(delivery_id, who=visitor.name)
    return _delivery(parts, delivery_id)


@router.post("/deliveries/{delivery_id}/cancel", summary="Give a delivery up")
def cancel_delivery(delivery_id: Id, visitor: AsOperator, parts: PartsOf) -> Json:
    parts.store.ledger.cancel(delivery_id, who=visitor.name)
    return _delivery(parts, delivery_id)


def _requeue_with_others(parts: Parts, visitor: Visitor, job_id: int) -> None:
    reason = parts.store.queue.get(job_id).reason
    if reason in reasons.ONE_BY_ONE:
        raise WrongState(f"job {job_id} is held {reason}: look at it and requeue it by itself")
    parts.store.queue.requeue(job_id, who=visitor.name)


def _job(parts: Parts, job_id: int) -> Json:
    return inputs.job(parts.store.queue.get(job_id), parts.store.ledger.of_job(job_id), parts.zone)


def _delivery(parts: Parts, delivery_id: int) -> Json:
    found = parts.store.ledger.get(delivery_id)
    return inputs.delivery(found) | {"id": found.id, "sentence": found.sentence}


def _done(act: Callable[[int], object], number: int) -> Json:
    try:
        act(number)
    except StorageError as error:
        return {"id": number, "done": False, "sentence": str(error)}
    return {"id": number, "done": True, "sentence": ""}


backlog_router = APIRouter(tags=["operating"])


@backlog_router.post(
    "/destinations/{name}/requeue",
    name="requeue",
    summary="Try every held delivery to it again",
)
def requeue_held_deliveries(name: Name, visitor: AsOperator, parts: PartsOf) -> Json:
    """How many wait again, and how many are held still: the rest of a long list, or refused."""
    waiting = overview.held_for(parts.database, name, MOST_AT_ONCE)
    if not waiting:
        parts.config().destination(name)  # one that is gone may have held some; an unknown one not
    done = 0
    for delivery_id in waiting:
        try:
            parts.store.ledger.requeue(delivery_id, who=visitor.name)
        except StorageError:  # somebody was quicker, or its files are gone: it stays in the list
            continue
        done += 1
    return {"name": name, "requeued": done, "held": overview.held(parts.database).get(name, 0)}


series_router = APIRouter(tags=["series"])


@series_router.get("/series/{series_uid}", summary="One received series and its jobs")
def get_series(series_uid: Uid, _: AsViewer, parts: PartsOf) -> Json:
    found = parts.store.archive.series_by_uid(series_uid)
    if not found:
        raise NotFound(f"no series {series_uid} was received")
    jobs = [job.id for each in found for job in parts.store.queue.of_series(each.id)]
    never = control.is_on(parts.database, SwitchName.NEVER, series_uid)
    return inputs.series(found[0], parts.zone) | {
        "jobs": jobs,
        "never_process": never is not None,
        "also_in_studies": [each.study_uid for each in found[1:]],
    }


@series_router.post(
    "/series/{series_uid}/process-now",
    summary="Do not wait for further instances of a series that is arriving",
    status_code=202,
)
def process_now(series_uid: Uid, visitor: AsOperator, parts: PartsOf) -> Json:
    if not parts.store.archive.series_by_uid(series_uid):
        raise NotFound(f"no series {series_uid} was received")
    if not any(each.series_uid == series_uid for each in parts.store.archive.arriving()):
        raise WrongState(f"series {series_uid} is not arriving; requeue its job instead")
    asked = control.ask(
        parts.database, parts.gate.now(), visitor.name, RequestKind.PROCESS_NOW, series_uid
    )
    return {
        "wish": asked.id,
        "series_uid": series_uid,
        "state": str(asked.state),
        "asked_at": iso(asked.asked_at, parts.zone),
    }


@series_router.post("/series/{series_uid}/never", summary="No jobs are made of it")
def never_process(series_uid: Uid, visitor: AsOperator, parts: PartsOf) -> Json:
    return _never(series_uid, visitor, parts, on=True)


@series_router.delete("/series/{series_uid}/never", summary="Jobs are made of it again")
def process_again(series_uid: Uid, visitor: AsOperator, parts: PartsOf) -> Json:
    return _never(series_uid, visitor, parts, on=False)


def _never(series_uid: str, visitor: Visitor, parts: Parts, *, on: bool) -> Json:
    if not parts.store.archive.series_by_uid(series_uid):
        raise NotFound(f"no series {series_uid} was received")
    now = parts.gate.now()
    control.turn(parts.database, now, visitor.name, SwitchName.NEVER, series_uid, on=on)
    return {"series_uid": series_uid, "never_process": on}
