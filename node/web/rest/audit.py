"""Who did what, when."""

from typing import Annotated

from fastapi import APIRouter, Query

from node.rules.view import Json, iso
from node.web.auth import AsAdministrator
from node.web.parts import PartsOf
from node.web.rest.inputs import Line, Paged

router = APIRouter(tags=["audit"])


@router.get("/audit", summary="Audit events, the newest first")
def events(
    _: AsAdministrator,
    parts: PartsOf,
    page: Paged,
    who: Annotated[Line, Query(description="Of one person.")] = "",
    what: Annotated[Line, Query(description="Of one kind of action.")] = "",
) -> list[Json]:
    audit = parts.store.audit
    page.counted(audit.count(who=who, what=what), page.limit)
    return [
        {
            "id": each.id,
            "at": iso(each.at, parts.zone),
            "who": each.who,
            "what": each.what,
            "which": each.which,
            "detail": dict(each.detail),
        }
        for each in audit.list(page.limit, page.offset, who=who, what=what)
    ]
