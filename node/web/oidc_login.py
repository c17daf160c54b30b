"""Log-in at an OpenID Connect provider: to it, back from it, and the session of the person."""

import json
import logging
import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from http import HTTPStatus
from typing import Annotated, TypeVar

import anyio
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from node.config.sections import OIDC_CALLBACK, Oidc
from node.oidc import Attempt, NotAccepted, NotAnswering, Person, Provider
from node.web.access import COOKIE, RANKS, Gate
from node.web.login import OIDC_ENDED, end_session, inside, new_session, set_cookie
from node.web.pages.render import login_page
from node.web.problems import Problem
from node.web.state import PartsOf
from storage.records import Role
from storage.site import people

logger = logging.getLogger(__name__)

PATH = "/login/oidc"
ATTEMPT_COOKIE = "midslice-oidc"
ATTEMPT_SECONDS = 900.0  # for a log-in at the provider, second factors included
MOST_ATTEMPTS = 10_000  # that are remembered as used
AT_ONCE = 4  # that wait for the provider; others wait for these, and pages for none of them
LONGEST_NAME = 40  # of a person; the host of the provider stands behind it

T = TypeVar("T")

router = APIRouter(include_in_schema=False)


class SingleSignOn:
    """The provider, and the log-ins that it was used for; made once a process."""

    def __init__(self, settings: Oidc, now: Callable[[], float]) -> None:
        self.settings = settings
        self.provider = Provider(settings, now)
        self._limiter: CapacityLimiter | None = None
        self._used: OrderedDict[str, None] = OrderedDict()
        self._turn = threading.Lock()

    async def ask(self, question: Callable[[], T]) -> T:
        """Let the provider be asked in a thread: one that is slow holds up no page."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(AT_ONCE)
        try:
            return await to_thread.run_sync(question, limiter=self._limiter)
        except NotAnswering as error:
            logger.warning("log-in provider not reached", extra={"reason": str(error)})
            rest = " Try again in a moment"
            rest += ", or log in with a password." if self.settings.local_login else "."
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"{_sentence(error)}{rest}") from error
        except NotAccepted as error:
            logger.warning("log-in of provider refused", extra={"reason": str(error)})
            begin = "Begin the log-in again."
            raise Problem(HTTPStatus.FORBIDDEN, f"{_sentence(error)} {begin}") from error

    def use(self, attempt: Attempt) -> None:
        """Raise where this log-in was answered before: whoever repeats an address gets nothing."""
        with self._turn:
            if attempt.state in self._used:
                raise Problem(HTTPStatus.FORBIDDEN, OVER)
            self._used[attempt.state] = None
            while len(self._used) > MOST_ATTEMPTS:
                self._used.popitem(last=False)

    def role(self, values: tuple[str, ...]) -> Role | None:
        """The highest role that the values of the claim give."""
        roles = [Role(self.settings.roles[one]) for one in values if one in self.settings.roles]
        return max(roles, key=lambda role: RANKS[role], default=None)

    def name(self, person: Person) -> str:
        """The name that pages and audit events show: it is nobody's of the node's own."""
        shown = "".join(c for c in person.name if c.isprintable()).strip()
        return f"{(shown or person.subject)[:LONGEST_NAME]} ({self.provider.host})"[:64]


OVER = "This log-in is over, or was begun in another browser. Begin it again."


def _single_sign_on(request: Request) -> SingleSignOn:
    configured: SingleSignOn = request.app.state.single_sign_on
    return configured


Configured = Annotated[SingleSignOn, Depends(_single_sign_on)]


@router.get(PATH)
async def begin(
    request: Request, parts: PartsOf, configured: Configured, next: str = "/"
) -> Response:
    """Send the browser to the provider. A link leads here: a form may lead to our own site only."""
    attempt = Attempt.new(parts.gate.now(), inside(next))
    to = await configured.ask(partial(configured.provider.authorization_url, attempt))
    answer = RedirectResponse(to, HTTPStatus.SEE_OTHER)
    kept = _sealed(parts.gate, attempt)
    set_cookie(answer, request, parts.gate, ATTEMPT_COOKIE, kept, ATTEMPT_SECONDS, PATH)
    return answer


@router.get(OIDC_CALLBACK)
async def end(request: Request, parts: PartsOf, configured: Configured) -> Response:
    """Take the provider's answer, and begin the session of the person whom it names."""
    gate = parts.gate
    attempt = _attempt(gate, request.cookies.get(ATTEMPT_COOKIE, ""))
    configured.use(attempt)
    answer = dict(request.query_params)
    person = await configured.ask(partial(configured.provider.person, attempt, answer))
    token = await to_thread.run_sync(_begin_session, request, gate, configured, person)
    to = RedirectResponse(attempt.next, HTTPStatus.SEE_OTHER)
    set_cookie(to, request, gate, COOKIE, token, gate.web.session_hours * 3600.0)
    to.delete_cookie(ATTEMPT_COOKIE, PATH)
    return to


@router.get(OIDC_ENDED)
async def ended(request: Request, configured: Configured) -> HTMLResponse:
    """Show the log-in after a log-out; the provider still knows the browser, until it ends that."""
    back = configured.settings.public_url.rstrip("/") + "/login"
    try:
        to = await configured.ask(partial(configured.provider.end_session_url, back))
    except Problem:  # nothing is offered
        to = ""
    host = configured.provider.host
    return HTMLResponse(login_page(request, ended_at=host, end_session_url=to))


def _begin_session(request: Request, gate: Gate, configured: SingleSignOn, person: Person) -> str:
    """Begin it with the role that the provider gives; whoever has none gets a page that says so."""
    name, role, now = configured.name(person), configured.role(person.values), gate.now()
    proof = {"issuer": configured.settings.issuer, "subject": person.subject[:255]}
    if role is None:
        refused = {"address": gate.address(request), **proof, "reason": "no role"}
        parts = request.app.state.parts
        parts.store.audit.record(name, "log in refused", "", refused)
        raise Problem(
            HTTPStatus.FORBIDDEN,
            f"You are known as {name}, but with no role on this node. Ask whoever manages "
            f"the log-in provider for one of: {', '.join(sorted(configured.settings.roles))}.",
        )
    end_session(request, gate, name)
    token, facts = new_session(request, gate)
    people.log_in_external(gate.database, now, name, role, proof, **facts)
    return token


def _sealed(gate: Gate, attempt: Attempt) -> str:
    """The attempt as the browser keeps it: what it must bring back, and nobody can make up."""
    text = urlsafe_b64encode(json.dumps(asdict(attempt)).encode()).decode()
    return f"{text}.{gate.signature(f'oidc {text}')}"


def _attempt(gate: Gate, cookie: str) -> Attempt:
    text, _, signature = cookie.partition(".")
    if not gate.is_signed(f"oidc {text}", signature):
        raise Problem(HTTPStatus.FORBIDDEN, OVER)
    attempt = Attempt(**json.loads(urlsafe_b64decode(text)))
    if not 0 <= gate.now() - attempt.began_at <= ATTEMPT_SECONDS:
        raise Problem(HTTPStatus.FORBIDDEN, OVER)
    return attempt


def _sentence(error: Exception) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."
