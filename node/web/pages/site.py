"""The pages of the site: peers, people, configuration, audit, self-test, capacity, log-in."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, tzinfo
from typing import Annotated

from fastapi import APIRouter, File, Form, Query, UploadFile
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse

from node import health
from node.web import rules as rule_tests
from node.web import shield
from node.web.access import AsAdministrator, AsOperator, AsViewer, How, Role
from node.web.pages import drawings, render
from node.web.pages.drawings import Point
from node.web.pages.render import ENVIRONMENT, MASK, Look, look, page, part
from node.web.problems import Problem
from node.web.state import PartsOf
from storage.queries import figures, overview
from storage.queries.figures import evaluation
from storage.records import Bucket, Page, SwitchName, WishKind, WishState
from storage.site import control, nodes, notices, peers, people, selftests

router = APIRouter()

REJECTED_DAYS = 7
HOUR, DAY = 3600.0, 86400.0


@router.get("/peers")
def all_peers(request: Request, visitor: AsViewer, parts: PartsOf) -> HTMLResponse:
    at = look(request, parts, visitor)
    return page(at, "peers.html", path="/peers", **_peers(at))


@router.get("/peers/part")
def peers_fragment(request: Request, visitor: AsViewer, parts: PartsOf) -> HTMLResponse:
    at = look(request, parts, visitor)
    return part(at, "peers_part.html", **_peers(at))


@router.get("/peers/count")
def count(request: Request, visitor: AsViewer, parts: PartsOf) -> HTMLResponse:
    """How many of those on this page somebody should look at."""
    at = look(request, parts, visitor)
    return part(at, "concerning.html", concerns=render.concerns(parts, at.now))


def _peers(at: Look) -> Mapping[str, object]:
    database, config = at.parts.database, at.parts.config()
    allowed = control.all_on(database, SwitchName.ALLOWED_AE)
    expected = {each.ae_title: each for each in config.senders}
    heard = peers.last_heard(database, list(expected))
    return {
        "senders": peers.senders(database, _midnight(at)),
        "expected": expected,
        "silent": frozenset(render.silent(at.parts, at.now)),
        "never_heard": sorted(set(expected) - set(heard)),
        "rejections": peers.rejections(database, at.now - REJECTED_DAYS * DAY, limit=20),
        "allowed": allowed,
        "allowed_names": {each.subject for each in allowed},
        "configured": config.node.allowed_ae_titles,
        "destinations": peers.destinations(
            database, at.now, [each.name for each in config.destinations]
        ),
        "addresses": {each.name: each for each in config.destinations},
        "echoing": _echoing(at),
        "advice": _advice(config.node.ae_title),
    }


def _advice(ae_title: str) -> Mapping[str, str]:
    """What helps a peer that was turned away, by the reason that was written down."""
    return {
        "calling AE title not recognised": "Allow it here, or name it in node.allowed_ae_titles.",
        "called AE title not recognised": (
            f"Have it call {ae_title}, or name what it calls as called_ae_title of a route."
        ),
        "network not allowed": "Add its network to node.allowed_networks.",
        "too many associations": "Raise node.max_associations, or have it send less at once.",
    }


def _echoing(at: Look) -> frozenset[str]:
    """Destinations that are being asked at this moment."""
    asked = control.asked(at.parts.database)
    return frozenset(
        each.subject
        for each in asked
        if each.kind is WishKind.ECHO and each.state is WishState.ASKED
    )


def _midnight(at: Look) -> float:
    moment = datetime.fromtimestamp(at.now, at.zone).astimezone(at.zone)
    return moment.replace(hour=0, minute=0, second=0, microsecond=0).timestamp()


@router.get("/users")
def everybody(request: Request, visitor: AsAdministrator, parts: PartsOf) -> HTMLResponse:
    at = look(request, parts, visitor)
    return page(at, "users.html", path="/users", **_people(at))


@router.get("/users/part")
def people_fragment(request: Request, visitor: AsAdministrator, parts: PartsOf) -> HTMLResponse:
    at = look(request, parts, visitor)
    return part(at, "users_part.html", **_people(at))


def _people(at: Look) -> Mapping[str, object]:
    database, access = at.parts.database, at.parts.gate.access
    return {
        "people": people.people(database),
        "logins": people.logins(database, at.now),
        "tokens": people.tokens(database),
        "roles": list(Role),
        "access": access,
    }


@router.get("/rules")
def rule_tester(
    request: Request,
    visitor: AsOperator,
    parts: PartsOf,
    series_uid: Annotated[str, Query(max_length=64)] = "",
) -> HTMLResponse:
    at = look(request, parts, visitor)
    return page(at, "rules.html", path="/rules", **asked(at, series_uid))


@router.post("/rules/try")
def tried(
    request: Request,
    visitor: AsOperator,
    parts: PartsOf,
    file: Annotated[list[UploadFile] | None, File()] = None,
    series_uid: Annotated[str, Form(max_length=64)] = "",
    called_ae: Annotated[str, Form(max_length=16)] = "",
    calling_ae: Annotated[str, Form(max_length=16)] = "",
) -> HTMLResponse:
    """What the routes say to files that were dropped here, or to a series that was received."""
    at = look(request, parts, visitor)
    titles = called_ae.strip(), calling_ae.strip()
    given = [each for each in file or [] if each.filename]
    if given:
        found = rule_tests.try_files(parts, visitor.name, given, *titles)
    elif series_uid.strip():
        found = rule_tests.try_series(parts, visitor.name, series_uid.strip(), *titles)
    else:
        raise Problem(422, "Drop a Part 10 file, or name the UID of a received series.")
    return part(at, "tried.html", found=rule_tests.masked(found) if at.is_masked else found)


def asked(at: Look, series_uid: str) -> Mapping[str, object]:
    """What the form of the tester begins with."""
    return {
        "series_uid": series_uid,
        "called": at.parts.config().node.ae_title,
        "bounds": shield.FILE_BOUNDS,
    }


EVALUATED_DAYS = 7
# Of a route, what its row in the table does not say already.
FURTHER = (
    "accept_derived",
    "despite_thin",
    "slice_thickness",
    "most_gap_mm",
    "classical_below",
    "hold_below",
)
TABLED = ("destinations", "routes")  # have a table of their own on the page


@router.get("/configuration")
def configuration(
    request: Request,
    visitor: AsAdministrator,
    parts: PartsOf,
    series_uid: Annotated[str, Query(max_length=64)] = "",
) -> HTMLResponse:
    at = look(request, parts, visitor)
    shown = {**_configured(at), **asked(at, series_uid)}
    return page(at, "configuration.html", path="/configuration", **shown)


@router.get("/configuration/part")
def configuration_fragment(
    request: Request, visitor: AsAdministrator, parts: PartsOf
) -> HTMLResponse:
    at = look(request, parts, visitor)
    return part(at, "configuration_part.html", **_configured(at))


def _configured(at: Look) -> Mapping[str, object]:
    config = at.parts.config()
    read = control.applied_configuration(at.parts.database, at.parts.settings.node_id)
    return {
        "config": config,
        "read": read,
        "asked": control.newest(at.parts.database, WishKind.RELOAD, 1),
        "conditions": {route.name: _conditions(route.match) for route in config.routes},
        "further": {
            route.name: [(key, _said(getattr(route, key))) for key in FURTHER]
            for route in config.routes
        },
        "evaluated_days": EVALUATED_DAYS,
        "evaluations": {
            route.name: evaluation(at.parts.database, route.name, at.now - EVALUATED_DAYS * DAY)
            for route in config.routes
            if not route.destinations
        },
        "rest": _rest(read.values) if read is not None else [],
    }


def _conditions(match: Mapping[str, object]) -> list[tuple[str, str]]:
    """What a stack must be, one line each, in the words of the file."""
    return [(key, _condition(value)) for key, value in match.items()]


def _condition(value: object) -> str:
    values = getattr(value, "values", ())
    parts = [" or ".join(str(each) for each in values)] if values else []
    for name, word in (("min", "at least"), ("max", "at most"), ("has", "has"), ("regex", "finds")):
        limit = getattr(value, name, None)
        if limit is not None:
            parts.append(f"{word} {limit:g}" if isinstance(limit, float) else f"{word} {limit}")
    return ", ".join(parts)


def _rest(values: Mapping[str, object]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The other tables of the file, as keys and values; each of a list of tables by its place."""
    found = []
    for section, value in values.items():
        tables = [(section, value)]
        if isinstance(value, list) and section not in TABLED:
            tables = [(f"{section[:-1]}[{place}]", table) for place, table in enumerate(value)]
        for name, table in tables:
            if isinstance(table, Mapping):
                found.append((name, [(str(key), _said(each)) for key, each in table.items()]))
    return found


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(str(each) for each in value) or "none"
    return str(value) if value not in ("", None) else "empty"


