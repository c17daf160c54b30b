"""The page of a job: its slices, deliveries and actions."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi import Path as PathParameter
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response

from node.rules import reasons, routing
from node.web.api.inputs import Id
from node.web.pages import drawings, model_results, time_line
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
from node.web.state import Parts, RecentViews
from node.wording import CONFIDENCE, OBJECTS, word_of
from storage.commitment_scu import of_deliveries
from storage.enqueue import REQUEUEABLE, ROUTE_CHANGED
from storage.errors import NotFound
from storage.ledger import ObjectState, answer_counts, object_states
from storage.queries import overview
from storage.queries.overview import JobDetail
from storage.records import DeliveryState, JobState
from storage.site.audit import VIEW_PICTURES

FOLDER, INDEX = "previews", "index.json"  # as the worker writes them
# Every name that a page may ask for: a slice, the tint of its expected error, the outline of its
# mask, the map of what its score came from, or a reformat through the middle column or row.
PICTURE = r"^(\d{5}(-error|-mask|-heat)?|(column|row)-(received|derived))\.png$"
HOW = {"linear": "linear interpolation", "cubic": "cubic interpolation", "dis": "optical flow"}
# (name, centre, width in HU): the first is shown first.
WINDOWS = (
    ("Soft tissue", 40, 400),
    ("Lung", -600, 1500),
    ("Bone", 400, 1800),
    ("Brain", 40, 80),
    ("Vessels", 200, 700),
)
# Of slices in a scanner's own units: their values are shown as if they were HU.
WINDOWS_OF_UNITS = (("All greys", 40, 400), ("Dark", -60, 200), ("Bright", 140, 200))
# Of what a record holds: scores are of heads, findings of chests.
FIRST_WINDOW = {"scores": "Brain", "findings": "Lung"}
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
    viewer_url = context.parts.config().web.viewer_url
    return page(context, "job.html", path="/find", **values, viewer_url=viewer_url)


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
    """Send a preview; its folder comes from the row, its name is a number or one of four words.

    Pictures are the patient's, whether or not the page hides the name: a view is recorded.
    """
    folder = _folder(detail, context.parts)
    file = folder / FOLDER / name if folder is not None else None
    if file is None or not file.is_file():
        raise NotFound(f"job {detail.job.id} has no picture {name}")
    views: RecentViews = request.app.state.recent_views
    views.record(context.visitor.name, VIEW_PICTURES, f"job {detail.job.id}", context.now)
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
        "proofs": of_deliveries(database, [delivery.id for delivery in detail.deliveries]),
        "objects": _objects(context, job.id),
        "is_going_on": time_line.is_going_on(detail),
        "may_requeue": _may_requeue(detail),
        "is_changed": is_changed,
        "makes_slices": reasons.asks_for_slices(job.parameters),
        "may_cancel": job.state in CANCELLABLE and not job.cancel_requested,
        "sendable_again": SENDABLE_AGAIN,
        "down": down(context),
        "proving": [place.name for place in config.destinations if gives_proof(place)],
    }


@dataclass(frozen=True)
class ObjectView:
    """One of the series that a job has made, and what became of it at each destination."""

    name: str
    series_uid: str
    instances: int
    fates: dict[str, str]  # by destination


def _objects(context: PageContext, job_id: int) -> list[ObjectView]:
    """List the series of a job's result in the order in which they were made."""
    views: dict[str, ObjectView] = {}
    left_out = {place.name: place.leave_out for place in context.parts.config().destinations}
    for state in object_states(context.parts.database, job_id):
        view = ObjectView(_object_name(state), state.series_uid, state.instances, {})
        fates = views.setdefault(state.series_uid, view).fates
        if state.destination is not None:
            is_left_out = state.kind in left_out.get(state.destination, ())
            fates[state.destination] = "left out" if is_left_out else _fate(state)
    return list(views.values())


def _object_name(state: ObjectState) -> str:
    """Name an object by its kind, and by its file where that says more: one of two masks."""
    name, stem = OBJECTS.get(state.kind, state.kind), Path(state.name).stem.replace("-", " ")
    return name if stem.isdigit() or stem == state.kind else f"{name}, {stem}"


