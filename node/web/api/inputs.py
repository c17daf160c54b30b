"""Inputs of the API: bounded numbers, one-line text, bodies, pages; and its problem documents."""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, TypeVar, get_args, get_origin
from urllib.parse import urlencode

from fastapi import Depends, Path, Query, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from starlette.datastructures import FormData
from starlette.requests import Request

from node.web.access import FIELD, is_form
from storage.records import UID_CHARACTERS, Page

JSON, FORM = "application/json", "application/x-www-form-urlencoded"

MOST_ROWS = 1000
LARGEST_ID = 2**31 - 1  # of an INTEGER column
LARGEST_OFFSET = 10**9
ONE_LINE = r"^[^\x00-\x1f\x7f]*$"  # a database refuses NUL, and a page of lines any other control

UID = rf"^[{UID_CHARACTERS}]{{1,64}}$"
AE_TITLE = r"^[ -\[\]-~]{1,16}$"  # PS3.5 6.2: no backslash, no control character

Line: TypeAlias = Annotated[str, StringConstraints(max_length=256, pattern=ONE_LINE)]
Secret: TypeAlias = Annotated[str, StringConstraints(min_length=10, max_length=256)]
UserName: TypeAlias = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")
]

Id: TypeAlias = Annotated[int, Path(ge=1, le=LARGEST_ID)]
Uid: TypeAlias = Annotated[str, Path(pattern=UID)]
Name: TypeAlias = Annotated[str, Path(max_length=64, pattern=ONE_LINE)]
AeTitle: TypeAlias = Annotated[str, Query(pattern=AE_TITLE)]


class Body(BaseModel):
    """A body that refuses an unknown key."""

    model_config = ConfigDict(extra="forbid")


B = TypeVar("B", bound=Body)


def taken(kind: type[B]) -> Callable[[Request], Awaitable[B]]:
    """Make a dependency that reads a body of this kind."""

    async def read(request: Request) -> B:
        given = (
            _fields(await request.form(), kind) if is_form(request) else await _document(request)
        )
        try:
            return kind.model_validate(given)
        except ValidationError as error:
            mistakes = error.errors(include_url=False, include_input=False, include_context=False)
            placed = [{**mistake, "loc": ("body", *mistake["loc"])} for mistake in mistakes]
            raise RequestValidationError(placed) from error

    return read


def takes(kind: type[Body]) -> dict[str, Any]:
    """Describe such a body for the OpenAPI document."""
    whole = kind.model_json_schema()
    schema = {"schema": _in_place(whole, whole.pop("$defs", {}))}
    required = any(field.is_required() for field in kind.model_fields.values())
    return {"requestBody": {"required": required, "content": {JSON: schema, FORM: schema}}}


def _in_place(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """Write each enumeration where it is referred to: the document has no place for it."""
    if isinstance(schema, list):
        return [_in_place(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        definition = definitions[schema["$ref"].rpartition("/")[2]]
        return {key: value for key, value in definition.items() if key != "description"}
    return {key: _in_place(value, definitions) for key, value in schema.items()}


async def _document(request: Request) -> object:
    body = await request.body()
    if not body:
        return {}
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        wrong = {"type": "json_invalid", "loc": ("body",), "msg": "This is not a JSON document."}
        raise RequestValidationError([wrong]) from error


def _fields(form: FormData, kind: type[Body]) -> dict[str, object]:
    """Read each field once, or as a list where the kind has one; the CSRF token is not ours."""
    lists = {name for name, field in kind.model_fields.items() if _is_list(field.annotation)}
    return {
        name: form.getlist(name) if name in lists else form[name] for name in form if name != FIELD
    }


def _is_list(annotation: object) -> bool:
    return get_origin(annotation) is list or any(map(_is_list, get_args(annotation)))


@dataclass(frozen=True)
class PageRequest:
    """The part of a list that is asked for; the answer's headers say how much there is."""

    limit: int
    offset: int
    response: Response
    request: Request

    def of(self, lines: Page[Any]) -> None:
        """Write `X-Total-Count`, and `Link` (RFC 8288) where there is more."""
        self.counted(lines.total, len(lines.lines), is_whole=lines.is_whole)

    def counted(self, total: int, shown: int, *, is_whole: bool = True) -> None:
        """Write the same for any list; a long one is not counted to its end."""
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
    limit: Annotated[int, Query(ge=1, le=MOST_ROWS, description="At most this many.")] = 100,
    offset: Annotated[int, Query(ge=0, le=LARGEST_OFFSET, description="Skip this many.")] = 0,
) -> PageRequest:
    return PageRequest(limit, offset, response, request)


Paged: TypeAlias = Annotated[PageRequest, Depends(_page)]


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
        408: "The body did not arrive completely and in time.",
        409: "The row is in a state that does not allow it.",
        413: "The request is too long.",
        422: "A value is not allowed.",
        503: "The database is busy; try again.",
    }.items()
}