EVENTS_AT_ONCE = 100

Word = Annotated[str, Query(max_length=64)]


@router.get("/audit")
def events(
    request: Request,
    visitor: AsAdministrator,
    parts: PartsOf,
    who: Word = "",
    what: Word = "",
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
) -> HTMLResponse:
    at = look(request, parts, visitor)
    audit, given = parts.store.audit, {"who": who.strip(), "what": what.strip()}
    lines = audit.list(EVENTS_AT_ONCE, offset, **given)
    found = Page(lines, audit.count(**given), EVENTS_AT_ONCE, offset)
    return page(at, "audit.html", path="/audit", found=found, given=given)


SELFTESTS_AT_ONCE = 20
Offset = Annotated[int, Query(ge=0, le=10**9)]


@router.get("/selftest")
def selftest(
    request: Request, visitor: AsViewer, parts: PartsOf, offset: Offset = 0
) -> HTMLResponse:
    at = look(request, parts, visitor)
    return page(at, "selftest.html", path="/selftest", **_history(at, offset))


@router.get("/selftest/part")
def selftest_fragment(
    request: Request, visitor: AsViewer, parts: PartsOf, offset: Offset = 0
) -> HTMLResponse:
    at = look(request, parts, visitor)
    return part(at, "selftest_part.html", **_history(at, offset))