def _fate(state: ObjectState) -> str:
    """Say in words what a destination has of a series."""
    if state.stored == state.instances:
        return "stored"
    if state.stored:
        return f"{state.stored} of {state.instances} stored"
    return "not yet stored" if state.status is None else f"not taken, {state.status:04X}"


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
    left: frozenset[int]  # gaps that were not filled although their slices do not touch
    axis: str  # of the patient, on which places are measured: x, y or z
    planes: Mapping[str, str]  # column and row: the name of the plane through it
    first_is_up: bool  # in these planes
    is_hatched: bool  # one of them: it shows what no slice does
    is_tinted: bool  # some slice: its expected error can be laid over it
    mask: str = ""  # what a mask shows whose outline can be laid over each slice
    heat: frozenset[int] = frozenset()  # slices with a map of what their score came from
    start: int | None = None  # the slice with the highest score, or with the first finding
    is_hu: bool = True
    is_extracted: bool = False  # the result is the received series without what lies outside

    @property
    def is_filled(self) -> bool:
        """True where slices were generated."""
        return any(place.is_generated for place in self.places)

    @property
    def overlay(self) -> str:
        """Name what can be laid over slices; "" = nothing."""
        if self.mask:
            return f"{self.mask} outline"
        if self.heat:
            return "What the score came from"
        return "Expected error" if self.is_tinted else ""

    @property
    def first(self) -> int:
        """The slice that is shown first: what was found, else a generated one in the middle."""
        if self.start is not None:
            return self.start
        middle = len(self.places) // 2
        later = range(middle, len(self.places))
        return next((i for i in later if self.places[i].is_generated), middle)

    @property
    def edge(self) -> Markup:
        """The scale beside the derived planes."""
        return drawings.edge(self.places, self.left, first_is_up=self.first_is_up)

    @property
    def total(self) -> int:
        """The instances of the derived series."""
        return sum(place.number is not None for place in self.places)

    def described(self) -> list[Mapping[str, object]]:
        """Describe each slice for the page's script: its neighbours and its words."""
        received = [i for i, place in enumerate(self.places) if not place.is_generated]
        return [
            {
                "title": _title(place),
                "at": f"{self.axis} {place.at_mm:.2f} mm",
                "generated": place.is_generated,
                "tint": self._tint(number, place),
                "before": max((i for i in received if i < number), default=number),
                "after": min((i for i in received if i > number), default=number),
                "text": self._text(place),
            }
            for number, place in enumerate(self.places)
        ]

    def _tint(self, number: int, place: SlicePlace) -> str:
        """Name the picture that can be laid over a slice, by the end of its file; "" = none."""
        if self.mask:
            return "-mask"
        if number in self.heat:
            return "-heat"
        return "-error" if self.is_tinted and place.is_generated else ""

    def _text(self, place: SlicePlace) -> str:
        """Name a slice as a PACS does, and say what it is."""
        name = f"Image {place.received_number} of the received series"
        at = f"{self.axis} {place.at_mm:.2f} mm"
        if not self.is_filled and not self.is_extracted:
            return f"{name}, {at}"
        if place.number is not None:
            what = "extracted" if self.is_extracted else "derived"
            name = f"Image {place.number} of {self.total} in the {what} series"
        if not place.is_generated:
            copied = place.number is not None and place.received_number is not None
            as_image = f" as image {place.received_number}" if copied else ""
            return f"{name}, {at}, received{as_image}"
        by = f" by {HOW.get(place.how, place.how)}" if place.how not in ("", "network") else ""
        parts = [name, at, f"generated{by}, not acquired"]
        if place.expected_error_hu is not None:
            parts.append(f"expected error {place.expected_error_hu:.0f} HU")
        if place.confidence is not None:
            parts.append(f"confidence {place.confidence:.2f}")
        if place.word:
            parts.append(word_of(place.word))
        return ", ".join(parts)


def _title(place: SlicePlace) -> str:
    """Name a slice in a few words: its number in the derived series, and where it came from."""
    came = f"received {place.received_number}" if place.received_number is not None else "received"
    if place.number is None:
        return came.capitalize()
    return f"Image {place.number}" + ("" if place.is_generated else f" ({came})")


