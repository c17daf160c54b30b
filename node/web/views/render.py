"""Turns rows into pages: one environment, escaping everything, and what each page has around it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import tzinfo
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse

from node.dicom.status import meaning
from node.web.auth import Role, Visitor
from node.web.parts import Parts
from node.web.problems import Problem
from node.web.views import wording
from node.web.views.concerns import concerns
from storage.queries.find import needing
from storage.records import Page
from storage.site import control

PAGES = Path(__file__).parent.parent / "pages"
MASK = "midslice-mask"  # the cookie of who wants patients' attributes hidden
HIDDEN = "\u2022" * 6

# (path, name on the page, the least role): the order in which the pages are listed.
NAVIGATION = (
    ("/", "Now", Role.VIEWER),
    ("/needs", "Needs a person", Role.VIEWER),
    ("/find", "Find", Role.VIEWER),
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


@dataclass(frozen=True)
class Look:
    """Who looks, when, and how: what every page is made with."""

    parts: Parts
    visitor: Visitor
    now: float
    is_masked: bool

    @property
    def zone(self) -> tzinfo | None:
        return self.parts.zone


def look(request: Request, parts: Parts, visitor: Visitor) -> Look:
    """What is to be known of a request before a page is made for it."""
    is_masked = request.cookies.get(MASK) == "1"
    return Look(parts, visitor, parts.gate.now(), is_masked)


def page(at: Look, name: str, *, path: str, **values: object) -> HTMLResponse:
    """A whole page."""
    needs = values.get("needs") or needing(at.parts.database, limit=1)
    around = {
        "path": path,
        "pages": [entry for entry in NAVIGATION if at.visitor.may(entry[2])],
        "needing": needs.total if isinstance(needs, Page) else 0,
        "concerns": values["concerns"] if "concerns" in values else concerns(at.parts, at.now),
        "draining": control.draining(at.parts.database),
        "node_ae": at.parts.config().node.ae_title,
        "zone": wording.zone_name(at.now, at.zone),
    }
    return HTMLResponse(text(at, name, **{**around, **values}))


def part(at: Look, name: str, **values: object) -> HTMLResponse:
    """A part of a page that is fetched again when its rows have changed."""
    return HTMLResponse(text(at, name, **values))


def text(at: Look, name: str, **values: object) -> str:
    """A template with the words of this look."""
    words: Mapping[str, Any] = {
        "visitor": at.visitor,
        "may_act": at.visitor.may(Role.OPERATOR),
        "may_change": at.visitor.may(Role.ADMINISTRATOR),
        "is_masked": at.is_masked,
        "now": at.now,
        "when": partial(_when, at),
        "ago": partial(_ago, at),
        "until": _until,
        "private": partial(_private, at),
    }
    return ENVIRONMENT.get_template(name).render({**words, **values})


def error_page(_request: Request, problem: Problem) -> str:
    """What went wrong, as a page that needs no row and no visitor; the log-in keeps its form."""
    is_login = _request.url.path == "/login"
    name = "login.html" if is_login else "error.html"
    return ENVIRONMENT.get_template(name).render(problem=problem, next="/")


def _when(at: Look, moment: float | None) -> Markup:
    """A moment, exact where the pointer rests."""
    if moment is None:
        return Markup("")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        wording.machine_time(moment, at.zone),
        wording.exact(moment, at.zone),
        wording.clock(moment, at.zone, at.now),
    )


def _ago(at: Look, moment: float | None) -> Markup:
    """How long ago, counted on by the page."""
    if moment is None:
        return Markup("")
    return Markup('<time datetime="{}" data-since="{}">{}</time>').format(
        wording.machine_time(moment, at.zone),
        f"{moment:.1f}",
        wording.whole_duration(at.now - moment),
    )


def _until(moment: float, now: float, over: str) -> Markup:
    """How long still, counted down by the page; `over` stands there when it is past."""
    said = wording.whole_duration(moment - now) if moment > now else over
    return Markup('<span data-until="{}" data-over="{}">{}</span>').format(
        f"{moment:.1f}", over, said
    )


def _private(at: Look, value: str) -> Markup:
    """A patient's attribute: hidden from who asked for that, and never in the page then."""
    if not value:
        return Markup('<span class="quiet">none</span>')
    if at.is_masked:
        return Markup('<span class="quiet" title="Hidden">{}</span>').format(HIDDEN)
    return escape(value)


def _as_json(value: object) -> str:
    """For a data attribute; the template escapes it."""
    return json.dumps(value, separators=(",", ":"))


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(PAGES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "duration": wording.duration,
        "size": wording.size,
        "count": wording.count,
        "amount": wording.amount,
        "study_date": wording.study_date,
        "person": wording.person,
        "percent": wording.percent,
        "stack": wording.stack,
        "as_json": _as_json,
        "meaning": meaning,
    }
    made.globals |= {
        "todo": wording.todo,
        "is_futile": wording.is_futile,
        "steps": wording.STEPS,
        "reasons": sorted(wording.TODO),
    }
    return made


ENVIRONMENT = _environment()
