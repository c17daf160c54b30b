"""A made series on the whole way: ask for one, and see what the earlier ones found."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import HTMLResponse

from node.web.auth import AsViewer
from node.web.parts import PartsOf
from node.web.views.render import Look, look, page, part
from storage.records import Page, WishKind
from storage.site import control, notices, selftests

router = APIRouter()

AT_ONCE = 20
Offset = Annotated[int, Query(ge=0, le=10**9)]


@router.get("/selftest")
def selftest(
    request: Request, visitor: AsViewer, parts: PartsOf, offset: Offset = 0
) -> HTMLResponse:
    at = look(request, parts, visitor)
    return page(at, "selftest.html", path="/selftest", **_history(at, offset))


@router.get("/selftest/part")
def fragment(
    request: Request, visitor: AsViewer, parts: PartsOf, offset: Offset = 0
) -> HTMLResponse:
    at = look(request, parts, visitor)
    return part(at, "selftest_part.html", **_history(at, offset))


def _history(at: Look, offset: int) -> Mapping[str, object]:
    database = at.parts.database
    asked = [each for each in control.asked(database) if each.kind is WishKind.SELFTEST]
    lines = selftests.history(database, AT_ONCE, offset)
    return {
        "tests": Page(lines, selftests.count(database), AT_ONCE, offset),
        "asked": asked,
        "schedule": at.parts.config().selftest,
        "messages": notices.newest(database, limit=10),
        "notify": at.parts.config().notify,
    }
