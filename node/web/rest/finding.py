"""Jobs and series by what is known of them; each look at a patient is an audit event."""

from datetime import datetime
from typing import Annotated, Literal, TypeAlias

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from node.rules import view
from node.rules.view import Json, iso
from node.web.auth import AsViewer, Visitor
from node.web.parts import Parts, PartsOf
from node.web.rest.bodies import Body, taken, takes
from node.web.rest.inputs import Line, Paged
from storage.queries import find
from storage.queries.find import Wanted, jobs_with_deliveries
from storage.records import JobState, SeriesLine

router = APIRouter(tags=["find"])

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


@router.get("/jobs", summary="Jobs, the newest first", tags=["jobs"])
def jobs(wanted: Filter, page: Paged, visitor: AsViewer, parts: PartsOf) -> list[Json]:
    found = find.jobs(parts.database, wanted, page.limit, page.offset)
    page.of(found)
    note_search(parts, visitor, wanted, found.total)
    listed = jobs_with_deliveries(parts.database, [line.id for line in found.lines])
    return [view.job(job, deliveries, parts.zone) for job, deliveries in listed]


@router.get("/series", summary="What was received, the newest first", tags=["series"])
def series(wanted: Filter, page: Paged, visitor: AsViewer, parts: PartsOf) -> list[Json]:
    found = find.found_series(parts.database, wanted, page.limit, page.offset)
    page.of(found)
    note_search(parts, visitor, wanted, found.total)
    return [_series(line, parts) for line in found.lines]


@router.get("/find", summary="As /series, with what the patient is called: an audit event")
def patients(wanted: Filter, page: Paged, visitor: AsViewer, parts: PartsOf) -> list[Json]:
    found = find.found_series(parts.database, wanted, page.limit, page.offset)
    page.of(found)
    note_search(parts, visitor, wanted, found.total, always=True)
    return [_patient_and_series(line, parts) for line in found.lines]


@router.post(
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


def _patient_and_series(line: SeriesLine, parts: Parts) -> Json:
    return _series(line, parts) | {
        "patient_id": line.subject.patient_id,
        "patient_name": line.subject.patient_name,
        "accession": line.subject.accession,
        "study_date": line.subject.study_date,
    }


def _series(line: SeriesLine, parts: Parts) -> Json:
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


def _states(line: SeriesLine) -> list[str]:
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
