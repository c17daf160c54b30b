"""Log-in and log-out, throttling of guesses, and changes of users and tokens."""

import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, TypedDict

from fastapi import APIRouter, Form
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from node.errors import UsageError
from node.web import access
from node.web.access import COOKIE, DEVICE_COOKIE, AsViewer, Gate, How, WrongPassword, is_foreign
from node.web.problems import Problem
from node.web.state import PartsOf
from storage.database import Database
from storage.errors import WrongState
from storage.records import ApiToken, Role, User
from storage.site import people

logger = logging.getLogger(__name__)

# Guesses are slowed down, nobody is locked out: a reading room may share an address with somebody
# who guesses, and anybody may type anybody's name. A browser from which a user has logged in before
# is counted by itself, whatever others do.
WINDOW_SECONDS = 900.0  # wrong passwords count for so long
MOST_OF_BOTH = 5  # within it, under one name from one address or one known browser
MOST_OF_NAME = 100  # under one name from anywhere
SLOW_SECONDS = 60.0  # past either, from one wrong password to the next guess
MOST_OF_ADDRESS = 20  # under any name from one address
PACE_SECONDS = 2.0  # past it
DEVICE_SECONDS = 365 * 86400  # how long a browser stays known

WRONG = "The name or the password is wrong."
NO_PASSWORDS = "This node takes no passwords; log in with single sign-on."
OIDC_ENDED = "/login/oidc/ended"
RESERVED = ("local", "midslice", "node", "unknown")  # stand in audit events for others
NAME = "1-64 of letters, digits and . _ @ -, the first a letter or a digit"

Text = Annotated[str, Form()]


class SessionFacts(TypedDict):
    """The facts of a session that begins."""

    id: str  # SHA-256 of its token
    csrf: str
    address: str
    until: float


router = APIRouter(include_in_schema=False)
_one_by_one = threading.Lock()


@contextmanager
def guess(gate: Gate, name: str, request: Request, what: str) -> Iterator[None]:
    """Look at a password within this block; WrongPassword counts it, as an audit event `what`.

    Raises a Problem before the password is looked at where it comes too soon after wrong ones: who
    guesses learns nothing by it. Addresses of IPv6 are counted by their /64.
    """
    address, device = gate.address(request), gate.device(request, name)
    place = device or access.counted(address)
    _check(gate, name, place, is_known=bool(device))
    with _one_by_one:  # guesses that come at once are each counted before the next is looked at
        _check(gate, name, place, is_known=bool(device))
        try:
            yield
        except WrongPassword:
            people.refuse_login(gate.database, gate.now(), name, address, counted=place, what=what)
            raise


def _check(gate: Gate, name: str, place: str, *, is_known: bool) -> None:
    now = gate.now()
    late = people.failures(gate.database, now - WINDOW_SECONDS, name, place)
    allowed_at = now
    if late.of_both >= MOST_OF_BOTH:
        allowed_at = max(allowed_at, late.both_at + SLOW_SECONDS)
    if late.of_name >= MOST_OF_NAME and not is_known:
        allowed_at = max(allowed_at, late.name_at + SLOW_SECONDS)
    if late.of_address >= MOST_OF_ADDRESS:
        allowed_at = max(allowed_at, late.address_at + PACE_SECONDS)
    wait = math.ceil(allowed_at - now)
    if not wait:
        return
    shown = "" if is_known else place  # a known browser is no address
    logger.warning("log-in throttled", extra={"address": shown, "seconds": wait})
    raise Problem(
        HTTPStatus.TOO_MANY_REQUESTS,
        f"Too many wrong passwords; try again in {wait} s.",
        headers={"Retry-After": str(wait)},
    )


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
    if not gate.web.takes_passwords:
        raise Problem(HTTPStatus.FORBIDDEN, NO_PASSWORDS)
    try:
        with guess(gate, name, request, "log in refused"):
            _check_user(gate, name, password)
    except WrongPassword as error:
        raise Problem(HTTPStatus.UNAUTHORIZED, WRONG) from error
    end_session(request, gate, name)
    return session(request, gate, name, inside(next))


@router.post("/logout")
def log_out(request: Request, parts: PartsOf, visitor: AsViewer) -> Response:
    """End the session, here and in the database; the provider's own goes on until one ends it."""
    if visitor.how in (How.SESSION, How.OIDC):
        end_session(request, parts.gate, visitor.name)
    to = OIDC_ENDED if visitor.how is How.OIDC else "/login"
    answer = RedirectResponse(to, HTTPStatus.SEE_OTHER)
    answer.delete_cookie(COOKIE)
    return answer


def _check_user(gate: Gate, name: str, password: str) -> None:
    """Raise unless it is this user's password; an unknown name takes as long as a known one."""
    user = people.find_user(gate.database, name)
    stored = user.password if user is not None and not user.disabled else ""
    if not access.is_password(password, stored) or user is None:
        raise WrongPassword(WRONG)


