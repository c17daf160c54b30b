"""The page of a job: what happened when, its slices, its deliveries, and what a person may do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi import Path as PathParameter
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response

from node.rules import routing
from node.rules.completion import because
from node.web import drawings
from node.web.auth import AsViewer
from node.web.drawings import Phase
from node.web.looks import Looks
from node.web.parts import Parts, PartsOf
from node.web.views import pictures
from node.web.views.find import seen
from node.web.views.now import down, gives_proof
from node.web.views.render import Look, look, page, part
from node.web.views.wording import STEPS
from storage.enqueue import PUT_BACK, ROUTE_CHANGED
from storage.errors import NotFound
from storage.ledger import answers
from storage.queries.overview import Story, story
from storage.records import Delivery, DeliveryState, JobState

router = APIRouter()

MOST_INSTANCES = 500
CANCELLED = (JobState.QUEUED, JobState.HELD, JobState.FAILED, JobState.RUNNING)
AGAIN = (DeliveryState.HELD, DeliveryState.CANCELLED)

Id = Annotated[int, PathParameter(ge=1, le=2**31 - 1)]


@dataclass(frozen=True)
class Step:
    """A piece of the time line: when it began, how long it took, and what is known of it."""

    phase: str  # a class of the drawing
    name: str
    at: float
    seconds: float
    detail: str = ""
    is_delivery: bool = False


@router.get("/jobs/{job_id}")
def job(job_id: Id, request: Request, visitor: AsViewer, parts: PartsOf) -> HTMLResponse:
    at = look(request, parts, visitor)
    found = story(parts.database, job_id)
    seen(at, found.job.series_uid)
    return page(at, "job.html", path="/find", **_told(at, found), **_seen(parts, found))


@router.get("/jobs/{job_id}/part")
def told(job_id: Id, request: Request, visitor: AsViewer, parts: PartsOf) -> HTMLResponse:
    at = look(request, parts, visitor)
    found = story(parts.database, job_id)
    return part(at, "job_told.html", **_told(at, found))


@router.get("/jobs/{job_id}/done")
def done(job_id: Id, request: Request, visitor: AsViewer, parts: PartsOf) -> HTMLResponse:
    at = look(request, parts, visitor)
    return part(at, "job_done.html", job=story(parts.database, job_id).job)


@router.get("/jobs/{job_id}/seen")
def slices(
    job_id: Id,
    request: Request,
    visitor: AsViewer,
    parts: PartsOf,
    mark: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """Slices and geometry, unless the page shows what is there: who moves a slider keeps it."""
    at = look(request, parts, visitor)
    found = story(parts.database, job_id)
    if mark == _mark(found):
        return Response(status_code=HTTPStatus.NO_CONTENT)
    return part(at, "job_seen.html", job=found.job, story=found, **_seen(parts, found))


@router.get("/jobs/{job_id}/instances")
def instances(job_id: Id, request: Request, visitor: AsViewer, parts: PartsOf) -> HTMLResponse:
    at = look(request, parts, visitor)
    found = parts.store.queue.instances(job_id)
    shown = {"instances": found[:MOST_INSTANCES], "total": len(found)}
    return part(at, "job_instances.html", **shown)


@router.get("/jobs/{job_id}/pictures/{name}")
def picture(
    job_id: Id,
    name: Annotated[str, PathParameter(pattern=pictures.PICTURE)],
    request: Request,
    visitor: AsViewer,
    parts: PartsOf,
) -> FileResponse:
    """A preview; its folder comes from the row, its name is a number or one of two words.

    Pictures are the patient's, whether or not the page hides the name: a look is written down.
    """
    folder = _folder(parts, story(parts.database, job_id))
    file = pictures.picture(folder, name) if folder is not None else None
    if file is None or not file.is_file():
        raise NotFound(f"job {job_id} has no picture {name}")
    looks: Looks = request.app.state.looks
    looks.at_pictures(visitor.name, job_id, parts.gate.now())
    return FileResponse(file, media_type="image/png")


def _told(at: Look, found: Story) -> Mapping[str, object]:
    """What may change while somebody looks."""
    one = found.job
    steps = _steps(found, at.now)
    by_now = routing.of_job(at.parts.config(), one)
    return {
        "story": found,
        "job": one,
        "line": found.line,
        "steps_done": steps,
        "total_seconds": max(step.at + step.seconds for step in steps) - steps[0].at,
        "timeline": drawings.timeline(_phases(steps)),
        "answers": {each.id: answers(at.parts.database, each.id) for each in found.deliveries},
        "is_going_on": _is_going_on(found),
        "may_requeue": _may_requeue(found),
        "is_changed": by_now is not None and not by_now.is_as(one.model, one.parameters),
        "may_cancel": one.state in CANCELLED and not one.cancel_requested,
        "again": AGAIN,
        "down": down(at),
        "proving": [each.name for each in at.parts.config().destinations if gives_proof(each)],
        "names": [destination.name for destination in at.parts.config().destinations],
    }


def _may_requeue(found: Story) -> bool:
    one = found.job
    return one.state in PUT_BACK and one.reason != ROUTE_CHANGED and not found.is_gone


def _is_going_on(found: Story) -> bool:
    """Whether the time line still grows."""
    going = (DeliveryState.QUEUED, DeliveryState.RUNNING)
    return found.job.finished_at is None or any(one.state in going for one in found.deliveries)


def _seen(parts: Parts, found: Story) -> Mapping[str, object]:
    """Slices and geometry: there once the job has ended, and the same until it is done again."""
    folder = _folder(parts, found)
    record = found.job.record
    shown = pictures.read(folder, record) if folder is not None else None
    by_record = pictures.with_trust(pictures.places_of(record), record)
    places = shown.places if shown is not None else by_record
    tilt = shown.tilt_degrees if shown is not None else _number(record.get("shear_degrees"))
    missing = pictures.missing_of(record)
    if shown is not None and not missing:
        missing = dict.fromkeys(shown.missing, 0)
    drawn = len(places) > 1
    return {
        "mark": _mark(found),
        "pictures": shown,
        "slices": shown.described() if shown is not None else [],
        "windows": pictures.WINDOWS,
        "places": places,
        "tilt": tilt,
        "geometry": drawings.geometry(places, missing, tilt) if drawn else "",
        "strip": drawings.strip(places) if drawn else "",
        "missing": missing,
        "is_trusted": any(place.confidence is not None for place in places),
        "gaps": _gaps(record),
    }


def _mark(found: Story) -> str:
    """Another one when there are other slices to show, or none any more."""
    ended = found.job.finished_at or 0.0
    return f"{found.job.attempt}-{ended:.3f}-{'kept' if found.folder else 'none'}"


def _folder(parts: Parts, found: Story) -> Path | None:
    return parts.store.files.path(found.folder) if found.folder else None


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _gaps(record: Mapping[str, object]) -> str:
    """The gaps in words: one width, or from the narrowest to the widest."""
    listed = record.get("gaps")
    widths = [float(each["gap_mm"]) for each in listed] if isinstance(listed, list) else []
    if not widths:
        return ""
    least, most = min(widths), max(widths)
    return f"{least:g} mm" if most - least < 0.01 else f"{least:g} to {most:g} mm"


def _steps(found: Story, now: float) -> list[Step]:
    one, came = found.job, found.arrival
    steps = [
        _step("arriving", "Received", came.first_at, came.last_at, _brought(found)),
        _step(
            "waiting", "Waited for more", came.last_at, came.completed_at, because(came.evidence)
        ),
        _step("queued", "In the queue", one.queued_at, one.started_at or one.finished_at or now),
    ]
    if one.started_at is not None:
        ended = one.finished_at or now
        steps.append(_step("running", "Worked on", one.started_at, ended, _worked(found)))
    steps += [_sending(each, now) for each in found.deliveries]
    return [step for step in steps if step is not None]


def _phases(steps: Sequence[Step]) -> list[Phase]:
    """The steps as they are drawn: one after the other, the deliveries side by side."""
    first = min(step.at for step in steps)
    lanes = sum(step.is_delivery for step in steps)
    phases, lane = [], 0
    for step in steps:
        begins = max(0.0, step.at - first)
        if step.is_delivery:
            phases.append(Phase(step.phase, begins, step.seconds, lane, lanes))
            lane += 1
        else:
            phases.append(Phase(step.phase, begins, step.seconds))
    return phases


def _step(phase: str, name: str, first: float, last: float | None, detail: str = "") -> Step | None:
    if last is None:
        return None
    return Step(phase, name, first, max(0.0, last - first), detail)


def _brought(found: Story) -> str:
    came = found.arrival
    return f"{came.instances} instances from {came.calling_ae} for {came.called_ae}."


def _worked(found: Story) -> str:
    """The worker's own account: seconds for each phase."""
    seconds = found.job.record.get("seconds")
    said = found.job.worker or ""
    if isinstance(seconds, Mapping):
        known = [name for name in STEPS if name in seconds]
        said = ", ".join(f"{name} {float(seconds[name]):.1f} s" for name in known)
    attempts = f"Attempt {found.job.attempt}. " if found.job.attempt > 1 else ""
    return f"{attempts}{said[:1].upper()}{said[1:]}." if said else attempts


# What a delivery is called on the time line, and the class of its piece there.
DELIVERIES: Mapping[DeliveryState, tuple[str, str]] = {
    DeliveryState.QUEUED: ("Waits for", "to-send"),
    DeliveryState.RUNNING: ("Being sent to", "to-send"),
    DeliveryState.SENT: ("Sent to", "sending"),
    DeliveryState.CONFIRMED: ("Sent to and confirmed by", "sending"),
    DeliveryState.HELD: ("Held, not delivered to", "undelivered"),
    DeliveryState.CANCELLED: ("Given up for", "undelivered"),
}


def _sending(each: Delivery, now: float) -> Step:
    """From the moment at which a delivery was due until it ended, all its attempts included."""
    said, phase = DELIVERIES[each.state]
    attempts = f" {each.attempt} attempts." if each.attempt > 1 else ""
    detail = f"{each.sent} of {each.total} stored there.{attempts}"
    ended = each.finished_at or now
    taken = max(0.0, ended - each.queued_at)
    return Step(phase, f"{said} {each.destination}", each.queued_at, taken, detail, True)
