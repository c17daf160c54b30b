"""The page of a job: its slices, deliveries and actions."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi import Path as PathParameter
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response

from node.rules import routing
from node.web.api.inputs import Id
from node.web.pages import drawings, time_line
from node.web.pages.drawings import SlicePlace
from node.web.pages.find import record_view
from node.web.pages.now import down, gives_proof
from node.web.pages.render import (
    Context,
    PageContext,
    Values,
    add_fragment,
    page,
    part,
)
from node.web.state import Parts, PictureViews
from storage.enqueue import REQUEUEABLE, ROUTE_CHANGED
from storage.errors import NotFound
from storage.ledger import answer_counts
from storage.queries import overview
from storage.queries.overview import JobDetail
from storage.records import DeliveryState, JobState

FOLDER, INDEX = "previews", "index.json"  # as the worker writes them
PICTURE = r"^(\d{5}|before|after)\.png$"  # every name that a page may ask for
# (name, centre, width in HU): the first is shown first.
WINDOWS = (
    ("Soft tissue", 40, 400),
    ("Lung", -600, 1500),
    ("Bone", 400, 1800),
    ("Brain", 40, 80),
    ("Vessels", 200, 700),
)
MOST_INSTANCES = 500
CANCELLABLE = (JobState.QUEUED, JobState.HELD, JobState.FAILED, JobState.RUNNING)
SENDABLE_AGAIN = (DeliveryState.HELD, DeliveryState.CANCELLED)


def _detail_of(job_id: Id, context: Context) -> JobDetail:
    return overview.job_detail(context.parts.database, job_id)


Detail = Annotated[JobDetail, Depends(_detail_of)]

router = APIRouter()


@router.get("/jobs/{job_id}")
def job(detail: Detail, context: Context) -> HTMLResponse:
    record_view(context, detail.job.series_uid)
    values = {**_progress(detail, context), **_slices(detail, context)}
    return page(context, "job.html", path="/find", **values)


@router.get("/jobs/{job_id}/seen")
def slices(
    detail: Detail, context: Context, mark: Annotated[str, Query(max_length=64)] = ""
) -> Response:
    """Show slices and geometry, unless the page has these: who moves a slider keeps it."""
    if mark == _mark(detail):
        return Response(status_code=HTTPStatus.NO_CONTENT)
    return part(context, "job_slices.html", **_slices(detail, context))


@router.get("/jobs/{job_id}/pictures/{name}")
def picture(
    name: Annotated[str, PathParameter(pattern=PICTURE)],
    detail: Detail,
    request: Request,
    context: Context,
) -> FileResponse:
    """Send a preview; its folder comes from the row, its name is a number or one of two words.

    Pictures are the patient's, whether or not the page hides the name: a view is recorded.
    """
    folder = _folder(detail, context.parts)
    file = folder / FOLDER / name if folder is not None else None
    if file is None or not file.is_file():
        raise NotFound(f"job {detail.job.id} has no picture {name}")
    views: PictureViews = request.app.state.picture_views
    views.record(context.visitor.name, detail.job.id, context.now)
    return FileResponse(file, media_type="image/png")


def _result(detail: Detail) -> Values:
    return {"job": detail.job}


def _instances(job_id: Id, context: Context) -> Values:
    instances = context.parts.store.queue.instances(job_id)
    return {"instances": instances[:MOST_INSTANCES], "total": len(instances)}


def _progress(detail: Detail, context: Context) -> Values:
    """Collect what may change while somebody has the page open."""
    job, config, database = detail.job, context.parts.config(), context.parts.database
    steps = time_line.steps_of(detail, context.now)
    is_changed = job.kind == "infer" and routing.has_changed(  # a self-test has its own route
        config.routes, job.route, job.model, job.parameters
    )
    return {
        "detail": detail,
        "job": job,
        "line": detail.line,
        "timeline_steps": steps,
        "total_seconds": max(step.at + step.seconds for step in steps) - steps[0].at,
        "timeline": drawings.timeline(time_line.phases_of(steps)),
        "answers": {
            delivery.id: answer_counts(database, delivery.id) for delivery in detail.deliveries
        },
        "is_going_on": time_line.is_going_on(detail),
        "may_requeue": _may_requeue(detail),
        "is_changed": is_changed,
        "may_cancel": job.state in CANCELLABLE and not job.cancel_requested,
        "sendable_again": SENDABLE_AGAIN,
        "down": down(context),
        "proving": [place.name for place in config.destinations if gives_proof(place)],
    }


def _may_requeue(detail: JobDetail) -> bool:
    job = detail.job
    return job.state in REQUEUEABLE and job.reason != ROUTE_CHANGED and not detail.is_gone


add_fragment(router, "/jobs/{job_id}/part", "job_progress", _progress)
add_fragment(router, "/jobs/{job_id}/done", "job_result", _result)
add_fragment(router, "/jobs/{job_id}/instances", "job_instances", _instances)


# Slices and geometry: there once the job has ended, and the same until it is done again.


@dataclass(frozen=True)
class Pictures:
    """The previews beside a derived series."""

    places: tuple[SlicePlace, ...]
    levels_hu: tuple[float, ...]
    tilt_degrees: float
    missing: tuple[int, ...]

    @property
    def first(self) -> int:
        """The slice that is shown first: a generated one, in the middle."""
        middle = len(self.places) // 2
        later = range(middle, len(self.places))
        return next((i for i in later if self.places[i].is_generated), middle)

    def described(self) -> list[Mapping[str, object]]:
        """Describe each slice for the page's script: its neighbours and its words."""
        received = [i for i, place in enumerate(self.places) if not place.is_generated]
        return [
            {
                "title": f"Slice {number + 1}",
                "at": f"{place.at_mm:.2f} mm",
                "generated": place.is_generated,
                "before": max((i for i in received if i < number), default=number),
                "after": min((i for i in received if i > number), default=number),
                "text": self._text(number),
            }
            for number, place in enumerate(self.places)
        ]

    def _text(self, number: int) -> str:
        place = self.places[number]
        kind = "generated" if place.is_generated else "received"
        if place.how and place.how != "network":
            kind = f"generated by {place.how} interpolation"
        text = f"Slice {number + 1} of {len(self.places)}, {kind}, at {place.at_mm:.2f} mm"
        if place.expected_error_hu is not None:
            text += f", expected error {place.expected_error_hu:.0f} HU"
        return text if place.confidence is None else f"{text}, confidence {place.confidence:.2f}"


