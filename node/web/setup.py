"""The set-up link: whoever holds it makes the first administrator, once."""

import hmac
from dataclasses import dataclass
from http import HTTPStatus

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from node.errors import UsageError
from node.web import access, login
from node.web.login import People, Text
from node.web.pages.render import ENVIRONMENT
from node.web.problems import Problem
from node.web.state import Parts, PartsOf

PATH = "/setup"
WHO = "set-up link"  # stands in the audit event that adds the first user

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class SetUpKey:
    """The secret of a link; the web process is given its digest alone."""

    text: str
    digest: str

    @classmethod
    def new(cls) -> "SetUpKey":
        text = access.new_token()
        return cls(text, access.digest(text))

    def link(self, pages: str) -> str:
        """The link, below the address of the pages, which ends in a slash."""
        return f"{pages.rstrip('/')}{PATH}?key={self.text}"


@router.get(PATH)
def form(parts: PartsOf, key: str = "") -> Response:
    """Ask for the name and the password of the first administrator."""
    _check(parts, key)
    return _page(key)


@router.post(PATH)
def make_first_user(
    request: Request,
    parts: PartsOf,
    key: Text = "",
    name: Text = "",
    password: Text = "",
    again: Text = "",
) -> Response:
    """Add the administrator and begin the session; the link is worth nothing any more."""
    if access.is_foreign(request):
        raise Problem(HTTPStatus.FORBIDDEN, "The request comes from a page of another site.")
    _check(parts, key)
    gate = parts.gate
    try:
        if password != again:
            raise UsageError("the two passwords differ")
        People(gate.database, gate.now, WHO).add_first(name, password)
    except UsageError as error:
        return _page(key, Problem(HTTPStatus.BAD_REQUEST, f"{str(error).capitalize()}."), name)
    return login.session(request, gate, name, "/")


def _check(parts: Parts, key: str) -> None:
    """Raise unless nobody may log in yet and this is the key of the running node."""
    if not parts.gate.web.takes_passwords:
        raise Problem(HTTPStatus.FORBIDDEN, login.NO_PASSWORDS)
    if parts.gate.has_user():
        raise Problem(HTTPStatus.GONE, "The first user was added; the set-up link has no use left.")
    if not hmac.compare_digest(access.digest(key), parts.settings.setup_digest):
        raise Problem(
            HTTPStatus.FORBIDDEN,
            "This is not the set-up link of the running node. It prints another at each start.",
        )


def _page(key: str, problem: Problem | None = None, name: str = "") -> HTMLResponse:
    shown = ENVIRONMENT.get_template("setup.html").render(key=key, problem=problem, name=name)
    return HTMLResponse(shown, problem.status if problem is not None else HTTPStatus.OK)
