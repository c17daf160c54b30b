"""What was received, and what a person wants of it."""

from fastapi import APIRouter

from node.rules import view
from node.rules.view import Json, iso
from node.web.auth import AsOperator, AsViewer, Visitor
from node.web.parts import Parts, PartsOf
from node.web.rest.inputs import Uid
from storage.errors import NotFound, WrongState
from storage.records import SwitchName, WishKind
from storage.site import control

router = APIRouter(tags=["series"])


@router.get("/series/{series_uid}", summary="One received series and its jobs")
def get_series(series_uid: Uid, _: AsViewer, parts: PartsOf) -> Json:
    found = parts.store.archive.series_by_uid(series_uid)
    if not found:
        raise NotFound(f"no series {series_uid} was received")
    jobs = [job.id for each in found for job in parts.store.queue.of_series(each.id)]
    never = control.is_on(parts.database, SwitchName.NEVER, series_uid)
    return view.series(found[0], parts.zone) | {
        "jobs": jobs,
        "never_process": never is not None,
        "also_in_studies": [each.study_uid for each in found[1:]],
    }


@router.post(
    "/series/{series_uid}/process-now",
    summary="Do not wait for further instances of a series that is arriving",
    status_code=202,
)
def process_now(series_uid: Uid, visitor: AsOperator, parts: PartsOf) -> Json:
    if not parts.store.archive.series_by_uid(series_uid):
        raise NotFound(f"no series {series_uid} was received")
    if not any(each.series_uid == series_uid for each in parts.store.archive.arriving()):
        raise WrongState(f"series {series_uid} is not arriving; requeue its job instead")
    asked = control.ask(
        parts.database, parts.gate.now(), visitor.name, WishKind.PROCESS_NOW, series_uid
    )
    return {
        "wish": asked.id,
        "series_uid": series_uid,
        "state": str(asked.state),
        "asked_at": iso(asked.asked_at, parts.zone),
    }


@router.post("/series/{series_uid}/never", summary="No jobs are made of it")
def never_process(series_uid: Uid, visitor: AsOperator, parts: PartsOf) -> Json:
    return _never(series_uid, visitor, parts, on=True)


@router.delete("/series/{series_uid}/never", summary="Jobs are made of it again")
def process_again(series_uid: Uid, visitor: AsOperator, parts: PartsOf) -> Json:
    return _never(series_uid, visitor, parts, on=False)


def _never(series_uid: str, visitor: Visitor, parts: Parts, *, on: bool) -> Json:
    if not parts.store.archive.series_by_uid(series_uid):
        raise NotFound(f"no series {series_uid} was received")
    now = parts.gate.now()
    control.turn(parts.database, now, visitor.name, SwitchName.NEVER, series_uid, on=on)
    return {"series_uid": series_uid, "never_process": on}
