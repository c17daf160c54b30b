"""Inputs of the API: bounded numbers, one-line text, bodies, pages; and records as JSON."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Annotated, Any, TypeAlias, TypeVar
from urllib.parse import urlencode

from fastapi import Depends, Path, Query, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from starlette.datastructures import FormData
from starlette.requests import Request

from node.web.access import FIELD, is_form
from storage.records import Attempt, Delivery, Instance, Job, Series
from storage.records import Page as Found

JSON, FORM = "application/json", "application/x-www-form-urlencoded"


class Body(BaseModel):
    """A body; what it does not know it refuses."""

    model_config = ConfigDict(extra="forbid")


B = TypeVar("B", bound=Body)


def taken(kind: type[B]) -> Callable[[Request], Awaitable[B]]:
    """A dependency that reads a body of this kind."""

    async def read(request: Request) -> B:
        given = (
            _fields(await request.form(), kind) if is_form(request) else await _document(request)
        )
        try:
            return kind.model_validate(given)
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False, include_context=False)
            places = [{**each, "loc": ("body", *each["loc"])} for each in found]
            raise RequestValidationError(places) from error

    return read


def takes(kind: type[Body]) -> dict[str, Any]:
    """The same for the OpenAPI document; the kind's schema refers to no other."""
    schema = {"schema": kind.model_json_schema()}
    required = any(field.is_required() for field in kind.model_fields.values())
    return {"requestBody": {"required": required, "content": {JSON: schema, FORM: schema}}}


async def _document(request: Request) -> object:
    body = await request.body()
    if not body:
        return {}
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        wrong = {"type": "json_invalid", "loc": ("body",), "msg": "This is no JSON document."}
        raise RequestValidationError([wrong]) from error


def _fields(form: FormData, kind: type[Body]) -> dict[str, object]:
    """Each field once, or as a list where the kind asks for one; the CSRF token is not ours."""
    lists = {
        name
        for name, field in kind.model_fields.items()
        if getattr(field.annotation, "__origin__", None) is list
    }
    return {
        name: form.getlist(name) if name in lists else form[name] for name in form if name != FIELD
    }


MOST_ROWS = 1000
LARGEST_ID = 2**31 - 1  # of an INTEGER column
LARGEST_OFFSET = 10**9
ONE_LINE = r"^[^\x00-\x1f\x7f]*$"  # a database refuses NUL, and a page of lines any other control

AE_TITLE = r"^[ -\[\]-~]{1,16}$"  # PS3.5 6.2: no backslash, no control character

Line: TypeAlias = Annotated[str, StringConstraints(max_length=256, pattern=ONE_LINE)]
Secret: TypeAlias = Annotated[str, StringConstraints(min_length=10, max_length=256)]
UserName: TypeAlias = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")
]

Id: TypeAlias = Annotated[int, Path(ge=1, le=LARGEST_ID)]
Uid: TypeAlias = Annotated[str, Path(pattern=r"^[0-9.]{1,64}$")]
Name: TypeAlias = Annotated[str, Path(max_length=64, pattern=ONE_LINE)]
AeTitle: TypeAlias = Annotated[str, Query(pattern=AE_TITLE)]


@dataclass(frozen=True)
class Page:
    """Which part of a list is asked for; the answer's headers say how much there is."""

    limit: int
    offset: int
    response: Response
    request: Request

    def of(self, found: Found[Any]) -> None:
        """Write `X-Total-Count`, and `Link` (RFC 8288) where there is more."""
        self.counted(found.total, len(found.lines), is_whole=found.is_whole)

    def counted(self, total: int, shown: int, *, is_whole: bool = True) -> None:
        """The same for a list that is no page of storage; a long one is not counted to its end."""
        self.response.headers["X-Total-Count"] = str(total)
        following = self.offset + self.limit
        more = following < total if is_whole else shown == self.limit
        if more:
            kept = [(k, v) for k, v in self.request.query_params.multi_items() if k != "offset"]
            query = urlencode([*kept, ("offset", following)])
            self.response.headers["Link"] = f'<{self.request.url.path}?{query}>; rel="next"'


def _page(
    response: Response,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=MOST_ROWS, description="At most so many.")] = 100,
    offset: Annotated[
        int, Query(ge=0, le=LARGEST_OFFSET, description="The first so many are left out.")
    ] = 0,
) -> Page:
    return Page(limit, offset, response, request)