def _history(at: Look, offset: int) -> Mapping[str, object]:
    database = at.parts.database
    asked = [each for each in control.asked(database) if each.kind is WishKind.SELFTEST]
    lines = selftests.history(database, SELFTESTS_AT_ONCE, offset)
    return {
        "tests": Page(lines, selftests.count(database), SELFTESTS_AT_ONCE, offset),
        "asked": asked,
        "schedule": at.parts.config().selftest,
        "messages": notices.newest(database, limit=10),
        "notify": at.parts.config().notify,
    }


# What a person may look at: how long back, and how wide a column is.
SPANS: Mapping[str, tuple[str, float, float]] = {
    "day": ("24 hours", DAY, HOUR),
    "week": ("7 days", 7 * DAY, 6 * HOUR),
}
NAMES: Mapping[str, str] = {
    "receive": "Receiving",
    "wait": "Waiting for more",
    "queue": "In the queue",
    "infer": "Worked on",
    "send": "Sending",
    "total": "After the last instance",
}

Span = Annotated[str, Query(pattern="^(day|week)$")]


@router.get("/capacity")
def capacity(
    request: Request, visitor: AsViewer, parts: PartsOf, span: Span = "day"
) -> HTMLResponse:
    at = look(request, parts, visitor)
    return page(at, "capacity.html", path="/capacity", **_capacity(at, span))


@router.get("/capacity/part")
def capacity_fragment(
    request: Request, visitor: AsViewer, parts: PartsOf, span: Span = "day"
) -> HTMLResponse:
    at = look(request, parts, visitor)
    return part(at, "capacity_part.html", **_capacity(at, span))


def _capacity(at: Look, span: str) -> dict[str, object]:
    return {"span": span, "spans": SPANS, **_disk(at), **_times(at, span), **_workers(at)}


