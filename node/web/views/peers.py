"""Who sends, who was turned away, and where results go."""

from collections.abc import Mapping
from datetime import datetime

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse

from node.web.auth import AsViewer
from node.web.parts import PartsOf
from node.web.views import concerns
from node.web.views.render import Look, look, page, part
from storage.records import SwitchName, WishKind, WishState
from storage.site import control, peers

router = APIRouter()

REJECTED_DAYS = 7
HOUR, DAY = 3600.0, 86400.0


@router.get("/peers")
def all_peers(request: Request, visitor: AsViewer, parts: PartsOf) -> HTMLResponse:
    at = look(request, parts, visitor)
    return page(at, "peers.html", path="/peers", **_peers(at))


@router.get("/peers/part")
def fragment(request: Request, visitor: AsViewer, parts: PartsOf) -> HTMLResponse:
    at = look(request, parts, visitor)
    return part(at, "peers_part.html", **_peers(at))


@router.get("/peers/count")
def count(request: Request, visitor: AsViewer, parts: PartsOf) -> HTMLResponse:
    """How many of those on this page somebody should look at."""
    at = look(request, parts, visitor)
    return part(at, "concerning.html", concerns=concerns.concerns(parts, at.now))


def _peers(at: Look) -> Mapping[str, object]:
    database, config = at.parts.database, at.parts.config()
    allowed = control.all_on(database, SwitchName.ALLOWED_AE)
    expected = {each.ae_title: each for each in config.senders}
    heard = peers.last_heard(database, list(expected))
    return {
        "senders": peers.senders(database, _midnight(at)),
        "expected": expected,
        "silent": frozenset(concerns.silent(at.parts, at.now)),
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