Paged: TypeAlias = Annotated[Page, Depends(_page)]


class Mistake(BaseModel):
    where: str
    what: str


class ProblemDocument(BaseModel):
    """RFC 9457; sent as application/problem+json."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[Mistake] = []


# What an endpoint may answer besides what was asked for; every body is a problem document.
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": description, "model": ProblemDocument}
    for status, description in {
        400: "It cannot be read.",
        401: "Nobody is logged in, and no token was sent.",
        403: "The role does not allow it, or the CSRF token is missing.",
        404: "There is no such row.",
        408: "The body did not come in whole, in time.",
        409: "The row is in a state that does not allow it.",
        413: "The request is too long.",
        422: "A value is not allowed.",
        503: "The database is busy; try again.",
    }.items()
}


Json: TypeAlias = dict[str, object]


def iso(at: float | None, zone: tzinfo | None) -> str | None:
    """A time as ISO 8601 with an offset; `zone` None is the system's own."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, zone).astimezone(zone).isoformat(timespec="milliseconds")


def job(job: Job, deliveries: Sequence[Delivery], zone: tzinfo | None) -> Json:
    """A job, as `interfaces.md` fixes it."""
    return {
        "id": job.id,
        "kind": job.kind,
        "state": str(job.state),
        "reason": job.reason,
        "sentence": job.sentence,
        "series_uid": job.series_uid,
        "stack": job.stack,
        "route": job.route,
        "derived_series_uid": job.derived_series_uid,
        "model": job.model,
        "version": job.version,
        "attempt": job.attempt,
        "queued_at": iso(job.queued_at, zone),
        "started_at": iso(job.started_at, zone),
        "finished_at": iso(job.finished_at, zone),
        "progress": job.progress,
        "deliveries": [delivery(each) for each in deliveries],
    }


def job_in_full(
    one: Job,
    deliveries: Sequence[Delivery],
    attempts: Sequence[Attempt],
    instances: Sequence[Instance],
    zone: tzinfo | None,
) -> Json:
    """A job with everything that is known about it: the page and `midslice job ID`."""
    shown = job(one, deliveries, zone)
    shown["deliveries"] = [
        delivery(each)
        | {
            "id": each.id,
            "reason": each.reason,
            "sentence": each.sentence,
            "failures": each.failures,
            "due_at": iso(each.due_at, zone),
            "finished_at": iso(each.finished_at, zone),
        }
        for each in deliveries
    ]
    return shown | {
        "study_uid": one.study_uid,
        "parameters": _plain(one.parameters),
        "destinations": list(one.destinations),
        "edition": one.edition,
        "priority": one.priority,
        "worker_deaths": one.worker_deaths,
        "abandoned": one.abandoned,
        "cancel_requested": one.cancel_requested,
        "record": _plain(one.record),
        "attempts": [_attempt(each, zone) for each in attempts],
        "instances": [_instance(each, zone) for each in instances],
    }


def delivery(each: Delivery) -> Json:
    """A delivery of a job."""
    return {
        "destination": each.destination,
        "state": str(each.state),
        "sent": each.sent,
        "confirmed": each.confirmed,
        "total": each.total,
    }


def series(each: Series, zone: tzinfo | None) -> Json:
    """A received series. No patient attribute: who may see those decides elsewhere."""
    return {
        "series_uid": each.series_uid,
        "study_uid": each.study_uid,
        "modality": each.modality,
        "description": each.description,
        "first_at": iso(each.first_at, zone),
        "last_at": iso(each.last_at, zone),
        "purged_at": iso(each.purged_at, zone),
        "instances": each.instances,
        "bytes": each.bytes,
        "states": list(each.states),
    }


def _attempt(each: Attempt, zone: tzinfo | None) -> Json:
    return {
        "number": each.number,
        "worker": each.worker,
        "started_at": iso(each.started_at, zone),
        "ended_at": iso(each.ended_at, zone),
        "outcome": each.outcome,
        "detail": each.detail,
    }


def _instance(each: Instance, zone: tzinfo | None) -> Json:
    return {
        "instance_uid": each.instance_uid,
        "sop_class_uid": each.sop_class_uid,
        "transfer_syntax": each.transfer_syntax,
        "size": each.size,
        "received_at": iso(each.received_at, zone),
        "kept": each.path is not None,
    }


def _plain(values: Mapping[str, object]) -> Json:
    return dict(values)
