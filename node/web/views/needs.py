"""What waits for a person: all of it, by filters, with an action on what is ticked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import HTMLResponse

from node.rules import routing
from node.web.auth import AsViewer
from node.web.parts import Parts, PartsOf
from node.web.views.render import look, page, part
from storage.queries import find, overview
from storage.queries.find import Wanted, held_deliveries, kept_of_routes, needing
from storage.records import JobState, Need, Page

router = APIRouter()

AT_ONCE = 50
WAITING = {"held": (JobState.HELD,), "failed": (JobState.FAILED,)}

Word = Annotated[str, Query(max_length=64)]


def _given(
    state: Word = "",
    reason: Word = "",
    route: Word = "",
    sender: Word = "",
    destination: Word = "",
) -> Mapping[str, str]:
    return {
        "state": state,
        "reason": reason.strip(),
        "route": route,
        "sender": sender.strip(),
        "destination": destination,
    }


Given = Annotated[Mapping[str, str], Depends(_given)]


@dataclass(frozen=True)
class Offsets:
    """How much of each list is left out: jobs, or everything, and held deliveries."""

    offset: Annotated[int, Query(ge=0, le=10**9)] = 0
    sent_offset: Annotated[int, Query(ge=0, le=10**9)] = 0


From = Annotated[Offsets, Depends()]


@router.get("/needs")
def needs(
    request: Request, visitor: AsViewer, parts: PartsOf, given: Given, left_out: From
) -> HTMLResponse:
    at = look(request, parts, visitor)
    config = parts.config()
    names = {
        "routes": [route.name for route in config.routes],
        "destinations": [destination.name for destination in config.destinations],
    }
    return page(at, "needs.html", path="/needs", **names, **_listed(parts, given, left_out))


@router.get("/needs/list")
def listed(
    request: Request, visitor: AsViewer, parts: PartsOf, given: Given, left_out: From
) -> HTMLResponse:
    at = look(request, parts, visitor)
    return part(at, "needs_list.html", **_listed(parts, given, left_out))


@router.get("/needs/count")
def count(request: Request, visitor: AsViewer, parts: PartsOf) -> HTMLResponse:
    at = look(request, parts, visitor)
    return part(at, "needing.html", needing=needing(parts.database, limit=1).total)


def changed(parts: Parts, waiting: Page[Need]) -> frozenset[int]:
    """The jobs among these whose routes ask for something else by now."""
    routes = {need.id: need.route for need in waiting.lines if need.what == "job"}
    kept = kept_of_routes(parts.database, routes)
    return frozenset(
        job_id
        for job_id, (model, parameters) in kept.items()
        if (by_now := routing.of_route(parts.config(), routes[job_id], parameters)) is not None
        and not by_now.is_as(model, parameters)
    )


def _listed(parts: Parts, given: Mapping[str, str], left_out: Offsets) -> Mapping[str, object]:
    """Everything, or the jobs and the held deliveries under a filter."""
    is_filtered = any(given.values())
    values = {"given": given, "is_filtered": is_filtered, "left_out": left_out}
    if not is_filtered:
        waiting = needing(parts.database, AT_ONCE, left_out.offset)
        held = overview.held(parts.database)
        return values | {"held": held, "needs": waiting, "changed": changed(parts, waiting)}
    wanted = Wanted(
        states=WAITING.get(given["state"], (JobState.HELD, JobState.FAILED)),
        reason=given["reason"],
        route=given["route"],
        sender=given["sender"],
        destination=given["destination"],
    )
    return values | {
        "jobs": find.jobs(parts.database, wanted, AT_ONCE, left_out.offset),
        "sent": held_deliveries(parts.database, wanted, AT_ONCE, left_out.sent_offset),
    }
