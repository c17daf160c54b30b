"""Logging in and out; a name or an address that guesses waits."""

import logging
import math
import threading
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Form
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from node.web import credentials
from node.web.auth import AsViewer
from node.web.gate import COOKIE, Gate, How
from node.web.origin import is_foreign
from node.web.parts import PartsOf
from node.web.problems import Problem
from storage import users

logger = logging.getLogger(__name__)

WINDOW_SECONDS = 900.0  # refused log-ins count for so long
MOST_OF_BOTH = 5  # within it, under one name from one address
MOST_OF_ADDRESS = 20  # under any name: a reading room may share an address
MOST_OF_NAME = 100  # from anywhere: fewer, and anybody could lock anybody out

router = APIRouter(include_in_schema=False)

_one_by_one = threading.Lock()

Text = Annotated[str, Form()]


@router.post("/login")
def log_in(
    request: Request, parts: PartsOf, name: Text = "", password: Text = "", next: Text = "/"
) -> Response:
    """Start a session, always a new one: a cookie that somebody planted is worth nothing."""
    if is_foreign(request):
        raise Problem(HTTPStatus.FORBIDDEN, "The request comes from a page of another site.")
    if not name.isprintable():  # no name of ours; PostgreSQL keeps no NUL in a text
        raise Problem(HTTPStatus.UNAUTHORIZED, "The name or the password is wrong.")
    gate = parts.gate
    address = gate.address(request)
    _check_pace(gate, name, address)
    with _one_by_one:  # guesses that come at once are each counted before the next is looked at
        _check_pace(gate, name, address)
        if not _is_user(gate, name, password):
            users.refuse_login(gate.database, gate.now(), name, address)
            raise Problem(HTTPStatus.UNAUTHORIZED, "The name or the password is wrong.")
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


def _is_user(gate: Gate, name: str, password: str) -> bool:
    """True where it is this user's password; an unknown name takes as long as a known one."""
    user = users.find(gate.database, name)
    stored = user.password if user is not None and not user.disabled else ""
    return credentials.is_password(password, stored) and user is not None


def _session(request: Request, gate: Gate, name: str, address: str, to: str) -> Response:
    token, now = credentials.new_token(), gate.now()
    until = now + gate.access.session_seconds
    users.log_in(
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
        users.log_out(gate.database, gate.now(), name, credentials.digest(cookie))


def _check_pace(gate: Gate, name: str, address: str) -> None:
    """Refuse before the password is looked at: who guesses learns nothing, not even slowly."""
    now = gate.now()
    late = users.failures(gate.database, now - WINDOW_SECONDS, name, address)
    few = late.of_both < MOST_OF_BOTH and late.of_address < MOST_OF_ADDRESS
    if few and late.of_name < MOST_OF_NAME:
        return
    wait = max(1.0, (late.last_at or now) + WINDOW_SECONDS - now)
    logger.warning("log-in throttled", extra={"address": address, "seconds": round(wait)})
    raise Problem(
        HTTPStatus.TOO_MANY_REQUESTS,
        f"Too many wrong log-ins; try again in {math.ceil(wait / 60)} min.",
        headers={"Retry-After": str(math.ceil(wait))},
    )


def _inside(path: str) -> str:
    """Only a path of ours: a link to the log-in must not lead to another site."""
    is_path = path.startswith("/") and not path.startswith(("//", "/\\"))
    return path if is_path and path.isprintable() else "/"
