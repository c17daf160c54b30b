"""What happens now: arriving, running, queued, sending, and at the top what needs a person."""

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse

from node.config import Completion, Destination
from node.rules.completion import complete_at
from node.web.auth import AsViewer
from node.web.parts import PartsOf
from node.web.problems import Problem
from node.web.views import concerns, wording
from node.web.views.needs import changed
from node.web.views.render import Look, look, page, part
from storage.queries import overview
from storage.queries.find import needing
from storage.records import Arrival, ArrivalLine, Reach, SwitchName
from storage.site import control, peers

router = APIRouter()

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
        "concerns": concerns.concerns(at.parts, at.now),
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
    said = [f"{wording.count(number, 'association')} {how}" for number, how in known if number]
    return ", ".join(said) or "no association known"