def _slices(detail: JobDetail, context: PageContext) -> Values:
    folder, record = _folder(detail, context.parts), detail.job.record
    pictures = read_pictures(folder, record) if folder is not None else None
    if pictures is not None:
        places, tilt = pictures.places, pictures.tilt_degrees
    else:
        places, shear = with_trust(places_of(record), record), record.get("shear_degrees")
        tilt = float(shear) if isinstance(shear, int | float) else 0.0
    missing = missing_of(record)
    if pictures is not None and not missing:
        missing = dict.fromkeys(pictures.missing, 0)
    is_drawn = len(places) > 1
    return {
        "detail": detail,
        "job": detail.job,
        "mark": _mark(detail),
        "pictures": pictures,
        "slices": pictures.described() if pictures is not None else [],
        "windows": WINDOWS,
        "places": places,
        "tilt": tilt,
        "geometry": drawings.geometry(places, missing, tilt) if is_drawn else "",
        "strip": drawings.strip(places) if is_drawn else "",
        "missing": missing,
        "is_trusted": any(place.confidence is not None for place in places),
        "gaps": _gaps(record),
    }


def _mark(detail: JobDetail) -> str:
    """Make a text that is another one when there are other slices to show, or none any more."""
    ended = detail.job.finished_at or 0.0
    return f"{detail.job.attempt}-{ended:.3f}-{'kept' if detail.folder else 'none'}"


def _folder(detail: JobDetail, parts: Parts) -> Path | None:
    return parts.store.files.path(detail.folder) if detail.folder else None


def read_pictures(folder: Path, record: Mapping[str, Any]) -> Pictures | None:
    """Read the index of the previews; None where the worker could not write them."""
    try:
        index = json.loads((folder / FOLDER / INDEX).read_text("ascii"))
    except FileNotFoundError:
        return None
    places = [
        SlicePlace(float(entry["at_mm"]), bool(entry["generated"]), entry.get("expected_error_hu"))
        for entry in index["slices"]
    ]
    return Pictures(
        places=with_trust(places, record),
        levels_hu=tuple(index["levels_hu"]),
        tilt_degrees=index["tilt_degrees"],
        missing=tuple(index["missing"]),
    )


def with_trust(places: Sequence[SlicePlace], record: Mapping[str, Any]) -> tuple[SlicePlace, ...]:
    """Add what the job's record says about each generated slice, in their order."""
    entries = sorted(record.get("confidence") or (), key=lambda entry: float(entry["at_mm"]))
    if len(entries) != sum(place.is_generated for place in places):
        return tuple(places)
    remaining = iter(entries)
    return tuple(
        _trusted(place, next(remaining)) if place.is_generated else place for place in places
    )


def _trusted(place: SlicePlace, entry: Mapping[str, Any]) -> SlicePlace:
    return replace(
        place,
        expected_error_hu=entry.get("error_hu"),
        confidence=entry.get("confidence"),
        how=str(entry.get("how", "")),
    )


def places_of(record: Mapping[str, Any]) -> tuple[SlicePlace, ...]:
    """SlicePlace the slices by the gaps in a job's record, for where there are no pictures."""
    gaps: Sequence[Mapping[str, Any]] = record.get("gaps") or ()
    places = [SlicePlace(0.0, False)] if gaps else []
    for gap in gaps:
        start, width, factor = places[-1].at_mm, float(gap["gap_mm"]), int(gap["factor"])
        between = (start + width * step / factor for step in range(1, factor))
        places += [SlicePlace(round(at_mm, 4), True) for at_mm in between]
        places.append(SlicePlace(round(start + width, 4), False))
    return tuple(places)


def missing_of(record: Mapping[str, Any]) -> Mapping[int, int]:
    """Count the missing slices in each gap that misses some, the gaps counted from 0."""
    return {int(entry["gap"]): int(entry["slices"]) for entry in record.get("missing") or ()}


def _gaps(record: Mapping[str, Any]) -> str:
    """Write the gaps in words: one width, or from the narrowest to the widest."""
    widths = [float(gap["gap_mm"]) for gap in record.get("gaps") or ()]
    if not widths:
        return ""
    least, most = min(widths), max(widths)
    return f"{least:g} mm" if most - least < 0.01 else f"{least:g} to {most:g} mm"
