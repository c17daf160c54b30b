"""Access to the web port: the requester, its role, its origin, and the proof that is asked for.

The role that a page takes stands in `node/web/pages/render.py`, that of a REST path beside it.
"""

import hashlib
import hmac
import ipaddress
import secrets
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated, TypeAlias
from urllib.parse import SplitResult, urlsplit

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from fastapi import Depends
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from node.config.sections import Web
from node.errors import UsageError
from node.web.problems import NotLoggedIn, Problem
from storage.database import Database
from storage.errors import StorageError, WrongState
from storage.records import Role
from storage.site import people

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

SAFE = ("GET", "HEAD", "OPTIONS")  # RFC 9110 9.2.1: they change nothing
# Of the scripts of our pages: with a safe method they fetch again what has changed.
OF_A_SCRIPT = "hx-request"
STREAM = "/live"
OURS = ("same-origin", "none")  # of Sec-Fetch-Site; none: typed by the person
LONGEST_ADDRESS = 64
IPV6_NETWORK_BITS = 64  # what one subscriber has at least (RFC 6177): any address of it is theirs

HEADER = "x-csrf-token"
FIELD = "csrf"  # of a form
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")

COOKIE = "midslice"
DEVICE_COOKIE = "midslice-device"
BEARER = "bearer "
LONGEST_NAME = 64

RANKS = {Role.VIEWER: 1, Role.OPERATOR: 2, Role.ADMINISTRATOR: 3}

NO_USER = (
    "No user exists yet. Open the set-up link that the node printed when it started, or add the "
    "first user with: midslice user add NAME --role administrator."
)

SHORTEST, LONGEST = 10, 256  # characters of a password; longer ones only cost time
TOKEN_BYTES = 32
API_PREFIX = "midslice_"  # so that a token that got lost in a file can be searched for

# RFC 9106 4, second recommended option: 64 MiB, 3 passes, 4 lanes.
HASHER = PasswordHasher(time_cost=3, memory_cost=2**16, parallelism=4)
# Each takes 64 MiB: many log-ins at once must not take the memory of the workers.
_at_once = threading.BoundedSemaphore(2)
# Of a password that nobody has: an unknown name must take as long as a known one.
NOBODY = HASHER.hash(secrets.token_hex(TOKEN_BYTES))


class WrongPassword(WrongState):
    """A wrong password; who guesses waits (`login.guess`)."""


class How(StrEnum):
    """The proof by which a requester is known."""

    SESSION = "session"
    OIDC = "oidc"  # a session too, of somebody whom the log-in provider knows
    TOKEN = "token"  # noqa: S105 - a word, no secret
    PROXY = "proxy"


@dataclass(frozen=True)
class Visitor:
    """A known requester; `csrf` is what their pages must send with every change."""

    name: str
    role: Role
    csrf: str
    how: How

    def may(self, role: Role) -> bool:
        """True where theirs is that role or a higher one."""
        return RANKS[self.role] >= RANKS[role]


