"""Who asks, and whether they may: dependencies for every path of the pages and of the API."""

import hmac
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from node.web.gate import RANKS, Gate, How, Visitor
from node.web.origin import SAFE, is_browser, is_foreign
from node.web.problems import NotLoggedIn, Problem
from storage.errors import StorageError
from storage.records import Role

__all__ = [
    "FIELD",
    "AsAdministrator",
    "AsOperator",
    "AsViewer",
    "Role",
    "Visitor",
    "is_form",
    "may_upload",
    "require",
]

HEADER = "x-csrf-token"
FIELD = "csrf"  # of a form
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


def require(role: Role) -> Callable[[Request], Awaitable[Visitor]]:
    """A dependency that yields the visitor, if theirs is this role or a higher one."""

    async def visitor(request: Request) -> Visitor:
        gate: Gate = request.app.state.gate
        found = await run_in_threadpool(gate.visitor, request)
        if found is None:
            raise NotLoggedIn
        if request.method not in SAFE:
            await _check_intent(request, found)
        if RANKS[found.role] < RANKS[role]:
            raise Problem(
                HTTPStatus.FORBIDDEN,
                f"This needs the role {role}; {found.name} has the role {found.role}.",
            )
        return found

    return visitor


async def may_upload(request: Request) -> bool:
    """True where the visitor may send files; asked before the framework reads any of them."""
    gate: Gate = request.app.state.gate
    try:
        found = await run_in_threadpool(gate.visitor, request)
    except (Problem, StorageError):
        return False  # the handler says why
    return found is not None and found.may(Role.OPERATOR)


AsViewer = Annotated[Visitor, Depends(require(Role.VIEWER))]
AsOperator = Annotated[Visitor, Depends(require(Role.OPERATOR))]
AsAdministrator = Annotated[Visitor, Depends(require(Role.ADMINISTRATOR))]


def is_form(request: Request) -> bool:
    """True where the body is a form."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower() in FORMS


async def _check_intent(request: Request, visitor: Visitor) -> None:
    """A browser sends cookies with any form of any site: the page must prove that it is ours.

    A program with a token proves itself with every request. A program on this machine has nothing
    to prove where nobody logs in; a browser says of itself that it is one.
    """
    if visitor.how is How.TOKEN:
        return
    if is_foreign(request):
        raise Problem(HTTPStatus.FORBIDDEN, "The request comes from a page of another site.")
    if visitor.how is How.LOCAL and not is_browser(request):
        return
    if not hmac.compare_digest((await _brought(request)).encode(), visitor.csrf.encode()):
        raise Problem(
            HTTPStatus.FORBIDDEN,
            "The request carries no valid CSRF token; load the page again and repeat it.",
        )


async def _brought(request: Request) -> str:
    header = request.headers.get(HEADER)
    if header is not None:
        return header
    if is_form(request):
        given = (await request.form()).get(FIELD, "")
        return given if isinstance(given, str) else ""
    return ""