def _disk(at: Look) -> dict[str, object]:
    config = at.parts.config()
    disk = health.disk(config.folder)
    node = at.parts.settings.node_id
    taken = nodes.samples(at.parts.database, node, at.now - nodes.FORECAST_DAYS * DAY)
    return {
        "disk": disk,
        "reserve": config.storage.min_free_bytes,
        "forecast": nodes.forecast(taken, config.storage.min_free_bytes),
        "storage": config.storage,
    }


def _workers(at: Look) -> dict[str, object]:
    counts = overview.counts(at.parts.database)
    return {
        "running": overview.running(at.parts.database, at.now),
        "inference": at.parts.config().inference,
        "devices": figures.devices(at.parts.database),
        "nodes": at.parts.store.nodes.get(),
        "counts": counts,
    }


def _times(at: Look, span: str) -> dict[str, object]:
    _, length, width = SPANS[span]
    first = _start(at, width) - length + width
    buckets = figures.buckets(at.parts.database, first, first + length, width)
    whole = figures.durations(at.parts.database, first, at.now)
    said = _label(at.zone, with_day=span == "week")
    return {
        "steps_taken": [(NAMES[step], whole[step], _lines(buckets, step, said)) for step in NAMES],
        "jobs_done": _columns(buckets, said, lambda one: (one.jobs - one.failed, one.failed)),
        "jobs_total": sum(one.jobs for one in buckets),
        "failed_total": sum(one.failed for one in buckets),
        "instances_done": _columns(buckets, said, lambda one: (one.instances, 0)),
        "instances_total": sum(one.instances for one in buckets),
    }


def _start(at: Look, width: float) -> float:
    """The full hours that columns begin at, in the zone of the pages."""
    moment = datetime.fromtimestamp(at.now, at.zone).astimezone(at.zone)
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
    return midnight + (at.now - midnight) // width * width


def _label(zone: tzinfo | None, *, with_day: bool) -> Callable[[float], str]:
    form = "%a %d" if with_day else "%H:%M"
    return lambda moment: datetime.fromtimestamp(moment, zone).astimezone(zone).strftime(form)


def _lines(buckets: Sequence[Bucket], step: str, said: Callable[[float], str]) -> Markup:
    points = [
        Point(one.start, said(one.start), (one.steps[step].p50, one.steps[step].p95))
        for one in buckets
    ]
    scale, unit = _scale(points)
    scaled = [
        Point(p.at, p.label, tuple(None if v is None else v / scale for v in p.values))
        for p in points
    ]
    return drawings.plot(scaled, ("p50", "p95"), unit)


def _scale(points: Sequence[Point]) -> tuple[float, str]:
    """Seconds, minutes or hours: what keeps the numbers of the axis short."""
    most = max((v for point in points for v in point.values if v is not None), default=0.0)
    if most < 120:
        return 1.0, "s"
    return (60.0, "min") if most < 7200 else (HOUR, "h")


def _columns(
    buckets: Sequence[Bucket],
    said: Callable[[float], str],
    values: Callable[[Bucket], tuple[int, int]],
) -> Markup:
    points = [Point(one.start, said(one.start), values(one)) for one in buckets]
    return drawings.bars(points, ("bar", "bar bad"), "")


@router.get("/conformance")
def conformance(request: Request, visitor: AsViewer, parts: PartsOf) -> HTMLResponse:
    at = look(request, parts, visitor)
    written = request.app.state.statements.of(parts.config())
    return page(at, "conformance.html", path="/conformance", statement=written.html)


MASK_SECONDS = 365 * 86400


@router.get("/login")
def form(next: str = "/") -> HTMLResponse:
    return HTMLResponse(ENVIRONMENT.get_template("login.html").render(problem=None, next=next))


@router.get("/password")
def password(request: Request, visitor: AsViewer, parts: PartsOf) -> HTMLResponse:
    if visitor.how is not How.SESSION:
        raise Problem(404, "Only who has logged in with a password can change it here.")
    return page(look(request, parts, visitor), "password.html", path="/password")


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
    """The path of the page whose button was pressed; never another site's."""
    before = request.headers.get("referer", "")
    host = f"//{request.headers.get('host', '')}/"
    _, found, path = before.partition(host)
    return f"/{path}" if found and not path.startswith(("/", "\\")) else "/"
