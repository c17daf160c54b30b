"""What a request brings in its body, as JSON from a program or as a form from a page."""

import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.datastructures import FormData
from starlette.requests import Request

from node.web.auth import FIELD, is_form

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
