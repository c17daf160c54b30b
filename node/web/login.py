"""Logging in and out; a name or an address that guesses waits."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Form
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from node.web import credentials, pace
from node.web.auth import AsViewer
from node.web.credentials import WrongPassword
from node.web.gate import COOKIE, Gate, How
from node.web.origin import is_foreign
from node.web.parts import PartsOf
from node.web.problems import Problem
from storage.site import people

WRONG = "The name or the password is wrong."

router = APIRouter(include_in_schema=False)

Text = Annotated[str, Form()]


@router.post("/login")
def log_in(
    request: Request, parts: PartsOf, name: Text = "", password: Text = "", next: Text = "/"
) -> Response:
    """Start a session, always a new one: a cookie that somebody planted is worth nothing."""
    if is_foreign(request):
        raise Problem(HTTPStatus.FORBIDDEN, "The request comes from a page of another site.")
    if not name.isprintable():  # no name of ours; PostgreSQL keeps no NUL in a text
        raise Problem(HTTPStatus.UNAUTHORIZED, WRONG)
    gate = parts.gate
    address = gate.address(request)
    try:
        with pace.guess(gate, name, address, "log in refused"):
            _check_user(gate, name, password)
    except WrongPassword as error:
        raise Problem(HTTPStatus.UNAUTHORIZED, WRONG) from error
    _end_session(request, gate, name)
    return _session(request, gate, name, address, _inside(next))


@router.post("/logout")
def log_out(request: Request, parts: PartsOf, visitor: AsViewer) -> Response:
    """End the session, here and in the database."""
    if visitor.how is How.SESSION:
        _end_session(request, parts.gate, visitor.name)
    answer = RedirectResponse("/login", HTTPStatus.SEE_OTHER)
    answer.delete_cookie(COOKIE)
    return answer


def _check_user(gate: Gate, name: str, password: str) -> None:
    """Raise unless it is this user's password; an unknown name takes as long as a known one."""
    user = people.find_user(gate.database, name)
    stored = user.password if user is not None and not user.disabled else ""
    if not credentials.is_password(password, stored) or user is None:
        raise WrongPassword(WRONG)


def _session(request: Request, gate: Gate, name: str, address: str, to: str) -> Response:
    token, now = credentials.new_token(), gate.now()
    until = now + gate.access.session_seconds
    people.log_in(
        gate.database,
        now,
        name,
        id=credentials.digest(token),
        csrf=credentials.new_token(),
        address=address,
        until=until,
    )
    answer = RedirectResponse(to, HTTPStatus.SEE_OTHER)
    answer.set_cookie(
        COOKIE,
        token,
        max_age=int(gate.access.session_seconds),
        httponly=True,  # no script reads it
        samesite="lax",  # a link in a notice opens the page; a form of another site has no cookie
        secure=gate.is_secure(request),
    )
    return answer


def _end_session(request: Request, gate: Gate, name: str) -> None:
    cookie = request.cookies.get(COOKIE)
    if cookie:
        people.log_out(gate.database, gate.now(), name, credentials.digest(cookie))


def _inside(path: str) -> str:
    """Only a path of ours: a link to the log-in must not lead to another site."""
    is_path = path.startswith("/") and not path.startswith(("//", "/\\"))
    return path if is_path and path.isprintable() else "/"
