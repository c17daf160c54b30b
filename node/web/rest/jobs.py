"""Jobs and deliveries: what there is, and what an operator does with them."""

from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import Field

from node.errors import UsageError
from node.rules import routing, view
from node.rules.view import Json
from node.web.auth import AsOperator, AsViewer, Visitor
from node.web.parts import Parts, PartsOf
from node.web.rest.bodies import Body, taken, takes
from node.web.rest.finding import Filter, note_search
from node.web.rest.inputs import LARGEST_ID, Id, Line
from storage.errors import StorageError, WrongState
from storage.queries import find
from storage.queries.find import Wanted, delivery_ids

router = APIRouter(tags=["jobs"])

MOST_AT_ONCE = 500
# A person looks at each of these by itself: requeued, it is processed all the same.
ONE_BY_ONE = ("PATIENT_MISMATCH", "CONFLICTING_INSTANCES")


class Priority(Body):
    priority: int = Field(ge=1, le=9, description="1 first, 9 last")


class Redelivery(Body):
    destination: Line = Field("", description="One of the configuration; empty = those of the job.")


class Batch(Body):
    ids: list[Annotated[int, Field(ge=1, le=LARGEST_ID)]] = Field(
        default=[], max_length=MOST_AT_ONCE, description="Empty: those that the filter finds."
    )


@router.get("/jobs/{job_id}", summary="One job with its attempts, instances and deliveries")
def get_job(job_id: Id, _: AsViewer, parts: PartsOf) -> Json:
    queue, ledger = parts.store.queue, parts.store.ledger
    return view.job_in_full(
        queue.get(job_id),
        ledger.of_job(job_id),
        queue.attempts(job_id),
        queue.instances(job_id),
        parts.zone,
    )


@router.post("/jobs/{job_id}/requeue", summary="Queue a refused, failed, held or cancelled job")
def requeue(job_id: Id, visitor: AsOperator, parts: PartsOf) -> Json:
    """Where its route has changed since, a new job replaces it: the answer is about that one."""
    return _job(parts, _put_back(parts, visitor, job_id))


@router.post("/jobs/{job_id}/cancel", summary="Cancel a queued, held, failed or running job")
def cancel(job_id: Id, visitor: AsOperator, parts: PartsOf) -> Json:
    parts.store.queue.cancel(job_id, who=visitor.name)
    return _job(parts, job_id)


@router.post(
    "/jobs/{job_id}/redeliver",
    summary="Send the derived series once more",
    openapi_extra=takes(Redelivery),
)
def redeliver(
    job_id: Id,
    visitor: AsOperator,
    parts: PartsOf,
    body: Annotated[Redelivery, Depends(taken(Redelivery))],
) -> Json:
    if body.destination:
        parts.config().destination(body.destination)
    parts.store.ledger.redeliver(job_id, body.destination or None, who=visitor.name)
    return _job(parts, job_id)


@router.post("/jobs/{job_id}/priority", summary="1 first, 9 last", openapi_extra=takes(Priority))
def prioritise(
    job_id: Id,
    visitor: AsOperator,
    body: Annotated[Priority, Depends(taken(Priority))],
    parts: PartsOf,
) -> Json:
    parts.store.queue.prioritise(job_id, body.priority, who=visitor.name)
    return _job(parts, job_id)


@router.post(
    "/batch/{action}",
    summary="The same for many jobs; each is done, or says why not",
    openapi_extra=takes(Batch),
)
def batch(
    action: Literal["requeue", "cancel", "redeliver"],
    visitor: AsOperator,
    body: Annotated[Batch, Depends(taken(Batch))],
    wanted: Filter,
    parts: PartsOf,
) -> list[Json]:
    acts: dict[str, Callable[[int], object]] = {
        "requeue": lambda job_id: _requeue_with_others(parts, visitor, job_id),
        "cancel": lambda job_id: parts.store.queue.cancel(job_id, who=visitor.name),
        "redeliver": lambda job_id: parts.store.ledger.redeliver(job_id, who=visitor.name),
    }
    if not body.ids and wanted == Wanted():
        raise UsageError("name jobs by ids, or by a filter as GET /api/v1/jobs takes it")
    ids = body.ids or find.job_ids(parts.database, wanted, MOST_AT_ONCE)
    if not body.ids:  # what a filter finds tells about the patients that it names
        note_search(parts, visitor, wanted, len(ids))
    return [_done(acts[action], job_id) for job_id in dict.fromkeys(ids)]


@router.post(
    "/batch/deliveries/{action}",
    summary="The same for many deliveries: by ids, or the held ones that a filter finds",
    openapi_extra=takes(Batch),
)
def batch_of_deliveries(
    action: Literal["requeue", "cancel"],
    visitor: AsOperator,
    body: Annotated[Batch, Depends(taken(Batch))],
    wanted: Filter,
    parts: PartsOf,
) -> list[Json]:
    ledger = parts.store.ledger
    act = {"requeue": ledger.requeue, "cancel": ledger.cancel}[action]
    if not body.ids and wanted == Wanted():
        raise UsageError("name deliveries by ids, or the held ones by a filter")
    ids = body.ids or delivery_ids(parts.database, wanted, MOST_AT_ONCE)
    if not body.ids:
        note_search(parts, visitor, wanted, len(ids))
    who = visitor.name
    return [_done(lambda one: act(one, who=who), each) for each in dict.fromkeys(ids)]


@router.post("/deliveries/{delivery_id}/requeue", summary="Try it now: held, cancelled, or waiting")
def requeue_delivery(delivery_id: Id, visitor: AsOperator, parts: PartsOf) -> Json:
    parts.store.ledger.requeue(delivery_id, who=visitor.name)
    return _delivery(parts, delivery_id)


@router.post("/deliveries/{delivery_id}/cancel", summary="Give a delivery up")
def cancel_delivery(delivery_id: Id, visitor: AsOperator, parts: PartsOf) -> Json:
    parts.store.ledger.cancel(delivery_id, who=visitor.name)
    return _delivery(parts, delivery_id)


def _requeue_with_others(parts: Parts, visitor: Visitor, job_id: int) -> None:
    reason = parts.store.queue.get(job_id).reason
    if reason in ONE_BY_ONE:
        raise WrongState(f"job {job_id} is held {reason}: look at it and requeue it by itself")
    _put_back(parts, visitor, job_id)


def _put_back(parts: Parts, visitor: Visitor, job_id: int) -> int:
    queue = parts.store.queue
    by_now = routing.of_job(parts.config(), queue.get(job_id))
    return queue.requeue(job_id, who=visitor.name, anew=by_now)


def _job(parts: Parts, job_id: int) -> Json:
    return view.job(parts.store.queue.get(job_id), parts.store.ledger.of_job(job_id), parts.zone)


def _delivery(parts: Parts, delivery_id: int) -> Json:
    found = parts.store.ledger.get(delivery_id)
    return view.delivery(found) | {"id": found.id, "sentence": found.sentence}


def _done(act: Callable[[int], object], number: int) -> Json:
    try:
        act(number)
    except StorageError as error:
        return {"id": number, "done": False, "sentence": str(error)}
    return {"id": number, "done": True, "sentence": ""}