def _slices(detail: JobDetail, context: PageContext) -> Values:
    folder, record = _folder(detail, context.parts), detail.job.record
    pictures = read_pictures(folder, record) if folder is not None else None
    if pictures is not None:
        places, tilt = pictures.places, pictures.tilt_degrees
    else:
        places, shear = with_trust(places_of(record), record), record.get("shear_degrees")
        tilt = float(shear) if isinstance(shear, int | float) else 0.0
    axis = pictures.axis if pictures is not None else str(record.get("axis", "z"))
    left = pictures.left if pictures is not None else frozenset[int]()
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
        "windows": windows_of(pictures, record),
        "scores": model_results.scores_of(record, places),
        "findings": model_results.findings_of(record, places),
        "places": places,
        "tilt": tilt,
        "axis": axis,
        "geometry": drawings.geometry(places, missing, tilt, axis) if is_drawn else "",
        "strip": drawings.strip(places, left) if is_drawn else "",
        "missing": missing,
        "words": _words(places),
        "gaps": _gaps(record),
    }


def windows_of(
    pictures: Pictures | None, record: Mapping[str, Any]
) -> Sequence[tuple[str, int, int]]:
    """The windows to choose from; the first is that in which the slices are shown."""
    if pictures is not None and not pictures.is_hu:
        return WINDOWS_OF_UNITS
    first = next((name for key, name in FIRST_WINDOW.items() if key in record), "")
    return sorted(WINDOWS, key=lambda window: window[0] != first)


def _words(places: Sequence[SlicePlace]) -> Mapping[str, int]:
    """Count the generated slices by the word of their confidence, the surest first."""
    counts = Counter(place.word for place in places if place.is_generated and place.word)
    return {word: counts[word] for word in CONFIDENCE if counts[word]}


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
        SlicePlace(
            float(entry["at_mm"]),
            bool(entry["generated"]),
            entry["number"],
            entry["received_number"],
            entry.get("expected_error_hu"),
        )
        for entry in index["slices"]
    ]
    return Pictures(
        places=with_trust(places, record),
        levels_hu=tuple(index["levels_hu"]),
        tilt_degrees=index["tilt_degrees"],
        missing=tuple(index["missing"]),
        left=frozenset(index["left"]),
        axis=index["axis"],
        planes=index["planes"],
        first_is_up=index["first_is_up"],
        is_hatched=index["hatched"],
        is_tinted=index.get("tinted", False),
        mask=index.get("mask", ""),
        heat=frozenset(index.get("heat", ())),
        start=model_results.strongest(record),
        is_hu=index.get("is_hu", True),
        is_extracted="mask" in record,
    )


def with_trust(places: Sequence[SlicePlace], record: Mapping[str, Any]) -> tuple[SlicePlace, ...]:
    """Add what the job's record says about each generated slice, by its position."""
    entries = {_micrometres(entry["at_mm"]): entry for entry in record.get("confidence") or ()}
    if not entries:
        return tuple(places)
    return tuple(_trusted(place, entries) if place.is_generated else place for place in places)


def _micrometres(at_mm: float) -> int:
    return round(float(at_mm) * 1000)


def _trusted(place: SlicePlace, entries: Mapping[int, Mapping[str, Any]]) -> SlicePlace:
    """The place with its entry; both are rounded, so that the entry may be the next one."""
    at = _micrometres(place.at_mm)
    entry = next((entries[near] for near in (at, at - 1, at + 1) if near in entries), None)
    if entry is None:
        return place
    return replace(
        place,
        expected_error_hu=entry.get("error_hu"),
        confidence=entry.get("confidence"),
        word=str(entry.get("word", "")),
        how=str(entry.get("how", "")),
    )


def places_of(record: Mapping[str, Any]) -> tuple[SlicePlace, ...]:
    """Lay out the slices by a job's record, for where there are no pictures."""
    received = [
        SlicePlace(float(slice_["at_mm"]), False, received_number=slice_["number"])
        for slice_ in record.get("received_slices") or ()
    ]
    places = received[:1]
    for gap, first, second in zip(record.get("gaps") or (), received, received[1:], strict=False):
        factor, width = int(gap["factor"]), second.at_mm - first.at_mm
        between = (first.at_mm + width * step / factor for step in range(1, factor))
        places += [SlicePlace(round(at_mm, 3), True) for at_mm in between]
        places.append(second)
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
