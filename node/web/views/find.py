"""Where is accession 12345? Received series by what a phone call says, and what became of them."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import HTMLResponse

from node.web.auth import AsViewer
from node.web.parts import Parts, PartsOf
from node.web.views.render import Look, look, page
from storage import find
from storage.errors import NotFound
from storage.find import Wanted
from storage.lines import Page, SeriesLine
from storage.records import JobState

router = APIRouter()

AT_ONCE = 25

Word = Annotated[str, Query(max_length=128)]
Offset = Annotated[int, Query(ge=0, le=10**9)]


def _given(
    text: Word = "",
    accession: Word = "",
    patient_id: Word = "",
    name: Word = "",
    study_date: Word = "",
    sender: Word = "",
    description: Word = "",
    state: Word = "",
    reason: Word = "",
    route: Word = "",
    uid: Word = "",
) -> Mapping[str, str]:
    given = {
        "text": text,
        "accession": accession,
        "patient_id": patient_id,
        "name": name,
        "study_date": study_date,
        "sender": sender,
        "description": description,
        "state": state,
        "reason": reason,
        "route": route,
        "uid": uid,
    }
    return {key: value.replace("\0", "").strip() for key, value in given.items()}


Given = Annotated[Mapping[str, str], Depends(_given)]


@router.get("/find")
def search(
    request: Request, visitor: AsViewer, parts: PartsOf, given: Given, offset: Offset = 0
) -> HTMLResponse:
    """A search is an audit event: who, by which fields, and how much was shown; not its words."""
    at = look(request, parts, visitor)
    found = _found(parts, given, offset) if any(given.values()) else None
    if found is not None:
        fields = [key for key, value in given.items() if value]
        detail = {"fields": fields, "found": found.total, "masked": at.is_masked}
        parts.store.audit.record(visitor.name, "search", "", detail)
    return page(at, "find.html", path="/find", given=given, found=found, states=list(JobState))


@router.get("/series/{series_uid}")
def series(series_uid: str, request: Request, visitor: AsViewer, parts: PartsOf) -> HTMLResponse:
    """One received series, perhaps in several studies, with its jobs."""
    at = look(request, parts, visitor)
    found = find.found_series(parts.database, Wanted(uid=series_uid), AT_ONCE)
    if not found.lines:
        raise NotFound(f"no series {series_uid} was received")
    seen(at, series_uid)
    return page(at, "series.html", path="/find", found=found, series_uid=series_uid)


def seen(at: Look, series_uid: str) -> None:
    """Write down that somebody saw whose series this is; not where that was hidden."""
    if not at.is_masked:
        at.parts.store.audit.record(at.visitor.name, "look", series_uid)


def _found(parts: Parts, given: Mapping[str, str], offset: int) -> Page[SeriesLine]:
    known = {str(state) for state in JobState}
    states = (JobState(given["state"]),) if given["state"] in known else ()
    wanted = Wanted(
        states=states,
        text=given["text"],
        accession=given["accession"],
        patient_id=given["patient_id"],
        name=given["name"],
        study_date=given["study_date"].replace("-", ""),
        sender=given["sender"],
        description=given["description"],
        reason=given["reason"],
        route=given["route"],
        uid=given["uid"],
    )
    return find.found_series(parts.database, wanted, AT_ONCE, offset)
