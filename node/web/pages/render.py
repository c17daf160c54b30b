"""Turns rows into pages: one environment, the words for values, and alerts around every page."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, tzinfo
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse

from node.dicom.status import meaning
from node.rules import reasons
from node.rules.backoff import is_silent
from node.web.access import Role, Visitor
from node.web.problems import Problem
from node.web.state import Parts
from storage.queries.find import needing
from storage.records import Page, SwitchName
from storage.site import control, notices, peers

MINUTE, HOUR, DAY = 60, 3600, 86400

STEPS: Mapping[str, str] = {
    "reading": "reading the received slices",
    "predicting": "generating slices",
    "writing": "copying received slices",
    "checking": "checking the result",
    "previews": "drawing the previews",
}


def duration(seconds: float | None) -> str:
    """As a person would say it, no more exact than needed."""
    if seconds is None:
        return ""
    if 0 < seconds < 0.05:
        return "under 0.1 s"
    if 0 <= seconds < 10:
        return f"{seconds:.1f} s"
    whole = max(0, round(seconds))
    if 2 * MINUTE <= whole < 10 * MINUTE and whole % MINUTE:
        return f"{whole // MINUTE} min {whole % MINUTE} s"
    return _coarse(whole)


def _coarse(whole: int) -> str:
    """In the largest unit of which there are two."""
    if whole < 2 * MINUTE:
        return f"{whole} s"
    if whole < 2 * HOUR:
        return f"{whole // MINUTE} min"
    if whole < 2 * DAY:
        return f"{whole // HOUR} h"
    return f"{whole // DAY} days"


def whole_duration(seconds: float) -> str:
    """The same without parts of a second: what counts up or down on a page."""
    return _coarse(max(0, round(seconds)))


def clock(at: float | None, zone: tzinfo | None, now: float) -> str:
    """A moment: the time today, the day too before that."""
    if at is None:
        return ""
    moment, today = _local(at, zone), _local(now, zone)
    if moment.date() == today.date():
        return moment.strftime("%H:%M:%S")
    if moment.year == today.year:
        return moment.strftime("%d %b %H:%M")
    return moment.strftime("%Y-%m-%d %H:%M")


def exact(at: float | None, zone: tzinfo | None) -> str:
    """A moment with its day, its seconds and its offset."""
    return "" if at is None else _local(at, zone).strftime("%Y-%m-%d %H:%M:%S %z")


def zone_name(at: float, zone: tzinfo | None) -> str:
    """The zone that the pages tell times in, with what it is off UTC at that moment."""
    moment = _local(at, zone)
    name, offset = moment.strftime("%Z"), moment.strftime("%z")
    said = f"UTC{offset[:3]}:{offset[3:5]}"
    if offset == "+0000":
        return name or "UTC"
    return f"{name} ({said})" if name.isalpha() else said


def machine_time(at: float, zone: tzinfo | None) -> str:
    """For the attribute `datetime`."""
    return _local(at, zone).isoformat(timespec="seconds")


def _local(at: float, zone: tzinfo | None) -> datetime:
    return datetime.fromtimestamp(at, zone).astimezone(zone)


def size(count: float) -> str:
    """Bytes in decimal units, as disks are sold."""
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "bytes" or value >= 100 else f"{value:.1f} {unit}"


def count(number: int, noun: str, plural: str = "") -> str:
    """A number and its noun."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}".replace(",", "\u202f")


def amount(number: float, noun: str) -> str:
    """The same for what need not be whole."""
    return f"{number:g} {noun if number == 1 else noun + 's'}"


def study_date(text: str) -> str:
    """A DICOM date (PS3.5 6.2 DA) as a person reads it; what is none stays as it is."""
    is_date = len(text) == 8 and text.isascii() and text.isdigit()
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if is_date else text


def person(text: str) -> str:
    """A Person Name (PS3.5 6.2.1) without its separators."""
    first = text.split("=", 1)[0]
    parts = [part.strip() for part in first.split("^")]
    family, rest = parts[0], " ".join(part for part in parts[1:] if part)
    return f"{family}, {rest}" if family and rest else family or rest


# Six direction cosines as the name of a stack writes them.
ALONG = r"along (-?\d\.\d\d(?: -?\d\.\d\d){5})"


