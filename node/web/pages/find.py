"""The page *Find*: received series by what a phone call says, and why some have no job."""

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Form, Query
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse

from node.web.access import AsViewer, Visitor
from node.web.pages.render import Look, look, page
from node.web.state import Parts, PartsOf, Searches
from storage.archive import newest_arrival
from storage.errors import NotFound
from storage.queries import find, overview
from storage.queries.find import Wanted
from storage.records import Arrival, JobState, Page, SeriesLine, SwitchName
from storage.site import control

NO_ROUTE = "kept; no route asked for a job"
OWN = "kept; a result of this node that came back is never processed"
TAKEN_BACK = "kept; {who} had said never to process it, and that is taken back: send it again"
NO_SLICE = "kept; none of its instances is a slice ({reasons})"


def fates(parts: Parts, lines: Iterable[SeriesLine]) -> Mapping[str, str]:
    """Of each series that no job was made of, why not."""
    jobless = {line.subject.series_uid for line in lines if not line.jobs and not line.arriving}
    return {uid: _why(newest_arrival(parts.database, uid)) for uid in jobless}


def set_aside(parts: Parts, series_uid: str) -> Mapping[str, int]:
    """How many instances of a series, as it came last, are in no stack, by reason."""
    arrival = newest_arrival(parts.database, series_uid)
    return _aside(arrival) if arrival is not None else {}


def _why(arrival: Arrival | None) -> str:
    if arrival is None:
        return NO_ROUTE
    if arrival.own:
        return OWN
    if who := arrival.evidence.get("never"):
        return TAKEN_BACK.format(who=who)
    aside = _aside(arrival)
    if aside and sum(aside.values()) >= arrival.instances:
        return NO_SLICE.format(reasons=", ".join(aside))
    return NO_ROUTE


def _aside(arrival: Arrival) -> Mapping[str, int]:
    found = arrival.evidence.get("set_aside")
    return found if isinstance(found, dict) else {}


router = APIRouter()

AT_ONCE = 25

Word = Annotated[str, Field(max_length=128)]
Name = Annotated[str, Query(max_length=64)]
Offset = Annotated[int, Query(ge=0, le=10**9)]

# What an address may name; all else may be a patient's, and is kept under a name of ours.
PUBLIC = ("sender", "state", "reason", "route", "destination")


class Words(BaseModel):
    """What somebody looks for, as typed."""

    text: Word = ""
    accession: Word = ""
    patient_id: Word = ""
    name: Word = ""
    study_date: Word = ""
    sender: Word = ""
    description: Word = ""
    state: Word = ""
    reason: Word = ""
    route: Word = ""
    destination: Word = ""
    uid: Word = ""

    def given(self) -> dict[str, str]:
        """Each field, without what no database takes."""
        return {key: value.replace("\0", "").strip() for key, value in self.model_dump().items()}


def _of_address(words: Annotated[Words, Query()]) -> Mapping[str, str]:
    return words.given()


def _of_form(words: Annotated[Words, Form()]) -> Mapping[str, str]:
    return words.given()


@router.post("/find")
def ask(
    request: Request, visitor: AsViewer, given: Annotated[Mapping[str, str], Depends(_of_form)]
) -> RedirectResponse:
    """Lead to a page whose address names no patient."""
    return RedirectResponse(_address(request, visitor, given), HTTPStatus.SEE_OTHER)


@router.get("/find", response_model=None)
def search(
    request: Request,
    visitor: AsViewer,
    parts: PartsOf,
    given: Annotated[Mapping[str, str], Depends(_of_address)],
    search: Name = "",
    offset: Offset = 0,
) -> HTMLResponse | RedirectResponse:
    """A search is an audit event: who, by which fields, and how much was shown; not its words."""
    if any(given[key] for key in given if key not in PUBLIC):  # from a link of another system
        return ask(request, visitor, given)
    kept = _searches(request).get(visitor.name, search) if search else None
    given = kept or given
    at = look(request, parts, visitor)
    found = _found(parts, given, offset) if any(given.values()) else None
    if found is not None:
        fields = [key for key, value in given.items() if value]
        detail = {"fields": fields, "found": found.total, "masked": at.is_masked}
        parts.store.audit.record(visitor.name, "search", "", detail)
    return page(
        at,
        "find.html",
        path="/find",
        given=given,
        found=found,
        **_became(parts, found),
        more={"search": search} if kept else {key: given[key] for key in PUBLIC},
        is_gone=bool(search) and kept is None,
        states=list(JobState),
    )


@router.get("/series/{series_uid}")
def series(series_uid: str, request: Request, visitor: AsViewer, parts: PartsOf) -> HTMLResponse:
    """One received series, perhaps in several studies, with its jobs."""
    at = look(request, parts, visitor)
    found = find.found_series(parts.database, Wanted(uid=series_uid), AT_ONCE)
    if not found.lines:
        raise NotFound(f"no series {series_uid} was received")
    seen(at, series_uid)
    became = _became(parts, found)
    aside = set_aside(parts, series_uid)
    values = {"found": found, "series_uid": series_uid, "aside": aside, **became}
    return page(at, "series.html", path="/find", **values)


def seen(at: Look, series_uid: str) -> None:
    """Write down that somebody saw whose series this is; not where that was hidden."""
    if not at.is_masked:
        at.parts.store.audit.record(at.visitor.name, "look", series_uid)


def _address(request: Request, visitor: Visitor, given: Mapping[str, str]) -> str:
    """Where a search is shown."""
    if not any(given.values()):
        return "/find"
    if all(key in PUBLIC for key, value in given.items() if value):
        return f"/find?{urlencode({key: value for key, value in given.items() if value})}"
    return f"/find?search={_searches(request).keep(visitor.name, given)}"


def _searches(request: Request) -> Searches:
    searches: Searches = request.app.state.searches
    return searches


def _became(parts: Parts, found: Page[SeriesLine] | None) -> Mapping[str, object]:
    """Where the results of all these series went, and of which of them no job was made, and why."""
    lines = found.lines if found is not None else ()
    jobs = (job.id for line in lines for job in line.jobs)
    uids = {line.subject.series_uid for line in lines}
    return {
        "went": overview.whereabouts(parts.database, jobs),
        "fates": fates(parts, lines),
        "never": control.of_subjects(parts.database, SwitchName.NEVER, uids),
    }


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
        destination=given["destination"],
        uid=given["uid"],
    )
    return find.found_series(parts.database, wanted, AT_ONCE, offset)
