"""The pages *Now* and *Needs a person*: the queue live, and everything held or failed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import HTMLResponse

from node.config import Completion, Destination
from node.rules import routing
from node.rules.completion import complete_at
from node.web.access import AsViewer
from node.web.pages import render
from node.web.pages.render import Look, look, page, part
from node.web.problems import Problem
from node.web.state import Parts, PartsOf
from storage.queries import find, overview
from storage.queries.find import Wanted, held_deliveries, kept_of_routes, needing
from storage.records import Arrival, ArrivalLine, JobState, Need, Page, Reach, SwitchName
from storage.site import control, peers

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


FIRST_NEEDS, FIRST_QUEUED, LATEST = 5, 12, 8


@dataclass(frozen=True)
class Arriving:
    """A series on its way, with the moment at which it will count as complete."""

    line: ArrivalLine
    due_at: float
    evidence: str


@router.get("/")
def now(request: Request, visitor: AsViewer, parts: PartsOf) -> HTMLResponse:
    at = look(request, parts, visitor)
    values: dict[str, object] = {}
    for each in FRAGMENTS.values():
        values |= each(at)
    return page(at, "now.html", path="/", **values)


@router.get("/now/{name}")
def fragment(name: str, request: Request, visitor: AsViewer, parts: PartsOf) -> HTMLResponse:
    if name not in FRAGMENTS:
        raise Problem(404, f"There is no part {name!r} of this page.")
    at = look(request, parts, visitor)
    return part(at, f"now_{name}.html", **FRAGMENTS[name](at))


def _drain(at: Look) -> Mapping[str, object]:
    return {"draining": control.draining(at.parts.database)}


def _needs(at: Look) -> Mapping[str, object]:
    waiting = needing(at.parts.database, limit=FIRST_NEEDS)
    return {
        "needs": waiting,
        "changed": changed(at.parts, waiting),
        "concerns": render.concerns(at.parts, at.now),
    }


def _arrivals(at: Look) -> Mapping[str, object]:
    completion = at.parts.config().completion
    lines = overview.arriving(at.parts.database)
    return {"arrivals": [arriving(line, completion) for line in lines]}


def _running(at: Look) -> Mapping[str, object]:
    return {"running": overview.running(at.parts.database, at.now)}


def _queue(at: Look) -> Mapping[str, object]:
    workers = at.parts.config().inference.workers
    waiting = overview.queue(at.parts.database, at.now, workers=workers, limit=FIRST_QUEUED)
    return {"queue": waiting, **_drain(at)}


def _sending(at: Look) -> Mapping[str, object]:
    proving = [d.name for d in at.parts.config().destinations if gives_proof(d)]
    paused = control.all_on(at.parts.database, SwitchName.PAUSED)
    return {
        "sending": overview.sending(at.parts.database, limit=FIRST_QUEUED),
        "unconfirmed": overview.unconfirmed(at.parts.database, proving, limit=FIRST_QUEUED),
        "paused": {each.subject: each for each in paused},
        "down": down(at),
    }


def down(at: Look) -> Mapping[str, Reach]:
    """The destinations that do not answer, and where nothing is tried just now."""
    found = peers.reachability(at.parts.database)
    return {one.destination: one for one in found if not one.up and one.open_until > at.now}


def gives_proof(destination: Destination) -> bool:
    """Whether it is asked for storage commitment."""
    return getattr(destination, "commitment", None) is not None


def _finished(at: Look) -> Mapping[str, object]:
    lines = overview.finished(at.parts.database, LATEST)
    went = overview.whereabouts(at.parts.database, (line.id for line in lines))
    return {"finished": lines, "went": went}


FRAGMENTS = {
    "drain": _drain,
    "needs": _needs,
    "arrivals": _arrivals,
    "running": _running,
    "queue": _queue,
    "sending": _sending,
    "finished": _finished,
}


def arriving(line: ArrivalLine, completion: Completion) -> Arriving:
    """When an arrival is complete if nothing more comes, and why not earlier."""
    due_at = complete_at(line.arrival, completion)
    return Arriving(line, due_at, _evidence(line.arrival))


def _evidence(arrival: Arrival) -> str:
    """What is known of the associations that brought it."""
    known = (
        (arrival.open_associations, "open"),
        (arrival.released, "released"),
        (arrival.aborted, "aborted"),
    )
    said = [f"{render.count(number, 'association')} {how}" for number, how in known if number]
    return ", ".join(said) or "no association known"
