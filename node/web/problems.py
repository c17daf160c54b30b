"""Every error as a problem document (RFC 9457), or as a page where a person asked for one."""

import logging
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import TypeAlias
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from node.errors import NodeError
from storage.errors import Busy, NoRoom, NotFound, StorageError, WrongState

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
OF_THE_SHIELD = (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_TIMEOUT)
RETRY_SECONDS = 5  # how long a caller waits for a database that is busy

# What an error of storage or of the node is to a caller of the API. The first match wins.
STATUSES: tuple[tuple[type[Exception], HTTPStatus], ...] = (
    (NotFound, HTTPStatus.NOT_FOUND),
    (WrongState, HTTPStatus.CONFLICT),
    (Busy, HTTPStatus.SERVICE_UNAVAILABLE),
    (NoRoom, HTTPStatus.SERVICE_UNAVAILABLE),
    (StorageError, HTTPStatus.INTERNAL_SERVER_ERROR),
    (NodeError, HTTPStatus.UNPROCESSABLE_ENTITY),
)


class Problem(Exception):
    """An answer that is not the one asked for: what, which, and what is allowed."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[Mapping[str, object]] = (),
    ) -> None:
        super().__init__(detail)
        self.status = HTTPStatus(status)
        self.detail = detail
        self.headers = dict(headers or {})
        self.errors = tuple(errors)  # of a request with several mistakes, each with its place

    @property
    def title(self) -> str:
        """The title of every problem of this status (RFC 9457 4.2.1: with about:blank)."""
        return self.status.phrase

    def document(self) -> dict[str, object]:
        """Give the members of the problem document."""
        members: dict[str, object] = {
            "type": "about:blank",
            "title": self.title,
            "status": int(self.status),
            "detail": self.detail,
        }
        return members | ({"errors": list(self.errors)} if self.errors else {})


class NotLoggedIn(Problem):
    """Nobody is known to ask, and somebody must be."""

    def __init__(self, detail: str = "Log in, or send an API token as Bearer.") -> None:
        headers = {"WWW-Authenticate": 'Bearer realm="midslice"'}
        super().__init__(HTTPStatus.UNAUTHORIZED, detail, headers=headers)


Page: TypeAlias = Callable[[Request, Problem], str]


def install(app: FastAPI, page: Page) -> None:
    """Answer every expected error of `app`; what nobody expects is the middleware's."""

    def on_problem(request: Request, error: Exception) -> Response:
        return answer(request, _problem(error), page)

    for kind in (Problem, StorageError, NodeError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, on_problem)


def answer(request: Request, problem: Problem, page: Page) -> Response:
    """Answer a script with JSON, a browser with a page or with the log-in."""
    if isinstance(problem, NotLoggedIn) and not _is_api(request):
        to = f"/login?next={quote(_path(request), safe='/')}"
        if request.headers.get("hx-request") == "true":
            return as_json(problem)  # the page stays where it is, and says that one is logged out
        if request.method in ("GET", "HEAD") and _wants_page(request):
            return Response(status_code=HTTPStatus.SEE_OTHER, headers={"Location": to})
    if _wants_page(request):
        return HTMLResponse(page(request, problem), problem.status, problem.headers)
    return as_json(problem)


def as_json(problem: Problem) -> JSONResponse:
    """Answer with the problem document."""
    return JSONResponse(problem.document(), problem.status, problem.headers, media_type=MEDIA_TYPE)


def internal() -> Problem:
    """Make the problem of an unexpected error: it says nothing, the log has the frames."""
    return Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR, "An error occurred in the node; its log says where."
    )


def _problem(error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):  # of the framework: 404 of a path, 405, a broken form
        return Problem(error.status_code, _sentence(error), headers=error.headers)
    status = next(status for kind, status in STATUSES if isinstance(error, kind))
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.warning("request not answered", extra={"error": error})
    retry = {"Retry-After": str(RETRY_SECONDS)}
    again = retry if status is HTTPStatus.SERVICE_UNAVAILABLE else {}
    return Problem(status, _capital(str(error)), headers=again)


def _invalid(error: RequestValidationError) -> Problem:
    """Say what is wrong with a request, and where; never the value, which may be a patient's."""
    errors = [
        {"where": ".".join(map(str, fault["loc"])), "what": str(fault["msg"])}
        for fault in error.errors()
    ]
    first = f"{errors[0]['where']}: {errors[0]['what']}" if errors else "It cannot be read."
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, first, errors=errors)


def _sentence(error: HTTPException) -> str:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return "This page does not exist. /api/openapi.json lists the paths of the REST interface."
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "another method")
        return f"This path takes {allowed} only."
    if error.status_code in OF_THE_SHIELD:
        return error.detail
    return HTTPStatus(error.status_code).description or HTTPStatus(error.status_code).phrase


def _capital(text: str) -> str:
    text = text.rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


def _is_api(request: Request) -> bool:
    return request.url.path.startswith(("/api/", "/metrics", "/healthz", "/readyz"))


def _wants_page(request: Request) -> bool:
    return not _is_api(request) and "text/html" in request.headers.get("accept", "")


def _path(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")
