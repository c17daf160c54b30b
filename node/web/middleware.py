"""Middleware: security headers, a bounded body, and no error that escapes."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from node.web.access import may_upload
from node.web.problems import Page, answer, internal

logger = logging.getLogger(__name__)

# Nothing is loaded from anywhere else, and nothing in a page is a script or a style: what a peer
# has written into an attribute stays text, even where somebody forgot to escape it.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "font-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: with it a browser sends "Origin: null" with its own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
STATIC = "/static/"
MOST_BYTES = 2**20  # of a body; forms are small
BODY_SECONDS = 20.0  # for a whole body, and for each so many bytes of it as much as here:
SLOWEST = 32 * 2**10  # bytes a second
MOST_FILE_BYTES = 64 * 2**20  # of all Part 10 files together that the rules are tried on
MOST_FILES = 500  # of a chest at 1 mm; the framework itself takes no more than 1000
FILE_BOUNDS = f"at most {MOST_FILES} files, {MOST_FILE_BYTES // 2**20} MiB together"
FILES = ("/api/v1/rules/", "/rules/try")  # paths that take them
# Instances go to disk as they come, until the reserve of the disk is reached.
STORING = "/dicom-web/studies"
DICOMWEB = "/dicom-web/"
# Viewers of other origins show a token with each request: no cookie is theirs.
CORS_HEADERS = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Accept, Authorization, Content-Type",
    "Access-Control-Max-Age": "600",
}

Answered = Callable[[str, str, int, float], None]  # method, path, status, seconds


class Shield:
    """The outermost layer; pure ASGI, so that it holds for streams and for errors too."""

    def __init__(
        self, app: ASGIApp, *, page: Page, answered: Answered, origins: frozenset[str]
    ) -> None:
        self._app = app
        self._origins = origins  # of viewers that may read DICOMweb in a browser
        self._page = page
        self._answered = answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status = 0
        origin = self._viewer_origin(scope)

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(MutableHeaders(scope=message), str(scope["path"]), origin)
            await send(message)

        body = _Body(receive, Request(scope))
        try:
            app = _preflight if origin and scope["method"] == "OPTIONS" else self._app
            await app(scope, body.receive, guarded)
        except Exception:
            if status:  # half of the answer is out: the connection ends, and the reader sees it
                raise
            logger.exception("request failed")
            await answer(Request(scope), internal(), self._page)(scope, receive, guarded)
        finally:
            took = time.monotonic() - began
            self._answered(str(scope["method"]), str(scope["path"]), status, took)

    def _viewer_origin(self, scope: Scope) -> str:
        """The origin of a viewer that is allowed; empty for anybody else."""
        if not self._origins or not str(scope["path"]).startswith(DICOMWEB):
            return ""
        origin = Request(scope).headers.get("origin", "")
        return origin if origin in self._origins else ""


async def _preflight(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer what a browser asks before a request of another origin."""
    await Response(None, HTTPStatus.NO_CONTENT, CORS_HEADERS)(scope, receive, send)


class _Body:
    """Counts the bytes of a body and the time they take: what a client names is a promise only.

    Afterwards the framework waits here for the client to go away, as long as an answer lasts.
    """

    def __init__(self, receive: Receive, request: Request) -> None:
        self._receive = receive
        self._request = request
        self._limit: float = MOST_BYTES
        self._came = 0
        self._waited = 0.0  # for the client; what the node does meanwhile is not its time
        self._is_whole = False

    async def receive(self) -> Message:
        message = await self._message()
        if message["type"] == "http.request":
            self._is_whole = not message.get("more_body", False)
            self._came += len(message.get("body", b""))
            if self._came > self._limit == MOST_BYTES:
                self._limit = await _limit(self._request)
            if self._came > self._limit:  # of all exceptions the framework lets this kind pass
                detail = f"The request is longer than {self._limit // 2**20:.0f} MiB."
                if self._limit == MOST_FILE_BYTES:
                    detail = f"These files are too large: {FILE_BOUNDS}."
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
        return message

    async def _message(self) -> Message:
        if self._is_whole:
            return await self._receive()
        began = time.monotonic()
        try:
            async with asyncio.timeout(BODY_SECONDS + self._came / SLOWEST - self._waited):
                return await self._receive()
        except TimeoutError as error:
            detail = "The request did not arrive completely in time; it was too slow."
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, detail) from error
        finally:
            self._waited += time.monotonic() - began


async def _limit(request: Request) -> float:
    """Bound a body; the framework reads a form before it asks who sends it, so this asks first."""
    path = request.scope["path"]
    if not path.startswith((*FILES, STORING)) or not await may_upload(request):
        return MOST_BYTES
    return math.inf if path.startswith(STORING) else MOST_FILE_BYTES


def _add_headers(headers: MutableHeaders, path: str, origin: str) -> None:
    for name, value in HEADERS.items():
        headers.setdefault(name, value)
    if origin:
        headers["Access-Control-Allow-Origin"] = origin
        headers.add_vary_header("Origin")
    # Rows and pictures of patients stay in no cache; what ships with the product may.
    headers.setdefault("Cache-Control", "max-age=3600" if path.startswith(STATIC) else "no-store")
