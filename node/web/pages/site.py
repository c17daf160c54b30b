"""The pages of the site: peers, users, rules, configuration, audit, self-test, capacity, log-in."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, tzinfo
from typing import Annotated

from fastapi import APIRouter, File, Form, Query, UploadFile
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse

from inference.request import PRODUCTS
from node import health
from node.config import (
    ABOUT_THE_FILE,
    FINDING_OPTIONS,
    JUDGING_OPTIONS,
    SLICE_OPTIONS,
    Config,
    Destination,
    Route,
    product_of,
)
from node.web import middleware
from node.web import rule_tester as rule_tests
from node.web.access import NO_USER, AsOperator, AsViewer, How
from node.web.pages import drawings, render
from node.web.pages.drawings import Point
from node.web.pages.now import gives_proof
from node.web.pages.render import (
    MASK,
    Context,
    PageContext,
    Values,
    add_fragment,
    add_page,
    page,
    part,
)
from node.web.problems import Problem
from node.web.state import PartsOf
from storage.queries import figures, overview
from storage.queries.figures import evaluation
from storage.records import DAY, Bucket, NodeState, NodeWork, Page, RequestKind, Role, SwitchName
from storage.site import control, nodes, notices, peers, people, selftests

HOUR = 3600.0
REJECTED_DAYS = 7
REJECTED_AT_ONCE = 20
EVALUATED_DAYS = 7
EVENTS_AT_ONCE = 100
SELFTESTS_AT_ONCE = 20
MASK_SECONDS = int(365 * DAY)

Word = Annotated[str, Query(max_length=64)]
Offset = Annotated[int, Query(ge=0, le=10**9)]
Uid = Annotated[str, Query(max_length=64)]

router = APIRouter()


# Peers.


def _peers(context: Context, offset: Offset = 0) -> Values:
    database, config = context.parts.database, context.parts.config()
    allowed = control.all_on(database, SwitchName.ALLOWED_AE)
    expected = {sender.ae_title: sender for sender in config.senders}
    names = [destination.name for destination in config.destinations]
    return {
        "senders": peers.senders(database, _midnight(context)),
        "expected": expected,
        "silent": frozenset(render.silent(context.parts, context.now)),
        "never_heard": sorted(set(expected) - set(peers.last_heard(database, list(expected)))),
        "rejections": peers.rejections(
            database, context.now - REJECTED_DAYS * DAY, REJECTED_AT_ONCE, offset
        ),
        "rejection_advice": _rejection_advice(config.node.ae_title),
        "allowed": allowed,
        "allowed_names": {switch.subject for switch in allowed},
        "configured": config.node.allowed_ae_titles,
        "destinations": peers.destinations(database, context.now, names),
        "addresses": {destination.name: destination for destination in config.destinations},
        "unconfirmed": {
            destination.name: overview.unconfirmed(database, [destination.name], limit=0).total
            for destination in config.destinations
            if gives_proof(destination)
        },
        "echoing": _echoing(context),
    }


SHARE_TAKEN = (
    "It already has as many associations as one peer may have: let it release idle ones, or "
    "raise node.max_associations_per_peer."
)
NOT_UNDERSTOOD = "The node cannot read its request; show the log to its manufacturer."


def _rejection_advice(ae_title: str) -> Mapping[str, str]:
    """Say what helps a peer that was rejected, by the reason of the rejection."""
    return {
        "calling AE title not recognised": "Allow it here, or name it in node.allowed_ae_titles.",
        "called AE title not recognised": (
            f"Let it call {ae_title}, or enter what it calls in a route (called_ae_title)."
        ),
        "network not allowed": "Add its network to node.allowed_networks.",
        "too many associations": (
            "The column Associations shows which senders hold them: let these release idle ones, "
            "or raise node.max_associations."
        ),
        "too many associations of this AE title": SHARE_TAKEN,
        "too many associations of this address": SHARE_TAKEN,
        "request not understood": NOT_UNDERSTOOD,
        "no TLS connection": "Give it a certificate of the authorities in tls.authorities, and the "
        "node's own authority; without TLS it takes the other port.",
        "TLS at the port without it": "Let it use the port for TLS (tls.port), or no TLS.",
        "not over TLS": "Let it use the port for TLS (tls.port) with its certificate.",
        "certificate of another AE title": "Enter its certificate under its AE title in "
        "tls.ae_titles, or correct its AE title.",
    }


def _echoing(context: PageContext) -> frozenset[str]:
    """Name the destinations that are being asked at this moment."""
    requests = control.open_requests(context.parts.database, RequestKind.ECHO)
    return frozenset(request.subject for request in requests)


def _midnight(context: PageContext) -> float:
    moment = datetime.fromtimestamp(context.now, context.zone).astimezone(context.zone)
    return moment.replace(hour=0, minute=0, second=0, microsecond=0).timestamp()


def _alert_count(context: Context) -> Values:
    return {"alerts": render.alerts(context.parts, context.now)}


add_page(router, "/peers", "peers", _peers, part="part")
add_fragment(router, "/peers/count", "alert_count", _alert_count)


# Users.


def _users(context: Context) -> Values:
    database = context.parts.database
    return {
        "people": people.people(database),
        "logins": people.logins(database, context.now),
        "tokens": people.tokens(database),
        "roles": list(Role),
        "web": context.parts.gate.web,
    }


add_page(router, "/users", "users", _users, part="part")


# The rule tester.


def _rules_form(context: Context, series_uid: Uid = "") -> Values:
    return {
        "series_uid": series_uid,
        "called": context.parts.config().node.ae_title,
        "bounds": middleware.FILE_BOUNDS,
    }


@router.post("/rules/try")
def try_rules(
    context: Context,
    operator: AsOperator,
    file: Annotated[list[UploadFile] | None, File()] = None,
    series_uid: Annotated[str, Form(max_length=64)] = "",
    called_ae: Annotated[str, Form(max_length=16)] = "",
    calling_ae: Annotated[str, Form(max_length=16)] = "",
) -> HTMLResponse:
    """Show what the routes do with files that were dropped here, or with a received series."""
    titles = called_ae.strip(), calling_ae.strip()
    files = [upload for upload in file or [] if upload.filename]
    if files:
        result = rule_tests.try_files(context.parts, operator.name, files, *titles)
    elif series_uid.strip():
        uid = series_uid.strip()
        result = rule_tests.try_series(context.parts, operator.name, uid, *titles)
    else:
        raise Problem(422, "Choose a Part 10 file, or enter the UID of a received series.")
    shown = rule_tests.masked(result) if context.is_masked else result
    return part(context, "rules_result.html", result=shown)


add_page(router, "/rules", "rules", _rules_form)


# The configuration.

IN_ROW = ("factor", "target_spacing_mm", "include_received", "across_missing")  # of a route
TABLED = ("destinations", "routes")  # have a table of their own on the page


def _configuration(context: Context, series_uid: Uid = "") -> Values:
    config, database = context.parts.config(), context.parts.database
    node_id = context.parts.settings.node_id
    applied = control.applied_configuration(database, node_id)
    reload = control.newest_of(database, RequestKind.RELOAD, context.parts.store.requested_node)
    since = context.now - EVALUATED_DAYS * DAY
    return {
        **_rules_form(context, series_uid),
        "config": config,
        "applied": applied,
        "reloads": [reload] if reload is not None else [],
        "conditions": {route.name: _conditions(route.match) for route in config.routes},
        "secured": {place.name: _secured(place) for place in config.destinations},
        "further": {route.name: _further(route, config) for route in config.routes},
        "products": {
            route.name: PRODUCTS[product_of(config, route.model)] for route in config.routes
        },
        "evaluated_days": EVALUATED_DAYS,
        "evaluations": {
            route.name: evaluation(database, route.name, since)
            for route in config.routes
            if not route.destinations
        },
        "rest": _rest(applied.values) if applied is not None else [],
    }


def _further(route: Route, config: Config) -> list[tuple[str, str]]:
    """The options of a route that mean something to its model and are not in its row already."""
    options = {**route.options, "despite_thin": route.despite_thin}
    produces = product_of(config, route.model)
    left_out = {
        *(IN_ROW if route.makes_slices else SLICE_OPTIONS),
        *(() if produces in ("scores", "findings") else JUDGING_OPTIONS),
        *(() if produces == "findings" else FINDING_OPTIONS),
    }
    return [(name, _text(value)) for name, value in options.items() if name not in left_out]


def _secured(place: Destination) -> str:
    """Say by what a destination is known over TLS; empty where it is called without."""
    tls = place.tls
    if tls is None:
        return "TLS, an authority of the system" if place.url.startswith("https:") else ""
    if tls.authorities is None or tls.fingerprint:
        return f"TLS, by the certificate with SHA-256 {tls.fingerprint[:23]}..."
    return f"TLS, as {tls.server_name or place.host}, by an authority of {tls.authorities}"


def _conditions(match: Mapping[str, object]) -> list[tuple[str, str]]:
    """Write the conditions of a route, one line each, in the words of the file."""
    return [(key, _condition(value)) for key, value in match.items()]


def _condition(value: object) -> str:
    values = getattr(value, "values", ())
    parts = [" or ".join(map(str, values))] if values else []
    words = {"min": "at least", "max": "at most", "has": "has", "regex": "matches"}
    for name, word in words.items():
        limit = getattr(value, name, None)
        if limit is not None:
            parts.append(f"{word} {limit:g}" if isinstance(limit, float) else f"{word} {limit}")
    return ", ".join(parts)


def _rest(values: Mapping[str, object]) -> list[tuple[str, list[tuple[str, str]]]]:
    """List the other tables of the file as keys and values; those of an array by their place."""
    sections = []
    for section, value in values.items():
        tables = [(section, value)] if section not in ABOUT_THE_FILE else []
        if isinstance(value, list) and section not in TABLED:
            tables = [(f"{section[:-1]}[{place}]", table) for place, table in enumerate(value)]
        for name, table in tables:
            if isinstance(table, Mapping):
                sections.append((name, [(str(key), _text(entry)) for key, entry in table.items()]))
    return sections


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_text(entry)}" for key, entry in value.items()) or "none"
    return str(value) if value not in ("", None) else "empty"


add_page(router, "/configuration", "configuration", _configuration, part="part")


# The audit, and the history of self-tests and notifications.


def _audit(context: Context, who: Word = "", what: Word = "", offset: Offset = 0) -> Values:
    audit, given = context.parts.store.audit, {"who": who.strip(), "what": what.strip()}
    events = audit.list(EVENTS_AT_ONCE, offset, **given)
    return {"events": Page(events, audit.count(**given), EVENTS_AT_ONCE, offset), "given": given}


def _selftests(context: Context, offset: Offset = 0) -> Values:
    database, config = context.parts.database, context.parts.config()
    lines = selftests.newest(database, SELFTESTS_AT_ONCE, offset)
    return {
        "tests": Page(lines, selftests.count(database), SELFTESTS_AT_ONCE, offset),
        "requests": control.open_requests(database, RequestKind.SELFTEST),
        "schedule": config.selftest,
        "messages": notices.newest(database, limit=10),
        "notify": config.notify,
    }


add_page(router, "/audit", "audit", _audit)
add_page(router, "/selftest", "selftest", _selftests, part="part")


# Capacity.

# What a person may look at: how long back, and how wide a column is.
SPANS: Mapping[str, tuple[str, float, float]] = {
    "day": ("24 hours", DAY, HOUR),
    "week": ("7 days", 7 * DAY, 6 * HOUR),
}
STEP_NAMES: Mapping[str, str] = {
    "receive": "Receiving",
    "wait": "Waiting for more",
    "queue": "In the queue",
    "infer": "Processing",
    "send": "Sending",
    "total": "After the last instance",
}


def _capacity(
    context: Context, span: Annotated[str, Query(pattern="^(day|week)$")] = "day"
) -> Values:
    return {
        "span": span,
        "spans": SPANS,
        **_disk(context),
        **_times(context, span),
        **_workers(context),
    }


def _disk(context: PageContext) -> Values:
    config, node_id = context.parts.config(), context.parts.settings.node_id
    since = context.now - nodes.FORECAST_DAYS * DAY
    samples = nodes.samples(context.parts.database, node_id, since)
    return {
        "disk": health.disk(config.folder),
        "reserve": config.storage.min_free_bytes,
        "forecast": nodes.forecast(samples, config.storage.min_free_bytes),
        "storage": config.storage,
    }


def _workers(context: PageContext) -> Values:
    database = context.parts.database
    return {
        "running": overview.running(database, context.now),
        "inference": context.parts.config().inference,
        "devices": figures.devices(database),
        "nodes": _nodes(context),
        "counts": overview.counts(database),
    }


def _nodes(context: PageContext) -> list[tuple[NodeState, str, NodeWork]]:
    """Every node on this storage, its state as others see it, and its work."""
    store = context.parts.store
    work = store.nodes.work()
    return [
        (state, _seen_as(state, context.now), work.get(state.id, NodeWork()))
        for state in store.nodes.get()
    ]


def _seen_as(state: NodeState, now: float) -> str:
    is_silent = now - state.heartbeat > health.ALIVE_SECONDS
    return "silent" if is_silent and state.state in nodes.AT_WORK else state.state


def _times(context: PageContext, span: str) -> Values:
    _, length, width = SPANS[span]
    first = _start(context, width) - length + width
    buckets = figures.buckets(context.parts.database, first, first + length, width)
    whole = figures.durations(context.parts.database, first, context.now)
    label = _label(context.zone, with_day=span == "week")
    drawn = {step: _lines(buckets, step, label) for step in STEP_NAMES}
    return {
        "step_times": [(name, whole[step], drawn[step]) for step, name in STEP_NAMES.items()],
        "jobs_done": _columns(buckets, label, lambda b: (b.jobs - b.failed, b.failed)),
        "jobs_total": sum(bucket.jobs for bucket in buckets),
        "failed_total": sum(bucket.failed for bucket in buckets),
        "instances_done": _columns(buckets, label, lambda b: (b.instances, 0)),
        "instances_total": sum(bucket.instances for bucket in buckets),
    }


def _start(context: PageContext, width: float) -> float:
    """Find the full hour that the last column begins at, in the zone of the pages."""
    midnight = _midnight(context)
    return midnight + (context.now - midnight) // width * width


def _label(zone: tzinfo | None, *, with_day: bool) -> Callable[[float], str]:
    form = "%a %d" if with_day else "%H:%M"
    return lambda moment: datetime.fromtimestamp(moment, zone).astimezone(zone).strftime(form)


def _lines(buckets: Sequence[Bucket], step: str, label: Callable[[float], str]) -> Markup:
    """Draw the median and the 95th percentile of a step, in seconds, minutes or hours."""
    times = [(bucket.steps[step].p50, bucket.steps[step].p95) for bucket in buckets]
    most = max((v for pair in times for v in pair if v is not None), default=0.0)
    scale, unit = (1.0, "s") if most < 120 else (60.0, "min") if most < 7200 else (HOUR, "h")
    points = [
        Point(b.start, label(b.start), tuple(None if v is None else v / scale for v in pair))
        for b, pair in zip(buckets, times, strict=True)
    ]
    return drawings.plot(points, ("p50", "p95"), unit)


def _columns(
    buckets: Sequence[Bucket],
    label: Callable[[float], str],
    values: Callable[[Bucket], tuple[int, int]],
) -> Markup:
    points = [Point(bucket.start, label(bucket.start), values(bucket)) for bucket in buckets]
    return drawings.bars(points, ("bar", "bar bad"), "")


add_page(router, "/capacity", "capacity", _capacity, part="part")


# The conformance statement, the log-in, and what a visitor sets for himself.


def _conformance(request: Request, parts: PartsOf, _: AsViewer) -> Values:
    return {"statement": request.app.state.statements.of(parts.config()).html}


add_page(router, "/conformance", "conformance", _conformance)


@router.get("/login")
def login_form(request: Request, parts: PartsOf, next: str = "/") -> HTMLResponse:
    hint = "" if parts.gate.web.oidc or parts.gate.has_user() else NO_USER
    return HTMLResponse(render.login_page(request, next=next, hint=hint))


@router.get("/password")
def password(context: Context) -> HTMLResponse:
    if context.visitor.how is not How.SESSION:
        raise Problem(404, "Only visitors who have logged in with a password can change it here.")
    return page(context, "password.html", path="/password")


@router.post("/mask")
def mask(request: Request, visitor: AsViewer, parts: PartsOf) -> RedirectResponse:
    """Hide or show patients' attributes in this browser, and show the same page again."""
    is_masked = request.cookies.get(MASK) == "1"
    answer = RedirectResponse(_page_of(request), 303)
    secure = parts.gate.is_secure(request)
    value = "" if is_masked else "1"
    answer.set_cookie(
        MASK, value, max_age=MASK_SECONDS, httponly=True, samesite="lax", secure=secure
    )
    return answer


def _page_of(request: Request) -> str:
    """Find the path of the page whose button was pressed; never another site's."""
    referer, host = request.headers.get("referer", ""), request.headers.get("host", "")
    _, ours, path = referer.partition(f"//{host}/")
    return f"/{path}" if ours and not path.startswith(("/", "\\")) else "/"