def session(request: Request, gate: Gate, name: str, to: str) -> Response:
    """Begin the session of somebody who has proven who they are, and go there."""
    token, facts = new_session(request, gate)
    people.log_in(gate.database, gate.now(), name, **facts)
    answer = RedirectResponse(to, HTTPStatus.SEE_OTHER)
    set_cookie(answer, request, gate, COOKIE, token, gate.web.session_hours * 3600.0)
    if not gate.device(request, name):
        device = gate.device_cookie(name)
        set_cookie(answer, request, gate, DEVICE_COOKIE, device, DEVICE_SECONDS)
    return answer


def new_session(request: Request, gate: Gate) -> tuple[str, SessionFacts]:
    """Make the token that the browser keeps of a session, and what the database keeps."""
    token = access.new_token()
    until = gate.now() + gate.web.session_hours * 3600.0
    address, csrf = gate.address(request), access.new_token()
    return token, {"id": access.digest(token), "csrf": csrf, "address": address, "until": until}


def set_cookie(
    answer: Response,
    request: Request,
    gate: Gate,
    name: str,
    value: str,
    seconds: float,
    path: str = "/",
) -> None:
    """Let the browser keep something that only it and the node may read."""
    answer.set_cookie(
        name,
        value,
        max_age=int(seconds),
        path=path,
        httponly=True,  # no script reads it
        samesite="lax",  # a link in a notice opens the page; a form of another site has none
        secure=gate.is_secure(request),
    )


def end_session(request: Request, gate: Gate, name: str) -> None:
    cookie = request.cookies.get(COOKIE)
    if cookie:
        people.log_out(gate.database, gate.now(), name, access.digest(cookie))


def inside(path: str) -> str:
    """Only a path of ours: a link to the log-in must not lead to another site."""
    is_path = path.startswith("/") and not path.startswith(("//", "/\\"))
    return path if is_path and path.isprintable() else "/"


@dataclass(frozen=True)
class People:
    """Changes of users and tokens, in the name of `who`."""

    database: Database
    now: Callable[[], float]
    who: str

    def add(self, name: str, role: Role, password: str) -> User:
        """Add a user; the first one must be able to add others."""
        check_name(name)
        if role is not Role.ADMINISTRATOR and not people.exist(self.database):
            raise WrongState(f"the first user must be an administrator, not {role}")
        stored = access.hash_password(password)
        return people.add_user(self.database, self.now(), self.who, name, role, stored)

    def add_first(self, name: str, password: str) -> User:
        """Add the first user, an administrator; WrongState where there is one by now."""
        check_name(name)
        stored = access.hash_password(password)
        role, now = Role.ADMINISTRATOR, self.now()
        return people.add_user(self.database, now, self.who, name, role, stored, is_first=True)

    def change(
        self,
        name: str,
        *,
        role: Role | None = None,
        password: str | None = None,
        disabled: bool | None = None,
    ) -> User:
        """Give another role or password, or no way in; the user's sessions end."""
        stored = access.hash_password(password) if password is not None else None
        return people.change(
            self.database,
            self.now(),
            self.who,
            name,
            role=role,
            password=stored,
            disabled=disabled,
        )

    def change_own(self, old: str, new: str) -> User:
        """Change one's own password; whoever uses an open browser does not know the old one."""
        user = people.find_user(self.database, self.who)
        if user is None or not access.is_password(old, user.password):
            raise WrongPassword("the old password is wrong")
        return self.change(self.who, password=new)

    def remove(self, name: str) -> None:
        """Remove a user and the sessions."""
        people.remove(self.database, self.now(), self.who, name)

    def add_token(self, name: str, role: Role) -> tuple[ApiToken, str]:
        """Add a token for a program; returns also its text, which nobody can see again."""
        if not name or not name.isprintable():
            raise UsageError("the name of a token is 1-64 printable characters")
        text = access.new_token(access.API_PREFIX)
        digest = access.digest(text)
        return people.add_token(self.database, self.now(), self.who, name, role, digest), text

    def revoke_token(self, token_id: int) -> None:
        """Shut a program out."""
        people.revoke_token(self.database, self.now(), self.who, token_id)


def check_name(name: str) -> None:
    """Raise UsageError for a name that cannot be a user's."""
    allowed = name[:1].isalnum() and all(c.isalnum() or c in "._@-" for c in name)
    if not (allowed and name.isascii() and len(name) <= 64):
        raise UsageError(f"'{name}' cannot be a user's name; allowed: {NAME}")
    if name.lower() in RESERVED:
        raise UsageError(f"'{name}' is reserved; these names are: {', '.join(RESERVED)}")
