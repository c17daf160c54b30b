"""Users and API tokens: the administrator's page."""

from collections.abc import Mapping

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse

from node.web.auth import AsAdministrator, Role
from node.web.parts import PartsOf
from node.web.views.render import Look, look, page, part
from storage.site import people

router = APIRouter()


@router.get("/users")
def everybody(request: Request, visitor: AsAdministrator, parts: PartsOf) -> HTMLResponse:
    at = look(request, parts, visitor)
    return page(at, "users.html", path="/users", **_people(at))


@router.get("/users/part")
def fragment(request: Request, visitor: AsAdministrator, parts: PartsOf) -> HTMLResponse:
    at = look(request, parts, visitor)
    return part(at, "users_part.html", **_people(at))


def _people(at: Look) -> Mapping[str, object]:
    database, access = at.parts.database, at.parts.gate.access
    return {
        "people": people.people(database),
        "logins": people.logins(database, at.now),
        "tokens": people.tokens(database),
        "roles": list(Role),
        "access": access,
    }
