"""Who a request is from: a token, a trusted proxy's word, a session, or nobody but this machine."""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus

from starlette.requests import Request

from node.web import credentials, origin
from node.web.origin import Network
from node.web.problems import NotLoggedIn, Problem
from storage.database import Database
from storage.records import Role
from storage.site import people

COOKIE = "midslice"
BEARER = "bearer "
LONGEST_NAME = 64
LOCAL = "local"  # who acts where nobody logs in

RANKS = {Role.VIEWER: 1, Role.OPERATOR: 2, Role.ADMINISTRATOR: 3}

ONLY_HERE = (
    "No user exists, so this port answers this machine only. "
    "Add one with: midslice user add NAME --role administrator"
)
OTHER_HOST = (
    "No user exists, so this port answers under the names localhost and 127.0.0.1 only. "
    "Add one with: midslice user add NAME --role administrator"
)


class How(StrEnum):
    """How it is known who asks."""

    LOCAL = "local"
    SESSION = "session"
    TOKEN = "token"  # noqa: S105 - a word, no secret
    PROXY = "proxy"


@dataclass(frozen=True)
class Visitor:
    """Who asks; `csrf` is what their pages must send with every change."""

    name: str
    role: Role
    csrf: str
    how: How

    def may(self, role: Role) -> bool:
        """True where theirs is that role or a higher one."""
        return RANKS[self.role] >= RANKS[role]


@dataclass(frozen=True)
class Access:
    """What the configuration says about visitors."""

    session_seconds: float
    idle_seconds: float
    proxies: tuple[Network, ...] = ()
    user_header: str = ""
    role_header: str = ""


class Gate:
    """Reads a request's proof of who sent it."""

    def __init__(self, database: Database, access: Access, now: Callable[[], float]) -> None:
        self.access = access
        self.database = database
        self.now = now
        self._key = credentials.new_token()  # of this process: pages of an older one load again

    def visitor(self, request: Request, *, is_use: bool | None = None) -> Visitor | None:
        """Who asks; None where nobody is known and somebody could log in.

        Only what a person does keeps a session from growing idle: not what an open page fetches
        by itself. `is_use` None: as the request looks.
        """
        token = _bearer(request)
        if token is not None:
            return self._program(token)
        is_use = origin.is_by_hand(request) if is_use is None else is_use
        session = self._proxied(request) or self._session(request, is_use=is_use)
        return session or self._local(request)

    def address(self, request: Request) -> str:
        """Where the person sits, as far as it can be known."""
        return origin.address(request, self.access.proxies)

    def is_secure(self, request: Request) -> bool:
        """True where the person's browser speaks TLS."""
        if request.url.scheme == "https":
            return True
        said = request.headers.get("x-forwarded-proto", "").lower()
        return said == "https" and origin.is_from(request, self.access.proxies)

    def _program(self, token: str) -> Visitor:
        found = people.find_token(self.database, self.now(), credentials.digest(token))
        if found is None:
            raise NotLoggedIn("The API token is unknown or revoked.")
        return Visitor(f"token {found.name}"[:LONGEST_NAME], found.role, "", How.TOKEN)

    def _proxied(self, request: Request) -> Visitor | None:
        name = request.headers.get(self.access.user_header) if self.access.user_header else None
        if not name or not origin.is_from(request, self.access.proxies):
            return None  # anybody can write a header
        name = name.strip()[:LONGEST_NAME]
        role = self._proxied_role(request, name)
        csrf = hmac.new(self._key.encode(), name.encode(), hashlib.sha256).hexdigest()
        return Visitor(name, role, csrf, How.PROXY)

    def _proxied_role(self, request: Request, name: str) -> Role:
        """The role that the proxy says, else that of the user of this name, else viewer."""
        said = request.headers.get(self.access.role_header) if self.access.role_header else None
        if said is not None:
            try:
                return Role(said.strip().lower())
            except ValueError:
                allowed = ", ".join(Role)
                wrong = f"The proxy's {self.access.role_header} is no role; allowed: {allowed}."
                raise Problem(HTTPStatus.FORBIDDEN, wrong) from None
        user = people.find_user(self.database, name)
        if user is not None and user.disabled:
            raise Problem(HTTPStatus.FORBIDDEN, f"The user {name} is disabled.")
        return user.role if user is not None else Role.VIEWER

    def _session(self, request: Request, *, is_use: bool) -> Visitor | None:
        cookie = request.cookies.get(COOKIE)
        if not cookie:
            return None
        login = people.logged_in(
            self.database,
            self.now(),
            credentials.digest(cookie),
            idle_seconds=self.access.idle_seconds,
            is_use=is_use,
        )
        return Visitor(login.name, login.role, login.csrf, How.SESSION) if login else None

    def _local(self, request: Request) -> Visitor | None:
        """Where no user exists, whoever sits at this machine is its administrator."""
        if people.exist(self.database):
            return None
        # A proxy on this machine need not say that it is one; whom it does not name is not here.
        is_proxy = origin.is_from(request, self.access.proxies)
        if not origin.is_local(request) or origin.is_forwarded(request) or is_proxy:
            raise Problem(HTTPStatus.FORBIDDEN, ONLY_HERE)
        if not origin.names_this_machine(request):
            raise Problem(HTTPStatus.FORBIDDEN, OTHER_HOST)
        return Visitor(LOCAL, Role.ADMINISTRATOR, self._key, How.LOCAL)


def _bearer(request: Request) -> str | None:
    given = request.headers.get("authorization", "")
    return given[len(BEARER) :].strip() if given.lower().startswith(BEARER) else None