def stack(text: str) -> str:
    """What a stack has in common, its orientation by the name of the nearest plane."""
    text = re.sub(r"(\d+)x(\d+)", "\\1 × \\2", text)
    text = re.sub(r"at (\d+\.?\d*) \1 mm", lambda same: f"at {_short(same[1])} mm", text)
    return re.sub(ALONG, lambda found: _plane(found[1]), text)


def _short(number: str) -> str:
    return f"{float(number):.3g}"


def _plane(text: str) -> str:
    """The plane of six direction cosines (PS3.3 C.7.6.2.1.1)."""
    x1, y1, z1, x2, y2, z2 = (float(number) for number in text.split())
    normal = abs(y1 * z2 - z1 * y2), abs(z1 * x2 - x1 * z2), abs(x1 * y2 - y1 * x2)
    most = max(normal)
    name = ("sagittal", "coronal", "axial")[normal.index(most)]
    return f"{name} plane" if most > 0.99 else f"oblique {name} plane"


def percent(share: float) -> str:
    return f"{share * 100:.1f} %" if 0 < share < 0.1 or 0.99 < share < 1 else f"{share * 100:.0f} %"


NOTICE_DAYS = 7  # a channel that failed before that, and had nothing to tell since, is forgotten


@dataclass(frozen=True)
class Concern:
    """Somebody should look: at whom, why, since when, and which page says more."""

    who: str
    said: str  # of whom, before "for 3 h"
    since: float
    page: str = "/peers"


def concerns(parts: Parts, now: float) -> tuple[Concern, ...]:
    """Senders that are silent, destinations that are down or paused, notices that do not arrive."""
    return (*_senders(parts, now), *_destinations(parts), *_notices(parts, now))


def silent(parts: Parts, now: float) -> Mapping[str, float]:
    """Who is expected to send now, and has brought no image for too long; since when."""
    senders = parts.config().senders
    since = peers.quiet_since(parts.database, [each.ae_title for each in senders])
    return {
        each.ae_title: since[each.ae_title]
        for each in senders
        if each.ae_title in since and is_silent(each, since[each.ae_title], now, parts.zone)
    }


def _senders(parts: Parts, now: float) -> Iterator[Concern]:
    for name, since in silent(parts, now).items():
        yield Concern(name, "has brought no image", since)


def _destinations(parts: Parts) -> Iterator[Concern]:
    paused = {each.subject: each for each in control.all_on(parts.database, SwitchName.PAUSED)}
    reaches = {each.destination: each for each in peers.reachability(parts.database)}
    for name in (each.name for each in parts.config().destinations):
        by_hand, reach = paused.get(name), reaches.get(name)
        if by_hand is not None:
            yield Concern(name, f"has been paused by {by_hand.who}", by_hand.at)
        elif reach is not None and not reach.up:
            yield Concern(name, "has not answered", reach.since)


def _notices(parts: Parts, now: float) -> Iterator[Concern]:
    for each in notices.stuck(parts.database, now - NOTICE_DAYS * DAY):
        yield Concern(each.channel, "has not taken a notice", each.notice.at, "/selftest")


PAGES = Path(__file__).parent.parent / "templates"
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
        "zone": zone_name(at.now, at.zone),
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
        machine_time(moment, at.zone),
        exact(moment, at.zone),
        clock(moment, at.zone, at.now),
    )


def _ago(at: Look, moment: float | None) -> Markup:
    """How long ago, counted on by the page."""
    if moment is None:
        return Markup("")
    return Markup('<time datetime="{}" data-since="{}">{}</time>').format(
        machine_time(moment, at.zone),
        f"{moment:.1f}",
        whole_duration(at.now - moment),
    )


def _until(moment: float, now: float, over: str) -> Markup:
    """How long still, counted down by the page; `over` stands there when it is past."""
    said = whole_duration(moment - now) if moment > now else over
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
        "duration": duration,
        "size": size,
        "count": count,
        "amount": amount,
        "study_date": study_date,
        "person": person,
        "percent": percent,
        "stack": stack,
        "as_json": _as_json,
        "meaning": meaning,
    }
    made.globals |= {
        "advice": reasons.advice,
        "is_futile": reasons.is_futile,
        "steps": STEPS,
        "reasons": sorted(entry.code for entry in reasons.TABLE if entry.advice),
    }
    return made


ENVIRONMENT = _environment()
