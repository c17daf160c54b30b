"""The configuration as the node has read it, and its mistakes."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import HTMLResponse

from node.web.auth import AsAdministrator
from node.web.parts import PartsOf
from node.web.views import rules
from node.web.views.render import Look, look, page, part
from storage.queries.figures import evaluation
from storage.records import WishKind
from storage.site import control

router = APIRouter()

EVALUATED_DAYS = 7
HOUR, DAY = 3600.0, 86400.0
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
    shown = {**_configured(at), **rules.asked(at, series_uid)}
    return page(at, "configuration.html", path="/configuration", **shown)


@router.get("/configuration/part")
def fragment(request: Request, visitor: AsAdministrator, parts: PartsOf) -> HTMLResponse:
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
