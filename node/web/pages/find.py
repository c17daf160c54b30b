"""The pages *Find* and *Series*: received series, their jobs, or the reason why there is none."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo
from http import HTTPStatus
from typing import Annotated, Literal, TypeAlias
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Form, Query
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse

from node.rules.completion import because
from node.rules.reasons import OF_A_NODE, OWN, is_result, set_aside, why_no_job, why_open
from node.rules.routing import kept_objections
from node.web.access import AsViewer
from node.web.pages.render import (
    Context,
    PageContext,
    Values,
    add_fragment,
    chosen_from,
    page,
)
from node.web.state import Parts, Searches
from storage.archive import newest_arrival
from storage.errors import NotFound
from storage.queries import find, overview
from storage.queries.find import Wanted
from storage.records import (
    Arrival,
    JobState,
    JobSummary,
    Page,
    RequestKind,
    Role,
    SeriesSummary,
    SwitchName,
)
from storage.site import control
from storage.site.audit import FIND, VIEW

AT_ONCE = 25
FETCHES_SHOWN = 5
# What an address may name; all else may be a patient's, and is kept under a name of ours.
RECEIVED = ("received_from", "received_to")
PUBLIC = ("sender", "state", "reason", "route", "destination", *RECEIVED)

Word = Annotated[str, Field(max_length=128)]
Day: TypeAlias = date | Literal[""]
Name = Annotated[str, Query(max_length=64)]
Offset = Annotated[int, Query(ge=0, le=10**9)]


class Words(BaseModel):
    """A search as somebody has typed it."""

    text: Word = ""
    accession: Word = ""
    patient_id: Word = ""
    name: Word = ""
    study_date: Word = ""  # of links; the form has the range
    study_from: Day = ""
    study_to: Day = ""
    received_from: Day = ""
    received_to: Day = ""
    sender: Word = ""
    description: Word = ""
    state: Word = ""
    reason: Word = ""
    route: Word = ""
    destination: Word = ""
    uid: Word = ""

    def given(self) -> dict[str, str]:
        """Clean each field of what no database takes."""
        values = self.model_dump().items()
        return {key: str(value).replace("\0", "").strip() for key, value in values}


def _of_address(words: Annotated[Words, Query()]) -> Mapping[str, str]:
    return words.given()


def _of_form(words: Annotated[Words, Form()]) -> Mapping[str, str]:
    return words.given()


def _kept_searches(request: Request) -> Searches:
    searches: Searches = request.app.state.searches
    return searches


KeptSearches = Annotated[Searches, Depends(_kept_searches)]

router = APIRouter()


@router.post("/find")
def redirect_to_search(
    given: Annotated[Mapping[str, str], Depends(_of_form)],
    visitor: AsViewer,
    searches: KeptSearches,
) -> RedirectResponse:
    """Redirect to a page whose address names no patient."""
    return RedirectResponse(_address(given, visitor.name, searches), HTTPStatus.SEE_OTHER)


@router.get("/find", response_model=None)
def search(
    context: Context,
    given: Annotated[Mapping[str, str], Depends(_of_address)],
    searches: KeptSearches,
    search: Name = "",
    offset: Offset = 0,
) -> HTMLResponse | RedirectResponse:
    """Show a search; the audit event says who, by which fields and how many, but not the words."""
    if any(given[key] for key in given if key not in PUBLIC):  # from a link of another system
        return redirect_to_search(given, context.visitor, searches)
    kept = searches.get(context.visitor.name, search) if search else None
    given = kept or given
    results = _search(context, given, offset)
    return page(
        context,
        "find.html",
        path="/find",
        given=given,
        is_filtered=any(given.values()),
        results=results,
        **_outcomes(context, results),
        **_choices(context.parts, given),
        **_fetching(context),
        more={"search": search} if kept else {key: given[key] for key in PUBLIC},
        is_gone=bool(search) and kept is None,
    )


def _fetching(context: PageContext) -> Values:
    """List where a study may be fetched from, and the last ones that somebody asked for."""
    if not context.visitor.may(Role.OPERATOR):
        return {"sources": [], "fetches": []}
    database, destinations = context.parts.database, context.parts.config().destinations
    return {
        "sources": [it.name for it in destinations if it.kind == "dimse"],
        "fetches": control.newest(database, RequestKind.FETCH, FETCHES_SHOWN),
    }


@router.get("/series/{series_uid}")
def series(series_uid: str, context: Context) -> HTMLResponse:
    """Show one received series, perhaps in several studies, with its jobs."""
    values = _series(series_uid, context)
    record_view(context, series_uid)
    return page(context, "series.html", path="/find", **values)


def _series(series_uid: str, context: Context) -> Values:
    parts = context.parts
    results = find.find_series(parts.database, Wanted(uid=series_uid), AT_ONCE)
    if not results.lines:
        raise NotFound(f"no series {series_uid} was received")
    brought = parts.store.archive.arrivals_of(series_uid)
    values = _outcomes(context, results)
    asked = control.newest_of(parts.database, RequestKind.PROCESS_NOW, series_uid)
    return {
        "results": results,
        "series_uid": series_uid,
        "viewer_url": parts.config().web.viewer_url,
        "set_aside": set_aside(brought[0]) if brought else {},
        "brought": brought,
        "because": because,
        "why_open": why_open,
        "is_arriving": any(line.arriving for line in results.lines),
        "is_own": any(map(is_result, brought)),
        "has_files": any(line.purged_at is None for line in results.lines),
        "asked": asked if asked is not None and asked.route else None,
        "routes": _routes(context, results.lines, brought),
        **values,
    }


add_fragment(router, "/series/{series_uid}/part", "series_part", _series)


@dataclass(frozen=True)
class RouteOutcome:
    """The jobs of a route for a series, or what spoke against it when the series was complete."""

    name: str
    model: str
    jobs: tuple[JobSummary, ...]
    objections: tuple[str, ...]


def _routes(
    context: PageContext, lines: Sequence[SeriesSummary], brought: Sequence[Arrival]
) -> list[RouteOutcome]:
    jobs = [job for line in lines for job in line.jobs]
    objections = kept_objections(brought[0].evidence, masked=context.is_masked) if brought else {}
    return [
        RouteOutcome(
            route.name,
            route.model,
            tuple(job for job in jobs if job.route == route.name),
            objections.get(route.name, ()),
        )
        for route in context.parts.config().routes
    ]


def record_view(context: PageContext, series_uid: str) -> None:
    """Record that somebody saw whose series this is, unless that was hidden."""
    if not context.is_masked:
        context.parts.store.audit.record(context.visitor.name, VIEW, series_uid)


def _address(given: Mapping[str, str], who: str, searches: Searches) -> str:
    """Give the address under which a search is shown."""
    public = {key: value for key, value in given.items() if value}
    if not public:
        return "/find"
    if public.keys() <= set(PUBLIC):
        return f"/find?{urlencode(public)}"
    return f"/find?search={searches.keep(who, given)}"


def _choices(parts: Parts, given: Mapping[str, str]) -> Values:
    """List what a search may choose from: what rows have, and what the configuration names."""
    config, choices = parts.config(), find.choices(parts.database)
    routes = (*choices.routes, *(route.name for route in config.routes))
    places = (*choices.destinations, *(place.name for place in config.destinations))
    return {
        "states": list(JobState),
        "reasons": chosen_from(choices.reasons, given["reason"]),
        "routes": chosen_from(routes, given["route"]),
        "destinations": chosen_from(places, given["destination"]),
    }


def _search(context: PageContext, given: Mapping[str, str], offset: int) -> Page[SeriesSummary]:
    """Find series; the newest ones where nothing is given, which may show patients all the same."""
    words = {key: value for key, value in given.items() if key not in ("state", *RECEIVED)}
    since, until = (_midnight(given[name], context.zone) for name in RECEIVED)
    until = until + timedelta(days=1) if until is not None else None
    wanted = Wanted.typed(words, {given["state"]} & set(JobState), since, until)
    results = find.find_series(context.parts.database, wanted, AT_ONCE, offset)
    fields = [key for key, value in given.items() if value]
    if fields or (results.lines and not context.is_masked):
        detail = {"by": fields, "found": results.total, "masked": context.is_masked}
        context.parts.store.audit.record(context.visitor.name, FIND, "", detail)
    return results


def _midnight(day: str, zone: tzinfo | None) -> datetime | None:
    """Find the begin of a day in the zone of the pages; None is the system's."""
    return datetime.fromisoformat(day).replace(tzinfo=zone) if day else None


def _outcomes(context: PageContext, results: Page[SeriesSummary]) -> Values:
    """Collect where results went, and the reason of each series that has no job."""
    parts, lines = context.parts, results.lines
    uids = {line.subject.series_uid for line in lines}
    job_ids = (job.id for line in lines for job in line.jobs)
    return {
        "went": overview.delivery_states(parts.database, job_ids),
        "no_job_reasons": no_job_reasons(context, lines),
        "own_reasons": (OWN, OF_A_NODE),
        "route_names": [route.name for route in parts.config().routes],
        "never": control.of_subjects(parts.database, SwitchName.NEVER, uids),
    }


def no_job_reasons(context: PageContext, lines: Iterable[SeriesSummary]) -> Mapping[str, str]:
    """Give for each series without a job, by its UID, the reason for that."""
    jobless = {line.subject.series_uid for line in lines if not line.jobs and not line.arriving}
    newest = {uid: newest_arrival(context.parts.database, uid) for uid in jobless}
    return {uid: why_no_job(arrival, masked=context.is_masked) for uid, arrival in newest.items()}
