"""The pages *Now*, *Needs a person* and *Sending*: the queue live, and all that waits."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from node import health
from node.config import Completion, Destination
from node.rules import reasons, routing
from node.rules.completion import complete_at
from node.web.pages import render
from node.web.pages.render import (
    Context,
    PageContext,
    Values,
    add_fragment,
    add_page,
    chosen_from,
)
from node.web.state import Parts
from node.wording import count
from storage.commitment_scu import of_deliveries
from storage.queries import find, overview
from storage.queries.find import Wanted, kept_of_routes, needing
from storage.records import Arrival, ArrivalSummary, JobState, Need, Reach, SwitchName
from storage.site import control, peers
from storage.site.audit import FIND

FIRST_NEEDS, FIRST_QUEUED, LATEST = 5, 12, 8  # rows of each list on the page Now
OF_GROUP = 20  # rows of each group on the page Needs a person
AT_ONCE = 200  # rows of one group by itself, and of each list on the page Sending
WAITING = {JobState.HELD, JobState.FAILED}

Word = Annotated[str, Query(max_length=64)]
Offset = Annotated[int, Query(ge=0, le=10**9)]


@dataclass(frozen=True)
class Arriving:
    """A series on its way, with the moment at which it will count as complete."""

    line: ArrivalSummary
    due_at: float
    evidence: str


def _first_steps(context: Context) -> Values:
    """The values that a newcomer enters at a scanner; nothing once a series has arrived."""
    if find.find_series(context.parts.database, Wanted(), limit=1).lines:
        return {"first_steps": None}
    config = context.parts.config()
    hosts = health.addresses(config.node.host)
    return {
        "first_steps": config.node,
        "hosts": hosts,
        "only_here": hosts[0] in health.LOCAL_HOSTS,
        "first_destinations": [destination.name for destination in config.destinations],
        "first_routes": [route.name for route in config.routes],
    }


def _drain(context: Context) -> Values:
    return {"draining": control.draining(context.parts.database)}


def _needs(context: Context) -> Values:
    needs = needing(context.parts.database, limit=FIRST_NEEDS)
    return {
        "needs": needs,
        **_facts_of(context.parts, needs.lines),
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
    return {**_deliveries(context, "", FIRST_QUEUED), "is_whole_page": False}


def _deliveries(
    context: PageContext, destination: str, limit: int, offset: int = 0, sent_offset: int = 0
) -> Values:
    """List the deliveries that are not done, to all destinations where none is named."""
    database, destinations = context.parts.database, context.parts.config().destinations
    proving = [
        place.name
        for place in destinations
        if gives_proof(place) and destination in ("", place.name)
    ]
    unconfirmed = overview.unconfirmed(database, proving, limit, sent_offset)
    return {
        "sending": overview.sending(database, limit, offset, destination=destination),
        "unconfirmed": unconfirmed,
        "proofs": of_deliveries(database, [line.delivery.id for line in unconfirmed.lines]),
        "paused": {
            switch.subject: switch for switch in control.all_on(database, SwitchName.PAUSED)
        },
        "down": down(context),
    }


def _finished(context: Context) -> Values:
    lines = overview.finished(context.parts.database, LATEST)
    went = overview.delivery_states(context.parts.database, (line.id for line in lines))
    return {"finished": lines, "went": went}


FRAGMENTS = {
    "first_steps": _first_steps,
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
    return destination.commitment is not None


@dataclass(frozen=True)
class Filters:
    """A filter of the page *Needs a person*, and how much of each group is left out."""

    state: Word = ""
    reason: Word = ""
    route: Word = ""
    sender: Word = ""
    destination: Word = ""
    offset: Offset = 0

    def given(self) -> dict[str, str]:
        """Name the fields of the filter as the form has them."""
        names = ("state", "reason", "route", "sender", "destination")
        return {name: str(getattr(self, name)).strip() for name in names}


def _needs_list(context: Context, filters: Annotated[Filters, Depends()]) -> Values:
    """List what waits by its reason; of a reason that is asked for, page by page."""
    database, given = context.parts.database, filters.given()
    words = {key: value for key, value in given.items() if key != "state"}
    wanted = Wanted.typed(words, {given["state"]} & WAITING)
    limit, offset = (AT_ONCE, filters.offset) if given["reason"] else (OF_GROUP, 0)
    groups = find.need_groups(database, wanted, limit, offset)
    needs = [need for group in groups for need in group.needs.lines]
    return {
        "given": given,
        "offset": offset,
        "is_filtered": any(given.values()),
        "held": overview.held(database) if not any(given.values()) else {},
        "groups": groups,
        **_facts_of(context.parts, needs),
    }


def _needs_page(context: Context, filled: Annotated[Values, Depends(_needs_list)]) -> Values:
    """Add what the filter may choose from, and record who saw which patients wait."""
    config, database = context.parts.config(), context.parts.database
    groups, given = filled["groups"], filled["given"]
    assert isinstance(groups, tuple) and isinstance(given, dict)
    if groups and not context.is_masked:
        fields = [key for key, value in given.items() if value]
        detail = {"by": fields, "found": sum(group.needs.total for group in groups)}
        context.parts.store.audit.record(context.visitor.name, FIND, "needs a person", detail)
    waiting = find.need_groups(database, Wanted(), limit=0)
    return {
        **filled,
        "reasons": chosen_from((group.reason for group in waiting), given["reason"]),
        "routes": chosen_from((route.name for route in config.routes), given["route"]),
        "destinations": chosen_from(
            [*(place.name for place in config.destinations), *overview.held(database)],
            given["destination"],
        ),
    }


# Sending.


@dataclass(frozen=True)
class SendingFilters:
    """The filter of the page *Sending*, and how much of each list is left out."""

    destination: Word = ""
    offset: Offset = 0
    sent_offset: Offset = 0  # of what waits for confirmation


def _sending_list(context: Context, filters: Annotated[SendingFilters, Depends()]) -> Values:
    """List all deliveries that are on their way, wait, or wait for confirmation."""
    destination, held = filters.destination.strip(), overview.held(context.parts.database)
    lists = _deliveries(context, destination, AT_ONCE, filters.offset, filters.sent_offset)
    return {
        **lists,
        "is_whole_page": True,
        "destination": destination,
        "filters": filters,
        "held_count": held.get(destination, 0) if destination else sum(held.values()),
    }


def _sending_page(context: Context, filled: Annotated[Values, Depends(_sending_list)]) -> Values:
    """Add what the filter may choose from."""
    config, choices = context.parts.config(), find.choices(context.parts.database)
    names = (*choices.destinations, *(place.name for place in config.destinations))
    return {**filled, "destinations": chosen_from(names, str(filled["destination"]))}


def _need_count(context: Context) -> Values:
    return {"need_count": needing(context.parts.database, limit=1).total}


def _facts_of(parts: Parts, needs: Iterable[Need]) -> Values:
    """Find the jobs whose routes ask for something else by now, and those that make no slices."""
    routes = {need.id: need.route for need in needs if need.what == "job"}
    kept = kept_of_routes(parts.database, routes)
    return {
        "changed": frozenset(
            job_id
            for job_id, (model, parameters) in kept.items()
            if routing.has_changed(parts.config().routes, routes[job_id], model, parameters)
        ),
        "without_slices": frozenset(
            job_id
            for job_id, (_, parameters) in kept.items()
            if not reasons.asks_for_slices(parameters)
        ),
    }


router = APIRouter()
add_page(router, "/", "now", _now)
for name, values in FRAGMENTS.items():
    add_fragment(router, f"/now/{name}", f"now_{name}", values)
add_page(router, "/needs", "needs", _needs_page)
add_fragment(router, "/needs/list", "needs_list", _needs_list)
add_page(router, "/sending", "sending", _sending_page)
add_fragment(router, "/sending/list", "sending_list", _sending_list)
add_fragment(router, "/needs/count", "need_count", _need_count)