class Gate:
    """Reads a request's proof of who sent it."""

    def __init__(
        self, database: Database, web: Web, now: Callable[[], float], secret: bytes
    ) -> None:
        self.web = web
        self._secret = secret  # of the site: a browser stays known when the node starts again
        self.database = database
        self.now = now
        self._key = new_token()  # of this process: pages of an older one load again

    def visitor(self, request: Request) -> Visitor | None:
        """Identify the requester; None where nobody is known.

        Standing on this machine proves nothing: a proxy stands there too, and speaks for anybody.
        Only what a person does keeps a session from growing idle: not what an open page fetches
        by itself.
        """
        token = _bearer(request)
        if token is not None:
            return self._program(token)
        return self._proxied(request) or self._session(request)

    def device_cookie(self, name: str) -> str:
        """Make what a browser keeps from which this user has logged in."""
        device = new_token()
        return f"{device}.{self._signed(name, device)}"

    def device(self, request: Request, name: str) -> str:
        """Find the browser from which this user has logged in before; empty for any other."""
        device, _, signature = request.cookies.get(DEVICE_COOKIE, "").partition(".")
        expected = self._signed(name, device)
        return device if hmac.compare_digest(signature.encode(), expected.encode()) else ""

    def _signed(self, name: str, device: str) -> str:
        return self.signature(f"device {name} {device}")

    def is_signed(self, text: str, signature: str) -> bool:
        """True where the node has signed this text."""
        return hmac.compare_digest(signature.encode(), self.signature(text).encode())

    def signature(self, text: str) -> str:
        """Sign a text that a browser keeps for the node; its first word says what it is."""
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()

    def has_user(self) -> bool:
        """True where a person of the node's own could log in."""
        return people.exist(self.database)

    def address(self, request: Request) -> str:
        """Find the address of the person, as far as it can be known."""
        return address(request, self.web.trusted_proxies)

    def is_secure(self, request: Request) -> bool:
        """True where the person's browser speaks TLS."""
        if request.url.scheme == "https":
            return True
        scheme = request.headers.get("x-forwarded-proto", "").lower()
        return scheme == "https" and is_from(request, self.web.trusted_proxies)

    def _program(self, token: str) -> Visitor:
        known = people.find_token(self.database, self.now(), digest(token))
        if known is None:
            raise NotLoggedIn("The API token is unknown or revoked.")
        return Visitor(f"token {known.name}"[:LONGEST_NAME], known.role, "", How.TOKEN)

    def _proxied(self, request: Request) -> Visitor | None:
        name = request.headers.get(self.web.user_header, "") if self.web.user_header else ""
        name = name.strip()[:LONGEST_NAME]
        if not name or not is_from(request, self.web.trusted_proxies):
            return None  # anybody can write a header
        role = self._proxied_role(request, name)
        csrf = hmac.new(self._key.encode(), name.encode(), hashlib.sha256).hexdigest()
        return Visitor(name, role, csrf, How.PROXY)

    def _proxied_role(self, request: Request, name: str) -> Role:
        """Take the role that the proxy names, else that of the user of this name, else viewer."""
        role = request.headers.get(self.web.role_header) if self.web.role_header else None
        if role is not None:
            try:
                return Role(role.strip().lower())
            except ValueError:
                allowed = ", ".join(Role)
                wrong = f"The proxy's {self.web.role_header} is not a role; allowed: {allowed}."
                raise Problem(HTTPStatus.FORBIDDEN, wrong) from None
        user = people.find_user(self.database, name)
        if user is not None and user.disabled:
            raise Problem(HTTPStatus.FORBIDDEN, f"The user {name} is disabled.")
        return user.role if user is not None else Role.VIEWER

    def _session(self, request: Request) -> Visitor | None:
        cookie = request.cookies.get(COOKIE)
        if not cookie:
            return None
        login = people.logged_in(
            self.database,
            self.now(),
            digest(cookie),
            idle_seconds=self.web.idle_minutes * 60.0,
            is_use=is_by_hand(request),
        )
        if login is None or not (login.is_external or self.web.takes_passwords):
            return None
        how = How.OIDC if login.is_external else How.SESSION
        return Visitor(login.name, login.role, login.csrf, how)


def _bearer(request: Request) -> str | None:
    given = request.headers.get("authorization", "")
    return given[len(BEARER) :].strip() if given.lower().startswith(BEARER) else None


def require(role: Role) -> Callable[[Request], Awaitable[Visitor]]:
    """Make a dependency that yields the visitor, if theirs is this role or a higher one."""

    async def visitor(request: Request) -> Visitor:
        gate: Gate = request.app.state.gate
        known = await run_in_threadpool(gate.visitor, request)
        if known is None:
            if gate.web.oidc is not None or await run_in_threadpool(gate.has_user):
                raise NotLoggedIn
            raise NotLoggedIn(NO_USER)
        if request.method not in SAFE:
            await _check_intent(request, known)
        if not known.may(role):
            needed = f"This needs the role {role}; {known.name} has the role {known.role}."
            raise Problem(HTTPStatus.FORBIDDEN, needed)
        return known

    return visitor


async def may_upload(request: Request) -> bool:
    """True where the visitor may send files; asked before the framework reads any of them."""
    gate: Gate = request.app.state.gate
    try:
        visitor = await run_in_threadpool(gate.visitor, request)
    except (Problem, StorageError):
        return False  # the handler says why
    return visitor is not None and visitor.may(Role.OPERATOR)


