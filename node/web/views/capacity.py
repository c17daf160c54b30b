"""How much there is room for, how long each step takes, and how much is done."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, tzinfo
from typing import Annotated

from fastapi import APIRouter, Query
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse

from node import health
from node.web import drawings
from node.web.auth import AsViewer
from node.web.drawings import Point
from node.web.parts import PartsOf
from node.web.views.render import Look, look, page, part
from storage.queries import figures, overview
from storage.records import Bucket
from storage.site import nodes

router = APIRouter()

HOUR, DAY = 3600.0, 86400.0
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
def fragment(
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
