"""Turns rows into pages: least role of each, one Jinja environment, words for values, alerts."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from fastapi import APIRouter, Depends
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse

from node import certificates, wording
from node.dicom.status import meaning
from node.rules import reasons
from node.rules.backoff import is_silent
from node.web.access import AsViewer, Gate, Visitor, require
from node.web.problems import Problem
from node.web.state import Parts, PartsOf
from node.wording import whole_duration
from storage.queries.find import needing
from storage.queries.overview import not_closed
from storage.records import DAY, ClosingFault, Page, Role, SwitchName
from storage.site import control, notices, peers
from storage.site.nodes import SERVING

TEMPLATES = Path(__file__).parent.parent / "templates"
MASK = "midslice-mask"  # the cookie of a visitor who wants patients' attributes hidden
HIDDEN = "\u2022" * 6
# Six direction cosines as the name of a stack writes them.
ALONG = r"along (-?\d\.\d\d(?: -?\d\.\d\d){5})"
LACKING_SECONDS = 60.0  # without workers: each start of a node takes a while
NOTICE_DAYS = 7  # a channel that failed before that, with nothing to send since, is left out

# (path, name on the page, the least role): the order in which the pages are listed.
NAVIGATION = (
    ("/", "Now", Role.VIEWER),
    ("/needs", "Needs a person", Role.VIEWER),
    ("/find", "Find", Role.VIEWER),
    ("/sending", "Sending", Role.VIEWER),
    ("", "", Role.VIEWER),
    ("/peers", "Peers", Role.VIEWER),
    ("/capacity", "Capacity", Role.VIEWER),
    ("/selftest", "Self-test", Role.VIEWER),
    ("/rules", "Rule tester", Role.OPERATOR),
    ("", "", Role.VIEWER),
    ("/configuration", "Configuration", Role.ADMINISTRATOR),
    ("/users", "Users", Role.ADMINISTRATOR),
    ("/audit", "Audit", Role.ADMINISTRATOR),
    ("/conformance", "Conformance", Role.VIEWER),
)
LEAST_ROLE: Mapping[str, Role] = {path: role for path, _, role in NAVIGATION if path}
STEPS: Mapping[str, str] = {
    "reading": "reading the received slices",
    "predicting": "generating slices",
    "writing": "copying received slices",
    "checking": "checking the result",
    "previews": "drawing the previews",
    "paused": "paused for a more urgent job",
}


@dataclass(frozen=True)
class PageContext:
    """The visitor, the moment and the mask: what every page is made with."""

    parts: Parts
    visitor: Visitor
    now: float
    is_masked: bool
    live_id: str  # read before any row: what changes after it is told to the page

    @property
    def zone(self) -> tzinfo | None:
        return self.parts.zone


def _context(request: Request, parts: PartsOf, visitor: AsViewer) -> PageContext:
    is_masked = request.cookies.get(MASK) == "1"
    return PageContext(parts, visitor, parts.gate.now(), is_masked, request.app.state.live.id)


Context = Annotated[PageContext, Depends(_context)]
Values: TypeAlias = Mapping[str, object]  # what fills a template


def add_page(
    router: APIRouter, path: str, template: str, values: Callable[..., Values], *, part: str = ""
) -> None:
    """Register a page of the navigation, for the role that is named there.

    `values`, a dependency, fills its template; and the template of its part, where the page has
    one that is fetched again when its rows have changed.
    """
    only_for = [] if LEAST_ROLE[path] is Role.VIEWER else [Depends(require(LEAST_ROLE[path]))]

    @router.get(path, dependencies=only_for)
    def whole(context: Context, filled: Annotated[Values, Depends(values)]) -> HTMLResponse:
        return page(context, f"{template}.html", path=path, **filled)

    if part:
        add_fragment(router, f"{path}/{part}", f"{template}_{part}", values, only_for)


def add_fragment(
    router: APIRouter,
    path: str,
    template: str,
    values: Callable[..., Values],
    only_for: Sequence[Any] = (),
) -> None:
    """Register a part of a page by itself, for viewers where no other role is asked for."""

    @router.get(path, dependencies=only_for)
    def fragment(context: Context, filled: Annotated[Values, Depends(values)]) -> HTMLResponse:
        return part(context, f"{template}.html", **filled)


def page(context: PageContext, name: str, *, path: str, **values: object) -> HTMLResponse:
    """Fill a whole page."""
    needs = values.get("needs") or needing(context.parts.database, limit=1)
    alerts_ = values["alerts"] if "alerts" in values else alerts(context.parts, context.now)
    frame = {
        "path": path,
        "pages": [entry for entry in NAVIGATION if context.visitor.may(entry[2])],
        "need_count": needs.total if isinstance(needs, Page) else 0,
        "alerts": alerts_,
        "draining": control.draining(context.parts.database),
        "node_ae": context.parts.config().node.ae_title,
        "zone": zone_name(context.now, context.zone),
    }
    return part(context, name, **{**frame, **values})


def part(context: PageContext, name: str, **values: object) -> HTMLResponse:
    """Fill a template with values, and with the words of this context."""
    words: Mapping[str, Any] = {
        "visitor": context.visitor,
        "may_act": context.visitor.may(Role.OPERATOR),
        "may_change": context.visitor.may(Role.ADMINISTRATOR),
        "is_masked": context.is_masked,
        "now": context.now,
        "live_id": context.live_id,
        "when": partial(_when, context),
        "ago": partial(_ago, context),
        "until": _until,
        "private": partial(_private, context),
    }
    return HTMLResponse(ENVIRONMENT.get_template(name).render({**words, **values}))


def error_page(request: Request, problem: Problem) -> str:
    """Make a page of a problem, which needs no row and no visitor; the log-in keeps its form."""
    if request.url.path == "/login" or request.url.path.startswith("/login/"):
        return login_page(request, problem=problem)
    return ENVIRONMENT.get_template("error.html").render(problem=problem)


def login_page(request: Request, **given: object) -> str:
    """Make the page where people log in; it needs no row."""
    gate: Gate = request.app.state.gate
    shown: dict[str, object] = {
        "problem": None,
        "next": "/",
        "hint": "",
        "ended_at": "",
        "end_session_url": "",
    }
    shown |= {"oidc": gate.web.oidc, "takes_passwords": gate.web.takes_passwords}
    return ENVIRONMENT.get_template("login.html").render({**shown, **given})


def chosen_from(names: Iterable[str], given: str) -> list[str]:
    """List what a filter may choose from, with what an address has chosen."""
    return sorted({*names, given} - {""})


# Alerts: peers and channels that somebody should look at.


@dataclass(frozen=True)
class Alert:
    """One of them: its name, what is wrong, since when, and the page that says more."""

    name: str
    text: str  # a verb phrase, before "for 3 h"
    since: float
    page: str = "/peers"


def alerts(parts: Parts, now: float) -> tuple[Alert, ...]:
    """List what fails on its way to a job, and senders, destinations, channels with a fault."""
    return (
        *_not_closed(parts),
        *_workers(parts, now),
        *_senders(parts, now),
        *_destinations(parts),
        *_channels(parts, now),
        *_certificates(parts, now),
    )


def silent(parts: Parts, now: float) -> Mapping[str, float]:
    """Find the senders that are expected now and have sent no image for too long; since when."""
    senders = parts.config().senders
    since = peers.quiet_since(parts.database, [sender.ae_title for sender in senders])
    return {
        sender.ae_title: since[sender.ae_title]
        for sender in senders
        if sender.ae_title in since and is_silent(sender, since[sender.ae_title], now, parts.zone)
    }


def _not_closed(parts: Parts) -> Iterator[Alert]:
    for arrival in not_closed(parts.database):
        if fault := ClosingFault.of(arrival):
            name = f"A series from {arrival.calling_ae}"
            text = f"has not been processed because of an error of the node ({fault.error})"
            yield Alert(name, text, fault.since, f"/series/{arrival.series_uid}")


def _workers(parts: Parts, now: float) -> Iterator[Alert]:
    for node in parts.store.nodes.get():
        since = node.lacking_since
        if node.state == SERVING and since is not None and now - since > LACKING_SECONDS:
            yield Alert(node.id, f"has lacked workers ({node.lacks})", since, "/capacity")


def _senders(parts: Parts, now: float) -> Iterator[Alert]:
    for name, since in silent(parts, now).items():
        yield Alert(name, "has sent no image", since)


def _destinations(parts: Parts) -> Iterator[Alert]:
    paused = {
        switch.subject: switch for switch in control.all_on(parts.database, SwitchName.PAUSED)
    }
    reaches = {reach.destination: reach for reach in peers.reachability(parts.database)}
    for destination in parts.config().destinations:
        name = destination.name
        switch, reach = paused.get(name), reaches.get(name)
        if switch is not None:
            yield Alert(name, f"has been paused by {switch.who}", switch.at)
        elif reach is not None and not reach.up:
            yield Alert(name, "has not answered", reach.since)


def _certificates(parts: Parts, now: float) -> Iterator[Alert]:
    for certificate in certificates.all_of(parts.config()):
        if certificate.days_left(now) < 0:
            text = f"of {certificate.role} has expired and has been invalid"
            yield Alert(certificate.title, text, certificate.expires_at, "/configuration")
        elif certificate.stage(now):
            day = clock(certificate.expires_at, parts.zone, now)
            text = f"of {certificate.role} expires on {day} and has been due for renewal"
            yield Alert(certificate.title, text, certificate.due_at, "/configuration")


def _channels(parts: Parts, now: float) -> Iterator[Alert]:
    for message in notices.stuck(parts.database, now - NOTICE_DAYS * DAY):
        yield Alert(
            message.channel, "has not accepted a notification", message.notice.at, "/selftest"
        )


# Words for values.


def clock(at: float | None, zone: tzinfo | None, now: float) -> str:
    """Write a moment: the time today, the day too before that."""
    if at is None:
        return ""
    moment, today = _local(at, zone), _local(now, zone)
    if moment.date() == today.date():
        return moment.strftime("%H:%M:%S")
    if moment.year == today.year:
        return moment.strftime("%d %b %H:%M")
    return moment.strftime("%Y-%m-%d %H:%M")


def exact(at: float | None, zone: tzinfo | None) -> str:
    """Write a moment with its day, its seconds and its offset."""
    return "" if at is None else _local(at, zone).strftime("%Y-%m-%d %H:%M:%S %z")


def zone_name(at: float, zone: tzinfo | None) -> str:
    """Name the zone of the times on the pages, with its offset from UTC at that moment."""
    moment = _local(at, zone)
    name, offset = moment.strftime("%Z"), moment.strftime("%z")
    from_utc = f"UTC{offset[:3]}:{offset[3:5]}"
    if offset == "+0000":
        return name or "UTC"
    return f"{name} ({from_utc})" if name.isalpha() else from_utc


def machine_time(at: float, zone: tzinfo | None) -> str:
    """Write a moment for the attribute `datetime`."""
    return _local(at, zone).isoformat(timespec="seconds")


def _local(at: float, zone: tzinfo | None) -> datetime:
    return datetime.fromtimestamp(at, zone).astimezone(zone)


def study_date(text: str) -> str:
    """Write a DICOM date (PS3.5 6.2 DA) as people read it; any other text stays as it is."""
    is_date = len(text) == 8 and text.isascii() and text.isdigit()
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if is_date else text


def person(text: str) -> str:
    """Write a Person Name (PS3.5 6.2.1) without its separators."""
    first = text.split("=", 1)[0]
    parts = [part.strip() for part in first.split("^")]
    family, rest = parts[0], " ".join(part for part in parts[1:] if part)
    return f"{family}, {rest}" if family and rest else family or rest


def stack(text: str) -> str:
    """Write the name of a stack, its orientation as that of the nearest plane."""
    text = re.sub(r"(\d+)x(\d+)", "\\1 × \\2", text)
    text = re.sub(r"at (\d+\.?\d*) \1 mm", lambda match: f"at {float(match[1]):.3g} mm", text)
    return re.sub(ALONG, lambda match: _plane(match[1]), text)


def _plane(text: str) -> str:
    """Name the plane of six direction cosines (PS3.3 C.7.6.2.1.1)."""
    x1, y1, z1, x2, y2, z2 = (float(number) for number in text.split())
    normal = abs(y1 * z2 - z1 * y2), abs(z1 * x2 - x1 * z2), abs(x1 * y2 - y1 * x2)
    most = max(normal)
    name = ("sagittal", "coronal", "axial")[normal.index(most)]
    return f"{name} plane" if most > 0.99 else f"oblique {name} plane"


def percent(share: float) -> str:
    return f"{share * 100:.1f} %" if 0 < share < 0.1 or 0.99 < share < 1 else f"{share * 100:.0f} %"


def _when(context: PageContext, moment: float | None) -> Markup:
    """Write a moment, exact where the pointer rests."""
    if moment is None:
        return Markup("")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        machine_time(moment, context.zone),
        exact(moment, context.zone),
        clock(moment, context.zone, context.now),
    )


def _ago(context: PageContext, moment: float | None) -> Markup:
    """Write the time since a moment, counted on by the page; exact where the pointer rests."""
    if moment is None:
        return Markup("")
    return Markup('<time datetime="{}" title="{}" data-since="{}">{}</time>').format(
        machine_time(moment, context.zone),
        exact(moment, context.zone),
        f"{moment:.1f}",
        whole_duration(context.now - moment),
    )


def _until(moment: float, now: float, over: str) -> Markup:
    """Write the time until a moment, counted down by the page; then `over` stands there."""
    left = whole_duration(moment - now) if moment > now else over
    return Markup('<span data-until="{}" data-over="{}">{}</span>').format(
        f"{moment:.1f}", over, left
    )


def _private(context: PageContext, value: str) -> Markup:
    """Write a patient's attribute; where it is to be hidden, it is not in the page at all."""
    if not value:
        return Markup('<span class="quiet">none</span>')
    if context.is_masked:
        return Markup('<span class="quiet" title="Hidden">{}</span>').format(HIDDEN)
    return escape(value)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": wording.duration,
        "size": wording.size,
        "count": wording.count,
        "amount": wording.amount,
        "confidence": wording.confidence,
        "confidence_word": wording.word_of,
        "set_aside": wording.set_aside,
        "mask": wording.mask,
        "scores": wording.scores,
        "findings": wording.findings,
        "study_date": study_date,
        "person": person,
        "percent": percent,
        "stack": stack,
        "as_json": partial(json.dumps, separators=(",", ":")),  # the template escapes it
        "meaning": meaning,
        "proof": wording.proof,
    }
    environment.globals |= {
        "advice": reasons.advice,
        "heading": reasons.heading,
        "is_futile": reasons.is_futile,
        "one_by_one": reasons.ONE_BY_ONE,
        "steps": STEPS,
    }
    return environment


ENVIRONMENT = _environment()