AsViewer = Annotated[Visitor, Depends(require(Role.VIEWER))]
AsOperator = Annotated[Visitor, Depends(require(Role.OPERATOR))]
AsAdministrator = Annotated[Visitor, Depends(require(Role.ADMINISTRATOR))]


def is_form(request: Request) -> bool:
    """True where the body is a form."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower() in FORMS


async def _check_intent(request: Request, visitor: Visitor) -> None:
    """Raise unless the page that sent a change proves that it is ours.

    A browser sends cookies with any form of any site. A program with a token proves itself with
    every request.
    """
    if visitor.how is How.TOKEN:
        return
    if is_foreign(request):
        raise Problem(HTTPStatus.FORBIDDEN, "The request comes from a page of another site.")
    if not hmac.compare_digest((await _brought(request)).encode(), visitor.csrf.encode()):
        raise Problem(
            HTTPStatus.FORBIDDEN,
            "The request has no valid CSRF token; load the page again and repeat it.",
        )


async def _brought(request: Request) -> str:
    header = request.headers.get(HEADER)
    if header is not None:
        return header
    if is_form(request):
        given = (await request.form()).get(FIELD, "")
        return given if isinstance(given, str) else ""
    return ""


def is_by_hand(request: Request) -> bool:
    """True where a person does something; False for what an open page asks for by itself."""
    if request.method not in SAFE:
        return True
    return request.url.path != STREAM and OF_A_SCRIPT not in request.headers


def is_foreign(request: Request) -> bool:
    """True where a page of another site made a browser send this."""
    site = request.headers.get("sec-fetch-site")
    if site is not None and site not in OURS:
        return True
    origin = request.headers.get("origin")
    if origin is None:
        return False
    # A proxy in front may speak TLS and we do not, so that the scheme says nothing.
    return _split(origin).netloc.lower() != request.headers.get("host", "").lower()


def peer(request: Request) -> str:
    """The address that the connection comes from."""
    return request.client.host if request.client is not None else ""


def is_from(request: Request, networks: Sequence[Network]) -> bool:
    """True where the connection comes from one of these networks."""
    address = _address(peer(request))
    return address is not None and any(address in network for network in networks)


def address(request: Request, proxies: Sequence[Network]) -> str:
    """Find the requester's address: the peer's, or that which a trusted proxy names."""
    if not is_from(request, proxies):
        return peer(request)[:LONGEST_ADDRESS]
    last = request.headers.get("x-forwarded-for", "").rsplit(",", 1)[-1].strip()
    return (str(_address(last)) if _address(last) else peer(request))[:LONGEST_ADDRESS]


def counted(address: str) -> str:
    """Give the place that guesses are counted by: an IPv4 address, or the /64 of an IPv6 one."""
    known = _address(address)
    if not isinstance(known, ipaddress.IPv6Address):
        return str(known or address)
    rest = known.max_prefixlen - IPV6_NETWORK_BITS
    network = ipaddress.IPv6Address(int(known) >> rest << rest)
    return f"{network}/{IPV6_NETWORK_BITS}"


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # brackets that close nowhere
        return urlsplit("")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)  # ::ffff:127.0.0.1, of a socket for both
    return mapped if isinstance(mapped, ipaddress.IPv4Address) else address


def hash_password(password: str) -> str:
    """Make the hash that is stored; raises UsageError for a password too short or too long."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise UsageError(f"a password has {SHORTEST} to {LONGEST} characters")
    with _at_once:
        return HASHER.hash(password)


def is_password(password: str, stored: str) -> bool:
    """True where `stored` is of this password; always takes its time."""
    with _at_once:
        try:
            return HASHER.verify(stored or NOBODY, password[: LONGEST + 1])
        except (VerificationError, InvalidHashError):
            return False


def new_token(prefix: str = "") -> str:
    """Make 256 random bits, as text that a cookie and a header take."""
    return prefix + secrets.token_urlsafe(TOKEN_BYTES)


def digest(token: str) -> str:
    """Make the hash that is stored of a token: of 256 random bits a plain one is enough."""
    return hashlib.sha256(token.encode()).hexdigest()
