"""The pages *Now* and *Needs a person*: the queue live, and everything held or failed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from node.config import Completion, Destination
from node.rules import routing
from node.rules.completion import complete_at
from node.web.pages import render
from node.web.pages.render import Context, PageContext, Values, add_fragment, add_page
from node.web.state import Parts
from node.wording import count
from storage.queries import find, overview
from storage.queries.find import Wanted, held_deliveries, kept_of_routes, needing
from storage.records import Arrival, ArrivalSummary, JobState, Need, Page, Reach, SwitchName
from storage.site import control, peers

FIRST_NEEDS, FIRST_QUEUED, LATEST = 5, 12, 8  # rows of each list on the page Now
AT_ONCE = 50  # rows of each list on the page Needs a person
WAITING = {JobState.HELD, JobState.FAILED}

Word = Annotated[str, Query(max_length=64)]


@dataclass(frozen=True)
class Arriving:
    """A series on its way, with the moment at which it will count as complete."""

    line: ArrivalSummary
    due_at: float
    evidence: str


def _drain(context: Context) -> Values:
    return {"draining": control.draining(context.parts.database)}


def _needs(context: Context) -> Values:
    needs = needing(context.parts.database, limit=FIRST_NEEDS)
    return {
        "needs": needs,
        "changed": changed_jobs(context.parts, needs),
        "alerts": render.alerts(context.parts, context.now),
    }


def _arrivals(context: Context) -> Values:
    completion = context.parts.config().completion
    lines = overview.arriving(context.parts.database)
    return {"arrivals": [arriving(line, completion) for line in lines]}


def _running(context: Context) -> Values:
    return {"running": overview.running(context.parts.database, context.now)}


def _queue(context: Context) -> Values:
    database, workers = context.parts.database, context.parts.config().inference.workers
    queue = overview.queue(database, context.now, workers=workers, limit=FIRST_QUEUED)
    return {"queue": queue, **_drain(context)}


def _sending(context: Context) -> Values:
    database, destinations = context.parts.database, context.parts.config().destinations
    proving = [destination.name for destination in destinations if gives_proof(destination)]
    paused = control.all_on(database, SwitchName.PAUSED)
    return {
        "sending": overview.sending(database, limit=FIRST_QUEUED),
        "unconfirmed": overview.unconfirmed(database, proving, limit=FIRST_QUEUED),
        "paused": {switch.subject: switch for switch in paused},
        "down": down(context),
    }


def _finished(context: Context) -> Values:
    lines = overview.finished(context.parts.database, LATEST)
    went = overview.delivery_states(context.parts.database, (line.id for line in lines))
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


def _now(context: Context) -> Values:
    return {key: value for fill in FRAGMENTS.values() for key, value in fill(context).items()}


def arriving(line: ArrivalSummary, completion: Completion) -> Arriving:
    """Say when an arrival is complete if nothing more comes, and why not earlier."""
    due_at = complete_at(line.arrival, completion)
    return Arriving(line, due_at, _evidence(line.arrival))


def _evidence(arrival: Arrival) -> str:
    """Describe the associations that brought an arrival."""
    known = (
        (arrival.open_associations, "open"),
        (arrival.released, "released"),
        (arrival.aborted, "aborted"),
    )
    texts = [f"{count(number, 'association')} {how}" for number, how in known if number]
    return ", ".join(texts) or "no association known"


def down(context: PageContext) -> Mapping[str, Reach]:
    """Name the destinations that do not answer, and where nothing is tried at the moment."""
    return {
        reach.destination: reach
        for reach in peers.reachability(context.parts.database)
        if not reach.up and reach.open_until > context.now
    }


def gives_proof(destination: Destination) -> bool:
    """Tell whether a destination is asked for storage commitment."""
    return getattr(destination, "commitment", None) is not None


@dataclass(frozen=True)
class Filters:
    """A filter of the page *Needs a person*, and how much of each list is left out."""

    state: Word = ""
    reason: Word = ""
    route: Word = ""
    sender: Word = ""
    destination: Word = ""
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0  # of the jobs, or of everything
    sent_offset: Annotated[int, Query(ge=0, le=10**9)] = 0  # of the held deliveries

    def given(self) -> dict[str, str]:
        """Name the fields of the filter as the form has them."""
        names = ("state", "reason", "route", "sender", "destination")
        return {name: str(getattr(self, name)).strip() for name in names}


def _needs_list(context: Context, filters: Annotated[Filters, Depends()]) -> Values:
    """List everything that waits, or the jobs and the held deliveries under a filter."""
    config, database, given = context.parts.config(), context.parts.database, filters.given()
    values = {
        "routes": [route.name for route in config.routes],
        "destinations": [destination.name for destination in config.destinations],
        "given": given,
        "is_filtered": any(given.values()),
        "left_out": filters,
    }
    if not any(given.values()):
        needs = needing(database, AT_ONCE, filters.offset)
        changed = changed_jobs(context.parts, needs)
        return values | {"held": overview.held(database), "needs": needs, "changed": changed}
    words = {key: value for key, value in given.items() if key != "state"}
    wanted = Wanted.typed(words, {given["state"]} & WAITING or WAITING)
    return values | {
        "jobs": find.jobs(database, wanted, AT_ONCE, filters.offset),
        "sent": held_deliveries(database, wanted, AT_ONCE, filters.sent_offset),
    }


def _need_count(context: Context) -> Values:
    return {"need_count": needing(context.parts.database, limit=1).total}


def changed_jobs(parts: Parts, needs: Page[Need]) -> frozenset[int]:
    """Find the jobs among these whose routes ask for something else by now."""
    routes = {need.id: need.route for need in needs.lines if need.what == "job"}
    kept = kept_of_routes(parts.database, routes)
    return frozenset(
        job_id
        for job_id, (model, parameters) in kept.items()
        if routing.has_changed(parts.config().routes, routes[job_id], model, parameters)
    )


router = APIRouter()
add_page(router, "/", "now", _now)
for name, values in FRAGMENTS.items():
    add_fragment(router, f"/now/{name}", f"now_{name}", values)
add_page(router, "/needs", "needs", _needs_list, part="list")
add_fragment(router, "/needs/count", "need_count", _need_count)
