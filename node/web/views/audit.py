"""Who did what, when."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import HTMLResponse

from node.web.auth import AsAdministrator
from node.web.parts import PartsOf
from node.web.views.render import look, page
from storage.records import Page

router = APIRouter()

AT_ONCE = 100

Word = Annotated[str, Query(max_length=64)]


@router.get("/audit")
def events(
    request: Request,
    visitor: AsAdministrator,
    parts: PartsOf,
    who: Word = "",
    what: Word = "",
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
) -> HTMLResponse:
    at = look(request, parts, visitor)
    audit, given = parts.store.audit, {"who": who.strip(), "what": what.strip()}
    lines = audit.list(AT_ONCE, offset, **given)
    found = Page(lines, audit.count(**given), AT_ONCE, offset)
    return page(at, "audit.html", path="/audit", found=found, given=given)
